"""An update of NVIDIA's driver that can't be carried through: what was there is put back, works, and the message says so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.nvidia import plan as planning
from homelab.nvidia.request import Request
from homelab.remote import nvidia_steps as steps
from homelab.remote.scripts import answer
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts.nvidia_kit import Container, Machine, ProxmoxHost, Step, VirtualMachine
from tests.scripts.test_nvidia_driver import Shared, failing, kept, loaded, undo
from tests.scripts.test_nvidia_driver import shared as shared  # a container with its host's libraries

OLD, NEW = "580.159.03", "590.48.01"
# On a host with Proxmox VE 9, whose repository of NVIDIA's begins with 590.
OLD_OF_HOST, NEW_OF_HOST = "590.48.01", "595.58.03"
# The build of the new one fails, that of the old one doesn't.
NO_BUILD = "590."


# The pin of what was put back, and its record.
GIVEN_UP = {
    "etc/apt/preferences.d/homelab-given-up",
    "var/lib/homelab/files/nvidia-driver/etc/apt/preferences.d/homelab-given-up",
}


def update_of(machine: Machine, source: str = "packages", driver: str = NEW) -> Step:
    """The driver's step for the new version, its repositories being there."""
    return failing(machine, driver=driver, source=source)  # type: ignore[arg-type]


#: What a VM had before the old driver, the VM, and the script that brings the new one; and without that.
Begun = tuple[dict[str, tuple[int, bytes]], VirtualMachine, Step]
Computing = tuple[dict[str, tuple[int, bytes]], VirtualMachine]


@pytest.fixture
def begun(kept_systems: KeptSystems) -> Callable[..., Begun]:
    """`begun("run")`: a VM that has the old driver from there, and the repositories of the new one."""

    def take(old: str = "packages", new: str = "packages") -> Begun:
        def make(folder: Path) -> Begun:
            vm = VirtualMachine(folder)
            stock = kept(vm)
            with_old(vm, old)
            return stock, vm, update_of(vm, new)

        return kept_systems.take(("begun", old, new), make)

    return take


@pytest.fixture
def host_with_old(kept_systems: KeptSystems) -> ProxmoxHost:
    """A host that has booted with the old driver."""

    def make(folder: Path) -> ProxmoxHost:
        host = ProxmoxHost(folder)
        with_old(host, driver=OLD_OF_HOST)
        return host

    return kept_systems.take("host with old", make)


@pytest.fixture
def computing(kept_systems: KeptSystems) -> Callable[..., Computing]:
    """`computing("run")`: what a VM had before, and the VM with the old driver for computing."""

    def take(source: str = "packages") -> Computing:
        def make(folder: Path) -> Computing:
            vm = VirtualMachine(folder)
            stock = kept(vm)
            for_computing(vm, source)
            return stock, vm

        return kept_systems.take(("computing", source), make)

    return take


def with_old(machine: Machine, source: str = "packages", driver: str = OLD) -> Machine:
    assert machine.install(driver=driver, source=source)["version"] == driver
    if machine.target == "host":
        machine.host.reboot()
    return machine


def phase(machine: Machine) -> str:
    file = machine.root / "var/lib/homelab/update/kept"
    return str(json.loads(file.read_text())["phase"]) if file.exists() else ""


def note(machine: Machine, **changes: object) -> None:
    """What is noted of an update, with these changes."""
    file = machine.root / "var/lib/homelab/update/kept"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- what fails ------------------------------------------------------------------------------------------------
BOTH = ("packages", "run")
#: In two tests that share a behaviour, an old driver or a new one is of one source here, and of the other one there: which, the seed says.
(HERE, THERE), (FROM_HERE, FROM_THERE) = (
    (BOTH, BOTH) if sampling.EVERY else ((one,), (other,))
    for name in ("new", "old")
    for one, other in [sampling.drawn(f"{name} source").sample(BOTH, 2)]
)


def test_a_build_that_fails_leaves_the_old_driver_as_it_was(begun: Callable[..., Begun]) -> None:
    """To the other source, and from the other one, one isn't built in tests below."""
    for old in FROM_HERE:
        for new in HERE:
            the_build_fails(begun, old, new)


def the_build_fails(begun: Callable[..., Begun], old: str, new: str) -> None:
    stock, vm, script = begun(old, new)
    before, automatic = kept(vm), vm.output("apt-mark showauto")
    vm.fault("dkms-fails", NO_BUILD)
    text = vm.refusal(script)
    assert "modules, built for every installed kernel" in text and "the update is given up" in text
    assert f"next:   the driver {OLD} is back: its libraries, and its modules for 6.8.0-86-generic" in text
    assert "nvidia-smi answers" in text
    assert loaded(vm) == OLD and not vm.read().drift
    vm.output("nvidia-smi")
    assert differing(kept(vm), before) <= {"var/lib/homelab/packages/nvidia-driver", "var/lib/dpkg/status", *GIVEN_UP}
    # An upgrade by hand doesn't bring what has failed.
    assert NEW not in vm.output("apt-get -s dist-upgrade")
    assert vm.output("apt-mark showauto") == automatic
    vm.fault("dkms-fails", None)
    if old != new:
        assert vm.answer("apply", script)["version"] == NEW
    undo(vm)
    assert kept(vm) == stock


def differing(now: dict[str, Any], before: dict[str, Any]) -> set[str]:
    return {name for name in {*now, *before} if now.get(name) != before.get(name)}


def test_on_a_host_a_kernel_for_which_the_new_driver_does_not_build_keeps_the_old_one_for_all(
    host_with_old: ProxmoxHost,
) -> None:
    host = host_with_old
    script = update_of(host, driver=NEW_OF_HOST)
    before = kept(host)
    kernels = host.read().system.kernels or ()
    assert len(kernels) > 1
    # The last one to be built: others have the new modules by then.
    host.fault("dkms-fails", f"{NEW_OF_HOST}/{kernels[-1]}")
    text = host.refusal(script)
    assert f"the driver {OLD_OF_HOST} is back" in text and all(kernel in text for kernel in kernels)
    for kernel in kernels:
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == OLD_OF_HOST
    assert differing(kept(host), before) <= GIVEN_UP and not host.read().drift
    host.host.reboot()
    assert loaded(host) == OLD_OF_HOST


def test_debians_own_driver_whose_modules_have_other_names_is_put_back_as_well(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, "debian-12", card="1e81")
    vm.output("sed -i 's/^Components: main$/& contrib non-free/' $ROOT/etc/apt/sources.list.d/debian.sources")
    vm.output("apt-get -qq update && apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver nvidia-kernel-dkms")
    vm.reboot()
    vm.output("modprobe nvidia")
    script = update_of(vm)
    vm.fault("dkms-fails", NO_BUILD)
    assert "the driver 535.309.01 is back: its libraries, and its modules for" in vm.refusal(script)
    vm.output("modinfo nvidia-current && nvidia-smi")


def test_a_module_that_does_not_load_makes_way_for_the_old_one(tmp_path: Path) -> None:
    """A Pascal card, for which the plan of another VM is carried out: 590 doesn't know it any more."""
    vm, other = VirtualMachine(tmp_path / "a", card="1b80"), VirtualMachine(tmp_path / "b", card="1e81")
    with_old(vm)
    vm.reboot()
    script = update_of(other)
    vm.answer("apply", other.repository())
    before = kept(vm)
    vm.output("rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia || lsmod")
    assert not loaded(vm)
    text = vm.refusal(script)
    assert (
        "a card that the driver may take" in text
        and "could not insert 'nvidia'" in text
        and f"the driver {OLD} is back" in text
    )
    assert differing(kept(vm), before) <= GIVEN_UP
    vm.output("modprobe nvidia && nvidia-smi")


def test_a_container_whose_libraries_do_not_fit_gets_its_old_ones_back(shared: Shared) -> None:
    _, installed, container = shared
    old = installed["version"]
    script = of_another_version(container, NEW)
    before = kept(container)
    text = container.refusal(script)
    assert f"the libraries of the host's driver, {old}" in text and f"found:  {NEW} is installed" in text
    assert f"the driver {old} is back: its libraries; nvidia-smi answers" in text
    assert differing(kept(container), before) <= GIVEN_UP and not container.read().drift
    assert "GPU 0:" in container.output("nvidia-smi -L")


def of_another_version(container: Container, version: str) -> Step:
    """The container's step as it would be if the host had that driver."""
    reading = container.read()
    system = dataclasses.replace(reading.system, host_driver=version)
    first = Request("lxc", container.settings, system, "it")
    asked = planning.packages_to_ask_for(first)
    plan = planning.plan_stack(first)
    wanted = steps.repository(plan, container.settings, container.context(plan), asked)
    offered = container.answer("apply", container.step("nvidia_repository", wanted))["offered"]
    system = dataclasses.replace(system, offered={name: tuple(found) for name, found in offered.items()})
    plan = planning.plan_stack(Request("lxc", container.settings, system, "it"))
    return container.step("nvidia_driver", steps.driver(plan, container.settings, container.context(plan)))


def test_a_way_back_that_was_cut_short_still_names_the_version_that_is_given_up(begun: Callable[..., Begun]) -> None:
    _, vm, script = begun()
    waiting(vm, script)
    note(vm, phase="back", new="590.48.99")
    assert vm.answer("revert", ended(vm))["old"] == OLD
    assert vm.read().drift[0] == f"driver: the update to 590.48.99 was given up, {OLD} is back"


# -- keeping ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("old", FROM_THERE)
def test_what_cannot_be_kept_now_stops_the_update_before_anything_changes(
    begun: Callable[..., Begun], old: str
) -> None:
    _, vm, script = begun(old)
    before = kept(vm)
    failures: list[tuple[str, Any]] = [("disk-full", True), ("apt-offline", True), ("download-corrupt", "580")]
    for fault, value in failures:
        vm.output("apt-get clean")
        vm.fault(fault, value)
        vm.refusal(script)
        assert kept(vm) == before, fault
        vm.output("nvidia-smi")
        vm.fault(fault, None)
    # What they have left in caches is in nobody's way.
    assert vm.answer("apply", script)["version"] == NEW


def test_an_old_version_that_no_repository_has_is_kept_from_apts_cache(begun: Callable[..., Begun]) -> None:
    _, vm, script = begun()
    vm.fault("package-missing", "*-580*")
    vm.fault("dkms-fails", NO_BUILD)
    assert f"the driver {OLD} is back" in vm.refusal(script)
    vm.output("nvidia-smi")


def test_an_old_version_that_is_nowhere_any_more_does_not_stop_an_update_and_is_named_when_it_fails(
    begun: Callable[..., Begun],
) -> None:
    _, vm, script = begun()
    vm.output("apt-get clean")
    vm.fault("package-missing", "*-580*")
    vm.fault("dkms-fails", NO_BUILD)
    done = vm.run("apply", script)
    assert done.returncode == 1 and f"The driver {OLD} can't be put back" in done.stdout
    assert "could not be put back: no repository and no cache has" in done.stderr
    vm.fault("dkms-fails", None)
    assert vm.answer("apply", script)["version"] == NEW and phase(vm) == ""


#: A phase, and among how many of its commands one is drawn.
Moments = tuple[str, int]


# -- killed ----------------------------------------------------------------------------------------------------
def killed_at(machine: Machine, step: Step, moments: Moments) -> None:
    """Run a layer, and kill it, with all that it has started, at a call that changes something while it is in that phase."""
    wanted, among = moments
    number = sampling.drawn(f"{wanted} {among}").randrange(1, among)
    where = (
        f"lambda points, phase, seen=[0]: phase == {wanted!r} and (seen.append(seen.pop() + 1) or seen[0] == {number})"
    )
    process = machine.stopped("apply", step, where)
    assert process, f"it was {wanted} at fewer than {number} calls"
    machine.end(process)


BACK = [("back", 8), ("back", 40)]


# Finished by the next run, not wanted any more, and on its way back: tests/agent/test_nvidia_driver.py cuts each short at a sample of all its calls.
@pytest.mark.parametrize("moments", sampling.sample(BACK, 1, "back"), ids=str)
def test_a_way_back_that_is_killed_is_none_once_the_new_one_can_be_built(
    begun: Callable[..., Begun], moments: Moments
) -> None:
    _, vm, script = begun()
    vm.fault("dkms-fails", NO_BUILD)
    killed_at(vm, script, moments)
    vm.fault("dkms-fails", None)
    assert vm.answer("apply", script)["version"] == NEW


def test_an_update_that_was_killed_is_undone_by_destroy(begun: Callable[..., Begun]) -> None:
    stock, vm, script = begun()
    killed_at(vm, script, ("trying", 30))
    undo(vm)
    assert kept(vm) == stock


# -- after the boot that brings the new one --------------------------------------------------------------------
def waiting(machine: Machine, script: Step | None = None) -> None:
    """The new driver is installed and not loaded."""
    assert machine.answer("apply", script or update_of(machine))["reboot"] == "yes"
    assert phase(machine) == "tried"


def ended(machine: Machine) -> Step:
    return machine.step("driver_update", steps.driver_update(machine.target, machine.settings, "it"))


@pytest.mark.parametrize("source", FROM_HERE)
def test_what_was_kept_goes_once_the_new_driver_was_seen_at_work(begun: Callable[..., Begun], source: str) -> None:
    _, vm, script = begun(source)
    waiting(vm, script)
    vm.reboot()
    assert loaded(vm) == NEW
    vm.answer("apply", ended(vm))
    assert not (vm.root / "var/lib/homelab/update").exists() and not vm.read().drift
    assert vm.answer("revert", ended(vm)) == {"old": "", "now": ""}


@pytest.mark.parametrize("source", FROM_THERE)
def test_a_driver_that_does_not_work_after_its_boot_makes_way_without_network_and_without_another_boot(
    begun: Callable[..., Begun], source: str
) -> None:
    _, vm, script = begun(source)
    waiting(vm, script)
    vm.reboot()
    vm.output("rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia || lsmod")
    vm.fault("apt-offline")
    found = vm.answer("revert", ended(vm))
    assert found["old"] == OLD and "nvidia-smi answers" in found["now"]
    assert loaded(vm) == OLD
    assert vm.read().drift == (f"driver: the update to {NEW} was given up, {OLD} is back",)
    # Another try, for which a refresh that saw this lets the step run again.
    vm.fault("apt-offline", None)
    assert vm.answer("apply", update_of(vm))["version"] == NEW


def test_a_host_whose_new_driver_does_not_work_has_its_old_one_for_every_kernel_again(
    host_with_old: ProxmoxHost,
) -> None:
    host = host_with_old
    waiting(host, update_of(host, driver=NEW_OF_HOST))
    host.host.reboot()
    found = host.answer("revert", ended(host))
    assert found["old"] == OLD_OF_HOST and "nvidia-smi answers" in found["now"] and loaded(host) == OLD_OF_HOST
    for kernel in host.read().system.kernels or ():
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == OLD_OF_HOST


# -- libraries beside those that are there ---------------------------------------------------------------------
#: What the step of the repositories changes with the version that is wanted.
PINNED = {
    f"{folder}etc/apt/preferences.d/homelab-nvidia" for folder in ("", "var/lib/homelab/files/nvidia-repository/")
}
#: What the installer stands on is recorded, and stays until `destroy`.
BESIDE = {"var/lib/homelab/packages/nvidia-driver", "var/lib/dpkg/status", *GIVEN_UP}
COMPUTE, VIDEO, ALL = ["compute"], ["compute", "video"], ["compute", "video", "graphics"]


def has(machine: Machine, *libraries: str) -> list[bool]:
    return [bool(list((machine.root / "usr/lib/x86_64-linux-gnu").glob(f"{name}.so.?"))) for name in libraries]


def for_computing(machine: Machine, source: str = "packages") -> Machine:
    """The old driver, for CUDA alone."""
    assert machine.install(driver=OLD, source=source, capabilities=COMPUTE)["version"] == OLD
    return machine


def with_libraries(machine: Machine, driver: str, capabilities: list[str], source: str = "packages") -> Step:
    return failing(machine, driver=driver, source=source, capabilities=capabilities)  # type: ignore[arg-type]


def test_libraries_that_are_added_do_not_update_the_driver(computing: Callable[..., Computing]) -> None:
    """Its branch has a newer release by now."""
    _, vm = computing()
    script = with_libraries(vm, "580", VIDEO)
    added = vm.answer("apply", script)
    assert (added["version"], added["changed"], added["reboot"]) == (OLD, True, "no")
    assert has(vm, "libnvidia-encode") == [True]
    assert not vm.answer("apply", script)["changed"] and not vm.read().drift


def test_libraries_that_can_be_had_with_a_newer_driver_alone_come_with_an_update_that_is_tried(
    computing: Callable[..., Computing],
) -> None:
    _, vm = computing()
    script = with_libraries(vm, "580", VIDEO)
    before = kept(vm)
    vm.fault("package-missing", f"*/{OLD}-*")
    vm.fault("dkms-fails", "580.178")
    assert f"the driver {OLD} is back" in vm.refusal(script)
    assert differing(kept(vm), before) <= GIVEN_UP
    vm.fault("dkms-fails", None)
    # It waits for a boot, until when it isn't begun anew.
    assert vm.answer("apply", script)["version"] == "580.178.04" and phase(vm) == "tried"
    done = vm.run("apply", script)
    assert not answer(done.stdout)["changed"] and "putting" not in done.stderr and phase(vm) == "tried"


@pytest.mark.parametrize("moments", sampling.sample([("", 20), ("", 40)], 1, "added"), ids=str)
def test_libraries_that_were_being_added_at_a_kill_are_there_after_the_next_run(
    computing: Callable[..., Computing], moments: Moments
) -> None:
    stock, vm = computing()
    script = with_libraries(vm, "580", VIDEO)
    killed_at(vm, script, moments)
    added = vm.answer("apply", script)
    assert (added["version"], added["reboot"]) == (OLD, "no") and has(vm, "libnvidia-encode") == [True]
    assert not vm.answer("apply", script)["changed"]
    undo(vm)
    assert kept(vm) == stock


@pytest.mark.parametrize("failure", ["the build fails", "killed"])
def test_the_installer_that_is_run_again_for_graphics_can_be_taken_back(
    computing: Callable[..., Computing], failure: str
) -> None:
    _, vm = computing("run")
    script = with_libraries(vm, OLD, ALL, "run")
    before = kept(vm)
    assert has(vm, "libnvidia-encode", "libEGL_nvidia") == [True, False]
    if failure == "killed":
        killed_at(vm, script, ("trying", 30))
    else:
        vm.fault("dkms-fails", "580.")
        # Nor can the old one be built; it comes back once it can.
        assert "could not be put back" in vm.run("apply", script).stdout
        vm.fault("dkms-fails", None)
        assert phase(vm) == "back"
        old = with_libraries(vm, OLD, COMPUTE, "run")
        assert vm.answer("apply", old)["version"] == OLD
        assert has(vm, "libEGL_nvidia") == [False] and differing(kept(vm), before) <= PINNED | BESIDE
    added = vm.answer("apply", script)
    assert (added["version"], added["reboot"]) == (OLD, "no") and has(vm, "libEGL_nvidia") == [True]
    assert phase(vm) == "" and not vm.answer("apply", script)["changed"]


@pytest.mark.parametrize("source", THERE)
def test_an_update_that_brings_libraries_and_fails_takes_them_along(
    computing: Callable[..., Computing], source: str
) -> None:
    stock, vm = computing()
    script = with_libraries(vm, NEW, ALL, source)
    before = kept(vm)
    vm.fault("dkms-fails", NO_BUILD)
    assert f"the driver {OLD} is back" in vm.refusal(script)
    assert differing(kept(vm), before) <= BESIDE
    assert has(vm, "libnvidia-encode", "libEGL_nvidia") == [False, False]
    vm.fault("dkms-fails", None)
    assert vm.answer("apply", script)["version"] == NEW and has(vm, "libnvidia-encode", "libEGL_nvidia") == [True, True]
    undo(vm)
    assert kept(vm) == stock


def test_an_update_that_drops_libraries_and_fails_brings_them_back(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path)
    vm.install(driver=OLD, source="packages", capabilities=VIDEO)
    script = with_libraries(vm, NEW, COMPUTE)
    before = kept(vm)
    vm.fault("dkms-fails", NO_BUILD)
    vm.refusal(script)
    assert differing(kept(vm), before) <= GIVEN_UP and has(vm, "libnvidia-encode") == [True]
    vm.fault("dkms-fails", None)
    assert vm.answer("apply", script)["version"] == NEW and has(vm, "libnvidia-encode") == [False]


# While the new one is tried: at its begin, or later.
@pytest.mark.parametrize("moments", sampling.sample([("trying", 8), ("trying", 30)], 1, "trying"), ids=str)
def test_an_update_with_libraries_that_is_killed_is_finished_or_taken_back(
    computing: Callable[..., Computing], moments: Moments
) -> None:
    _, vm = computing()
    script = with_libraries(vm, NEW, VIDEO)
    before = kept(vm)
    killed_at(vm, script, moments)
    # The old version is wanted again, and libraries for it.
    old = with_libraries(vm, OLD, VIDEO)
    assert vm.answer("apply", old)["version"] == OLD and has(vm, "libnvidia-encode") == [True]
    assert vm.answer("apply", with_libraries(vm, OLD, COMPUTE))["version"] == OLD
    # apt lists packages that aren't marked, too, once it has looked at them.
    assert differing(kept(vm), before) <= PINNED | {"var/lib/apt/extended_states"} and loaded(vm) == OLD
    vm.output("nvidia-smi")


def test_a_container_gets_libraries_of_its_hosts_driver_and_is_as_before_where_they_cannot_be_had(
    tmp_path: Path,
) -> None:
    source = "packages"  # the installer brings all of them in a container
    container = Container(tmp_path)
    version = container.install(source=source, capabilities=COMPUTE)["version"]
    script = failing(container, source=source, capabilities=ALL)  # type: ignore[arg-type]
    before = kept(container)
    container.fault("disk-full")
    container.refusal(script)
    container.fault("disk-full", None)
    assert kept(container) == before and phase(container) == ""
    added = container.answer("apply", script)
    assert (added["version"], added["changed"]) == (version, True) and has(container, "libEGL_nvidia") == [True]
    assert phase(container) == "" and not container.answer("apply", script)["changed"]
