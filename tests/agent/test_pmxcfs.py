"""Proxmox VE's cluster file system, as its readers see it: what a moment shows isn't believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remote_scripts.shared import guest_notes, guests, pmxcfs
from remote_scripts.shared.guest_kinds import CONTAINER
from remote_scripts.shared.guest_note import Note
from remote_scripts.shared.reading.source import Source
from remote_scripts.tools.errors import Failure
from tests.agent.kit import Host

CONF = "/etc/pve/lxc/901.conf"


@contextmanager
def being_replaced(place: Path) -> Iterator[None]:
    """Somebody renames files over it, one after the other: each time there is none for a moment."""
    over, content = threading.Event(), place.read_bytes()

    def replace() -> None:
        while not over.is_set():
            place.unlink()
            time.sleep(0.0003)
            place.write_bytes(content)
            time.sleep(0.01)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def test_a_file_that_is_being_replaced_is_never_absent(host: Host) -> None:
    system = host.system()
    host.write(CONF, "")  # of no length, since the test's own writing isn't done at once
    with being_replaced(host.root / CONF[1:]):
        for _ in range(500):
            assert pmxcfs.content_of(system, CONF) is not None
            assert pmxcfs.time_of(system, CONF) is not None
            assert Source(system).needed(CONF) is not None
            assert not guests.is_gone(system, "pct", "901")


def test_a_file_that_isnt_there_is_absent_and_a_folder_that_isnt_answers_nothing(host: Host) -> None:
    system = host.system()
    assert pmxcfs.content_of(system, CONF) is None and not guests.is_gone(system, "pct", "901")
    host.write("/etc/pve/lxc/902.conf", "")
    assert pmxcfs.time_of(system, CONF) is None and guests.is_gone(system, "pct", "901")


def test_where_the_file_system_isnt_there_nothing_is_noted_below_it(host: Host) -> None:
    (host.root / "etc/pve").mkdir(parents=True, exist_ok=True)
    with pytest.raises(Failure, match="/etc/pve isn't there"):
        guest_notes.write(host.system(), CONTAINER, 901, Note(owner="p/s/ct", values={"dev0": ("x",)}))
    assert not (host.root / "etc/pve/homelab").exists()
