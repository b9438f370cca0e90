"""The verification on the lab's systems: what works is put out, each failure is recognised by what the programs really said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.nvidia.compatibility import load
from homelab.nvidia.expected import Expected
from homelab.nvidia.request import Request
from homelab.nvidia.verification import judge
from homelab.remote import nvidia_steps as steps
from remote_scripts.both.nvidia_verification import Wanted
from tests import sampling
from tests.scripts.nvidia_kit import GUESTS, Container, Machine, ProxmoxHost, VirtualMachine, with_repository
from tests.scripts.test_container_toolkit import CDI, DRIVER, with_k3s, with_libraries, without_k3s

Verify = Callable[..., tuple[dict[str, Any], list[HomelabError]]]
VERSION = "580.178.04"


def wanted_of(machine: Machine, settings: dict[str, Any]) -> tuple[Wanted, Expected]:
    """What of a stack is tried, and what it is to have."""
    machine.want(**settings)
    request = Request(machine.target, machine.settings, machine.read().system, "vms.gaming")
    version = request.system.host_driver or (
        VERSION if "." not in (machine.settings.driver or "") else machine.settings.driver
    )
    wanted = Expected.of(
        request, machine.installed(version or "", machine.settings.capabilities or ("compute", "video"))
    )
    return steps.verification(machine.settings, wanted), wanted


def verified(
    machine: Machine, settings: dict[str, Any], changed: Callable[[Wanted], Wanted] = lambda tried: tried, **wanted: Any
) -> Any:
    """What the verification of a stack puts out, and what it says."""
    tried, meant = wanted_of(machine, settings)
    return judge(machine.verify(changed(tried)), dataclasses.replace(meant, **wanted))


SETTINGS = {"driver": "580", "cuda": "12.8", "containerToolkit": "docker"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Ubuntu 24.04 with everything."""
    vm = with_repository(VirtualMachine(tmp_path_factory.mktemp("vm")), GUESTS[0])
    vm.output(f"{DRIVER} && apt-get -qq install -y docker.io podman cuda-toolkit-12-8 nvidia-container-toolkit")
    vm.output(
        "nvidia-ctk runtime configure --runtime=docker; systemctl restart docker; nvidia-modprobe -u -c 0; nvidia-smi"
    )
    vm.output(
        "nvidia-ctk cdi generate --feature-flag no-additional-gids-for-device-nodes --output=/etc/cdi/nvidia.yaml"
    )
    return vm


@pytest.fixture
def vm(installed: Machine) -> Iterator[Machine]:
    """The same; each test takes back what it does."""
    tree = installed.tree()
    yield installed
    after = installed.tree()
    assert {name for name in tree.keys() | after.keys() if tree.get(name) != after.get(name)} <= {
        "var/lib/docker/images"
    }


def one(found: tuple[dict[str, Any], list[HomelabError]]) -> HomelabError:
    """The only error."""
    assert len(found[1]) == 1, "\n\n".join(map(str, found[1])) or found[0]
    return found[1][0]


# -- what works ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_all_of_a_stack_is_used_from_inside(vm: Machine, runtime: str) -> None:
    output, errors = verified(vm, {**SETTINGS, "containerToolkit": runtime})
    assert errors == []
    assert (output["driver"], output["flavour"], output["cuda"]) == (VERSION, "open", "12.8")
    assert (output["program"], output["container"], output["uvm"]) == (True, True, True)
    (card,) = output["gpus"]
    assert (card["name"], card["memory"], card["address"]) == ("NVIDIA GeForce RTX 5090", "32607 MiB", "0000:01:00.0")
    assert card["computeCapability"] == "12.0" and card["uuid"].startswith("GPU-")
    assert "ubuntu" not in (vm.root / "var/lib/docker/images").read_text(), "what it fetched goes again"


def test_a_node_of_k3s_runs_a_container_with_the_card(vm: Machine) -> None:
    with_k3s(vm)
    output, errors = verified(vm, {**SETTINGS, "containerToolkit": "k3s"})
    without_k3s(vm)
    assert (errors, output["container"]) == ([], True)


def test_an_image_that_was_there_stays(vm: Machine) -> None:
    image = load().toolkit.image
    assert "@sha256:" in image, "nobody else's image is run"
    vm.output(f"docker pull {image}")
    assert verified(vm, SETTINGS)[1] == []
    assert image in (vm.root / "var/lib/docker/images").read_text()
    vm.output(f"docker rmi {image}")


def test_the_driver_alone(vm: Machine) -> None:
    output, errors = verified(vm, {"driver": "580"})
    assert (errors, output["uvm"]) == ([], True)
    assert (output["cuda"], output["program"], output["container"]) == (None, None, None)


def test_a_host_that_keeps_its_card(tmp_path: Path) -> None:
    # Of a branch, the version that is there is as good as the newest (components/nvidia_guest_stack.py).
    output, errors = verified(ProxmoxHost(tmp_path, "phoenix"), {"driver": "580"}, driver="580.105.08")
    assert (errors, output["driver"], output["flavour"]) == ([], "580.105.08", "open")


def test_the_proxys_password_is_in_no_output(vm: Machine) -> None:
    settings = {**SETTINGS, "proxy": "http://me:hunter2@proxy.lan:3128"}
    vm.want(**settings)
    tried = steps.verification(vm.settings, Expected(cards=["10de:2b85"], capabilities=["compute"]))
    done = vm.layer("apply", "nvidia_verification", tried, proxy=settings["proxy"])
    assert done.returncode == 0 and "hunter2" not in done.stdout + done.stderr


# -- what doesn't ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "words"),
    [("0x62:0x40:2168", "GSP firmware didn't start"), ("79", "doesn't answer any more"), ("119", "GSP"), ("0x23:0x65:1401", "could not be started")],
)  # fmt: skip
def test_a_card_that_doesnt_come_up(vm: Machine, value: str, words: str) -> None:
    vm.fault("gpu-fails", value)
    try:
        error = one(verified(vm, SETTINGS))
    finally:
        vm.fault("gpu-fails", None)
        vm.output("rmmod nvidia_uvm; rmmod nvidia; modprobe nvidia; nvidia-modprobe -u -c 0; nvidia-smi")
    assert words in error.why and error.found.startswith("kernel log: "), str(error)
    assert verified(vm, SETTINGS)[1] == [], "lines of before the module was loaded anew don't count"


def test_libraries_of_another_version(vm: Machine) -> None:
    library = f"$ROOT/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{VERSION}"
    vm.output(f"mv {library} {library.replace(VERSION, '580.159.03')}")
    error = one(verified(vm, SETTINGS))
    vm.output(f"mv {library.replace(VERSION, '580.159.03')} {library}")
    assert "Driver/library version mismatch" in error.found and "older module stayed loaded" in error.why


def test_a_module_that_isnt_loaded(vm: Machine) -> None:
    vm.output("rmmod nvidia_uvm; rmmod nvidia && mv $ROOT/usr/lib/modules $ROOT/usr/lib/away")
    found = verified(vm, SETTINGS)
    vm.output("mv $ROOT/usr/lib/away $ROOT/usr/lib/modules; modprobe nvidia; nvidia-modprobe -u -c 0; nvidia-smi")
    error = one(found)
    assert "couldn't communicate" in error.found and "DKMS's build failed" in error.why
    assert (found[0]["driver"], found[0]["gpus"], found[0]["program"]) == (None, [], False)


def test_nvidia_smi_isnt_there(vm: Machine) -> None:
    vm.output("mv $ROOT/usr/bin/nvidia-smi $ROOT/root/")
    error = one(verified(vm, {"driver": "580"}))
    vm.output("mv $ROOT/root/nvidia-smi $ROOT/usr/bin/")
    assert error.wanted == "vms.gaming: nvidia-smi"


def test_a_card_that_hangs_is_not_waited_for(vm: Machine) -> None:
    vm.output(
        "mv $ROOT/usr/bin/nvidia-smi $ROOT/root/; printf '#!/bin/sh\\nexec sleep 600\\n' >$ROOT/usr/bin/nvidia-smi; chmod +x $ROOT/usr/bin/nvidia-smi"
    )
    found = verified(vm, {"driver": "580", "timeouts": {"verify": 1}})
    vm.output("mv $ROOT/root/nvidia-smi $ROOT/usr/bin/")
    assert "nvidia.timeouts.verify" in one(found).found


def test_the_module_for_cuda_is_missing(vm: Machine) -> None:
    module = "$ROOT/usr/lib/modules/$(uname -r)/updates/dkms/nvidia-uvm.ko"
    vm.output(f"rmmod nvidia_uvm; rm -f $ROOT/dev/nvidia-uvm*; mv {module} $ROOT/root/")
    found = verified(vm, SETTINGS)
    vm.output(f"mv $ROOT/root/nvidia-uvm.ko {module}; nvidia-modprobe -u -c 0")
    error = one(found)
    assert error.found == "/dev/nvidia-uvm: No such file or directory" and "nvidia-modprobe" in error.next
    assert (found[0]["program"], found[0]["uvm"], len(found[0]["gpus"])) == (False, False, 1)


def test_nodes_that_are_for_root_alone(vm: Machine) -> None:
    vm.output("nvidia-modprobe -u -c 0; nvidia-smi; chmod 0660 $ROOT/dev/nvidia*")
    error = one(verified(vm, SETTINGS))
    vm.output("chmod 0666 $ROOT/dev/nvidia*")
    assert "/dev/nvidia0: Permission denied" in error.found and "NVreg_DeviceFileMode" in error.next


def test_a_cuda_that_is_older_than_the_card(vm: Machine) -> None:
    vm.output("apt-get -qq install -y cuda-toolkit-12-6; ln -sfn cuda-12.8 $ROOT/usr/local/cuda")
    _, errors = verified(
        vm, SETTINGS, lambda tried: dataclasses.replace(tried, nvcc=tried.nvcc.replace("/cuda-12.8/", "/cuda-12.6/"))
    )
    vm.output(
        "apt-get -qq purge -y cuda-toolkit-12-6 && apt-get -qq autoremove -y --purge; ln -sfn cuda-12.8 $ROOT/usr/local/cuda"
    )
    assert [error.found for error in errors] == [
        "nvcc is of 12.6",
        "nvcc, CUDA programs: nvcc fatal : Unsupported gpu architecture 'compute_120'",
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("systemctl stop docker", "systemctl start docker", "isn't running, often because its configuration"),
        ("mv $ROOT/etc/docker $ROOT/root/d; systemctl restart docker", "mv $ROOT/root/d $ROOT/etc/docker; systemctl restart docker", "isn't installed or not configured"),
    ],
)  # fmt: skip
def test_an_engine_that_isnt_ready(vm: Machine, before: str, after: str, words: str) -> None:
    vm.output(before)
    found = verified(vm, SETTINGS)
    vm.output(after)
    assert words in one(found).why and found[0]["container"] is False and found[0]["program"] is True


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_an_image_that_cant_be_fetched(vm: Machine, runtime: str) -> None:
    vm.fault("apt-offline", "103")
    output, said = verified(vm, {**SETTINGS, "containerToolkit": runtime})
    vm.fault("apt-offline", None)
    # It says nothing of the card: what could not be tried is named.
    assert said == [] and output["container"] is None and output["program"] is True
    (unchecked,) = output.get("unchecked", [])
    assert f"a container of {runtime}" in unchecked and "registry-1.docker.io" in unchecked


def test_a_specification_of_another_driver(vm: Machine) -> None:
    before = (vm.root / CDI).read_bytes()
    (vm.root / CDI).write_bytes(before.replace(VERSION.encode(), b"580.105.08"))
    found = verified(vm, {**SETTINGS, "containerToolkit": "podman"})
    (vm.root / CDI).write_bytes(before)
    assert "580.105.08" in one(found).why and "cdi generate" in one(found).next
    assert found[0]["cdi"] == "580.105.08"


def test_a_specification_of_the_toolkits_own_service_comes_before_ours(vm: Machine) -> None:
    own = vm.root / "run/cdi/nvidia.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text((vm.root / CDI).read_text().replace(VERSION, "580.105.08"))
    tried, wanted = wanted_of(vm, {**SETTINGS, "containerToolkit": "podman"})
    answer = vm.verify(tried)
    own.unlink()
    assert answer["cdi"] == f"/run/cdi/nvidia.yaml 580.105.08\n/{CDI} {VERSION}"
    # Where no container tells it, as its image can't be fetched.
    output, errors = judge({**answer, "container": None}, wanted)
    assert output["cdi"] == "580.105.08" and ["nvidia-cdi-refresh" in error.next for error in errors] == [True]


def test_another_driver_and_another_card_than_were_wanted(vm: Machine) -> None:
    _, errors = verified(vm, SETTINGS, driver="590", cards=["10de:2684"], flavour="proprietary")
    assert [error.wanted.partition(": ")[2][:10] for error in errors] == ["driver 590", "the propri", "1 card(s):"]


def test_a_run_that_was_killed_leaves_nothing_for_long(vm: Machine) -> None:
    folder = vm.root / "var/lib/homelab/verification"
    folder.mkdir(parents=True)
    (folder / "program").write_text("half")
    assert verified(vm, SETTINGS)[1] == []
    assert not (vm.root / "var/lib/homelab").exists()


# -- modules that don't fit ------------------------------------------------------------------------------------
def test_proprietary_modules_with_a_card_that_needs_the_open_ones(tmp_path: Path) -> None:
    vm = with_repository(VirtualMachine(tmp_path), GUESTS[0])
    vm.output("apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580 && modprobe nvidia")
    error = one(verified(vm, {"driver": "580"}))
    assert (
        "works with the open ones alone" in error.why
        and "requires use of the NVIDIA open kernel modules" in error.found
    )


def test_nouveau_has_the_card(tmp_path: Path) -> None:
    vm = with_repository(VirtualMachine(tmp_path, card="2684"), GUESTS[0])
    vm.output("apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open; modprobe nvidia || :")
    errors = verified(vm, {"driver": "580"})[1]
    assert len(errors) == 1 and "nouveau" in errors[0].why


def test_a_key_that_isnt_enrolled(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, system={"secure-boot": True, "mok-enrolled": True})
    with_repository(vm, GUESTS[0])
    vm.output("apt-get -qq install -y linux-headers-$(uname -r) nvidia-driver-580-open")
    tried, wanted = wanted_of(vm, {"driver": "580"})
    vm.enrolled(False)
    vm.output("modprobe nvidia || :")
    answer = vm.verify(tried)
    errors = judge(answer, dataclasses.replace(wanted, secure_boot=True))[1]
    assert len(errors) == 1 and "Secure Boot is on" in errors[0].why


# -- in a container --------------------------------------------------------------------------------------------
#: Where nodes come by bind mounts, all is as where they come by the container's options: for every other seed.
BY_MOUNTS = ["containers-pve8"] * (sampling.EVERY or sampling.drawn("bind mounts").random() < 0.5)


@pytest.fixture(scope="module", params=["phoenix", *BY_MOUNTS])
def inside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """A container with the libraries of its host's driver, CUDA and docker."""
    name, folder = str(request.param), tmp_path_factory.mktemp("container")
    machine = with_libraries(folder, "cuda-toolkit-13-0") if name == "phoenix" else by_the_step(folder, name)
    machine.want(driver=None, cuda=CUDA[name], containerToolkit="docker", docker="install", **WITHIN_MAJOR)
    version = machine.host.output("cat $ROOT/sys/module/nvidia/version").strip()
    machine.answer("apply", machine.toolkit_step(version, ("compute", "video")))
    return machine


def by_the_step(folder: Path, name: str) -> Container:
    """Where no repository has the host's version."""
    machine = Container(folder, name, CTID[name])
    with_repository(machine, machine.output(". $ROOT/etc/os-release; echo $ID-$VERSION_ID").strip())
    machine.install(driver=None, cuda=CUDA[name], containerToolkit="docker", docker="install", **WITHIN_MAJOR)
    return machine


CTID = {"phoenix": 901, "containers-pve8": 211}
CUDA = {"phoenix": "13.0", "containers-pve8": "12.6"}
# The host's driver is 550, and what came with that isn't in the repository for Ubuntu 24.04.
WITHIN_MAJOR: dict[str, Any] = {"allowMinorVersionCompatibility": True}


def inner(machine: Machine) -> dict[str, Any]:
    return {"cuda": machine.settings.cuda, "containerToolkit": "docker", "docker": "install", **WITHIN_MAJOR}


def test_a_container_with_a_card(inside: Container) -> None:
    output, errors = verified(inside, inner(inside))
    # On Proxmox VE 8 the host's lxc-pve is too old for an engine in the container.
    is_new = inside.ctid == CTID["phoenix"]
    assert ["a container engine that starts containers" in error.wanted for error in errors] == [True][is_new:]
    assert output["driver"] == inside.host.output("cat $ROOT/sys/module/nvidia/version").strip()
    assert (output["program"], output["container"], output["uvm"]) == (True, is_new, True)
    assert (output["video"], bool(output["nvenc"])) == (True, True), "the libraries of its host's driver"


@pytest.mark.parametrize(
    ("change", "words"),
    sampling.sample([
        ("s#/dev/nvidia-uvm,mode=0666#/dev/nvidia-uvm#; s#/dev/nvidia0,mode=0666#/dev/nvidia0#", "its mode keeps ordinary users out"),
        ("/nvidia-uvm/d", "wasn't given it"),
        ("/nvidia0/d", "no card's"),
        ("/nvidiactl/d", "no /dev/nvidiactl"),
    ], 1, "nodes"),
)  # fmt: skip
def test_nodes_that_a_container_hasnt(inside: Container, change: str, words: str) -> None:
    conf = inside.host.root / f"etc/pve/lxc/{inside.ctid}.conf"
    before, (tried, wanted) = conf.read_text(), wanted_of(inside, inner(inside))
    if "mode" in change and "mode=" not in before:
        pytest.skip("bind mounts have the host's modes")
    inside.host.output(f"pct stop {inside.ctid}; sed -i '{change}' {conf}; pct start {inside.ctid}")
    try:
        found = judge(inside.verify(tried), wanted)
    finally:
        inside.host.output(f"pct stop {inside.ctid}")
        conf.write_text(before)
        inside.host.output(f"pct start {inside.ctid}")
    assert words in "\n".join(error.why for error in found[1]), found[1]


def test_a_host_whose_driver_was_changed(inside: Container) -> None:
    version = inside.host.output("cat $ROOT/sys/module/nvidia/version").strip()
    library = f"$ROOT/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{version}"
    other = library.replace(version, "580.65.06")
    inside.output(f"mv {library} {other}")
    try:
        error = one(verified(inside, inner(inside)))
    finally:
        inside.output(f"mv {other} {library}")
    assert version in error.why and "the container's libraries" in error.why
