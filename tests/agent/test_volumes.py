"""The layers volume_users and checksums: what the API doesn't tell of a file on a storage."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from remote_scripts.both import checksums, volume_users
from remote_scripts.shared import time_limit
from remote_scripts.tools.run import Done, Run
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
        monkeypatch.setattr(time_limit, "SECONDS", 0.2)
        os.mkfifo(host.root / "etc/pve/nodes/a/qemu-server/104.conf")
    with pytest.raises(Refused, match="what can't be read (may name it|isn't known)"):
        users(host)


def test_checksums_are_fetched(host: Host) -> None:
    asked: list[Sequence[str]] = []

    def wget(arguments: Sequence[str], _stdin: bytes) -> str:
        asked.append(arguments)
        return "0123 *image.img\n"

    host.programs["wget"] = wget
    url = "https://example.com/SHA256SUMS"
    assert host.ask("read", "checksums", checksums.Wanted(url=url)) == {"sums": "0123 *image.img\n"}
    assert [*asked[0]][-2:] == ["--", url]


@pytest.mark.parametrize("text", ["keyboard: de\nhttp_proxy: http://proxy:3128\n", "keyboard: de\n", None])
def test_the_proxy_is_that_of_proxmox_ves_downloads(
    host: Host, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        host.write("/etc/pve/datacenter.cfg", text)
    host.programs["wget"] = lambda _arguments, _stdin: "0123 *image.img\n"
    ask, given = Run.ask, []

    def asked(run: Run, *words: str, environment: Mapping[str, str] | None = None, **options: Any) -> Done:
        given.append(environment)
        return ask(run, *words, environment=environment, **options)

    monkeypatch.setattr(Run, "ask", asked)
    host.ask("read", "checksums", checksums.Wanted(url="https://example.com/SHA256SUMS"))
    proxy = {name: "http://proxy:3128" for name in ("http_proxy", "https_proxy")}
    assert given == [proxy if "proxy" in (text or "") else {}]


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [(8, b"ERROR 404: Not Found.\n", "ERROR 404: Not Found."), (0, b"", "an empty file"), (9, b"", "9 of wget")],
)
def test_checksums_that_cant_be_had_say_why(host: Host, status: int, error: bytes, why: str) -> None:
    host.programs["wget"] = lambda _arguments, _stdin: Done(status, b"", error)
    with pytest.raises(Refused, match=why):
        host.ask("read", "checksums", checksums.Wanted(url="https://example.com/SHA256SUMS"))
