"""A stand-in for Proxmox VE's pvedaemon on a Debian: its version, its mappings of PCI devices, and no guests.

It asks nobody for a ticket. The mappings' words are those of PVE::API2::Cluster::Mapping::PCI (lab/api/mapping.py); they are kept as JSON.
"""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

KEPT = Path("/var/lib/metal/mappings.json")
MAPPINGS = "cluster/mapping/pci"
FLAG = "live-migration-capable"


class Refusal(Exception):
    """What Proxmox VE says in the status line of a 500."""


def digest() -> str:
    return hashlib.sha1(KEPT.read_bytes()).hexdigest()


def changed(verb: str, name: str, given: dict[str, list[str]]) -> None:
    mappings = json.loads(KEPT.read_text())
    if verb == "POST":
        name = given["id"][0]
        if name in mappings:
            raise Refusal(f"create hardware mapping failed: pci ID '{name}' already defined")
    elif verb == "PUT":
        if name not in mappings:
            raise Refusal(f"update hardware mapping failed: pci ID '{name}' does not exist")
        if given.get("digest", [digest()]) != [digest()]:
            raise Refusal(
                "update hardware mapping failed: detected modified configuration - file changed by other user? Try again."
            )
    if verb == "DELETE":
        mappings.pop(name, None)
    else:
        mapping = {**mappings.get(name, {}), **{key: given[key][0] for key in ("description", FLAG) if key in given}}
        for key in ",".join(given.get("delete", [])).split(","):
            mapping.pop(key, None)
        mappings[name] = {**mapping, "map": given["map"]}
    KEPT.write_text(json.dumps(mappings))


def answer(verb: str, path: str, given: dict[str, list[str]]) -> object:
    if path == "version":
        return {"version": "9.1.2", "release": "9.1", "repoid": "metal"}
    if path in ("nodes/pve/qemu", "nodes/pve/lxc"):
        return []
    if not f"{path}/".startswith(f"{MAPPINGS}/"):
        raise Refusal(f"{verb} {path}: not in this stand-in")
    name = path.removeprefix(MAPPINGS).strip("/")
    if verb != "GET":
        changed(verb, name, given)
        return None
    mappings = json.loads(KEPT.read_text())
    if not name:
        return [{"id": one, **mapping} for one, mapping in mappings.items()]
    if name not in mappings:
        raise Refusal(f"mapping '{name}' not found")
    return {"type": "pci", "digest": digest(), **mappings[name]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        address = urlsplit(self.path)
        given = parse_qs(body or address.query)
        try:
            data = answer(self.command, unquote(address.path).removeprefix("/api2/json/"), given)
            self.send_response(200, "OK")
        except Refusal as refusal:
            data = None
            self.send_response(500, str(refusal))
        text = json.dumps({"data": data}).encode()
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = _answer


if __name__ == "__main__":
    KEPT.parent.mkdir(exist_ok=True)
    if not KEPT.exists():
        KEPT.write_text("{}")
    ThreadingHTTPServer(("127.0.0.1", 85), Handler).serve_forever()
