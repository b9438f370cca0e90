"""NVIDIA's driver on the lab's systems: installed, changed, replaced, given back; and what is said where it can't be."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import nvidia_steps as steps
from homelab.symptoms import recognise
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.lab.guest_kit import scenario
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, ProxmoxHost, Step, VirtualMachine
from tests.waiting import PATIENCE, wait_until

# The key that DKMS makes for itself stays: somebody may have enrolled it.
KEY = "var/lib/dkms/mok.pub"
RUN = "https://download.nvidia.com/XFree86/Linux-x86_64/{0}/NVIDIA-Linux-x86_64-{0}.run"


@pytest.fixture
def vm(kept_systems: KeptSystems) -> VirtualMachine:
    """A stock one."""
    return kept_systems.take(VirtualMachine, VirtualMachine)


#: What a VM had, the VM with the repositories for a driver, and that driver's script.
Offered = tuple[dict[str, tuple[int, bytes]], VirtualMachine, Step]
#: What a container had, what the step said that installed its libraries, and the container with them.
Shared = tuple[dict[str, tuple[int, bytes]], dict[str, Any], Container]


@pytest.fixture
def offered(kept_systems: KeptSystems) -> Callable[..., Offered]:
    """`offered(driver="580")`: a stock VM that has the repositories for that, and the script that comes next."""

    def take(**settings: Any) -> Offered:
        def make(folder: Path) -> Offered:
            vm = VirtualMachine(folder)
            return kept(vm), vm, failing(vm, **settings)

        return kept_systems.take(("offered", repr(sorted(settings.items()))), make)

    return take


@pytest.fixture
def with_580(kept_systems: KeptSystems) -> VirtualMachine:
    """A VM that has got the driver."""

    def make(folder: Path) -> VirtualMachine:
        vm = VirtualMachine(folder)
        vm.install(driver="580")
        return vm

    return kept_systems.take("with 580", make)


@pytest.fixture
def shared(kept_systems: KeptSystems) -> Shared:
    """A container that has got its host's libraries."""

    def make(folder: Path) -> Shared:
        return made(folder, "phoenix", 901)

    return kept_systems.take("shared", make)


def undo(machine: Machine) -> None:
    """Both steps' way back, in its order."""
    machine.want(driver="580")
    machine.answer("revert", machine.driver({}))
    machine.answer("revert", machine.repository())


def kept(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """What the way back must give back."""
    return {name: value for name, value in machine.tree().items() if name != KEY}


def of_driver(machine: Machine) -> dict[str, str]:
    """Its packages."""
    return {name: version for name, version in machine.packages().items() if "nvidia" in name or name == "libcuda1"}


PERSISTENCE = "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"


def loaded(machine: Machine) -> str | None:
    return machine.read().system.loaded


# -- there and back --------------------------------------------------------------------------------------------
def test_a_vm_gets_the_driver_without_a_reboot_and_is_given_back(kept_systems: KeptSystems) -> None:
    """One distribution, another one with another seed; of all of them, what their programs do is in tests/simulator/test_driver_stack.py."""
    # Not Ubuntu 26.04, whose kernel's nouveau has the card until a reboot.
    for distribution in sampling.sample(
        [one for one in GUESTS if one not in ("ubuntu-26.04", "debian-13")], 1, "guests"
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
    answer = vm.install(driver="580")
    assert answer["source"] == source and answer["changed"]
    assert answer["reboot"] == "no" and answer["version"].startswith("580.")
    assert f", {answer['version']}\n" in vm.output("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader")
    assert "installed" in vm.output("dkms status")
    # The card stays initialised: at once, and after each boot.
    assert vm.output(PERSISTENCE) == "Enabled\n"
    reading = vm.read()
    assert (reading.system.loaded, reading.system.loaded_flavour) == (answer["version"], "open")
    assert reading.steps == {"repository", "driver"} and not reading.drift
    vm.reboot()
    assert vm.output(PERSISTENCE) == "Enabled\n"
    assert not vm.install()["changed"] and not vm.read().drift
    undo(vm)
    assert kept(vm) == before


def test_a_host_gets_the_driver_for_every_kernel(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    before = kept(host)
    answer = host.install(driver="580")
    assert answer["reboot"] == "yes"
    for kernel in host.read().system.kernels or ():
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == answer["version"]
    assert not host.install()["changed"]
    assert [line.partition(":")[0] for line in host.read().drift] == ["boot"]
    host.host.reboot()
    assert loaded(host) == answer["version"] and not host.read().drift
    assert "active" in host.output("systemctl is-active homelab-nvidia-persistence.service")
    undo(host)
    assert kept(host) == before


def test_a_hosts_older_driver_is_replaced_for_every_kernel(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path, "containers-pve8")
    before = host.packages()
    answer = host.install(driver="580")
    assert answer["reboot"] == "yes" and answer["why"].endswith(f"{answer['version']} (open) is installed")
    for kernel in host.read().system.kernels or ():
        assert host.output(f"modinfo -k {kernel} -F version nvidia").strip() == answer["version"]
    host.host.reboot()
    assert loaded(host) == answer["version"] and not host.read().drift
    host.want(driver="580")
    # No repository has what was there before.
    answer = host.answer("revert", host.driver({}))
    assert {name for name, version in before.items() if host.packages().get(name) != version} <= set(answer["kept"])


def made(folder: Path, name: str, ctid: int) -> Shared:
    container = Container(folder, name, ctid)
    stock = kept(container)
    return stock, container.install(), container


#: A container of another host, with bind mounts instead of options, gets the same: for every other seed.
BY_MOUNTS = ["containers-pve8"] * (sampling.EVERY or sampling.drawn("bind mounts").random() < 0.5)


@pytest.mark.parametrize("on", ["phoenix", *BY_MOUNTS])
def test_a_container_gets_the_hosts_libraries_and_nothing_else(shared: Shared, tmp_path: Path, on: str) -> None:
    before, answer, container = shared if on == "phoenix" else made(tmp_path, on, 211)
    assert answer["version"] == container.read().system.host_driver
    assert (answer["source"], answer["reboot"]) == ("packages", "no-module")
    assert "GPU 0:" in container.output("nvidia-smi -L")
    assert not [name for name in container.packages() if "dkms" in name or "headers" in name]
    assert not container.install()["changed"] and not container.read().drift
    undo_container(container)
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
    before = kept(container)
    answer = container.install()
    assert (answer["source"], answer["version"]) == ("run", container.read().system.host_driver)
    assert "GPU 0:" in container.output("nvidia-smi -L")
    assert not [name for name in container.packages() if "dkms" in name or "headers" in name]
    undo_container(container)
    assert kept(container) == before


def undo_container(container: Container) -> None:
    container.answer("revert", container.driver({}))
    container.answer("revert", container.repository())


def without_packages(tmp_path: Path) -> None:
    container = Container(tmp_path)
    before = kept(container)
    container.fault("package-missing", f"{container.ctid}=libnvidia-compute*")
    answer = container.install()
    assert answer["source"] == "run" and "kmod" in answer["packages"]
    assert "GPU 0:" in container.output("nvidia-smi -L")
    assert not container.install()["changed"] and not container.read().drift
    container.fault("package-missing", None)
    undo_container(container)
    assert kept(container) == before


def test_a_container_follows_its_host(shared: Shared) -> None:
    _, _, container = shared
    host = ProxmoxHost.of(container.host)
    host.install(driver="595")
    container.host.reboot()
    container.host.output(f"pct start {container.ctid} 2>/dev/null || :")
    assert any(line.startswith("driver: ") and "the host's driver is 595." in line for line in container.read().drift)
    assert container.bash("nvidia-smi").returncode == 18
    answer = container.install()
    assert answer["version"] == loaded(host) and "GPU 0:" in container.output("nvidia-smi -L")
    assert not container.read().drift


# -- from one to the other -------------------------------------------------------------------------------------
def test_every_change_of_branch_flavour_and_source_converges(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path)
    pci = vm.read().system.cards
    assert pci and "10de:2b85" in pci
    before = kept(vm)
    # From one to the next; of what comes first and what then, others for another seed.
    ways: list[dict[str, Any]] = [
        {"driver": "590"},
        {"driver": "570.211.01", "source": "packages"},
        {"driver": "580.159.03", "source": "run"},
        {"driver": "580.105.08", "source": "run"},
        {"driver": "580.105.08", "source": "packages"},
    ]
    for settings in [{"driver": "580"}, *sampling.sample(ways, 3, "ways")]:
        answer = vm.install(**settings)
        wanted = str(settings["driver"])
        assert answer["version"].startswith(wanted) and answer["changed"], answer
        if settings.get("source") == "run":
            assert answer["source"] == "run" and not of_driver(vm)
        else:
            assert answer["source"] == "packages" and not (vm.root / "usr/bin/nvidia-uninstall").exists()
            assert {v.partition("-")[0] for v in of_driver(vm).values()} == {answer["version"]}
        assert [line.partition(":")[0] for line in vm.read().drift] in ([], ["boot"])
        if wanted in ("580", "580.105.08"):  # from either source
            assert not vm.install()["changed"]
        vm.reboot()
        reading = vm.read()
        assert (reading.system.loaded, reading.system.loaded_flavour) == (answer["version"], "open")
        assert not reading.drift
        vm.output("nvidia-smi")
    undo(vm)
    assert kept(vm) == before


def test_flavours_replace_each_other(tmp_path: Path) -> None:
    """Of packages of one distribution; with another seed of the other one's, which have other names."""
    for distribution in sampling.sample(["ubuntu-24.04", "debian-12"], 1, "flavours"):
        vm = VirtualMachine(tmp_path / distribution, distribution, card="1e81")
        for flavour in ("proprietary", "open"):
            answer = vm.install(driver="580", flavour=flavour)
            assert answer["changed"]
            vm.reboot()
            assert vm.read().system.loaded_flavour == flavour and not vm.read().drift
            vm.output("nvidia-smi")


# -- somebody's own --------------------------------------------------------------------------------------------
def test_a_driver_that_is_what_is_wanted_stays_somebodys(vm: VirtualMachine) -> None:
    vm.output("apt-get -qq update && apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open")
    vm.reboot()
    before = kept(vm)
    answer = vm.install(driver="580")
    # What changes is the service by which cards stay initialised.
    assert answer == answer | {"source": "found", "changed": True, "packages": [], "reboot": "no"}
    assert not vm.install(driver="580")["changed"]
    assert answer["version"] == "580.173.02"
    assert vm.read().steps == {"repository", "driver"} and not vm.read().drift
    undo(vm)
    assert kept(vm) == before


@pytest.mark.parametrize(
    ("distribution", "source"), sampling.sample([("ubuntu-24.04", "run"), ("debian-12", "packages")], 1, "theirs")
)
def test_somebodys_other_driver_is_replaced_and_comes_back(tmp_path: Path, distribution: str, source: str) -> None:
    vm = VirtualMachine(tmp_path, distribution)
    theirs = "nvidia-driver-535-open" if "ubuntu" in distribution else "nvidia-driver nvidia-open-kernel-dkms"
    if "debian" in distribution:
        vm.output("sed -i 's/^Components: main$/& contrib non-free/' $ROOT/etc/apt/sources.list.d/debian.sources")
    vm.output(f"apt-get -qq update && apt-get -qq install -y linux-headers-$(uname -r) {theirs}")
    before, automatic = vm.packages(), vm.output("apt-mark showauto")
    answer = vm.install(driver="580.159.03", source=source)
    assert answer["source"] == source and answer["version"] == "580.159.03"
    vm.reboot()
    assert loaded(vm) == "580.159.03"
    undo(vm)
    assert vm.packages() == before
    assert vm.output("apt-mark showauto") == automatic


def test_what_others_need_by_now_stays_and_is_named(with_580: VirtualMachine) -> None:
    vm = with_580
    vm.output("apt-get -qq install -y nvidia-compute-utils-580")
    answer = vm.answer("revert", vm.driver({}))
    assert {"libnvidia-compute-580", "nvidia-kernel-common-580", "nvidia-firmware-580"} <= set(answer["kept"])
    assert "nvidia-dkms-580-open" not in vm.packages() and "nvidia-compute-utils-580" in vm.packages()


def test_a_package_that_somebody_holds_is_not_changed(vm: VirtualMachine) -> None:
    vm.output("apt-get -qq update && apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open")
    vm.output("apt-mark hold libnvidia-compute-580")
    vm.want(driver="590")
    text = vm.refusal(vm.driver(vm.answer("apply", vm.repository())["offered"]))
    assert "apt-mark showhold" in text
    assert of_driver(vm)["libnvidia-compute-580"].startswith("580.173.02")


# -- drift -----------------------------------------------------------------------------------------------------
def test_a_kernel_that_comes_without_the_module_is_drift_of_a_host(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    host.install(driver="580")
    host.host.reboot()
    host.output("apt-get -qq purge -y proxmox-default-headers proxmox-headers-6.17.13-2-pve")
    host.output("apt-get -qq install -y --no-install-recommends proxmox-kernel-6.17.13-2-pve-signed")
    drift = host.read().drift
    assert any("the kernel 6.17.13-2-pve has no module" in line for line in drift), drift
    assert host.install()["changed"]
    assert not host.read().drift
    assert "6.17.13-2-pve, x86_64: installed" in host.output("dkms status")


def test_packages_that_went_and_files_that_changed_are_drift_and_come_back(with_580: VirtualMachine) -> None:
    vm = with_580
    vm.output("apt-get -qq purge -y nvidia-utils-580 && rm $ROOT/etc/apt/apt.conf.d/52homelab-nvidia")
    drift = vm.read().drift
    assert "repository: /etc/apt/apt.conf.d/52homelab-nvidia is missing" in drift
    assert any(line.startswith("driver: package nvidia-utils-580 is gone") for line in drift)
    vm.install()
    assert not vm.read().drift
    vm.output("nvidia-smi")


# -- what goes wrong -------------------------------------------------------------------------------------------
def failing(vm: VirtualMachine, **settings: object) -> Step:
    """The step of the driver after the repositories, for a fault that is set after them."""
    vm.want(**settings)
    offered = vm.answer("apply", vm.repository())["offered"]
    return vm.driver(offered)


#: In the order of the step's own: where one has failed, the next run gets as far as the next failure.
FAILURES: list[tuple[str, object, str]] = [
    ("apt-locked", 600, "Unable to acquire the dpkg frontend lock"),
    ("package-missing", "nvidia-utils-580", "for 'nvidia-utils-580' was not found"),
    ("disk-full", True, "it: room on its disk"),
    ("apt-offline", True, "names can't be resolved, or nothing answers"),
    ("download-corrupt", "libnvidia-compute", "Hash Sum mismatch"),
    ("dkms-fails", "6.8.0-86", "make.log ends:"),
]


def test_each_failure_has_its_message_and_the_next_run_goes_on(offered: Callable[..., Offered]) -> None:
    _, vm, script = offered(driver="580", timeouts={"lock": 1})
    for fault, value, words in FAILURES:
        vm.output("apt-get clean")
        vm.fault(fault, value)
        text = vm.refusal(script)
        vm.fault(fault, None)
        assert words in text and "{" not in text
        if fault == "dkms-fails":
            assert "implicit declaration of function 'lab_fault'" in text and recognise(text)
    assert vm.answer("apply", script)["reboot"] == "no"
    vm.output("nvidia-smi")
    assert not vm.read().drift


def test_each_failure_of_the_installer_has_its_message(offered: Callable[..., Offered]) -> None:
    _, vm, script = offered(driver="580.159.03", source="run")
    failures: list[tuple[str, object, str]] = [
        ("apt-offline", "download.nvidia.com", "names can't be resolved, or nothing answers"),
        ("download-corrupt", ".run", "the checksum "),
        ("dkms-fails", "6.8.0-86", "nvidia-installer.log ends:"),
    ]
    for fault, value, words in failures:
        vm.fault(fault, value)
        assert words in vm.refusal(script)
        vm.fault(fault, None)
    assert vm.answer("apply", script)["source"] == "run"
    vm.output("nvidia-smi")


@pytest.mark.parametrize("source", ["packages", "run"])
def test_a_kernel_whose_headers_nobody_has_is_named(offered: Callable[..., Offered], source: str) -> None:
    _, vm, script = offered(driver="580.159.03", source=source, timeouts={"lock": 1})
    vm.fault("package-missing", "linux-headers-6.8.0-86-generic")
    text = vm.refusal(script)
    assert "linux-headers-6.8.0-86-generic: not installed, and in none of the lists" in text
    # Somebody has them from elsewhere.
    vm.output(
        "mkdir -p $ROOT/usr/src/linux-headers-6.8.0-86-generic && touch $ROOT/usr/src/linux-headers-6.8.0-86-generic/Makefile"
        " && ln -s ../../../src/linux-headers-6.8.0-86-generic $ROOT/usr/lib/modules/6.8.0-86-generic/build"
    )
    assert vm.answer("apply", script)["reboot"] == "no"


def test_a_download_that_breaks_is_gone_on_with_by_the_next_run(offered: Callable[..., Offered]) -> None:
    _, vm, script = offered(driver="580.159.03", source="run")
    vm.fault("download-breaks", ".run")
    assert "curl: (18) transfer closed with" in vm.refusal(script)
    assert vm.answer("apply", script)["version"] == "580.159.03"


def test_a_missing_installer_is_named_by_its_address(vm: VirtualMachine) -> None:
    known = {"580.99.99": "ab" * 32}
    text = vm.refusal(failing(vm, driver="580.99.99", source="run", runSha256=known))
    assert RUN.format("580.99.99") in text and "404" in text


def test_an_installer_with_another_checksum_than_the_known_one_is_not_run(vm: VirtualMachine) -> None:
    """A mirror, or NVIDIA's server itself, has another file, with a checksum of its own beside it."""
    text = vm.refusal(failing(vm, driver="580.159.03", source="run", runSha256={"580.159.03": "ab" * 32}))
    assert f"with the checksum {'ab' * 32}" in text and "wasn't started" in text
    assert not (vm.root / "usr/bin/nvidia-smi").exists() and not list(vm.root.rglob("*.run"))


def test_an_installer_that_only_the_repositories_show_to_be_needed_is_refused_before_it_is_fetched(
    tmp_path: Path,
) -> None:
    container = Container(tmp_path)
    container.fault("package-missing", f"{container.ctid}=libnvidia-compute*")
    container.answer("apply", container.repository())
    plan = container.plan()
    assert plan.source == "either" and plan.run
    unknown = dataclasses.replace(plan, run=dataclasses.replace(plan.run, sha256=""))
    wanted = steps.driver(unknown, container.settings, container.context(plan))
    text = container.refusal(container.step("nvidia_driver", wanted))
    assert "the SHA-256 of NVIDIA's installer" in text and "nvidia.runSha256" in text
    assert "kmod" not in container.packages() and not list(container.root.rglob("*.run"))


def test_secure_boot_without_the_key_is_said_by_the_module(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, system={"secure-boot": True, "mok-enrolled": True})
    script = failing(vm, driver="580")
    vm.enrolled(False)
    text = vm.refusal(script)
    assert "Key was rejected by service" in text and "mokutil --import /var/lib/dkms/mok.pub" in text


def test_a_vm_without_a_card_says_so(tmp_path: Path) -> None:
    # It was planned when it had one.
    vm, other = VirtualMachine(tmp_path / "a", card=None), VirtualMachine(tmp_path / "b")
    other.want(driver="580")
    script = other.driver(vm.answer("apply", other.repository())["offered"])
    text = vm.refusal(script)
    assert "could not insert 'nvidia'" in text and "`lspci -nn -d 10de:` in the VM" in text


def test_nouveau_keeps_the_card_until_the_reboot(tmp_path: Path) -> None:
    for source in sampling.sample(["packages", "run"], 1, "nouveau"):
        vm = VirtualMachine(tmp_path / source, card="2684")
        assert vm.read().system.nouveau
        answer = vm.install(driver="580.159.03", source=source)
        assert answer["reboot"] == "yes" and "nouveau has a card" in answer["why"]
        vm.reboot()
        assert loaded(vm) == "580.159.03" and not vm.read().system.nouveau


@pytest.mark.parametrize("source", sampling.sample(["packages", "run"], 1, "killed"))
def test_what_is_killed_is_finished_by_the_next_run(offered: Callable[..., Offered], source: str) -> None:
    before, vm, script = offered(driver="580.159.03", source=source)
    points = vm.points("apply", script)
    for point in sampling.sample(range(1, points + 1), 1, f"driver {source}"):
        _, vm, script = offered(driver="580.159.03", source=source)
        process = vm.stopped("apply", script, f"lambda points, phase: points == {point}")
        assert process
        vm.end(process)
        assert vm.answer("apply", script)["version"] == "580.159.03", point
        assert not vm.answer("apply", script)["changed"] and not vm.read().drift, point
        vm.output("nvidia-smi")
        undo(vm)
        assert kept(vm) == before, point


def test_a_client_that_dies_stops_nothing(offered: Callable[..., Offered]) -> None:
    _, vm, script = offered(driver="580", timeouts={"lock": 1})
    process = vm.start("apply", script)
    assert process.stdout and process.stderr
    assert process.stderr.readline()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=PATIENCE) is not None
    vm.output("nvidia-smi")
    assert not vm.answer("apply", script)["changed"]


def test_long_runs_are_seen_as_they_go(offered: Callable[..., Offered]) -> None:
    _, vm, script = offered(driver="580", timeouts={"lock": 1})
    vm.fault("apt-slow", 3)
    process = vm.start("apply", script)
    wait_until(lambda: vm.has_said("Get:1 "))
    assert process.poll() is None
    assert "nvidia-utils-580" not in vm.packages()
    assert process.communicate(timeout=PATIENCE)[0]
