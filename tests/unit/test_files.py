"""homelab/settings/download.py, homelab/vm/files.py: which files guests are made of, where each comes from, and what stands against it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from docs.tables.meanings import meanings
from homelab.errors import HomelabError
from homelab.remote.proxmox.errors import UnansweredError
from homelab.remote.proxmox.files import Files, Source
from homelab.settings import Download, parse
from homelab.settings.download import images
from homelab.vm import files
from tests.unit.hosts import KEY

DISK = {"storage": "fast", "size": 32}
ROW = {"storage": "local", "enabled": 1, "active": 1, "content": "iso,import,vztmpl", "avail": 10 << 30}


def download(**about: Any) -> Download:
    return Download.model_validate(about)


def settings(
    downloads: dict[str, Any], *, vm: dict[str, Any] | None = None, container: dict[str, Any] | None = None
) -> Any:
    host = {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "password": "a"}, "downloads": downloads}
    host["gpus"] = {"big": {"match": "10de:2684", "use": "lxc"}}
    whole: dict[str, Any] = {"hosts": {"pve": host}, "allowPlainSecrets": True}
    if vm is not None:
        whole["vms"] = {"dev": {"host": "pve", "vmid": 200, "create": {"disk": DISK, **vm}}}
    if container is not None:
        whole["containers"] = {
            "ai": {"host": "pve", "ctid": 300, "gpus": ["big"], "create": {"disk": DISK, **container}}
        }
    return parse(whole)


# -- settings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("about", "volume"),
    [
        ({"image": "ubuntu-24.04"}, "local:import/noble-server-cloudimg-amd64.qcow2"),
        ({"image": "debian-13", "storage": "nas"}, "nas:import/debian-13-generic-amd64.qcow2"),
        ({"image": "virtio-win"}, "local:iso/virtio-win.iso"),
        ({"url": "https://example.org/a/b.iso"}, "local:iso/b.iso"),
        ({"url": "https://example.org/cloud.img", "file": "cloud.qcow2"}, "local:import/cloud.qcow2"),
        (
            {"template": "debian-12-standard_12.7-1_amd64.tar.zst"},
            "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst",
        ),
    ],
)
def test_a_download_comes_to_the_volume_that_its_file_name_says(about: dict[str, Any], volume: str) -> None:
    assert download(**about).volume == volume


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, "exactly one of image, url and template"),
        ({"image": "virtio-win", "url": "https://example.org/a.iso"}, "exactly one of"),
        ({"image": "windows-11"}, "expected one of ubuntu-24.04"),
        ({"url": "http://example.org/a.iso"}, "expected https"),
        ({"url": "https://example.org/cloud.img"}, "mostly qcow2"),
        ({"url": "https://example.org/whole.ova"}, "expected a name that ends in"),
        ({"url": "https://example.org/a.iso", "file": "../a.iso"}, "a file's name"),
        ({"url": "https://example.org/a.iso", "checksum": "md5:" + "0" * 32}, "sha256:"),
        ({"template": "debian.iso"}, "pveam available"),
        ({"template": "a.tar.zst", "checksum": "sha256:" + "0" * 64}, "has a template's own"),
        ({"image": "virtio-win", "file": "drivers.iso"}, "only a file from url"),
    ],
)
def test_a_mistaken_download_is_refused_with_its_reason(about: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        download(**about)


def test_guests_name_downloads_and_volumes_alike() -> None:
    downloads = {"noble": {"image": "ubuntu-24.04"}, "virtio": {"image": "virtio-win"}, "ct": {"template": "a.tar.zst"}}
    made = settings(downloads, vm={"image": "noble"}, container={"template": "ct"})
    assert made.vms["dev"].create.image == "local:import/noble-server-cloudimg-amd64.qcow2"
    assert made.containers["ai"].create.template == "local:vztmpl/a.tar.zst"
    made = settings(downloads, vm={"isos": ["local:iso/Win11.iso", "virtio"]})
    assert made.vms["dev"].create.isos == ["local:iso/Win11.iso", "local:iso/virtio-win.iso"]


@pytest.mark.parametrize(
    ("vm", "container", "said"),
    [
        ({"image": "focal"}, None, "vms.dev.create.image: focal is neither a volume (such as local:iso/NAME.iso) nor one of the host's downloads; it has virtio"),
        ({"image": "virtio"}, None, "expected a disk image (.qcow2, .raw, .vmdk), and the download virtio is local:iso/virtio-win.iso"),
        (None, {"template": "virtio"}, "containers.ai.create.template: expected a template of containers"),
    ],
)  # fmt: skip
def test_a_guest_that_names_no_fitting_download_is_refused(vm: Any, container: Any, said: str) -> None:
    with pytest.raises(HomelabError) as raised:
        settings({"virtio": {"image": "virtio-win"}}, vm=vm, container=container)
    assert said in raised.value.found


def test_two_downloads_of_one_file_are_refused() -> None:
    with pytest.raises(HomelabError, match="another download is local:iso/virtio-win.iso"):
        settings({"a": {"image": "virtio-win"}, "b": {"url": "https://example.org/virtio-win.iso"}})


def test_the_settings_page_names_every_known_image() -> None:
    about = meanings(Download)["image"]
    assert all(f"`{name}`" in about for name in images())
    assert all(
        one.url.startswith("https://") and (one.sums or "https://").startswith("https://") for one in images().values()
    )
    # One without a checksum is named as such.
    assert [name for name, one in images().items() if one.sums is None] == ["virtio-win"]


# -- decisions -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["{0} *a.img\n", "{0}  a.img\n", "{0}  ./a.img\n", "{1} *other.img\n{0} *a.img\r\n"])
@pytest.mark.parametrize(("algorithm", "digits"), [("sha256", 64), ("sha512", 128)])
def test_a_checksum_is_found_in_its_makers_list(form: str, algorithm: str, digits: int) -> None:
    text = "# a comment\n" + form.format("a" * digits, "b" * digits)
    assert files.sum_in(text, "a.img") == f"{algorithm}:{'a' * digits}"


@pytest.mark.parametrize(
    "text", ["", "a" * 64 + " *a.img.zst\n", "a" * 63 + " *a.img\n", "<html>404</html>", "x" + "a" * 64 + " *a.img\n"]
)
def test_what_is_no_checksum_of_the_file_is_none(text: str) -> None:
    assert files.sum_in(text, "a.img") is None


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
        ({"enabled": 0}, "no such storage", "a.storage"),
        ({"content": "images,rootdir"}, "takes images, rootdir, and not `iso`", "pvesm set local --content images,iso,rootdir"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_take_it_is_refused(row: dict[str, Any], found: str, next_step: str) -> None:
    error = files.storage_refusal("hosts.pve.downloads.a", "local:iso/a.iso", [{**ROW, **row}])
    assert error is not None and found in error.found and next_step in error.next


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ("local:iso/Win11_24H2.iso", "microsoft.com"),
        ("local:iso/debian.iso", "hosts.NAME.downloads"),
        ("local:import/a.qcow2", "local -> Import -> Upload"),
        ("local:vztmpl/a.tar.zst", "local -> CT Templates -> Upload"),
    ],
)
def test_a_missing_file_is_named_with_what_to_upload(volume: str, said: str) -> None:
    error = files.missing("vms.gaming.create", volume, ["local:iso/other.iso"])
    assert volume in error.wanted and "local:iso/other.iso" in error.found and said in error.next


def test_the_plan_says_whence_each_file_comes_and_what_becomes_of_it() -> None:
    downloads = {
        "noble": {"image": "ubuntu-24.04", "keep": True},
        "virtio": {"image": "virtio-win"},
        "ct": {"template": "a.tar.zst"},
    }
    first, second, third = files.describe(settings(downloads).hosts["pve"]).splitlines()
    assert (
        "(noble): downloaded from https://cloud-images.ubuntu.com/" in first and "SHA256SUMS; kept on destroy" in first
    )
    assert "not compared with a checksum: there is none; removed on destroy, unless a guest uses it" in second
    assert "as Proxmox VE's list of templates has it, with the list's checksum" in third


# -- downloads on a node -------------------------------------------------------------------------------------------------
class Node:
    """A node's API with these downloads at work; what is asked of it."""

    node, host = "pve", SimpleNamespace(timeouts=SimpleNamespace(create=60))

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, list[tuple[str, Any]]()

    def tasks(self, **filters: str) -> list[dict[str, str]]:
        assert filters == {"source": "active", "typefilter": "download"}
        return [{"id": name, "upid": f"of {name}"} for name in self.names]

    def end_task(self, upid: str, *_: object) -> bool:
        self.asked.append(("end", upid))
        return True

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
    on_node.fetch("local:iso/a.iso", Source("hosts.pve.downloads.a", "https://x/a.iso", "sha256:ab"))
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
        Files(cast(Any, Node()), print).fetch("local:iso/a.iso", Source("a", "https://x/a.iso", None))
    assert raised.value is lost
