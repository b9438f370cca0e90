"""The end of a node's turn to restart, as whoever verifies its boot tells it to the cluster."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.errors import HomelabError
from homelab.host import plan
from homelab.provider import boot_verification
from homelab.remote import ssh
from homelab.settings import Host


@pytest.mark.parametrize("restarts_again", [False, True], ids=["it is back", "it is about to restart"])
def test_a_node_that_rolled_back_ends_its_turn_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch, restarts_again: bool
) -> None:
    ended = []

    async def confirm(*_: Any) -> SimpleNamespace:
        return SimpleNamespace(rolled_back="boot x was not confirmed", rolling_back=restarts_again)

    async def end(_: Host, name: str) -> None:
        ended.append(name)

    monkeypatch.setattr(ssh, "confirm", confirm)
    monkeypatch.setattr(boot_verification, "_end_turn", end)
    want = cast("plan.Wanted", SimpleNamespace(gpus={}))
    answer = {"reboot": "yes", "boot_id": "x", "turn": "yes"}
    with pytest.raises(HomelabError, match="returned by itself"):
        asyncio.run(boot_verification._verified(cast("Host", None), "pve1", answer, want))
    assert ended == ([] if restarts_again else ["pve1"])


def test_a_node_that_doesnt_come_back_has_its_disks_replaced_by_the_first_other_node_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    async def lift(host: Any, node: str) -> None:
        asked.append((host, node))
        if host == "off":
            raise HomelabError(wanted="", found="it is off", why="", next="")

    class ThreeNodes:
        def peers(self, _: str) -> list[str]:
            return ["off", "on", "third"]

        def host(self, name: str) -> str:
            return name

    monkeypatch.setattr(boot_verification, "_lift", lift)
    work = boot_verification.BootVerificationWork.__new__(boot_verification.BootVerificationWork)
    monkeypatch.setattr(work, "stack", ThreeNodes(), raising=False)
    work._give_up("first", "pve1")
    assert asked == [("off", "pve1"), ("on", "pve1")]
