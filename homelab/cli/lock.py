"""`homelab lock`: writes down which packages of NVIDIA's stack each system has, so that a later run installs
the same.

`homelab outdated`: what is newer, whether it fits, and how old the data is by which that is judged. Both read
the systems over SSH, and change nothing there. Exit status: 0; 1, something is outdated; 2, a system couldn't be read.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from homelab.cli import stack_options
from homelab.cli.whereabouts import of_guest
from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError
from homelab.nvidia import lock, outdated, reading
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.outdated import PackagesReading
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request
from homelab.remote import ssh
from homelab.settings import Host, Nvidia
from remote_scripts.layers import read_packages, read_system

WELL, OUTDATED = 0, 1
_TARGETS: dict[str, Target] = {"hosts": "host", "vms": "vm", "containers": "lxc"}


@dataclass(frozen=True)
class LockedSystem:
    """A system of the settings that has NVIDIA's stack. `name`: such as `vms.sandbox`; `host`: what SSH connects to;
    `ctid`: of a container, or 0.
    """

    name: str
    target: Target
    host: Host
    nvidia: Nvidia
    ctid: int


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"homelab {name}", description=description)
    stack_options.add(parser)
    parser.add_argument(
        "systems", nargs="*", metavar="SYSTEM", help="hosts.NAME, vms.NAME or containers.NAME (default: all)"
    )
    parser.add_argument("--identity", metavar="FILE", help="log in with this private key, not as the settings say")
    return parser


def _systems(file: StackFile, chosen: Sequence[str], identity: str | None) -> Iterator[LockedSystem]:
    settings = file.guests()
    stacks = settings.stacks
    if unknown := sorted(set(chosen) - set(stacks)):
        raise HomelabError(
            wanted=f"the systems {', '.join(unknown)}",
            found=f"systems with nvidia in {file.path.name}: {', '.join(stacks) or 'none'}",
            why="a system is known by its place in the settings",
            next="name one of these",
        )
    for name, nvidia in stacks.items():
        if chosen and name not in chosen:
            continue
        kind, _, key = name.partition(".")
        if kind == "hosts":
            host, ctid = file.host(key, identity)[1], 0
        else:
            host, ctid = of_guest(file, settings, name, identity)
        yield LockedSystem(name, _TARGETS[kind], host, nvidia, ctid)


def _read(system: LockedSystem) -> tuple[PackagesReading, SystemReading]:
    session = ssh.Session(system.host)
    packages = session.ask("read", "read_packages", read_packages.Wanted(), ctid=system.ctid)
    found = session.ask("read", "read_system", read_system.Wanted(), ctid=system.ctid)
    return PackagesReading.of(packages), reading.parse(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `homelab lock` and returns its exit status."""
    parser = _parser(
        "lock",
        "Records version and SHA-256 of each system's packages of NVIDIA's stack, so that later runs install the same.",
    )
    parser.add_argument("--release", action="store_true", help="remove the systems from the lock file")
    arguments = parser.parse_args(argv)
    file = stack_options.read(arguments)
    path = lock.path_of(file.path.parent, arguments.stack)
    locks = lock.load(path)
    if arguments.release:
        released = sorted(set(arguments.systems or locks) & set(locks))
        locks = {name: system_lock for name, system_lock in locks.items() if name not in released}
        lines = [f"{name}: no longer locked" for name in released]
    else:
        lines = []
        for system in _systems(file, arguments.systems, arguments.identity):
            packages, _ = _read(system)
            locks[system.name] = packages.lock
            lines.append(f"{system.name}: {len(packages.lock.packages)} packages, driver {packages.driver or 'none'}")
            if packages.installer:
                lines.append(f"  NVIDIA's installer {packages.installer.version}, by its SHA-256")
            lines += [f"  not locked, since no repository has it: {package}" for package in packages.not_lockable]
    _write(path, locks)
    print("\n".join([*lines, f"{'written' if locks else 'removed'}: {path}"]))
    return WELL


def _write(path: Path, locks: dict[str, lock.SystemLock]) -> None:
    """Writes the lock file, whole or not at all; without systems, removes it."""
    if not locks:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(lock.text_of(locks), encoding="utf-8", newline="\n")
    temporary.replace(path)


def show_outdated(argv: Sequence[str] | None = None) -> int:
    """Runs `homelab outdated` and returns its exit status."""
    arguments = _parser(
        "outdated", "Shows what is newer than what each system has, and whether it fits. Changes nothing."
    ).parse_args(argv)
    status = WELL
    for system in _systems(stack_options.read(arguments), arguments.systems, arguments.identity):
        packages, system_reading = _read(system)
        lines = outdated.lines(packages, Request(system.target, system.nvidia, system_reading.system, system.name))
        title = f"{system.name} ({packages.distribution}, driver {packages.driver or 'none'})"
        print("\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else f"{title}: nothing is newer")
        status = OUTDATED if lines else status
    print(outdated.age(load(), datetime.date.today()))
    return status
