"""The containers that use a card, the VMs that name it, and what stands against giving it to a VM: asked before
anything is changed. What can't be read stands against it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from remote_scripts.shared import guest_conf, guests, ha, nvidia, pmxcfs, shared_card, vm_conf
from remote_scripts.shared.card import Card
from remote_scripts.shared.conf_files import links_of, need, texts_of
from remote_scripts.shared.container_conf import ContainerConf, addresses, parse, paths_of, whole
from remote_scripts.shared.handover import Record, RefusedError
from remote_scripts.shared.kernel import boot_id
from remote_scripts.shared.pci import DEVICES, driver_of
from remote_scripts.shared.pmxcfs import PVE_LXC, content_of
from remote_scripts.shared.processes import ScanError, processes_using
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_RESERVATIONS = "/run/qemu-server/pci-id-reservations"
_ARMED = "/var/lib/homelab/armed"
_SMI_SECONDS = 30.0
#: Between the two halves of `qm reboot`.
REBOOT_SECONDS = 120
#: From here on nvidia-drm with modeset lets go of one card of several (NVIDIA/open-gpu-kernel-modules).
_DRM_DETACHES = (580, 105, 8)


# -- containers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """A container of this node. `mac_addresses`: of its network cards; `links`: by which it names device nodes ->
    these.
    """

    ctid: str
    conf: ContainerConf
    mac_addresses: str
    links: dict[str, str] = field(default_factory=dict)

    def gives(self, node: str) -> bool:
        """Whether its configuration gives it this node of the host, by this name."""
        return any(entry.takes(node) for entry in self.conf.entries)

    def has(self, minor: str, drm: Iterable[str], address: str) -> bool:
        """Whether it gives one of a card's nodes.

        :param address: of the card's function, by which links of udev's are named.
        """
        nodes = [*([f"/dev/nvidia{minor}"] if minor else []), *(f"/dev/dri/{name}" for name in drm)]
        conf = self.conf.following(self.links)
        return any(conf.entry_taking(paths_of(node, address)) for node in nodes)

    def startup(self, key: str) -> int | None:
        """Of its option `startup`: `order`, or `down` in seconds."""
        name = r"(?:order=)?" if key == "order" else f"{key}="
        match = re.search(rf",{name}(\d+)(?:,|$)", f",{self.conf.options.get('startup', '')}")
        return int(match[1]) if match else None


def container(system: System, ctid: str) -> Container | None:
    """A container; None: it isn't of this node.

    :raises RefusedError: its configuration can't be read.
    """
    try:
        content = content_of(system, f"{PVE_LXC}/{ctid}.conf")
        if content is None:
            return None
        text = content.replace(b"\0", b"").decode("utf-8", "surrogateescape")
        conf = parse(whole(text, lambda path: texts_of(system, path), hooks=False))
        return Container(ctid, conf, addresses(text), links_of(system, conf, need))
    except Failure as failure:
        raise RefusedError(f"the configuration of container {ctid} can't be read ({failure.found})") from failure


def containers(system: System) -> Iterator[Container]:
    """The containers of this node.

    :raises RefusedError: they can't be listed, or one's configuration can't be read.
    """
    try:
        names = pmxcfs.names(system, PVE_LXC)
    except Failure as failure:
        raise RefusedError(f"the containers of this host can't be listed ({failure.found})") from failure
    for name in names:
        if (match := re.fullmatch(r"([1-9]\d*)\.conf", name)) and (user := container(system, match[1])):
            yield user


def power_of(system: System, ctid: str) -> guests.Power:
    """Whether a container runs."""
    return guests.power_of(system, "pct", ctid)


def running_with(system: System, card: Card) -> list[Container]:
    """The containers that run and have the card by their configuration, in the order in which they are shut down: that
    of the host's start, backwards.

    :raises RefusedError: one of them can't be shut down, or that isn't known.
    """
    minor, drm = shared_card.minor_of(system, card), shared_card.drm_names(system, card)
    to_shut_down = []
    for user in containers(system):
        if not user.has(minor, drm, card.gpu):
            continue
        power = power_of(system, user.ctid)
        if power == "unknown":
            raise RefusedError(f"it isn't known whether container {user.ctid} runs (`pct status {user.ctid}`)")
        if power != "on":
            continue
        if locked := user.conf.options.get("lock"):
            raise RefusedError(f"container {user.ctid}, which uses the card, is locked: {locked}")
        if ha.may_manage(system, f"ct:{user.ctid}"):
            raise RefusedError(f"container {user.ctid}, which uses the card, is under HA, which would start it again")
        to_shut_down.append(user)
    return sorted(to_shut_down, key=_shutdown_rank)


def _shutdown_rank(user: Container) -> tuple[int, int]:
    order = user.startup("order")
    return -(99999 if order is None else order), -int(user.ctid)


# -- VMs -----------------------------------------------------------------------------------------------------------


def names_card(system: System, card: Card, vmid: str) -> bool:
    """Whether a hostpci option of the VM gives the card, by its address or by a mapping, of which the lines of this
    node count. A mapping that isn't known, or a configuration that can't be read, may.
    """
    slot = card.gpu.rpartition(".")[0]
    try:
        lines = guest_conf.lines_of_vm(system, vmid)
    except OSError:
        return True
    for line in lines:
        match = re.match(r"hostpci\d+:\s*(.*)$", line)
        if not match:
            continue
        words = match[1].strip().split(",")
        mapping = next((word.partition("=")[2] for word in words if word.startswith("mapping=")), "")
        if mapping:
            paths = _mapped(system, mapping)
            if paths is None or any(slot in _slots(path) for path in paths):
                return True
        elif any(slot in _slots(word.removeprefix("host=")) for word in words):
            return True
    return False


def _slots(path: str) -> list[str]:
    """The slots of an address, or of several."""
    slots = (part.strip().lower().partition(".")[0] for part in path.split(";"))
    return [slot if slot.count(":") == 2 else f"0000:{slot}" for slot in slots]


def _mapped(system: System, name: str) -> list[str] | None:
    """What a mapping stands for on this node; None: it isn't known."""
    try:
        content = content_of(system, guest_conf.MAPPINGS) or b""
    except Failure:
        return None
    return vm_conf.mapped(content.decode("utf-8", "replace"), name, pmxcfs.this_node(system).name)


def why_vm_keeps(system: System, card: Card, record: Record) -> str:
    """Why the VM that has a card has not ended, and keeps it; empty: it has, or it has not begun; or it runs by now
    without the card, or another one does that got its id. A start holds the VM's lock from before the hook to its end.
    """
    try:
        # Before the question: a start that has come to its end meanwhile is seen by that.
        if system.work.is_locked(f"/run/lock/qemu-server/lock-{record.vm}.conf"):
            return "its start or stop is at work"
        power = guests.power_of(system, "qm", record.vm, 0)
        if power == "unknown":
            return f"it isn't known whether VM {record.vm} has ended (`qm status {record.vm}`)"
        if power == "gone":
            return ""
        if power == "on":
            return "it runs" if names_card(system, card, record.vm) else ""
        lock = guest_conf.option_of_vm(system, record.vm, "lock")
    except OSError as error:
        return f"it isn't known whether it has ended: {error.strerror}"
    if lock == "backup":  # of a VM that ran: the backup starts it again
        return (
            f"VM {record.vm} is off and locked (lock: backup): a backup of it starts it again, so it keeps the card. "
            f"If no backup of it is at work, that lock was left behind: `qm unlock {record.vm}` gives the card back"
        )
    try:
        request = system.files.at(f"/run/qemu-server/{record.vm}.reboot").stat()
    except OSError:
        return ""
    return "" if abs(time.time() - request.st_mtime) > REBOOT_SECONDS else "it restarts"


def backup_refusal(vmid: str) -> str:
    """A backup of a VM that is off starts it."""
    return (
        f"a backup of VM {vmid}, which was off, would start it: the card stays with the containers. Back the VM up "
        f"while it runs. If no backup is at work, its lock was left behind: `qm unlock {vmid}`"
    )


def need_possible(system: System, card: Card, vmid: str) -> list[Container]:
    """What stands against giving the card to a VM now; returns the containers that would be shut down.

    :raises RefusedError: something does.
    """
    _need_card(system, card)
    _need_confirmed_boot(system)
    try:
        lock = guest_conf.option_of_vm(system, vmid, "lock")
    except OSError as error:
        raise RefusedError(f"the configuration of VM {vmid} can't be read ({error.strerror})") from error
    if lock == "backup":
        raise RefusedError(backup_refusal(vmid))
    driver = driver_of(system, card.gpu)
    if driver != "nvidia":
        raise RefusedError(f"NVIDIA's driver doesn't have it, but {driver or 'none'}")
    for address in card.functions:
        _need_free_function(system, address)
    _need_undivided(system, card)
    _need_unreserved(system, card, vmid)
    _need_drm_that_lets_go(system, card)
    _need_no_console(system, card)
    return running_with(system, card)


def _need_confirmed_boot(system: System) -> None:
    """A boot that isn't confirmed yet is verified with the card."""
    path = system.files.at(_ARMED)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise RefusedError(
            f"whether this boot of the host is confirmed can't be read ({_ARMED}: {error.strerror})"
        ) from error
    if [line[5:] for line in text.splitlines() if line.startswith("boot ")] != [boot_id(system)]:
        raise RefusedError("this boot of the host isn't confirmed yet, which pulumi up does")


def _need_card(system: System, card: Card) -> None:
    if not shared_card.has_expected_ids(system, card):
        raise RefusedError(
            f"another device than it is at {' '.join(card.functions)} now; `pulumi up --refresh` finds it again"
        )
    if not shared_card.is_alive(system, card):
        raise RefusedError("it doesn't answer: its configuration space can't be read")


def _attribute(system: System, path: str) -> str | None:
    """The first line of an attribute; empty: it can't be read; None: it isn't there."""
    return system.files.line(path) if system.files.exists(path) else None


def _need_free_function(system: System, address: str) -> None:
    folder = f"{DEVICES}/{address}"
    virtual = _attribute(system, f"{folder}/sriov_numvfs")
    if virtual == "":
        raise RefusedError(f"whether {address} has virtual functions can't be read (sriov_numvfs)")
    if virtual is not None and re.search("[1-9]", virtual):
        raise RefusedError(f"{address} has virtual functions (SR-IOV)")
    screen = _attribute(system, f"{folder}/boot_vga")
    if screen == "1":
        raise RefusedError("it is this host's screen (boot_vga)")
    if screen == "":
        raise RefusedError(f"whether it is this host's screen can't be read (boot_vga of {address})")


def _need_undivided(system: System, card: Card) -> None:
    words = ("-i", card.gpu, "--query-gpu=mig.mode.current", "--format=csv,noheader")
    done = system.run.ask("nvidia-smi", *words, seconds=_SMI_SECONDS)
    if done.status != 0:
        output = system.log.clean(done.output + done.error).strip()
        raise RefusedError(f"nvidia-smi doesn't answer for it: {output or 'no text'}")
    if "Enabled" in done.text:
        raise RefusedError("MIG is on: it is divided")


def _need_unreserved(system: System, card: Card, vmid: str) -> None:
    """Has another VM that lives reserved it (PVE::QemuServer::PCI)?"""
    try:
        content = system.files.need(_RESERVATIONS) or b""
    except OSError as error:
        raise RefusedError(f"which VM has it can't be read ({_RESERVATIONS})") from error
    for line in content.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in card.functions or words[1] == vmid:
            continue
        kind, _, value = words[2].partition(":") if len(words) > 2 else ("", "", "")
        if kind == "pid" and not system.files.exists(f"/proc/{value}"):
            continue
        if kind == "time" and value.isdecimal() and int(value) <= time.time():
            continue
        raise RefusedError(f"VM {words[1]} has it, or is starting with it")


def _need_drm_that_lets_go(system: System, card: Card) -> None:
    """nvidia-drm opens the card itself with modeset, unless it can be unloaded."""
    modeset = _attribute(system, "/sys/module/nvidia_drm/parameters/modeset")
    if modeset not in ("Y", "") or shared_card.is_only(system, card):
        return
    try:
        version = nvidia.version(system)
    except OSError:
        version = ""
    if not version or tuple(map(int, version.split("."))) < _DRM_DETACHES:
        raise RefusedError(
            f"NVIDIA's driver {version} with nvidia_drm modeset=1 never lets go of one card of several: update it to "
            "580.105.08 or later, or set modeset=0"
        )


def _need_no_console(system: System, card: Card) -> None:
    """Does the host's text console draw on it?"""
    if not any(system.files.exists(f"{DEVICES}/{function}/graphics/fb0") for function in card.functions):
        return
    for name in system.files.names("/sys/class/vtconsole"):
        folder = f"/sys/class/vtconsole/{name}"
        kind = _attribute(system, f"{folder}/name")
        draws = kind is not None and (kind == "" or "frame buffer" in kind)
        if draws and system.files.line(f"{folder}/bind") in ("", "1"):
            raise RefusedError("the host's console draws on it (fb0)")


# -- processes -----------------------------------------------------------------------------------------------------


def processes_with(system: System, card: Card) -> list[str]:
    """The processes that have the card open, in words.

    :raises RefusedError: it can't be told.
    """
    try:
        node = f"/dev/nvidia{shared_card.minor_of(system, card)}"
        numbers = shared_card.node_numbers(system, card)
        return processes_using(system, node, numbers, shared_card.mapped_as(system, card))
    except (ScanError, OSError, ValueError) as error:
        raise RefusedError(f"it isn't known who has it: {error}") from error


def need_unused(system: System, card: Card) -> None:
    """:raises RefusedError: a process has the card open, or that isn't known."""
    _need_none(processes_with(system, card))


def need_sound_unused(system: System, card: Card) -> None:
    """The same of a card whose driver is gone: its sound alone can be open.

    :raises RefusedError: a process has its sound open, or that isn't known.
    """
    control, numbers = shared_card.sound_numbers(system, card)
    if not control:
        return
    try:
        _need_none(processes_using(system, control, numbers, shared_card.mapped_as(system, card)))
    except ScanError as error:
        raise RefusedError(f"it isn't known who has its sound open: {error}") from error


def _need_none(processes: Iterable[str]) -> None:
    if names := ", ".join(processes):
        raise RefusedError(f"in use by {names}")
