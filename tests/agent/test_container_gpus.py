"""The layer container_gpus: a container's configuration in every shape that one has. What is ours comes and goes, everything else stays."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers.container_record import Wanted as ContainerRecord
from remote_scripts.shared import container_change, pmxcfs, time_limit
from remote_scripts.shared.container_conf import Method
from remote_scripts.tools import disk
from remote_scripts.tools.run import TIMED_OUT, Done
from tests.agent.container_kit import (
    ALLOW,
    BASE,
    BIND,
    CONF,
    NVIDIA,
    RECORD,
    SECOND,
    Containers,
    box,
)
from tests.agent.kit import Refused, watched
from tests.waiting import PATIENCE

__all__ = ["box"]

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
METHODS: tuple[Method, Method] = ("device", "mount-entry")
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def cards(box: Containers) -> None:
    box.nvidia(NVIDIA, SECOND)


def ours(text: str) -> list[str]:
    """Lines about NVIDIA's nodes above the first section."""
    head = text.partition("\n[")[0]
    return [line for line in head.splitlines() if "nvidia" in line or "devices.allow" in line]


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
def test_raw_lines_come_above_the_first_section_and_go_without_a_trace(box: Containers, before: str) -> None:
    box.conf = before
    after = box.apply("mount-entry", minors=(0,))
    added = [line for line in after.splitlines(keepends=True) if line not in before.splitlines(keepends=True)]
    assert BIND.format("nvidia0") in added and "".join(added) in after, "together"
    assert after.replace("".join(added), "", 1) == before
    assert not any("nvidia" in line and "clean" in after.partition(line)[0] for line in added)
    assert box.apply("mount-entry", minors=(0,)) == after
    assert box.revert() == before


def test_a_last_line_without_its_end_gets_one_as_proxmox_writes_it(box: Containers) -> None:
    box.conf = BASE.removesuffix("\n")
    assert box.apply("mount-entry", minors=(0,)).startswith(f"{BASE}{ALLOW}195:0 rwm\n")
    assert box.revert() == BASE


@EACH_METHOD
@pytest.mark.parametrize(
    "text",
    [BASE + BY_HAND, f"dev0: /dev/nvidia0,gid=44\ndev1: /dev/nvidiactl\ndev2: path=/dev/nvidia-uvm\n{BASE}"],
    ids=["lines", "options"],
)
def test_what_somebody_has_given_it_is_enough(box: Containers, text: str, method: Method) -> None:
    box.conf = text
    assert box.apply(method, minors=(0,)) == text
    assert box.revert() == text


_NODES = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
#: What other projects and guides write for a container with NVIDIA's cards; and what of that lacks here.
PEERS: dict[str, tuple[str, str]] = {
    "ProxMenux": ("".join(f"dev{at}: /dev/{name},gid=44\n" for at, name in enumerate(_NODES)), ""),
    "community-scripts": (
        "lxc.cgroup2.devices.allow: a\nlxc.cap.drop:\n"
        + "".join(f"dev{at}: /dev/{name},gid=44\n" for at, name in enumerate(_NODES[:4])),
        "",
    ),
    # Its majors are those of the machine that it was written on.
    "jammsen": (
        "".join(f"{ALLOW}{major}:* rwm\n" for major in (195, 226, 234, 237, 238, 239, 240, 508))
        + "".join(BIND.format(name) for name in (*_NODES[:2], "nvidia-modeset", *_NODES[2:4]))
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


@EACH_METHOD
@pytest.mark.parametrize("peer", PEERS)
def test_what_others_write_for_it_counts_and_comes_back(box: Containers, peer: str, method: Method) -> None:
    lines, lacking = PEERS[peer]
    box.conf = text = BASE + lines
    assert box.apply(method, minors=(0,)) == text + lacking
    assert box.apply(method, minors=(0,)) == text + lacking and box.revert() == text


def test_a_rule_with_an_old_major_is_left_and_the_right_one_added(box: Containers) -> None:
    box.conf = text = BASE + BY_HAND.replace("480:*", "508:*")
    assert box.apply("mount-entry", minors=(0,)) == f"{text}{ALLOW}480:0 rwm\n"
    assert box.revert() == text


def test_a_line_of_ours_that_was_there_before_stays(box: Containers) -> None:
    box.conf = text = BASE + BIND.format("nvidia0")
    assert box.apply("mount-entry", minors=(0,)).count(BIND.format("nvidia0")) == 1
    assert box.revert() == text


def test_moved_lines_are_found_again(box: Containers) -> None:
    lines = box.apply("mount-entry", minors=(0,)).splitlines(keepends=True)
    box.conf = "".join(reversed(lines))
    assert set(box.apply("mount-entry", minors=(1,)).splitlines()) ^ {*box.conf.splitlines()} == set()
    assert "/dev/nvidia1" in box.conf and "/dev/nvidia0" not in box.conf
    assert sorted(box.revert().splitlines()) == sorted(BASE.splitlines())


def test_dev_options_go_through_pct_and_take_free_numbers(box: Containers) -> None:
    box.conf = text = f"arch: amd64\ndev1: /dev/sda\nhostname: box\nmemory: 512\nunprivileged: 1\n{SNAPSHOT}"
    after = box.apply("device", minors=(0,))
    assert "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/sda\ndev2: /dev/nvidiactl,mode=0666\n" in after
    assert after.partition("\n[clean]")[2] == text.partition("\n[clean]")[2]
    assert box.apply("device", minors=(0,)) == after
    converted = box.apply("mount-entry", minors=(0,))
    assert "dev1: /dev/sda\n" in converted and "dev0" not in converted and BIND.format("nvidia0") in converted
    assert box.apply("device", minors=(0,)) == after
    assert box.revert() == text


def test_properties_of_ours_in_another_order_are_ours(box: Containers) -> None:
    box.conf = box.apply(minors=(0,)).replace("/dev/nvidia0,mode=0666", "mode=0666,path=/dev/nvidia0")
    assert box.apply(minors=(0,)) == box.conf and "mode=0666,path=/dev/nvidia0" in box.conf
    assert box.revert() == BASE


def test_the_assignment_takes_lines_away_again(box: Containers) -> None:
    both, one = ours(box.apply("mount-entry", minors=(0, 1))), ours(box.apply("mount-entry", minors=(1,)))
    assert {*both} - {*one} == {f"{ALLOW}195:0 rwm", BIND.format("nvidia0").strip()}
    assert box.apply("mount-entry") == BASE
    assert box.revert() == BASE


@EACH_METHOD
@pytest.mark.parametrize(
    ("text", "minor", "said"),
    [
        (f"{BASE}lock: snapshot\n", 0, "it is locked: snapshot"),
        (f"{BASE}template: 1\n", 0, "it is a template"),
        (BASE, 7, "not on the host: /dev/nvidia7; the driver's cards are: /dev/nvidia0 /dev/nvidia1"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changed(
    box: Containers, method: Method, text: str, minor: int, said: str
) -> None:
    box.conf = text
    with pytest.raises(Refused) as refused:
        box.apply(method, minors=(minor,))
    assert said in str(refused.value) and box.conf == text and not box.host.exists("/var/lib/homelab")
    assert [line[:7] for line in str(refused.value).splitlines()] == ["wanted:", "found: ", "why:   ", "next:  "]


@pytest.mark.parametrize("line", ["lxc.apparmor.profile: unconfined", "delete: swap,lxc"])
def test_lines_that_the_next_start_would_lose_are_not_added(box: Containers, line: str) -> None:
    """PVE::LXC::Config, vmconfig_apply_pending: its lxc.* lines take the place of all others."""
    box.conf = text = f"{BASE}[pve:pending]\n{line}\n"
    with pytest.raises(Refused, match="below \\[pve:pending\\](.|\n)*pct reboot 300"):
        box.apply("mount-entry", minors=(0,))
    assert box.conf == text
    box.conf = BASE  # as a reboot leaves it
    given = box.apply("mount-entry", minors=(0,))
    box.conf = text = f"{given}[pve:pending]\n{line}\n"
    with pytest.raises(Refused, match="below \\[pve:pending\\]"):
        box.apply("mount-entry", minors=(0,))
    assert box.drift() == ["its next start takes lxc.* lines away"]
    assert box.revert() == text.replace(given, BASE)


def test_copies_of_ours_that_wait_for_the_next_start_are_ours(box: Containers) -> None:
    given = box.apply("mount-entry", minors=(0,))
    box.conf = text = f"{given}[pve:pending]\n{given.removeprefix(BASE)}lxc.apparmor.profile: unconfined\n"
    assert box.apply("mount-entry", minors=(0,)) == text and box.drift() == []
    with pytest.raises(Refused, match="below \\[pve:pending\\]"):  # they would come back
        box.revert()
    assert box.conf == text
    box.conf = f"{given}lxc.apparmor.profile: unconfined\n"  # as a start leaves it
    assert box.revert() == f"{BASE}lxc.apparmor.profile: unconfined\n"


def test_devices_are_given_beside_lines_that_wait_for_the_next_start(box: Containers) -> None:
    box.conf = f"{BASE}[pve:pending]\nlxc.apparmor.profile: unconfined\n"
    assert "dev0: /dev/nvidia0" in box.apply(minors=(0,))


@EACH_METHOD
def test_where_nothing_is_to_be_changed_a_lock_stands_against_nothing(box: Containers, method: Method) -> None:
    """Such as that of a backup at night."""
    box.conf = f"{box.apply(method, minors=(0,))}lock: backup\n"
    box.apply(method, minors=(0,))
    box.conf = f"{BASE}lock: backup\n"
    assert box.revert() == f"{BASE}lock: backup\n"


@EACH_METHOD
def test_what_has_become_a_template_gives_our_lines_back(box: Containers, method: Method) -> None:
    key = "unprivileged: 1\n"
    box.conf = box.apply(method, minors=(0,)).replace(key, f"template: 1\n{key}")
    assert box.revert() == BASE.replace(key, f"template: 1\n{key}")


def test_a_node_that_was_not_made_yet_is_told_from_a_card_that_is_not_there(box: Containers) -> None:
    box.gone("nvidia-uvm")
    with pytest.raises(Refused, match="nothing has made the nodes yet(.|\n)*homelab-nvidia-nodes"):
        box.apply(minors=(0,))


def test_a_host_without_a_driver_says_so(box: Containers) -> None:
    (box.root / "proc/driver/nvidia/version").unlink()
    box.gone("nvidia0")
    with pytest.raises(Refused, match="/dev/nvidia0; the driver is installed and not loaded"):
        box.apply(minors=(0,))


def test_a_lock_that_another_process_holds_is_waited_for_a_minute_and_named(box: Containers) -> None:
    lock = box.host.write("/run/lock/lxc/pve-config-300.lock", "")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(Refused, match=r"pve-config-300.lock is held by another process"):
            box.apply("mount-entry", minors=(0,))
    assert time.monotonic() - began < 30 and container_change.CONF_LOCK_SECONDS == 0
    assert box.conf == BASE and not box.host.exists("/var/lib/homelab")


def test_a_change_between_the_reading_and_the_writing_is_read_again(box: Containers) -> None:
    """Somebody with an editor, who takes no lock, at the worst moment: once."""

    def late(call: str, path: str) -> None:
        if call == "rename" and path == f"{box.root}{RECORD}" and "tags" not in box.conf:
            box.conf += "tags: mine\n"

    with watched(late):
        text = box.apply("mount-entry", minors=(0,))
    assert "tags: mine\n" in text and BIND.format("nvidia0") in text and box.noted()["revision"] == 2
    assert box.revert() == f"{BASE}tags: mine\n"


def test_a_change_before_pct_writes_is_read_again(box: Containers) -> None:
    def late(arguments: Sequence[str], stdin: bytes) -> Any:
        if arguments[0] == "set" and "tags" not in box.conf:
            box.conf += "tags: mine\n"
        return box.pct(arguments, stdin)

    box.host.programs["pct"] = late
    assert "/dev/nvidia0," in box.apply(minors=(0,)) and "tags: mine\n" in box.conf
    assert sorted(box.revert().splitlines()) == sorted(f"{BASE}tags: mine".splitlines())


def test_the_digest_tells_what_gives_it_the_devices(box: Containers) -> None:
    def answer(text: str, minor: int = 0) -> Any:
        box.conf = text
        found = box.ask("apply", method="mount-entry", minors=(minor,))
        box.revert()
        return found

    assert answer(BASE) == answer(BASE.replace("512", "1024"))
    assert answer(BASE)["digest"] != answer(BASE, 1)["digest"]
    assert answer(BASE)["devices"] == dict.fromkeys(["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"], "mount")


MEMBERS = """{"nodename": "pve", "cluster": {"name": "c", "nodes": 2, "quorate": 0}, "nodelist": {
 "pve": {"id": 1, "online": 1, "ip": "192.168.0.202"},
 "pve2": {"id": 2, "online": 0, "ip": "192.168.0.203"}}}"""


@pytest.mark.parametrize(
    ("method", "refusal"),
    [
        ("mount-entry", "Permission denied"),
        ("device", "unable to open file '/etc/pve/lxc/300.conf.tmp.7' - Permission denied\n"),
        ("device", "cluster not ready - no quorum?\n"),
    ],
)
def test_a_file_that_cant_be_written_for_want_of_a_quorum_was_changed_by_nobody(
    box: Containers, monkeypatch: pytest.MonkeyPatch, method: Method, refusal: str
) -> None:
    box.host.write("/etc/pve/.members", MEMBERS)
    box.refusal, create = refusal, disk.create

    def denied(path: Path, mode: int) -> int:
        """As pmxcfs that has made itself read-only."""
        if ".conf.tmp." in path.name:
            raise OSError(errno.EACCES, "Permission denied")
        return create(path, mode)

    with monkeypatch.context() as patched:
        patched.setattr(disk, "create", denied)
        with pytest.raises(Refused) as refused:
            box.apply(method, minors=(0,))
    assert "no quorum" in str(refused.value) and "cluster don't answer: pve2" in str(refused.value)
    assert "pvecm status" in str(refused.value) and "from elsewhere" not in str(refused.value)
    assert box.conf == BASE and not box.host.exists("/var/lib/homelab")
    box.refusal = ""
    assert box.apply(method, minors=(0,)) != BASE
    assert box.revert() == BASE


def test_what_pct_refuses_leaves_everything_as_it_was(box: Containers) -> None:
    box.apply(minors=(0,))
    before, box.refusal = box.host.lasting(), "400 Parameter verification failed.\ndev3: unable to hotplug dev3: no\n"
    with pytest.raises(
        Refused, match="pct set --delete dev0 --dev3(.|\n)*Parameter verification failed(.|\n)*shutdown"
    ):
        box.apply(minors=(1,))
    assert box.host.lasting() == before
    box.refusal = ""  # of one that is off, as its next start takes what is written
    assert "/dev/nvidia1" in box.apply(minors=(1,))


def test_what_pct_had_written_when_it_was_killed_is_ours(box: Containers) -> None:
    def killed(words: Sequence[str], stdin: bytes) -> Any:
        said = box.pct(words, stdin)
        return Done(TIMED_OUT, b"") if words[0] == "set" else said

    box.host.programs["pct"] = killed
    with pytest.raises(Refused, match="it is half done, and noted"):
        box.apply(minors=(0,))
    box.host.programs["pct"] = box.pct
    assert "dev0: /dev/nvidia0" in box.conf and box.revert() == BASE


def test_options_that_are_there_when_lines_cant_be_written_are_ours(box: Containers) -> None:
    """Such as of a method that is changed while a backup begins."""
    box.apply("mount-entry", minors=(0,))
    lock = (box.root / "run/lock/lxc/pve-config-300.lock").open("a")
    box.after["set"] = lambda: fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Refused, match="pve-config-300.lock is held by another process"):
        box.apply("device", minors=(0,))
    lock.close()
    box.after.clear()
    assert "dev0: /dev/nvidia0" in box.conf and box.revert() == BASE


def test_a_container_of_another_node_is_named_with_its_node(box: Containers) -> None:
    (box.root / CONF[1:]).unlink()
    box.host.write("/etc/pve/nodes/pve2/lxc/300.conf", BASE)
    with pytest.raises(Refused, match="it is on the node pve2, not on this one(.|\n)*pct migrate 300"):
        box.apply(minors=(0,))


def test_an_id_that_is_a_vms_or_nobodys_is_said(box: Containers) -> None:
    (box.root / CONF[1:]).unlink()
    for name in "1000", "101":
        box.host.write(f"/etc/pve/lxc/{name}.conf", BASE)
    with pytest.raises(Refused, match="no such container on this host; there are: 101 1000"):
        box.apply(minors=(0,))
    box.host.write("/etc/pve/qemu-server/300.conf", "")
    with pytest.raises(Refused, match="300 is a virtual machine"):
        box.apply(minors=(0,))


def test_nothing_is_changed_while_a_card_is_away(box: Containers) -> None:
    boot = box.host.read("/proc/sys/kernel/random/boot_id").strip()
    state = json.dumps({"state": "VM", "vm": "103", "boot": boot, "since": 1700000000})
    path = box.host.write("/var/lib/homelab/handover/big.state", state)
    for layer in "gpus", "restart":
        with pytest.raises(Refused, match="found:  gpus.big is with VM 103 since 2023-11-1"):
            box.ask("apply", layer, minors=(0,))
    path.unlink()
    path.mkdir()
    with pytest.raises(Refused, match="big.state\nfound:  it can't be read"):
        box.apply(minors=(0,))
    assert box.conf == BASE


def test_a_revert_under_a_former_name_in_the_settings_takes_nothing_out(box: Containers) -> None:
    """A container that is renamed there is made anew under its new name first; what had the old one is undone after that."""
    box.ask("apply", minors=(0,), guest="ai")
    had = box.conf
    box.ask("apply", minors=(0,), guest="media")
    box.ask("revert", guest="ai")
    assert box.conf == had != BASE
    box.ask("revert", guest="media")
    assert box.conf == BASE


@pytest.mark.parametrize("why", ["kept", "gone"])
def test_of_a_container_that_goes_with_the_stack_or_has_gone_what_is_noted_is_forgotten(
    box: Containers, why: str
) -> None:
    given = box.apply(minors=(0,))
    if why == "gone":
        (box.root / CONF[1:]).unlink()
    assert box.ask("revert", keep=why == "kept") == {"changed": False}
    assert not box.host.exists("/var/lib/homelab")
    assert why == "gone" or box.conf == given


def test_what_is_noted_goes_with_a_container_to_another_node(box: Containers) -> None:
    """As a move leaves it: the file is under another node's name, and this node's layers leave it alone."""

    def carry(verb: str, record: Any = None) -> Any:
        return box.host.ask(verb, "container_record", ContainerRecord(ctid=300, record=record))["record"]

    given, noted = box.apply(minors=(0,)), box.noted()
    taken, away = carry("read"), box.root / "etc/pve/nodes/other/lxc/300.conf"
    away.parent.mkdir(parents=True)
    (box.root / CONF[1:]).rename(away)
    assert box.ask("revert") == {"changed": False}
    assert away.read_text() == given and box.noted() == noted
    carry("revert", taken)
    assert box.noted() == {} and carry("read") is None
    away.rename(box.root / CONF[1:])
    carry("apply", taken)
    assert box.noted() == noted
    assert box.revert() == BASE


def test_what_is_noted_and_cant_be_read_isnt_taken_for_nothing(box: Containers) -> None:
    given = box.apply(minors=(0,))
    (box.root / RECORD[1:]).unlink()
    box.host.write(f"{RECORD}/x", "")
    for verb in "apply", "revert":
        with pytest.raises(Refused, match="containers/300 can't be read"):
            box.ask(verb, minors=(0,))
    assert box.conf == given


def test_a_hanging_cluster_file_system_ends_it(box: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    (box.root / CONF[1:]).unlink()
    os.mkfifo(box.root / CONF[1:])
    with pytest.raises(Refused, match="no answer within 0.2 s"):
        box.apply(minors=(0,))
    os.close(os.open(box.root / CONF[1:], os.O_RDWR | os.O_NONBLOCK))


def test_what_comes_too_late_takes_no_other_change_away(box: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/pve answers again when the lock of the file is somebody else's."""
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
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


def test_what_a_killed_writer_has_left_beside_it_goes(box: Containers) -> None:
    box.host.write(f"{CONF}.tmp.12345", "half")
    box.host.write("/etc/pve/lxc/3000.conf.tmp.1", "another one's")
    box.apply(minors=(0,))
    assert box.left() == ["3000.conf.tmp.1"]


def test_nothing_is_written_before_it_is_noted(box: Containers) -> None:
    noted: list[list[str]] = []

    def watch(call: str, path: str) -> None:
        if call == "rename" and path.endswith("/300.conf"):
            noted.append(box.noted()["given"]["lines"])

    with watched(watch):
        box.apply("mount-entry", minors=(0,))
    assert noted and {*ours(box.conf)} <= {*noted[0]}
