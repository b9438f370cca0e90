"""The layer judge_guests: what Proxmox VE's own code says against guests that are to be made."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from remote_scripts.both.judge_guests import Wanted
from remote_scripts.tools.done import Done
from tests.agent.kit import Host

WANTED = Wanted(vms={"dev": {"vmid": "200", "cores": "eight"}}, containers={"ai": {}})


def test_proxmox_ves_own_code_is_asked_once_for_all_guests(host: Host) -> None:
    asked: list[str] = []

    def perl(words: Sequence[str], stdin: bytes) -> str:
        asked.append(stdin.decode())
        assert 'map_method_by_name("create_vm")' in words[-1]
        return json.dumps({"dev": {"cores": "type check failed"}})

    host.programs["perl"] = perl
    answer = host.ask("read", "judge_guests", WANTED)
    assert answer == {"mistakes": {"dev": {"cores": "type check failed"}}, "unjudged": ""}
    assert json.loads(*asked) == {"vms": WANTED.vms, "containers": WANTED.containers}


@pytest.mark.parametrize(
    ("done", "why"),
    [
        (Done(2, b"", b"Can't locate PVE/API2/Qemu.pm in @INC"), "Can't locate PVE/API2/Qemu.pm in @INC"),
        (Done(124, b""), "no answer in time"),
    ],
)
def test_where_its_modules_cant_be_loaded_nothing_is_judged_and_that_is_said(host: Host, done: Done, why: str) -> None:
    host.programs["perl"] = lambda _words, _stdin: done
    assert host.ask("read", "judge_guests", WANTED) == {"mistakes": {}, "unjudged": why}
