"""What changed behind our back is named by a preview, mended by `up --refresh`, and what depends on it is done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, out_of_reach
from tests.e2e.person import PROGRAM
from tests.lab.host_kit import rebound
from tests.workflow_steps import Steps

REBOOT = {"pve-reboot", "pve-booted"}


def test_what_changed_is_named_and_mended_without_a_needless_reboot_and_a_host_that_cannot_be_read_is_left_alone(
    converged: Callable[..., Stack], tmp_path: Path
) -> None:
    """Each leg begins where the one before has mended all: what that had left would be found with what is this one's."""
    stack = converged("rtx5090")

    # Files of each layer, edited and removed, and this program's agent; also by the workflow that watches for drift, in its own bash.
    for name in PROGRAM:
        (tmp_path / name).symlink_to(PROJECT / name)
    stack.write_config()
    (tmp_path / "Pulumi.lab.yaml").write_text((stack.folder / "Pulumi.lab.yaml").read_text())
    # What the runner has for a secret that isn't set is an empty variable.
    environment = stack.environment | {"PULUMI_STACK": "lab", "PULUMI_ACCESS_TOKEN": ""}
    configured = stack.lab.snapshot()
    stack.lab.run(
        'echo "GRUB_CMDLINE_LINUX_DEFAULT=quiet" >>"$HOMELAB_ROOT/etc/default/grub.d/zz-homelab-iommu.cfg"; '
        'rm "$HOMELAB_ROOT/etc/default/grub.d/zz-homelab-vfio.cfg"; update-grub; '
        'rm "$HOMELAB_ROOT/etc/initramfs-tools/scripts/init-top/homelab-vfio"; update-initramfs -u -k all; '
        'rm "$HOMELAB_ROOT"/var/lib/homelab/agents/*/agent.pyz "$HOMELAB_ROOT/var/lib/homelab/wanted-boot"'
    )
    named = [
        "zz-homelab-iommu.cfg was changed by hand",
        "zz-homelab-vfio.cfg is gone",
        "init-top/homelab-vfio is gone",
        "this program's agent is missing on the host, or is another one",
        "the host has no note of what its boot should have",
    ]
    # A preview reads and compares as an `up` does. Where nothing has changed: tests/unit/test_workflow_steps.py.
    looked = Steps(tmp_path).run("drift.yml", "look", "look", **environment)
    output = looked.stdout + looked.stderr
    assert looked.returncode == 7 and "::error title=Drift::" in output, output
    assert [one for one in named if one not in output] == []
    # Without a reboot, for the running kernel has all of it. Which layers each drift by itself concerns: tests/unit/test_plan.py.
    boots, up = len(stack.lab.boots()), stack.up("--refresh")
    assert [one for one in named if one not in up.output] == [], up.output
    layers = {"pve-probe", "pve-agent", "pve-cmdline", "pve-initrd", "pve-bind"}
    assert {name for operation, name in up.steps if operation == "update"} == layers | REBOOT
    assert not [name for operation, name in up.steps if operation == "create-replacement"], "no reboot is shown"
    assert len(stack.lab.boots()) == boots
    assert stack.lab.snapshot() == configured

    # After a refresh, an up with its preview changes nothing, and knows every output.
    mark = stack.lab.mark()
    again = stack.run("up", "--yes")
    assert (again.code, again.changed) == (0, set())
    previewed = again.output.partition("Updating (lab)")[0]
    assert "Outputs:" not in previewed and "unknown" not in previewed, again.output
    assert stack.lab.connections(since=mark) == []

    # A kernel booted without the parameters is mended by a reboot. With the card on another driver, as somebody's hand may bring it there, too.
    stack.lab.machine.next_entry = "Proxmox VE without GPU passthrough, GNU/Linux"
    stack.lab.reboot()
    stack.lab.run(rebound("0000:01:00.0", "nouveau"))
    mark = stack.lab.mark()
    up = stack.up("--refresh")
    assert "kernel's command line" in up.output
    assert "0000:01:00.0 is on nouveau, not on vfio-pci" in up.output
    assert {name for operation, name in up.steps if operation == "create-replacement"} == REBOOT
    assert len(stack.lab.boots(since=mark)) == 1
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"

    outputs = stack.output()
    out_of_reach(stack.lab)
    failed = stack.up("--refresh", ok=False)
    assert "an SSH connection to" in failed.message and failed.message.count("wanted:") == 1
    assert failed.changed == set() and stack.output() == outputs and failed.code != 7, "to the workflow, 7 is drift"
