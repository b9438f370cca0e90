"""What is said of NVIDIA's stacks before anything is changed: from a reading of the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import pytest

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.host import plan
from homelab.judged.tree import Settings as OfHost
from homelab.judged.tree import judged, judged_systems
from homelab.nvidia import plan as nvidia_plan
from homelab.nvidia import preview
from homelab.nvidia.preview import Stack
from homelab.reading import stacks
from homelab.remote import ssh
from homelab.settings import Container, Settings, parse
from remote_scripts.both.nvidia_packages import Said
from remote_scripts.both.read_system import Answer as SystemReading
from tests.rows import rows
from tests.unit.hosts import KEY, conf, desktop, device, seen, tree

SSH = {"hostKey": KEY, "agent": True}


def settings(
    vm: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    **gpus: Any,
) -> Settings:
    """A host with the cards of ``gpus``, by default one RTX 5090 for VM 103; NVIDIA's stack where it is given."""
    cards = gpus or {"rtx": {"match": "10de:2b85"}}
    values: dict[str, Any] = {
        "hosts": {"pve": {"address": "192.0.2.1", "ssh": SSH, "gpus": cards, "nvidia": host}},
        "vms": {"v": {"host": "pve", "vmid": 103, "gpus": ["rtx"], "ssh": SSH, "address": "192.0.2.9", "nvidia": vm}}
        if vm
        else {},
        "containers": {"c": {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": container}}
        if container is not None
        else {},
    }
    return parse(values)


@rows(
    ("asked", "said"),
    [
        ({"vm": {"driver": "565"}}, "branch 570 or later"),
        ({"vm": {"driver": "580", "flavour": "proprietary"}}, "vms.v: kernel modules that fit cards and driver"),
        ({"vm": {"driver": "570", "cuda": "13.0"}}, "CUDA 13.0"),
        ({"host": {"driver": "595"}, "container": {"driver": "580"}}, "containers.c: the version of the host's driver"),
        ({"host": {"driver": "570.26"}, "container": {"driver": "570.261.03"}}, "the host has 570.26"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused_before_a_system_is_read(asked: dict[str, Any], said: str) -> None:
    found = settings(**asked)
    stacks = stacks_of(found, desktop(), {"host": seen(**DEBIAN)})
    assert any(said in str(error) for stack in stacks for error in stack.errors)


def stacks_of(
    found: Settings, facts: HostFacts, readings: Mapping[str, SystemReading] = MappingProxyType({})
) -> list[Stack]:
    """All stacks, before anything is asked of apt."""
    host = found.hosts["pve"]
    want = plan.wanted(facts, host)
    on_host = preview.of_host("pve", host, facts, want, readings.get("host"))
    guests = preview.of_guests(on_host, facts, want, found.vms, found.containers, readings)
    return [*([on_host] if on_host else []), *guests]


def described(found: Settings, **changes: Any) -> tuple[str, list[HomelabError]]:
    stacks = stacks_of(found, desktop(**changes))
    return "\n".join(stack.text for stack in stacks), [error for stack in stacks for error in stack.errors]


def test_a_plan_names_driver_and_modules_and_what_comes_beside_it() -> None:
    stack = {"driver": "580", "cuda": "12.8", "containerToolkit": "docker"}
    text, errors = described(settings(vm=stack))
    assert errors == []
    assert "vms.v: driver 580" in text and "CUDA 12.8, container toolkit for docker" in text
    guests = {"configs": [VM_103], "running": [103]}
    (read,) = stacks_of(settings(vm=stack), desktop(guests=guests), {"103": seen(**UBUNTU)})
    assert "driver 580 (open kernel modules" in read.text
    named = {"driver": "580", "capabilities": ["graphics", "compute"]}
    assert ", its compute and graphics libraries" in described(settings(vm=named))[0]


def test_a_plan_says_of_each_system_that_its_drivers_branch_gets_no_more_fixes() -> None:
    ended = "\n    note: branch 570 has reached its end of life (2026-02)"
    assert described(settings(vm={"driver": "570"}))[0].count(ended) == 1
    stacks = stacks_of(settings(host={"driver": "570"}, container={}, rtx=RTX), desktop(), {"host": seen(**DEBIAN)})
    assert [stack.text.count(ended) for stack in stacks] == [1, 1]
    assert ended not in described(settings(vm={"driver": "580"}))[0]


RTX = {"match": "10de:2b85", "use": "lxc"}


def test_a_plan_says_what_apt_would_do_and_the_boot_is_planned_with_that() -> None:
    (stack,) = stacks_of(settings(host={"driver": "595"}, rtx=RTX), desktop(), {"host": seen(**DEBIAN)})
    assert not stack.is_done
    asked = replace(stack, said=Said(chosen=0, version="595.58.03", was="590.48.01", way_back=False))
    assert asked.errors == [] and "595.58.03" in asked.text and asked.is_replaced
    assert "no way back" in asked.text
    way = nvidia_plan.coming(asked)
    assert way and (way.driver, way.flavour) == ("595.58.03", "open")


def test_what_apt_can_not_do_is_refused_before_anything_is_changed() -> None:
    """A name that leads elsewhere, such as 570 of Ubuntu 24.04, which brings 580."""
    (stack,) = stacks_of(settings(host={"driver": "570"}, rtx=RTX), desktop(), {"host": seen(**DEBIAN)})
    (error,) = replace(stack, said=Said(chosen=None, against=("apt would bring 580.178.04",))).errors
    assert error.wanted.startswith("hosts.pve: ") and "apt would bring 580.178.04" in error.found


def test_the_driver_of_a_system_that_is_as_it_is_wanted_is_the_one_that_is_there() -> None:
    found, facts = settings(host={}, rtx=RTX), desktop()
    (stack,) = stacks_of(found, facts, {"host": seen(**DEBIAN)})
    digest = nvidia_plan.wanted(stack).digest
    inside = replace(seen(steps=("packages",), **DEBIAN), asked=digest, libraries="580.178.04")
    stack = stacks.asked(cast(ssh.Session, None), *stacks_of(found, facts, {"host": inside}))
    assert stack.is_done and not stack.is_replaced and "as they are wanted, driver 580.178.04" in stack.text
    way = nvidia_plan.coming(stack)
    assert way and (way.driver, way.flavour) == ("580.178.04", "open")


def test_a_card_set_by_address_is_refused_once_the_host_was_read() -> None:
    found = settings(vm={"driver": "535"}, rtx={"address": "01:00"})
    judged = tree(desktop(), found.hosts["pve"], found.guests_on("pve")[0])
    for system in (None, seen()):  # also of a VM that couldn't be read
        facts = replace(judged.facts, systems={"103": system} if system else {})
        systems = judged_systems(judged.wanted, facts, stacks_of(found, facts))
        told = [str(error) for error in replace(judged, systems=systems).refusals]
        assert sum("branch 570 or later" in text for text in told) == 1


@rows(
    ("changed", "restarts", "running", "refused"),
    [
        ("", False, [], False),
        ("v", False, [], True),
        ("", True, [], True),
        ("v", True, [103], False),
    ],
)
def test_a_guest_that_is_off_refuses_a_step_of_its_own_alone(
    changed: str, restarts: bool, running: list[int], refused: bool
) -> None:
    found = settings(vm={"driver": "580"})
    host, (vms, _) = found.hosts["pve"], found.guests_on("pve")
    facts = desktop(guests={"configs": [VM_103], "running": running})
    judged_host = judged(facts, OfHost("pve", host, vms, changed={changed}))
    stacks = stacks_of(found, facts)
    reboot = plan.PlannedReboot("yes" if restarts else "no", "")
    tree = replace(judged_host, stacks=stacks, systems=judged_systems(judged_host.wanted, facts, stacks), reboot=reboot)
    other_change = replace(tree, is_changed=True)
    named = [error.found for error in other_change.refusals if error.wanted == "vms.v: a guest that runs"]
    assert named == (["103 is off, and vms.v.power is keep"] if refused else [])
    # Who knows of no change, such as the doctor, says nothing.
    assert judged(facts, OfHost("pve", host, vms)).systems["vms.v"].findings == []


def test_a_container_that_is_off_refuses_each_change_as_an_update_of_homelab_installs_in_it_again() -> None:
    found = settings(container={}, host={"driver": "580"}, rtx=RTX)
    facts = desktop(guests={"configs": [conf("lxc", 901, "ostype: debian")], "running": []})
    judged_host = judged(facts, OfHost("pve", found.hosts["pve"], {}, found.containers))
    wanted = [error.wanted for error in replace(judged_host, is_changed=True).parts_refused]
    assert "containers.c: a guest that runs" in wanted


def test_the_hosts_driver_is_for_the_cards_that_stay_with_it() -> None:
    _, errors = described(settings(host={"driver": "580"}))
    assert "an NVIDIA card" in str(errors[0])  # its only one is for a VM
    assert described(settings(host={"driver": "580"}, rtx=RTX))[1] == []


# -- for every machine of the plan, before the first change -------------------------------------------------------------
P4 = "10de:1bb3"
UBUNTU: dict[str, Any] = {"distribution": "ubuntu", "version": "24.04"}
DEBIAN: dict[str, Any] = {"distribution": "debian", "version": "13"}


P4_ALONE = [device("0000:01:00.0", P4, "030200", 16)]


def test_the_template_of_a_new_container_tells_its_distribution() -> None:
    made = {"ostemplate": "local:vztmpl/debian-13-standard_13.1-2_amd64.tar.zst"}
    about = {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": {}, "create": made}
    found = settings(host={"driver": "580"}, p4={"match": P4, "use": "lxc"})
    found = found.model_copy(update={"containers": {"c": Container.model_validate(about)}})
    (_, stack) = stacks_of(found, desktop(devices=P4_ALONE))
    assert (stack.system.distribution, stack.system.version) == ("debian", "13")


VM_103 = conf("vm", 103, "machine: q35\nostype: l26")


def inside_vm(config: dict[str, Any] = VM_103, read: SystemReading | None = None, **nvidia: Any) -> list[HomelabError]:
    """What stands against NVIDIA's stack in VM 103, which runs."""
    found = settings(vm={"driver": "580", **nvidia})
    facts = desktop(guests={"configs": [config], "running": [103]})
    return [error for stack in stacks_of(found, facts, {"103": read} if read else {}) for error in stack.errors]


@pytest.mark.parametrize(
    ("inside", "nvidia", "said"),
    [
        ({"secure_boot": True, "mok_enrolled": False}, {}, "Secure Boot is on, and DKMS's key isn't enrolled"),
        ({"runtimes": ()}, {"containerToolkit": "docker"}, "installed: no container runtime"),
    ],
)  # fmt: skip
def test_a_vms_stack_is_refused_before_the_hosts_reboot_for_its_card(
    inside: dict[str, Any], nvidia: dict[str, Any], said: str
) -> None:
    (error,) = inside_vm(read=seen(**{**UBUNTU, **inside}), **nvidia)
    assert error.found == said and error.wanted.startswith("vms.v: ")
    assert inside_vm(read=seen(**UBUNTU, secure_boot=True, mok_enrolled=True), cuda="12.8") == []


@rows("kind", ["win11", "win10", "win7", "w2k8", "wvista"])
def test_windows_gets_its_card_and_is_told_where_its_driver_comes_from(kind: str) -> None:
    (error,) = inside_vm({**VM_103, "lines": f"ostype: {kind}"})
    assert error.found == "Windows" and "a guest gets its card all the same" in error.next


@pytest.mark.parametrize("kind", ["alpine", "fedora", "archlinux"])
def test_a_container_of_another_distribution_is_refused_by_its_configuration(kind: str) -> None:
    found = settings(container={}, host={"driver": "580"}, p4={"match": P4, "use": "lxc"})
    facts = desktop(devices=P4_ALONE, guests={"configs": [conf("lxc", 901, f"ostype: {kind}")], "running": [901]})
    (error,) = [error for stack in stacks_of(found, facts) for error in stack.errors]
    assert error.found == kind.capitalize()


def test_a_preview_refuses_a_host_whose_kernel_takes_no_dkms_module() -> None:
    found = settings(host={"driver": "580"}, rtx=RTX)
    (stack,) = stacks_of(found, desktop(), {"host": seen(**DEBIAN, secure_boot=True, mok_enrolled=False)})
    (error,) = stack.errors
    assert error.wanted == "hosts.pve: a system that loads modules which DKMS built"
