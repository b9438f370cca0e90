"""A host that somebody has worked on for years: two cards, one of them given to a Windows VM by hand as forums say, the other shared by six
containers with raw lines; NVIDIA's driver by its own means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from tests.e2e.person import ENTER
from tests.e2e.terminal import Conversation

#: What a forum has told its owner to type.
RECIPE = """\
sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT="quiet"/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on iommu=pt video=efifb:off"/' /etc/default/grub
update-grub
printf 'vfio\\nvfio_iommu_type1\\nvfio_pci\\n' >> /etc/modules
echo 'options vfio-pci ids=10de:2684,10de:22ba disable_vga=1' > /etc/modprobe.d/vfio.conf
printf 'blacklist nouveau\\nblacklist radeon\\n' > /etc/modprobe.d/blacklist.conf
update-initramfs -u -k all
qm set 110 --hostpci0 02:00,pcie=1,x-vga=1
reboot"""
# What it changed, and a guest of each kind.
FILES = (
    "/etc/default/grub /etc/modules /etc/modprobe.d/vfio.conf /etc/modprobe.d/blacklist.conf "
    "/etc/pve/qemu-server/110.conf /etc/pve/lxc/951.conf"
)
_WINDOWS = """\
bios: ovmf
cores: 8
cpu: host
machine: pc-q35-9.0
memory: 32768
name: gaming
onboot: 1
ostype: win11
"""
_CONTAINER = """\
arch: amd64
cores: 4
features: nesting=1
hostname: {name}
memory: 4096
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:09:{number},ip=dhcp,type=veth
onboot: 1
ostype: debian
rootfs: local-lvm:vm-9{number}-disk-0,size=16G
unprivileged: 1
"""
_NODES = ("nvidia0", "nvidiactl", "nvidia-uvm")
_LINES = "".join(
    [
        *(f"lxc.cgroup2.devices.allow: c {major}:* rwm\n" for major in (195, 480)),
        *(f"lxc.mount.entry: /dev/{node} dev/{node} none bind,optional,create=file\n" for node in _NODES),
    ]
)
_CONTAINERS = {51: "jellyfin", 52: "ollama", 53: "frigate", 54: "immich", 55: "adguard", 56: "paperless"}
_WITH_LINES = (51, 52, 53, 54)

#: The Windows VM keeps its card; of the containers that have the other one, one is handed to homelab.
CONVERSATION: Conversation = [
    ("Who gets it", f"951{ENTER}"),
    ("Who gets it", ENTER),
]


def apply(lab: Lab) -> None:
    """What the forum said, typed on the host."""
    lab.run(_below_the_root(RECIPE.removesuffix("\nreboot")))
    lab.reboot()


def checksums(lab: Lab, files: str = FILES) -> list[str]:
    """What `sha256sum` prints of these files."""
    return lab.run(_below_the_root(f"sha256sum {files}")).stdout.replace(str(lab.root), "").splitlines()


def _below_the_root(commands: str) -> str:
    return commands.replace(" /etc/", ' "$HOMELAB_ROOT"/etc/')


def scenario(folder: Path) -> Path:
    """Writes the host's scenario: `phoenix` with other guests."""
    host: dict[str, Any] = {"extends": "phoenix", "title": "A host with a history", "node": "pve"}
    host["guests"] = [{"id": 110, "kind": "vm", "name": "gaming", "onboot": True, "conf": _WINDOWS}]
    for number, name in _CONTAINERS.items():
        has_lines = number in _WITH_LINES
        conf = _CONTAINER.format(name=name, number=number) + (_LINES if has_lines else "")
        libraries = {"nvidia": "580.105.08"} if has_lines else {}
        host["guests"].append(
            {"id": 900 + number, "kind": "container", "name": name, "onboot": True, "conf": conf} | libraries
        )
    path = folder / "history.yaml"
    path.write_text(yaml.safe_dump(host, sort_keys=False), encoding="utf-8")
    return path
