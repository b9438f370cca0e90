"""NVIDIA's driver, CUDA and what comes beside them on the lab's systems, by their distributions' and NVIDIA's packages: installed, given back; and what is said
where they can't be. What the layer does on each way is in tests/agent/test_nvidia_packages.py."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.nvidia.plan import refused
from homelab.symptoms import recognise
from remote_scripts.both import driver_update
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.lab.guest_kit import scenario
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, ProxmoxHost, Step, VirtualMachine, without_dpkg
from tests.waiting import PATIENCE, wait_until

# The key that DKMS makes for itself stays: somebody may have enrolled it.
KEY = "var/lib/dkms/mok.pub"
RUN = "https://download.nvidia.com/XFree86/Linux-x86_64/{0}/NVIDIA-Linux-x86_64-{0}.run"
PERSISTENCE = "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"
# Of Proxmox VE's repositories what a host has as it is installed.
STOCK = ("http://download.proxmox.com", "https://enterprise.proxmox.com")


@pytest.fixture
def vm(kept_systems: KeptSystems) -> VirtualMachine:
    """A stock one."""
    return kept_systems.take(VirtualMachine, VirtualMachine)


@pytest.fixture
def shared(kept_systems: KeptSystems) -> tuple[dict[str, tuple[int, bytes]], dict[str, Any], Container]:
    """What a container had, what the step said that installed its host's libraries, and the container with them."""
    return kept_systems.take("shared", lambda folder: made(folder, "phoenix", 901))


def made(folder: Path, name: str, ctid: int) -> tuple[dict[str, tuple[int, bytes]], dict[str, Any], Container]:
    container = Container(folder, name, ctid)
    stock = kept(container)
    return stock, container.install(), container


def kept(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """What the way back must give back."""
    return {name: value for name, value in machine.tree().items() if name != KEY}


def loaded(machine: Machine) -> str | None:
    return machine.read().system.loaded


# -- there and back --------------------------------------------------------------------------------------------
def test_a_vm_gets_the_driver_without_a_reboot_and_is_given_back(kept_systems: KeptSystems) -> None:
    """One distribution, another one with another seed; of all of them, what their programs do is in tests/simulator/test_driver_stack.py."""
    # Not Ubuntu 26.04, whose kernel's nouveau has the card until a reboot.
    for distribution in sampling.sample(
        [name for name in GUESTS if name not in ("ubuntu-26.04", "debian-13")], 1, "guests"
    ):
        there_and_back(stock_vm(kept_systems, distribution))


def test_a_branch_that_no_repository_has_comes_by_nvidias_installer_and_is_given_back(
    kept_systems: KeptSystems,
) -> None:
    there_and_back(stock_vm(kept_systems, "debian-13"), source="run")


def stock_vm(kept_systems: KeptSystems, distribution: str) -> VirtualMachine:
    return kept_systems.take(("vm", distribution), lambda folder: VirtualMachine(folder, distribution))


def there_and_back(vm: VirtualMachine, source: str = "packages") -> None:
    before = kept(vm)
    said = vm.says(driver="580")
    assert said.chosen is not None and not refused(vm.request(), said) and kept(vm) == before
    answer = vm.install(driver="580")
    assert answer["source"] == source and answer["changed"] and answer["version"] == said.version
    assert answer["reboot"] == "no" and answer["version"].startswith("580.")
    assert f", {answer['version']}\n" in vm.output("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader")
    assert "installed" in vm.output("dkms status")
    # The card stays initialised: at once, and after each boot.
    assert vm.output(PERSISTENCE) == "Enabled\n"
    reading = vm.read()
    assert reading.system.loaded == answer["version"]
    assert reading.steps == {"packages"} and not reading.drift
    vm.reboot()
    assert vm.output(PERSISTENCE) == "Enabled\n"
    assert not vm.install()["changed"] and not vm.read().drift
    vm.undo()
    assert kept(vm) == before


def test_all_of_a_stack_comes_by_one_step_and_is_given_back(vm: VirtualMachine) -> None:
    packages, before = vm.packages(), without_dpkg(vm)
    settings: dict[str, Any] = {"driver": "580", "cuda": "12.8", "cudnn": "9", "nccl": True}
    settings |= {"containerToolkit": "docker", "docker": "install"}
    answer = vm.install(**settings)
    added = {*vm.packages()} - {*packages}
    assert {"cuda-toolkit-12-8", "libcudnn9-cuda-12", "libnccl2", "docker.io", "nvidia-container-toolkit"} <= added
    assert vm.packages()["libnccl2"] == "2.27.3-1+cuda12.9" and (answer["cuda"], bool(answer["toolkit"])) == (
        "12.8",
        True,
    )
    assert "release 12.8" in vm.output("$ROOT/usr/local/cuda-12.8/bin/nvcc --version")
    assert "/usr/local/cuda-12.8/bin" in vm.output("PATH=/bin; . $ROOT/etc/profile.d/homelab-cuda.sh; echo $PATH")
    assert not vm.install(**settings)["changed"]
    vm.install(driver="580", cuda="13.0")
    there = vm.packages()
    assert {"cuda-toolkit-13-0", "docker.io"} <= {*there} and not {"libnccl2", "cuda-toolkit-12-8"} & {*there}
    vm.undo()
    assert (vm.packages(), without_dpkg(vm)) == (packages, before)


def test_a_host_gets_the_driver_for_every_kernel(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    packages = host.packages()
    answer = host.install(driver="580")
    assert answer["reboot"] == "yes"
    for kernel in host.read().system.kernels or ():
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == answer["version"]
    assert not host.install()["changed"]
    assert [line.partition(":")[0] for line in host.read().drift] == ["boot"]
    host.host.reboot()
    assert loaded(host) == answer["version"] and not host.read().drift
    assert "active" in host.output("systemctl is-active homelab-nvidia-persistence.service")
    # A kernel that comes without the module.
    host.output("apt-get -qq purge -y proxmox-default-headers proxmox-headers-6.17.13-2-pve")
    host.output("apt-get -qq install -y --no-install-recommends proxmox-kernel-6.17.13-2-pve-signed")
    assert any("the kernel 6.17.13-2-pve has no module" in line for line in host.read().drift)
    assert host.install()["changed"] and not host.read().drift
    assert "6.17.13-2-pve, x86_64: installed" in host.output("dkms status")
    host.undo()
    assert {*host.packages()} == {*packages} - {"proxmox-default-headers"} | {"proxmox-kernel-6.17.13-2-pve-signed"}


def test_a_hosts_older_driver_is_replaced_for_every_kernel(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path, "containers-pve8")
    answer = host.install(driver="580")
    assert answer["reboot"] == "yes" and answer["why"].endswith(f"{answer['version']} (open) is installed")
    for kernel in host.read().system.kernels or ():
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == answer["version"]
    host.host.reboot()
    assert loaded(host) == answer["version"] and not host.read().drift
    ended = host.asked_of("apply", "driver_update", driver_update.Wanted(target="host", software=software(host)))
    assert ended == {"old": "", "now": ""} and not (host.root / "var/lib/homelab/update").exists()


def software(machine: Machine) -> Any:
    return machine.packages_step().wanted.software


#: A container of another host, with bind mounts instead of options, gets the same: for every other seed.
BY_MOUNTS = ["containers-pve8"] * (sampling.EVERY or sampling.drawn("bind mounts").random() < 0.5)


@pytest.mark.parametrize("on", ["phoenix", *BY_MOUNTS])
def test_a_container_gets_the_hosts_libraries_and_nothing_else(
    shared: tuple[dict[str, tuple[int, bytes]], dict[str, Any], Container], tmp_path: Path, on: str
) -> None:
    before, answer, container = shared if on == "phoenix" else made(tmp_path, on, 211)
    assert answer["version"] == container.read().system.host_driver
    assert (answer["source"], answer["reboot"]) == ("packages", "no-module")
    assert "GPU 0:" in container.output("nvidia-smi -L")
    assert not [name for name in container.packages() if "dkms" in name or "headers" in name]
    assert not container.install()["changed"] and not container.read().drift
    container.undo()
    assert kept(container) == before


def test_a_container_takes_the_installer(tmp_path: Path) -> None:
    """Where the version has no packages, and where the package with nvidia-smi asks for modules: one of both."""
    for way in sampling.sample([without_packages, of_debian], 1, "installer"):
        way(tmp_path / way.__name__)


def of_debian(tmp_path: Path) -> None:
    guests = scenario("phoenix").model_dump(mode="json", by_alias=True, exclude_defaults=True)["guests"]
    for guest in guests:
        if guest["id"] == 950:
            del guest["nvidia"]
    container = Container(tmp_path, scenario("phoenix", guests=guests), 950)
    by_installer(container)


def without_packages(tmp_path: Path) -> None:
    container = Container(tmp_path)
    container.fault("package-missing", f"{container.ctid}=libnvidia-compute*")
    by_installer(container)


def by_installer(container: Container) -> None:
    before = kept(container)
    answer = container.install()
    assert (answer["source"], answer["version"]) == ("run", container.read().system.host_driver)
    assert (container.root / f"usr/lib/x86_64-linux-gnu/libnvidia-encode.so.{answer['version']}").exists()
    assert "GPU 0:" in container.output("nvidia-smi -L")
    assert not [name for name in container.packages() if "dkms" in name or "headers" in name]
    container.fault("package-missing", None)
    container.undo()
    assert kept(container) == before


# -- what goes wrong -------------------------------------------------------------------------------------------
#: In the order of the step's own: where one has failed, the next run gets as far as the next failure.
FAILURES: list[tuple[str, object, str]] = [
    ("apt-offline", True, "names can't be resolved, or nothing answers"),
    ("apt-offline", "developer.download.nvidia.com", "names can't be resolved, or nothing answers"),
    ("apt-locked", 600, "(unattended-upgr)"),
    ("package-missing", "nvidia-utils-580", "nvidia-utils-580"),
    ("disk-full", True, "it: room on its disk"),
    ("download-corrupt", "libnvidia-compute", "Hash Sum mismatch"),
    ("dkms-fails", "6.8.0-86", "make.log ends:"),
]


def test_each_failure_has_its_message_and_the_next_run_goes_on(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580", source="packages", timeouts={"lock": 1})
    for fault, value, words in FAILURES:
        vm.fault(fault, value)
        text = vm.refusal(script)
        vm.fault(fault, None)
        assert words in text and "{" not in text
        if fault == "dkms-fails":
            assert "implicit declaration of function 'lab_fault'" in text and recognise(text)
    assert vm.answer("apply", script)["reboot"] == "no"
    vm.output("nvidia-smi")
    assert not vm.read().drift


def test_each_failure_of_the_installer_has_its_message(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580.159.03", source="run")
    failures: list[tuple[str, object, str]] = [
        ("apt-offline", "download.nvidia.com", "names can't be resolved, or nothing answers"),
        ("download-corrupt", ".run", "the checksum "),
        ("download-breaks", ".run", "curl: (18) transfer closed with"),
        ("dkms-fails", "6.8.0-86", "nvidia-installer.log ends:"),
    ]
    for fault, value, words in failures:
        vm.fault(fault, value)
        assert words in vm.refusal(script)
        vm.fault(fault, None)
    assert vm.answer("apply", script)["source"] == "run"
    vm.output("nvidia-smi")


def test_a_missing_installer_is_named_by_its_address(vm: VirtualMachine) -> None:
    known = {"580.99.99": "ab" * 32}
    text = vm.refusal(vm.packages_step(driver="580.99.99", source="run", runSha256=known))
    assert RUN.format("580.99.99") in text and "404" in text


def test_a_container_without_network_says_so_instead_of_package_not_found(tmp_path: Path) -> None:
    container = Container(tmp_path)
    script = container.packages_step()
    container.fault("apt-offline")
    text = container.refusal(script)
    assert "it: a way to NVIDIA's servers" in text and "Temporary failure resolving" in text


def test_a_stock_hosts_repository_that_asks_for_a_subscription_doesnt_matter_but_for_headers(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    script = host.packages_step(driver="580")
    sources = host.root / "etc/apt/sources.list.d/proxmox.sources"
    sources.write_text(sources.read_text().replace(*STOCK))
    assert host.bash("apt-get update").returncode == 100
    done = host.run("apply", script)
    assert "not all lists could be fetched; those that are needed here are there" in done.stderr
    assert done.returncode != 0 and "No-Subscription" in done.stdout
    said = host.says(driver="580")
    assert said.lacking and any(
        "headers of each installed kernel" in error.wanted for error in refused(host.request(), said)
    )


def test_secure_boot_without_the_key_is_said_by_the_module(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, system={"secure-boot": True, "mok-enrolled": True})
    script = vm.packages_step(driver="580")
    vm.enrolled(False)
    text = vm.refusal(script)
    assert "Key was rejected by service" in text and "mokutil --import /var/lib/dkms/mok.pub" in text


def test_a_vm_without_a_card_says_so(tmp_path: Path) -> None:
    # It was planned when it had one.
    vm, other = VirtualMachine(tmp_path / "a", card=None), VirtualMachine(tmp_path / "b")
    text = vm.refusal(other.packages_step(driver="580"))
    assert "could not insert 'nvidia'" in text and "`lspci -nn -d 10de:` in the VM" in text


def test_nouveau_keeps_the_card_until_the_reboot(tmp_path: Path) -> None:
    for source in sampling.sample(["packages", "run"], 1, "nouveau"):
        vm = VirtualMachine(tmp_path / source, card="2684")
        assert vm.read().system.nouveau
        answer = vm.install(driver="580.159.03", source=source)
        assert answer["reboot"] == "yes" and "nouveau has a card" in answer["why"]
        vm.reboot()
        assert loaded(vm) == "580.159.03" and not vm.read().system.nouveau


# -- a run -------------------------------------------------------------------------------------------------------
def test_a_client_that_dies_stops_nothing(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580")
    process = vm.start("apply", script)
    assert process.stdout and process.stderr
    assert process.stderr.readline()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=PATIENCE) is not None
    vm.output("nvidia-smi")
    assert not vm.answer("apply", script)["changed"]


def test_long_runs_are_seen_as_they_go(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580")
    vm.fault("apt-slow", 3)
    process = vm.start("apply", script)
    wait_until(lambda: vm.has_said("Get:1 "))
    assert process.poll() is None
    assert "nvidia-utils-580" not in vm.packages()
    assert process.communicate(timeout=PATIENCE)[0]


def test_a_lock_is_waited_for_with_a_line_that_says_who_has_it(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580", timeouts={"lock": 60})
    vm.fault("apt-locked", 2)
    done = vm.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(unattended-upgr)" in done.stderr


def test_what_an_interrupted_dpkg_has_left_is_repaired_first(vm: VirtualMachine) -> None:
    script = vm.packages_step(driver="580")
    vm.fault("apt-broken")
    done = vm.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repairing that first" in done.stderr


def test_the_proxys_password_is_in_the_environment_alone(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, "debian-12")
    script = machine.packages_step(driver="580.159.03", source="run", proxy="http://someone:s3cret@proxy.lan:3128")
    # A curl that tells what it was given, and where.
    machine.output(
        "mkdir -p $ROOT/usr/local/bin && printf '%s\\n' '#!/bin/bash' 'echo \"$https_proxy $http_proxy $*\" >>$ROOT/tmp/seen' "
        "'echo \"via $https_proxy: Could not resolve proxy: proxy.lan\" >&2; exit 5' >$ROOT/usr/local/bin/curl"
        " && chmod +x $ROOT/usr/local/bin/curl"
    )
    machine.environment_first = machine.root / "usr/local/bin"
    done = machine.run("apply", script)
    assert done.returncode == 1
    seen = (machine.root / "tmp/seen").read_text().split(" ", 2)
    assert seen[0] == seen[1] == "http://someone:s3cret@proxy.lan:3128" and "s3cret" not in seen[2]
    assert "s3cret" not in done.stdout + done.stderr
    assert "via http://(secret)@proxy.lan:3128: Could not resolve proxy" in done.stdout + done.stderr
    for place in (machine.root / "var/lib/homelab").rglob("*"):
        assert place.is_dir() or b"s3cret" not in place.read_bytes()


#: A run that was killed, by its wanted.
Killed = Callable[[], Step]


@pytest.mark.parametrize("source", sampling.sample(["packages", "run"], 1, "killed"))
def test_what_is_killed_is_finished_by_the_next_run(tmp_path: Path, source: str) -> None:
    vm = VirtualMachine(tmp_path / "counted")
    script = vm.packages_step(driver="580.159.03", source=source)
    points = vm.points("apply", script)
    for point in sampling.sample(range(1, points + 1), 1, f"driver {source}"):
        vm = VirtualMachine(tmp_path / str(point))
        before, script = kept(vm), vm.packages_step(driver="580.159.03", source=source)
        process = vm.stopped("apply", script, f"lambda points, phase: points == {point}")
        assert process
        vm.end(process)
        assert vm.answer("apply", script)["version"] == "580.159.03", point
        assert not vm.answer("apply", script)["changed"] and not vm.read().drift, point
        vm.output("nvidia-smi")
        vm.undo()
        assert kept(vm) == before, point
