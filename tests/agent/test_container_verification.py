"""The layer container_verification: what is said inside a container of each node, judged; a stand-in is inside (the real ones: tests/lab, tests/metal)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.both.container_verification import Wanted
from remote_scripts.layers import container_verification
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import guests
from remote_scripts.tools.done import NOT_FOUND, TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests.agent.card_kit import ALLOW, AMD, BASE, BIND, BOOT, CTID, NVIDIA, Cards300
from tests.agent.cluster_kit import Clock
from tests.agent.kit import Refused

NODES = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"]
RENDER = "/dev/dri/renderD128"
BOUND = "".join(BIND.format(node.removeprefix("/dev/")) for node in NODES) + f"{ALLOW}195:* rwm\n{ALLOW}480:* rwm\n"
GIVEN = "".join(f"dev{number}: {node}\n" for number, node in enumerate(NODES))
UNTRIED = "/dev/nvidia0: not opened: its mode keeps root out, and whom it is for wasn't tried"
DENIED, REFUSED = "Permission denied", "Operation not permitted"
OPENED = dict.fromkeys(NODES, "root and by an ordinary user")


class Inside:
    """What there is in the container. `kept`: who (root, user, a group's number) and a node -> what keeps it from opening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[tuple[str, str], str | Done] = {}
        self.numbers: dict[str, str] = {}
        self.is_busybox = False
        self.ends_at = ""
        self.asked: list[str] = []
        self.entered = 0
        self.programs: dict[str, Any] = {
            "dd": lambda words, _: self.dd("root", words),
            "setpriv": self.setpriv,
            "stat": lambda words, _: f"{self.numbers[words[2]]}\n" if words[2] in self.numbers else 1,
        }

    def dd(self, who: str, words: Sequence[str]) -> Done | int:
        path = words[0].removeprefix("if=")
        assert [*words] == [f"if={path}", f"of={path}", "count=0", "conv=notrunc"]
        self.asked.append(f"{who} {path}")
        if self.ends_at == path:
            raise Failure("an answer", "its shell has ended", "it can't be verified", "see it")
        kept = self.kept.get((who, path), "")
        if isinstance(kept, Done):
            return kept
        return Done(1, b"", f"dd: failed to open '{path}': {kept}\n".encode()) if kept else 0

    def setpriv(self, words: Sequence[str], _stdin: bytes) -> Done | int:
        if self.is_busybox:
            return Done(1, b"", b"setpriv: unrecognized option: reuid\n")
        assert [*words[:3], words[4]] == ["--reuid", "65534", "--regid", "--clear-groups"]
        return 0 if words[5] == "true" else self.dd("user" if words[3] == "65534" else words[3], words[6:])

    def enter(self, _host: System, ctid: int) -> System:
        assert ctid == CTID
        self.entered += 1
        return System(self.folder, programs=self.programs)


@pytest.fixture
def inside(box: Cards300, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside(tmp_path / "inside")
    monkeypatch.setattr(container_verification, "need_running", made.enter)
    box.nvidia(NVIDIA)
    box.state = "running"
    return made


def verify(box: Cards300, *, uses: tuple[str, ...] = (), **cards: Any) -> dict[str, Any]:
    before = box.host.tree("etc", "dev", "var/log", "usr")
    cards = cards or {"minors": (0,)}
    try:
        answer: dict[str, Any] = box.host.ask(
            "apply", "container_verification", Wanted(ctid=CTID, cards=Cards(**cards), uses=uses)
        )
    finally:
        assert box.host.tree("etc", "dev", "var/log", "usr") == before and not box.calls
    return answer


def refused(box: Cards300, **more: Any) -> str:
    with pytest.raises(Refused) as said:
        verify(box, **more)
    return str(said.value)


def amd(box: Cards300) -> tuple[str, ...]:
    box.drm(AMD, 128)
    box.conf = BASE + f"dev0: {RENDER},gid=104,mode=0660\n"
    return (f"{AMD}=render",)


@pytest.mark.parametrize("lines", [GIVEN, BOUND, GIVEN.replace("\n", ",mode=0666\n")], ids=["dev", "bound", "mode"])
def test_each_node_is_opened_by_root_and_by_an_ordinary_user(box: Cards300, inside: Inside, lines: str) -> None:
    box.conf = BASE + lines
    assert verify(box) == {"state": "running", "nodes": OPENED, "tried": []}
    assert inside.asked == [f"{who} {node}" for node in NODES for who in ("root", "user")]
    assert inside.entered == 1


def test_in_one_that_is_off_nothing_is_opened(box: Cards300, inside: Inside) -> None:
    box.state = "stopped"
    assert verify(box) == {"state": "stopped", "nodes": {}, "tried": []} and not inside.entered


def test_whether_it_runs_is_not_guessed_and_is_no_failure_of_a_card(
    box: Cards300, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(guests, "_LOOK_SECONDS", 20.0)
    box.host.programs["pct"] = lambda _words, _: Done(TIMED_OUT, b"half an answer")
    remark = "whether it runs isn't known (pct status gave no answer): nothing was opened"
    assert verify(box) == {"state": "unknown", "nodes": {}, "tried": [remark]} and not inside.entered


def test_one_without_cards_is_not_entered(box: Cards300, inside: Inside) -> None:
    assert verify(box, minors=()) == {"state": "running", "nodes": {}, "tried": []} and not inside.entered


@pytest.mark.parametrize(
    ("lines", "mode", "kept", "found"),
    [
        (GIVEN, 0o666, {"root": "No such file or directory", "user": "No such file or directory"}, "root: it is not there (failed to open"),
        (GIVEN, 0o666, {"root": REFUSED}, "root: no rule of the control group allows it, or a later one denies it (failed to open"),
        (GIVEN, 0o666, {"root": "No such device or address"}, "root: no driver is behind it (failed to open"),
        (GIVEN, 0o666, {"root": "Input/output error"}, "root: failed to open '/dev/nvidia0': Input/output error"),
        (GIVEN, 0o666, {"user": DENIED}, "an ordinary user: its mode keeps it out (failed to open"),
        (GIVEN, 0o660, {"user": DENIED}, "an ordinary user: its mode keeps it out"),
        (BOUND, 0o666, {"user": DENIED}, "an ordinary user: its mode keeps it out"),
        (BOUND, 0o666, {"root": DENIED}, "root: its mode keeps it out"),
        (GIVEN, 0o666, {"root": Done(NOT_FOUND, b"", b"timeout: failed to run command 'dd'\n")}, "root: timeout: failed to run command 'dd'"),
        (GIVEN, 0o666, {"root": Done(1, b"")}, "root: exit status 1"),
        # For whom it isn't, it may be closed; root may be no more than they are.
        (BOUND, 0o660, {"root": DENIED, "user": DENIED}, ""),
        (BOUND, 0o660, {"root": REFUSED}, "root: no rule of the control group allows it"),
        (GIVEN.replace("\n", ",mode=0600\n"), 0o666, {"user": DENIED}, ""),
        (GIVEN.replace("\n", ",gid=44\n"), 0o666, {"user": DENIED}, ""),
        (GIVEN.replace("\n", ",uid=1000\n"), 0o666, {"user": DENIED}, ""),
        (GIVEN.replace(" /dev", " mode=0600,path=/dev"), 0o666, {"user": DENIED}, ""),
    ],
)  # fmt: skip
def test_what_keeps_one_from_opening_it_is_explained_where_it_is_for_him(
    box: Cards300, inside: Inside, lines: str, mode: int, kept: dict[str, str | Done], found: str
) -> None:
    box.node("nvidia0", 195, 0, mode)
    box.conf = BASE + lines
    inside.kept = {(who, "/dev/nvidia0"): said for who, said in kept.items()}
    if not found:
        # What is said to be opened is what was, by those who have done it.
        answer, others = verify(box), OPENED if lines == BOUND else dict.fromkeys(NODES, "root")
        opened = {} if "root" in kept else {NODES[0]: "root"}
        assert answer["nodes"] == {**opened, NODES[1]: others[NODES[1]], NODES[2]: others[NODES[2]]}
        assert answer["tried"] == ([] if opened else [UNTRIED])
        return
    said = refused(box)
    assert said.startswith(f"wanted: devices that can be opened in container {CTID}, by root and by an ordinary user\n")
    assert f"found:  /dev/nvidia0: {found}" in said and said.count("/dev/nvidia0: ") <= 2
    assert "nvidiactl" not in said and inside.entered == 1


def test_a_node_for_a_group_is_opened_by_a_member_and_is_the_hosts_own(box: Cards300, inside: Inside) -> None:
    cards = amd(box)
    inside.numbers = {RENDER: "e2:80"}
    inside.kept = {("user", RENDER): DENIED}
    assert verify(box, cards=cards)["nodes"] == {RENDER: "root and by a member of the group 104"}
    inside.kept = {("104", RENDER): DENIED}
    said = refused(box, cards=cards)
    assert f"found:  {RENDER}: a member of the group 104: its mode keeps it out" in said
    inside.kept, inside.numbers = {}, {RENDER: "e2:81"}
    said = refused(box, cards=cards)
    assert f"{RENDER}: it is the device e2:81 inside, and e2:80 on the host (in hexadecimal)" in said


def test_with_busybox_root_alone_opens_it_and_that_is_said(box: Cards300, inside: Inside) -> None:
    box.conf = BASE + GIVEN
    inside.is_busybox = True
    answer = verify(box)
    assert answer["nodes"] == dict.fromkeys(NODES, "root") and inside.asked == [f"root {node}" for node in NODES]
    assert answer["tried"] == ["it has no setpriv: whether an ordinary user can open them was not tried"]
    assert verify(box, cards=amd(box))["nodes"] == {RENDER: "root"}


def test_what_hangs_or_ends_in_the_middle_leaves_nothing_opened(box: Cards300, inside: Inside) -> None:
    box.conf = BASE + GIVEN
    inside.kept = {("root", NODES[1]): Done(TIMED_OUT, b"")}
    assert f"{NODES[1]}: root: no answer within 60 s\n" in refused(box)
    assert f"root {NODES[2]}" not in inside.asked
    inside.kept, inside.ends_at = {}, NODES[1]
    assert "found:  its shell has ended\n" in refused(box) and inside.entered == 2


def vainfo(said: str, status: int = 0) -> Any:
    def answer(words: Sequence[str], _stdin: bytes) -> Done:
        assert [*words] == ["--display", "drm", "--device", RENDER]
        return Done(status, said.encode())

    return answer


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (vainfo("libva info: VA-API\nvainfo: Driver version: Mesa Gallium driver 25.0 \nvainfo: Supported profiles\n"), ""),
        (vainfo("error\nvaInitialize failed with error code -1\n", 3), "(exit status 3): vaInitialize failed with error code -1"),
        (vainfo("\33[31m\0bad\n", 1), "(exit status 1): "),
        (vainfo("sh: 1: vainfo: not found\n", NOT_FOUND), "(exit status 127): sh: 1: vainfo: not found"),
    ],
    ids=["works", "fails", "lies", "none"],
)  # fmt: skip
def test_video_has_to_work_where_packages_were_installed_for_it(
    box: Cards300, inside: Inside, program: Any, said: str
) -> None:
    cards = amd(box)
    inside.programs["vainfo"] = program
    assert verify(box, cards=cards)["tried"] == []
    if not said:
        tried = verify(box, cards=cards, uses=("compute", "video"))["tried"]
        assert tried == [f"{RENDER}: vainfo works, Driver version: Mesa Gallium driver 25.0 "]
        return
    text = refused(box, cards=cards, uses=("video",))
    assert text.startswith(
        f"wanted: video (VA-API) on each Intel and AMD card of container {CTID}\nfound:  {RENDER}: vainfo fails {said}"
    )
    assert f"`pct exec {CTID} -- vainfo --display drm --device {RENDER}`" in text
    inside.kept = {("root", RENDER): REFUSED}
    assert "control group" in refused(box, cards=cards, uses=("video",))  # first that it can't be opened


def test_a_try_of_video_that_takes_too_long_says_nothing_of_the_card(box: Cards300, inside: Inside) -> None:
    inside.programs["vainfo"] = vainfo("", TIMED_OUT)
    answer = verify(box, cards=amd(box), uses=("video",))
    assert answer["tried"] == [f"{RENDER}: vainfo gave no answer within 60 s: whether video works isn't known"]
    assert [*answer["nodes"]] == [RENDER]


def test_it_isnt_entered_where_there_is_nothing_to_verify_or_a_card_is_away(box: Cards300, inside: Inside) -> None:
    assert "not on the host: /dev/nvidia7" in refused(box, minors=(7,))
    box.host.write("/var/lib/homelab/handover/card.state", json.dumps({"state": "VM", "vm": "103", "boot": BOOT}))
    assert "gpus.card is with VM 103" in refused(box)
    (box.root / f"etc/pve/lxc/{CTID}.conf").unlink()
    (box.root / "var/lib/homelab/handover/card.state").unlink()
    assert "no such container on this host" in refused(box)
    assert not inside.entered
