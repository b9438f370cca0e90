"""homelab/resources/program.py: hosts and guests as dictionaries of a program of one's own; what `homelab` offers such programs."""

from __future__ import annotations

import ast
import asyncio
from typing import Any

import pulumi
import pytest

import homelab
from homelab.host.resource import HostProbe
from homelab.resources.program import settings_of
from homelab.settings import Host
from homelab.stack import Refusal
from tests.conftest import PROJECT
from tests.unit import hosts

PROGRAMS = (
    "__main__.py",
    "examples/own_program/__main__.py",
    "examples/gaming_vm/__main__.py",
    "examples/gaming_vm/lent_cards.py",
)


def described(**ssh: Any) -> dict[str, Any]:
    return {"address": "192.0.2.1", "ssh": {"hostKey": hosts.KEY, **ssh}, "gpus": {"rtx5090": {"match": "10de:2b85"}}}


def host_of(**ssh: Any) -> Host:
    return settings_of({"hosts": {"pve": described(**ssh)}}).hosts["pve"]


def test_a_mistake_is_named_with_its_place_and_the_key_that_was_meant() -> None:
    with pytest.raises(Refusal, match=r"homelab:hosts\.pve\.ssh\.agnet: unknown key, did you mean `agent`\?"):
        host_of(agnet=True)
    parts = {"hosts": {"pve": described(agent=True)}, "vms": {"sandbox": {"host": "pve", "vmid": "103", "gpus": []}}}
    with pytest.raises(Refusal, match=r"homelab:vms\.sandbox\.vmid: "):
        settings_of(parts)


def test_a_card_that_there_is_not_is_refused() -> None:
    vm = {"host": "pve", "vmid": 103, "gpus": ["rtx5091"]}
    with pytest.raises(Refusal, match=r"vms\.sandbox\.gpus: hosts\.pve has no card rtx5091") as refused:
        settings_of({"hosts": {"pve": described(agent=True)}, "vms": {"sandbox": vm}})
    assert "Pulumi.<stack>.yaml" not in str(refused.value)


def test_a_secret_may_be_an_output_and_what_decides_which_resources_there_are_may_not() -> None:
    async def used() -> str:
        key = pulumi.Output.from_input("a key")
        with pytest.raises(Refusal, match=r"address that is there when the program runs"):
            settings_of({"hosts": {"pve": {**described(agent=True), "address": key}}})
        ssh = host_of(privateKey=key).ssh
        value: pulumi.Output[str] = ssh.value_of(str(ssh.key))
        return await value.future() or ""

    assert asyncio.run(used()) == "a key"


def test_a_plan_does_not_change_with_the_secret_that_stands_for_an_output() -> None:
    async def digests() -> set[str]:
        keys = [pulumi.Output.from_input("a key") for _ in range(2)]
        return {HostProbe.settings_of(host_of(privateKey=key)) for key in keys}

    assert len(asyncio.run(digests())) == 1


def test_a_host_knows_its_place_in_the_settings() -> None:
    guest = {"host": "pve", "gpus": []}
    found = settings_of(
        {
            "hosts": {
                "pve": {**described(agent=True), "node": "pve1"},
                "far": {**described(agent=True), "address": "192.0.2.2"},
            },
            "vms": {"sandbox": {**guest, "vmid": 103}},
            "containers": {"ai": {**guest, "ctid": 901}},
        }
    )
    pve, far = found.hosts.values()
    assert [pve.name, pve.node_name, far.name, far.node_name] == ["pve", "pve1", "far", "far"]
    assert [one.name for one in (*pve.vms, *pve.containers)] == ["sandbox", "ai"]
    assert not (*far.vms, *far.containers)


def test_homelab_offers_what_programs_use_and_nothing_else() -> None:
    used = {
        alias.name
        for program in PROGRAMS
        for node in ast.walk(ast.parse((PROJECT / program).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "homelab"
        for alias in node.names
    }
    assert used - {"components"} == {*homelab.__all__}
    assert all(getattr(homelab, name) for name in homelab.__all__)
