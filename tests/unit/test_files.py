"""homelab/storage/settings.py, homelab/storage/files.py: which files guests are made of, where each comes from, and what stands against it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from homelab.errors import HomelabError, UnansweredError
from homelab.remote.proxmox.files import Files
from homelab.settings import parse
from homelab.storage import files
from tests.rows import rows
from tests.unit.hosts import values

URL = "https://example.org/a"
ROW = {"storage": "local", "enabled": 1, "active": 1, "content": "iso,import,vztmpl", "avail": 10 << 30}


def settings(
    downloads: dict[str, Any], *, vm: dict[str, Any] | None = None, container: dict[str, Any] | None = None
) -> Any:
    host = values({"big": {"match": "10de:2684", "use": "lxc"}}, downloads=downloads)
    whole: dict[str, Any] = {"hosts": {"pve": host}, "allowPlainSecrets": True}
    if vm is not None:
        whole["vms"] = {"dev": {"host": "pve", "vmid": 200, "create": vm}}
    if container is not None:
        whole["containers"] = {"ai": {"host": "pve", "ctid": 300, "gpus": ["big"], "create": container}}
    return parse(whole)


# -- settings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "about", "volume"),
    [
        ("noble.qcow2", {}, "local:import/noble.qcow2"),
        ("debian-13.raw", {"storage": "nas"}, "nas:import/debian-13.raw"),
        ("virtio-win.iso", {}, "local:iso/virtio-win.iso"),
        ("debian-12-standard_12.7-1_amd64.tar.zst", {}, "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"),
    ],
)
def test_a_download_comes_to_the_volume_that_its_file_name_says(name: str, about: dict[str, Any], volume: str) -> None:
    assert settings({name: {"url": URL, **about}}).hosts["pve"].downloads[name].volume(name) == volume


@rows(
    ("name", "about", "said"),
    [
        ("a.iso", {"url": "http://example.org/a.iso"}, "expected https"),
        ("cloud.img", {}, "a file's name that ends in .iso"),
        ("whole.ova", {}, "a file's name that ends in .iso"),
        ("../a.iso", {}, "a file's name"),
        ("a.iso", {"checksum": "md5:" + "0" * 32}, "sha256:"),
        ("a.iso", {"image": "ubuntu-24.04"}, "unknown key"),
    ],
)
def test_a_mistaken_download_is_refused_with_its_reason(name: str, about: dict[str, Any], said: str) -> None:
    with pytest.raises(HomelabError) as raised:
        settings({name: {"url": URL, **about}})
    assert said in raised.value.found


def test_the_files_that_a_guest_is_made_of_are_found_in_its_options() -> None:
    vm = {
        "scsi0": "fast:0,import-from=local:import/a.qcow2",
        "sata0": "local:iso/win.iso,media=cdrom",
        "ide2": "fast:cloudinit",
    }
    made = settings({}, vm=vm, container={"ostemplate": "local:vztmpl/a.tar.zst", "mp0": "fast:8,mp=/iso/a"})
    assert sorted(made.vms["dev"].volumes) == ["local:import/a.qcow2", "local:iso/win.iso"]
    assert made.containers["ai"].volumes == ["local:vztmpl/a.tar.zst"]


# -- decisions -----------------------------------------------------------------------------------------------------------
def test_a_file_is_in_use_where_a_guests_drive_names_it() -> None:
    lines = """pve/qemu-server/103.conf:sata1: local:iso/virtio-win.iso,media=cdrom,size=1M
pve2/qemu-server/104.conf:ide2: media=cdrom,file=local:iso/virtio-win.iso
pve/qemu-server/105.conf:sata0: local:iso/virtio-win.iso.old,media=cdrom
pve/qemu-server/106.conf:description: local:iso/virtio-win.iso
pve/lxc/901.conf:mp0: local:iso/virtio-win.iso,mp=/mnt
pve/qemu-server/103.conf:sata0: local:iso/virtio-win.iso,media=cdrom"""
    assert files.users("local:iso/virtio-win.iso", lines) == ["VM 103 on pve", "VM 104 on pve2", "container 901 on pve"]


def test_a_storage_that_takes_it_stands_against_nothing() -> None:
    assert files.storage_refusal("hosts.pve.downloads.a", "local:iso/a.iso", [ROW]) is None


@pytest.mark.parametrize(
    ("row", "found", "next_step"),
    [
        ({"storage": "other"}, "no such storage, or it is switched off; for ISO images there are: other", "a.storage"),
        ({"enabled": 0}, "no such storage", "switch on, or add, a storage of files that takes `iso`"),
        ({"content": "images,rootdir"}, "local takes images, rootdir, and not `iso`; for ISO images there are: none", "allow it (`pvesm set local --content images,iso,rootdir` on the host)"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_take_it_is_refused(row: dict[str, Any], found: str, next_step: str) -> None:
    error = files.storage_refusal("hosts.pve.downloads.a", "local:iso/a.iso", [{**ROW, **row}])
    assert error is not None and found in error.found and next_step in error.next
    assert ("one of them" in error.next) == ("none" not in error.found)


@rows(
    ("volume", "said"),
    [
        ("local:iso/Win11_24H2.iso", "microsoft.com"),
        ("local:iso/debian.iso", "hosts.NAME.downloads"),
        ("local:import/a.qcow2", "local -> Import -> Upload"),
        ("local:vztmpl/a.tar.zst", "local -> CT Templates -> Upload"),
        ("local:vztmpl/a.tar.zst", "`pveam download local NAME`"),
    ],
)
def test_a_missing_file_is_named_with_what_to_upload(volume: str, said: str) -> None:
    error = files.missing("vms.gaming.create", volume, ["local:iso/other.iso"])
    assert volume in error.wanted and "local:iso/other.iso" in error.found and said in error.next
    # What is another way for one kind isn't said of the others.
    assert ("microsoft.com" in error.next, "pveam" in error.next) == (":iso/" in volume, ":vztmpl/" in volume)


def test_the_plan_says_whence_each_file_comes_and_what_becomes_of_it() -> None:
    downloads = {"a.qcow2": {"url": URL, "checksum": "sha256:" + "a" * 64}, "b.iso": {"url": URL}}
    first, second = files.describe(settings(downloads).hosts["pve"]).splitlines()
    assert f"local:import/a.qcow2: downloaded from {URL}, and compared with the checksum" in first
    assert "not compared with a checksum: there is none; removed on destroy, unless a guest uses it" in second


# -- downloads on a node -------------------------------------------------------------------------------------------------
class Node:
    """A node's API with these downloads at work; what is asked of it."""

    node, host = "pve", SimpleNamespace(timeouts=SimpleNamespace(create=60))

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, list[tuple[str, Any]]()

    def get(self, path: str, _wanted: str, **filters: str) -> list[dict[str, str]]:
        assert path == "nodes/pve/tasks" and filters == {"source": "active", "typefilter": "download"}
        return [{"id": name, "upid": f"of {name}"} for name in self.names]

    def end_task(self, upid: str, *_: object) -> None:
        self.asked.append(("end", upid))

    def task(self, upid: str, *_: object) -> list[str]:
        self.asked.append(("wait", upid))
        return []

    def carry_out(self, verb: str, path: str, *_: object, **parameters: str) -> list[str]:
        assert (verb, path) == ("post", "nodes/pve/storage/local/download-url")
        self.asked.append(("download", parameters))
        return []


@pytest.mark.parametrize("comes", [True, False])
def test_only_the_download_of_this_very_file_is_waited_for_or_ended(comes: bool) -> None:
    names = ["b.iso", *(["a.iso"] if comes else [])]
    node = Node(*names)
    on_node = Files(cast(Any, node), lambda _: None)
    on_node.fetch("local:iso/a.iso", "hosts.pve.downloads.a", "https://x/a.iso", "sha256:ab")
    on_node.end("local:iso/a.iso")
    new = {"url": "https://x/a.iso", "content": "iso", "filename": "a.iso"}
    new |= {"checksum": "ab", "checksum-algorithm": "sha256"}
    assert node.asked == ([("wait", "of a.iso"), ("end", "of a.iso")] if comes else [("download", new)])


def test_an_answer_that_is_missing_says_nothing_of_the_download_which_may_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = UnansweredError(wanted="x", found="no answer", why="cut", next="look at the network", status=0, reason="")
    monkeypatch.setattr(Node, "carry_out", Mock(side_effect=lost))
    with pytest.raises(UnansweredError) as raised:
        Files(cast(Any, Node()), print).fetch("local:iso/a.iso", "a", "https://x/a.iso", None)
    assert raised.value is lost
