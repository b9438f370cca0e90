"""NVIDIA's container toolkit: engines configured, restarted only where that changed, and given back as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.nvidia import engines
from tests import sampling
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, Step, VirtualMachine, with_repository, without_dpkg

RUN = "docker run --rm --runtime=nvidia --gpus all ubuntu nvidia-smi -L"
DAEMON = "etc/docker/daemon.json"
# That DKMS makes for itself.
CDI = "etc/cdi/nvidia.yaml"
# As people write them: no indentation, or another one, and an order of their own.
OTHERS = '{"log-driver": "local",\n  "live-restore": true, "dns": ["192.168.1.1"], "insecure-registries": []}\n'
DRIVER = "apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open && modprobe nvidia"


@pytest.fixture(scope="module")
def with_docker(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Ubuntu 24.04 with a driver, docker and podman, which somebody has installed."""
    vm = with_repository(VirtualMachine(tmp_path_factory.mktemp("vm")), GUESTS[0])
    vm.output(f"{DRIVER} && apt-get -qq install -y docker.io podman nvidia-container-toolkit")
    return vm


@pytest.fixture
def vm(with_docker: Machine) -> Iterator[Machine]:
    """The same; whatever a test does is taken back, and leaves nothing."""
    packages = with_docker.packages()
    yield with_docker
    with_docker.answer("revert", script(with_docker))
    (with_docker.root / DAEMON).unlink(missing_ok=True)
    (with_docker.root / "var/lib/docker/images").unlink(missing_ok=True)
    with_docker.output("systemctl restart docker")
    with_docker.answer("revert", script(with_docker))  # folders that it made and that weren't empty
    assert with_docker.packages() == packages
    assert not (with_docker.root / "var/lib/homelab").exists()


def script(machine: Machine, runtime: str = "docker", driver: str = "580.178.04", **settings: Any) -> Step:
    machine.want(driver="580", containerToolkit=runtime, timeouts={"lock": 1}, **settings)
    return machine.toolkit_step(driver)


# k3s as far as the toolkit has to do with it: when it starts it writes down which runtimes it finds; its containerd's client is in its program.
K3S = """#!/bin/bash
folder=$ROOT/var/lib/rancher/k3s/agent/etc/containerd
if [[ $1 == ctr ]]; then shift && exec ctr "$@"; fi
mkdir -p "$folder"
printf 'version = 3\\n' >"$folder/config.toml"
[[ -e $ROOT/root/own-template || ! -e $ROOT/usr/bin/nvidia-container-runtime ]] || printf 'BinaryName = "/usr/bin/nvidia-container-runtime"\\n' >>"$folder/config.toml"
"""
K3S_UNIT = (
    "[Unit]\nDescription=k3s\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/bin/k3s server\n"
)


def with_k3s(machine: Machine, unit: str = "k3s") -> None:
    """A node of a cluster that was set up before the toolkit came; `without_k3s` takes it away."""
    for path, text in (("usr/local/bin/k3s", K3S), (f"etc/systemd/system/{unit}.service", K3S_UNIT)):
        (machine.root / path).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / path).write_text(text)
    (machine.root / "usr/local/bin/k3s").chmod(0o755)
    machine.output(
        f"touch $ROOT/root/own-template; systemctl daemon-reload; systemctl start {unit}; rm $ROOT/root/own-template"
    )


def without_k3s(machine: Machine) -> None:
    machine.output(
        "systemctl stop k3s; systemctl stop k3s-agent; rm -rf $ROOT/usr/local/bin/k3s $ROOT/etc/systemd/system/k3s* $ROOT/var/lib/rancher $ROOT/root/own-template"
    )


@pytest.mark.parametrize("unit", sampling.sample(["k3s", "k3s-agent"], 1, "K3s"))
def test_k3s_is_restarted_once_to_find_the_runtime(vm: Machine, unit: str) -> None:
    with_k3s(vm, unit)
    assert "k3s" in (vm.read().system.runtimes or ())
    first = vm.answer("apply", script(vm, "k3s"))
    assert (first["runtime"], first["restarted"]) == ("k3s", True) and calls(vm, "systemctl", "restart", unit) == 1
    again = vm.answer("apply", script(vm, "k3s"))
    assert (again["changed"], again["restarted"]) == (False, False) and calls(vm, "systemctl", "restart", unit) == 1
    vm.answer("revert", script(vm, "k3s"))
    without_k3s(vm)


def test_a_k3s_that_does_not_find_the_runtime_or_is_not_there_is_named(
    vm: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_K3S_SECONDS", 0.0)
    with_k3s(vm)
    (vm.root / "root/own-template").touch()
    assert "a config.toml.tmpl of your own" in vm.refusal(script(vm, "k3s"))
    vm.output("systemctl stop k3s")
    assert "neither k3s nor k3s-agent is active" in vm.refusal(script(vm, "k3s"))
    vm.answer("revert", script(vm, "k3s"))
    without_k3s(vm)


def calls(machine: Machine, program: str, *arguments: str) -> int:
    """How often a program was called with such arguments, by the lab's log of programs."""
    lines = (machine.root.parent / "log/programs.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line for line in map(json.loads, lines) if line["program"] == program]
    return sum(tuple(line["args"][: len(arguments)]) == arguments for line in found)


def restarts(machine: Machine) -> int:
    """How often docker was restarted."""
    return calls(machine, "systemctl", "restart", "docker")


# -- docker ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("distribution", sampling.sample(GUESTS[1:], 1, "Docker"))
def test_docker_is_installed_where_that_was_asked_for_and_all_of_it_goes_again(
    tmp_path: Path, distribution: str
) -> None:
    machine = VirtualMachine(tmp_path, distribution)
    packages, tree = machine.packages(), without_dpkg(machine)
    text = script(machine, docker="install")
    said = machine.refusal(text)
    assert "docker, for which nvidia.containerToolkit is set" in said and "nvidia.docker: install" in said
    assert machine.packages() == packages
    installed = machine.install(driver="580", containerToolkit="docker", docker="install")
    text = script(machine, driver=installed["version"], docker="install")
    answer = machine.answer("apply", text)
    assert (answer["runtime"], answer["changed"], answer["restarted"]) == ("docker", True, True)
    assert answer["version"] == machine.packages()["nvidia-container-toolkit"]
    assert "docker.io" in machine.packages() and "nvidia" in machine.output("docker info")
    assert machine.answer("apply", text) == {**answer, "changed": False, "restarted": False}
    assert machine.answer("revert", text) == {"changed": True, "kept": []}
    machine.undo()
    # The owner's images and volumes stay, and what dpkg notes of that.
    assert (machine.packages(), without_dpkg(machine)) == (packages, tree)


@pytest.mark.parametrize(
    "before",
    [OTHERS, *sampling.sample([None, "", "{}", '{"runtimes": {"kata": {"path": "kata-runtime"}}}'], 1, "daemon.json")],
)
def test_somebodys_configuration_is_kept_and_given_back_byte_for_byte(vm: Machine, before: str | None) -> None:
    path = vm.root / DAEMON
    if before is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(before)
        path.chmod(0o600)
    tree = vm.tree()
    answer = vm.answer("apply", script(vm))
    assert answer["restarted"]
    assert "GPU 0: NVIDIA GeForce RTX 5090" in vm.output(RUN)
    now = json.loads(path.read_text())
    assert now["runtimes"].pop("nvidia")["path"] == "nvidia-container-runtime"
    if not now["runtimes"]:
        del now["runtimes"]
    assert now == json.loads(before or "{}")
    vm.output("docker rmi ubuntu; rm $ROOT/var/lib/docker/images")
    vm.answer("revert", script(vm))
    assert vm.tree() == tree
    assert "unknown or invalid runtime name: nvidia" in vm.bash(RUN).stderr


def test_what_somebody_has_taken_out_is_put_in_again_and_a_file_that_is_gone_stays_away(vm: Machine) -> None:
    vm.answer("apply", script(vm))
    (vm.root / DAEMON).unlink()
    vm.answer("revert", script(vm))
    assert not (vm.root / DAEMON).exists()
    vm.answer("apply", script(vm))
    (vm.root / DAEMON).write_text('{"debug": true}')
    assert vm.answer("apply", script(vm))["restarted"]
    assert "GPU 0:" in vm.output(RUN)
    vm.answer("revert", script(vm))
    assert json.loads((vm.root / DAEMON).read_text()) == {"debug": True}


def test_docker_that_somebody_has_configured_is_neither_written_nor_restarted(vm: Machine) -> None:
    path = vm.root / DAEMON
    path.parent.mkdir(exist_ok=True)
    path.write_text('{ "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}} }')
    vm.output("systemctl restart docker")
    before, count = path.read_bytes(), restarts(vm)
    assert not vm.answer("apply", script(vm))["restarted"]
    assert (path.read_bytes(), restarts(vm)) == (before, count)
    vm.answer("revert", script(vm))
    assert (path.read_bytes(), restarts(vm)) == (before, count)


# -- other engines ---------------------------------------------------------------------------------------------
def test_another_engine_gives_the_first_one_back(vm: Machine) -> None:
    path = vm.root / DAEMON
    path.parent.mkdir(exist_ok=True)
    path.write_text(OTHERS)
    vm.answer("apply", script(vm))
    vm.answer("apply", script(vm, "podman"))
    assert path.read_text() == OTHERS
    assert "unknown or invalid runtime name: nvidia" in vm.bash(RUN).stderr, "docker was restarted"
    vm.answer("revert", script(vm, "podman"))


def test_podman_gets_a_specification_which_is_made_anew_for_another_driver(vm: Machine) -> None:
    text = script(vm, "podman")
    answer = vm.answer("apply", text)
    assert (answer["cdi"], answer["restarted"]) == (f"/{CDI}", False)
    assert "GPU 0:" in vm.output("podman run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi -L")
    # podman 4.9 of Ubuntu 24.04 refuses what the toolkit writes by itself.
    assert "additionalGids" not in (vm.root / CDI).read_text()
    assert not vm.answer("apply", text)["changed"]
    (vm.root / CDI).write_text("kind: nonsense\n")
    assert vm.answer("apply", text)["changed"], "somebody has changed it"
    vm.answer("apply", script(vm, "podman", "580.159.03"))
    vm.answer("revert", text)
    assert not (vm.root / CDI).exists() and not (vm.root / "etc/cdi").exists()


def test_a_specification_of_somebodys_is_kept_and_given_back(vm: Machine) -> None:
    vm.output(
        "nvidia-ctk cdi generate --feature-flag=no-additional-gids-for-device-nodes --output=/etc/cdi/nvidia.yaml"
    )
    before = (vm.root / CDI).read_bytes()
    (vm.root / CDI).write_bytes(before.replace(b"580.178.04", b"580.105.08"))
    vm.answer("apply", script(vm, "podman"))
    assert b"580.178.04" in (vm.root / CDI).read_bytes()
    vm.answer("revert", script(vm, "podman"))
    assert b"580.105.08" in (vm.root / CDI).read_bytes()
    vm.output("rm -r $ROOT/etc/cdi")


def test_a_specification_that_this_podman_refuses_is_made_anew_and_given_back(vm: Machine) -> None:
    run = "podman run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi -L"
    vm.output("nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
    before = (vm.root / CDI).read_bytes()
    assert b"additionalGids" in before and "unresolvable CDI devices nvidia.com/gpu=all" in vm.bash(run).stderr
    vm.answer("apply", script(vm, "podman"))
    assert "GPU 0:" in vm.output(run)
    vm.answer("revert", script(vm, "podman"))
    assert (vm.root / CDI).read_bytes() == before
    vm.output("rm -r $ROOT/etc/cdi")


def test_a_driver_that_isnt_loaded_is_told_by_its_cause(vm: Machine) -> None:
    vm.output(
        "for m in nvidia_uvm nvidia_drm nvidia_modeset nvidia; do rmmod $m; done; mv $ROOT/usr/lib/modules $ROOT/usr/lib/away"
    )
    try:
        said = vm.refusal(script(vm, "podman"))
    finally:
        vm.output("mv $ROOT/usr/lib/away $ROOT/usr/lib/modules; modprobe nvidia")
    assert "ERROR_DRIVER_NOT_LOADED" in said and "no module is loaded" in said


# -- a container -----------------------------------------------------------------------------------------------
def with_libraries(folder: Path, *more: str) -> Container:
    """Container 901 with the host's libraries, and more packages."""
    machine = Container(folder)
    with_repository(machine, GUESTS[0])
    version = machine.host.output("cat $ROOT/sys/module/nvidia/version").strip()
    names = (
        "libnvidia-compute",
        "libnvidia-decode",
        "libnvidia-encode",
        "nvidia-utils",
        "nvidia-kernel-common",
        "nvidia-firmware",
    )
    packages = [*(f"{name}-580={version}-*" for name in names), "docker.io", "nvidia-container-toolkit", *more]
    machine.output(f"apt-get -qq install -y --no-install-recommends {' '.join(packages)}")
    return machine


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return with_libraries(tmp_path_factory.mktemp("container"))


def test_in_a_container_docker_gets_cards_by_their_cdi_names(inside: Machine) -> None:
    packages, tree = inside.packages(), inside.tree()
    version = inside.host.output("cat $ROOT/sys/module/nvidia/version").strip()
    text = script(inside, driver=version)
    assert inside.answer("apply", text)["cdi"] == f"/{CDI}"
    run = "docker run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi -L"
    assert "GPU 0:" in inside.output(run)
    assert json.loads((inside.root / DAEMON).read_text())["features"] == {"cdi": True}
    assert not inside.answer("apply", text)["changed"]
    inside.output("rm -r $ROOT/var/lib/docker")
    inside.answer("revert", text)
    assert (inside.packages(), inside.tree()) == (packages, tree)
