"""Boot commands of a lab host: GRUB's, proxmox-boot-tool, initramfs-tools', mokutil."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import archive
from .grub import mkconfig
from .initramfs import MkinitramfsError, build_image
from .program import Failure, Options, UsageError, logged
from .proxmox_boot import (
    ESP_LIST,
    NEXT_BOOT_PIN,
    PIN,
    each_esp,
    first_line,
    is_uefi,
    kernels_to_boot,
    set_grub_default,
    sync,
    warn,
)
from .state import HostState
from .storage import unmount

UNSHARED = "PVE_EFIBOOT_UNSHARED"


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the boot commands."""
    work = {
        "update-grub": _update_grub,
        "grub-mkconfig": _grub_mkconfig,
        "proxmox-boot-tool": _proxmox_boot_tool,
        "update-initramfs": _update_initramfs,
        "lsinitramfs": _lsinitramfs,
        "mokutil": _mokutil,
        "unshare": _unshare,
    }[name]
    return work(host, name, arguments)


# -- GRUB ------------------------------------------------------------------------------------------------
def _update_grub(host: HostState, name: str, arguments: list[str]) -> int:
    if arguments:
        raise UsageError(f"update-grub takes no arguments here, got {arguments[0]!r}")
    return logged(host, name, arguments, lambda: _generate(host, host.root / "boot/grub/grub.cfg"))


def _grub_mkconfig(host: HostState, name: str, arguments: list[str]) -> int:
    output = Options(arguments, "o:").value("o")
    if output is None:
        raise UsageError("the lab's grub-mkconfig has -o FILE")
    return logged(host, name, arguments, lambda: _generate(host, host.rooted(output)))


def _unshare(host: HostState, name: str, arguments: list[str]) -> int:
    """A command in a mount namespace of its own: what it mounts is gone with it."""
    if arguments[:1] != ["--mount"]:
        raise UsageError("the lab's unshare has --mount alone")
    before = len(host.machine["mounts"])
    status = subprocess.run(arguments[1:], check=False).returncode
    host.reload()
    for mounted in reversed(host.machine["mounts"][before:]):
        unmount(host, mounted["target"])
    return status


def _generate(host: HostState, target: Path) -> int:
    boot = host.root / "boot"
    bound = boot.resolve() if boot.is_symlink() and boot.resolve().is_relative_to(host.esp) else None
    mkconfig(host, target, bound_boot=bound)
    warn(host, "done")
    return 0


# -- proxmox-boot-tool -----------------------------------------------------------------------------------
def _proxmox_boot_tool(host: HostState, name: str, arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "status":
        return _boot_status(host, "--quiet" in rest)
    if verb == "refresh":
        return logged(host, name, arguments, lambda: _refresh(host, rest))
    if verb == "kernel" and rest:
        return _kernel_verb(host, name, arguments, rest)
    if verb == "clean":
        return logged(host, name, arguments, lambda: _clean(host, "--dry-run" in rest))
    raise UsageError(f"the lab's proxmox-boot-tool has status, refresh, clean and kernel, not {' '.join(arguments)!r}")


def _announce(path: str) -> None:
    """The script starts itself again in a mount namespace of its own, once."""
    if not os.environ.get(UNSHARED):
        os.environ[UNSHARED] = "1"
        print(f"Re-executing '{path}' in new private mount namespace..", flush=True)


def _boot_status(host: HostState, quiet: bool) -> int:
    if not quiet:
        _announce("/usr/sbin/proxmox-boot-tool")
    if not host.rooted(ESP_LIST).exists():
        raise Failure("" if quiet else f"E: {ESP_LIST} does not exist.", 2)
    if quiet:
        return 0
    print(f"System currently booted with {'uefi' if is_uefi(host) else 'legacy bios'}", flush=True)
    each_esp(host, _status_of_esp)
    return 0


def _status_of_esp(uuid: str, esp: Path) -> None:
    results = []
    if (esp / "loader/loader.conf").exists():
        versions = sorted(p.name for p in (esp / "EFI/proxmox").iterdir())
        results.append(f"uefi (versions: {', '.join(versions)})")
    if (esp / "grub").is_dir():
        versions = sorted(p.name.removeprefix("vmlinuz-") for p in esp.glob("vmlinuz-*"))
        results.append(f"grub (versions: {', '.join(versions)})")
    print(f"{uuid} is configured with: {', '.join(results)}", flush=True)


def _refresh(host: HostState, rest: list[str]) -> int:
    hook = Options(rest, "", ("hook=",)).value("hook")
    for script in [hook] if hook else ["proxmox-auto-removal", "zz-proxmox-boot"]:
        path = host.rooted(f"/etc/kernel/postinst.d/{script}")
        if not os.access(path, os.X_OK):
            warn(host, f"Hook script '{script}' not found or not executable, skipping.")
            continue
        print(f"Running hook script '{script}'..", flush=True)
        if script == "zz-proxmox-boot":
            sync_esps(host)
    return 0


def sync_esps(host: HostState) -> None:
    """zz-proxmox-boot.

    Raises:
        Failure: as the script ends.
    """
    _announce("/etc/kernel/postinst.d/zz-proxmox-boot")
    sync(host)


def _clean(host: HostState, dry_run: bool) -> int:
    if not host.rooted(ESP_LIST).exists():
        raise Failure(f"E: {ESP_LIST} does not exist.")
    kept = []
    for uuid in host.read(ESP_LIST).split():
        there = (host.esp / uuid).is_dir()
        print(f"Checking whether ESP '{uuid}' exists.. {'Found!' if there else 'Not found!'}")
        if there or dry_run:
            kept.append(uuid)
    print("Sorting and removing duplicate ESPs..")
    host.write(ESP_LIST, "".join(f"{uuid}\n" for uuid in sorted(set(kept))))
    return 0


def _kernel_verb(host: HostState, name: str, arguments: list[str], rest: list[str]) -> int:
    if rest == ["list"]:
        return _kernel_list(host)
    if rest[0] == "pin" and len(rest) == 2:
        return logged(host, name, arguments, lambda: _pin(host, rest[1]))
    raise UsageError(f"kernel {' '.join(rest)}: there are list and pin VERSION")


def _kernel_list(host: HostState) -> int:
    print("Manually selected kernels:\nNone.\n\nAutomatically selected kernels:\n" + "\n".join(kernels_to_boot(host)))
    for title, path in (("Pinned kernel:", PIN), ("Kernel pinned on next-boot:", NEXT_BOOT_PIN)):
        if first_line(host, path):
            print(f"\n{title}\n{first_line(host, path)}")
    return 0


def _pin(host: HostState, kernel: str) -> int:
    if not host.rooted(f"/boot/vmlinuz-{kernel}").exists():
        problem = f"no kernel image found in /boot for '{kernel}', not setting default."
        raise Failure(f"E: {problem}\n\nPossible Proxmox kernel versions are:\n" + "\n".join(kernels_to_boot(host)))
    old = first_line(host, PIN)
    if old and old != kernel:
        print(f"Overriding previously pinned version '{old}' with '{kernel}'")
    host.write(PIN, kernel + "\n")
    if host.rooted(ESP_LIST).exists():
        print(f"Set kernel '{kernel}' in {PIN}. Use the 'refresh' command to update the ESPs.")
        return 0
    wanted = first_line(host, NEXT_BOOT_PIN) or kernel
    print(f"Setting '{wanted}' as grub default entry and running update-grub.", flush=True)
    set_grub_default(host, wanted)
    return _generate(host, host.root / "boot/grub/grub.cfg")


# -- initramfs-tools -------------------------------------------------------------------------------------
def _update_initramfs(host: HostState, name: str, arguments: list[str]) -> int:
    options = Options(arguments, "k:cudbvth", ())
    modes = [m for m, _ in options.given if m in "cud"]
    if options.rest or len(set(modes)) != 1:
        raise Failure(
            "You must specify at least one of -c, -u, or -d.\n\nUsage: update-initramfs {-c|-d|-u} [-k version] [-v]"
        )
    return logged(host, name, arguments, lambda: _initramfs_job(host, modes[0], options.value("k")))


def _versions(host: HostState, mode: str, wanted: str | None) -> list[str]:
    # Those that have an image already, the newest first: as of initramfs-tools 0.142, get_sorted_versions().
    known = [k for k in reversed(host.kernels()) if host.rooted(f"/boot/initrd.img-{k}").exists()]
    if wanted == "all":
        return host.kernels()[::-1] if mode == "c" else known
    return known[:1] if wanted is None else [wanted]


def _initramfs_job(host: HostState, mode: str, wanted: str | None) -> int:
    if mode in "cd" and wanted is None:
        raise Failure(
            "update-initramfs: Create mode needs a version argument"
            if mode == "c"
            else "update-initramfs: Delete mode needs a version argument"
        )
    for version in _versions(host, mode, wanted):
        image = host.root / f"boot/initrd.img-{version}"
        state = host.root / "var/lib/initramfs-tools" / version
        if mode == "d":
            print(f"update-initramfs: Deleting /boot/initrd.img-{version}", flush=True)
            image.unlink(missing_ok=True)
            state.unlink(missing_ok=True)
            continue
        if not (host.root / "usr/lib/modules" / version).is_dir():
            warn(
                host,
                f"WARNING: missing /lib/modules/{version}\nEnsure all necessary drivers are built into the linux image!",
            )
        _build(host, version, image)
        state.write_text("", encoding="utf-8")
        _post_update(host)
    return 0


def _build(host: HostState, version: str, image: Path) -> None:
    print(f"update-initramfs: Generating /boot/initrd.img-{version}", flush=True)
    try:
        data = build_image(host, version)
    except MkinitramfsError as error:
        raise Failure(f"{error}\nupdate-initramfs: failed for /boot/initrd.img-{version} with 1.") from error
    new = image.with_name(image.name + ".new")
    new.write_bytes(data)
    new.chmod(0o600 if not image.exists() else image.stat().st_mode & 0o777)
    new.replace(image)


def _post_update(host: HostState) -> None:
    """/etc/initramfs/post-update.d/proxmox-boot-sync: the EFI system partitions get the new image."""
    hook = host.root / "etc/initramfs/post-update.d/proxmox-boot-sync"
    if not os.access(hook, os.X_OK):
        return
    print("Running hook script 'zz-proxmox-boot'..", flush=True)
    saved = os.environ.get(UNSHARED)
    sync_esps(host)
    if saved is None:
        os.environ.pop(UNSHARED, None)  # each run of the hook is a process of its own


def _image(host: HostState, path: str) -> dict[str, archive.Member]:
    file = host.rooted(path)
    try:
        return archive.unpack(file.read_bytes())
    except FileNotFoundError as error:
        raise Failure(f"W: '{path}': No such file") from error
    except archive.ArchiveError as error:
        raise Failure(f"unmkinitramfs: {path}: {error}") from error


def _lsinitramfs(host: HostState, name: str, arguments: list[str]) -> int:
    options = Options(arguments, "l", ())
    if not options.rest:
        raise Failure("Usage: lsinitramfs [-l] <initramfs file>")
    for path in options.rest:
        print(".")
        for member in sorted(_image(host, path)):
            print(member)
    return 0


# -- firmware --------------------------------------------------------------------------------------------
def _mokutil(host: HostState, name: str, arguments: list[str]) -> int:
    if not is_uefi(host):
        raise Failure("EFI variables are not supported on this system", 255)
    if arguments == ["--sb-state"]:
        print(f"SecureBoot {'enabled' if host.machine['hardware']['firmware']['secure_boot'] else 'disabled'}")
        return 0
    options = Options(arguments, "t:", ("test-key=",))
    enrolled, key = bool(host.machine.get("mok_enrolled")), options.value("t", "test-key")
    if key is not None:
        if not host.rooted(key).is_file():
            raise Failure(f"Failed to get file status, {key}")
        # As in its source: 0 for a key that isn't enrolled, 1 for one that is.
        print(f"{key} is {'already enrolled' if enrolled else 'not enrolled'}")
        return int(enrolled)
    raise UsageError("the lab's mokutil has --sb-state and --test-key; keys are enrolled at the console")
