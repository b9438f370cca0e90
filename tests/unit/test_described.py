"""homelab/resources/described.py: hosts and guests as dictionaries of a program of one's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pulumi
import pytest

from homelab.resources import described as descriptions
from homelab.resources.described import HomelabProvider, host_of, value_of, vm_of
from homelab.resources.host_probe import HostProbe
from homelab.stack import Refusal
from tests.unit import hosts


def described(**ssh: Any) -> dict[str, Any]:
    return {"address": "192.0.2.1", "ssh": {"hostKey": hosts.KEY, **ssh}, "gpus": {"rtx5090": {"match": "10de:2b85"}}}


def test_a_mistake_is_named_with_its_place_and_the_key_that_was_meant() -> None:
    with pytest.raises(Refusal, match=r"homelab:hosts\.NAME\.ssh\.agnet: unknown key, did you mean `agent`\?"):
        host_of(described(agnet=True))
    with pytest.raises(Refusal, match=r"homelab:vms\.NAME\.vmid: "):
        vm_of({"host": "pve", "vmid": "103", "gpus": []})


def test_a_secret_may_be_an_output_and_what_decides_which_resources_there_are_may_not() -> None:
    async def used() -> tuple[Any, bool]:
        key = pulumi.Output.from_input("a key")
        with pytest.raises(Refusal, match=r"address that is there when the program runs"):
            host_of({**described(agent=True), "address": key})
        value = value_of(str(host_of(described(privateKey=key)).ssh.key))
        return await value.future(), await value.is_secret()

    assert asyncio.run(used()) == ("a key", True)


def test_a_plan_does_not_change_with_the_secret_that_stands_for_an_output() -> None:
    async def digests() -> set[str]:
        keys = [pulumi.Output.from_input("a key") for _ in range(2)]
        return {HostProbe.settings_of(host_of(described(privateKey=key))) for key in keys}

    assert len(asyncio.run(digests())) == 1


def test_a_card_that_there_is_not_and_a_guest_that_the_provider_has_not_got_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descriptions, "_GIVEN", {})
    hosts_given = {"pve": described(agent=True)}
    vm = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}
    with pytest.raises(Refusal, match=r"vms\.sandbox\.gpus: hosts\.pve has no card rtx5091") as refused:
        HomelabProvider("own", hosts_given, {"sandbox": vm | {"gpus": ["rtx5091"]}})
    assert "Pulumi.<stack>.yaml" not in str(refused.value)
    descriptions.give({"hosts": hosts_given, "vms": {"sandbox": vm}})
    assert vm_of(dict(vm)).vmid == 103
    for other in (vm | {"vmid": 104}, vm | {"gpus": []}):
        with pytest.raises(Refusal, match=rf"host pve, vmid {other['vmid']}"):
            vm_of(other)
