"""What earlier commits and releases from 2.0 on have left on a host and in a state: this one goes on from it, and gives all of it back.

From 2.1.0's, each thing that an owner may do first is also done first: without an `up` of this version before it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import released
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import given_back
from tests.engine_stack import Result
from tests.waiting import wait_until

StackOn = Callable[..., Stack]
# What the agent puts on a host of itself, with what it notes of each of these files: another version has others.
_OF_THE_AGENT = re.compile(
    r"var/lib/homelab/(agents/[\w-]+/agent\.pyz|owed-program|rollback)|(var/lib/homelab/files/[\w-]+/)?"
    r"(usr/local/sbin/homelab-[\w-]+|etc/systemd/system/homelab-[\w-]+\.(service|timer)|var/lib/vz/snippets/homelab-handover\.sh)"
)
CARD, OWED, TRIAL = "0000:01:00.0", "var/lib/homelab/owed", "var/lib/homelab/trial"
# What a boot that is confirmed changes: its words become the default, and what armed it goes, with what was owed for its restart.
_OF_A_CONFIRMED_BOOT = {
    "boot/grub/grub.cfg",
    "etc/default/grub.d/zz-homelab-iommu.cfg",
    "var/lib/homelab/files/iommu/etc/default/grub.d/zz-homelab-iommu.cfg",
    "boot/grub/custom.cfg",
    "esp/F371-396B/homelab",
    "esp/F371-396B/homelab/grubenv",
    "etc/systemd/system/timers.target.wants/homelab-owed.timer",
    "etc/systemd/system/timers.target.wants/homelab-rollback.timer",
    OWED,
    TRIAL,
}


def everything(stack: Stack) -> released.Snapshot:
    """All that a run may change on its host."""
    return stack.lab.snapshot("boot", "etc", "root", "usr", "var/lib")


def processes(stack: Stack) -> dict[str, str]:
    """Of the guests that run: a guest that was off in between has another one."""
    files = [*stack.lab.root.glob("run/qemu-server/*.pid"), *stack.lab.root.glob("run/lxc/*.pid")]
    return {path.name: path.read_text() for path in files if int(path.stem) in stack.machine.guests_on()}


def go(stack: Stack, *command: str) -> tuple[Result, set[str]]:
    """A run that restarts nothing: neither the host nor any guest; and the files that it has changed beside the agent's own."""
    boots, running, before = len(stack.lab.boots()), processes(stack), everything(stack)
    done = stack.run(*command)
    assert done.code == 0, done.output
    assert len(stack.lab.boots()) == boots, done.output
    assert processes(stack).items() >= running.items(), done.output
    after = everything(stack)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return done, {name for name in changed if not _OF_THE_AGENT.fullmatch(name)}


def first_looks(stack: Stack, subtests: pytest.Subtests) -> None:
    """A preview without the key, a refresh, and an `up` of the VM alone, each from the state that is there now: they change nothing."""
    state, kept, ssh = stack.folder / ".pulumi", stack.folder / "kept", stack.host["ssh"]
    shutil.copytree(state, kept)
    key, ssh["privateKeyFile"], mark = (
        ssh["privateKeyFile"],
        str(stack.folder / "not-in-a-pull-request"),
        stack.lab.mark(),
    )
    with subtests.test("a preview without the key"):
        _, files = go(stack, "preview")
        assert files == set() and stack.lab.connections(since=mark) == []
    ssh["privateKeyFile"] = key
    [vm] = [urn for urn in stack.urns() if urn.endswith("homelab:vm:Cards::sandbox-cards")]
    for command in ("refresh",), ("up", "--target", vm):
        with subtests.test(command[0]):
            done, files = go(stack, *command, "--yes", "--skip-preview")
            assert (done.steps, files) == ([], set()), done.output
        shutil.rmtree(state)
        shutil.copytree(kept, state)


@pytest.mark.parametrize(
    "path", sorted(released.FOLDER.glob("2.*.tar.gz")), ids=lambda path: path.name.removesuffix(".tar.gz")
)
def test_a_host_and_a_state_of_a_release_are_gone_on_with_and_given_back(path: Path, stack_on: StackOn) -> None:
    kept = released.KEPT[path.name.removesuffix(".tar.gz").partition("-")[2]]
    stack = stack_on(kept.scenario, **kept.settings)
    stock = stack.lab.snapshot()
    released.bring_back(stack, path)
    drivers, boots = stack.machine.drivers(), len(stack.lab.boots())

    stack.up("--refresh")
    assert (stack.machine.drivers(), len(stack.lab.boots())) == (drivers, boots)
    stack.destroy_as_left()
    given_back(stack, stock)
    assert not (stack.lab.root / "var/lib/homelab").exists()


def left_by_2_1_0(stack_on: StackOn, name: str, moment: str = "") -> tuple[Stack, released.Snapshot]:
    """A stack as 2.1.0 has left it at that moment, and what its host had before."""
    kept = released.KEPT[name]
    stack = stack_on(kept.scenario, **kept.settings)
    stack.lab.run(kept.before)
    stock = everything(stack)
    folders = [name, *([f"{name}/{moment}"] if moment else [])]
    released.bring_back(stack, released.FOLDER / "2.1.0.tar.xz", *folders)
    if moment:
        stack.host.update(released.TRIED)
    return stack, stock


def test_a_vm_with_its_card_is_left_as_2_1_0_has_left_it_whatever_is_run_first(
    stack_on: StackOn, subtests: pytest.Subtests
) -> None:
    stack, _ = left_by_2_1_0(stack_on, "rtx5090")
    assert stack.machine.drivers()[CARD] == "vfio-pci" and stack.machine.guests_on() == {103}
    first_looks(stack, subtests)
    assert go(stack, "up", "--yes", "--skip-preview")[1] == set()


def test_a_shared_card_stays_with_whoever_has_it_whatever_is_run_first_and_is_given_back(
    stack_on: StackOn, subtests: pytest.Subtests
) -> None:
    """What 2.1.0 has installed hands it over, to the VM and back."""
    stack, stock = left_by_2_1_0(stack_on, "shared")
    stack.lab.run("pct start 901; qm start 103")
    assert stack.machine.drivers()[CARD] == "vfio-pci" and stack.machine.guests_on() == {103}
    assert '"guest": 901' in (stack.lab.root / OWED).read_text()
    first_looks(stack, subtests)

    stack.lab.run("qm stop 103")
    wait_until(lambda: stack.machine.guests_on() == {901, 950} and not (stack.lab.root / OWED).exists())
    assert stack.machine.drivers()[CARD] == "nvidia"
    with subtests.test("up"):
        assert go(stack, "up", "--yes", "--skip-preview")[1] == set()
    stack.destroy_as_left()
    assert everything(stack) == stock


def test_a_boot_on_trial_of_2_1_0_is_confirmed_and_what_it_owes_is_started(
    stack_on: StackOn, subtests: pytest.Subtests
) -> None:
    stack, stock = left_by_2_1_0(stack_on, "shared", "trial")
    assert "homelab.trial" in stack.lab.boots()[-1]["cmdline"] and (stack.lab.root / TRIAL).exists()
    assert '"guest": 901' in (stack.lab.root / OWED).read_text() and stack.machine.guests_on() == {950}
    first_looks(stack, subtests)

    mark = stack.lab.mark()
    with subtests.test("up"):
        _, files = go(stack, "up", "--yes", "--skip-preview")
        assert files == _OF_A_CONFIRMED_BOOT
        assert stack.power_calls(mark) == ["901 start"] and stack.machine.guests_on() == {901, 950}
        assert stack.up("--refresh").changed == set()
    stack.destroy()
    assert everything(stack) == stock


@pytest.mark.parametrize(("name", "moment"), [("rtx5090", ""), ("shared", ""), ("shared", "trial")])
def test_a_destroy_that_comes_first_gives_every_byte_back(stack_on: StackOn, name: str, moment: str) -> None:
    stack, stock = left_by_2_1_0(stack_on, name, moment)
    boots, running = len(stack.lab.boots()), stack.machine.guests_on()
    stack.destroy()
    assert everything(stack) == stock
    assert len(stack.lab.boots()) == boots and stack.machine.guests_on() >= running


def test_a_state_of_1_0_0_is_refused_before_anything_is_changed(stack_on: StackOn) -> None:
    kept = released.KEPT["rtx5090"]
    stack = stack_on(kept.scenario, **kept.settings)
    released.bring_back(stack, released.FOLDER / "1.0.0-rtx5090.tar.gz")
    host, programs = stack.lab.snapshot("etc", "boot", "var/lib/homelab"), stack.lab.programs()
    for command in ("preview",), ("up", "--yes", "--skip-preview"), ("refresh", "--yes", "--skip-preview"), ("destroy", "--yes", "--skip-preview"):  # fmt: skip
        done = stack.run(*command)
        assert done.code and "check out commit 082c80e5" in done.message and done.steps == [], done.output
    assert stack.lab.snapshot("etc", "boot", "var/lib/homelab") == host and stack.lab.programs() == programs
