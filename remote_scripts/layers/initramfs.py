"""The initramfs part of the binding: a script that gives functions to vfio-pci before any driver is loaded, the modules
it needs, in the initramfs of every installed kernel. Which functions: the kernel command line says (cmdline.py).

Changes /etc/initramfs-tools/scripts/init-top/homelab-vfio, /etc/initramfs-tools/hooks/homelab-vfio,
/etc/modules-load.d/homelab-vfio.conf and /boot/initrd.img-*, which serve each boot entry: without the word of the
command line they do nothing.
"""

from __future__ import annotations

from remote_scripts import installed
from remote_scripts.boot import boot, trial
from remote_scripts.both.needed import Wanted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System, changes, plans

_LAYER, _STEP = "vfio", "initramfs"
_MODULES_TEXT = """\
# Written by homelab, which takes it away again (pulumi destroy).
vfio
vfio_iommu_type1
vfio_pci
"""


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change.

    :raises Failure: as of `apply`, before its first change.
    """
    if _written(system, wanted.needed):
        system.files.plan_file("made", f"the initramfs of {len(boot.kernels(system))} kernel(s)")


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Writes the files, and makes every initramfs anew where they, or one of these, aren't as they are to be.

    :raises Failure: there is no initramfs-tools, no room on /boot, or an initramfs could not be made: then the files
        are as they were.
    """
    return _change(system, wanted.needed)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Gives everything back, whatever `wanted` says."""
    return _change(system, False)


def _change(system: System, needed: bool) -> Changed:
    files = system.files
    files.followed_by = _STEP
    if _written(system, needed):
        _update(system)
    if not needed:
        trial.forget_when_given_back(system)
    return Changed(files.changed)


def _written(system: System, needed: bool) -> bool:
    """Writes the files; whether each initramfs is to be made anew: one lacks the script, or an earlier run was cut
    short.
    """
    files = system.files
    if needed:
        _need_tools(system)
        files.put(_LAYER, boot.INITRAMFS_HOOK, 0o755, f"{installed.TEXTS['initramfs_hook']}\n".encode())
        files.put(_LAYER, boot.INIT_TOP, 0o755, f"{installed.TEXTS['init_top']}\n".encode())
        files.put(_LAYER, boot.MODULES, 0o644, _MODULES_TEXT.encode())
    else:
        for path in (boot.INIT_TOP, boot.INITRAMFS_HOOK, boot.MODULES):
            files.drop(_LAYER, path)
    is_made = files.changed or files.is_pending(_STEP) or (needed and bool(boot.stale_kernels(system)))
    if is_made and needed:
        _need_room(system)
    return is_made


def _need_tools(system: System) -> None:
    if not system.run.has("update-initramfs") or not system.files.exists("/usr/share/initramfs-tools/hook-functions"):
        raise Failure(
            "initramfs-tools, which makes Proxmox VE's initramfs",
            "no update-initramfs with its hook-functions",
            "the binding happens in a script that initramfs-tools includes",
            "install it: apt install initramfs-tools; then run `pulumi up` again",
        )


def _need_room(system: System) -> None:
    """An initramfs is written beside the old one before it takes its place: the largest, plus a tenth, must fit."""
    needed = boot.largest_initramfs(system) * 11 // 10
    free = boot.free_on(system, "/boot")
    if free is None or free < needed:
        raise Failure(
            f"room on /boot for a new initramfs ({needed // 1048576 + 1} MiB)",
            "df doesn't say how much is free" if free is None else f"{free // 1048576} MiB free",
            "update-initramfs would fail half-way and leave kernels without the binding",
            "remove old kernels (`apt autoremove --purge`; `dpkg -l 'proxmox-kernel-*'`), then run `pulumi up` again",
        )


def _update(system: System) -> None:
    system.files.begin_step(_STEP)
    failed = boot.make_initramfs(system)
    if failed is None:
        return
    system.files.undo()
    if boot.make_initramfs(system) is not None:
        system.log.say("note: the initramfs could not be made from the old files either: the next run tries that again")
    raise Failure(
        "the initramfs of every installed kernel rebuilt",
        failed or "no output",
        "without it the GPU would not be bound at boot; this step's files are as they were before (earlier steps stay, "
        "in the stack too)",
        "correct what the message says, try `update-initramfs -u -k all`, then run `pulumi up` again",
    )
