"""The layer container_cards: a container's configuration in every shape that one has. What is ours comes and goes, everything else
stays; Intel's and AMD's cards by their addresses, with the groups as they are inside."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.guests import requests
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.container_conf import Method
from remote_scripts.tools import disk
from remote_scripts.tools.done import TIMED_OUT, Done
from tests.agent import disk_kit
from tests.agent.card_kit import ALLOW, AMD, BASE, BIND, CONF, NOTE, NVIDIA, PRIVILEGED, SECOND, Cards300
from tests.agent.kit import Refused, failing, watched
from tests.waiting import PATIENCE

SNAPSHOT = "\n[clean]\narch: amd64\nhostname: box\nmemory: 256\nsnaptime: 1700000000\n" + BIND.format(
    "nvidia0"
).replace("optional,", "")
OTHERS = (
    "hookscript: local:snippets/somebodys.pl\nmp0: /tank,mp=/tank\n"
    f"lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n{ALLOW}226:* rwm\n"
)
# What somebody needs for a card, by hand.
BY_HAND = f"{ALLOW}195:* rwm\n{ALLOW}480:* rwm\n" + "".join(
    BIND.format(name) for name in ("nvidia0", "nvidiactl", "nvidia-uvm")
)
EACH_METHOD = pytest.mark.parametrize("method", ["device", "mount-entry"])
RENDER, KFD = "/dev/dri/renderD128,gid=104,mode=0660", "/dev/kfd,gid=104,mode=0660"
BOTH, ONE = f"{AMD}=render,kfd", f"{AMD}=render"


@pytest.fixture(autouse=True)
def all_cards(box: Cards300) -> None:
    box.nvidia(NVIDIA, SECOND)
    box.drm(AMD, 128)


def ours(text: str) -> list[str]:
    """Lines about NVIDIA's nodes above the first section."""
    head = text.partition("\n[")[0]
    return [line for line in head.splitlines() if "nvidia" in line or "devices.allow" in line]


def test_a_container_of_another_node_is_named_with_its_node(box: Cards300) -> None:
    (box.root / CONF[1:]).unlink()
    box.host.write("/etc/pve/nodes/pve2/lxc/300.conf", BASE)
    with pytest.raises(Refused, match="it is on the node pve2, not on this one(.|\n)*pct migrate 300"):
        box.apply(minors=(0,))


def test_a_host_without_a_driver_says_so(box: Cards300) -> None:
    (box.root / "proc/driver/nvidia/version").unlink()
    box.gone("nvidia0")
    with pytest.raises(Refused, match="/dev/nvidia0; the driver is installed and not loaded"):
        box.apply(minors=(0,))


def test_a_line_of_ours_that_was_there_before_stays(box: Cards300) -> None:
    box.conf = text = BASE + BIND.format("nvidia0")
    assert box.apply("mount-entry", minors=(0,)).count(BIND.format("nvidia0")) == 1
    assert box.revert() == text


def test_a_node_that_was_not_made_yet_is_named_with_what_makes_it(box: Cards300) -> None:
    box.gone("nvidia-uvm")
    with pytest.raises(Refused, match="not on the host: /dev/nvidia-uvm\n(.|\n)*homelab-nvidia-nodes"):
        box.apply(minors=(0,))


def test_a_rule_with_an_old_major_is_left_and_the_right_one_added(box: Cards300) -> None:
    box.conf = text = BASE + BY_HAND.replace("480:*", "508:*")
    assert box.apply("mount-entry", minors=(0,)) == f"{text}{ALLOW}480:0 rwm\n"
    assert box.revert() == text


def test_an_id_that_is_nobodys_is_said(box: Cards300) -> None:
    (box.root / CONF[1:]).unlink()
    with pytest.raises(Refused, match="no such container on this host"):
        box.apply(minors=(0,))


def test_devices_are_given_beside_lines_that_wait_for_the_next_start(box: Cards300) -> None:
    box.conf = f"{BASE}[pve:pending]\nlxc.apparmor.profile: unconfined\n"
    assert "dev0: /dev/nvidia0" in box.apply(minors=(0,))


def test_moved_lines_are_found_again(box: Cards300) -> None:
    lines = box.apply("mount-entry", minors=(0,)).splitlines(keepends=True)
    box.conf = "".join(reversed(lines))
    assert set(box.apply("mount-entry", minors=(1,)).splitlines()) ^ {*box.conf.splitlines()} == set()
    assert "/dev/nvidia1" in box.conf and "/dev/nvidia0" not in box.conf
    assert sorted(box.revert().splitlines()) == sorted(BASE.splitlines())


def test_nothing_is_changed_while_it_cant_be_read_where_a_card_is(box: Cards300) -> None:
    (box.root / "var/lib/homelab/handover/big.state").mkdir(parents=True)
    with pytest.raises(Refused, match="big.state\nfound:  it is no file"):
        box.apply(minors=(0,))
    assert box.conf == BASE


def test_properties_of_ours_in_another_order_are_ours(box: Cards300) -> None:
    box.conf = box.apply(minors=(0,)).replace("/dev/nvidia0,mode=0666", "mode=0666,path=/dev/nvidia0")
    assert box.apply(minors=(0,)) == box.conf and "mode=0666,path=/dev/nvidia0" in box.conf
    assert box.revert() == BASE


@pytest.mark.parametrize(
    "before",
    [
        BASE,
        BASE + SNAPSHOT,
        BASE + OTHERS,
        BASE + OTHERS + SNAPSHOT,
        f"#a note%3A with more\n#and another line\n{BASE}",
        f"{BASE}\n\n{SNAPSHOT}",
        f"# a comment in between\n{BASE}lxc.invalid.key: 1\nnonsense\n",
        f"{BASE}lxc.cgroup.devices.allow: c 195:* rwm\n",
        f"{BASE}\n[pve:pending]\nmemory: 1024\n{SNAPSHOT}",
        BASE.replace("\n", "\r\n"),
        f"{BASE}tags: a\0b\n",
    ],
    ids=["plain", "snapshot", "others", "both", "notes", "blanks", "invalid", "cgroup 1", "pending", "crlf", "zero"],
)
def test_raw_lines_come_above_the_first_section_and_go_without_a_trace(box: Cards300, before: str) -> None:
    box.conf = before
    after = box.apply("mount-entry", minors=(0,))
    added = [line for line in after.splitlines(keepends=True) if line not in before.splitlines(keepends=True)]
    assert BIND.format("nvidia0") in added and "".join(added) in after, "together"
    assert after.replace("".join(added), "", 1) == before
    assert not any("nvidia" in line and "clean" in after.partition(line)[0] for line in added)
    assert box.apply("mount-entry", minors=(0,)) == after
    assert box.revert() == before


def test_the_assignment_takes_lines_away_again(box: Cards300) -> None:
    both, one = ours(box.apply("mount-entry", minors=(0, 1))), ours(box.apply("mount-entry", minors=(1,)))
    assert {*both} - {*one} == {f"{ALLOW}195:0 rwm", BIND.format("nvidia0").strip()}
    assert box.apply("mount-entry") == BASE
    assert box.revert() == BASE


def test_it_gets_migs_nodes_and_no_more_rights_to_them_than_the_driver_gives(box: Cards300) -> None:
    for number, mode in (1, 0o400), (2, 0o444):
        box.node(f"nvidia-caps/nvidia-cap{number}", 509, number, mode)
    lines = box.apply(minors=(0,)).splitlines()
    assert [line.partition(": ")[2] for line in lines if "nvidia-cap" in line] == [
        "/dev/nvidia-caps/nvidia-cap1,mode=0400",
        "/dev/nvidia-caps/nvidia-cap2,mode=0444",
    ]
    box.conf = edited = box.conf.replace("0666", "0600")  # all that it needs is its owner's now
    assert box.drift() == {} and box.apply(minors=(0,)) == edited


def test_the_digest_tells_what_gives_it_the_devices(box: Cards300) -> None:
    def answer(text: str, minor: int = 0) -> Any:
        box.conf = text
        found = box.ask("apply", method="mount-entry", minors=(minor,))
        box.revert()
        return found

    assert answer(BASE) == answer(BASE.replace("512", "1024"))
    assert answer(BASE)["digest"] != answer(BASE, 1)["digest"]
    assert answer(BASE)["devices"] == dict.fromkeys(["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"], "mount")


@EACH_METHOD
def test_what_has_become_a_template_gives_our_lines_back(box: Cards300, method: Method) -> None:
    key = "unprivileged: 1\n"
    box.conf = box.apply(method, minors=(0,)).replace(key, f"template: 1\n{key}")
    assert box.revert() == BASE.replace(key, f"template: 1\n{key}")


@EACH_METHOD
def test_what_others_write_for_it_counts_and_comes_back(box: Cards300, method: Method) -> None:
    """What other projects and guides write for a container with NVIDIA's cards; and what of that lacks here."""
    nodes = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
    peers: dict[str, tuple[str, str]] = {
        "ProxMenux": ("".join(f"dev{at}: /dev/{name},gid=44\n" for at, name in enumerate(nodes)), ""),
        "community-scripts": (
            "lxc.cgroup2.devices.allow: a\nlxc.cap.drop:\n"
            + "".join(f"dev{at}: /dev/{name},gid=44\n" for at, name in enumerate(nodes[:4])),
            "",
        ),
        # Its majors are those of the machine that it was written on.
        "jammsen": (
            "".join(f"{ALLOW}{major}:* rwm\n" for major in (195, 226, 234, 237, 238, 239, 240, 508))
            + "".join(BIND.format(name) for name in (*nodes[:2], "nvidia-modeset", *nodes[2:4]))
            + "lxc.mount.entry: /dev/dri/by-path/pci-0000:01:00.0-card dev/dri/card0 none bind,optional,create=file\n"
            "lxc.apparmor.profile: unconfined\nlxc.cap.drop:\n",
            f"{ALLOW}480:0 rwm\n",
        ),
        "a guide to Jellyfin": (
            BY_HAND
            + "lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD128 none bind,optional,create=file\n"
            + "".join(f"lxc.idmap: {line}\n" for line in ("u 0 100000 65536", "g 0 100000 44", "g 44 44 1", "g 45 100045 65491")),
            "",
        ),
    }  # fmt: skip
    for peer, (lines, lacking) in peers.items():
        box.conf = text = BASE + lines
        assert box.apply(method, minors=(0,)) == text + lacking, peer
        assert box.apply(method, minors=(0,)) == text + lacking and box.revert() == text, peer


@EACH_METHOD
@pytest.mark.parametrize(
    ("text", "cards", "minors"),
    [
        (BASE + BY_HAND, (), (0,)),
        (f"dev0: /dev/nvidia0,gid=44\ndev1: /dev/nvidiactl\ndev2: path=/dev/nvidia-uvm\n{BASE}", (), (0,)),
        (f"{BASE}dev0: /dev/dri/renderD128,gid=992\ndev1: /dev/kfd\n", (BOTH,), ()),
        (
            f"{BASE}{ALLOW}*:* rwm\nlxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n"
            "lxc.mount.entry: /dev/kfd dev/kfd none bind,create=file\n",
            (BOTH,),
            (),
        ),
    ],
    ids=["lines", "options", "another maker's options", "another maker's lines"],
)
def test_what_somebody_has_given_it_is_enough(
    box: Cards300, text: str, cards: tuple[str, ...], minors: tuple[int, ...], method: Method
) -> None:
    box.conf = text
    assert box.apply(method, *cards, minors=minors) == text
    assert box.revert() == text


def test_what_comes_too_late_takes_no_other_change_away(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/pve answers again when the lock of the file is somebody else's."""
    monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.2)
    before, answers, real = {*threading.enumerate()}, threading.Event(), disk.flush_open

    def late(descriptor: int, path: Path) -> None:
        answers.wait(PATIENCE)
        real(descriptor, path)

    monkeypatch.setattr(disk, "flush_open", late)
    with pytest.raises(TimeoutError):
        pmxcfs.replace(box.host.system(), CONF, b"ours\n")
    box.conf = "theirs\n"
    answers.set()
    for thread in {*threading.enumerate()} - before:
        thread.join(PATIENCE)
    assert box.conf == "theirs\n"


@EACH_METHOD
def test_what_cannot_be_done_is_said_and_nothing_changed(box: Cards300, method: Method) -> None:
    box.conf = BASE
    with pytest.raises(Refused) as refused:
        box.apply(method, minors=(7,))
    said = "not on the host: /dev/nvidia7\n"
    assert said in str(refused.value) and box.conf == BASE and box.noted() == {}
    assert [line[:7] for line in str(refused.value).splitlines()] == ["wanted:", "found: ", "why:   ", "next:  "]


def test_a_last_line_without_its_end_comes_back_so(box: Cards300) -> None:
    box.conf = before = BASE.removesuffix("\n")
    assert box.apply("mount-entry", minors=(0,)).startswith(f"{BASE}{ALLOW}195:0 rwm\n")
    assert box.revert() == before


def test_dev_options_take_free_numbers_and_keep_them(box: Cards300) -> None:
    box.conf = text = f"arch: amd64\ndev1: /dev/sda\nhostname: box\nmemory: 512\nunprivileged: 1\n{SNAPSHOT}"
    after = box.apply("device", minors=(0,))
    assert "\ndev0: /dev/nvidia0,mode=0666\ndev2: /dev/nvidiactl,mode=0666\n" in after
    assert after.partition("\n[clean]")[2] == text.partition("\n[clean]")[2]
    assert box.apply("device", minors=(0,)) == after
    converted = box.apply("mount-entry", minors=(0,))
    assert "dev1: /dev/sda\n" in converted and "dev0" not in converted and BIND.format("nvidia0") in converted
    assert box.apply("device", minors=(0,)) == after
    assert "dev2: /dev/nvidiactl,mode=0666\n" in box.apply("device", minors=(1,))
    assert box.noted()["revision"] == 4
    assert box.revert() == text


@EACH_METHOD
def test_what_is_locked_isnt_changed_and_where_nothing_changes_that_stands_against_nothing(
    box: Cards300, method: Method
) -> None:
    box.conf = text = f"{BASE}lock: snapshot\n"
    with pytest.raises(Refused, match=r"CT is locked \([\s\S]*pct unlock 300"):
        box.apply(method, minors=(0,))
    assert box.conf == text and box.noted() == {}
    box.conf = BASE
    box.conf = f"{box.apply(method, minors=(0,))}lock: backup\n"
    box.apply(method, minors=(0,))
    box.conf = f"{BASE}lock: backup\n"
    assert box.revert() == f"{BASE}lock: backup\n"


def test_a_lock_that_another_process_holds_is_named(box: Cards300) -> None:
    lock = box.host.write("/run/lock/lxc/pve-config-300.lock", "")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refused, match=r"can't lock file '/run/lock/lxc/pve-config-300.lock'"):
            box.apply("mount-entry", minors=(0,))
    assert box.conf == BASE and box.noted() == {} and requests.LOCK_SECONDS == 0


@EACH_METHOD
def test_what_somebody_changes_between_the_reading_and_the_writing_is_kept(box: Cards300, method: Method) -> None:
    """Somebody with an editor, who takes no lock, at the worst moment: twice."""
    real, edits = box.perl, ["tags: mine\n", "onboot: 1\n"]

    def late(arguments: Any, stdin: bytes) -> Any:
        if stdin and edits:
            box.conf += edits.pop()
        return real(arguments, stdin)

    box.host.programs["perl"] = late
    text = box.apply(method, minors=(0,))
    assert "tags: mine\n" in text and "onboot: 1\n" in text and "/dev/nvidia0" in text
    edits += ["cores: 3\n", "swap: 0\n"]
    assert box.revert() == f"{BASE}onboot: 1\ntags: mine\nswap: 0\ncores: 3\n"


def test_what_is_noted_of_a_container_goes_with_it_and_no_sooner(box: Cards300) -> None:
    given, noted = box.apply(minors=(0,)), box.noted()
    box.ask("revert", goes_away=True)
    assert (box.conf, box.noted()) == (given, noted)
    (box.root / CONF[1:]).unlink()
    box.ask("revert")
    assert box.noted() == {}


def test_what_is_noted_is_there_on_every_node(box: Cards300) -> None:
    """As a move leaves it: the file is under another node's name, and this node's layer leaves it alone."""
    given, noted, away = box.apply(minors=(0,)), box.noted(), box.root / "etc/pve/nodes/other/lxc/300.conf"
    away.parent.mkdir(parents=True)
    (box.root / CONF[1:]).rename(away)
    assert box.ask("revert")["node"] == "other"
    assert away.read_text() == given and box.noted() == noted
    away.rename(box.root / CONF[1:])
    assert box.revert() == BASE


def test_what_is_noted_and_cant_be_read_isnt_taken_for_nothing(box: Cards300) -> None:
    given = box.apply(minors=(0,))
    box.host.write(NOTE, "half")
    for verb in "apply", "revert":
        with pytest.raises(Refused, match="it isn't what this program has written"):
            box.ask(verb, minors=(0,))
    assert box.conf == given


def test_bytes_of_a_configuration_that_are_no_text_are_kept(box: Cards300) -> None:
    path = box.root / CONF[1:]
    path.write_bytes(before := BASE.encode() + b"#\xff\xfe\n")
    box.ask("apply", minors=(0,))
    assert b"#\xff\xfe\n" in path.read_bytes()
    box.ask("revert")
    assert path.read_bytes() == before


def test_a_hanging_cluster_file_system_ends_it(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.2)
    box.host.programs["pvedaemon"] = lambda _arguments, _stdin: ""  # it hangs as well
    (box.root / CONF[1:]).unlink()
    os.mkfifo(box.root / CONF[1:])
    with pytest.raises(Refused, match="who has switched container 300"):
        box.apply(minors=(0,))


def test_what_another_one_writes_beside_it_stays(box: Cards300) -> None:
    """Proxmox VE's post-stop hook doesn't take the lock: it renames such a file at any time."""
    box.host.write(f"{CONF}.tmp.12345", "the hook's")
    box.apply(minors=(0,))
    assert box.left() == ["300.conf.tmp.12345"]


def test_what_a_killed_run_has_left_beside_a_note_goes_also_where_nothing_is_noted(box: Cards300) -> None:
    box.host.write(f"{NOTE}.tmp.12345", "half")
    assert box.revert() == BASE and not box.host.exists("/etc/pve/homelab")


def test_nothing_is_written_before_it_is_noted(box: Cards300) -> None:
    noted: list[dict[str, Any]] = []
    real = box.perl

    def watch(arguments: Any, stdin: bytes) -> Any:
        if stdin:
            noted.append(json.loads(box.host.read(NOTE)))
        return real(arguments, stdin)

    box.host.programs["perl"] = watch
    text = box.apply("mount-entry", minors=(0,))
    assert {*text.splitlines()} - {*BASE.splitlines()} == noted[0]["values"].keys() and noted[0]["text"] == BASE


def test_without_a_quorum_nothing_is_changed_and_that_is_said(box: Cards300) -> None:
    """As pmxcfs says it that has made itself read-only."""
    refuses = pytest.raises(Refused, match=r"Permission denied[\s\S]*without a quorum[\s\S]*pvecm status")
    with failing(errno.EACCES, "create", at="/etc/pve/"), refuses:
        box.apply(minors=(0,))
    assert (box.conf, box.noted(), box.left()) == (BASE, {}, [])


def test_a_power_cut_leaves_no_line_that_the_next_run_does_not_take_back(box: Cards300) -> None:
    """pmxcfs answers before its database is on the disk: what isn't flushed is there or not, the configuration without its note as well."""
    left, on_disk = set[tuple[str, str]](), (BASE, "")

    def flush(call: str, path: str) -> None:
        nonlocal on_disk
        if call != "flush" or not path.endswith(disk_kit.DATABASE[1]):
            return
        now = (box.conf, box.host.read(NOTE) if box.host.exists(NOTE) else "")
        left.update((conf, note) for conf in (on_disk[0], now[0]) for note in (on_disk[1], now[1]))
        on_disk = now

    with watched(flush):
        assert box.apply(minors=(0,)) == on_disk[0]
        box.revert()
    assert on_disk == (BASE, "")
    for conf, note in sorted(left):
        box.conf = conf
        box.host.write(NOTE, note) if note else (box.root / NOTE[1:]).unlink(missing_ok=True)
        assert box.revert() == BASE


# -- cards of other makers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("before", [BASE, PRIVILEGED], ids=["unprivileged", "privileged"])
def test_a_card_of_another_maker_comes_with_the_groups_inside(box: Cards300, before: str, state: str) -> None:
    box.state, box.conf = state, before
    box.ask("apply", method="device", cards=(f"{AMD}=render,card,kfd",), power="running")
    after, state = box.conf, "running"
    for option in (f"dev0: {RENDER}", "dev1: /dev/dri/card0,gid=44,mode=0660", f"dev2: {KFD}"):
        assert f"{option}\n" in after
    assert box.apply("device", f"{AMD}=render,card,kfd") == after and box.state == state
    assert box.noted()["given"]["groups"] == {"render": 104, "video": 44}
    assert box.revert() == before and box.state == state


def test_how_it_differs_from_what_was_set_up_is_said(box: Cards300) -> None:
    box.state = "running"
    given = box.apply("device", f"{AMD}=render,kfd")
    assert box.drift() == {}
    box.conf = given.replace(f"dev0: {RENDER}\n", "")
    assert box.drift() == {"dev0": RENDER}
    box.conf = given
    box.drm(AMD, 129)
    assert box.drift() == {"dev0": None, "dev2": RENDER.replace("128", "129")}


def test_a_container_with_ten_devices_of_its_own_keeps_them_all(box: Cards300) -> None:
    own = "".join(f"dev{number}: /dev/ttyUSB{number},mode=0600\n" for number in range(10))
    box.conf = text = BASE.replace("hostname", f"{own}hostname")
    both = "dev10: /dev/dri/renderD128,mode=0666\ndev11: /dev/kfd,mode=0666\n"
    assert box.apply("device", BOTH) == f"{text}{both}"
    assert box.revert() == text


def test_a_card_whose_driver_makes_no_nodes_is_named_and_nothing_is_changed(box: Cards300) -> None:
    with pytest.raises(Refused, match="the render node of 0000:06:00.0"):
        box.apply("device", "0000:06:00.0=render")
    assert box.conf == BASE


@pytest.mark.parametrize("said", [Done(1, b"", b"no such process\n"), Done(TIMED_OUT, b"video:x:44:\n")])
def test_a_container_that_runs_and_doesnt_say_all_its_groups_gets_nothing(box: Cards300, said: Done) -> None:
    """By half an answer, a node would be for everybody in it that is for a group."""
    box.state = "running"
    before = box.apply("device", ONE)
    box.host.programs["inside"] = lambda *_: said
    with pytest.raises(Refused, match="it didn't list them all"):
        box.apply("device", ONE)
    assert box.conf == before


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ("root:x:0:\n", "mode=0666"),
        ("", "mode=0666"),
        ("render:x:992:\nvideo:x:44:\n", "gid=992,mode=0660"),
        ("render:x:0:\n", "mode=0666"),
        ("render:x:99999:\n", "mode=0666"),
        ("render:x:-5:\nrender:x:105:\n", "gid=105,mode=0660"),
        ("render:x:000104:a,b\n", "gid=104,mode=0660"),
        ("render:x:1,mode=0777:\n", "mode=0666"),
        ("renderer:x:7:\n render:x:8:\nrender:x:$(reboot):\n", "mode=0666"),
        ("\0\0render:x:106:\n", "gid=106,mode=0660"),
    ],
)
def test_a_group_file_may_say_anything(box: Cards300, groups: str, options: str) -> None:
    box.state, box.inside = "running", groups
    assert f"dev0: /dev/dri/renderD128,{options}\n" in box.apply("device", ONE)


def test_a_group_that_has_no_number_on_the_host_costs_no_container_what_it_had(box: Cards300) -> None:
    """Proxmox VE doesn't start it."""
    box.conf = before = f"{BASE}lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 100\nlxc.idmap: g 200 100200 65336\n"
    box.state, box.inside = "running", "render:x:104:\n"
    seen, box.refusals = list[str](), {"start": "startup for container '300' failed"}

    def started() -> None:
        seen.append(box.conf)
        box.refusals.clear()

    box.after["start"] = started
    with pytest.raises(Refused, match="startup for container '300' failed"):
        box.apply("device", ONE)
    assert "dev0: /dev/dri/renderD128,gid=104,mode=0660\n" in seen[0] and (box.conf, box.state) == (before, "running")


def test_one_that_stays_off_gives_its_nodes_to_everybody_until_it_runs(box: Cards300) -> None:
    after = box.apply("device", f"{AMD}=render,card,kfd")
    for option in ("dev0: /dev/dri/renderD128,mode=0666", "dev1: /dev/dri/card0,mode=0660", "dev2: /dev/kfd,mode=0666"):
        assert f"{option}\n" in after
    box.state = "running"
    assert f": {RENDER}\n" in box.apply("device", f"{AMD}=render,card,kfd")


def test_mount_entries_give_the_nodes_of_other_makers_cards(box: Cards300) -> None:
    box.conf = PRIVILEGED
    after = box.apply("mount-entry", BOTH)
    assert "lxc.cgroup2.devices.allow: c 226:128 rwm\n" in after
    assert "lxc.mount.entry: /dev/kfd dev/kfd none bind,optional,create=file\n" in after
    assert box.revert() == PRIVILEGED
