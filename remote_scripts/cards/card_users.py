"""The containers that use a card, the VMs that name it, and what stands against giving it to a VM: asked before
anything is changed. What can't be read stands against it.
"""

from __future__ import annotations

from collections.abc import Iterable

from remote_scripts.boot import trial
from remote_scripts.cards.handed_over import SharedCard
from remote_scripts.cluster import ha
from remote_scripts.notes.handover import RefusedError
from remote_scripts.notes.record import Record
from remote_scripts.nvidia import nvidia
from remote_scripts.pve import guest_conf, guests, pmxcfs
from remote_scripts.pve.container_conf import ContainerConf, parse, paths_of
from remote_scripts.pve.pmxcfs import PVE_LXC
from remote_scripts.pve.properties import overlap
from remote_scripts.pve.properties import parse as properties_of
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import STEPS
from remote_scripts.tools.pci import DEVICES
from remote_scripts.tools.processes import ScanError, processes_using
from remote_scripts.tools.system import System

#: From here on nvidia-drm with modeset lets go of one card of several (NVIDIA/open-gpu-kernel-modules).
_DRM_DETACHES = (580, 105, 8)


class WorkInsideError(RefusedError):
    """A container isn't shut down while a step of homelab's works inside it, such as dpkg."""


# -- containers ----------------------------------------------------------------------------------------------------


def container(system: System, ctid: str) -> ContainerConf | None:
    """A container's configuration; None: it isn't of this node.

    :raises RefusedError: it can't be read.
    """
    try:
        content = system.files.need(f"{PVE_LXC}/{ctid}.conf")
    except Failure as failure:
        raise RefusedError(f"the configuration of container {ctid} can't be read ({failure.found})") from failure
    return None if content is None else parse(content.decode("utf-8", "replace"))


def startup(conf: ContainerConf, key: str, otherwise: int) -> int:
    """Of a container's option `startup`: `order`, or `down` in seconds."""
    value = properties_of("startup", conf.options.get("startup", "")).get(key, "")
    return int(value) if value.isdecimal() else otherwise


def running_with(card: SharedCard) -> dict[str, ContainerConf]:
    """The containers of this node that run and have the card by their configuration, in the order in which they are
    shut down: that of the host's start, backwards. All of /dev/dri is given for the sake of another card.

    :raises RefusedError: one of them can't be shut down, or that isn't known.
    """
    system = card.system
    paths = [f"/dev/nvidia{minor}"] if (minor := card.minor) else []
    named = paths_of([f"/dev/dri/{name}" for name in card.drm_names], card.gpu)
    try:
        ctids = pmxcfs.guest_ids(system, PVE_LXC)
    except Failure as failure:
        raise RefusedError(f"the containers of this host can't be listed ({failure.found})") from failure
    users: dict[str, ContainerConf] = {}
    for ctid in ctids:
        conf = container(system, ctid)
        if conf is None or not conf.names_card(paths, named):
            continue
        need_no_work_inside(system, ctid)
        power = guests.power_of(system, "pct", ctid)
        if power == "unknown":
            raise RefusedError(f"it isn't known whether container {ctid} runs (`pct status {ctid}`)")
        if power == "on":
            need_no_other_hand(system, ctid, conf)
            users[ctid] = conf
    return dict(sorted(users.items(), key=lambda user: (-startup(user[1], "order", 99999), -int(user[0]))))


def need_no_work_inside(system: System, ctid: str) -> None:
    """:raises WorkInsideError: a step of homelab's works inside a container, which a shutdown would cut. It may be left
    of a run that was cut off.
    """
    lock = f"/run/homelab/inside-{ctid}"
    if system.work.is_locked(lock):
        run, steps = system.files.line(lock), system.files.text(f"/{STEPS}")
        last = steps.rstrip("\n").rpartition("\n")[2].strip()
        raise WorkInsideError(f"homelab still works in container {ctid}: a step of {run or 'this host'} ({last})")


def need_no_other_hand(system: System, ctid: str, conf: ContainerConf) -> None:
    """:raises RefusedError: a container is locked: Proxmox VE would refuse its shutdown, with a failed task; or HA
    would start it again; or a step of homelab's works inside it.
    """
    need_no_work_inside(system, ctid)
    if locked := conf.options.get("lock"):
        raise RefusedError(f"container {ctid}, which is to go off for it, is locked: {locked}")
    if ha.may_manage(system, f"ct:{ctid}"):
        raise RefusedError(f"container {ctid}, which is to go off for it, is under HA, which would start it again")


# -- VMs -----------------------------------------------------------------------------------------------------------


def names_card(card: SharedCard, vmid: str) -> bool:
    """Whether a hostpci option of the VM gives the card. A configuration that can't be read may."""
    try:
        given = guest_conf.places_of_vm(card.system, vmid)
    except Failure:
        return True
    slot = card.gpu.rpartition(".")[0]
    return any(overlap(";".join(places), slot) for places in given)


def why_vm_keeps(card: SharedCard, record: Record) -> str | None:
    """Why the VM that has a card keeps it, in words; empty if there is nothing to say, as when it runs or its state
    isn't known. None: it doesn't keep the card. It has ended or never began, or it runs without the card by now, or
    another VM got its id. A start holds the VM's lock from before the hook to its end.
    """
    system = card.system
    try:
        # Before the question: a start that has come to its end meanwhile is seen by that.
        if system.work.is_locked(f"/run/lock/qemu-server/lock-{record.vm}.conf"):
            return ""
        power = guests.power_of(system, "qm", record.vm, 0)
        if power == "gone" or (power == "on" and not names_card(card, record.vm)):
            return None
        if power != "off":
            return ""
        lock = guest_conf.option_of_vm(system, record.vm, "lock")
    except (OSError, Failure):
        return ""
    if lock != "backup":
        return None
    return (  # of a VM that ran: the backup starts it again
        f"VM {record.vm} is off and locked (lock: backup): a backup of it starts it again, so it keeps the card. "
        f"If no backup of it is at work, that lock was left behind: `qm unlock {record.vm}` gives the card back"
    )


def need_possible(card: SharedCard) -> dict[str, ContainerConf]:
    """What stands against giving the card to a VM now; returns the containers that would be shut down.

    :raises RefusedError: something does.
    """
    _need_card(card)
    _need_confirmed_boot(card.system)
    driver = card.driver
    if driver != "nvidia":
        raise RefusedError(f"NVIDIA's driver doesn't have it, but {driver or 'none'}")
    for address in card.functions:
        _need_free_function(card.system, address)
    _need_drm_that_lets_go(card)
    _need_no_console(card)
    return running_with(card)


def _need_confirmed_boot(system: System) -> None:
    """A boot that isn't confirmed yet is verified with the card."""
    try:
        state = trial.state(system)
    except Failure as error:
        raise RefusedError(f"whether this boot of the host is confirmed can't be read ({error.found})") from error
    if state in ("running", "ending"):
        raise RefusedError("this boot of the host isn't confirmed yet, which pulumi up does")


def _need_card(card: SharedCard) -> None:
    if not card.has_expected_ids():
        raise RefusedError(
            f"another device than it is at {' '.join(card.functions)} now; `pulumi up --refresh` finds it again"
        )
    if not card.is_alive():
        raise RefusedError("it doesn't answer: its configuration space can't be read")


def _attribute(system: System, path: str, *, absent: str) -> str:
    """The first line of an attribute; empty: it can't be read.

    :param absent: what it has where it isn't there.
    """
    return system.files.line(path) if system.files.exists(path) else absent


def _need_free_function(system: System, address: str) -> None:
    for name, what in (("sriov_numvfs", "virtual functions (SR-IOV)"), ("boot_vga", "this host's screen")):
        if (value := _attribute(system, f"{DEVICES}/{address}/{name}", absent="0")) != "0":
            raise RefusedError(f"{address} has {what}: {name} is {value or 'not to be read'}")


def _need_drm_that_lets_go(card: SharedCard) -> None:
    """nvidia-drm opens the card itself with modeset, unless it can be unloaded."""
    modeset = _attribute(card.system, "/sys/module/nvidia_drm/parameters/modeset", absent="N")
    if modeset not in ("Y", "") or card.is_only():
        return
    try:
        version = nvidia.loaded(card.system).version
    except OSError:
        version = ""
    if not version or tuple(map(int, version.split("."))) < _DRM_DETACHES:
        raise RefusedError(
            f"NVIDIA's driver {version} with nvidia_drm modeset=1 never lets go of one card of several: update it to "
            "580.105.08 or later, or set modeset=0"
        )


def _need_no_console(card: SharedCard) -> None:
    """Does the host's text console draw on it?"""
    system = card.system
    if not any(system.files.exists(f"{DEVICES}/{function}/graphics/fb0") for function in card.functions):
        return
    for name in system.files.names("/sys/class/vtconsole"):
        folder = f"/sys/class/vtconsole/{name}"
        kind = _attribute(system, f"{folder}/name", absent="none")
        if (not kind or "frame buffer" in kind) and system.files.line(f"{folder}/bind") in ("", "1"):
            raise RefusedError("the host's console draws on it (fb0)")


# -- processes -----------------------------------------------------------------------------------------------------


def need_unused(card: SharedCard, users: Iterable[str] | None = None) -> None:
    """:param users: containers that are still to be shut down: they may have it. So may NVIDIA's persistence daemon,
        which lets go when its mode goes off. None: all that a handover ends has ended.
    :raises RefusedError: another process has the card open, or that isn't known.
    """
    try:
        processes = processes_using(card.system, "/proc/devices", card.node_numbers(), card.mapped_as())
    except (ScanError, OSError, ValueError) as error:
        raise RefusedError(f"it isn't known who has it: {error}") from error
    if users is not None:
        ends = (" of nvidia-persistenced.service)", *(f" of container {ctid})" for ctid in users))
        processes = [process for process in processes if not process.endswith(ends)]
    if processes:
        raise RefusedError(f"in use by {', '.join(processes)}")
