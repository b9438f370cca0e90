"""Proxmox VE's cluster file system, as its readers see it: what a moment shows isn't believed."""

from __future__ import annotations

import errno
import io
import itertools
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.host.guest_programs import modules
from remote_scripts import installed
from remote_scripts.notes import guest_notes
from remote_scripts.notes.guest_note import Note
from remote_scripts.pve import guests, pmxcfs
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.reading.source import Source
from remote_scripts.tools.errors import Failure
from tests.agent import disk_kit
from tests.agent.kit import Host, cuts, watched
from tests.waiting import wait_until

CONF, COROSYNC = "/etc/pve/lxc/901.conf", "/etc/pve/corosync.conf"


def test_a_file_that_is_being_replaced_is_never_absent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment each look finds none, and the folder lists it."""

    def fails_but_each_eighth(real: Any) -> Any:
        looks = itertools.count(1)

        def look(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).endswith((CONF, COROSYNC)) and next(looks) % 8:
                raise FileNotFoundError(errno.ENOENT, "it is being replaced")
            return real(path, *arguments, **options)

        return look

    system = host.system()
    for path in (CONF, COROSYNC):
        host.write(path, "")
    monkeypatch.setattr(io, "open", fails_but_each_eighth(io.open))
    assert system.files.need(CONF) == b"" and Source(system).needed(CONF) == ""
    monkeypatch.setattr(Path, "stat", fails_but_each_eighth(Path.stat))
    assert pmxcfs.time_of(system, CONF) is not None and not guests.is_gone(system, "pct", "901")
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    monkeypatch.setattr(os, "lstat", fails_but_each_eighth(os.lstat))
    assert pmxcfs.this_node(system) == pmxcfs.Node("pve", clustered=True)


def test_a_note_is_written_while_the_folder_goes_with_another_guests_last_one(host: Host) -> None:
    (host.root / "etc/pve/nodes/pve").mkdir(parents=True)
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    gone: list[str] = []

    def goes_once(_call: str, path: str) -> None:
        if ".tmp." in path and not gone:
            gone.append(path)
            (host.root / "etc/pve/homelab").rmdir()

    with watched(goes_once):
        pmxcfs.note(host.system(), "/etc/pve/homelab/qemu-200", b"content\n")
    assert gone and host.read("/etc/pve/homelab/qemu-200") == "content\n"


@pytest.mark.parametrize("has_database", [True, False], ids=["of pmxcfs", "of something else"])
def test_a_note_is_on_the_disk_without_waiting_for_whole_file_systems(host: Host, has_database: bool) -> None:
    """To which a VM's disk may be written meanwhile."""
    (host.root / "etc/pve/nodes/pve").mkdir(parents=True)
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    for path in disk_kit.DATABASE if has_database else ():
        host.write(path, "")
    cuts(host, lambda host: pmxcfs.note(host.system(), "/etc/pve/homelab/qemu-200", b"content\n"))
    flushed: list[Sequence[str]] = []
    host.programs["sync"] = lambda words, _stdin: flushed.append(words)
    pmxcfs.note(host.system(), "/etc/pve/homelab/qemu-200", b"other\n")
    assert bool(flushed) is not has_database


def test_a_file_that_isnt_there_is_absent_and_a_folder_that_isnt_answers_nothing(host: Host) -> None:
    system = host.system()
    assert system.files.need(CONF) is None and not guests.is_gone(system, "pct", "901")
    host.write("/etc/pve/lxc/902.conf", "")
    assert pmxcfs.time_of(system, CONF) is None and guests.is_gone(system, "pct", "901")


def test_where_the_file_system_isnt_there_nothing_is_noted_below_it(host: Host) -> None:
    (host.root / "etc/pve").mkdir(parents=True, exist_ok=True)
    system = host.system()
    for act in (
        lambda: guest_notes.of(system, CONTAINER, 901, Note),
        lambda: guest_notes.write(system, CONTAINER, 901, Note()),
        lambda: guest_notes.write(system, CONTAINER, 901, Note(owner="p/s/ct", values={"dev0": ("x",)})),
    ):
        with pytest.raises(Failure, match="/etc/pve isn't there"):
            act()
        assert not (host.root / "etc/pve/homelab").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_ended_under_the_clusters_lock_frees_it_and_writes_nothing(host: Host, number: int) -> None:
    """The next one would wait for two minutes."""
    fifo, lock = host.root / "etc/pve/storage.cfg", "/etc/pve/priv/lock/file-storage_cfg"
    (host.root / "etc/pve/priv/lock").mkdir(parents=True)
    os.mkfifo(fifo)
    words = ["perl", "-e", installed.TEXTS["cluster_write"], str(fifo), "read"]
    environment = os.environ | modules(host.root / "etc/pve", quorate=True)
    with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: host.exists(lock))
        run.send_signal(number)
        assert "ended by SIG" in run.communicate()[1] and run.returncode != 0
    assert not host.exists(lock) and fifo.is_fifo()
