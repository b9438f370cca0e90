"""Guests of a host that is a folder, as its pvedaemon has them: a guest's state is a file, and what switches it is a task of root's. Tasks are as
PVE::RESTEnvironment and PVE::UPID write them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.api.guest_config import GuestConfig
from remote_scripts.tools.done import Done
from tests.agent import api_kit, disk_kit
from tests.agent.kit import Host, Killed

VM, CT = "qemu-server", "lxc"
TASKS = "/var/log/pve/tasks"


def programs(host: Host) -> None:
    """A guest's state is a file; its start is a task of root's."""

    def systemctl(arguments: Sequence[str], _stdin: bytes) -> Done:
        name = {"is-active": arguments[-1], "is-system-running": "system"}.get(arguments[0])
        return Done(0, host.read(f"/state/{name}").encode() if name and host.exists(f"/state/{name}") else b"")

    host.programs |= {
        "qm": lambda arguments, _stdin: _guest(host, "qm", arguments),
        "pct": lambda arguments, _stdin: _guest(host, "pct", arguments),
        "systemctl": systemctl,
        "systemd-run": lambda _arguments, _stdin: 0,
    }
    api_kit.serve(host, lambda method, path, parameters: answer(host, method, path, parameters))


def folders(host: Host) -> None:
    """Those of guests in /etc/pve, as pmxcfs has them, and its database."""
    for path in disk_kit.DATABASE:
        host.write(path, "")
    for kind in (VM, CT):
        (host.root / "etc/pve/nodes/pve" / kind).mkdir(parents=True)
    for name, to in (("local", "nodes/pve"), (VM, f"nodes/pve/{VM}"), (CT, f"nodes/pve/{CT}")):
        (host.root / "etc/pve" / name).symlink_to(to)


def _guest(host: Host, program: str, arguments: Sequence[str]) -> Done:
    vmid = arguments[1]
    if arguments[0] == "unlock":
        guest(host, VM if program == "qm" else CT, int(vmid))
        return Done(0, b"")
    if host.exists(f"/unsaid/{vmid}"):
        return Done(1, b"")
    if not host.exists(f"/etc/pve/{VM if program == 'qm' else CT}/{vmid}.conf"):
        return Done(2, b"", b"Configuration file does not exist\n")
    return Done(0, f"status: {host.read(f'/state/{program}/{vmid}')}\n".encode())


def _start(host: Host, program: str, vmid: str) -> str:
    kill(host, f"before-{vmid}")
    if host.exists(f"/ends/{vmid}"):
        host.write("/state/system", "stopping\n")
    host.write("/started", (host.read("/started") if host.exists("/started") else "") + f"{vmid} ")
    status = "start failed: no such bridge" if host.exists(f"/fails/{vmid}") else "OK"
    upid = task(host, f"{'qm' if program == 'qm' else 'vz'}start", int(vmid), int(time.time()), status=status)
    if status == "OK" and not host.exists("/silent"):
        host.write(f"/state/{program}/{vmid}", "running")
    kill(host, f"after-{vmid}")
    return upid


def _shut_down(host: Host, program: str, vmid: str) -> str:
    upid = task(host, f"{'qm' if program == 'qm' else 'vz'}shutdown", int(vmid), int(time.time()))
    host.write(f"/state/{program}/{vmid}", "stopped")
    return upid


def answer(host: Host, method: str, path: str, parameters: dict[str, str]) -> Any:
    """What pvedaemon answers, as on a node of Proxmox VE 9.2."""
    if host.exists("/unsaid/api"):
        raise api_kit.RefusedError("RPCEnvironment init request failed")
    _, what, *words = path.split("/")
    if what == "tasks":
        tasks = api_kit.noted_tasks(host)
        if words:
            (status,) = [one["status"] for one in tasks if one["upid"] == words[0]]
            ended = {"status": "running"} if host.exists("/silent") else {"status": "stopped", "exitstatus": status}
            return ended if words[1] == "status" else []
        wanted = {"id": parameters.get("vmid"), "type": parameters.get("typefilter")}
        return [one for one in tasks if all(value in (None, one[key]) for key, value in wanted.items())]
    if what == "hardware":
        return []
    program, kind = ("qm", VM) if what == "qemu" else ("pct", CT)
    if not words:
        return [_status(host, program, path.name) for path in sorted((host.root / "state" / program).iterdir())]
    if method == "POST":
        if host.exists("/no-quorum"):
            raise api_kit.RefusedError("cluster not ready - no quorum?")
        return (_start if words[2] == "start" else _shut_down)(host, program, words[0])
    if words[1] == "status":
        return {**_status(host, program, words[0]), "qmpstatus": host.read(f"/state/{program}/{words[0]}")}
    conf = _conf(host, kind, words[0])
    return conf.shown_pending() if words[1] == "pending" else conf.shown(conf.merged_as_shown(), conf.current.raw)


def _status(host: Host, program: str, vmid: str) -> dict[str, Any]:
    """As a list has it: without what QEMU says of itself."""
    is_off = host.read(f"/state/{program}/{vmid}").strip() == "stopped"  # one that is paused isn't
    found = {"vmid": int(vmid), "name": f"g{vmid}", "status": "stopped" if is_off else "running", "uptime": 60}
    kind = VM if program == "qm" else CT
    if host.exists(f"/etc/pve/{kind}/{vmid}.conf") and (lock := _conf(host, kind, vmid).values.get("lock")):
        found["lock"] = lock
    return found


def _conf(host: Host, kind: str, vmid: str) -> GuestConfig:
    path = host.root / f"etc/pve/{kind}/{vmid}.conf"
    if not path.is_file():
        raise api_kit.RefusedError(f"Configuration file 'nodes/pve/{kind}/{vmid}.conf' does not exist")
    return GuestConfig.parse("qemu" if kind == VM else "lxc", path.read_bytes().decode("utf-8", "surrogateescape"))


def kill(host: Host, when: str) -> None:
    if host.exists(f"/kill/{when}"):
        (host.root / "kill" / when).unlink()
        raise Killed


def guest(host: Host, kind: str, vmid: int, conf: str = "", power: str = "stopped") -> None:
    key = "name" if kind == VM else "hostname"
    host.write(f"/etc/pve/{kind}/{vmid}.conf", f"{key}: g{vmid}\n{conf}[before]\nlock: snapshot\nstartup: order=9\n")
    host.write(f"/state/{'qm' if kind == VM else 'pct'}/{vmid}", power)


def task(
    host: Host,
    kind: str,
    vmid: int | str,
    at: int,
    user: str = "root@pam",
    file: str = "index",
    status: str = "OK",
    ticks: int = 0,
) -> str:
    """:param ticks: since the boot, by the kernel's clock; 0: as if no clock was ever set, and the host never restarted."""
    path = Path(host.root / TASKS[1:] / file)
    path.parent.mkdir(parents=True, exist_ok=True)
    ticks = ticks or at + sum(one["starttime"] == at for one in api_kit.noted_tasks(host))
    upid = f"UPID:pve:000003E8:{ticks:08X}:{at:08X}:{kind}:{vmid}:{user}:"
    with path.open("a") as tasks:
        tasks.write(f"{upid} 0\n" if file == "active" else f"{upid} {at + 1:08X} {status}\n")
    return upid
