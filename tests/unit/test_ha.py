"""HA beside cards that are handed over, and beside changes of guests: what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homelab.facts.host import HostFacts
from homelab.host import ha
from homelab.settings import Container, Vm
from remote_scripts.cluster import ha as on_the_host
from remote_scripts.pve.guest_kinds import CONTAINER as CONTAINER_KIND
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests.rows import rows
from tests.unit.hosts import settings
from tests.unit.test_handover import VM, facts, host

SERVICE = "vm: 103\n\tstate started\n\nct: 950\n\tstate started\n"
CONTAINER = {"host": "pve", "ctid": 950}


def under_ha(resources: str = SERVICE, **files: str) -> HostFacts:
    return facts(cluster={"node": "pve", "name": "home", "ha": {"resources": resources, **files}})


@rows(
    ("resources", "refused"),
    [
        (SERVICE, True),
        ("", False),
        (f"\tstate ignored\n \n{SERVICE}", True),  # lines of no section
        ("vm: 1030\n\tstate started\n\nct: 103\n", False),
        (SERVICE.replace("started", "ignored", 1), False),
        (SERVICE.replace("started", "disabled", 1), True),  # somebody sets it to started tomorrow
    ],
)
def test_a_vm_that_ha_may_take_away_from_its_card_is_refused(resources: str, refused: bool) -> None:
    errors = [*ha.refused_under_ha(under_ha(resources=resources), host(), [VM])]
    assert len(errors) == refused
    for error in errors:
        assert error.wanted == "VM 103 to have gpus.rtx5090 in turn with others"
        assert "`ha-manager set vm:103 --state ignored`" in error.next


def test_a_vm_without_a_shared_card_is_its_owners_business() -> None:
    alone = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["other"]})
    assert not [*ha.refused_under_ha(under_ha(), host(), [alone])]


@pytest.mark.parametrize(
    ("gets", "refused"),
    [
        ({"gpus": ["rtx5090"]}, True),
        ({"gpuAssignment": "all"}, True),
        ({"gpus": ["igpu"]}, False),
        ({"gpuAssignment": "none"}, False),
    ],
)
def test_a_container_under_ha_with_a_shared_card_is_refused(gets: dict[str, Any], refused: bool) -> None:
    one = Container.model_validate(CONTAINER | gets)
    found = [error.wanted for error in ha.refused_under_ha(under_ha(), host(), [], [one])]
    assert found == ["container 950 to have gpus.rtx5090 in turn with others"] * refused
    assert not [*ha.refused_under_ha(under_ha(resources="vm: 950\n"), host(), [], [one])]
    assert not [*ha.refused_under_ha(under_ha(), settings(), [], [one])]


IGNORES_ALL = json.dumps({"disarm": {"mode": "ignore", "state": "disarmed"}})


@pytest.mark.parametrize(
    ("resources", "status", "state"),
    [
        (SERVICE, "", "started"),
        ("ct: 950\n", "", "started"),  # which HA hasn't taken up yet
        ("ct: 950\n\tstate disabled\n", "", "disabled"),
        (SERVICE, IGNORES_ALL.replace("ignore", "freeze"), "started"),
        (SERVICE, IGNORES_ALL, ""),
        ("ct: 950\n\tstate ignored\n", "", ""),
        ("vm: 950\n", "", ""),
        ("ct: 9500\n", "", ""),
        ("", "", ""),
    ],
)
def test_the_program_and_the_host_refuse_a_change_of_a_guest_under_ha_alike(
    resources: str, status: str, state: str, tmp_path: Path
) -> None:
    said = [
        str(error) for error in ha.refused_to_change(under_ha(resources=resources, status=status), CONTAINER_KIND, 950)
    ]
    assert len(said) == bool(state) and all(f"HA manages it ({state})" in one for one in said)
    folder = tmp_path / "etc/pve/ha"
    folder.mkdir(parents=True)
    (folder / "resources.cfg").write_text(resources)
    (folder / "manager_status").write_text(status)
    refused = []
    try:
        on_the_host.need_own_power(System(tmp_path), CONTAINER_KIND, 950)
    except Failure as failure:
        refused = [failure.text()]
    assert refused == said
