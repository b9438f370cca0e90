"""A host that is read, in a folder: the least that it needs, and its reading as the program has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from homelab.facts.host import HostFacts, parse
from remote_scripts.both.read_host import Wanted
from remote_scripts.tools.done import Done
from remote_scripts.tools.run import Stand
from tests.agent.kit import Host, of_machine

#: What a reading asks, and what a host like this one has nothing to say about.
SILENT = ("df", "dmesg", "journalctl", "lsblk", "lspci", "pveversion")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return least(tmp_path)


def least(place: Path) -> Host:
    host = Host(place)
    host.write("proc/sys/kernel/random/boot_id", "1\n")
    for path in ("proc/cmdline", "proc/cpuinfo", "proc/modules", "etc/default/grub", "boot/grub/grub.cfg"):
        host.write(path, "")
    host.programs |= dict.fromkeys(SILENT, says(""))
    host.programs |= {
        "dpkg-query": says("pve-manager installed 9.1.1\n"),
        "bash": says("quiet\n"),
        **of_machine("head"),
    }
    return host


def says(text: str | bytes, status: int = 0) -> Stand:
    """A program that says this and ends so, whatever it is asked."""
    return lambda _arguments, _stdin: Done(status, text.encode() if isinstance(text, str) else text)


def read(host: Host, **wanted: Any) -> HostFacts:
    return parse(host.ask("read", "read_host", Wanted(**{"guests": True, **wanted})))


def link(host: Host, path: str, target: str) -> None:
    """A symbolic link inside the folder, relative as in sysfs."""
    place = host.root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(host.root / target.lstrip("/"), place.parent))
