"""What a script says that it would change is what it changes: files of the layers, on whole hosts, from one state to another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import boot_layers
from tests.boot_layers import Asked
from tests.kept_systems import KeptSystems
from tests.sampling import sample
from tests.scripts.test_on_a_host import Host

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2882,0000:01:00.1=10de:22be"
GRUB, SYSTEMD_BOOT = "rtx5090", "intel-zfs"
CONFIGURED = (IOMMU, VFIO)
INIT_TOP = "etc/initramfs-tools/scripts/init-top/homelab-vfio"


@pytest.fixture
def host(kept_systems: KeptSystems) -> Callable[..., Host]:
    """`host(scenario)`: a stock one; or one that has been configured so. One in a test."""

    def take(scenario: str, there: tuple[str, str] | None = None) -> Host:
        def make(folder: Path) -> Host:
            machine = Host(folder, scenario)
            if there:
                apply(machine, *there)
            return machine

        return kept_systems.take(("planned", scenario, there), make)

    return take


def layers(iommu: str, vfio: str) -> list[Asked]:
    return [boot_layers.iommu(iommu), boot_layers.initramfs(bool(vfio)), boot_layers.vfio(vfio)]


def planned(machine: Host, iommu: str, vfio: str, key: str = "how") -> dict[str, str]:
    """What -> how it changes, or the diff."""
    found: dict[str, str] = {}
    for script in layers(iommu, vfio):
        done = machine.run("plan", script)
        assert done.returncode == 0, done.stdout + done.stderr
        found |= {file["what"]: file[key] for file in json.loads(done.stdout)["files"]}
    return found


def apply(machine: Host, iommu: str, vfio: str) -> None:
    """In a boot that has just these words: so it isn't tried first."""
    (machine.root / "proc/cmdline").write_text(f"quiet {iommu} {vfio}\n")
    for script in layers(iommu, vfio):
        done = machine.run("apply", script)
        assert done.returncode == 0, done.stdout + done.stderr


def etc(machine: Host) -> dict[str, bytes]:
    """All below /etc."""
    return {
        f"/{path.relative_to(machine.root)}": path.read_bytes()
        for path in (machine.root / "etc").rglob("*")
        if path.is_file() and not path.is_symlink()
    }


# (boot loader's host, what is there, what somebody does to it, what is wanted then)
STEPS = {
    "a stock host": (GRUB, None, "", CONFIGURED),
    "a host that is as wanted": (GRUB, CONFIGURED, "", CONFIGURED),
    "passthrough mode off": (GRUB, CONFIGURED, "", ("amd_iommu=on", VFIO)),
    "another card": (GRUB, CONFIGURED, "", (IOMMU, "homelab.vfio=0000:41:00.0=10de:2684")),
    "no card any more": (GRUB, CONFIGURED, "", (IOMMU, "")),
    "nothing any more": (GRUB, CONFIGURED, "", ("", "")),
    "a file changed by hand": (GRUB, CONFIGURED, f"echo >>$ROOT/{INIT_TOP}", CONFIGURED),
    "a file gone": (GRUB, CONFIGURED, f"rm $ROOT/{INIT_TOP}", CONFIGURED),
    "somebody's file in our place": (GRUB, None, "echo own >$ROOT/etc/modules-load.d/homelab-vfio.conf", CONFIGURED),
    "somebody's file given back": (GRUB, CONFIGURED, "", (IOMMU, "")),
    "words that somebody else has by now": (
        GRUB, CONFIGURED, "echo 'GRUB_CMDLINE_LINUX=\"iommu=pt\"' >$ROOT/etc/default/grub.d/a.cfg", CONFIGURED,
    ),
    "a stock host with systemd-boot": (SYSTEMD_BOOT, None, "", CONFIGURED),
    "systemd-boot, as wanted": (SYSTEMD_BOOT, CONFIGURED, "", CONFIGURED),
    "systemd-boot, another card": (SYSTEMD_BOOT, CONFIGURED, "", (IOMMU, "homelab.vfio=0000:41:00.0=10de:2684")),
    "systemd-boot, no card any more": (SYSTEMD_BOOT, CONFIGURED, "", (IOMMU, "")),
}  # fmt: skip


@pytest.mark.parametrize("step", sample([*STEPS], 6, "planned files"))
def test_a_plan_names_each_file_that_apply_changes_and_changes_none(host: Callable[..., Host], step: str) -> None:
    scenario, there, by_hand, wanted = STEPS[step]
    machine = host(scenario, there)
    if by_hand:
        machine.bash(by_hand)
    everything, before = machine.files(), etc(machine)
    said = planned(machine, *wanted)
    assert machine.files() == everything
    apply(machine, *wanted)
    after = etc(machine)
    changed = {path: "changed" for path in before.keys() & after.keys() if before[path] != after[path]}
    changed |= dict.fromkeys(after.keys() - before.keys(), "new")
    changed |= dict.fromkeys(before.keys() - after.keys(), "removed")
    assert {what: how for what, how in said.items() if how != "made"} == changed
    made = {what for what, how in said.items() if how == "made"}
    assert (machine.files() == everything) is (not made)
    assert made <= {"/boot/grub/grub.cfg", "the boot entries on 1 ESP(s)", "the boot entries on 2 ESP(s)"} | {
        f"the initramfs of {number} kernel(s)" for number in range(1, 5)
    }
    assert planned(machine, *wanted) == {}  # nothing is left to do


def test_what_somebody_had_there_is_said_to_come_back(host: Callable[..., Host]) -> None:
    machine = host(GRUB)
    machine.bash("echo own >$ROOT/etc/modules-load.d/homelab-vfio.conf")
    apply(machine, *CONFIGURED)
    assert planned(machine, IOMMU, "")["/etc/modules-load.d/homelab-vfio.conf"] == "given back"


def test_a_diff_shows_what_is_lost_of_a_file_that_this_program_has_not_written(host: Callable[..., Host]) -> None:
    machine = host(GRUB)
    machine.bash("echo own >$ROOT/etc/modules-load.d/homelab-vfio.conf")
    shown = {path: diff for path, diff in planned(machine, *CONFIGURED, key="diff").items() if diff}
    assert list(shown) == ["/etc/modules-load.d/homelab-vfio.conf"]
    assert "\n-own\n+# Written by homelab" in shown["/etc/modules-load.d/homelab-vfio.conf"]
    apply(machine, *CONFIGURED)
    machine.bash(f"echo edited >>$ROOT/{INIT_TOP}")
    shown = planned(machine, IOMMU, "homelab.vfio=0000:41:00.0=10de:2684", key="diff")
    assert {path for path, diff in shown.items() if diff} == {f"/{INIT_TOP}"}
    assert shown[f"/{INIT_TOP}"].endswith("\n-edited")
    assert "/etc/default/grub.d/zz-homelab-vfio.cfg" in shown
