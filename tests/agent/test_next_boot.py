"""Nothing is armed and no restart is ordered while what starts next by default isn't whole: shared/next_boot.py."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from remote_scripts.layers.cmdline import Wanted as Cmdline
from remote_scripts.layers.initramfs import Wanted as Initramfs
from remote_scripts.layers.reboot import Wanted as Reboot
from remote_scripts.shared import next_boot
from remote_scripts.shared.reboot_required import Boot
from tests.agent import api_kit, boot_kit
from tests.agent.boot_kit import EACH_LOADER, ESPS, KERNELS, MENU, lasting
from tests.agent.kit import Host, Refused

NEWEST, OLDER = KERNELS
IMAGE, INITRAMFS = f"vmlinuz-{NEWEST}", f"initrd.img-{NEWEST}"


@pytest.fixture(autouse=True)
def stocked(host: Host, stocked_boot: None) -> None:
    api_kit.runs(host, {}, {})


def arm(host: Host, verb: Literal["plan", "apply"] = "apply") -> Any:
    return host.ask(verb, "cmdline", Cmdline(name="iommu", words="amd_iommu=on", rollback_after=90))


def restart(host: Host) -> Any:
    wanted = Boot(words=("quiet", "amd_iommu=on"))
    return host.ask("apply", "reboot", Reboot(policy="auto", boot=wanted, rollback_after=90, awaited=900))


def place(loader: str, name: str) -> str:
    return f"/boot/{name}" if loader == "grub" else f"/esp/{ESPS[0]}/{name}"


@EACH_LOADER
@pytest.mark.parametrize("name", [IMAGE, INITRAMFS])
@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("act", [arm, restart])
def test_a_default_entry_whose_file_is_missing_is_neither_tried_nor_started(
    host: Host, loader: str, name: str, how: str, act: Any
) -> None:
    file = host.root / place(loader, name)[1:]
    file.write_bytes(b"") if how == "empty" else file.unlink()
    host.programs["systemd-run"] = lambda *_: pytest.fail("it restarts")
    before = lasting(host)
    with pytest.raises(Refused, match=f"no .*{name}\n(.|\n)*update-initramfs -c -k {NEWEST} && update-grub"):
        act(host)
    if act is arm:
        assert lasting(host) == before


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


def test_after_an_initramfs_was_made_for_a_kernel_that_had_none_the_menu_names_it(host: Host) -> None:
    (host.root / f"boot/initrd.img-{OLDER}").unlink()
    assert host.programs["grub-mkconfig"](["-o", str(host.root / MENU[1:])], b"") is None
    assert host.read(MENU).count("\tinitrd") == 1
    host.ask("apply", "initramfs", Initramfs(needed=True))
    assert host.read(MENU).count("\tinitrd") == 2


@EACH_LOADER
def test_the_kernel_that_comes_is_told_where_another_one_runs(host: Host, loader: str) -> None:
    assert next_boot.other_kernel(host.system()) == ""
    host.write("/proc/sys/kernel/osrelease", f"{OLDER}\n")
    assert next_boot.other_kernel(host.system()) == f"{NEWEST} ({OLDER} runs now)"
    if loader == "systemd-boot":
        host.write("/etc/kernel/proxmox-boot-pin", f"{OLDER}\n")
        assert next_boot.other_kernel(host.system()) == ""


@pytest.mark.parametrize("path", ["/boot/x", "/x", "/ROOT/pve-1@/boot/x", "/@/boot/x", "/boot/own/x"])
def test_a_file_is_found_from_whichever_root_grub_counts(host: Host, path: str) -> None:
    host.write("/boot/own/x" if "own" in path else "/boot/x", "kernel")
    host.write(MENU, host.read(MENU).replace(f"/boot/{IMAGE}", path))
    next_boot.need_files(host.system(), ["/boot/grub"], [])
