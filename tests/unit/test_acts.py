"""When an act makes place for another one, and when the same one is done again: after another event, and after another version of the program."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.container.resource import ContainerVerification
from homelab.container.work import ContainerVerificationWork
from homelab.errors import HomelabError
from homelab.nvidia.resource import GuestReboot, NvidiaVerification
from homelab.remote import ssh
from homelab.remote.scripts import same_answers
from homelab.resources.work.plain import UNKNOWN
from remote_scripts.notes.container_note import Cards
from tests.rows import rows
from tests.unit.hosts import KEY, settings

DRIVER = {"version": "580.178.04", "packages": ["dkms"], "reboot": "no", "why": "it is loaded", "changed": "yes"}


def said(**other: Any) -> str:
    """What the driver's step answers."""
    return json.dumps({**DRIVER, **other})


@rows(
    ("new", "same"),
    [
        (said(), True),
        (said(why="nothing else had the card", changed="no", restarted="no"), True),
        (said(before="570.211.01"), True),
        (said(restarted="yes"), False),
        (said(version="580.211.01"), False),
        (said(reboot="yes"), False),
        (said(packages=["dkms", "gcc"]), False),
        ("", False),
        ("{", False),
        (None, False),
        (UNKNOWN, False),
        ([said()], False),
    ],
)
def test_an_answer_in_other_words_is_no_news(new: Any, same: bool) -> None:
    assert same_answers(said(), new) is same
    assert same_answers([said(), "0"], [new, "0"]) is same
    assert not same_answers([said(), "0"], [new, "1"])
    assert not same_answers([said()], [said(), new])
    assert not same_answers([said()], None)


@rows(
    ("old", "new", "same"),
    [
        ("boot a, start 1", "boot a, start 1", True),
        ("boot a, start 1", "boot a, start 2", False),
        ('boot a, {"state":"running","restarted":"yes"}', 'boot a, {"state":"running","restarted":"no"}', True),
        ('boot a, {"state":"running","restarted":"yes"}', 'boot b, {"state":"running","restarted":"no"}', False),
        ('boot a, {"state":"running","restarted":"no"}', 'boot a, {"state":"stopped","restarted":"no"}', False),
        ('boot a, {"state":"running","restarted":"no"}', 'boot a, {"state":"running","restarted":"yes"}', False),
    ],
)
def test_a_text_that_ends_with_an_answer_is_compared_whole(old: str, new: str, same: bool) -> None:
    assert same_answers(old, new) is same


VM = {"target": "vm", "after": " rtx5090", "passed": [], "nvidia": {"cuda": "12.8", "driver": None}}


@rows(
    ("changed", "replaced"),
    [
        ({"step": said(why="in other words")}, set()),
        ({"step": said(reboot="yes")}, {"step"}),
        ({"step": UNKNOWN}, {"step"}),
        ({"step": said(), "driver": "580.211.01"}, {"driver"}),
        ({"generation": "1  rtx5090"}, {"generation"}),
        ({"nvidia": {"cuda": "12.9", "driver": None}}, {"nvidia"}),
        ({"after": UNKNOWN}, {"after"}),
    ],
)
def test_a_guest_is_looked_at_by_another_act_if_it_may_need_a_reboot(
    changed: dict[str, Any], replaced: set[str]
) -> None:
    state = {**VM, "driver": "580.178.04", "step": said(), "generation": "0  rtx5090"}
    told = {key: new for key, new in changed.items() if not GuestReboot.says_nothing(key, new)}
    assert GuestReboot.replacing(state, told) == replaced


@pytest.mark.parametrize(
    ("changed", "replaced"),
    [
        ({"done": [said(why="")]}, set()),
        ({"done": [said(), "12.8"]}, {"done"}),
        ({"done": [said(version="580.211.01")]}, {"done"}),
        ({"facts": {"running": "6.9"}}, {"facts"}),
    ],
)
def test_a_stack_is_verified_by_another_act_if_something_has_happened(
    changed: dict[str, Any], replaced: set[str]
) -> None:
    state = {**VM, "done": [said()], "facts": {"running": "6.8"}}
    assert NvidiaVerification.replacing(state, changed) == replaced


def test_a_container_is_looked_into_by_another_act_if_it_was_restarted() -> None:
    state = {"ctid": 901, "after": ["restart-1", '{"state":"running","restarted":"yes"}']}
    for after, replaced in (
        (["restart-1", '{"state":"running","restarted":"no"}'], set()),
        (["restart-2", '{"state":"running","restarted":"no"}'], {"after"}),
        (["restart-1", '{"state":"stopped","restarted":"no"}'], {"after"}),
    ):
        assert ContainerVerification.replacing(state, {"after": after}) == replaced


def test_what_cant_be_opened_is_said_in_a_line_and_no_report_stands_between(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"wanted": "devices", "found": "/dev/nvidia0: root: it is not there", "why": "it fails", "next": "see it"}

    def ask(*_: object) -> None:
        raise HomelabError(**parts)

    monkeypatch.setattr(ssh.Session, "ask", ask)
    host = settings(ssh={"hostKey": KEY, "password": "a"}).model_dump(mode="json", by_alias=True)
    host["ssh"]["password"] = "a"
    work = ContainerVerificationWork({"hosts": json.dumps({"pve": host})})
    with pytest.raises(HomelabError) as raised:
        work.create(ContainerVerification.Inputs(host="pve", ctid=901, after="", cards=Cards(), uses=[]))
    error = raised.value
    assert (error.wanted, error.found, error.why) == (parts["wanted"], parts["found"], parts["why"])
    assert error.next == "see it; `homelab doctor container 901` shows each device"
