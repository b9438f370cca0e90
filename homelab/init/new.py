"""New guests that `homelab init` offers, made of what a node has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from homelab.storage.files import contents_of, parts

if TYPE_CHECKING:
    from homelab.remote.proxmox.api import Api

Rows = Sequence[Mapping[str, Any]]
# As examples/settings/new-vm.yaml has it.
_IMAGE = "ubuntu-24.04-noble.qcow2"
_IMAGE_URL = "https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img"
_SYSTEM_GIB = 64
# Windows takes other options (examples/settings/windows-vm.yaml), and virtio-win.iso is no system. A comma
# would end the file's name in a drive's option.
_NOT_OFFERED = re.compile(r"(?<![a-z])win|,", re.IGNORECASE)


@dataclass(frozen=True)
class Stock:
    """What a node has that guests are made of, as its API lists it."""

    storages: Rows
    """GET /nodes/NODE/storage, those that work."""
    bridges: Rows
    """GET /nodes/NODE/network, bridges alone."""
    templates: Rows
    """GET /nodes/NODE/aplinfo: templates of containers that can be downloaded."""
    volumes: Sequence[str]
    """ISO images and templates on its storages, such as `local:iso/debian.iso`."""
    next_id: int
    """GET /cluster/nextid."""


def stock_of(api: Api) -> Stock:
    """What a node has, as it says itself.

    :raises ApiError: it was refused, or not answered.
    """
    node, wanted = f"nodes/{api.node}", "to see what new guests can be made of"
    storages = [row for row in api.get(f"{node}/storage", wanted, enabled=1) if row.get("active", 1)]
    kept = [
        (row["storage"], content) for row in storages for content in ("iso", "vztmpl") if content in contents_of(row)
    ]
    files = [api.get(f"{node}/storage/{storage}/content", wanted, content=content) for storage, content in kept]
    return Stock(
        storages=storages,
        bridges=api.get(f"{node}/network", wanted, type="any_bridge"),
        templates=api.get(f"{node}/aplinfo", wanted),
        volumes=[str(row["volid"]) for rows in files for row in rows],
        next_id=int(api.get("cluster/nextid", wanted)),
    )


@dataclass(frozen=True)
class New:
    """A guest that isn't there yet."""

    name: str
    """For the settings."""
    about: str
    """What it is, for a list of answers."""
    create: Mapping[str, Any] = field(hash=False)
    """Proxmox VE's own keys."""
    downloads: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    """Files that Proxmox VE downloads for it, as the settings have them."""
    id: int = 0
    """Of an offer: the least that it can have."""

    @property
    def kind(self) -> str:
        return "lxc" if "rootfs" in self.create else "vm"


def offers(stock: Stock, key: str) -> dict[str, New]:
    """The new guests that can be had, by the answer that means each; what starts from a file of the host comes last.

    :param key: the public key that its owner logs in with; empty: it isn't known, and nobody could log in to a guest
        that is made without one.
    """
    bridge = next((str(row["iface"]) for row in sorted(stock.bridges, key=lambda row: "gateway" not in row)), "vmbr0")
    found = {**_vms(stock, key, bridge), **(_containers(stock, key, bridge) if key else {})}
    ordered = sorted(found.items(), key=lambda one: ":" in one[0])
    return {answer.lower(): replace(new, id=stock.next_id) for answer, new in ordered}


def _vms(stock: Stock, key: str, bridge: str) -> dict[str, New]:
    disks, storage = _storage(stock, "images"), _storage(stock, "import", "local")
    vm = {"cores": 4, "memory": 8192, "ostype": "l26", "net0": f"virtio,bridge={bridge}"}
    system = {"scsi0": f"{disks}:0,import-from={storage}:import/{_IMAGE}", "size": _SYSTEM_GIB, **vm}
    login = {"ide2": f"{disks}:cloudinit", "ciuser": "ubuntu", "sshkeys": key, "ipconfig0": "ip=dhcp", "agent": 1}
    about = "a VM with Ubuntu 24.04; your SSH key logs in as ubuntu"
    downloads = {_IMAGE: {"url": _IMAGE_URL, "storage": storage}}
    found = {"new-vm": New("ubuntu", about, {**system, "serial0": "socket", **login}, downloads)} if key else {}
    for volume in stock.volumes:
        _, content, file = parts(volume)
        if content == "iso" and not _NOT_OFFERED.search(file):
            drives = {"scsi0": f"{disks}:{_SYSTEM_GIB}", "ide2": f"{volume},media=cdrom", "boot": "order=scsi0;ide2"}
            about = "a VM that starts from this ISO image; you install it at its console"
            found[f"new-vm:{file}"] = New(_name(file), about, {**drives, **vm})
    return found if disks else {}


def _containers(stock: Stock, key: str, bridge: str) -> dict[str, New]:
    folders, storage = _storage(stock, "rootdir"), _storage(stock, "vztmpl", "local")
    there = {parts(volume)[2]: volume for volume in stock.volumes if parts(volume)[1] == "vztmpl"}
    listed = {str(row["template"]): row for row in stock.templates}
    standard = [file for file in listed if re.match(r"debian-\d+-standard_", file)]
    newest = sorted(standard, key=lambda file: [*map(int, re.findall(r"\d+", file))])[-1:]
    found = dict[str, New]()
    answers = [("new-container", file) for file in newest] + [(f"new-container:{file}", file) for file in there]
    for answer, file in answers:
        create = {"ostemplate": there.get(file, f"{storage}:vztmpl/{file}"), "rootfs": f"{folders}:32", "cores": 4}
        create |= {"memory": 4096, "net0": f"name=eth0,bridge={bridge},ip=dhcp", "features": "nesting=1"}
        create |= {"ostype": _name(file)} if _name(file) in ("debian", "ubuntu") else {}
        about = f"a container of {file.partition('_')[0]}; your SSH key logs in as root"
        downloads = {} if file in there else {file: _download(listed[file], storage)}
        found[answer] = New(_name(file), about, {**create, "ssh-public-keys": key}, downloads)
    return found if folders else {}


def _download(row: Mapping[str, Any], storage: str) -> dict[str, str]:
    address = str(row["location"]).replace("http:", "https:", 1)  # Proxmox's server has both
    return {"url": address, "checksum": f"sha512:{row['sha512sum']}", "storage": storage}


def _storage(stock: Stock, content: str, otherwise: str = "") -> str:
    """Of the storages that take a content the one with the most space.

    :param otherwise: where there is none: the refusal of a file says how a storage takes it (homelab/storage/files.py).
    """
    taking = [row for row in stock.storages if content in contents_of(row)]
    return str(max(taking, key=lambda row: row.get("avail", 0))["storage"]) if taking else otherwise


def _name(file: str) -> str:
    """`debian` of `debian-13-standard_13.1-2_amd64.tar.zst`."""
    return re.split(r"[^a-z]", file.lower())[0]
