"""Keeps the data key of tests' stacks, as HashiCorp Vault's transit engine answers the Pulumi CLI.

A key from a passphrase takes a million rounds of PBKDF2, a sixth of the processor time of a run that changes nothing, in each run. Secrets
are encrypted and decrypted as always, with a data key that this service answers with. Stacks with a passphrase, as most users have
them: tests/e2e/test_init.py, test_make.py, tests/engine/test_settings_file.py, and those on a real kernel.
"""

from __future__ import annotations

import base64
import functools
import http.server
import json
import threading

URL = "hashivault://homelab-tests"
_CIPHERTEXT = "vault:v1:homelab-tests"
#: What `pulumi stack init` writes into a stack's settings.
IN_SETTINGS = {"secretsprovider": URL, "encryptedkey": base64.b64encode(_CIPHERTEXT.encode()).decode()}
_KEY = b"of 32 bytes, in each test's stack"[:32]
# A new stack's data key is always the same one.
_ANSWERS = {
    "/v1/transit/encrypt/homelab-tests": {"ciphertext": _CIPHERTEXT},
    "/v1/transit/decrypt/homelab-tests": {"plaintext": base64.b64encode(_KEY).decode()},
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"data": _ANSWERS[self.path]}).encode() if self.path in _ANSWERS else b""
        self.send_response(200 if answer else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@functools.cache
def environment() -> dict[str, str]:
    """What the CLI needs to reach it; it runs from the first call on, as long as this process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"VAULT_SERVER_URL": f"http://127.0.0.1:{server.server_port}", "VAULT_SERVER_TOKEN": "of-no-value"}
