"""lib/carriers/ on a folder: which PCI functions carry what a host can't do without, through every kind of stack; who has a card open."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.scripts.conftest import Folder

NVME, SATA, USB, NIC, WIFI = "0000:02:00.0", "0000:00:17.0", "0000:c6:00.3", "0000:05:00.0", "0000:06:00.0"
PORT = "0000:00:08.1"


def ask(folder: Folder, function: str) -> Any:
    done = folder.bash(function, parts=("carriers", "carriers/holders"))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads("{" + done.stdout.lstrip(",") + "}")[function]


def carried(folder: Folder, kind: str = "storage") -> dict[str, set[str]]:
    """Name -> the functions that carry it; {"?"}: they can't be told."""
    found = [one for one in ask(folder, "vital") if one["kind"] == kind]
    return {one["name"]: set(one["devices"]) | ({"?"} if one["trouble"] else set()) for one in found}


def link(folder: Folder, path: str, target: str) -> None:
    """A symbolic link inside the folder, relative as in sysfs."""
    place = folder.root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    goal = folder.root / target.lstrip("/")
    place.symlink_to(os.path.relpath(goal, place.parent))


def disk(folder: Folder, name: str, where: str, *parts: str) -> None:
    """A disk at ``where`` below /sys/devices, with partitions."""
    home = f"/sys/devices/{where}/block/{name}"
    folder.write(f"{home}/size", "1")
    link(folder, f"/sys/class/block/{name}", home)
    folder.write(f"/dev/{name}", "")
    for part in parts:
        folder.write(f"{home}/{part}/partition", "1")
        link(folder, f"/sys/class/block/{part}", f"{home}/{part}")
        folder.write(f"/dev/{part}", "")


def virtual(folder: Folder, name: str, *slaves: str) -> None:
    """A device that lies on others: dm, md, bcache."""
    home = f"/sys/devices/virtual/block/{name}"
    folder.write(f"{home}/size", "1")
    link(folder, f"/sys/class/block/{name}", home)
    folder.write(f"/dev/{name}", "")
    for slave in slaves:
        link(folder, f"{home}/slaves/{slave}", f"/sys/class/block/{slave}")


def mounts(folder: Folder, *lines: str) -> None:
    folder.write("/proc/mounts", "".join(f"{line} rw 0 0\n" for line in lines))


def nvme(folder: Folder) -> None:
    disk(folder, "nvme0n1", f"pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0", "nvme0n1p1", "nvme0n1p2", "nvme0n1p3")


def sata(folder: Folder) -> None:
    disk(folder, "sda", f"pci0000:00/{SATA}/ata1/host0/target0:0:0/0:0:0:0", "sda1", "sda2")


def usb(folder: Folder) -> None:
    disk(folder, "sdb", f"pci0000:00/{PORT}/{USB}/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0", "sdb1", "sdb2")


def plain(folder: Folder) -> None:
    usb(folder)
    mounts(folder, "/dev/sdb2 / ext4")


def lvm(folder: Folder) -> None:
    nvme(folder)
    virtual(folder, "dm-0", "nvme0n1p3")
    link(folder, "/dev/mapper/pve-root", "/dev/dm-0")
    mounts(folder, "/dev/mapper/pve-root / ext4")


def lvm_thin_on_two_disks(folder: Folder) -> None:
    nvme(folder)
    sata(folder)
    virtual(folder, "dm-0", "nvme0n1p3")
    virtual(folder, "dm-1", "sda2")
    virtual(folder, "dm-2", "dm-0", "dm-1")
    link(folder, "/dev/mapper/pve-root", "/dev/dm-2")
    mounts(folder, "/dev/mapper/pve-root / ext4")


def raid_and_encryption(folder: Folder) -> None:
    sata(folder)
    usb(folder)
    virtual(folder, "md0", "sda2", "sdb2")
    virtual(folder, "dm-0", "md0")
    link(folder, "/dev/mapper/crypt", "/dev/dm-0")
    mounts(folder, "/dev/mapper/crypt / xfs")


def bcache(folder: Folder) -> None:
    sata(folder)
    usb(folder)
    virtual(folder, "bcache0", "sda2")
    folder.write(f"/sys/devices/pci0000:00/{PORT}/{USB}/x/block/sdb/bcache/marker", "")
    sdb = os.path.realpath(folder.root / "sys/class/block/sdb").removeprefix(str(folder.root))
    folder.write(f"{sdb}/bcache/marker", "")
    link(folder, "/sys/devices/virtual/block/bcache0/bcache/cache/cache0", f"{sdb}/bcache")
    mounts(folder, "/dev/bcache0 / ext4")


def zfs(folder: Folder) -> None:
    nvme(folder)
    usb(folder)
    status = "  pool: rpool\\nconfig:\\n\\n\\trpool ONLINE\\n\\t  mirror-0 ONLINE\\n\\t    /dev/nvme0n1p3 ONLINE\\n\\t    /dev/sdb2 ONLINE\\n"
    folder.command("zpool", f"[[ $* == 'status -LP rpool' ]] && printf '{status}'")
    mounts(folder, "rpool/ROOT/pve-1 / zfs")


def zfs_without_zpool(folder: Folder) -> None:
    nvme(folder)
    sata(folder)
    folder.command("zpool", "exit 127")
    folder.command("lsblk", "printf 'nvme0n1p3 zfs_member\\nsda1 vfat\\n'")
    mounts(folder, "rpool/ROOT/pve-1 / zfs")


def btrfs_on_two_disks(folder: Folder) -> None:
    nvme(folder)
    sata(folder)
    for name in ("nvme0n1p3", "sda1"):
        link(folder, f"/sys/fs/btrfs/11-22/devices/{name}", f"/sys/class/block/{name}")
    mounts(folder, "/dev/sda1 / btrfs")


def nvme_with_two_ways(folder: Folder) -> None:
    home = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    folder.write(f"{home}/nvme0n1/size", "1")
    folder.write(f"{home}/nvme0n1/nvme0n1p2/partition", "2")
    for name, place in (("nvme0n1", "nvme0n1"), ("nvme0n1p2", "nvme0n1/nvme0n1p2")):
        link(folder, f"/sys/class/block/{name}", f"{home}/{place}")
        folder.write(f"/dev/{name}", "")
    folder.write(f"/sys/devices/pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0/dev", "")
    link(folder, f"{home}/nvme0", f"/sys/devices/pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0")
    mounts(folder, "/dev/nvme0n1p2 / ext4")


def behind_a_volume_management_device(folder: Folder) -> None:
    disk(folder, "nvme0n1", "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0", "nvme0n1p2")
    mounts(folder, "/dev/nvme0n1p2 / ext4")


def network(folder: Folder) -> None:
    """vmbr0 over a bond of a network card and Wi-Fi: the default route."""
    for name, where in (("enp5s0", f"0000:00:02.3/{NIC}"), ("wlp6s0", f"0000:00:02.4/{WIFI}")):
        folder.write(f"/sys/devices/pci0000:00/{where}/net/{name}/operstate", "up")
        link(folder, f"/sys/class/net/{name}", f"/sys/devices/pci0000:00/{where}/net/{name}")
    folder.write("/sys/devices/virtual/net/bond0/bonding/slaves", "enp5s0 wlp6s0\n")
    link(folder, "/sys/class/net/bond0", "/sys/devices/virtual/net/bond0")
    folder.write("/sys/devices/virtual/net/vmbr0/operstate", "up")
    link(folder, "/sys/devices/virtual/net/vmbr0/lower_bond0.5", "/sys/devices/virtual/net/bond0.5")
    link(folder, "/sys/devices/virtual/net/bond0.5/lower_bond0", "/sys/devices/virtual/net/bond0")
    for name in ("vmbr0", "bond0.5"):
        link(folder, f"/sys/class/net/{name}", f"/sys/devices/virtual/net/{name}")
    folder.write("/proc/net/route", "Iface\tDestination\tGateway\nvmbr0\t00000000\t0100A8C0\nother\t0000A8C0\t0\n")


def iscsi(folder: Folder) -> None:
    network(folder)
    disk(folder, "sdc", "platform/host6/session1/target6:0:0/6:0:0:0", "sdc1")
    mounts(folder, "/dev/sdc1 / ext4")


def loop(folder: Folder) -> None:
    usb(folder)
    sata(folder)
    virtual(folder, "loop0")
    folder.write("/sys/devices/virtual/block/loop0/loop/backing_file", "/mnt/image/root.img\n")
    mounts(folder, "/dev/loop0 / ext4", "/dev/sdb1 /mnt/image ext4", "/dev/sda1 /mnt ext4")


def the_kernels_own_name(folder: Folder) -> None:
    nvme(folder)
    folder.command("mountpoint", "echo 259:2")
    link(folder, "/sys/dev/block/259:2", "/sys/class/block/nvme0n1p2")
    mounts(folder, "/dev/root / ext4")


def overlay(folder: Folder) -> None:
    mounts(folder, "overlay / overlay")


def a_card_reader(folder: Folder) -> None:
    disk(folder, "mmcblk0", "platform/80860F14:00/mmc_host/mmc0/mmc0:0001", "mmcblk0p2")
    mounts(folder, "/dev/mmcblk0p2 / ext4")


@pytest.mark.parametrize(
    ("stack", "carriers"),
    [
        (plain, {PORT, USB}),
        (lvm, {"0000:00:02.1", NVME}),
        (lvm_thin_on_two_disks, {"0000:00:02.1", NVME, SATA}),
        (raid_and_encryption, {SATA, PORT, USB}),
        (bcache, {SATA, PORT, USB}),
        (zfs, {"0000:00:02.1", NVME, PORT, USB}),
        (zfs_without_zpool, {"0000:00:02.1", NVME}),
        (btrfs_on_two_disks, {"0000:00:02.1", NVME, SATA}),
        (nvme_with_two_ways, {"0000:00:02.1", NVME}),
        (behind_a_volume_management_device, {"0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"}),
        (iscsi, {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}),
        (loop, {PORT, USB}),
        (the_kernels_own_name, {"0000:00:02.1", NVME}),
        (overlay, {"?"}),
        (a_card_reader, set()),
    ],
)
def test_the_root_is_followed_to_the_functions_that_carry_it(
    folder: Folder, stack: Callable[[Folder], None], carriers: set[str]
) -> None:
    stack(folder)
    (found,) = carried(folder).values()
    assert found == carriers


def test_boot_swap_the_guests_store_and_esps_count_and_other_file_systems_do_not(folder: Folder) -> None:
    nvme(folder)
    sata(folder)
    usb(folder)
    link(folder, "/dev/disk/by-uuid/AAAA-BBBB", "/dev/nvme0n1p1")
    folder.write("/etc/kernel/proxmox-boot-uuids", "AAAA-BBBB\nDEAD-BEEF\n")
    folder.write(
        "/proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 8 0 -2\n/store/swap file 8 0 -3\n"
    )
    (folder.root / "store").mkdir()
    link(folder, "/var/lib/vz", "/store/vz")
    (folder.root / "store/vz").mkdir()
    mounts(
        folder,
        "/dev/nvme0n1p2 / ext4",
        "/dev/nvme0n1p1 /boot/efi vfat",
        "/dev/sdb1 /store xfs",
        "/dev/sda2 /mnt/films ext4",
        "tmpfs /run tmpfs",
    )
    on_nvme = {"0000:00:02.1", NVME}
    assert carried(folder) == {
        "/ (ext4 on /dev/nvme0n1p2)": on_nvme,
        "/boot/efi (vfat on /dev/nvme0n1p1)": on_nvme,
        "/store (xfs on /dev/sdb1)": {PORT, USB},
        "swap on /dev/sda1": {SATA},
        "swap on /store/swap": {PORT, USB},
        "the EFI system partition AAAA-BBBB": on_nvme,
    }


def test_the_network_is_followed_through_bridge_vlan_and_bond(folder: Folder) -> None:
    network(folder)
    assert carried(folder, "network") == {
        "the network over which this host is reached (vmbr0)": {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}
    }


def test_of_open_vswitch_every_port_counts(folder: Folder) -> None:
    network(folder)
    for path in ("lower_bond0.5",):
        (folder.root / "sys/devices/virtual/net/vmbr0" / path).unlink()
    link(folder, "/sys/class/net/ovs-system", "/sys/devices/virtual/net/ovs-system")
    (folder.root / "sys/devices/virtual/net/ovs-system").mkdir()
    link(folder, f"/sys/devices/pci0000:00/0000:00:02.3/{NIC}/net/enp5s0/master", "/sys/devices/virtual/net/ovs-system")
    assert carried(folder, "network").popitem()[1] == {"0000:00:02.3", NIC}


def test_the_connection_counts_beside_the_default_route_also_under_sudo(folder: Folder) -> None:
    network(folder)
    folder.write("/proc/net/route", "Iface\tDestination\n")
    folder.command("ip", '[[ $* != "-o route get 10.0.0.9" ]] || echo "10.0.0.9 dev wlp6s0 src 10.0.0.2 uid 0"')
    folder.write(f"/proc/{os.getpid()}/environ", "HOME=/root\0SSH_CONNECTION=10.0.0.9 51000 10.0.0.2 22\0")
    assert carried(folder, "network").popitem()[1] == {"0000:00:02.4", WIFI}


def test_a_network_that_cant_be_found_is_said_to_be_so(folder: Folder) -> None:
    folder.write("/proc/net/route", "Iface\tDestination\n")
    assert carried(folder, "network").popitem()[1] == {"?"}


@pytest.mark.parametrize("storage", ["nfs", "ceph", "iscsi", "nvme over tcp", "nvme over tcp, multipath"])
def test_storage_over_a_network_of_its_own_counts_with_that_networks_card(folder: Folder, storage: str) -> None:
    network(folder)
    folder.write("/proc/net/route", "Iface\tDestination\n")
    folder.command("ip", '[[ $* != "-o route get 10.0.0.9" ]] || echo "10.0.0.9 dev wlp6s0 src 10.0.0.2 uid 0"')
    if storage == "iscsi":
        disk(folder, "sdc", "platform/host6/session1/target6:0:0/6:0:0:0", "sdc1")
        folder.write("/sys/class/iscsi_connection/connection1:0/persistent_address", "10.0.0.9\n")
        mounts(folder, "/dev/sdc1 / ext4")
    elif "nvme" in storage:
        controller = "/sys/devices/virtual/nvme-fabrics/ctl/nvme3"
        folder.write(f"{controller}/address", "traddr=10.0.0.9,trsvcid=4420,src_addr=10.0.0.2\n")
        link(folder, "/sys/class/nvme/nvme3", controller)
        subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys3"
        link(folder, f"{subsystem}/nvme3", controller)
        home = f"{subsystem if 'multipath' in storage else controller}/nvme3n1"
        folder.write(f"{home}/size", "1")
        link(folder, "/sys/class/block/nvme3n1", home)
        folder.write("/dev/nvme3n1", "")
        mounts(folder, "/dev/nvme3n1 / ext4")
    else:
        line = {
            "nfs": "nas:/vz / nfs4 rw,vers=4.2,clientaddr=10.0.0.2,addr=10.0.0.9 0 0\n",
            "ceph": "10.0.0.9:6789,10.0.0.8:6789:/ / ceph rw,name=admin 0 0\n",
        }[storage]
        folder.write("/proc/mounts", line)
    (found,) = carried(folder).values()
    assert found == {"0000:00:02.4", WIFI}


@pytest.mark.parametrize("name", ["nbd0", "drbd1000", "rbd0"])
def test_where_nothing_says_which_network_the_data_takes_every_one_counts(folder: Folder, name: str) -> None:
    network(folder)
    folder.write("/proc/net/route", "Iface\tDestination\nenp5s0\t00000000\n")
    folder.command(
        "ip",
        '[[ $* != "-o addr show" ]] || printf "1: lo    inet 127.0.0.1/8\\n5: enp5s0    inet 10.0.0.2/24\\n6: wlp6s0    inet 10.9.0.2/24\\n"',
    )
    if name == "rbd0":
        disk(folder, name, "rbd/0")
    else:
        virtual(folder, name)
    mounts(folder, f"/dev/{name} / ext4")
    assert carried(folder)[f"/ (ext4 on /dev/{name})"] == {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}


def test_keyboards_are_those_with_keys_and_not_buttons(folder: Folder) -> None:
    folder.write(
        "/proc/bus/input/devices",
        'N: Name="Power Button"\nS: Sysfs=/devices/LNXSYSTM:00/input/input0\nH: Handlers=kbd event0\n\n'
        f'N: Name="Logitech K120"\nS: Sysfs=/devices/pci0000:00/{PORT}/{USB}/usb1/1-2/input/input4\nH: Handlers=sysrq kbd event4 leds\n\n'
        'N: Name="AT keyboard"\nS: Sysfs=/devices/platform/i8042/serio0/input/input1\nH: Handlers=sysrq kbd event1 leds\n',
    )
    assert carried(folder, "keyboard") == {"Logitech K120": {PORT, USB}, "AT keyboard": set()}


def test_processes_and_the_text_console_that_have_a_card_are_named(folder: Folder) -> None:
    card = "/sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0"
    folder.write(f"{card}/drm/card1/dev", "226:1")
    link(folder, "/sys/class/drm/card1", f"{card}/drm/card1")
    link(folder, "/sys/class/graphics/fb0", f"{card}/graphics/fb0")
    folder.write(f"{card}/graphics/fb0/name", "nouveaudrmfb")
    folder.write("/sys/class/vtconsole/vtcon1/bind", "1\n")
    folder.write("/proc/driver/nvidia/gpus/0000:02:00.0/information", "Device Minor: \t 0\n")
    for pid, name, nodes in (
        ("812", "Xorg", ["/dev/dri/card1", "/dev/tty7"]),
        ("900", "python3", ["/dev/nvidia0", "/dev/nvidia0"]),
    ):
        folder.write(f"/proc/{pid}/comm", f"{name}\n")
        (folder.root / f"proc/{pid}/fd").mkdir()
        for number, node in enumerate(nodes):
            (folder.root / f"proc/{pid}/fd/{number}").symlink_to(node)
    found = {one["pid"]: (one["name"], one["devices"]) for one in ask(folder, "holders")}
    assert found == {
        812: ("Xorg", ["0000:01:00.0"]),
        900: ("python3", ["0000:02:00.0"]),
        0: ("the text console (fb0)", ["0000:01:00.0"]),
    }
