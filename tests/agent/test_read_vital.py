"""Which PCI functions carry what a host can't do without, through every kind of stack; who has a card open."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from remote_scripts.shared.reading import holders, nvidia, vital
from remote_scripts.shared.reading.source import Source
from remote_scripts.tools.run import Stand
from tests.agent.kit import Host
from tests.agent.reading_kit import link, says

NVME, SATA, USB, NIC, WIFI = "0000:02:00.0", "0000:00:17.0", "0000:c6:00.3", "0000:05:00.0", "0000:06:00.0"
PORT = "0000:00:08.1"


def carried(host: Host, kind: str = "storage") -> dict[str, set[str]]:
    """Name -> the functions that carry it; {"?"}: they can't be told."""
    found = [one for one in vital.vital(Source(host.system())) if one.kind == kind]
    return {one.name: {*one.devices, *(["?"] if one.trouble else [])} for one in found}


def answers(said: dict[str, str]) -> Stand:
    """A program that says something where it is asked so, and else nothing."""
    return lambda arguments, _stdin: said.get(" ".join(arguments), "")


WAY = {"-o route get 10.0.0.9": "10.0.0.9 dev wlp6s0 src 10.0.0.2 uid 0\n"}


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


def virtual(host: Host, name: str, *slaves: str) -> None:
    """A device that lies on others: dm, md, bcache."""
    home = f"/sys/devices/virtual/block/{name}"
    host.write(f"{home}/size", "1")
    link(host, f"/sys/class/block/{name}", home)
    host.write(f"/dev/{name}", "")
    for slave in slaves:
        link(host, f"{home}/slaves/{slave}", f"/sys/class/block/{slave}")


def mounts(host: Host, *lines: str) -> None:
    host.write("/proc/mounts", "".join(f"{line} rw 0 0\n" for line in lines))


def nvme(host: Host) -> None:
    disk(host, "nvme0n1", f"pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0", "nvme0n1p1", "nvme0n1p2", "nvme0n1p3")


def sata(host: Host) -> None:
    disk(host, "sda", f"pci0000:00/{SATA}/ata1/host0/target0:0:0/0:0:0:0", "sda1", "sda2")


def usb(host: Host) -> None:
    disk(host, "sdb", f"pci0000:00/{PORT}/{USB}/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0", "sdb1", "sdb2")


def plain(host: Host) -> None:
    usb(host)
    mounts(host, "/dev/sdb2 / ext4")


def lvm(host: Host) -> None:
    nvme(host)
    virtual(host, "dm-0", "nvme0n1p3")
    link(host, "/dev/mapper/pve-root", "/dev/dm-0")
    mounts(host, "/dev/mapper/pve-root / ext4")


def lvm_thin_on_two_disks(host: Host) -> None:
    nvme(host)
    sata(host)
    virtual(host, "dm-0", "nvme0n1p3")
    virtual(host, "dm-1", "sda2")
    virtual(host, "dm-2", "dm-0", "dm-1")
    link(host, "/dev/mapper/pve-root", "/dev/dm-2")
    mounts(host, "/dev/mapper/pve-root / ext4")


def raid_and_encryption(host: Host) -> None:
    sata(host)
    usb(host)
    virtual(host, "md0", "sda2", "sdb2")
    virtual(host, "dm-0", "md0")
    link(host, "/dev/mapper/crypt", "/dev/dm-0")
    mounts(host, "/dev/mapper/crypt / xfs")


def bcache(host: Host) -> None:
    sata(host)
    usb(host)
    virtual(host, "bcache0", "sda2")
    host.write(f"/sys/devices/pci0000:00/{PORT}/{USB}/x/block/sdb/bcache/marker", "")
    sdb = os.path.realpath(host.root / "sys/class/block/sdb").removeprefix(str(host.root))
    host.write(f"{sdb}/bcache/marker", "")
    link(host, "/sys/devices/virtual/block/bcache0/bcache/cache/cache0", f"{sdb}/bcache")
    mounts(host, "/dev/bcache0 / ext4")


def zfs(host: Host) -> None:
    nvme(host)
    usb(host)
    status = "  pool: rpool\nconfig:\n\n\trpool ONLINE\n\t  mirror-0 ONLINE\n\t    /dev/nvme0n1p3 ONLINE\n\t    /dev/sdb2 ONLINE\n"
    host.programs["zpool"] = answers({"status -LP rpool": status})
    mounts(host, "rpool/ROOT/pve-1 / zfs")


def zfs_without_zpool(host: Host) -> None:
    nvme(host)
    sata(host)
    host.programs["lsblk"] = says("nvme0n1p3 zfs_member\nsda1 vfat\n")
    mounts(host, "rpool/ROOT/pve-1 / zfs")


def btrfs_on_two_disks(host: Host) -> None:
    nvme(host)
    sata(host)
    for name in ("nvme0n1p3", "sda1"):
        link(host, f"/sys/fs/btrfs/11-22/devices/{name}", f"/sys/class/block/{name}")
    mounts(host, "/dev/sda1 / btrfs")


def nvme_with_two_ways(host: Host) -> None:
    home = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    host.write(f"{home}/nvme0n1/size", "1")
    host.write(f"{home}/nvme0n1/nvme0n1p2/partition", "2")
    for name, place in (("nvme0n1", "nvme0n1"), ("nvme0n1p2", "nvme0n1/nvme0n1p2")):
        link(host, f"/sys/class/block/{name}", f"{home}/{place}")
        host.write(f"/dev/{name}", "")
    host.write(f"/sys/devices/pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0/dev", "")
    link(host, f"{home}/nvme0", f"/sys/devices/pci0000:00/0000:00:02.1/{NVME}/nvme/nvme0")
    mounts(host, "/dev/nvme0n1p2 / ext4")


def behind_a_volume_management_device(host: Host) -> None:
    disk(host, "nvme0n1", "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0", "nvme0n1p2")
    mounts(host, "/dev/nvme0n1p2 / ext4")


def network(host: Host) -> None:
    """vmbr0 over a bond of a network card and Wi-Fi: the default route."""
    host.programs["ip"] = says("")
    for name, where in (("enp5s0", f"0000:00:02.3/{NIC}"), ("wlp6s0", f"0000:00:02.4/{WIFI}")):
        host.write(f"/sys/devices/pci0000:00/{where}/net/{name}/operstate", "up")
        link(host, f"/sys/class/net/{name}", f"/sys/devices/pci0000:00/{where}/net/{name}")
    host.write("/sys/devices/virtual/net/bond0/bonding/slaves", "enp5s0 wlp6s0\n")
    link(host, "/sys/class/net/bond0", "/sys/devices/virtual/net/bond0")
    host.write("/sys/devices/virtual/net/vmbr0/operstate", "up")
    link(host, "/sys/devices/virtual/net/vmbr0/lower_bond0.5", "/sys/devices/virtual/net/bond0.5")
    link(host, "/sys/devices/virtual/net/bond0.5/lower_bond0", "/sys/devices/virtual/net/bond0")
    for name in ("vmbr0", "bond0.5"):
        link(host, f"/sys/class/net/{name}", f"/sys/devices/virtual/net/{name}")
    host.write("/proc/net/route", "Iface\tDestination\tGateway\nvmbr0\t00000000\t0100A8C0\nother\t0000A8C0\t0\n")


def iscsi(host: Host) -> None:
    network(host)
    disk(host, "sdc", "platform/host6/session1/target6:0:0/6:0:0:0", "sdc1")
    mounts(host, "/dev/sdc1 / ext4")


def loop(host: Host) -> None:
    usb(host)
    sata(host)
    virtual(host, "loop0")
    host.write("/sys/devices/virtual/block/loop0/loop/backing_file", "/mnt/image/root.img\n")
    mounts(host, "/dev/loop0 / ext4", "/dev/sdb1 /mnt/image ext4", "/dev/sda1 /mnt ext4")


def the_kernels_own_name(host: Host) -> None:
    nvme(host)
    host.programs["mountpoint"] = says("259:2\n")
    link(host, "/sys/dev/block/259:2", "/sys/class/block/nvme0n1p2")
    mounts(host, "/dev/root / ext4")


def overlay(host: Host) -> None:
    mounts(host, "overlay / overlay")


def a_card_reader(host: Host) -> None:
    disk(host, "mmcblk0", "platform/80860F14:00/mmc_host/mmc0/mmc0:0001", "mmcblk0p2")
    mounts(host, "/dev/mmcblk0p2 / ext4")


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
    host: Host, stack: Callable[[Host], None], carriers: set[str]
) -> None:
    stack(host)
    (found,) = carried(host).values()
    assert found == carriers


def test_boot_swap_the_guests_store_and_esps_count_and_other_file_systems_do_not(host: Host) -> None:
    nvme(host)
    sata(host)
    usb(host)
    link(host, "/dev/disk/by-uuid/AAAA-BBBB", "/dev/nvme0n1p1")
    host.write("/etc/kernel/proxmox-boot-uuids", "AAAA-BBBB\nDEAD-BEEF\n")
    host.write("/proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 8 0 -2\n/store/swap file 8 0 -3\n")
    (host.root / "store").mkdir()
    link(host, "/var/lib/vz", "/store/vz")
    (host.root / "store/vz").mkdir()
    mounts(
        host,
        "/dev/nvme0n1p2 / ext4",
        "/dev/nvme0n1p1 /boot/efi vfat",
        "/dev/sdb1 /store xfs",
        "/dev/sda2 /mnt/films ext4",
        "/dev/sdb2 /var/lib/homelab ext4",
        "tmpfs /run tmpfs",
    )
    on_nvme = {"0000:00:02.1", NVME}
    assert carried(host) == {
        "/ (ext4 on /dev/nvme0n1p2)": on_nvme,
        "/boot/efi (vfat on /dev/nvme0n1p1)": on_nvme,
        "/store (xfs on /dev/sdb1)": {PORT, USB},
        # What gives back a boot lies there: without it nothing does.
        "/var/lib/homelab (ext4 on /dev/sdb2)": {PORT, USB},
        "swap on /dev/sda1": {SATA},
        "swap on /store/swap": {PORT, USB},
        "the EFI system partition AAAA-BBBB": on_nvme,
    }


def test_the_network_is_followed_through_bridge_vlan_and_bond(host: Host) -> None:
    network(host)
    assert carried(host, "network") == {
        "the network over which this host is reached (vmbr0)": {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}
    }


def test_of_open_vswitch_every_port_counts(host: Host) -> None:
    network(host)
    for path in ("lower_bond0.5",):
        (host.root / "sys/devices/virtual/net/vmbr0" / path).unlink()
    link(host, "/sys/class/net/ovs-system", "/sys/devices/virtual/net/ovs-system")
    (host.root / "sys/devices/virtual/net/ovs-system").mkdir()
    link(host, f"/sys/devices/pci0000:00/0000:00:02.3/{NIC}/net/enp5s0/master", "/sys/devices/virtual/net/ovs-system")
    assert carried(host, "network").popitem()[1] == {"0000:00:02.3", NIC}


def test_the_connection_counts_beside_the_default_route_also_under_sudo(host: Host) -> None:
    network(host)
    host.write("/proc/net/route", "Iface\tDestination\n")
    host.programs["ip"] = answers(WAY)
    host.write(f"/proc/{os.getppid()}/environ", "HOME=/root\0SSH_CONNECTION=10.0.0.9 51000 10.0.0.2 22\0")
    assert carried(host, "network").popitem()[1] == {"0000:00:02.4", WIFI}


def test_a_network_that_cant_be_found_is_said_to_be_so(host: Host) -> None:
    host.write("/proc/net/route", "Iface\tDestination\n")
    assert carried(host, "network").popitem()[1] == {"?"}


@pytest.mark.parametrize("storage", ["nfs", "ceph", "iscsi", "nvme over tcp", "nvme over tcp, multipath"])
def test_storage_over_a_network_of_its_own_counts_with_that_networks_card(host: Host, storage: str) -> None:
    network(host)
    host.write("/proc/net/route", "Iface\tDestination\n")
    host.programs["ip"] = answers(WAY)
    if storage == "iscsi":
        disk(host, "sdc", "platform/host6/session1/target6:0:0/6:0:0:0", "sdc1")
        host.write("/sys/class/iscsi_connection/connection1:0/persistent_address", "10.0.0.9\n")
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
        host.write("/dev/nvme3n1", "")
        mounts(host, "/dev/nvme3n1 / ext4")
    else:
        line = {
            "nfs": "nas:/vz / nfs4 rw,vers=4.2,clientaddr=10.0.0.2,addr=10.0.0.9 0 0\n",
            "ceph": "10.0.0.9:6789,10.0.0.8:6789:/ / ceph rw,name=admin 0 0\n",
        }[storage]
        host.write("/proc/mounts", line)
    (found,) = carried(host).values()
    assert found == {"0000:00:02.4", WIFI}


@pytest.mark.parametrize("name", ["nbd0", "drbd1000", "rbd0"])
def test_where_nothing_says_which_network_the_data_takes_every_one_counts(host: Host, name: str) -> None:
    network(host)
    host.write("/proc/net/route", "Iface\tDestination\nenp5s0\t00000000\n")
    addresses = "1: lo    inet 127.0.0.1/8\n5: enp5s0    inet 10.0.0.2/24\n6: wlp6s0    inet 10.9.0.2/24\n"
    host.programs["ip"] = answers({"-o addr show": addresses})
    if name == "rbd0":
        disk(host, name, "rbd/0")
    else:
        virtual(host, name)
    mounts(host, f"/dev/{name} / ext4")
    assert carried(host)[f"/ (ext4 on /dev/{name})"] == {"0000:00:02.3", NIC, "0000:00:02.4", WIFI}


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
    link(host, "/sys/class/drm/card1", f"{card}/drm/card1")
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
    found = {one.pid: (one.name, one.devices) for one in holders.holders(source, nvidia.minors(source))}
    assert found == {
        812: ("Xorg", ["0000:01:00.0"]),
        900: ("python3", ["0000:02:00.0"]),
        0: ("the text console (fb0)", ["0000:01:00.0"]),
    }
