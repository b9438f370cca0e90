"""A stand-in for Proxmox VE's pvedaemon on a Debian: its version, its mappings of PCI devices, and the power of containers, by the stand-in for
pct (guest/pct); a list of guests has none.

It asks nobody for a ticket. A task has ended by the answer. Mappings stand where Proxmox VE keeps them, and each change of one is taken: what Proxmox VE
refuses of them is the lab's to say (lab/api/mapping.py), and on one host nobody else changes them.
"""

import hashlib
import json
import re
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

KEPT = Path("/etc/pve/mapping/pci.cfg")
MAPPINGS = "cluster/mapping/pci"

#: The tasks of containers, as Proxmox VE lists them.
TASKS: list[dict[str, object]] = []
CONTAINER = re.compile(r"nodes/[^/]+/lxc/(\d+)/(config|status/current|status/(start|shutdown))")


class Refusal(Exception):
    """What Proxmox VE says in the status line of a 500."""


def kept() -> dict[str, list[str]]:
    text = KEPT.read_text() if KEPT.exists() else ""
    blocks = (block.split("\n\tmap ") for block in text.split("\n\n") if block)
    return {name: [entry.strip() for entry in entries] for name, *entries in blocks}


def changed(verb: str, name: str, given: dict[str, list[str]]) -> None:
    mappings = kept()
    if verb == "DELETE":
        mappings.pop(name, None)
    else:
        mappings[name or given["id"][0]] = given["map"]
    KEPT.write_text("\n\n".join("\n\tmap ".join([one, *entries]) for one, entries in mappings.items()))


def container(ctid: str, what: str, does: str | None) -> object:
    if not does:
        state = subprocess.run(["/usr/local/sbin/pct", "status", ctid], capture_output=True, text=True).stdout
        return {} if what == "config" else {"status": state.removeprefix("status: ").strip()}
    ticks, now, kind = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 100), int(time.time()), f"vz{does}"
    done = subprocess.run(["/usr/local/sbin/pct", does, ctid], capture_output=True, text=True)
    about = {
        "type": kind,
        "id": ctid,
        "user": "root@pam",
        "pstart": ticks,
        "starttime": now,
        "endtime": int(time.time()),
    }
    upid = f"UPID:pve:{len(TASKS):08X}:{ticks:08X}:{now:08X}:{kind}:{ctid}:root@pam:"
    TASKS.append({**about, "upid": upid, "status": done.stderr.strip().replace("\n", " ") if done.returncode else "OK"})
    return upid


def tasks(words: list[str], given: dict[str, list[str]]) -> object:
    if words:
        (task,) = (one for one in TASKS if one["upid"] == words[0])
        return {"status": "stopped", "exitstatus": task["status"]} if words[1] == "status" else []
    wanted = {"id": given.get("vmid"), "type": given.get("typefilter")}
    return [one for one in TASKS if all(value in (None, [one[key]]) for key, value in wanted.items())]


def answer(verb: str, path: str, given: dict[str, list[str]]) -> object:
    if match := CONTAINER.fullmatch(path):
        return container(match[1], match[2], match[3])
    if match := re.fullmatch(r"nodes/[^/]+/tasks/?(.*)", path):
        return tasks(match[1].split("/") if match[1] else [], given)
    if re.fullmatch(r"nodes/[^/]+/hardware/pci", path):
        return []
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
    if name not in kept():
        raise Refusal(f"mapping '{name}' not found")
    return {"type": "pci", "digest": hashlib.sha1(KEPT.read_bytes()).hexdigest(), "map": kept()[name]}


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
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    ThreadingHTTPServer(("127.0.0.1", 85), Handler).serve_forever()
