"""What NVIDIA's driver is for, beyond computing: installed, added to a driver that lacks it, taken away, tried in containers, given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab.nvidia.verification import judge
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts.nvidia_kit import Machine, VirtualMachine
from tests.scripts.test_nvidia_verification import verified, wanted_of

ALL = ["compute", "video", "graphics"]
FOLDER = "usr/lib/x86_64-linux-gnu"


@pytest.fixture
def vm(kept_systems: KeptSystems) -> VirtualMachine:
    return kept_systems.take(VirtualMachine, VirtualMachine)


@pytest.fixture
def computing(kept_systems: KeptSystems) -> VirtualMachine:
    """A VM with a driver for computing alone."""

    def make(folder: Path) -> VirtualMachine:
        vm = VirtualMachine(folder)
        vm.install(driver="580", capabilities=["compute"])
        return vm

    return kept_systems.take("580 for computing", make)


@pytest.fixture
def with_video(kept_systems: KeptSystems) -> VirtualMachine:
    """A VM with a driver for what it is for by default."""

    def make(folder: Path) -> VirtualMachine:
        vm = VirtualMachine(folder)
        vm.install(driver="580")
        return vm

    return kept_systems.take("580 with video", make)


def has(machine: Machine, library: str) -> bool:
    return (machine.root / FOLDER / library).exists()


@pytest.mark.parametrize(
    ("distribution", "source"), sampling.sample([("debian-12", "auto"), ("ubuntu-24.04", "run")], 1, "new")
)
def test_a_driver_that_is_new_has_video_and_on_demand_graphics(tmp_path: Path, distribution: str, source: str) -> None:
    vm = VirtualMachine(tmp_path, distribution)
    before = vm.tree()
    vm.install(driver="580.178.04", source=source)
    assert has(vm, "libnvidia-encode.so.1") and has(vm, "libnvcuvid.so.1") and not has(vm, "libEGL_nvidia.so.0")
    output, errors = verified(vm, {"driver": "580.178.04", "source": source})
    assert (errors, output["video"], output["nvenc"], output["graphics"]) == ([], True, "13.0", None)
    added = vm.install(driver="580.178.04", source=source, capabilities=ALL)
    assert (added["changed"], added["reboot"]) == (True, "no")
    output, errors = verified(vm, {"driver": "580.178.04", "source": source, "capabilities": ALL})
    assert (errors, output["graphics"]) == ([], True)
    vm.undo()
    after = vm.tree()
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        "var/lib/dkms/mok.pub"
    }


def test_a_driver_of_an_earlier_version_of_this_program_is_left_until_video_is_asked_for(
    computing: VirtualMachine,
) -> None:
    vm = computing
    assert not has(vm, "libnvidia-encode.so.1")
    assert not vm.install(driver="580", capabilities=None)["changed"]
    output, errors = verified(vm, {"driver": "580"})
    assert (errors, output["video"]) == ([], None)
    added = vm.install(driver="580", capabilities=["compute", "video"])
    assert (added["changed"], added["reboot"]) == (True, "no") and has(vm, "libnvidia-encode.so.1")
    assert not vm.install(driver="580", capabilities=["compute", "video"])["changed"]
    assert vm.install(driver="580", capabilities=["compute"])["changed"]
    assert not has(vm, "libnvidia-encode.so.1") and has(vm, "libcuda.so.1")


def test_video_that_somebody_has_installed_stays_though_the_settings_leave_it_out(computing: VirtualMachine) -> None:
    vm = computing
    vm.output("apt-get -qq install -y libnvidia-encode-580")
    vm.install(driver="580", capabilities=["compute"])
    assert has(vm, "libnvidia-encode.so.1")


def test_a_library_that_is_gone_is_told_and_comes_back(with_video: VirtualMachine) -> None:
    vm, settings = with_video, {"driver": "580", "capabilities": ["compute", "video"]}
    vm.output("apt-get -qq remove -y libnvidia-encode-580")
    (error,) = verified(vm, settings)[1]
    assert "NVENC and NVDEC" in error.wanted and "libnvidia-encode.so.1" in error.found
    assert vm.install(**settings)["changed"] and verified(vm, settings)[1] == []


@pytest.mark.parametrize("status", [127, 3], ids=["none", "without-ctypes"])
def test_without_python_they_are_loaded_and_not_asked(with_video: VirtualMachine, tmp_path: Path, status: int) -> None:
    vm = with_video
    vm.environment_first = tmp_path / "first"
    vm.environment_first.mkdir()
    python = vm.environment_first / "python3"
    python.write_text(f"#!/bin/sh\necho 'no Python here' >&2\nexit {status}\n")
    python.chmod(0o755)
    output, errors = verified(vm, {"driver": "580"})
    assert (errors, output["video"], output["nvenc"]) == ([], True, None)


def test_containers_get_what_the_driver_is_for(tmp_path: Path) -> None:
    """By one runtime, another one with another seed: what each does with the toolkit is in test_container_toolkit.py and test_nvidia_verification.py."""
    for runtime in sampling.sample(["docker", "podman"], 1, "runtimes"):
        containers_get_it(VirtualMachine(tmp_path / runtime), runtime)


def containers_get_it(vm: VirtualMachine, runtime: str) -> None:
    settings: dict[str, Any] = {
        "driver": "580",
        "capabilities": ["compute"],
        "containerToolkit": runtime,
        "docker": "install",
    }
    vm.install(**settings)

    def toolkit() -> None:
        vm.answer("apply", vm.toolkit_step("580.178.04", vm.settings.capabilities or ()))

    toolkit()
    # The specification names files: it is made anew for libraries that come later.
    vm.install(**{**settings, "capabilities": ALL})
    toolkit()
    tried, wanted = wanted_of(vm, {**settings, "capabilities": ALL})
    answer = vm.verify(tried)
    output, errors = judge(answer, wanted)
    assert (errors, output["container"], output["video"], output["graphics"]) == ([], True, True, True)
    said = answer["container"]["output"]
    assert "libnvidia-encode.so.1: loaded" in said and "libEGL_nvidia.so.0: loaded" in said
    if runtime == "podman":
        specification = vm.root / "etc/cdi/nvidia.yaml"
        specification.write_text(specification.read_text().replace("libnvidia-encode.so", "another.so"))
        (error,) = verified(vm, {**settings, "capabilities": ALL})[1]
        assert "in a container" in error.wanted and "libnvidia-encode.so.1" in error.found


def test_cudnn_and_nccl_are_loaded_and_tell_their_versions(vm: VirtualMachine) -> None:
    settings: dict[str, Any] = {"driver": "580", "cuda": "12.8", "cudnn": "9", "nccl": True}
    vm.install(**settings)
    output, errors = verified(vm, settings)
    assert (errors, output["cudnn"], output["nccl"]) == ([], "9.10.2", "2.27.3")
    vm.output("apt-get -qq remove -y libcudnn9-cuda-12")
    (error,) = verified(vm, settings)[1]
    assert "libcudnn.so.9 of CUDA 12" in error.wanted
