"""HA beside cards that are handed over: what doesn't go together, and what is to be known; before Proxmox VE 9 with groups, since then with rules."""

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
GROUP = "group: here\n\tnodes pve{}\n\t{}\n"
RULE = "node-affinity: mine\n\tresources vm:102,vm:103\n\tnodes pve{}\n\t{}\n"
CONTAINER = {"host": "pve", "ctid": 950}


def under_ha(cluster: str = "home", resources: str = SERVICE, **files: str) -> HostFacts:
    return facts(cluster={"node": "pve", "name": cluster, "ha": {"resources": resources, **files}})


@rows(
    ("about", "moves"),
    [
        ({}, True),
        ({"cluster": ""}, False),  # a host that is alone: there is no other node
        ({"resources": ""}, False),
        ({"resources": f"\tstate ignored\n \n{SERVICE}"}, True),  # lines of no section
        ({"resources": "vm: 1030\n\tstate started\n\nct: 103\n"}, False),
        ({"resources": SERVICE.replace("started", "ignored", 1)}, False),
        ({"resources": SERVICE.replace("started", "disabled", 1)}, True),  # somebody sets it to started tomorrow
        ({"rules": RULE.format("", "strict 1")}, False),
        ({"rules": RULE.format(":2", "strict 1")}, False),
        ({"rules": RULE.format("", "strict 0")}, True),
        ({"rules": RULE.format(",pve2", "strict 1")}, True),
        ({"rules": RULE.format("2", "strict 1")}, True),
        ({"rules": RULE.format("", "strict 1\n\tdisable")}, True),
        ({"rules": RULE.format("", "strict 1").replace("vm:103", "vm:1030")}, True),
        ({"rules": RULE.format("", "strict 1").replace("node-affinity", "resource-affinity")}, True),
        # Of the nodes that it avoids (pve-manager 9.2.6).
        ({"rules": RULE.format("", "strict 1\n\taffinity negative")}, True),
        ({"rules": RULE.format("", "strict 1\n\taffinity positive")}, False),
        ({"resources": "vm: 103\n\tgroup here\n", "groups": GROUP.format(":1", "restricted 1")}, False),
        ({"resources": "vm: 103\n\tgroup here\n", "groups": GROUP.format("", "restricted 0")}, True),
        ({"resources": "vm: 103\n\tgroup here\n", "groups": GROUP.format(",pve2", "restricted 1")}, True),
        ({"resources": "vm: 103\n\tgroup gone\n", "groups": GROUP.format("", "restricted 1")}, True),
    ],
)
def test_a_vm_that_ha_may_take_away_from_its_card_is_refused(about: dict[str, Any], moves: bool) -> None:
    errors = [*ha.refused_under_ha(under_ha(**about), host(), [VM])]
    assert len(errors) == moves
    for error in errors:
        assert "HA would move the VM away" in error.why and "with pve alone" in error.next


def test_a_vm_without_a_shared_card_is_its_owners_business() -> None:
    alone = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["other"]})
    assert not [*ha.refused_under_ha(under_ha(), host(), [alone])]
    assert ha.refused_for_restart(under_ha(), host(), [alone]) == []
    assert ha.remarks_under_ha(under_ha(), host(), [alone]) == []


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
    found = [error.found for error in ha.refused_under_ha(under_ha(cluster=""), host(), [], [one])]
    assert found == ["it is under HA, which would start it again"] * refused
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


@rows(("state", "tries"), [("started", True), ("enabled", True), ("stopped", False), ("ignored", False), ("", True)])
def test_a_restart_of_the_host_by_up_would_end_in_has_error(state: str, tries: bool) -> None:
    resources = f"vm: 103\n\tstate {state}\n" if state else "vm: 103\n"
    errors = ha.refused_for_restart(under_ha(resources=resources), host(), [VM])
    assert [error.next.split(",")[0] for error in errors] == ["`ha-manager set vm:103 --state stopped`"] * tries


def test_what_becomes_of_starts_that_are_refused_is_said_before() -> None:
    (said,) = ha.remarks_under_ha(under_ha(cluster=""), host(), [VM])
    assert "after 4 of them HA gives up (state error), until `ha-manager set vm:103 --state disabled`" in said
    (said,) = ha.remarks_under_ha(under_ha(resources="vm: 103\n\tmax_restart 3\n\tmax_relocate 0\n"), host(), [VM])
    assert "after 4 of them" in said
