"""What is said of NVIDIA's stacks before anything is changed: from the settings alone, and from a reading of the host."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.host import plan
from homelab.nvidia import preview
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import SystemFacts
from homelab.settings import Container, Settings, parse
from tests.unit.hosts import KEY, desktop, device

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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"vm": {"driver": "565"}}, "branch 570 or later, with the open kernel modules"),
        ({"vm": {"driver": "580", "flavour": "proprietary"}}, "vms.v: kernel modules that fit cards and driver"),
        ({"vm": {"driver": "570", "cuda": "13.0"}}, "CUDA 13.0"),
        ({"host": {"driver": "595"}, "container": {"driver": "580"}}, "containers.c: the host's driver, 595"),
        ({"host": {"driver": "570.26"}, "container": {"driver": "570.261.03"}}, "containers.c: the host's driver"),
        ({"vm": {"driver": "581"}}, "a branch of the driver"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused_from_the_settings_alone(asked: dict[str, Any], said: str) -> None:
    # They can be read all the same: what was there before must not be kept from being taken away.
    found = settings(**asked)
    assert any(said in str(error) for error in preview.from_settings(found))


@pytest.mark.parametrize(
    "asked",
    [
        {"vm": {"driver": "580", "cuda": "12.8", "containerToolkit": "docker"}},
        {"host": {"driver": "580"}, "container": {"driver": "580"}},
        {"host": {"driver": "580"}, "container": {"driver": "580.105.08"}},
        {"host": {}, "container": {}},
        # The card is known by its place alone: what it is, a reading tells.
        {"vm": {"driver": "535"}, "rtx": {"address": "01:00"}},
    ],
)
def test_what_may_work_passes(asked: dict[str, Any]) -> None:
    found = settings(**asked)
    assert found.stacks and preview.from_settings(found) == []


def described(found: Settings, **changes: Any) -> tuple[str, list[HomelabError]]:
    facts = desktop(**changes)
    host = found.hosts["pve"]
    return preview.describe("pve", host, facts, plan.wanted(facts, host), found.vms, found.containers)


def test_a_plan_names_driver_and_modules_and_why() -> None:
    text, errors = described(settings(vm={"driver": "580", "cuda": "12.8", "containerToolkit": "docker"}))
    assert errors == []
    assert "VM 103 (v): driver 580 (open kernel modules" in text
    assert "CUDA 12.8, container toolkit for docker" in text
    named = {"driver": "580", "capabilities": ["graphics", "compute"]}
    assert ", its compute and graphics libraries" in described(settings(vm=named))[0]


def test_a_plan_says_of_each_system_that_its_drivers_branch_gets_no_more_fixes() -> None:
    ended = "\n    note: branch 570 has reached its end of life (2026-02)"
    card = {"match": "10de:2b85", "use": "lxc"}
    assert described(settings(vm={"driver": "570"}))[0].count(ended) == 1
    assert described(settings(host={"driver": "570"}, container={}, rtx=card))[0].count(ended) == 2
    assert ended not in described(settings(vm={"driver": "580"}))[0]


@pytest.mark.parametrize(
    ("driver", "source", "said"),
    [
        ("580", "run", ", by NVIDIA's installer 580.178.04, its compute"),
        ("595", "packages", ", from packages, its compute"),
        (
            "595.58.03",
            "either",
            ", from packages, or by NVIDIA's installer 595.58.03 where they can't be had, its compute",
        ),
    ],
)
def test_a_plan_says_where_the_driver_comes_from(driver: str, source: str, said: str) -> None:
    found = settings(host={"driver": driver}, rtx={"match": "10de:2b85", "use": "lxc"})
    facts, host = desktop(), found.hosts["pve"]
    assert facts.pve.startswith("9.")
    want = plan.wanted(facts, host)
    text, errors = preview.describe("pve", host, facts, want, {}, {})
    assert errors == [] and said in text
    assert preview.driver_to_be("pve", host, facts, want, None)["source"] == source


def test_a_driver_that_can_be_had_in_no_way_is_refused_in_a_preview() -> None:
    found = settings(host={"driver": "570"}, rtx={"match": "10de:2b85", "use": "lxc"})
    _, (error,) = described(found)
    assert "the SHA-256 of NVIDIA's installer 570.211.01" in error.wanted
    found = settings(host={"driver": "580", "source": "packages"}, rtx={"match": "10de:2b85", "use": "lxc"})
    _, (error,) = described(found)
    assert error.found == "its repositories have the branches from 590"


def test_a_card_set_by_address_is_refused_once_the_host_was_read() -> None:
    _, errors = described(settings(vm={"driver": "535"}, rtx={"address": "01:00"}))
    assert ["branch 570 or later" in str(error) for error in errors] == [True]


def test_a_guest_that_is_off_and_stays_off_is_named() -> None:
    found = settings(vm={"driver": "580"})
    guests = {"configs": [{"kind": "vm", "id": 103, "lines": "machine: q35"}], "mappings": "", "reservations": ""}
    (error,) = described(found, guests={**guests, "running": []})[1]
    assert error.wanted == "vms.v running" and "power is keep" in error.found
    assert described(found, guests={**guests, "running": [103]})[1] == []


def test_the_hosts_driver_is_for_the_cards_that_stay_with_it() -> None:
    _, errors = described(settings(host={"driver": "580"}))
    assert "an NVIDIA card" in str(errors[0])  # its only one is for a VM
    _, errors = described(settings(host={"driver": "580"}, rtx={"match": "10de:2b85", "use": "lxc"}))
    assert errors == []


# -- for every machine of the plan, before the first change -------------------------------------------------------------
P4 = "10de:1bb3"
UBUNTU: dict[str, Any] = {"distribution": "ubuntu", "version": "24.04"}
DEBIAN: dict[str, Any] = {"distribution": "debian", "version": "13"}


def seen(steps: frozenset[str] = frozenset(), **system: Any) -> SystemReading:
    """A look inside."""
    return SystemReading(SystemFacts(**system), "1", steps, ())


def shared(inside: dict[str, Any] | SystemReading, **nvidia: Any) -> list[HomelabError]:
    """What stands against a container with a Tesla P4 on a host that gets branch 580."""
    gpus = {"p4": {"match": P4, "use": "lxc"}}
    found = settings(container=nvidia, host={"driver": "580"}, **gpus)
    facts = desktop(
        devices=[device("0000:01:00.0", P4, "030200", 16)],
        guests={
            "configs": [{"kind": "lxc", "id": 901, "lines": "ostype: debian"}],
            "running": [901],
            "mappings": "",
            "reservations": "",
        },
    )
    host = found.hosts["pve"]
    want = plan.wanted(facts, host)
    read = inside if isinstance(inside, SystemReading) else seen(**inside) if inside else None
    return preview.describe("pve", host, facts, want, {}, found.containers, {"901": read} if read else {})[1]


@pytest.mark.parametrize("cuda", ["12.8", "12.9", "13.0", "13.1"])
def test_no_cuda_of_debian_13_works_with_a_pascal_card(cuda: str) -> None:
    (*_, error) = shared(DEBIAN, cuda=cuda)
    assert error.wanted.startswith("containers.c: ") and error.next.startswith("leave nvidia.cuda out: no release")
    assert shared(DEBIAN) == []


def test_an_error_names_a_cuda_that_card_and_distribution_have() -> None:
    assert shared(UBUNTU, cuda="12.9") == []
    (error,) = shared(UBUNTU, cuda="13.0")
    assert error.next.startswith('set nvidia.cuda: "12.9", or an older one that fits (12.8, ')
    # Without a look inside, it is said for which distributions there is none.
    (error,) = shared({}, cuda="13.0")
    assert error.next.endswith("for Ubuntu 26.04 and Debian 13 NVIDIA has none of them: leave it out there")


def test_the_template_of_a_new_container_tells_its_distribution() -> None:
    found = settings(container={"cuda": "12.9"}, host={"driver": "580"}, p4={"match": P4, "use": "lxc"})
    facts = desktop(devices=[device("0000:01:00.0", P4, "030200", 16)])
    made = {"ostemplate": "local:vztmpl/debian-13-standard_13.1-2_amd64.tar.zst"}
    about = {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": {"cuda": "12.9"}, "create": made}
    containers = {"c": Container.model_validate(about)}
    host = found.hosts["pve"]
    (error,) = preview.describe("pve", host, facts, plan.wanted(facts, host), {}, containers)[1]
    assert error.found == "that repository begins with CUDA 13.1"


def test_what_a_configured_repository_offers_counts_before_the_data() -> None:
    offers: dict[str, Any] = {"offered": {"cuda-toolkit-12-9": ("12.9.1-1",), "cuda-toolkit-12-8": ()}}
    there = seen(frozenset({"repository"}), **DEBIAN, **offers)
    assert shared(there, cuda="12.9") == []
    (error,) = shared(there, cuda="12.8")
    assert error.found == "its repositories don't offer it" and error.next.startswith('set nvidia.cuda: "12.9"')
    # Those of the distribution say nothing of NVIDIA's.
    assert shared(seen(**DEBIAN, **offers), cuda="12.9") != []


VM_103 = {"kind": "vm", "id": 103, "lines": "machine: q35\nostype: l26"}


def inside_vm(config: dict[str, Any] = VM_103, read: SystemReading | None = None, **nvidia: Any) -> list[HomelabError]:
    """What stands against NVIDIA's stack in VM 103, which runs."""
    found = settings(vm={"driver": "580", **nvidia})
    facts = desktop(guests={"configs": [config], "running": [103], "mappings": "", "reservations": ""})
    host = found.hosts["pve"]
    return preview.describe("pve", host, facts, plan.wanted(facts, host), found.vms, {}, {"103": read} if read else {})[
        1
    ]


@pytest.mark.parametrize(
    ("inside", "nvidia", "said"),
    [
        ({"secure_boot": True, "mok_enrolled": False}, {}, "Secure Boot is on, and DKMS's key isn't enrolled"),
        ({"runtimes": frozenset()}, {"containerToolkit": "docker"}, "installed: no container runtime"),
        ({"room": 3 * 10**9}, {"cuda": "12.8"}, "3000 MB are free"),
        ({"room": 10**8}, {}, "100 MB are free"),
        ({"architecture": "aarch64"}, {}, "aarch64"),
    ],
)  # fmt: skip
def test_a_vms_stack_is_refused_before_the_hosts_reboot_for_its_card(
    inside: dict[str, Any], nvidia: dict[str, Any], said: str
) -> None:
    (error,) = inside_vm(read=seen(**{**UBUNTU, **inside}), **nvidia)
    assert error.found == said and error.wanted.startswith("vms.v: ")
    assert inside_vm(read=seen(**UBUNTU, secure_boot=True, mok_enrolled=True, room=9 * 10**9), cuda="12.8") == []


def test_what_is_installed_already_takes_no_more_room() -> None:
    assert inside_vm(read=seen(frozenset({"driver", "cuda"}), **UBUNTU, room=10**8), cuda="12.8") == []


@pytest.mark.parametrize("kind", ["win11", "win10", "win7", "w2k8", "wvista"])
def test_windows_gets_its_card_and_is_told_where_its_driver_comes_from(kind: str) -> None:
    (error,) = inside_vm({**VM_103, "lines": f"ostype: {kind}"})
    assert error.found.startswith("Windows") and "Windows Update or NVIDIA's own installer" in error.next


@pytest.mark.parametrize("kind", ["alpine", "fedora", "archlinux"])
def test_a_container_of_another_distribution_is_refused_by_its_configuration(kind: str) -> None:
    found = settings(container={}, host={"driver": "580"}, p4={"match": P4, "use": "lxc"})
    facts = desktop(
        devices=[device("0000:01:00.0", P4, "030200", 16)],
        guests={
            "configs": [{"kind": "lxc", "id": 901, "lines": f"ostype: {kind}"}],
            "running": [901],
            "mappings": "",
            "reservations": "",
        },
    )
    host = found.hosts["pve"]
    (error,) = preview.describe("pve", host, facts, plan.wanted(facts, host), {}, found.containers)[1]
    assert error.found == kind


def test_a_preview_refuses_a_host_whose_kernel_takes_no_dkms_module() -> None:
    found = settings(host={"driver": "580"}, rtx={"match": "10de:2b85", "use": "lxc"})
    facts, host = desktop(), found.hosts["pve"]
    closed = seen(**DEBIAN, secure_boot=True, mok_enrolled=False)
    (error,) = preview.describe("pve", host, facts, plan.wanted(facts, host), {}, {}, {"host": closed})[1]
    assert error.wanted == "hosts.pve: a system that loads modules which DKMS built"
