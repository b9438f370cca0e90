"""Which PCI functions carry what a host can't do without, through every kind of stack; who has a card open."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.reading import drm, holders, nvidia, vital
from remote_scripts.reading.source import Source
from remote_scripts.tools import disk as tools_disk
from tests.agent.kit import Host
from tests.agent.reading_kit import link

NVME, SATA, USB, NIC, WIFI = "0000:02:00.0", "0000:00:17.0", "0000:c6:00.3", "0000:05:00.0", "0000:06:00.0"
PORT = "0000:00:08.1"


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers as the kernel does: a disk is claimed, or an error, where its file says so."""

    def is_claimed(where: Path) -> bool:
        word = where.read_text()
        if word.isdecimal():
            raise OSError(int(word), os.strerror(int(word)))
        return word == "claimed"

    monkeypatch.setattr(tools_disk, "is_claimed", is_claimed)


def carried(host: Host, kind: str = "storage") -> dict[str, set[str]]:
    """Name -> the functions that carry it; {"?"}: they can't be told."""
    found = [one for one in vital.vital(Source(host.system())) if one.kind == kind]
    return {one.name: {*one.devices, *(["?"] if one.trouble else [])} for one in found}


def refused(host: Host) -> set[str]:
    """The functions that the gate lets nobody have, and "?" where it lets nobody have one that might carry something."""
    return set().union(*carried(host).values(), *carried(host, "network").values())


def claim(host: Host, *names: str) -> None:
    """What the kernel does when a disk, or a part of it, is mounted or made a part of something."""
    for name in names:
        host.write(f"/dev/{name}", "claimed")


def disk(host: Host, name: str, where: str, *parts: str) -> None:
    """A disk at ``where`` below /sys/devices, with partitions."""
    home = f"/sys/devices/{where}/block/{name}"
    host.write(f"{home}/size", "1")
    link(host, f"/sys/class/block/{name}", home)
    host.write(f"/dev/{name}", "")
    for part in parts:
        host.write(f"{home}/{part}/partition", "1")
        link(host, f"/sys/class/block/{part}", f"{home}/{part}")
        host.write(f"/dev/{part}", "")


def mounts(host: Host, *lines: str) -> None:
    host.write("/proc/mounts", "".join(f"{line} rw 0 0\n" for line in lines))


def interface(host: Host, name: str, where: str = "virtual", flags: str = "0x1003") -> None:
    home = f"/sys/devices/{where}/net/{name}"
    host.write(f"{home}/flags", f"{flags}\n")
    link(host, f"/sys/class/net/{name}", home)


def network(host: Host) -> None:
    """vmbr0 over a bond of a network card and Wi-Fi: the default route. A third card has no cable and is down."""
    interface(host, "enp5s0", f"pci0000:00/0000:00:02.3/{NIC}", "0x1903")
    interface(host, "wlp6s0", f"pci0000:00/0000:00:02.4/{WIFI}", "0x1903")
    interface(host, "enp7s0", "pci0000:00/0000:07:00.0", "0x1002")
    for name in ("vmbr0", "bond0.5", "bond0"):
        interface(host, name)


def nvme_with_two_ways(host: Host) -> None:
    """What leads to the disk has a name of its own, and no node."""
    home = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    way = f"/sys/devices/pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0"
    host.write(f"{home}/nvme0n1/size", "1")
    host.write(f"{home}/nvme0n1/nvme0n1p2/partition", "2")
    for name, place in (("nvme0n1", "nvme0n1"), ("nvme0n1p2", "nvme0n1/nvme0n1p2")):
        link(host, f"/sys/class/block/{name}", f"{home}/{place}")
        host.write(f"/dev/{name}", "")
    host.write(f"{way}/dev", "")
    link(host, f"{home}/nvme0", way)
    host.write(f"{way}/nvme0c0n1/hidden", "1\n")
    link(host, "/sys/class/block/nvme0c0n1", f"{way}/nvme0c0n1")


def iscsi(host: Host) -> None:
    network(host)
    disk(host, "sdc", "platform/host6/session1/target6:0:0/6:0:0:0", "sdc1")


def plugged(name: str, where: str, *parts: str) -> Callable[[Host], None]:
    return lambda host: disk(host, name, where, *parts)


nvme = plugged("nvme0n1", f"pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0", "nvme0n1p1", "nvme0n1p2", "nvme0n1p3")
sata = plugged("sda", f"pci0000:00/{SATA}/ata1/host0/target0:0:0/0:0:0:0", "sda1", "sda2")
usb = plugged("sdb", f"pci0000:00/{PORT}/{USB}/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0", "sdb1", "sdb2")
DISKS: dict[str, Callable[[Host], None]] = {
    "nvme": nvme,
    "sata": sata,
    "usb": usb,
    "nvme_with_two_ways": nvme_with_two_ways,
    "behind_intels_vmd": plugged(
        "nvme0n1", "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0", "nvme0n1p2"
    ),
    "iscsi": iscsi,
    "card_reader": plugged("mmcblk0", "platform/80860F14:00/mmc_host/mmc0/mmc0:0001", "mmcblk0p2"),
}
NVMES, USBS, VMDS = {"0000:00:02.1", NVME}, {PORT, USB}, {"0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"}
NICS = {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}
PVE_ROOT = "/dev/mapper/pve-root / ext4"
IMAGE = "/dev/loop0 / ext4\n/dev/sdb1 /mnt/image ext4\n/dev/sda1 /mnt ext4"
#: How the names of devices begin that lie on others.
VIRTUAL = ("dm-", "md", "bcache", "loop")


@pytest.mark.parametrize(
    ("disks", "in_use", "mounted", "carriers"),
    [
        pytest.param(disks.split(), in_use.split(), mounted, carriers, id=name)
        for name, disks, in_use, mounted, carriers in (
            ("plain", "usb", "sdb", "/dev/sdb2 / ext4", USBS),
            ("LVM", "nvme", "nvme0n1 dm-0", PVE_ROOT, NVMES),
            ("LVM, thin, on two disks", "nvme sata", "nvme0n1 sda dm-0 dm-1 dm-2", PVE_ROOT, {*NVMES, SATA}),
            ("RAID and encryption", "sata usb", "sda sdb md0 dm-0", "/dev/mapper/crypt / xfs", {SATA, *USBS}),
            ("bcache", "sata usb", "sda sdb bcache0", "/dev/bcache0 / ext4", {SATA, *USBS}),
            ("ZFS", "nvme usb", "nvme0n1 sdb", "rpool/ROOT/pve-1 / zfs", {*NVMES, *USBS}),
            ("ZFS beside an exported pool", "nvme sata", "nvme0n1", "rpool/ROOT/pve-1 / zfs", NVMES),
            ("Btrfs on two disks", "nvme sata", "nvme0n1 sda", "/dev/sda1 / btrfs", {*NVMES, SATA}),
            ("NVMe with two ways", "nvme_with_two_ways", "nvme0n1", "/dev/nvme0n1p2 / ext4", NVMES),
            ("behind a volume management device", "behind_intels_vmd", "nvme0n1", "/dev/nvme0n1p2 / ext4", VMDS),
            ("iSCSI", "iscsi", "sdc", "/dev/sdc1 / ext4", NICS),
            ("a loop device", "usb sata", "sda sdb loop0", IMAGE, {SATA, *USBS}),
            ("the kernel's own name", "nvme", "nvme0n1", "/dev/root / ext4", NVMES),
            ("an overlay", "", "", "overlay / overlay", {"?"}),
            ("a card reader", "card_reader", "mmcblk0", "/dev/mmcblk0p2 / ext4", set[str]()),
        )
    ],
)
def test_the_root_is_followed_to_the_functions_that_carry_it(
    host: Host, disks: list[str], in_use: list[str], mounted: str, carriers: set[str]
) -> None:
    for name in disks:
        DISKS[name](host)
    for name in in_use:
        if name.startswith(VIRTUAL):
            disk(host, name, "virtual")
    claim(host, *in_use)
    mounts(host, *mounted.splitlines())
    assert set().union(*carried(host).values()) == (set() if "iscsi" in disks else carriers)
    assert carriers <= refused(host)


def test_boot_swap_the_guests_store_and_esps_count_and_what_nobody_has_does_not(host: Host) -> None:
    """A disk counts whatever it is claimed for; of an ESP that isn't mounted, boot files are what tells."""
    nvme(host)
    sata(host)
    usb(host)
    disk(host, "sdd", "pci0000:00/0000:00:1a.0/ata3/host2/target2:0:0/2:0:0:0", "sdd1")
    link(host, "/dev/disk/by-uuid/AAAA-BBBB", "/dev/nvme0n1p1")
    host.write("/etc/kernel/proxmox-boot-uuids", "AAAA-BBBB\nDEAD-BEEF\n")
    claim(host, "sda", "sdb")
    mounts(host, "/dev/sdb1 / ext4", "tmpfs /run tmpfs")
    assert carried(host) == {
        "the disk nvme0n1 (an EFI system partition that the host boots from)": {"0000:00:02.1", NVME},
        "the disk sda (in use)": {SATA},
        "the disk sdb (in use)": {PORT, USB},
    }


@pytest.mark.parametrize(
    ("code", "name"),
    [(errno.ENOMEDIUM, ""), *((code, "can't be told: ") for code in (errno.EIO, errno.ENXIO, errno.ENOENT))],
)
def test_a_disk_of_which_the_kernel_doesnt_tell_counts_unless_it_is_an_empty_drive(
    host: Host, code: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usb(host)
    mounts(host, "/dev/mmcblk0p1 / ext4")
    monkeypatch.undo()
    real = os.open

    def fails(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path) == str(host.root / "dev/sdb"):
            raise OSError(code, os.strerror(code))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    assert carried(host) == (
        {f"the disk sdb (whether it is in use {name}{os.strerror(code)})": {PORT, USB}} if name else {}
    )


def test_a_claim_is_asked_of_the_kernel_by_opening_the_disk_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """With partitions, on a real kernel: tests/metal/test_refused.py."""
    usb(host)
    monkeypatch.undo()
    asked = []

    def busy(path: Any, flags: int, *_: Any, **__: Any) -> int:
        asked.append((str(path), flags))
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    where = host.root / "dev/sdb"
    assert not tools_disk.is_claimed(where)
    monkeypatch.setattr(os, "open", busy)
    assert tools_disk.is_claimed(where) and asked == [(str(where), os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)]


def test_who_uses_a_device_that_a_guest_is_to_get(host: Host) -> None:
    sata(host)
    disk(host, "dm-0", "virtual")
    claim(host, "sda", "dm-0")
    for name, target in (("disk/by-id/ata-X", "sda"), ("disk/by-id/ata-X-part2", "sda2"), ("mapper/pve-root", "dm-0")):
        link(host, f"/dev/{name}", f"/dev/{target}")
    source = Source(host.system())
    asked = (
        "/dev/disk/by-id/ata-X",
        "//dev/./sda",
        "/dev/mapper/pve-root",
        "/dev/disk/by-id/ata-X-part2",
        "/srv/sda",
        "/sys",
        "/net",
    )
    network(host)
    assert [vital.find_use(source, place) for place in asked] == ["in use", "in use", "in use", "", "", "", ""]
    interface(host, "enx0", f"pci0000:00/{USB}/usb2/2-1/2-1.4/2-1.4:1.0", "0x1003")
    interface(host, "enx1", f"pci0000:00/{USB}/usb2/2-2/2-2:1.0", "0x1002")
    up = "the network interface enx0 is up"
    assert [vital.find_use(source, f"/{port}/") for port in ("2-1.4", "2-1", "2-2", "2-1.")] == [up, up, "", ""]
    interface_of_disk = f"pci0000:00/{USB}/usb2/2-3/2-3:1.0"
    disk(host, "sdb", f"{interface_of_disk}/host8/target8:0:0/8:0:0:0")
    host.write(f"/sys/devices/{interface_of_disk}/uevent", "DRIVER=uas\nPRODUCT=152d/578/5508\n")
    places = ("/2-3/", "PRODUCT=152d/578/", "PRODUCT=152d/579/")
    assert [vital.find_use(source, place) for place in places] == ["", "", ""]
    claim(host, "sdb")
    assert [vital.find_use(source, place) for place in places] == ["the disk sdb: in use", "the disk sdb: in use", ""]


def test_the_network_is_followed_through_bridge_vlan_and_bond(host: Host) -> None:
    network(host)
    assert carried(host, "network") == {
        "the network interface enp5s0 (it is up)": {"0000:00:02.3", NIC},
        "the network interface wlp6s0 (it is up)": {"0000:00:02.4", WIFI},
    }


def test_without_its_physical_function_a_virtual_one_is_gone(host: Host) -> None:
    virtual_function = "/sys/devices/pci0000:00/0000:00:02.3/0000:05:00.4"
    interface(host, "enp5s0v0", virtual_function.removeprefix("/sys/devices/"))
    link(host, f"{virtual_function}/net/enp5s0v0/device", virtual_function)
    host.write(f"/sys/devices/pci0000:00/0000:00:02.3/{NIC}/class", "0x020000\n")
    link(host, f"{virtual_function}/physfn", f"/sys/devices/pci0000:00/0000:00:02.3/{NIC}")
    assert carried(host, "network").popitem()[1] == {"0000:00:02.3", "0000:05:00.4", NIC}


def test_of_open_vswitch_every_port_counts(host: Host) -> None:
    network(host)
    (host.root / "sys/class/net/wlp6s0/flags").write_text("0x1002\n")
    for name in ("ovs-system", "vmbr1"):
        interface(host, name)
    assert carried(host, "network").popitem()[1] == {"0000:00:02.3", NIC}


@pytest.mark.parametrize("flags", ["0x1002", None], ids=["down", "none"])
def test_a_network_that_cant_be_found_is_said_to_be_so(host: Host, flags: str | None) -> None:
    if flags:
        interface(host, "enp5s0", f"pci0000:00/{NIC}", flags)
    assert carried(host, "network").popitem()[1] == {"?"}


@pytest.mark.parametrize("storage", ["nfs", "ceph", "iscsi", "nvme over tcp", "nvme over tcp, multipath"])
def test_storage_over_a_network_of_its_own_counts_with_that_networks_card(host: Host, storage: str) -> None:
    if storage != "iscsi":
        network(host)
    if storage == "iscsi":
        iscsi(host)
        claim(host, "sdc")
        mounts(host, "/dev/sdc1 / ext4")
    elif "nvme" in storage:
        controller = "/sys/devices/virtual/nvme-fabrics/ctl/nvme3"
        host.write(f"{controller}/address", "traddr=10.0.0.9,trsvcid=4420,src_addr=10.0.0.2\n")
        link(host, "/sys/class/nvme/nvme3", controller)
        subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys3"
        link(host, f"{subsystem}/nvme3", controller)
        home = f"{subsystem if 'multipath' in storage else controller}/nvme3n1"
        host.write(f"{home}/size", "1")
        link(host, "/sys/class/block/nvme3n1", home)
        claim(host, "nvme3n1")
        mounts(host, "/dev/nvme3n1 / ext4")
    else:
        line = {
            "nfs": "nas:/vz / nfs4 rw,vers=4.2,clientaddr=10.0.0.2,addr=10.0.0.9 0 0\n",
            "ceph": "10.0.0.9:6789,10.0.0.8:6789:/ / ceph rw,name=admin 0 0\n",
        }[storage]
        host.write("/proc/mounts", line)
    assert {"0000:00:02.4", WIFI} <= refused(host)


@pytest.mark.parametrize("name", ["nbd0", "drbd1000", "rbd0"])
def test_where_nothing_says_which_network_the_data_takes_every_one_counts(host: Host, name: str) -> None:
    network(host)
    disk(host, name, "rbd/0" if name == "rbd0" else "virtual")
    claim(host, name)
    mounts(host, f"/dev/{name} / ext4")
    assert refused(host) == NICS


def test_keyboards_are_those_with_keys_and_not_buttons(host: Host) -> None:
    host.write(
        "/proc/bus/input/devices",
        'N: Name="Power Button"\nS: Sysfs=/devices/LNXSYSTM:00/input/input0\nH: Handlers=kbd event0\n\n'
        f'N: Name="Logitech K120"\nS: Sysfs=/devices/pci0000:00/{PORT}/{USB}/usb1/1-2/input/input4\nH: Handlers=sysrq kbd event4 leds\n\n'
        'N: Name="AT keyboard"\nS: Sysfs=/devices/platform/i8042/serio0/input/input1\nH: Handlers=sysrq kbd event1 leds\n',
    )
    assert carried(host, "keyboard") == {"Logitech K120": {PORT, USB}, "AT keyboard": set()}


def test_processes_and_the_text_console_that_have_a_card_are_named(host: Host) -> None:
    card = "/sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0"
    host.write(f"{card}/drm/card1/dev", "226:1")
    host.write(f"{card}/class", "0x030000")
    link(host, "/sys/bus/pci/devices/0000:01:00.0", card)
    link(host, "/sys/class/graphics/fb0", f"{card}/graphics/fb0")
    host.write(f"{card}/graphics/fb0/name", "nouveaudrmfb")
    host.write("/sys/class/vtconsole/vtcon1/bind", "1\n")
    host.write("/proc/driver/nvidia/gpus/0000:02:00.0/information", "Device Minor: \t 0\n")
    for pid, name, nodes in (
        ("812", "Xorg", ["/dev/dri/card1", "/dev/tty7"]),
        ("900", "python3", ["/dev/nvidia0", "/dev/nvidia0"]),
    ):
        host.write(f"/proc/{pid}/comm", f"{name}\n")
        (host.root / f"proc/{pid}/fd").mkdir()
        for number, node in enumerate(nodes):
            (host.root / f"proc/{pid}/fd/{number}").symlink_to(node)
    source = Source(host.system())
    held = holders.holders(source, nvidia.minors(source), drm.drm(source))
    found = {one.pid: (one.name, one.devices) for one in held}
    assert found == {
        812: ("Xorg", ["0000:01:00.0"]),
        900: ("python3", ["0000:02:00.0"]),
        0: ("the text console (fb0)", ["0000:01:00.0"]),
    }
