"""What is said of NVIDIA's stacks before anything is changed: from the settings alone, and from a reading of the host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.host import plan
from homelab.nvidia import preview
from homelab.settings import Settings, parse
from tests.unit.hosts import KEY, desktop

SSH = {"hostKey": KEY, "agent": True}


def settings(
    vm: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    **gpus: Any,
) -> Settings:
    """A host with the cards of ``gpus``, by default one RTX 5090 for VM 103; NVIDIA's stack where it is given."""
    api = {"token": "homelab@pve!up", "tokenSecret": "x", "publicCa": True}
    cards = gpus or {"rtx": {"match": "10de:2b85"}}
    values: dict[str, Any] = {
        "hosts": {"pve": {"address": "192.0.2.1", "ssh": SSH, "api": api, "gpus": cards, "nvidia": host}},
        "vms": {"v": {"host": "pve", "vmid": 103, "gpus": ["rtx"], "ssh": SSH, "address": "192.0.2.9", "nvidia": vm}}
        if vm
        else {},
        "containers": {"c": {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": container}}
        if container
        else {},
    }
    return parse({key: json.dumps(value) for key, value in values.items()})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"vm": {"driver": "565"}}, "branch 570 or later, with the open kernel modules"),
        ({"vm": {"driver": "580", "flavour": "proprietary"}}, "vms.v: kernel modules that fit cards and driver"),
        ({"vm": {"driver": "570", "cuda": "13.0"}}, "CUDA 13.0"),
        ({"host": {"driver": "595"}, "container": {"driver": "580"}}, "containers.c: the host's driver, 595"),
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
    assert ", its libraries for compute and graphics" in described(settings(vm=named))[0]


def test_a_card_that_is_known_by_its_place_is_refused_once_the_host_was_read() -> None:
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


def test_a_kernel_for_which_the_hosts_driver_does_not_build_is_refused() -> None:
    found = settings(host={"driver": "570.153.02"}, rtx={"match": "10de:2b85", "use": "lxc"})
    _, errors = described(found, kernel="6.17.2-1-pve")
    assert any("whose modules build for every installed kernel" in str(error) for error in errors)
