"""What Proxmox VE's API answers while roads are run, in the form of recordings that the lab is held to (tests/simulator)."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.host import SshHost

# Everything of the program asks pvedaemon, on the node's own 127.0.0.1:85, in plain HTTP: what goes there, and comes back, with the other port.
_LISTEN = """
import base64, socket, struct
heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
heard.bind(("lo", 0))
while True:
    data, about = heard.recvfrom(1 << 17)
    if about[2] != 4 or data[9] != 6:
        continue
    tcp = data[(data[0] & 15) * 4 : struct.unpack("!H", data[2:4])[0]]
    ports = struct.unpack("!HH", tcp[:4])
    payload = tcp[(tcp[12] >> 4) * 4 :]
    if 85 in ports and payload:
        print(sum(ports) - 85, int(ports[1] == 85), base64.b64encode(payload).decode(), flush=True)
"""
_SECRET = re.compile(r"password|sshkeys|ssh-public-keys|ticket|CSRFPreventionToken", re.I)


@contextmanager
def recorded(host: SshHost, folder: Path | None) -> Iterator[None]:
    """Writes `node.jsonl` into the folder, of all that is asked meanwhile; None: nothing."""
    if folder is None:
        yield
        return
    with tempfile.TemporaryFile("w+") as heard:
        listener = subprocess.Popen([*host.ssh(), f"exec python3 -c {shlex.quote(_LISTEN)}"], stdout=heard)
        try:
            yield
        finally:
            listener.terminate()
            listener.wait()
        heard.seek(0)
        lines = [f"{json.dumps(one, sort_keys=True)}\n" for one in exchanges(heard.read().splitlines())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "node.jsonl").write_text(_unnamed("".join(lines), host.run("hostname").strip(), host.address))


def exchanges(heard: list[str]) -> Iterator[dict[str, Any]]:
    """Each request with its answer, as ../shared/pve_api has them; secrets are left out."""
    streams: dict[str, tuple[bytes, bytes]] = defaultdict(lambda: (b"", b""))
    for line in heard:
        port, is_request, data = line.split()
        asked, answered = streams[port]
        # A port's next connection begins with a request after an answer: both are in their order, as one connection's would be.
        part = base64.b64decode(data)
        streams[port] = (asked + part, answered) if is_request == "1" else (asked, answered + part)
    for asked, answered in streams.values():
        for (request, form), (answer, body) in zip(_messages(asked), _messages(answered), strict=False):
            method, target, _ = request.split(" ", 2)
            _, status, reason = answer.partition("\r\n")[0].split(" ", 2)
            where = urlsplit(target)
            given = dict(parse_qsl(form or where.query, keep_blank_values=True))
            params = {key: "<masked>" if _SECRET.search(key) else value for key, value in given.items()}
            content = json.loads(body) if body.strip() else ""
            kind = re.search(r"(?im)^content-type: *(.+?)\r?$", answer)
            path = unquote(where.path).removeprefix("/api2/json")
            sent = {"who": "root", "method": method, "path": path, "params": params or None}
            yield sent | {"status": int(status), "reason": reason, "body": content, "ctype": kind[1] if kind else None}


def _messages(data: bytes) -> Iterator[tuple[str, str]]:
    """Head and body of each."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        yield head.decode(), data[:size].decode()
        data = data[size:]


def _unnamed(line: str, name: str, address: str) -> str:
    """Without the node's name, its addresses, and what tells guests from others."""
    line = re.sub(rf"\b{re.escape(name)}\b", "pve1", line).replace(address, "192.0.2.1")
    line = re.sub(r"\b(?:10|192\.168|172\.\d+)(?:\.\d+){2,3}\b", "192.0.2.2", line)
    line = re.sub(r"\b[0-9A-F]{2}(?::[0-9A-F]{2}){5}\b", "BC:24:11:00:00:01", line)
    return re.sub(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "00000000-0000-0000-0000-000000000001", line)
