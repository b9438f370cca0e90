"""What changed behind our back is named by a preview, mended by `up --refresh`, and what depends on it is done again."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack, out_of_reach
from tests.lab.host_kit import rebound

REBOOT = {"pve-reboot", "pve-booted"}


# Which layer each drift by itself belongs to: tests/unit/test_plan.py (test_drift_is_named_by_layer).


def test_what_changed_is_named_and_mended_without_a_needless_reboot_and_a_host_that_cannot_be_read_is_left_alone(
    converged: Callable[..., Stack],
) -> None:
    """Each leg begins where the one before has mended all: what that had left would be found with what is this one's."""
    stack = converged("rtx5090")
    configured = stack.lab.snapshot()
    files_of_each_layer_also_in_a_preview(stack)
    an_up_with_its_preview_changes_nothing_and_knows_every_output(stack)
    a_boot_configuration_generated_by_somebody_else(stack)
    (stack.lab.root / "var/lib/homelab/wanted-boot").unlink()
    mended_without_a_reboot(stack, ["the host has no note of what its boot should have"], {"pve-cmdline"})
    assert stack.lab.snapshot() == configured
    a_kernel_booted_without_the_parameters_is_mended_by_a_reboot(stack)
    a_refresh_that_cannot_read_the_host_fails_and_changes_nothing(stack)


def mended_without_a_reboot(stack: Stack, named: list[str], layers: set[str]) -> None:
    """`up --refresh`: what the running kernel has all of."""
    mark = stack.lab.mark()
    up = stack.up("--refresh")
    assert [one for one in named if one not in up.output] == [], up.output
    assert {name for operation, name in up.steps if operation == "update"} == layers | REBOOT
    assert not [name for operation, name in up.steps if operation == "create-replacement"], "no reboot is shown"
    assert stack.lab.boots(since=mark) == []


def files_of_each_layer_also_in_a_preview(stack: Stack) -> None:
    """Edited and removed, and this program's agent."""
    configured = stack.lab.snapshot()
    stack.lab.run(
        'echo "GRUB_CMDLINE_LINUX_DEFAULT=quiet" >>"$ROOT/etc/default/grub.d/zz-homelab-iommu.cfg"; '
        'rm "$ROOT/etc/default/grub.d/zz-homelab-vfio.cfg"; update-grub; '
        'rm "$ROOT/etc/initramfs-tools/scripts/init-top/homelab-vfio"; update-initramfs -u -k all; '
        'rm "$ROOT"/var/lib/homelab/agents/*/agent.pyz'
    )
    named = [
        "zz-homelab-iommu.cfg was changed by hand",
        "zz-homelab-vfio.cfg is gone",
        "init-top/homelab-vfio is gone",
        "this program's agent is missing on the host, or changed",
    ]
    layers = {"pve-agent", "pve-cmdline", "pve-initrd", "pve-bind"}
    # A preview reads and compares as an `up` does.
    preview = stack.preview("--refresh")
    assert [one for one in named if one not in preview.output] == []
    assert preview.found_changed == {"pve-probe"}
    # What a card's mapping has follows from the boot.
    updated = {("update", name) for name in (*layers, *REBOOT, "pve-rtx5090")}
    assert {step for step in preview.planned if step[0] in ("update", "replace")} == updated, "no reboot is shown"
    mended_without_a_reboot(stack, named, layers)
    assert stack.lab.snapshot() == configured


def an_up_with_its_preview_changes_nothing_and_knows_every_output(stack: Stack) -> None:
    """After a refresh."""
    assert stack.up("--refresh").changed == set()
    mark = stack.lab.mark()
    again = stack.run("up", "--yes")
    assert (again.code, again.changed) == (0, set())
    previewed = again.output.partition("Updating (lab)")[0]
    assert "Outputs:" not in previewed and "unknown" not in previewed, again.output
    assert stack.lab.connections(since=mark) == []


def a_boot_configuration_generated_by_somebody_else(stack: Stack) -> None:
    stack.lab.run(
        'cp "$ROOT/boot/grub/grub.cfg" "$ROOT/tmp/new"; sed "s/ homelab.vfio=[^ ]*//" "$ROOT/tmp/new" >"$ROOT/boot/grub/grub.cfg"'
    )
    mended_without_a_reboot(stack, ["is not in the generated boot configuration"], {"pve-initrd", "pve-bind"})


def a_kernel_booted_without_the_parameters_is_mended_by_a_reboot(stack: Stack) -> None:
    """With the card on another driver, as somebody's hand may bring it there, too."""
    stack.reboot_without_passthrough()
    stack.lab.run(rebound("0000:01:00.0", "nouveau"))
    mark = stack.lab.mark()
    up = stack.up("--refresh")
    assert "is not on the running kernel's command line" in up.output
    assert "0000:01:00.0 is on nouveau, not on vfio-pci" in up.output
    assert {name for operation, name in up.steps if operation == "create-replacement"} == REBOOT
    assert len(stack.lab.boots(since=mark)) == 1
    assert stack.drivers()["0000:01:00.0"] == "vfio-pci"


def a_refresh_that_cannot_read_the_host_fails_and_changes_nothing(stack: Stack) -> None:
    outputs = stack.output()
    out_of_reach(stack.lab)
    failed = stack.up("--refresh", ok=False)
    assert "to read pve, and to compare it" in failed.message and failed.message.count("wanted:") == 1
    assert failed.changed == set()
    assert stack.output() == outputs
