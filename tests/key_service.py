"""Keeps the data key of tests' stacks, as HashiCorp Vault's transit engine answers the Pulumi CLI.

A key from a passphrase takes a million rounds of PBKDF2, a sixth of the processor time of a run that changes nothing, in each run. Secrets
are encrypted and decrypted as always, with a data key that this service answers with. Stacks with a passphrase, as most users have
them: tests/e2e/test_init.py, test_make.py, and those on a real kernel.
"""

from __future__ import annotations

import base64
import functools
import http.server
import json
import threading

#: What a stack's settings and state have of it.
URL = "hashivault://homelab-tests"
ENCRYPTED_KEY = base64.b64encode(b"vault:v1:homelab-tests").decode()
_KEY = b"of 32 bytes, in each test's stack"[:32]
_ANSWER = json.dumps({"data": {"plaintext": base64.b64encode(_KEY).decode()}}).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path == "/v1/transit/decrypt/homelab-tests"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(_ANSWER) if known else 0))
        self.end_headers()
        if known:
            self.wfile.write(_ANSWER)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@functools.cache
def environment() -> dict[str, str]:
    """What the CLI needs to reach it; it runs from the first call on, as long as this process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"VAULT_SERVER_URL": f"http://127.0.0.1:{server.server_port}", "VAULT_SERVER_TOKEN": "of-no-value"}
