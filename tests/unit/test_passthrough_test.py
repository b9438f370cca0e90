"""components/passthrough_test.py: one act, never undone, and what it puts out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components.passthrough_test import PassthroughTest, PassthroughTestArgs
from homelab.remote.scripts import answer
from homelab.resources import command
from homelab.settings import Host
from homelab.shapes import PassthroughSeen
from tests.unit.hosts import KEY

ANSWER = '{"kernel":"6.17.2-1-pve","vmid":100,"functions":[]}'


class Engine(pulumi.runtime.Mocks):
    """Answers every resource, and keeps what was asked for."""

    def __init__(self) -> None:
        self.made: list[pulumi.runtime.MockResourceArgs] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        self.made.append(args)
        return args.name, {**args.inputs, "stdout": f"a login's greeting\n{ANSWER}\n"}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(f"nothing is to be called: {args.token}")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Pulumi with mocks for an engine, on a loop of its own: the thread's is gone once another test has used asyncio.run."""
    loops: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def noted() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    # Pulumi makes one in each thread in which it calls the mocks, and closes none.
    monkeypatch.setattr(asyncio, "new_event_loop", noted)
    main = noted()
    asyncio.set_event_loop(main)
    mocks = Engine()
    pulumi.runtime.set_mocks(mocks, preview=False)
    monkeypatch.setattr(command, "_ask_the_agent", lambda: None)  # nobody has one here
    yield mocks
    pulumi.runtime.settings.reset_options()
    main.run_until_complete(main.shutdown_default_executor())
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()


# pulumi-command imports its deprecated resources too.
@pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")
def test_it_is_one_command_that_runs_again_for_other_functions_and_triggers_and_has_no_undo(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("a key\n")
    host = Host.model_validate(
        {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "privateKeyFile": str(tmp_path / "key")}},
    )
    seen: list[PassthroughSeen] = []

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def program() -> pulumi.Output[Any]:
        functions = pulumi.Output.from_input({"0000:01:00.1": "10de:22e8", "0000:01:00.0": "10de:2b85"})
        test = PassthroughTest(
            "pve-gpu", PassthroughTestArgs(host=host, functions=functions, triggers=["the boot's id"])
        )
        return test.seen.apply(seen.append)

    program()
    assert seen == [{"kernel": "6.17.2-1-pve", "vmid": 100, "functions": []}]
    component, command = engine.made
    assert (component.typ, command.name) == ("homelab:gpu:PassthroughTest", "pve-gpu-vm")
    assert command.inputs["create"] == "bash -s -- apply" and "delete" not in command.inputs
    assert command.inputs["triggers"] == [{"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}, "the boot's id"]
    assert "FUNCTIONS='0000:01:00.0=10de:2b85 0000:01:00.1=10de:22e8'\n" in command.inputs["stdin"]


def test_the_answer_is_the_last_line() -> None:
    assert (
        answer(f"Linux pve 6.17\n{ANSWER}")
        == answer(f"{ANSWER}\n")
        == {"kernel": "6.17.2-1-pve", "vmid": 100, "functions": []}
    )
