"""CUDA's toolkit on the lab's guests: one release, no driver, and taken back without a trace."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from homelab.nvidia.plan import CudaPlan, Plan
from homelab.remote import nvidia_steps as steps
from remote_scripts.shared.symptoms import Context
from tests import sampling
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, Step, VirtualMachine

KEYRING = (
    "curl -fsSLo $ROOT/root/k.deb https://developer.download.nvidia.com/compute/cuda/repos/{}/x86_64/cuda-keyring_1.1-1_all.deb"
    " && dpkg -i $ROOT/root/k.deb && apt-get -qq update"
)


def with_repository(machine: Machine, distribution: str) -> Machine:
    """NVIDIA's repository, as somebody adds it by hand."""
    machine.output(KEYRING.format(distribution.replace("-", "").replace(".", "")))
    return machine


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Ubuntu 24.04 with NVIDIA's repository; each test leaves it as it was."""
    return with_repository(VirtualMachine(tmp_path_factory.mktemp("vm")), GUESTS[0])


def plan(machine: Machine, cuda: str = "12.8") -> Plan:
    machine.want(driver="580", cuda=cuda, allowMinorVersionCompatibility=True, timeouts={"lock": 1})
    return machine.plan()


def script(machine: Machine, cuda: str = "12.8") -> Step:
    return step(machine, plan(machine, cuda))


def step(machine: Machine, found: Plan, context: Context | None = None) -> Step:
    return machine.step("cuda_toolkit", steps.cuda(found, machine.settings, context or machine.context(found)))


@pytest.mark.parametrize(
    ("distribution", "release"),
    sampling.sample(list(zip(GUESTS, ("12.8", "12.9", "13.4", "12.8", "13.1"), strict=True)), 2, "releases"),
)
def test_a_release_comes_without_a_driver_once_and_goes_without_a_trace(
    tmp_path: Path, distribution: str, release: str
) -> None:
    machine = with_repository(VirtualMachine(tmp_path, distribution), distribution)
    packages, tree = machine.packages(), machine.tree()
    text = script(machine, release)
    answer = machine.answer("apply", text)
    assert (answer["release"], answer["changed"]) == (release, True)
    added = set(machine.packages()) - set(packages)
    assert added == set(answer["packages"]) and f"cuda-toolkit-{release.replace('.', '-')}" in added
    assert not [name for name in added if "nvidia" in name or "driver" in name]
    assert f"release {release}" in machine.output(f"$ROOT{answer['nvcc']} --version")
    assert f"/usr/local/cuda-{release}/bin" in machine.output(
        "PATH=/bin; . $ROOT/etc/profile.d/homelab-cuda.sh; echo $PATH"
    )
    assert machine.answer("apply", text) == {**answer, "changed": False}
    assert machine.answer("revert", text) == {"changed": True, "kept": []}
    assert machine.answer("revert", text) == {"changed": False, "kept": []}
    assert (machine.packages(), machine.tree()) == (packages, tree)


def beside(machine: Machine, cuda: str, **settings: Any) -> Step:
    """The step with libraries, as it is once the repositories were asked."""
    machine.want(driver="580", cuda=cuda, timeouts={"lock": 1}, **settings)
    offered = machine.read(machine.asked()).system.offered
    found = machine.plan({name: list(versions) for name, versions in (offered or {}).items()})
    return step(machine, found)


def of_libraries(machine: Machine) -> dict[str, str]:
    return {name: at for name, at in machine.packages().items() if name.startswith(("libcudnn", "libnccl"))}


def test_cudnn_and_nccl_come_and_go_with_the_release_of_cuda(vm: Machine) -> None:
    packages = vm.packages()
    text = beside(vm, "12.8", cudnn="9", nccl=True)
    assert vm.answer("apply", text)["changed"]
    found = of_libraries(vm)
    assert {"libcudnn9-cuda-12", "libcudnn9-dev-cuda-12", "libcudnn9-headers-cuda-12"} <= set(found)
    assert found["libnccl2"] == found["libnccl-dev"] == "2.27.3-1+cuda12.9"
    assert not vm.answer("apply", text)["changed"]
    vm.answer("apply", beside(vm, "13.0", cudnn="9", nccl=True))
    assert of_libraries(vm)["libnccl2"].endswith("+cuda13.0") and not [n for n in of_libraries(vm) if n.endswith("12")]
    vm.answer("apply", beside(vm, "13.0", nccl=True))
    assert set(of_libraries(vm)) == {"libnccl2", "libnccl-dev"}
    vm.answer("revert", text)
    assert vm.packages() == packages


def test_a_nccl_of_somebodys_stays(vm: Machine) -> None:
    vm.output("apt-get -qq install -y libnccl2=2.27.3-1+cuda12.9")
    vm.answer("apply", beside(vm, "12.8", cudnn="9", nccl=True))
    vm.answer("apply", beside(vm, "12.8"))
    assert set(of_libraries(vm)) == {"libnccl2"}
    vm.answer("revert", beside(vm, "12.8"))
    vm.output("apt-get -qq purge -y libnccl2")


def test_in_a_container(tmp_path: Path) -> None:
    machine = with_repository(Container(tmp_path), GUESTS[0])
    answer = machine.answer("apply", script(machine, "13.0"))
    assert answer["release"] == "13.0"
    assert not [name for name in machine.packages() if name.startswith(("nvidia-", "libnvidia-"))]


def test_an_update_of_a_release_is_taken_as_it_was_asked_for(vm: Machine) -> None:
    text = script(vm, "12.8.0")
    vm.answer("apply", text)
    assert vm.packages()["cuda-toolkit-12-8"].startswith("12.8.0-")
    newer = script(vm, "12.8.1")
    assert vm.answer("apply", newer)["changed"]
    assert vm.packages()["cuda-toolkit-12-8"].startswith("12.8.1-")
    vm.answer("revert", newer)
    assert "cuda-toolkit-12-8" not in vm.packages()


def test_under_another_name_of_the_settings_it_is_the_other_ones(vm: Machine) -> None:
    before, found = vm.packages(), plan(vm)
    old, new = (step(vm, found, Context(f"vms.{name}", "vm")) for name in ("old", "new"))
    vm.answer("apply", old)
    # Pulumi makes what has a new name first, and deletes what had the old one then.
    assert not vm.answer("apply", new)["changed"]
    assert vm.answer("revert", old) == {"changed": False, "kept": []}
    assert "cuda-toolkit-12-8" in vm.packages()
    vm.answer("revert", new)
    assert vm.packages() == before


def test_a_refresh_sees_what_was_removed(vm: Machine) -> None:
    text = script(vm)
    vm.answer("apply", text)
    assert not vm.read().drift
    vm.output("apt-get -qq purge -y cuda-toolkit-12-8 && rm $ROOT/etc/profile.d/homelab-cuda.sh")
    found = vm.read().drift
    assert "cuda: /etc/profile.d/homelab-cuda.sh is missing" in found
    assert any(line.startswith("cuda: package cuda-toolkit-12-8 is gone, it was 12.8.") for line in found)
    vm.answer("apply", text)
    assert not vm.read().drift
    vm.answer("revert", text)


def test_a_package_that_brings_a_driver_is_refused_before_anything_is_installed(vm: Machine) -> None:
    before = vm.packages()
    meta = dataclasses.replace(plan(vm), cuda=CudaPlan("12.8", ("cuda-12-8",), "/usr/local/cuda-12.8/bin/nvcc"))
    said = vm.refusal(step(vm, meta))
    assert "without a driver or a kernel" in said and "cuda-drivers" in said
    assert vm.packages() == before


def test_another_release_takes_the_place_of_the_one_before(vm: Machine) -> None:
    before = vm.packages()
    vm.answer("apply", script(vm, "12.9"))
    text = script(vm, "12.8")
    vm.answer("apply", text)
    there = vm.packages()
    assert "cuda-toolkit-12-8" in there and not [name for name in there if "12-9" in name]
    vm.answer("revert", text)
    assert vm.packages() == before


def test_another_release_that_somebody_had_stays(vm: Machine) -> None:
    vm.output("apt-get -qq install -y cuda-toolkit-12-9")
    before = vm.packages()
    text = script(vm, "12.8")
    vm.answer("apply", text)
    vm.answer("revert", text)
    assert vm.packages() == before
    vm.output("apt-get -qq purge -y cuda-toolkit-12-9 && apt-get -qq autoremove -y --purge")


def test_what_somebody_needs_by_now_stays_and_is_named(vm: Machine) -> None:
    text = script(vm)
    vm.answer("apply", text)
    vm.output("apt-get -qq install -y cuda-12-8")  # a meta package, which depends on the toolkit
    kept = vm.answer("revert", text)["kept"]
    assert "cuda-toolkit-12-8" in kept and "cuda-nvcc-12-8" in vm.packages()
    vm.output("apt-get -qq purge -y cuda-12-8 cuda-toolkit-12-8 && apt-get -qq autoremove -y --purge")
    assert not [name for name in vm.packages() if "12-8" in name]


def test_a_toolkit_that_didnt_come_from_packages_is_left_as_it_is(vm: Machine) -> None:
    text = script(vm)
    vm.answer("apply", text)
    place = vm.root / "usr/local/cuda-12.8"
    shutil.copytree(place, vm.root / "root/kept", symlinks=True)
    vm.answer("revert", text)
    before = vm.packages()
    shutil.copytree(vm.root / "root/kept", place, symlinks=True)
    answer = vm.answer("apply", text)
    assert (answer["packages"], answer["release"], vm.packages()) == ([], "12.8", before)
    vm.answer("revert", text)
    assert (place / "bin/nvcc").exists()
    shutil.rmtree(place)
    shutil.rmtree(vm.root / "root/kept")


def test_a_release_that_isnt_there_is_named(vm: Machine) -> None:
    absent = dataclasses.replace(
        plan(vm), cuda=CudaPlan("13.9", ("cuda-toolkit-13-9",), "/usr/local/cuda-13.9/bin/nvcc")
    )
    said = vm.refusal(step(vm, absent))
    assert "Unable to locate package cuda-toolkit-13-9" in said


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        ("apt-locked", 3600, "Unable to acquire the dpkg frontend lock"),
        ("apt-offline", "103", "Temporary failure resolving"),
        ("disk-full", "103", "the disk is full"),
        ("package-missing", "cuda-nvcc-12-8", "unmet dependencies"),
    ],
)
def test_what_stands_in_its_way_is_told_and_the_next_run_goes_on(
    vm: Machine, fault: str, value: object, words: str
) -> None:
    text = script(vm)
    vm.output("apt-get clean")
    vm.fault(fault, value)
    try:
        said = vm.refusal(text)
    finally:
        vm.fault(fault, None)
    assert words in said
    assert vm.answer("apply", text)["release"] == "12.8"
    vm.answer("revert", text)


def test_what_was_left_half_configured_is_repaired_first(vm: Machine) -> None:
    text = script(vm)
    vm.fault("apt-broken", "103")
    assert vm.answer("apply", text)["release"] == "12.8"
    vm.fault("apt-broken", None)
    vm.answer("revert", text)


def test_after_a_kill_the_next_run_finishes_and_everything_can_be_taken_back(vm: Machine) -> None:
    before, tree = vm.packages(), vm.tree()
    text = script(vm)
    vm.output("apt-get clean")
    vm.fault("apt-slow", 20)
    with vm.start("apply", text) as process:
        # Meanwhile a person reads what apt has said last.
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith("CUDA toolkit 12.8: "))
        assert re.fullmatch(r"CUDA toolkit 12\.8: \d+ s: (Get:\d .*|Need to get .*)\n", told)
        vm.end(process)
    vm.fault("apt-slow", None)
    assert vm.answer("apply", text)["release"] == "12.8"
    vm.answer("revert", text)
    assert (vm.packages(), vm.tree()) == (before, tree)
