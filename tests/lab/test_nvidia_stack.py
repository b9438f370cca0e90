"""NVIDIA's stack on the lab's systems, as it is planned for them: installed, used from inside, told where it doesn't work, and given back.

What each layer does on each way: tests/agent/test_nvidia_packages.py, with a real apt, test_container_toolkit.py, test_nvidia_verification.py.
What is said of which texts: tests/unit/test_nvidia_verification.py. With the engine: tests/e2e/test_nvidia_vm.py, test_nvidia_host.py, test_nvidia_lxc.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab.nvidia.plan import refused, wanted
from remote_scripts.both.nvidia_packages import Said
from remote_scripts.tools.plain import of_plain
from tests import sampling
from tests.boot_layers import Asked
from tests.lab.host_kit import Host
from tests.lab.nvidia_kit import (
    GUESTS,
    VERSION,
    Container,
    Machine,
    ProxmoxHost,
    VirtualMachine,
    used,
    verified,
    wanted_of,
    with_repository,
)
from tests.rows import rows

PERSISTENCE = "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"
ALL = ["compute", "video", "graphics"]
CDI, DAEMON = "etc/cdi/nvidia.yaml", "etc/docker/daemon.json"
DRIVER = "apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open && modprobe nvidia"
SETTINGS: dict[str, Any] = {"driver": "580", "cuda": "12.8", "containerToolkit": "docker"}


def differing(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    """The files that aren't the same."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


# -- there and back --------------------------------------------------------------------------------------------
def test_a_vm_gets_the_driver_without_a_reboot_and_is_given_back(tmp_path: Path) -> None:
    """One distribution, another one with another seed. (Ubuntu 26.04's nouveau has the card until a reboot; Debian 13 takes the installer.)"""
    distribution = sampling.sample(["ubuntu-24.04", "ubuntu-22.04", "debian-12"], 1, "guests")[0]
    vm = VirtualMachine(tmp_path, distribution)
    before = vm.tree()
    said = of_plain(Said, vm.answer("read", vm.packages_step(driver="580")), "answer")
    assert said.chosen is not None and not refused(replace(vm.request(), said=said)) and vm.tree() == before
    answer = vm.install(driver="580")
    assert (answer["source"], answer["changed"], answer["reboot"]) == ("packages", True, "no")
    assert answer["version"] == said.version and said.version.startswith("580.")
    assert f", {answer['version']}\n" in vm.output("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader")
    # The card stays initialised: at once, and after each boot.
    assert vm.output(PERSISTENCE) == "Enabled\n"
    reading = vm.read()
    assert reading.loaded == answer["version"] and reading.steps == ("packages",) and not reading.drift
    vm.reboot()
    assert vm.output(PERSISTENCE) == "Enabled\n"
    assert not vm.install()["changed"] and not vm.read().drift
    vm.undo()
    assert differing(before, vm.tree()) == set()


def test_on_debian_13_its_repository_decides_between_packages_and_the_installer(tmp_path: Path) -> None:
    """It has no 580, which is the last branch of older cards, and 595 and later for newer ones."""
    vm = VirtualMachine(tmp_path, "debian-13")
    rows: tuple[tuple[str, dict[str, Any], str, bool], ...] = (
        ("10de:2b85", {}, "595.", False),
        ("10de:2204", {"cuda": "13.1"}, "595.", False),
        ("10de:2b85", {"driver": "580"}, "580.", True),
        ("10de:1b06", {}, "580.", True),
    )
    for card, settings, version, by_installer in rows:
        vm.want(**settings)
        request = vm.request()
        asked = wanted(replace(request, system=replace(request.system, cards=(card,))))
        said = of_plain(Said, vm.answer("read", Asked("nvidia_packages", asked)), "answer")
        assert said.chosen is not None and said.version.startswith(version), (card, settings, said)
        assert bool(asked.tries[said.chosen].run) is by_installer, (card, settings)


def test_all_of_a_stack_comes_by_one_step_is_used_from_inside_and_is_given_back(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path)
    packages, before = vm.packages(), vm.tree()
    settings = {**SETTINGS, "cudnn": "9", "nccl": True, "docker": "install", "capabilities": ALL}
    answer = vm.install(**settings)
    added = {*vm.packages()} - {*packages}
    assert {"cuda-toolkit-12-8", "libcudnn9-cuda-12", "libnccl2", "docker.io", "nvidia-container-toolkit"} <= added
    assert (answer["cuda"], answer["version"]) == ("12.8", VERSION) and answer["toolkit"]
    assert "/usr/local/cuda-12.8/bin" in vm.output(
        "PATH=/bin; . $HOMELAB_ROOT/etc/profile.d/homelab-cuda.sh; echo $PATH"
    )
    toolkit = vm.toolkit_step(VERSION, ALL)
    configured = vm.answer("apply", toolkit)
    assert (configured["runtime"], configured["changed"], configured["restarted"]) == ("docker", True, True)
    assert vm.answer("apply", toolkit) == {**configured, "changed": False, "restarted": False}
    output, errors = verified(vm, settings)
    assert errors == []
    assert (output["driver"], output["flavour"], output["cuda"]) == (VERSION, "open", "12.8")
    assert (output["program"], output["container"], output["uvm"]) == (True, True, True)
    assert (output["video"], output["nvenc"], output["graphics"]) == (True, "13.0", True)
    assert (output["cudnn"], output["nccl"]) == ("9.10.2", "2.27.3")
    (card,) = output["gpus"]
    assert (card["name"], card["memory"], card["address"]) == ("NVIDIA GeForce RTX 5090", "32607 MiB", "0000:01:00.0")
    assert not vm.install(**settings)["changed"]
    assert vm.answer("revert", toolkit) == {"changed": True, "kept": []}
    # What isn't wanted any more goes, but an engine.
    vm.install(driver="580", cuda="13.0")
    there = vm.packages()
    assert {"cuda-toolkit-13-0", "docker.io"} <= {*there} and not {"libnccl2", "cuda-toolkit-12-8"} & {*there}
    vm.output("rm -r $HOMELAB_ROOT/var/lib/docker")  # the owner's by now: images and volumes stay
    vm.undo()
    assert vm.packages() == packages and differing(before, vm.tree()) == set()


def test_a_container_gets_the_hosts_libraries_and_its_docker_the_cards_and_is_given_back(tmp_path: Path) -> None:
    inside = Container(tmp_path)
    before, version = inside.tree(), inside.read().host_driver
    wanted: dict[str, Any] = {"cuda": "13.0", "containerToolkit": "docker", "docker": "install"}
    answer = inside.install(**wanted)
    assert (answer["version"], answer["source"], answer["reboot"]) == (version, "packages", "no-module")
    assert not [name for name in inside.packages() if "dkms" in name or "headers" in name]
    toolkit = inside.toolkit_step(version or "", ("compute", "video"))
    assert inside.answer("apply", toolkit)["cdi"] == f"/{CDI}"
    assert json.loads((inside.root / DAEMON).read_text())["features"] == {"cdi": True}
    assert not inside.answer("apply", toolkit)["changed"]
    meant = wanted_of(inside, wanted)
    output, errors = used(inside, *meant)
    assert (errors, output["driver"], output["program"], output["container"]) == ([], version, True, True)
    assert (output["uvm"], output["video"], bool(output["nvenc"])) == (True, True, True)

    # Somebody gives it another driver's library.
    library = f"$HOMELAB_ROOT/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{version}"
    inside.output(f"mv {library} {library.replace(str(version), '580.65.06')}")
    (error,) = used(inside, *meant)[1]
    assert "the container's libraries" in error.why
    inside.output(f"mv {library.replace(str(version), '580.65.06')} {library}")

    conf = inside.host.root / "etc/pve/lxc/901.conf"
    text = conf.read_text()
    for change, words in sampling.sample(NODES, 1, "nodes"):
        inside.host.output(f"pct stop 901; sed -i '{change}' {conf}; pct start 901")
        found = used(inside, *meant)[1]
        assert words in "\n".join(error.why for error in found), found
        inside.host.output("pct stop 901")
        conf.write_text(text)
        inside.host.output("pct start 901")
    inside.output("rm -r $HOMELAB_ROOT/var/lib/docker")
    inside.answer("revert", toolkit)
    inside.undo()
    assert differing(before, inside.tree()) == set()


#: What is done to a container's lines -> what is said then.
NODES = [
    (
        "s#/dev/nvidia-uvm,mode=0666#/dev/nvidia-uvm#; s#/dev/nvidia0,mode=0666#/dev/nvidia0#",
        "its mode keeps ordinary users out",
    ),
    ("/nvidia-uvm/d", "wasn't given it"),
    ("/nvidia0/d", "no card's"),
    ("/nvidiactl/d", "no /dev/nvidiactl"),
]


def test_nouveau_keeps_the_card_until_the_reboot(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, card="2684")
    assert vm.read().nouveau
    answer = vm.install(driver="580.159.03", source=sampling.sample(["packages", "run"], 1, "nouveau")[0])
    assert answer["reboot"] == "yes" and "nouveau has a card" in answer["why"]
    (error,) = verified(vm, {"driver": "580"})[1]
    assert "nouveau" in error.why
    vm.reboot()
    system = vm.read()
    assert (system.loaded, system.nouveau) == ("580.159.03", False)


def test_a_stock_hosts_repository_that_asks_for_a_subscription_doesnt_matter_but_for_headers(tmp_path: Path) -> None:
    host = ProxmoxHost(Host(tmp_path, "rtx5090", running=True))
    assert host.bash("apt-get update").returncode == 100
    done = host.run("apply", host.packages_step(driver="580"))
    assert "not all lists could be fetched; those that are needed here are there" in done.stderr
    assert done.returncode != 0 and "No-Subscription" in done.stdout
    said = of_plain(Said, host.answer("read", host.packages_step(driver="580")), "answer")
    wanted = [error.wanted for error in refused(replace(host.request(), said=said))]
    assert said.lacking and any("headers of each installed kernel" in one for one in wanted)


# -- what is there already ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Ubuntu 24.04 with everything, which somebody has installed. Each test takes back what it does."""
    vm = with_repository(VirtualMachine(tmp_path_factory.mktemp("vm")), GUESTS[0])
    vm.output(f"{DRIVER} && apt-get -qq install -y docker.io podman cuda-toolkit-12-8 nvidia-container-toolkit")
    vm.output("nvidia-ctk runtime configure --runtime=docker; systemctl restart docker; nvidia-modprobe -u -c 0")
    vm.output("nvidia-smi")
    return vm


# k3s as far as the toolkit has to do with it: when it starts it writes down which runtimes it finds; its containerd's client is in its program.
K3S = """#!/bin/bash
folder=$HOMELAB_ROOT/var/lib/rancher/k3s/agent/etc/containerd
if [[ $1 == ctr ]]; then shift && exec ctr "$@"; fi
mkdir -p "$folder"
printf 'version = 3\\n' >"$folder/config.toml"
printf 'BinaryName = "/usr/bin/nvidia-container-runtime"\\n' >>"$folder/config.toml"
"""
CONTAINERD = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
K3S_UNIT = (
    "[Unit]\nDescription=k3s\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/bin/k3s server\n"
)


def test_k3s_is_restarted_once_to_find_the_runtime_and_runs_a_container_with_the_card(
    vm: Machine,
) -> None:
    """A node of a cluster that was set up before the toolkit came."""
    unit = sampling.sample(["k3s", "k3s-agent"], 1, "K3s")[0]
    for path, text in (("usr/local/bin/k3s", K3S), (f"etc/systemd/system/{unit}.service", K3S_UNIT)):
        (vm.root / path).parent.mkdir(parents=True, exist_ok=True)
        (vm.root / path).write_text(text)
    vm.output(f"chmod +x $HOMELAB_ROOT/usr/local/bin/k3s; systemctl daemon-reload; systemctl start {unit}")
    assert "k3s" in (vm.read().runtimes or ())
    wanted = {**SETTINGS, "containerToolkit": "k3s"}
    vm.want(**wanted)
    toolkit = vm.toolkit_step(VERSION)
    vm.output(f"systemctl stop {unit}")
    assert not vm.answer("apply", toolkit)["restarted"]  # it looks for the runtime when it starts
    vm.output(f"rm -r $HOMELAB_ROOT/var/lib/rancher; systemctl start {unit}; : >$HOMELAB_ROOT{CONTAINERD}")
    first, again = (vm.answer("apply", toolkit) for _ in range(2))
    assert (first["runtime"], first["restarted"], again["changed"], again["restarted"]) == ("k3s", True, False, False)
    output, errors = verified(vm, wanted)
    assert (errors, output["container"]) == ([], True)
    vm.answer("revert", toolkit)
    vm.output(
        "rm -r $HOMELAB_ROOT/usr/local/bin/k3s $HOMELAB_ROOT/etc/systemd/system/k3s* $HOMELAB_ROOT/var/lib/rancher"
    )


def test_podman_gets_a_specification_which_is_made_anew_for_another_driver(vm: Machine) -> None:
    wanted = {**SETTINGS, "containerToolkit": "podman"}
    vm.want(**wanted)
    toolkit = vm.toolkit_step(VERSION)
    answer = vm.answer("apply", toolkit)
    assert (answer["cdi"], answer["restarted"]) == (f"/{CDI}", False)
    output, errors = verified(vm, wanted)
    assert (errors, output["container"], output["cdi"]) == ([], True, VERSION)
    assert not vm.answer("apply", toolkit)["changed"]
    specification = vm.root / CDI
    specification.write_text(specification.read_text().replace(VERSION, "580.105.08"))
    (error,) = verified(vm, wanted)[1]
    assert "580.105.08" in f"{error.found} {error.why}"
    assert vm.answer("apply", toolkit)["changed"] and verified(vm, wanted)[1] == []
    vm.answer("revert", toolkit)
    assert not specification.parent.exists()


_LIBRARY = f"$HOMELAB_ROOT/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{VERSION}"
_OTHER = _LIBRARY.replace(VERSION, "580.159.03")
_UVM = "$HOMELAB_ROOT/usr/lib/modules/$(uname -r)/updates/dkms/nvidia-uvm.ko"
_LOADED = "modprobe nvidia; nvidia-modprobe -u -c 0; nvidia-smi"
_AWAY = "rmmod nvidia_uvm; rmmod nvidia"


@rows(
    # What somebody does to it, what makes it good again, and parts of what is said then.
    ("break_it", "mend_it", "words"),
    sampling.sample(
        [
            (
                f"mv {_LIBRARY} {_OTHER}",
                f"mv {_OTHER} {_LIBRARY}",
                ("Driver/library version mismatch", "older module stayed loaded"),
            ),
            (
                f"{_AWAY}; mv $HOMELAB_ROOT/usr/lib/modules $HOMELAB_ROOT/usr/lib/away",
                f"mv $HOMELAB_ROOT/usr/lib/away $HOMELAB_ROOT/usr/lib/modules; {_LOADED}",
                ("couldn't communicate", "DKMS's build failed"),
            ),
            (
                "mv $HOMELAB_ROOT/usr/bin/nvidia-smi $HOMELAB_ROOT/root/",
                "mv $HOMELAB_ROOT/root/nvidia-smi $HOMELAB_ROOT/usr/bin/",
                ("nvidia-smi",),
            ),
            (
                f"rmmod nvidia_uvm; rm -f $HOMELAB_ROOT/dev/nvidia-uvm*; mv {_UVM} $HOMELAB_ROOT/root/",
                f"mv $HOMELAB_ROOT/root/nvidia-uvm.ko {_UVM}; nvidia-modprobe -u -c 0",
                ("/dev/nvidia-uvm: No such file or directory", "nvidia-modprobe"),
            ),
            (
                "chmod 0660 $HOMELAB_ROOT/dev/nvidia*",
                "chmod 0666 $HOMELAB_ROOT/dev/nvidia*",
                ("Permission denied", "NVreg_DeviceFileMode"),
            ),
            ("systemctl stop docker", "systemctl start docker", ("isn't running, often because its configuration",)),
            (
                "mv $HOMELAB_ROOT/etc/docker $HOMELAB_ROOT/root/d; systemctl restart docker",
                "mv $HOMELAB_ROOT/root/d $HOMELAB_ROOT/etc/docker; systemctl restart docker",
                ("isn't installed or isn't configured",),
            ),
        ],
        2,
        "failures",
    ),
)
def test_what_doesnt_work_is_one_error_by_what_its_programs_say(
    vm: Machine, break_it: str, mend_it: str, words: tuple[str, ...]
) -> None:
    vm.output(break_it)
    errors = verified(vm, SETTINGS)[1]
    vm.output(mend_it)
    assert len(errors) == 1 and all(word in str(errors[0]) for word in words), errors
    assert verified(vm, SETTINGS)[1] == []
    assert "ubuntu" not in (vm.root / "var/lib/docker/images").read_text(), "what it fetched goes again"


def test_an_image_that_cant_be_fetched_says_nothing_of_the_card(vm: Machine) -> None:
    vm.fault("apt-offline", "103")
    output, said = verified(vm, SETTINGS)
    vm.fault("apt-offline", None)
    assert said == [] and output["container"] is None and output["program"] is True
    (unchecked,) = output.get("unchecked", [])
    assert "a container of docker" in unchecked and "registry-1.docker.io" in unchecked
