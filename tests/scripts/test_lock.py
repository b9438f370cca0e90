"""The lock file: two systems, a month apart, get the same packages; another version or another file is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from homelab.nvidia import plan as planning
from homelab.nvidia.lock import LockedPackage, SystemLock
from homelab.nvidia.outdated import PackagesReading, lines
from homelab.nvidia.plan import Plan
from homelab.nvidia.request import Request
from homelab.remote import nvidia_steps as steps
from remote_scripts.layers.read_packages import Wanted as ReadPackages
from tests.scripts.nvidia_kit import Container, Machine, VirtualMachine
from tests.scripts.test_nvidia_driver import of_driver

# Of branch 580, and not its newest.
OLD = "580.159.03"


def packages_of(machine: Machine) -> PackagesReading:
    return PackagesReading.of(machine.asked_of("read", "read_packages", ReadPackages()))


def installed(machine: Machine, lock: SystemLock | None, driver: str = "580") -> dict[str, str]:
    """What a run of the steps with a lock file leaves of the driver."""
    machine.want(driver=driver, cuda="12.8", cudnn="9", nccl=True, timeouts={"lock": 1})

    def plan(offered: dict[str, list[str]] | None) -> Plan:
        system = machine.read().system
        if offered is not None:
            found = {name: tuple(versions) for name, versions in offered.items()}
            system = dataclasses.replace(system, offered=lock.narrowed(found) if lock else found)
        return planning.plan_stack(Request(machine.target, machine.settings, system, "it", lock))

    asked = planning.packages_to_ask_for(Request(machine.target, machine.settings, machine.read().system, "it", lock))
    first = plan(None)
    repository = steps.repository(first, machine.settings, machine.context(first), asked)
    offered = machine.answer("apply", machine.step("nvidia_repository", repository))
    second = plan(offered["offered"])
    wanted = steps.driver(second, machine.settings, machine.context(second))
    machine.answer("apply", machine.step("nvidia_driver", wanted))
    machine.answer("apply", machine.step("cuda_toolkit", steps.cuda(second, machine.settings, machine.context(second))))
    return machine.packages()


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> SystemLock:
    """Of a system with an older driver, which somebody locks."""
    vm = VirtualMachine(tmp_path_factory.mktemp("first"))
    installed(vm, None, OLD)
    found = packages_of(vm)
    assert found.not_lockable == [] and found.driver == OLD and found.distribution == "ubuntu 24.04"
    assert {"cuda-toolkit-12-8", "libcudnn9-cuda-12", "libnccl2"} <= found.lock.packages.keys()
    driver = next(name for name, one in sorted(found.lock.packages.items()) if OLD in one.version)
    # Somebody asks what is newer.
    request = Request("vm", vm.settings, vm.read().system, "it")
    said = "\n".join(lines(found, request))
    assert f"{driver}: {found.lock.packages[driver].version} -> " in said
    assert "driver branch 595" in said and said.endswith("fits")
    return found.lock


def test_another_system_gets_the_locked_versions_although_there_are_newer_ones(
    tmp_path: Path, lock: SystemLock
) -> None:
    vm = VirtualMachine(tmp_path)
    installed(vm, lock)
    assert packages_of(vm).lock == lock
    # Neither a second run nor an upgrade by hand changes that.
    before = of_driver(vm)
    installed(vm, lock)
    assert of_driver(vm) == before
    assert "580.17" not in vm.output("apt-get -s dist-upgrade")


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("cuda-toolkit-12-8", {"sha256": "0" * 64}, "it is another file under the same version"),
        ("cuda-toolkit-12-8", {"version": "12.8.99-1"}, "the repositories no longer have the locked version"),
    ],
)
def test_another_file_or_version_than_the_locked_one_is_refused_before_it_is_installed(
    tmp_path: Path, lock: SystemLock, name: str, wrong: dict[str, str], said: str
) -> None:
    vm = VirtualMachine(tmp_path)
    vm.want(driver="580", cuda="12.8", timeouts={"lock": 1})
    package = LockedPackage.model_validate({**lock.packages[name].model_dump(), **wrong})
    other = lock.model_copy(update={"packages": {name: package}})
    request = Request(vm.target, vm.settings, vm.read().system, "it", other)
    plan = planning.plan_stack(request)
    asked = planning.packages_to_ask_for(request)
    repository = steps.repository(plan, vm.settings, vm.context(plan), asked)
    vm.answer("apply", vm.step("nvidia_repository", repository))
    text = vm.refusal(vm.step("cuda_toolkit", steps.cuda(plan, vm.settings, vm.context(plan))))
    assert said in text and "lock --release" in text
    assert name not in vm.packages()


def test_nvidias_installer_is_locked_by_its_sha256_and_another_file_is_not_run(tmp_path: Path) -> None:
    vm, second = VirtualMachine(tmp_path / "first"), VirtualMachine(tmp_path / "second")
    vm.install(driver=OLD, source="run")
    found = packages_of(vm).lock
    assert found.installer is not None and found.installer.version == OLD
    request = Request("vm", vm.settings, vm.read().system, "it", found)
    run = planning.plan_stack(request).run
    assert run is not None and run.sha256 == found.installer.sha256 == request.data.installers[OLD].sha256
    other = found.model_copy(update={"installer": found.installer.model_copy(update={"sha256": "0" * 64})})
    plan = planning.plan_stack(dataclasses.replace(request, lock=other))
    second.want(driver=OLD, source="run", timeouts={"lock": 1})
    repository = steps.repository(plan, second.settings, second.context(plan))
    second.answer("apply", second.step("nvidia_repository", repository))
    refused = second.refusal(second.step("nvidia_driver", steps.driver(plan, second.settings, second.context(plan))))
    assert f"with the checksum {'0' * 64}" in refused


def test_a_containers_packages_are_read_through_its_host(tmp_path: Path) -> None:
    container = Container(tmp_path)
    version = container.install()["version"]
    found = packages_of(container)
    assert found.driver == version and found.lock.packages
