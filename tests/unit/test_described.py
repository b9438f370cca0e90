"""homelab/resources/described.py: hosts and guests as dictionaries of a program of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pulumi
import pytest

from homelab.resources import described as described_hosts
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


class Engine(pulumi.runtime.Mocks):
    """Notes which provider each resource has."""

    def __init__(self) -> None:
        self.provider_of: dict[str, str | None] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[Any, Any]]:
        self.provider_of[args.name] = args.provider
        return args.name, {**args.inputs, "generation": {}}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        raise AssertionError(args.token)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    loops, new = list[asyncio.AbstractEventLoop](), asyncio.new_event_loop

    def noted() -> asyncio.AbstractEventLoop:
        loops.append(new())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", noted)
    monkeypatch.setattr(described_hosts, "_GIVEN", {})
    asyncio.set_event_loop(noted())
    mocks = Engine()
    pulumi.runtime.set_mocks(mocks, project="own", stack="lab", preview=False)
    yield mocks
    pulumi.runtime.settings.reset_options()
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()


API = {"token": "homelab@pve!pulumi", "tokenSecret": "a", "fingerprint": "ab" * 32}
VM = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}


def test_the_programs_provider_is_that_of_every_resource_that_names_none(engine: Engine) -> None:
    host = described(agent=True)

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def program() -> None:
        HomelabProvider("own", {"pve": host})
        parent = pulumi.ComponentResource("own:a:Group", "group")
        HostProbe.of("alone", "pve", host)
        HostProbe.of("inside", "pve", host, pulumi.ResourceOptions(parent=parent))
        component = pulumi.ComponentResource("homelab:a:Component", "component")
        HostProbe.of("part", "pve", host, pulumi.ResourceOptions(parent=component))
        HostProbe.of("other", "pve", host, pulumi.ResourceOptions(provider=HomelabProvider("second", {"pve": host})))

    program()
    of = {name: str(engine.provider_of[name]) for name in ("alone", "inside", "part", "other")}
    assert {name: "::own::" in one for name, one in of.items()} == {
        "alone": True,
        "inside": True,
        "part": True,
        "other": False,
    }
    assert "::second::" in of["other"]


def test_a_program_is_told_of_a_guest_that_its_provider_has_not_got_and_of_a_card_that_there_is_not(
    engine: Engine,
) -> None:
    host = described(agent=True) | {"api": API}

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def program() -> None:
        with pytest.raises(Refusal, match=r"vms\.sandbox\.gpus: hosts\.pve has no card rtx5091") as refused:
            HomelabProvider("own", {"pve": host}, {"sandbox": VM | {"gpus": ["rtx5091"]}})
        assert "Pulumi.<stack>.yaml" not in str(refused.value)
        HomelabProvider("own", {"pve": host}, {"sandbox": VM})
        assert vm_of(dict(VM)).vmid == 103
        for other in (VM | {"vmid": 104}, VM | {"gpus": []}):
            with pytest.raises(Refusal, match=rf"host pve, vmid {other['vmid']}"):
                vm_of(other)

    program()
