"""Nothing is armed and no restart is ordered while what starts next by default isn't whole: boot/loaders."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from remote_scripts.boot.loaders.found import GRUB, LOADERS, need_default, other_kernel
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.reboot import Wanted as Reboot
from tests.agent import api_kit, boot_kit, reading_kit
from tests.agent.boot_kit import EACH_LOADER, ESPS, KERNELS, MENU, lasting
from tests.agent.kit import Host, Refused

NEWEST, OLDER = KERNELS
IMAGE, INITRAMFS = f"vmlinuz-{NEWEST}", f"initrd.img-{NEWEST}"


@pytest.fixture(autouse=True)
def stocked(host: Host, stocked_boot: None) -> None:
    api_kit.runs(host, {}, {})


def arm(host: Host, verb: Literal["plan", "apply"] = "apply") -> Any:
    return host.ask(verb, "cmdline", Cmdline(name="iommu", words="iommu=pt", rollback_after=90))


def restart(host: Host) -> Any:
    wanted = Boot(words=("quiet", "iommu=pt"))
    return host.ask("apply", "reboot", Reboot(policy="auto", boot=wanted, rollback_after=90, awaited=900))


def place(loader: str, name: str) -> str:
    return f"/boot/{name}" if loader == "grub" else f"/esp/{ESPS[0]}/{name}"


@EACH_LOADER
@pytest.mark.parametrize("name", [IMAGE, INITRAMFS])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_default_entry_whose_file_is_missing_is_neither_tried_nor_started(
    host: Host, loader: str, name: str, how: str
) -> None:
    file = host.root / place(loader, name)[1:]
    file.write_bytes(b"") if how == "empty" else file.unlink()
    host.programs["systemd-run"] = lambda *_: pytest.fail("it restarts")
    before, makes = lasting(host), "update-grub" if loader == "grub" else "proxmox-boot-tool refresh"
    with pytest.raises(Refused, match=f"no .*{name}\n(.|\n)*update-initramfs -c -k {NEWEST} && {makes}"):
        arm(host)
    assert lasting(host) == before
    found = reading_kit.read(host).next_boot
    assert bool(found) is (loader == "grub"), "an ESP isn't mounted for a reading"
    if loader == "grub":
        with pytest.raises(Refused, match=f"no .*{name}\n") as refused:
            restart(host)
        assert all(part in str(refused.value) for part in found.values())


def test_a_menu_without_initramfs_for_its_default_is_refused_before_anything(host: Host) -> None:
    """As update-grub makes it for a kernel that has none, as after DKMS has failed."""
    host.write(MENU, host.read(MENU).replace(f"\tinitrd\t/boot/{INITRAMFS}\n", ""))
    before = lasting(host)
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match=f"no initramfs for it .GRUB's menu has no initrd line for /boot/{IMAGE}"):
            arm(host, verb)
    assert lasting(host) == before


def test_where_no_entry_has_an_initramfs_none_is_missing(host: Host) -> None:
    lines = host.read(MENU).splitlines(keepends=True)
    host.write(MENU, "".join(line for line in lines if "\tinitrd" not in line))
    arm(host)
    assert boot_kit.choice(host) == "once"


def test_an_early_initramfs_that_all_entries_have_is_none_of_its_own(host: Host) -> None:
    """As of GRUB_EARLY_INITRD_LINUX_CUSTOM."""
    early = host.read(MENU).replace("\tinitrd\t", "\tinitrd\t/boot/early.cpio ")
    host.write("/boot/early.cpio", "early")
    host.write(MENU, early.replace(f" /boot/{INITRAMFS}\n", "\n"))
    with pytest.raises(Refused, match="no initrd line"):
        arm(host)
    host.write(MENU, early)
    arm(host)


@EACH_LOADER
def test_no_initramfs_is_made_for_a_kernel_that_has_none(host: Host, loader: str) -> None:
    """It would become what starts next, and the way back from a boot on trial."""
    (host.root / f"boot/{INITRAMFS}").unlink()
    host.ask("apply", "initramfs", {"needed": True})
    assert not host.exists(f"/boot/{INITRAMFS}") and host.exists(f"/boot/initrd.img-{OLDER}")


@EACH_LOADER
def test_the_kernel_that_comes_is_told_where_another_one_runs(host: Host, loader: str) -> None:
    assert other_kernel(host.system(), LOADERS[loader]) == ""
    host.write("/proc/sys/kernel/osrelease", f"{OLDER}\n")
    assert other_kernel(host.system(), LOADERS[loader]) == f"{NEWEST} ({OLDER} runs now)"
    if loader == "systemd-boot":
        assert other_kernel(host.system(), GRUB) == ""
        host.write("/etc/kernel/proxmox-boot-pin", f"{OLDER}\n")
        assert other_kernel(host.system(), LOADERS[loader]) == ""


@pytest.mark.parametrize("path", ["/boot/x", "/x", "/ROOT/pve-1@/boot/x", "/@/boot/x", "/boot/own/x"])
def test_a_file_is_found_from_whichever_root_grub_counts(host: Host, path: str) -> None:
    host.write("/boot/own/x" if "own" in path else "/boot/x", "kernel")
    host.write(MENU, host.read(MENU).replace(f"/boot/{IMAGE}", path))
    need_default(host.system())
