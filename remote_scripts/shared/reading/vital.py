"""What the host can't do without, and the PCI functions on the way to it: its file systems and swap, the network over
which it is reached, its keyboards. What can't be told is said (`trouble`): who asks decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from remote_scripts.shared import boot, route
from remote_scripts.shared.reading.answer import Vital
from remote_scripts.shared.reading.source import ADDRESS, Source, lines_of
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import Done

_FUNCTION = re.compile(ADDRESS)
# What of the file system must be there: these, and what is mounted below some.
# Without HOME nothing gives a boot back.
_NEEDED = (
    *("/", "/boot", "/boot/efi", "/efi", "/usr", "/usr/local", "/etc", "/var", "/var/lib", "/var/lib/pve-cluster"),
    *(HOME, "/var/lib/vz"),
)
_NEEDED_BELOW = ("/boot/", "/efi/", "/var/lib/vz/")
# autofs stands for a file system that isn't mounted yet.
_IN_MEMORY = ("autofs", "tmpfs", "ramfs", "rootfs")
_OVER_A_NETWORK = re.compile(r"nfs.*|cifs|smb3|ceph|fuse\.ceph.*|glusterfs|fuse\.glusterfs|fuse\.sshfs|9p")
_IP = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?:^|addr=)[0-9a-f]*:[0-9a-f:]+", re.MULTILINE)
_DEV = re.compile(r".* dev ([^ ]+)")
_BLOCKS, _NETS = "/sys/class/block", "/sys/class/net"
# ip(8): the kernel has no way there, so that nothing comes from there either.
_NO_WAY = 2


def vital(source: Source) -> list[Vital]:
    """All of it."""
    ways = _Ways(source)
    return [*_storage(source, ways), _network(source, ways), *_keyboards(source)]


def _storage(source: Source, ways: _Ways) -> Iterator[Vital]:
    mounts = _mounts(source, source.needed("/proc/mounts") or "")
    places = _needed_places(source)
    swaps = source.needed("/proc/swaps") or ""
    if not mounts:
        yield Vital("storage", "what is mounted", [], "/proc/mounts doesn't say")
    # Of what is mounted over each other on one path, the last one counts; all of them are named.
    named: set[tuple[str, str]] = set()
    for mount in mounts:
        if (mount.source, mount.target) not in named and _is_needed(places, mount.target):
            named.add((mount.source, mount.target))
            carriers = _Carriers(source, ways, mounts)
            carriers.of_mount(mount)
            yield carriers.entry("storage", f"{mount.target} ({mount.kind} on {mount.source})")
    for line in swaps.split("\n"):
        path, kind = [*line.split(), "", ""][:2]
        if path.startswith("/"):
            carriers = _Carriers(source, ways, mounts)
            if kind == "file":
                carriers.of_path(path)
            else:
                carriers.of_device(path)
            yield carriers.entry("storage", f"swap on {path}")
    # ESPs that proxmox-boot-tool manages aren't mounted.
    for line in (source.needed(boot.UUIDS) or "").split("\n"):
        uuid = line.strip(" \t")
        if uuid and source.exists(path := f"/dev/disk/by-uuid/{uuid}"):
            carriers = _Carriers(source, ways, mounts)
            carriers.of_device(path)
            yield carriers.entry("storage", f"the EFI system partition {uuid}")


def _network(source: Source, ways: _Ways) -> Vital:
    carriers = _Carriers(source, ways, ())
    carriers.of_network()
    names = ", ".join(ways.reached)
    if not carriers.devices and not carriers.trouble:
        carriers.trouble = f"no network card is known behind {names}"
    return carriers.entry("network", f"the network over which this host is reached ({names})")


def _keyboards(source: Source) -> list[Vital]:
    """A keyboard has the handlers kbd and sysrq; a power button has the first alone. Virtual ones are nobody's; one at
    a port of its own (PS/2) stays.
    """
    name = path = ""
    keyboards: list[Vital] = []
    for line in source.lines("/proc/bus/input/devices"):
        if line.startswith("N: Name="):
            name = line.removeprefix('N: Name="').removesuffix('"')
        elif line.startswith("S: Sysfs="):
            path = line.removeprefix("S: Sysfs=")
        elif line.startswith("H: Handlers=") and re.search(r"[ =]kbd", line) and "sysrq" in line:
            keyboards += [] if "/virtual/" in path else [Vital("keyboard", name, sorted({*_functions_in(path)}), "")]
    return keyboards


@dataclass(frozen=True)
class _Mount:
    """A line of /proc/mounts."""

    source: str
    target: str
    kind: str
    options: str


def _mounts(source: Source, text: str) -> list[_Mount]:
    return [_Mount(*[*line.split(" "), "", "", ""][:4]) for line in text.split("\n") if line]


def _needed_places(source: Source) -> list[str]:
    """Where links among them lead: /var/lib/vz may be one to another disk, or to a share, or one itself."""
    nothing: list[str] = []
    return source.chosen(
        "/var/lib/vz", lambda: [source.real(path) for path in _NEEDED if source.is_link(path)], nothing
    )


def _is_needed(places: list[str], target: str) -> bool:
    """Whether it is the mount point of something that the host needs."""
    if target in _NEEDED or target.startswith(_NEEDED_BELOW):
        return True
    return target != "/" and any(f"{place}/".startswith(f"{target}/") for place in places)


def _functions_in(path: str) -> list[str]:
    """The PCI functions that a path in sysfs goes through."""
    return [part for part in path.split("/") if _FUNCTION.fullmatch(part)]


class _Ways:
    """Which interfaces lead where. What is the same for all that comes over a network is asked once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        #: Why one isn't known.
        self.trouble = ""
        self._addresses: Done | None = None
        self._reached: list[str] | None = None

    @property
    def reached(self) -> list[str]:
        """The interfaces of this connection and of the default routes."""
        if self._reached is None:
            self._reached = sorted({*self._of_connection(), *self._default_routes()})
        return self._reached

    def to(self, address: str) -> list[str]:
        """The interfaces on the way to an address."""
        done = self._source.run.ask("ip", "-o", "route", "get", address)
        if done.status not in (0, _NO_WAY):
            self.trouble = f"the way to {address} isn't known: ip gave no answer"
        return [match[1] for match in map(_DEV.match, lines_of(done.text)) if match]

    def addresses(self) -> Done:
        """What `ip` says of all addresses, a line each: number, interface, family, address."""
        if self._addresses is None:
            self._addresses = self._source.run.ask("ip", "-o", "addr", "show")
        return self._addresses

    def _of_connection(self) -> list[str]:
        words = route.connection(self._source.system)
        if not words:
            return []
        client, server = ([*words, "", "", ""][place].removeprefix("::ffff:").partition("%")[0] for place in (0, 2))
        interfaces = self.to(client)
        done = self.addresses()
        if done.status != 0:
            self.trouble = "which interface has this connection isn't known: ip gave no answer"
        fields = (line.split() for line in lines_of(done.text))
        return interfaces + [entry[1] for entry in fields if len(entry) > 3 and entry[3].partition("/")[0] == server]

    def _default_routes(self) -> list[str]:
        source = self._source
        fields = [line.split() for line in (source.needed("/proc/net/route") or "").split("\n")]
        interfaces = [entry[0] for entry in fields if len(entry) > 1 and entry[1] == "00000000"]
        # The destination, its length and the rest; the interface stands last.
        fields = [line.split() for line in (source.needed("/proc/net/ipv6_route") or "").split("\n")]
        return interfaces + [
            entry[-1]
            for entry in fields
            if len(entry) > 2 and not entry[0].strip("0") and entry[1] == "00" and entry[-1] != "lo"
        ]


class _Carriers:
    """Down from one thing to the PCI functions that carry it."""

    def __init__(self, source: Source, ways: _Ways, mounts: list[_Mount] | tuple[()]) -> None:
        self._source = source
        self._ways = ways
        self._mounts = mounts
        self.devices: set[str] = set()
        #: Why the way could not be followed to its end.
        self.trouble = ""
        # Block devices and interfaces that were looked at on this way: stacks may meet again. No disk has the name of
        # an interface.
        self._seen: set[str] = set()

    def entry(self, kind: str, name: str) -> Vital:
        """What was found."""
        return Vital(kind, name, sorted(self.devices), self.trouble)

    # File systems.

    def of_path(self, path: str) -> None:
        """Of the file system that a file is on."""
        nearest: _Mount | None = None
        for mount in self._mounts:
            is_above = mount.target in (path, "/") or path.startswith(f"{mount.target}/")
            if is_above and len(mount.target) >= (len(nearest.target) if nearest else 0):
                nearest = mount
        if nearest:
            self.of_mount(nearest)
        else:
            self.trouble = f"nothing is mounted that holds {path}"

    def of_mount(self, mount: _Mount) -> None:
        """Of a file system."""
        if mount.kind in _IN_MEMORY:
            return
        if mount.kind == "zfs":
            self._of_pool(mount.source.partition("/")[0])
        elif _OVER_A_NETWORK.fullmatch(mount.kind):
            self.of_network(*_addresses_in(f"{mount.source},{mount.options}"))
        elif mount.kind == "bcachefs":
            for device in mount.source.split(":"):  # all of its devices
                self.of_device(device)
        elif mount.source.startswith("/dev/"):
            self.of_device(mount.source, mount.target)
        else:
            self.trouble = f"nothing says which disk {mount.source} ({mount.kind} on {mount.target}) is on"

    # Block devices.

    def of_device(self, path: str, target: str = "") -> None:
        """Of a device in /dev.

        :param target: where it is mounted.
        """
        source = self._source
        if path.startswith("/dev/zvol/"):
            self._of_pool(path.removeprefix("/dev/zvol/").partition("/")[0])
            return
        name = (source.real(path) if source.is_link(path) else path).rpartition("/")[2]
        if target and not source.exists(f"{_BLOCKS}/{name}"):
            # /dev/root, which is no device: the kernel's number of it is.
            done = source.run.ask("mountpoint", "-d", str(source.files.at(target)))
            if done.status == 0:
                name = source.real(f"/sys/dev/block/{done.text}").rpartition("/")[2]
        self._of_block(name, path)
        # btrfs names one of its devices.
        for folder in (f"/sys/fs/btrfs/{name}/devices" for name in source.names("/sys/fs/btrfs")):
            if source.exists(f"{folder}/{name}"):
                for sibling in source.names(folder):
                    self._of_block(sibling, path)

    def _of_block(self, name: str, path: str) -> None:
        """By the kernel's name, down through partitions, dm, md, LVM, bcache, loops and the like.

        :param path: in /dev, for messages.
        """
        source = self._source
        if not name or not source.exists(f"{_BLOCKS}/{name}"):
            self.trouble = f"{path} is no block device that sysfs knows"
            return
        if name in self._seen:
            return
        self._seen.add(name)
        folder = source.real(f"{_BLOCKS}/{name}")
        if source.exists(f"{folder}/partition"):
            self._of_block(folder.rpartition("/")[0].rpartition("/")[2], path)
            return
        below = [name for name in source.names(f"{folder}/slaves") if source.exists(f"{folder}/slaves/{name}")]
        caches = f"{folder}/bcache/cache"
        for cache in source.names(caches):  # a cache of bcache: a link to .../sdb/bcache
            if re.match(r"cache[0-9]", cache) and source.exists(f"{caches}/{cache}"):
                below.append(source.real(f"{caches}/{cache}").split("/")[-2])
        for device in below:
            self._of_block(device, path)
        if not below:
            self._of_lowest(name, folder)

    def _of_lowest(self, name: str, folder: str) -> None:
        """Of a block device that lies on no other one.

        :param folder: in sysfs.
        """
        source = self._source
        if "/virtual/nvme-subsystem/" in folder:  # one disk behind several controllers
            above = folder.rpartition("/")[0]
            for child in source.names(above):
                is_controller = re.match(r"nvme[0-9]", child) and source.is_link(f"{above}/{child}")
                if is_controller and not self._take(source.real(f"{above}/{child}")):
                    self._of_other_end(source.text(f"/sys/class/nvme/{child}/address"))
        elif "/virtual/block/loop" in folder:
            file = source.text(f"{folder}/loop/backing_file")
            if file.startswith("/"):
                self.of_path(file)
            else:
                self.trouble = f"{name} is a loop over a file that isn't known"
        elif "/virtual/block/zd" in folder:
            self._of_zvol(name)
        elif re.search(r"/virtual/block/(zram|ram[0-9])", folder):
            pass  # memory
        elif "/virtual/nvme-fabrics/" in folder:
            if match := re.search(r"/(nvme[0-9]+)/", folder):
                self._of_other_end(source.text(f"/sys/class/nvme/{match[1]}/address"))
        elif re.search(r"/virtual/block/(nbd|drbd)|/rbd/|/rbd[0-9]", folder):
            self._of_every_network()  # their other ends are nowhere in sysfs
        elif "/virtual/" in folder:
            self.trouble = f"nothing says what {name} is on"
        # Without a PCI function on the way: iSCSI through the network, or a disk that is no PCI device at all.
        elif not self._take(folder) and (match := re.search(r"/session([0-9]+)", folder)):
            self._of_other_end(self._iscsi_ends(match[1]))

    def _iscsi_ends(self, session: str) -> str:
        folder = "/sys/class/iscsi_connection"
        connections = [name for name in self._source.names(folder) if name.startswith(f"connection{session}:")]
        return "\n".join(
            self._source.text(f"{folder}/{connection}/{name}")
            for connection in connections
            for name in ("persistent_address", "address")
        )

    def _of_zvol(self, name: str) -> None:
        pools = self._source.links_below("/dev/zvol", name)
        if pools:
            self._of_pool(pools[0].partition("/")[0])
        else:
            self.trouble = f"nothing says which ZFS pool {name} is on"

    def _of_pool(self, pool: str) -> None:
        source = self._source
        done = source.ask("zpool", "status", "-LP", pool)
        paths = [words[0] for line in lines_of(done.text) if (words := line.split()) and words[0].startswith("/dev/")]
        for path in paths:
            self.of_device(path)
        if paths and done.status == 0:
            return
        # Without an answer, or with a part of one: every disk that is a member of any pool.
        done = source.ask("lsblk", "-nro", "NAME,FSTYPE")
        if done.status != 0:
            self.trouble = f"neither zpool nor lsblk says which disks the ZFS pool {pool} is on"
        members = [words[0] for line in lines_of(done.text) if (words := line.split())[1:2] == ["zfs_member"]]
        for member in members:
            self._of_block(member, f"/dev/{member}")
        if not paths and not members:
            self.trouble = f"nothing says which disks the ZFS pool {pool} is on"

    def _of_other_end(self, text: str) -> None:
        """By what sysfs says of the other end of a disk that comes over a network (`traddr=10.0.0.9,trsvcid=4420`)."""
        if addresses := _addresses_in(text):
            self.of_network(*addresses)
        else:
            self._of_every_network()

    # Networks.

    def of_network(self, *addresses: str) -> None:
        """Of what this host is reached by, and of what is on the way to these, which may be another one, as of a
        network for storage alone.
        """
        names = sorted({*self._ways.reached, *(name for address in addresses for name in self._ways.to(address))})
        if not names:
            self.trouble = "no interface has a default route or this connection"
        self.trouble = self._ways.trouble or self.trouble
        for name in names:
            self._of_interface(name)

    def _of_every_network(self) -> None:
        """Where nothing says which way data takes: each interface that has an address."""
        self.of_network()
        done = self._ways.addresses()
        if done.status != 0:
            self.trouble = "which interfaces have an address isn't known: ip gave no answer"
        fields = (line.split() for line in lines_of(done.text))
        for name in sorted({entry[1].partition("@")[0] for entry in fields if len(entry) > 1} - {"lo"}):
            self._of_interface(name)

    def _of_interface(self, name: str) -> None:
        """Down through bridges, bonds, VLANs and Open vSwitch."""
        source, folder = self._source, f"{_NETS}/{name}"
        if not source.exists(folder) or name in self._seen:
            return
        self._seen.add(name)
        real = source.real(folder)
        if self._take(real):
            # Without its physical function, a virtual one is gone as well.
            if source.is_link(f"{real}/device/physfn"):
                self._take(source.real(f"{real}/device/physfn"))
            return
        lower = [name.removeprefix("lower_") for name in source.names(folder) if name.startswith("lower_")]
        lower += source.names(f"{folder}/brif")
        lower += source.text(f"{folder}/bonding/slaves").split()
        if not lower and source.exists(f"{_NETS}/ovs-system"):
            # It shows no ports in sysfs: every interface that it has.
            lower = [name for name in source.names(_NETS) if source.linked(f"{_NETS}/{name}/master") == "ovs-system"]
        for device in lower:
            self._of_interface(device)

    def _take(self, path: str) -> bool:
        """Notes the PCI functions that a path in sysfs goes through; whether there are some."""
        functions = _functions_in(path)
        self.devices.update(functions)
        return bool(functions)


def _addresses_in(text: str) -> list[str]:
    """The IP addresses that an option or a source of a mount, or a line of sysfs, has."""
    return sorted({address.removeprefix("addr=") for address in _IP.findall(text)})
