"""The layer card_nodes: the lines of containers follow the names and numbers of their cards' nodes, and nothing else is changed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.host.guest_programs import modules as of_perl
from remote_scripts.cards import container_follow
from remote_scripts.layers.card_nodes import SERVICE
from remote_scripts.notes import guest_notes
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.guest_notes import of_container
from remote_scripts.pve import guests
from remote_scripts.pve.container_conf import Method
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools import boot_service, disk
from remote_scripts.tools.errors import UnreadableError
from remote_scripts.tools.system import System
from tests import sampling
from tests.agent.card_kit import ALLOW, AMD, BASE, NOTE, NVIDIA, PRIVILEGED, SECOND, Cards300
from tests.agent.kit import Host, bash, command

RENDER = "/dev/dri/renderD128,gid=104,mode=0660"
OTHER = "0000:07:00.0"
((LINK, UNIT),) = SERVICE.links.items()
METHODS: tuple[Method, Method] = ("device", "mount-entry")
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def method() -> Method:
    return "device"


@pytest.fixture(autouse=True)
def given(box: Cards300, method: Method) -> str:
    """The configuration before."""
    base = BASE if method == "device" else PRIVILEGED
    stock = base.replace("hostname", "dev0: /dev/ttyUSB0\nhostname") + "lxc.mount.entry: /tank tank none bind\n"
    box.conf = stock
    box.drm(AMD, 128)
    box.node("ttyUSB0", 188, 0)
    (box.root / "tank").mkdir()
    box.state, box.is_rewritten = "running", False
    box.apply(method, f"{AMD}=render")
    box.state = "stopped"
    return stock


def with_nvidia(box: Cards300, *cards: str, method: Method = "device") -> str:
    """The container gets NVIDIA's card, too; its configuration."""
    box.nvidia(NVIDIA)
    box.drm(NVIDIA, 140)
    box.ask("apply", method=method, minors=(0,), functions=(NVIDIA,), cards=cards)
    return box.conf


def followed(box: Cards300) -> bool:
    """Whether a boot has changed the configuration, and said so."""
    before, said = box.conf, box.boot()
    assert (before != box.conf) == ("have other names or numbers since this boot" in said), said
    return before != box.conf


def renumbered(conf: str) -> str:
    """With the numbers of a card whose node for computing is 141, and no longer 140."""
    moved = {"renderD140": "renderD141", "card12": "card13", "226:140 ": "226:141 ", "226:12 ": "226:13 "}
    for old, new in moved.items():
        conf = conf.replace(old, new)
    return conf


def lines(conf: str) -> set[str]:
    return {re.sub(r"^dev\d+: ", "", line) for line in conf.splitlines()}


def test_a_boot_that_moved_a_node_is_followed_and_told_and_undone_with_the_rest(box: Cards300, given: str) -> None:
    assert f"dev1: {RENDER}\n" in box.conf
    box.drm(AMD, 129)
    assert "container 300: its cards' nodes have other names or numbers since this boot" in box.boot()
    assert f": {RENDER.replace('128', '129')}\n" in box.conf and "renderD128" not in box.conf
    assert box.boot() == "" and box.drift() == {}
    assert box.revert() == given


def test_a_boot_that_moved_nothing_changes_nothing_even_where_somebody_has(box: Cards300) -> None:
    box.conf = by_hand = box.conf.replace(f"dev1: {RENDER}\n", "")
    assert box.boot() == "" and box.conf == by_hand


@pytest.mark.parametrize("number", [128, 129, 140])
def test_a_boot_leaves_the_lines_of_nvidias_nodes_that_are_not_there_yet(
    box: Cards300, given: str, number: int
) -> None:
    before = with_nvidia(box, f"{AMD}=render")
    names = ["nvidia0", "nvidiactl", "nvidia-uvm"]
    assert all(f"/dev/{name},mode=" in before for name in names)
    box.drm(NVIDIA, None)
    box.gone(*names)
    box.drm(AMD, number)
    said = box.boot()
    changed = lines(before) ^ lines(box.conf)
    # What the card was called before goes once all are there.
    moved = {RENDER.replace("128", str(number))} if number != 128 else set()
    # A number that the other card has now isn't NVIDIA's any more.
    gone = {f"/dev/dri/{name},mode=0666" for name in ("card12", "renderD140")} if number == 140 else set()
    assert changed == moved | gone
    assert "all nodes of container 300's cards\nfound:  after 0 s 1 of 6 are there: " in said
    assert not followed(box)
    box.nvidia(NVIDIA)
    box.drm(NVIDIA, 150 if number == 140 else 140)
    followed(box)
    of_nvidia = {line for line in lines(before) if "mode=0666" in line}
    if number == 140:
        of_nvidia = {line.replace("renderD140", "renderD150").replace("card12", "card22") for line in of_nvidia}
    assert {line for line in lines(box.conf) if "mode=0666" in line} == of_nvidia
    assert box.revert() == given


@EACH_METHOD
def test_boots_without_the_cards_driver_leave_its_lines_and_their_rules(
    box: Cards300, given: str, method: Method
) -> None:
    before = with_nvidia(box, f"{AMD}=render", method=method)
    box.gone("nvidia0", "nvidiactl", "nvidia-uvm")
    box.drm(NVIDIA, None)
    assert not followed(box) and box.conf == before
    box.drm(AMD, 129)
    assert followed(box) and lines(before) < lines(box.conf) and not followed(box)
    box.nvidia(NVIDIA)
    box.drm(NVIDIA, 140)
    box.drm(AMD, 128)
    followed(box)
    assert lines(box.conf) == lines(before)
    assert box.revert() == given


@EACH_METHOD
def test_a_boot_that_moved_nvidias_node_is_followed_also_where_no_other_maker_has_a_card(
    box: Cards300, given: str, method: Method
) -> None:
    before = with_nvidia(box, method=method)
    # Somebody else's card has the number, and NVIDIA's driver the next one.
    box.drm(NVIDIA, 141)
    box.drm(OTHER, 140)
    assert followed(box)
    assert lines(box.conf) == lines(renumbered(before)) and box.boot() == ""
    assert box.revert() == given


def test_a_boot_waits_for_nvidias_node_only_where_there_was_one(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvidia(box)
    there = container_follow._are_there
    answers: list[bool] = []

    def looked(system: System, ctid: int) -> bool:
        answers.append(there(system, ctid))
        return answers[-1] or len(answers) > 2

    monkeypatch.setattr(container_follow, "_are_there", looked)
    monkeypatch.setattr(container_follow, "CARD_SECONDS", 20.0)
    assert box.boot() == "" and answers == [True]
    box.drm(NVIDIA, None)
    assert "after 20 s 3 of 5 are there: /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm" in box.boot()
    assert answers == [True, False, False]
    given = of_container(box.host.system(), 300).given
    box.note(given=replace(given, nodes=tuple(node for node in given.nodes if "/dri/" not in node)))
    answers.clear()
    assert box.boot() == "" and answers == [True]


def test_a_container_that_is_gone_keeps_no_boot_waiting(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(cards=Cards(cards=("0000:06:00.0=render",)), nodes=("/dev/dri/renderD131",))
    guest_notes.write(box.host.system(), CONTAINER, 301, ContainerNote(given=given))
    monkeypatch.setattr(container_follow, "CARD_SECONDS", 20.0)
    assert box.boot() == ""


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("no driver", "all nodes of container 300's cards\nfound:  after 0 s 0 of 1 are there: "),
        ("a lock", "CT is locked (backup)"),
        ("no nodes", ""),
        ("unreadable", "lxc-300"),
        ("a fault", "gpus/0000:01:00.0/information"),
        ("a broken note", "it isn't what this program has written"),
    ],
)
def test_no_boot_fails_for_it(box: Cards300, trouble: str, said: str) -> None:
    if trouble == "a fault":
        with_nvidia(box)
        information = box.root / f"proc/driver/nvidia/gpus/{NVIDIA}/information"
        information.unlink()
        information.mkdir()
    box.drm(AMD, 129)
    if trouble == "no driver":
        shutil.rmtree(box.root / "sys")
    elif trouble == "a lock":
        box.conf += "lock: backup\n"
    elif trouble == "a broken note":
        box.host.write(NOTE, "x")
    elif trouble == "no nodes":
        box.note(given=Given())
    elif trouble == "unreadable":
        (box.root / NOTE[1:]).unlink()
        box.host.write(f"{NOTE}/x", "")
    before = box.conf
    assert said in box.boot() and box.conf == before


def test_each_container_is_mended_for_itself(box: Cards300) -> None:
    """What keeps one from being mended keeps no other."""
    shutil.copy(box.root / NOTE[1:], (box.root / NOTE[1:]).with_name("lxc-200"))
    box.host.write("/etc/pve/lxc/200.conf", f"{box.conf}lock: backup\n")
    box.drm(AMD, 129)
    said = box.boot()
    assert "CT is locked (backup)" in said and "renderD129" in box.conf


@pytest.mark.parametrize("number", range(3))
@EACH_METHOD
def test_a_boot_that_is_cut_short_is_made_good_by_the_next(
    box: Cards300, given: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first note, the text, the second note; also where a run was killed before the boot, it is started."""
    left = [number]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    replace = guest_notes.write

    def write(*arguments: Any) -> None:
        replace(*arguments)
        stop()

    box.drm(AMD, 129)
    with monkeypatch.context() as killed:
        killed.setattr(guest_notes, "write", write)
        box.after["perl"] = stop
        with pytest.raises(KeyboardInterrupt):
            box.boot()
    box.after.clear()
    box.boot()
    assert "renderD128" not in box.conf and "renderD129" in box.conf
    assert box.drift() == {} and box.revert() == given


def test_what_was_late_at_one_boot_is_followed_at_the_next(box: Cards300, given: str) -> None:
    with_nvidia(box, f"{AMD}=render")
    names = ["nvidia0", "nvidiactl", "nvidia-uvm"]
    box.gone(*names)
    box.drm(NVIDIA, None)
    box.drm(AMD, 129)
    assert followed(box) and "renderD140" in box.conf
    box.nvidia(NVIDIA)
    box.drm(NVIDIA, 141)
    assert followed(box) and "renderD141" in box.conf and "renderD140" not in box.conf
    assert box.drift() == {} and box.revert() == given


@EACH_METHOD
def test_a_line_that_had_to_go_comes_back_with_the_card(box: Cards300, given: str, method: Method) -> None:
    before = with_nvidia(box, method=method)
    box.drm(NVIDIA, None)
    box.drm(OTHER, 140)  # another card has the name, and NVIDIA's driver hasn't come
    assert followed(box) and "renderD140" not in box.conf
    box.drm(OTHER, None)
    box.drm(NVIDIA, 140)
    assert followed(box) and lines(box.conf) == lines(before)
    assert box.revert() == given


@EACH_METHOD
def test_two_cards_that_take_each_others_numbers_are_both_there_in_the_end(
    box: Cards300, given: str, method: Method
) -> None:
    box.inside = "root:x:0:\n"
    # The groups are looked up anew: the lines of both are alike.
    box.note(given=replace(of_container(box.host.system(), 300).given, cards=None))
    with_nvidia(box, f"{AMD}=render", method=method)
    box.drm(AMD, None)
    box.drm(NVIDIA, 129)
    followed(box)
    box.drm(NVIDIA, None)
    box.drm(AMD, 129)
    assert followed(box) and "renderD129" in box.conf
    box.drm(AMD, 128)
    box.drm(NVIDIA, 129)
    assert followed(box) and "renderD128" in box.conf and "renderD129" in box.conf
    assert box.drift() == {} and box.revert() == given


@pytest.mark.parametrize(("method", "at_boot"), sampling.paired(METHODS, [True, False], "numbers"))
def test_nvidias_own_numbers_follow_the_card(box: Cards300, given: str, method: Method, at_boot: bool) -> None:
    """Two cards of NVIDIA's in one host, one of which the container has; at a boot, and when one comes back from a VM, for
    which the host's lock is held, and a container that runs is left alone."""
    before = with_nvidia(box, method=method)
    box.nvidia(SECOND, NVIDIA)
    box.drm(NVIDIA, 141)
    box.drm(SECOND, 140)
    if at_boot:
        assert followed(box)
    else:
        box.state = "running"
        assert box.boot("follow_containers") == "" and box.conf == before
        box.state = "stopped"
        lock = box.host.system().work
        lock.take_lock()
        box.boot("follow_containers")
        lock.release()
    expected = re.sub(r"nvidia0\b", "nvidia1", renumbered(before)).replace("c 195:0 ", "c 195:1 ")
    assert lines(box.conf) == lines(expected)
    assert box.revert() == given


def test_a_container_of_which_it_isnt_known_whether_it_runs_is_said(
    box: Cards300, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.drm(AMD, 129)
    before = box.conf
    monkeypatch.setattr(guests, "power_of", lambda *_arguments: "unknown")
    assert "whether it runs is not known" in box.boot("follow_containers") and box.conf == before


def allowed(conf: str) -> list[str]:
    return sorted(re.findall(r"allow: c (\S+)", conf))


@pytest.mark.parametrize("method", ["mount-entry"])
@pytest.mark.parametrize("rule", ["", f"{ALLOW}508:* rwm\n"])
def test_rules_follow_the_numbers_also_where_somebodys_own_was_enough(
    box: Cards300, given: str, rule: str, method: Method
) -> None:
    box.revert()
    box.conf = stock = given + rule
    box.nvidia(NVIDIA, uvm=508)
    for number in 1, 2:
        box.node(f"nvidia-caps/nvidia-cap{number}", 509, number)
    box.ask("apply", method=method, minors=(0,))
    # They change their numbers with each other; at one boot half of them is late.
    box.gone("nvidia-caps/nvidia-cap1", "nvidia-caps/nvidia-cap2")
    box.nvidia(NVIDIA, uvm=509)
    assert followed(box)
    assert {"195:0", "195:255", "509:0", "509:1", "509:2"} <= {*allowed(box.conf)}
    for number in 1, 2:
        box.node(f"nvidia-caps/nvidia-cap{number}", 508, number)
    followed(box)
    assert {"195:0", "195:255", "509:0"} <= {*allowed(box.conf)}
    assert rule or allowed(box.conf) == ["195:0", "195:255", "508:1", "508:2", "509:0"]
    assert box.revert() == stock


def test_where_nothing_has_moved_somebodys_own_lines_change_nothing(box: Cards300) -> None:
    with_nvidia(box)
    for number, name in enumerate(("nvidia0", "nvidiactl", "nvidia-uvm")):
        box.conf += f"dev{20 + number}: /dev/{name}\n"
    assert not followed(box)


def test_a_node_that_somebody_gives_it_already_is_given_once_and_ours_comes_back_after_that(box: Cards300) -> None:
    with_nvidia(box)
    box.conf += "dev30: /dev/dri/renderD141\n"
    box.drm(NVIDIA, 141)
    assert followed(box) and box.conf.count("renderD141") == 1 and "renderD140" not in box.conf
    box.drm(NVIDIA, 140)
    assert followed(box) and "renderD140,mode=0666" in box.conf


def test_a_node_that_the_kernel_knows_and_udev_has_not_made_is_waited_for(box: Cards300) -> None:
    with_nvidia(box)
    box.drm(NVIDIA, 141, made=False)
    followed(box)
    box.drm(NVIDIA, 141)
    followed(box)
    assert "renderD141" in box.conf and "renderD140" not in box.conf


def test_another_container_under_the_same_number_gets_nothing(box: Cards300) -> None:
    with_nvidia(box)
    box.drm(NVIDIA, None)
    box.drm(OTHER, 140)
    assert followed(box)
    box.conf = BASE
    box.drm(NVIDIA, 141)
    assert not followed(box)


def test_a_quorum_is_waited_for(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_follow, "QUORUM_SECONDS", 60.0)
    box.drm(AMD, 129)
    create, tried = disk.create, list[Path]()

    def denied(path: Path, mode: int) -> Any:
        """As pmxcfs that has made itself read-only."""
        if "/homelab/lxc-" in str(path):
            tried.append(path)
            if len(tried) < 3:
                raise OSError(errno.EACCES, "Permission denied")
        return create(path, mode)

    monkeypatch.setattr(disk, "create", denied)
    assert "wanted:" not in box.boot() and "renderD129" in box.conf and len(tried) == 4


def test_a_service_for_each_boot_comes_and_goes(host: Host, box: Cards300) -> None:
    def ask(verb: str, *, needed: bool = True) -> Any:
        return host.ask(verb, "card_nodes", {"needed": needed})

    box.revert()
    ask("revert")  # takes along the folder of a timer's link, which the container's change has left empty
    before = host.lasting()
    assert [one["what"] for one in ask("plan")["files"]] == [SERVICE.program, UNIT, LINK]
    assert host.lasting() == before
    assert ask("apply") == {"changed": True} and ask("plan")["files"] == []
    assert "\nExecStart=-/usr/bin/python3 -I -S -B -X utf8 /usr/local/sbin/homelab-card-nodes\n" in host.read(UNIT)
    assert "\nBefore=pve-guests.service\nRequiresMountsFor=/var/lib/homelab\n" in host.read(UNIT)
    assert ask("apply") == {"changed": False}
    assert ask("apply", needed=False) == {"changed": True} and host.lasting() == before
    ask("apply")
    assert ask("revert") == {"changed": True} and host.lasting() == before


def test_its_program_needs_nothing_but_itself(host: Host, box: Cards300) -> None:
    """As the service runs it, on a folder: nothing of the folder where a stack keeps the agent."""
    host.ask("apply", "card_nodes", {"needed": True})
    box.drm(AMD, 129)
    box.conf += "lock: backup\n"
    for name, text in {"pct": "echo 'status: stopped'", "systemctl": "echo inactive", "sync": ""}.items():
        command(host, name, text)
    real = box.root / "dev/dri/renderD129"
    real.unlink()
    real.symlink_to("/dev/null")  # a node that everybody may look at
    of_modules = of_perl(host.root / "etc/pve", quorate=True)
    done = bash(host, f"{boot_service.PYTHON} {host.root}{SERVICE.program}", **of_modules)
    assert (done.returncode, done.stdout) == (0, "") and "CT is locked (backup)" in done.stderr
    assert os.access(host.root / SERVICE.program[1:], os.X_OK)


def test_a_program_without_its_host_says_what_is_missing(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*_arguments: Sequence[str]) -> list[str]:
        raise UnreadableError("/etc/pve/lxc", "no answer within 20 s")

    monkeypatch.setattr("remote_scripts.tools.files.Files.need_names", names)
    assert "no answer within 20 s" in box.boot()
