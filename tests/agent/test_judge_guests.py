"""The layer judge_guests: what Proxmox VE's own code says against guests that are to be made."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from remote_scripts.layers.judge_guests import NewGuest, Wanted
from remote_scripts.tools.run import Done
from tests.agent.kit import Host

GUEST = NewGuest(name="dev", kind="qemu", options={"vmid": "200", "cores": "eight"})


def test_proxmox_ves_own_code_is_asked_once_for_all_guests(host: Host) -> None:
    asked: list[str] = []

    def perl(words: Sequence[str], stdin: bytes) -> str:
        asked.append(stdin.decode())
        assert 'map_method_by_name("create_vm")' in words[-1]
        return json.dumps({"dev": {"cores": "type check failed"}})

    host.programs["perl"] = perl
    answer = host.ask("read", "judge_guests", Wanted(guests=(GUEST, NewGuest(name="ai", kind="lxc", options={}))))
    assert answer == {"mistakes": {"dev": {"cores": "type check failed"}}}
    assert json.loads(*asked) == [
        {"name": "dev", "kind": "qemu", "options": {"vmid": "200", "cores": "eight"}},
        {"name": "ai", "kind": "lxc", "options": {}},
    ]


@pytest.mark.parametrize("done", [Done(2, b"", b"Can't locate PVE/API2/Qemu.pm in @INC"), Done(124, b"")])
def test_where_its_modules_cant_be_loaded_nothing_is_said(host: Host, done: Done) -> None:
    host.programs["perl"] = lambda _words, _stdin: done
    assert host.ask("read", "judge_guests", Wanted(guests=(GUEST,))) == {"mistakes": {}}
