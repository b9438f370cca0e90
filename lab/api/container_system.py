"""What runs inside a container: its own file tree, the device nodes that its configuration gives it, commands in it.

A container's tree lies in STATE/guests/ID/root and stays until the container is destroyed; its /dev and /proc are made
anew at each start. What the configuration allows is worked out once, at the start, as lxc does it: dev[n] entries and
lxc.mount.entry lines give nodes, dev[n] entries and lxc.cgroup2.devices lines give rules. From then on `nodes.refusal`
decides on every opening, for the programs that the lab has inside (`lab.host.container_programs`) and, by what stands in
the tree for each node, for every other one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from typing import Any

from lab.host import container, launchers
from lab.host import run as host_run
from lab.host.contents import install_libraries, install_program
from lab.host.installed import install_base
from lab.host.nodes import Node, parse_rule, read_node
from lab.host.state import HostState, version_key

from .errors import Died
from .guest_config import GuestConfig
from .guests import Guest
from .options import parse_properties

_DEVICE = re.compile(r"dev(\d+)")
#: Nodes that every kernel has and that are not in a lab host's /dev, which holds what hardware brings.
KERNEL_NODES = {
    "/dev/null": Node("c", 1, 3),
    "/dev/zero": Node("c", 1, 5),
    "/dev/full": Node("c", 1, 7),
    "/dev/random": Node("c", 1, 8),
    "/dev/urandom": Node("c", 1, 9),
    "/dev/tty": Node("c", 5, 0),
    "/dev/fuse": Node("c", 10, 229),
    "/dev/kvm": Node("c", 10, 232, 0o660),
    "/dev/net/tun": Node("c", 10, 200),
}
_OF_EVERY_CONTAINER = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
# lxc's common.conf: mknod of anything, the nodes of every container, terminals, FUSE.
_COMMON_RULES = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 1:8 rwm",
    "c 1:9 rwm", "c 136:* rwm", "c 10:229 rwm",
)  # fmt: skip
_RULES = {"lxc.cgroup2.devices.allow": "allow", "lxc.cgroup2.devices.deny": "deny"}
_SYSTEMS = {
    "debian": ("Debian GNU/Linux 13 (trixie)", "13", "trixie"),
    "ubuntu": ("Ubuntu 24.04.3 LTS", "24.04", "noble"),
    "alpine": ("Alpine Linux v3.22", "3.22.1", ""),
}
_SOURCES = {"debian": "debian-13", "ubuntu": "ubuntu-24.04"}
_USERS = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nvideo:x:44:\nrender:x:104:\nwww-data:x:33:\nnogroup:x:65534:\n"


def plugs_devices(host: HostState) -> bool:
    """Whether the host's pve-container puts a new dev[n] into a running container."""
    return version_key(host.machine["pve_container"]) >= version_key("6.0.4")


def host_node(host: HostState, path: str) -> Node:
    """A node of the host, as a container's start finds it.

    Raises:
        ApiError: 500: there is none.
    """
    found = host.rooted(path)
    if not found.exists():
        if path in KERNEL_NODES:
            return KERNEL_NODES[path]
        raise Died(f"Device {path} does not exist")
    node = read_node(found)
    if node is None and (found.is_dir() or found.stat().st_size):
        raise Died(f"{path} is not a device")
    # Nodes whose numbers nobody asks for are empty files in the host's /dev.
    return node or Node("c", 0, 0)


def device_options(host: HostState, values: dict[str, str]) -> dict[str, dict[str, str]]:
    """The dev[n] entries of a configuration, taken apart, by number."""
    keys = sorted((k for k in values if _DEVICE.fullmatch(k)), key=lambda key: int(key[3:]))
    return {key: parse_properties("lxc-dev", values[key]) for key in keys}


# -- a container's start and end -------------------------------------------------------------------------------
class Start:
    """Works out what a container's start gives it.

    Args:
        guest: the container.
        config: what it starts with.
    """

    def __init__(self, guest: Guest, config: GuestConfig) -> None:
        self._host, self._guest = guest.host, guest
        self._config = config
        self._unprivileged = config.values.get("unprivileged") == "1"
        self.nodes: dict[str, Node] = {}
        self.rules: list[str] = list(_COMMON_RULES)
        self.binds: list[tuple[str, str]] = []

    def plan(self) -> None:
        """Find all nodes and rules.

        Raises:
            ApiError: 500: the container can't be started; the text is what its task ends with.
        """
        for path in _OF_EVERY_CONTAINER:
            self.nodes[path] = self._as_seen(KERNEL_NODES[path])
        self.nodes["/dev/ptmx"] = Node("c", 5, 2)
        self.nodes["/dev/console"] = Node("c", 136, 0, 0o600, 0, 5)
        for option in device_options(self._host, self._config.values).values():
            self.add_device(option)
        for key, value in self._config.current.raw:
            if key in _RULES:
                self._take_rule(_RULES[key], value)
            elif key == "lxc.mount.entry":
                self._mount(value)

    def add_device(self, option: dict[str, str]) -> None:
        """One dev[n] entry: a node of its own, and the rule for it; owner and mode are those of the entry.

        Raises:
            ApiError: 500: the host hasn't it.
        """
        path = option["path"]
        node = host_node(self._host, path)
        mode, uid, gid = int(option.get("mode", "0660"), 8), int(option.get("uid", "0")), int(option.get("gid", "0"))
        self.nodes[path] = Node(node.kind, node.major, node.minor, mode, uid, gid)
        self.rules.append(f"{node.kind} {node.numbers} {'r' if option.get('deny-write') == '1' else 'rw'}")

    def _take_rule(self, verb: str, text: str) -> None:
        rule = parse_rule(text)
        if rule is None:
            raise self._failed(f'Failed to setup limits: "{text}" is no device rule')
        if verb == "allow":
            self.rules.append(text)
        elif text == "a":
            self.rules.clear()
        else:
            self.rules = [kept for kept in self.rules if parse_rule(kept) != rule]

    def _mount(self, entry: str) -> None:
        words = [word.replace(r"\040", " ") for word in entry.split()]
        if len(words) < 4:
            raise self._failed(f'Invalid mount entry "{entry}"')
        source, target, options = words[0].rstrip("/"), words[1].rstrip("/"), words[3].split(",")
        if not {"bind", "rbind"} & set(options) or target.startswith("/"):
            # A file system of its own, or an absolute target: that is a path of the host, and nothing is seen inside.
            return
        place = f"/{target}"
        wanted = next((o.removeprefix("create=") for o in options if o.startswith("create=")), None)
        if not self._exists(source) or (wanted is None and place.startswith("/dev/")):
            if "optional" not in options:
                raise self._failed(
                    f'mount_entry: 2437 No such file or directory - Failed to mount "{source}" on '
                    f'"/usr/lib/x86_64-linux-gnu/lxc/rootfs{place}"'
                )
            return
        if not source.startswith("/dev/"):
            self.binds.append((source, place))
            return
        below = self._nodes_below(source)
        for name, node in below.items():
            self.nodes[f"{place}/{name}"] = self._as_seen(node)
        if not below and not self._host.rooted(source).is_dir():
            self.nodes[place] = self._as_seen(host_node(self._host, source))

    def _nodes_below(self, folder: str) -> dict[str, Node]:
        """The nodes in a folder of the host's /dev, by their path below it."""
        base = self._host.rooted(folder)
        found = {path[len(folder) + 1 :]: node for path, node in KERNEL_NODES.items() if path.startswith(f"{folder}/")}
        for path in base.rglob("*") if base.is_dir() else []:
            if not path.is_symlink() and (node := read_node(path)) is not None:
                found[str(path.relative_to(base))] = node
        return found

    def _exists(self, source: str) -> bool:
        known = any(path == source or path.startswith(f"{source}/") for path in KERNEL_NODES)
        return known or self._host.rooted(source).exists()

    def _as_seen(self, node: Node) -> Node:
        """A node of the host inside: an unprivileged container doesn't know its owners."""
        if not self._unprivileged:
            return node
        return Node(node.kind, node.major, node.minor, node.mode, container.NOBODY, container.NOBODY, mapped=False)

    def _failed(self, reason: str) -> Died:
        return Died(f"{reason}\nstartup for container '{self._guest.vmid}' failed")

    def carry_out(self) -> None:
        """Make the container's tree ready."""
        system = system_of(self._guest)
        (system.root / "root").mkdir(parents=True, exist_ok=True)
        name = self._guest.name(self._config)
        system._machine = self._machine(name)
        system.save_machine()
        _first_files(system, name, self._config.values.get("ostype", "unmanaged"), self._guest.nvidia_at_first)
        (system.state / "kernel.json").unlink(missing_ok=True)
        _proc(self._host, system)
        self._dev(system)
        for source, place in self.binds:
            target = system.rooted(place)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(self._host.rooted(source))
        launchers.write(system.state / "bin", host_run.CONTAINER_PROGRAMS, container=True)

    def _machine(self, name: str) -> dict[str, Any]:
        current = self._config.current
        profiles = [value for key, value in current.raw if key == "lxc.apparmor.profile" and value != "generated"]
        return {
            "node": name,
            "pve": self._host.machine["pve"],
            "faults": {},
            "nvidia": None,
            "container": {
                "host": str(self._host.state),
                "id": self._guest.vmid,
                "unprivileged": self._unprivileged,
                "nodes": {path: node._asdict() for path, node in sorted(self.nodes.items())},
                "rules": self.rules,
                "nesting": parse_properties("lxc-features", current.values.get("features", "")).get("nesting") == "1",
                "apparmor": profiles[-1] if profiles else "",
            },
        }

    def _dev(self, system: HostState) -> None:
        dev = system.root / "dev"
        shutil.rmtree(dev, ignore_errors=True)
        for folder in ("pts", "shm"):
            (dev / folder).mkdir(parents=True)
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            (dev / name).symlink_to(f"/proc/self/fd{target}")
        container.materialise(system)


def system_of(guest: Guest) -> HostState:
    """A container's own system."""
    return HostState(guest.folder)


def begin(guest: Guest, config: GuestConfig) -> None:
    """Start what runs in a container.

    Raises:
        ApiError: 500: a device is missing, a mount fails.
    """
    start = Start(guest, config)
    start.plan()
    start.carry_out()


def plug(guest: Guest, config: GuestConfig, values: dict[str, str]) -> None:
    """Put new dev[n] entries into a running container."""
    system = _running(guest)
    start = Start(guest, config)
    for option in device_options(guest.host, values).values():
        start.add_device(option)
    inside = system.machine["container"]
    inside["nodes"] |= {path: node._asdict() for path, node in start.nodes.items()}
    inside["rules"] += start.rules[len(_COMMON_RULES) :]
    system.save_machine()
    container.materialise(system)


def _running(guest: Guest) -> HostState:
    """The system of a running container; one that somebody only marked as running is begun here."""
    system = system_of(guest)
    if not (system.state / "machine.json").exists():
        begin(guest, guest.config())
    return system_of(guest)


def _first_files(system: HostState, name: str, ostype: str, nvidia: str | None) -> None:
    """What an installed container has; what is there already stays."""
    if (system.root / "etc/hostname").exists():
        return
    title, number, codename = _SYSTEMS.get(ostype, ("Linux", "1", ""))
    system.write("/etc/hostname", f"{name}\n")
    system.write(
        "/etc/os-release",
        f'PRETTY_NAME="{title}"\nID={ostype if ostype in _SYSTEMS else "linux"}\nVERSION_ID="{number}"\nVERSION_CODENAME={codename}\n',
    )
    system.write("/etc/passwd", _USERS)
    system.write("/etc/group", _GROUPS)
    for folder in ("tmp", "usr/bin", "usr/local/bin", "usr/sbin", "usr/lib", "var/lib", "run"):
        (system.root / folder).mkdir(parents=True, exist_ok=True)
    if nvidia:  # as NVIDIA's installer puts its userspace there
        install_libraries(system, ["libnvidia-ml.so", "libcuda.so"], nvidia)
        install_program(system, "/usr/bin/nvidia-smi")
    if sources := _SOURCES.get(ostype):
        install_base(system, "container", sources)


def _proc(host: HostState, system: HostState) -> None:
    """/proc and /sys of the host's kernel, which is the container's."""
    proc = system.root / "proc"
    shutil.rmtree(proc, ignore_errors=True)
    proc.mkdir()
    for name in ("cmdline", "cpuinfo", "devices", "driver", "filesystems", "meminfo", "modules", "sys", "version"):
        (proc / name).symlink_to(host.root / "proc" / name)
    if not (system.root / "sys").is_symlink():
        (system.root / "sys").symlink_to(host.root / "sys")


# -- commands --------------------------------------------------------------------------------------------------
def execute(guest: Guest, command: list[str], kept: Mapping[str, str] | None = None) -> int:
    """Run a command in a running container, with this process's standard streams; return its exit status.

    Args:
        kept: what its environment has besides the container's own.
    """
    system = _running(guest)
    container.materialise(system)
    return container.run(system, command, container.Identity(0, frozenset({0})), kept or {})
