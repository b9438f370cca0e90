"""The layer volume_users: what the API doesn't tell of a file on a storage."""

from __future__ import annotations

import errno
import os

import pytest

from remote_scripts.both import volume_users
from tests.agent.kit import Host, Refused

ISO = "local:iso/virtio.iso"


def users(host: Host) -> list[str]:
    return str(host.ask("read", "volume_users", volume_users.Wanted(volume=ISO))["users"]).splitlines()


def test_the_lines_of_all_guests_of_all_nodes_that_name_it(host: Host) -> None:
    host.write("/etc/pve/nodes/a/qemu-server/103.conf", f"ide2: {ISO},media=cdrom\nname: x\n")
    host.write("/etc/pve/nodes/b/lxc/901.conf", f"mp0: {ISO}\n")
    host.write("/etc/pve/nodes/b/other.conf", f"{ISO}\n")
    host.write("/etc/pve/nodes/b/qemu-server/9.conf.bak", f"{ISO}\n")
    assert users(host) == [f"a/qemu-server/103.conf:ide2: {ISO},media=cdrom", f"b/lxc/901.conf:mp0: {ISO}"]


def test_nobody_names_it(host: Host) -> None:
    host.write("/etc/pve/nodes/a/qemu-server/103.conf", "name: x\n")
    assert users(host) == []


@pytest.mark.parametrize("trouble", ["nothing", "not listed", "a link that leads nowhere", "hangs"])
def test_what_cant_be_read_may_name_it(host: Host, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    if trouble != "nothing":
        host.write("/etc/pve/nodes/a/qemu-server/103.conf", "name: x\n")
    if trouble == "a link that leads nowhere":
        (host.root / "etc/pve/nodes/a/qemu-server/104.conf").symlink_to("nowhere")
    if trouble == "not listed":

        def scandir(_: object) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "listdir", scandir)
    if trouble == "hangs":
        monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.2)
        os.mkfifo(host.root / "etc/pve/nodes/a/qemu-server/104.conf")
    with pytest.raises(Refused, match="what can't be read (may name it|isn't known)"):
        users(host)
