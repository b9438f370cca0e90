"""The layers volume_users and checksums: what the API doesn't tell of a file on a storage."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from remote_scripts.layers import checksums, volume_users
from remote_scripts.tools.run import Done
from tests.agent.kit import Host, Refused

ISO = "local:iso/virtio.iso"


@pytest.fixture(autouse=True)
def programs(host: Host) -> None:
    """This machine's own, since they only read."""

    def run(name: str, arguments: Sequence[str]) -> Done:
        done = subprocess.run([name, *arguments], capture_output=True)
        return Done(done.returncode, done.stdout, done.stderr)

    host.programs["grep"] = lambda arguments, _stdin: run("grep", arguments)
    host.programs["find"] = lambda arguments, _stdin: run("find", arguments)
    host.programs["cat"] = lambda arguments, _stdin: run("cat", arguments)


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


@pytest.mark.parametrize("trouble", ["no folder", "a link that leads nowhere", "hangs", "says too much"])
def test_what_cant_be_read_may_name_it(host: Host, trouble: str) -> None:
    if trouble != "no folder":
        host.write("/etc/pve/nodes/a/qemu-server/103.conf", "name: x\n")
    if trouble == "a link that leads nowhere":
        (host.root / "etc/pve/nodes/a/qemu-server/104.conf").symlink_to("nowhere")
    if trouble in ("hangs", "says too much"):
        host.programs["grep"] = lambda _arguments, _stdin: 124 + (trouble != "hangs")
    with pytest.raises(Refused, match="what can't be read may name it"):
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
def test_the_proxy_is_that_of_proxmox_ves_downloads(host: Host, text: str | None) -> None:
    if text is not None:
        host.write("/etc/pve/datacenter.cfg", text)
    assert checksums._proxy(host.system()) == ("http://proxy:3128" if "proxy" in (text or "") else "")


@pytest.mark.parametrize(
    ("status", "why"), [(4, "no connection"), (8, "404 Not Found"), (0, "an empty file"), (9, "9 of wget")]
)
def test_checksums_that_cant_be_had_say_why(host: Host, status: int, why: str) -> None:
    host.programs["wget"] = lambda _arguments, _stdin: status
    with pytest.raises(Refused, match=why):
        host.ask("read", "checksums", checksums.Wanted(url="https://example.com/SHA256SUMS"))
