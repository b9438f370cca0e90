"""NVIDIA's repositories on the lab's systems: keys, somebody's own entries, what apt says, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from homelab.errors import HomelabError
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, ProxmoxHost, VirtualMachine

KEYRING = (
    "curl -fsSLo /root/k.deb https://developer.download.nvidia.com/compute/cuda/repos/{}/x86_64/cuda-keyring_1.1-1_all.deb"
    " && dpkg -i /root/k.deb && rm -f $ROOT/root/k.deb"
)
SYSTEMS: dict[str, Callable[[Path], Machine]] = {
    **{name: lambda state, name=name: VirtualMachine(state, name) for name in GUESTS},  # type: ignore[misc]
    "pve-9": ProxmoxHost,
    "pve-8": lambda state: ProxmoxHost(state, "containers-pve8"),
    "container-9": Container,
    "container-8": lambda state: Container(state, "containers-pve8", 211),
}


@pytest.fixture
def vm(kept_systems: KeptSystems) -> VirtualMachine:
    machine = kept_systems.take(VirtualMachine, VirtualMachine)
    machine.want(driver="580")
    return machine


def test_repositories_come_stay_and_go_without_a_trace(tmp_path: Path) -> None:
    """Of two systems, others with another seed: all of them take the same steps, with names of their own."""
    for name in sampling.sample(list(SYSTEMS), 2, "systems"):
        come_stay_and_go(SYSTEMS[name](tmp_path / name))


def come_stay_and_go(machine: Machine) -> None:
    # NVIDIA's repository for Debian 13 begins with 590.
    driver = "590" if "trixie" in machine.output("cat $ROOT/etc/os-release") else "580"
    machine.want(**({} if machine.target == "lxc" else {"driver": driver}), containerToolkit="docker", docker="install")
    before = machine.tree()
    answer = machine.answer("apply", machine.repository())
    assert answer["changed"]
    offered = answer["offered"]
    assert set(offered) == set(machine.asked()) and offered["nvidia-container-toolkit"]
    assert any(found for name, found in offered.items() if "toolkit" not in name and "-container" not in name)
    assert machine.read().steps == {"repository"} and not machine.read().drift
    assert not machine.answer("apply", machine.repository())["changed"]
    assert machine.answer("revert", machine.repository()) == {"kept": [], "changed": True}
    assert machine.tree() == before
    assert machine.answer("revert", machine.repository()) == {"kept": [], "changed": False}


def test_what_is_no_longer_wanted_goes(vm: VirtualMachine) -> None:
    vm.want(driver="580", containerToolkit="docker", docker="install")
    vm.answer("apply", vm.repository())
    lists = vm.root / "etc/apt/sources.list.d"
    assert (lists / "homelab-nvidia-container-toolkit.list").exists()
    vm.want(driver="590")
    vm.answer("apply", vm.repository())
    assert not (lists / "homelab-nvidia-container-toolkit.list").exists()
    assert "Pin: version 590.*" in (vm.root / "etc/apt/preferences.d/homelab-nvidia").read_text()


# -- keys ------------------------------------------------------------------------------------------------------
def test_a_key_with_another_fingerprint_is_not_taken(vm: VirtualMachine) -> None:
    vm.fault("key-wrong")
    before = vm.tree()
    text = vm.refusal(vm.repository())
    assert "a repository that is signed with the expected key" in text and "NO_PUBKEY A4B469963BF863CC" in text
    assert not list((vm.root / "usr/share/keyrings").glob("homelab*"))
    assert vm.tree() == before
    vm.fault("key-wrong", None)
    assert vm.answer("apply", vm.repository())["changed"]


def test_a_key_that_somebody_changed_is_fetched_again(vm: VirtualMachine) -> None:
    vm.answer("apply", vm.repository())
    keyring = vm.root / "usr/share/keyrings/homelab-cuda.asc"
    good = keyring.read_bytes()
    keyring.write_bytes(b"lab public key 0123456789ABCDEF0123456789ABCDEF01234567 Somebody Else\n")
    assert vm.read().drift == ("repository: /usr/share/keyrings/homelab-cuda.asc is changed",)
    vm.answer("apply", vm.repository())
    assert keyring.read_bytes() == good and not vm.read().drift


# -- somebody's own --------------------------------------------------------------------------------------------
def test_somebodys_entry_for_the_same_repository_is_used(vm: VirtualMachine) -> None:
    vm.output(KEYRING.format("ubuntu2404"))
    before = vm.tree()
    done = vm.run("apply", vm.repository())
    assert done.returncode == 0, done.stdout
    assert (
        "is in /etc/apt/sources.list.d/cuda-ubuntu2404-x86_64.list already: that entry is used" in done.stderr
        and not (vm.root / "etc/apt/sources.list.d/homelab-cuda.list").exists()
    )
    vm.answer("revert", vm.repository())
    assert vm.tree() == before


def test_a_file_of_ours_that_was_somebodys_comes_back(vm: VirtualMachine) -> None:
    theirs = vm.root / "etc/apt/preferences.d/homelab-nvidia"
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text("Package: x\nPin: version 1\nPin-Priority: 1\n")
    before = vm.tree()
    vm.answer("apply", vm.repository())
    vm.answer("revert", vm.repository())
    assert vm.tree() == before


STOCK = ("http://download.proxmox.com", "https://enterprise.proxmox.com")


def stock(host: ProxmoxHost) -> None:
    """Its owner has changed nothing of Proxmox VE's own repository."""
    sources = host.root / "etc/apt/sources.list.d/proxmox.sources"
    sources.write_text(sources.read_text().replace(*STOCK))


def test_a_stock_hosts_repository_that_asks_for_a_subscription_doesnt_matter(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    host.want(driver="580")
    repository = host.repository()
    stock(host)
    assert host.bash("apt-get update").returncode == 100
    done = host.run("apply", repository)
    assert done.returncode == 0, done.stdout
    assert "not all lists could be fetched; those that are needed here are there" in done.stderr


def test_headers_that_only_a_subscription_gives_are_said_to_need_one(tmp_path: Path) -> None:
    host = ProxmoxHost(tmp_path)
    host.want(driver="580")
    driver = host.driver(host.answer("apply", host.repository())["offered"])
    stock(host)
    host.bash("apt-get update")
    done = host.run("apply", driver)
    assert done.returncode != 0 and "No-Subscription" in done.stdout
    with pytest.raises(HomelabError, match="headers of each installed kernel"):
        host.plan()


# -- what goes wrong -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        ("apt-offline", True, "names can't be resolved, or nothing answers"),
        ("apt-offline", "developer.download.nvidia.com", "names can't be resolved, or nothing answers"),
        ("disk-full", True, "Failure writing output to destination"),
    ],
)
def test_each_failure_has_its_message_and_the_next_run_goes_on(
    vm: VirtualMachine, fault: str, value: object, words: str
) -> None:
    before = vm.tree()
    vm.fault(fault, value)
    assert words in vm.refusal(vm.repository())
    assert vm.tree() == before
    vm.fault(fault, None)
    assert vm.answer("apply", vm.repository())["changed"]


def test_a_container_without_network_says_so_instead_of_package_not_found(tmp_path: Path) -> None:
    container = Container(tmp_path)
    container.fault("apt-offline")
    text = container.refusal(container.repository())
    assert "it: a way to NVIDIA's servers" in text and "Temporary failure resolving" in text


def test_a_lock_is_waited_for_with_a_line_that_says_who_has_it(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, "debian-12")
    machine.output("dpkg --purge --force-depends curl")
    machine.want(driver="580")
    machine.fault("apt-locked", 2)
    done = machine.run("apply", machine.repository())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It is held by process " in done.stderr and "(unattended-upgr)" in done.stderr


def test_a_lock_that_stays_is_named(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, "debian-12")
    machine.output("dpkg --purge --force-depends curl")
    machine.want(driver="580", timeouts={"lock": 1})
    machine.fault("apt-locked", 600)
    text = machine.refusal(machine.repository())
    assert "Unable to acquire the dpkg frontend lock" in text and "nvidia.timeouts.lock" in text


def test_an_interrupted_dpkg_is_repaired_first(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, "debian-12")
    machine.want(driver="580")
    machine.fault("apt-broken")
    done = machine.run("apply", machine.repository())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repairing that first" in done.stderr


def test_the_proxys_password_is_in_the_environment_alone(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, "debian-12")
    machine.want(driver="580", proxy="http://someone:s3cret@proxy.lan:3128")
    # A curl that tells what it was given, and where.
    machine.output(
        "mkdir -p $ROOT/usr/local/bin && printf '%s\\n' '#!/bin/bash' 'echo \"$https_proxy $http_proxy $*\" >>$ROOT/tmp/seen' "
        "'echo \"via $https_proxy: Could not resolve proxy: proxy.lan\" >&2; exit 5' >$ROOT/usr/local/bin/curl"
        " && chmod +x $ROOT/usr/local/bin/curl"
    )
    machine.environment_first = machine.root / "usr/local/bin"
    done = machine.run("apply", machine.repository())
    assert done.returncode == 1
    seen = (machine.root / "tmp/seen").read_text().split(" ", 2)
    assert seen[0] == seen[1] == "http://someone:s3cret@proxy.lan:3128" and "s3cret" not in seen[2]
    assert "s3cret" not in done.stdout + done.stderr
    assert "via http://(secret)@proxy.lan:3128: Could not resolve proxy" in done.stdout + done.stderr
    for place in (machine.root / "var/lib/homelab").rglob("*"):
        assert place.is_dir() or b"s3cret" not in place.read_bytes()


def test_what_is_killed_is_finished_by_the_next_run(vm: VirtualMachine) -> None:
    vm.want(driver="580", containerToolkit="docker", docker="install")
    before = vm.tree()
    script = vm.repository()
    points = vm.points("apply", script)
    vm.answer("revert", script)
    for point in sampling.sample(range(1, points + 1), 1, "repository"):
        process = vm.stopped("apply", script, f"lambda points, phase: points == {point}")
        assert process
        vm.end(process)
        assert vm.answer("apply", script)["offered"]["nvidia-container-toolkit"], point
        assert not vm.answer("apply", script)["changed"], point
        vm.answer("revert", script)
        assert vm.tree() == before, point
