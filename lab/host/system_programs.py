"""uname, dmesg, journalctl, hostname, ip, ss, ping of a lab host."""

from __future__ import annotations

import json
import time

from . import addresses
from .program import Options, UsageError
from .state import HostState


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the system commands."""
    work = {
        "uname": _uname,
        "dmesg": _dmesg,
        "journalctl": _journalctl,
        "hostname": _hostname,
        "ip": _ip,
        "ss": _ss,
        "ping": _ping,
    }[name]
    return work(host, arguments)


def _uname(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "asnrvmo", ("kernel-release",))
    release, version = host.read("/proc/sys/kernel/osrelease", "").strip(), host.read("/proc/version", "")
    parts = {"s": "Linux", "n": host.node, "r": release, "v": version[version.find("#") :].strip(), "m": "x86_64"}
    chosen = [value for letter, value in (parts | {"o": "GNU/Linux"}).items() if options.has("a", letter)]
    print(release if "kernel-release" in options else " ".join(chosen or ["Linux"]))
    return 0


def messages(host: HostState) -> list[tuple[float, str]]:
    """The kernel's ring buffer: seconds and text."""
    host.drain_kmsg()
    path = host.state / "dmesg"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        seconds, _, text = line.partition(" ")
        found.append((float(seconds), text))
    return found


def _dmesg(host: HostState, arguments: list[str]) -> int:
    bare = Options(arguments, "t").has("t")
    for seconds, text in messages(host):
        print(text if bare else f"[{seconds:12.6f}] {text}")
    return 0


def _journalctl(host: HostState, arguments: list[str]) -> int:
    cleaned = [
        a
        for i, a in enumerate(arguments)
        if not (a.lstrip("-").isdigit() and i and arguments[i - 1] in ("-b", "--boot"))
    ]
    previous = len(cleaned) < len(arguments) and any(a in ("-1", "1") for a in arguments)
    options = Options(cleaned, "kbqxeu:n:o:", ("dmesg", "boot", "no-pager", "quiet", "unit=", "lines=", "output="))
    if options.value("o", "output") not in (None, "short", "cat", "short-monotonic"):
        raise UsageError(
            f"output format {options.value('o', 'output')!r} is not simulated; short, short-monotonic and cat are"
        )
    if options.has("u", "unit") or previous:
        print("-- No entries --")
        return 0
    lines = messages(host)
    started = float(host.running.get("started_at", 0))
    form = options.value("o", "output") or "short"
    for seconds, text in lines:
        if form == "short-monotonic":
            print(f"[{seconds:12.6f}] {host.node} kernel: {text}")
        else:
            print(f"{time.strftime('%b %d %H:%M:%S', time.gmtime(started + seconds))} {host.node} kernel: {text}")
    if not lines:
        print("-- No entries --")
    return 0


def _hostname(host: HostState, arguments: list[str]) -> int:
    if arguments not in ([], ["-I"]):
        raise UsageError("the lab's hostname has -I; the host keeps its name")
    print(f"{host.machine.get('address', addresses.ADDRESS)} " if arguments else host.node)
    return 0


def _ip(host: HostState, arguments: list[str]) -> int:
    flags = {a for a in arguments if a.startswith("-")}
    words = [a for a in arguments if a not in flags]
    subject, rest = (words[0], words[1:]) if words else ("", [])
    rest = [word for word in rest if word not in ("show", "list")]
    if flags <= {"-4", "-6", "-j"}:
        if subject in ("route", "r") and rest == ["default"] and "-j" in flags:
            return _ip_route(host, flags)
        if subject in ("address", "addr", "a") and (rest == [] or rest[0] in ("to", "dev")) and "-j" in flags:
            return _ip_address(host, flags, dict(zip(rest[::2], rest[1::2], strict=True)))
        if subject in ("neighbour", "neigh", "n") and rest[::2] == ["to", "dev"]:
            return _ip_neighbour(host, rest[1], rest[3])
    raise UsageError(
        "the lab's ip only has `ip -j route show default`, `ip -j address [show [to ADDRESS] [dev INTERFACE]]` and "
        f"`ip neighbour show to ADDRESS dev INTERFACE`, not {' '.join(arguments)!r}"
    )


def _ip_route(host: HostState, flags: set[str]) -> int:
    default = {"dst": "default", "gateway": addresses.GATEWAY, "dev": addresses.INTERFACE, "flags": ["onlink"]}
    print(json.dumps([default] if "-6" not in flags else []))
    return 0


def _ip_address(host: HostState, flags: set[str], wanted: dict[str, str]) -> int:
    now = host.read(f"/sys/class/net/{addresses.INTERFACE}/operstate", "up").strip().upper()
    found = [
        (1, "lo", "127.0.0.1", 8, "host", "UNKNOWN"),
        (5, addresses.INTERFACE, addresses.ADDRESS, addresses.PREFIX, "global", now),
    ]
    shown = []
    for number, interface, address, prefix, scope, state in found if "-6" not in flags else []:
        if wanted.get("dev", interface) == interface and wanted.get("to", address) == address:
            info = {"family": "inet", "local": address, "prefixlen": prefix, "scope": scope, "label": interface}
            shown.append({"ifindex": number, "ifname": interface, "operstate": state, "addr_info": [info]})
    print(json.dumps(shown))
    return 0


def _ss(host: HostState, arguments: list[str]) -> int:
    if arguments[:1] != ["-Hltn"]:
        raise UsageError("the lab's ss only has `ss -Hltn 'sport = :PORT'`")
    wanted = arguments[-1].rpartition(":")[2]
    if wanted in ("8006", str(addresses.SSH_PORT)):
        print(f"LISTEN 0 128 0.0.0.0:{wanted} 0.0.0.0:*")
    return 0


def _answers(host: HostState, address: str) -> bool:
    """Whether somebody at the address answers: the gateway alone is there."""
    return address == addresses.GATEWAY and bool(host.running.get("network", True))


def _ip_neighbour(host: HostState, address: str, interface: str) -> int:
    if address == addresses.GATEWAY and interface == addresses.INTERFACE:
        print(f"{address} " + ("lladdr bc:24:11:00:00:01 REACHABLE" if _answers(host, address) else "FAILED"))
    return 0


def _ping(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "nqc:W:w:i:I:46", ())
    if len(options.rest) != 1 or options.value("c") is None:
        raise UsageError("the lab's ping takes one address, and -c")
    return 0 if _answers(host, options.rest[0]) else 1
