"""Killed at any command: the hookscript's program, the service, the steps in their units; and a power cut, and a boot, at any of them.

One run is stopped before each of its commands. What is left there is kept, each state once, and the next service, start or boot goes on from it.
By default a sample of these states is tried, another one with another seed (tests/sampling.py); HOMELAB_EVERY_CUT=1 tries every one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests import sampling
from tests.scripts import cut_kit, handover_kit
from tests.scripts.conftest import Folder
from tests.scripts.handover_kit import Left, at_home, sweep, two_users, with_the_vm
from tests.scripts.test_handover import STATE, made, program, run, state

T = TypeVar("T")
SAMPLE = 3
ONLY = pytest.mark.parametrize("only", [False, True], ids=["one card of two", "the driver's only card"])
#: Whether the driver has no other card, and Proxmox VE's version.
HOSTS = pytest.mark.parametrize(
    ("only", "pve"), [(False, "8"), (True, "9"), *([(False, "9"), (True, "8")] if sampling.EVERY else [])]
)
#: What a killed start may be followed by: the service, or the same start once more.
NEXT = ("service", "start")


@contextmanager
def vm_locked(host: Folder, vmid: str = "103") -> Iterator[None]:
    """As `qm start`, `qm stop` and, on Proxmox VE 9, `qm cleanup` have it while they call the hookscript."""
    with (host.root / f"run/lock/qemu-server/lock-{vmid}.conf").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def some(found: list[T], name: str) -> list[T]:
    return sampling.sample(found, SAMPLE, name)


def settled(host: Folder, left: Left, *, only: bool) -> None:
    """One run of the service, and the card is with the host, with everything as at first; a second one does nothing."""
    run(host, "reconcile")
    assert at_home(host, only=only) and not two_users(host), f"HOMELAB_SEED={sampling.SEED} {left}: {state(host)}"
    assert state(host) in ("", "HELD"), left
    assert [*host.root.glob("run/homelab/handover.[1-9]*")] == [], left


@HOSTS
def test_a_start_that_is_killed_anywhere_is_undone_or_begun_again(
    folder: Folder, tmp_path: Path, only: bool, pve: str
) -> None:
    host = handover_kit.with_a_kernel(made(folder), only=only, pve=pve)
    with vm_locked(host):
        found, commands, _ = sweep(host, tmp_path / "start", "hook", "103", "pre-start")
    assert commands > 300 and with_the_vm(host)
    assert {left.noted for left in found} >= {"", "DRAINING", "FREE", "DETACHED", "VM"}
    for left, then in some([(left, then) for left in found for then in NEXT], "start"):
        left.back(host)
        if then == "start":
            with vm_locked(host):
                run(host, "hook", "103", "pre-start")
            assert with_the_vm(host), f"HOMELAB_SEED={sampling.SEED} {left}"
        settled(host, left, only=only)


@HOSTS
def test_a_way_back_that_is_killed_anywhere_is_finished_by_the_service(
    folder: Folder, tmp_path: Path, only: bool, pve: str
) -> None:
    host = handover_kit.with_a_kernel(made(folder), only=only, pve=pve)
    run(host, "hook", "103", "pre-start")
    if pve == "9":
        with vm_locked(host):
            found, _, _ = sweep(host, tmp_path / "hook", "hook", "103", "post-stop")
    else:
        found, _, _ = sweep(host, tmp_path / "hook", "hook", "103", "post-stop")
    assert {left.noted for left in found} == {"VM", "RETURNING"}
    service, commands, _ = sweep(host, tmp_path / "service", "reconcile")
    assert commands > 200 and at_home(host, only=only) and state(host) == ""
    for left in [*some(found, "stop"), *some(service, "service")]:
        left.back(host)
        settled(host, left, only=only)
        assert state(host) == "", left


@pytest.mark.parametrize("noted", sampling.sample(["DRAINING", "FREE", "DETACHED"], 1, "undone"))
def test_a_service_that_is_killed_while_it_undoes_a_start_is_finished_by_the_next(
    folder: Folder, tmp_path: Path, noted: str
) -> None:
    host = handover_kit.with_a_kernel(made(folder))
    found, _, _ = sweep(host, tmp_path / "start", "hook", "103", "pre-start")
    # As far as it had come in that state.
    [left for left in found if left.noted == noted][-1].back(host)
    undone, _, _ = sweep(host, tmp_path / "service", "reconcile")
    for left in some(undone, f"undone {noted}"):
        left.back(host)
        settled(host, left, only=False)


def test_a_service_that_is_killed_while_the_vm_runs_changes_nothing(folder: Folder, tmp_path: Path) -> None:
    host = handover_kit.with_a_kernel(made(folder))
    run(host, "hook", "103", "pre-start")
    host.write("/vm103", "running\n")
    found, _, on_disk = sweep(host, tmp_path / "service", "reconcile")
    assert (len(found), len(on_disk)) == (1, 1) and with_the_vm(host)


@ONLY
def test_a_step_that_is_killed_in_its_unit_leaves_the_card_whole(folder: Folder, tmp_path: Path, only: bool) -> None:
    host = handover_kit.with_a_kernel(made(folder), only=only)
    writes = 5 if only else 6  # two functions are claimed, unbound (the driver's only card by its module), and bound
    for number in sampling.sample(range(1, writes + 1), 2, "step"):
        host.write("/die-at", f"{number}\n")
        host.bash(program("hook", "103", "pre-start"), parts=())
        assert not two_users(host) and (with_the_vm(host) or at_home(host, only=only)), (
            f"HOMELAB_SEED={sampling.SEED} {number}"
        )
        run(host, "reconcile")
        assert at_home(host, only=only), f"HOMELAB_SEED={sampling.SEED} {number}"
        assert not (host.root / "die-at").exists()
    # Five writes take it from vfio-pci; the sixth is the first of those that give it to its drivers.
    for number in sorted({6, *sampling.sample(range(1, 10), 1, "back")}):
        run(host, "hook", "103", "pre-start")
        host.write("/die-at", f"{number}\n")
        run(host, "reconcile")
        run(host, "reconcile")
        (host.root / "die-at").unlink(missing_ok=True)
        assert at_home(host, only=only) and state(host) == "", f"HOMELAB_SEED={sampling.SEED} {number}"


def booted(host: Folder, files: cut_kit.Tree, first: Path, ran: str) -> None:
    """What a boot makes of the host: its disk as it was cut, drivers anew, containers as onboot has them."""
    Left(0, "", "", first).back(host)
    cut_kit.restore(host.root, files)
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    host.write("/ct950", ran)


@pytest.mark.parametrize("way", ["start", "stop"])
def test_a_power_cut_at_any_command_ends_with_the_boot(folder: Folder, tmp_path: Path, way: str) -> None:
    host = handover_kit.with_a_kernel(made(folder))
    found, _, on_disk = sweep(host, tmp_path / "start", "hook", "103", "pre-start")
    first = found[0].folder
    if way == "stop":
        _, _, hook = sweep(host, tmp_path / "hook", "hook", "103", "post-stop")
        _, _, service = sweep(host, tmp_path / "service", "reconcile")
        on_disk = [*hook, *service]
    for number, files in enumerate(sampling.sample(on_disk, SAMPLE, way)):
        booted(host, files, first, "running\n" if number % 2 else "stopped\n")
        ran = host.read("/ct950")
        run(host, "reconcile")
        assert state(host) == "" and host.read("/ct950") == ran, "onboot decides what runs"
        with vm_locked(host):
            run(host, "hook", "103", "pre-start")
        assert with_the_vm(host), "a VM that starts at this boot"
        run(host, "reconcile")
        assert host.read("/ct950") == ran and state(host) == ""
    assert not (host.root / STATE.lstrip("/")).exists()
