"""NVIDIA's modules: built for every kernel that must have them, in no other driver's way, loaded."""

from __future__ import annotations

import re
from typing import Literal

from remote_scripts.apt.apt import Apt
from remote_scripts.boot import boot
from remote_scripts.both.symptoms import Target
from remote_scripts.nvidia import driver, nvidia
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools import kernel
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: The step that must follow where nouveau may be loaded from an initramfs, before /etc is seen.
INITRAMFS = "nvidia-initramfs"
BLACKLIST = "/etc/modprobe.d/homelab-nvidia.conf"
_BLACKLISTED = b"""# NVIDIA's driver has the cards.
blacklist nouveau
blacklist nova_core
blacklist nova_drm
options nouveau modeset=0
"""
_OF_THE_DRIVER = re.compile("NVRM|nvidia|signature")


def build(apt: Apt, wanted: Module, kernel: str) -> None:
    """The modules for a kernel, looked at: what DKMS says, and whether the file is there.

    :raises Failure: they can't be built.
    """
    system = apt.system
    if driver.module(system, kernel) == wanted:
        return
    system.log.say(f"building the modules of {wanted.version} for {kernel}")
    status = _dkms_status(system)
    name = re.search(rf"^(nvidia[a-z0-9-]*)(/|, ){re.escape(wanted.version)}[:,]", status, re.MULTILINE)
    module = name[1] if name else "nvidia"  # nvidia, nvidia-open, nvidia-current, as the packages call it
    done = apt.do("dkms", "install", "-m", module, "-v", wanted.version, "-k", kernel)
    if done.status != 0:
        apt.explain(
            done,
            f"the modules of {wanted.version}, built for {kernel}",
            "that kernel would come up without the driver",
        )
    built = driver.module(system, kernel)
    if built != wanted:
        status = "\n".join(line for line in _dkms_status(system).split("\n") if "nvidia" in line.lower())
        raise Failure(
            f"the modules of {wanted.version} ({wanted.flavour}), installed for {kernel}",
            f"modinfo: {built.version} {built.flavour}; dkms status: {status or 'nothing'}",
            "that kernel would come up without the driver",
            f"`modinfo -k {kernel} -n nvidia` names the file that it loads: remove the package that put it there",
        )
    system.files.changed = True


def load(apt: Apt, wanted: Module) -> tuple[Literal["yes", "no"], str]:
    """Loads them at once where that can be done.

    :returns: whether a reboot is needed, yes or no, and why.
    :raises Failure: the kernel doesn't take the module; with what the driver has said of the card.
    """
    system = apt.system
    loaded = nvidia.loaded(system)
    if loaded != wanted and loaded.version:
        installed = f"{wanted.version} ({wanted.flavour}) is installed"
        return "yes", f"{loaded.version} ({loaded.flavour}) is loaded, {installed}"
    why = f"{wanted.version} is loaded"
    if loaded != wanted:
        if holder := driver.holder(system):
            return "yes", f"{holder} has a card, and gives it up at a boot"
        before = {*kernel.ring(system)}  # each line with its time
        done = apt.do("modprobe", "nvidia", seconds=120)
        if done.status != 0:
            messages = [line for line in kernel.ring(system) if line not in before and _OF_THE_DRIVER.search(line)]
            apt.explain(
                "\n".join([done.said_text.rstrip("\n"), *messages]),
                f"the module nvidia of {wanted.version}, loaded",
                "nothing can use the card without it",
                "look at `dmesg | grep NVRM`; is there a card of NVIDIA's, free of other drivers (`lspci -nnk`)?",
            )
        why = f"{wanted.version} was loaded: nothing else had the card"
    system.run.do("modprobe", "nvidia-uvm", seconds=120)  # the verification says whether programs can open it
    return "no", why


def blacklist(apt: Apt, target: Target) -> None:
    """nouveau is never loaded again; the driver's packages bring that of their own.

    :raises Failure: an initramfs can't be made.
    """
    files = apt.system.files
    files.followed_by = INITRAMFS
    files.put(apt.layer, BLACKLIST, 0o644, _BLACKLISTED)
    files.finish()
    files.followed_by = ""
    renew_initramfs(apt, target)


def drop_blacklist(apt: Apt) -> None:
    """nouveau may be loaded again, once the initramfs is renewed."""
    files = apt.system.files
    if files.has_put(apt.layer, BLACKLIST):
        files.set_pending(INITRAMFS)
        files.drop(apt.layer, BLACKLIST)
        files.finish()


def renew_initramfs(apt: Apt, target: str) -> None:
    """Makes the initramfs anew, where that is still to be done.

    :raises Failure: it can't be made.
    """
    system = apt.system
    if not system.files.is_pending(INITRAMFS):
        return
    if system.run.has("update-initramfs"):
        system.log.say("rebuilding the initramfs, with nouveau blacklisted")
        all_of_them = ("-k", "all") if target == "host" else ()
        before = boot.initramfs(system)
        done = apt.do("update-initramfs", "-u", *all_of_them)
        left = boot.not_made(system, before)
        # A VM's newest kernel alone gets a new one.
        if done.status != 0 or (left and (target == "host" or boot.initramfs(system) == before)):
            apt.explain(
                done if done.status else f"{left}\n{done.text}",
                "an initramfs with nouveau blacklisted",
                "nouveau would take the card at the next boot",
            )
    system.files.done_with(INITRAMFS)


def _dkms_status(system: System) -> str:
    return system.run.ask("dkms", "status").text
