"""A host's restart, and all that is set and put back around it (layers/reboot.py)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from remote_scripts.boot import trial
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.reboot import Wanted
from remote_scripts.cluster import turn
from remote_scripts.tools.done import Done
from remote_scripts.tools.system import System
from tests import sampling
from tests.agent import api_kit, cluster_kit
from tests.agent.cluster_kit import BOOT, HA_STOCK, HOME, STATE, TURN, Clock, Host, status
from tests.agent.cluster_kit import host as host  # a fixture
from tests.agent.kit import Cut, Refused, cuts, left_by

ORDERED = "/run/homelab/ordered"
ARMED = f"boot {'7d4f0d3c-0000-4000-8000-000000000001'}\nuntil 5\n"


@pytest.fixture(autouse=True)
def under_ha(host: Host, clock: Clock) -> None:
    """pve1 lacks a word on its command line; VM 200 and container 901 are HA's, VM 103 and container 902 aren't."""
    host.node_of_three().with_ha()
    host.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    host.write("/boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
    booted(host)


def booted(host: Host) -> None:
    """What the kernel says, and the programs of this boot."""
    host.run()
    host.write("/proc/cmdline", "quiet\n")
    host.programs |= {
        "bash": lambda _arguments, _stdin: " quiet\n",
        "systemd-run": lambda arguments, _stdin: host.noted("systemd-run", arguments),
    }
    api_kit.runs(host, {103: "Sandbox", 200: "db"}, {901: "ai-lab", 902: "dns"})


def ask(host: Host, verb: str = "apply", *, keep_quorum: bool = True) -> Any:
    boot = Boot(words=("iommu=pt",))
    wanted = Wanted(policy="auto", boot=boot, rollback_after=600, awaited=1800, keep_quorum=keep_quorum)
    return host.ask(verb, "reboot", wanted)


def refusal(host: Host, *, keep_quorum: bool = True) -> str:
    with pytest.raises(Refused) as refused:
        ask(host, keep_quorum=keep_quorum)
    assert not restarts(host)
    return str(refused.value)


def restarts(host: Host) -> bool:
    return any(one.startswith("systemd-run") and "systemctl reboot" in one for one in host.said())


def at(host: Host, program: str, asked: Callable[[Sequence[str], bytes], bool], act: Callable[[], object]) -> None:
    """It happens as a program is asked so."""
    real = host.programs[program]

    def run(arguments: Sequence[str], stdin: bytes) -> Any:
        if asked(arguments, stdin):
            act()
        return real(arguments, stdin)

    host.programs[program] = run


def at_turn(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """It happens as the node takes its turn."""
    real = turn.take
    patch.setattr(turn, "take", lambda *words: (act(), real(*words))[1])


def at_list(host: Host, path: str, act: Callable[[], object]) -> None:
    """It happens where it is asked which guests run, and this file is there."""
    at(host, "pvedaemon", lambda _, request: b"/qemu " in request and host.exists(path), act)


def test_a_node_restarts_in_its_turn_and_leaves_its_guests_to_ha(host: Host) -> None:
    """HA freezes those that it has, and starts them here again."""
    before = host.tree()
    planned = ask(host, "plan")
    assert [guest["id"] for guest in planned["guests"]] == [103, 200, 901, 902]
    assert planned["cluster"] == "" and host.tree() == before
    answer = ask(host)
    assert (answer["turn"], answer["guests"], answer["armed"]) == (True, planned["guests"], "") and restarts(host)
    assert [who[:2] for who in cluster_kit.who_ran(host)] == [("qm", 103), ("qm", 200), ("pct", 901), ("pct", 902)]
    (host.root / ORDERED[1:]).unlink()
    assert host.ask("apply", "cluster_turn", {}) == {"over": True}
    assert not host.exists(TURN)


MIGRATE = "keyboard: de\nha: shutdown_policy=migrate\n"


@pytest.mark.parametrize(
    ("policy", "services", "stays"),
    [
        (MIGRATE, "vm:202 pve2 started\nvm:200 pve1 started\n", "vm:200"),
        ("ha: shutdown_policy=migrate", "ct:901 pve1 queued\n", "ct:901"),
        ("ha: crs=static, shutdown_policy=migrate,x=1\n", HA_STOCK, "vm:200"),
        (MIGRATE, "vm:200 pve1 stopped\nct:901 pve1 ignored\nvm:202 pve2 started\n", ""),
        ("ha: shutdown_policy=conditional\n", HA_STOCK, ""),
        ("ha: shutdown_policy=freeze\n", HA_STOCK, ""),
    ],
    ids=["a VM", "a container", "among others", "none that has to leave", "another policy", "a third one"],
)
def test_a_node_that_ha_would_empty_first_isnt_restarted(host: Host, policy: str, services: str, stays: str) -> None:
    """HA waits without an end for a guest that can't leave."""
    host.write(f"{STATE}/ha", services)
    host.write("/etc/pve/datacenter.cfg", policy)
    planned = ask(host, "plan")["cluster"]
    if not stays:
        assert planned == ""
        return
    assert planned == f"HA would move {stays} away before the restart (shutdown_policy=migrate)"
    before = host.lasting()
    message = refusal(host)
    assert planned in message and "`ha-manager migrate vm:103 pve2`" in message
    assert host.lasting().keys() - before.keys() <= {HOME[1:], f"{HOME}/wanted-boot"[1:]}
    assert not host.exists(TURN)


def test_a_policy_that_cant_be_read_keeps_the_node_from_restarting(host: Host) -> None:
    (host.root / "etc/pve/datacenter.cfg").mkdir()
    assert "to read /etc/pve/datacenter.cfg" in refusal(host)


@pytest.mark.parametrize("answer", [Done(1, b""), Done(0, b"something else\n")])
def test_an_ha_manager_that_doesnt_answer_keeps_the_node_from_restarting(host: Host, answer: Done) -> None:
    host.programs["ha-manager"] = lambda _arguments, _stdin: answer
    assert "`ha-manager status`" in refusal(host)
    assert not host.exists(TURN)


def test_a_quorum_is_not_given_up_where_ha_falls_silent(host: Host) -> None:
    """Whether its watchdog is armed elsewhere isn't known."""
    host.members(status(1, 1, expected=2), "1 1 pve1 (local)\n2 1 pve2")
    host.write(f"{STATE}/ha", "vm:202 pve2 stopped\n")
    answers, real = iter([True]), host.programs["ha-manager"]
    host.programs["ha-manager"] = lambda *asked: real(*asked) if next(answers, False) else Done(1, b"")
    planned = ask(host, "plan", keep_quorum=False)["cluster"]
    assert "HA has guests, and `ha-manager status` gives no answer, and its watchdog resets a node" in planned


@pytest.mark.parametrize("quiet", ["no", "guests", "all", "disarmed"])
def test_a_quorum_is_not_given_up_where_ha_would_reset_the_other_node(host: Host, quiet: str) -> None:
    at_rest = {
        "all": (b"pve2 (active, watchdog active", b"pve2 (idle"),
        "disarmed": (b"armed (CRM watchdog active)", b"disarmed, resource mode: freeze (CRM watchdog released)"),
    }
    host.members(status(1, 1, expected=2), "1 1 pve1 (local)\n2 1 pve2")
    served = "vm:200, ct:901, vm:202, an active agent on pve2"
    if quiet in ("guests", "all"):
        host.write(f"{STATE}/ha", HA_STOCK.replace("started", "stopped"))
        served = "HA has an active agent on pve2"
    real, (was, now) = host.programs["ha-manager"], at_rest.get(quiet, (b"", b""))
    host.programs["ha-manager"] = lambda arguments, stdin: Done(
        0,
        real(arguments, stdin).output.replace(was, now),  # type: ignore[union-attr]
    )
    planned = ask(host, "plan", keep_quorum=False)
    assert ("its watchdog resets a node" in planned["cluster"]) is (quiet not in at_rest)
    if quiet in at_rest:
        ask(host, keep_quorum=False)
        assert restarts(host)
        return
    message = refusal(host, keep_quorum=False)
    assert served in message and "QDevice" in message


def test_what_ha_does_elsewhere_is_no_guest_that_stays(host: Host) -> None:
    host.write(f"{STATE}/ha", "vm:200 pve1 started\nvm:202 pve2 migrate\n")
    message = refusal(host)
    assert "HA is at work on vm:202 of pve2: migrate" in message
    assert "wait until that has ended" in message


@pytest.mark.parametrize("how", ["its run is cancelled", "its time is up"])
def test_a_restart_that_ends_where_it_waits_leaves_nothing_set_for_it(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    at_turn(monkeypatch, lambda: host.without_quorum(monkeypatch))
    host.write(f"{HOME}/trial", ARMED)
    system = host.working_system()
    host.write("/run/homelab/up", "anna\n")
    system.work.client = "anna"
    cancel = lambda: host.write("/run/homelab/up", "anna, and was cancelled\n")  # noqa: E731
    clock.meanwhile = cancel if "cancelled" in how else (lambda: setattr(system.work, "ends", 0.0))
    monkeypatch.setattr(host, "system", lambda: system)
    assert refusal(host).startswith(("wanted: the run at work", "wanted: this step done"))
    assert not host.exists(TURN)
    assert not {"until", "awaited"} & {*host.read(f"{HOME}/trial").split()}


def test_the_switch_counts_from_the_restart_on(host: Host) -> None:
    host.write(f"{HOME}/trial", ARMED)
    began = int(time.time())
    assert ask(host)["armed"]
    noted = dict(line.split(" ", 1) for line in host.read(f"{HOME}/trial").splitlines())
    assert began + 1800 <= int(noted["until"]) <= time.time() + 1800 and noted["awaited"] == "1800"


def test_a_switch_that_is_taken_away_meanwhile_keeps_the_host_from_restarting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another stack's confirmation may do it."""
    host.write(f"{HOME}/trial", ARMED)
    at_turn(monkeypatch, lambda: (host.root / f"{HOME}/trial"[1:]).unlink(missing_ok=True))
    assert "the trial of this restart was taken away meanwhile" in refusal(host)
    assert not host.exists(TURN)


def test_a_switch_that_cant_count_from_the_restart_on_keeps_the_host_from_restarting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would give a boot back for which an `up` still waits."""
    host.write(f"{HOME}/trial", ARMED)

    def fails(_system: System, _seconds: int) -> None:
        raise OSError(28, "No space left on device", f"{HOME}/trial")

    monkeypatch.setattr(trial, "await_boot", fails)
    assert f"{HOME}/trial can't be written" in refusal(host)
    assert not host.exists(TURN)


@pytest.mark.parametrize("what", ["taken", "removed", "unread"])
def test_a_turn_that_is_another_nodes_by_now_keeps_this_one_from_restarting(
    host: Host, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Much is waited for since it was taken: somebody removes it, as a message says, and another node takes it."""
    host.write(f"{HOME}/trial", ARMED)

    if what == "taken":
        at_list(host, TURN, lambda: host.turn_of("pve2"))
        assert f"it isn't this node's turn any more: {TURN} names pve2" in refusal(host)
        assert host.read(TURN).startswith("node pve2\n")
        (host.root / TURN[1:]).unlink()
    elif what == "removed":
        at_list(host, TURN, (host.root / TURN[1:]).unlink)
        assert f"it isn't this node's turn any more: {TURN} is gone" in refusal(host)
    else:
        real = Path.open

        def opened(path: Path, *arguments: Any, **options: Any) -> Any:
            if str(path).endswith(TURN) and host.exists(f"{HOME}/owed"):
                raise TimeoutError("no answer within 20 s")
            return real(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            assert "it isn't known whether it is still this node's turn" in refusal(host)
    assert not host.exists(TURN)
    assert not host.exists(f"{HOME}/owed") and "until" not in host.read(f"{HOME}/trial")


def test_a_host_that_joins_a_cluster_meanwhile_has_no_turn_and_isnt_restarted(host: Host) -> None:
    (host.root / "etc/pve/corosync.conf").unlink()
    assert ask(host, "plan")["cluster"] == ""
    at_list(host, "/var/lib/homelab/wanted-boot", lambda: host.write("/etc/pve/corosync.conf", "totem {}\n"))
    assert f"it isn't this node's turn any more: {TURN} is gone" in refusal(host)


def test_a_node_that_is_alone_in_its_cluster_restarts(host: Host) -> None:
    host.members(status(1, expected=1))
    ask(host)
    assert restarts(host)


def test_a_system_that_goes_down_already_needs_no_second_restart(host: Host) -> None:
    host.programs["systemd-run"] = lambda *_: Done(1, b"Transaction is destructive")
    host.programs["systemctl"] = lambda words, _stdin: Done(1, b"stopping\n") if "is-system-running" in words else 0
    assert ask(host)["turn"]


@pytest.mark.parametrize("what", ["systemd-run", "which guests run", "the note of them", "the order"])
def test_a_restart_that_cant_be_ordered_ends_the_turn_at_once_and_leaves_the_switch(host: Host, what: str) -> None:
    """What was configured is what the next boot has, whoever restarts the host."""
    host.write(f"{HOME}/trial", ARMED)
    if what == "systemd-run":
        host.programs["systemd-run"] = lambda _arguments, _stdin: Done(1, b"Transaction is destructive")
    elif what == "which guests run":
        real = host.programs["pvedaemon"]
        host.programs["pvedaemon"] = lambda words, text: Done(0, b"") if b"/qemu " in text else real(words, text)
    elif what == "the note of them":
        (host.root / "etc/systemd/system/homelab-owed.service/x").mkdir(parents=True)
    else:
        (host.root / ORDERED[1:]).mkdir(parents=True)
        (host.root / "run/homelab").chmod(0o700)
    said = refusal(host)
    assert "then run `pulumi up` again" in said
    assert ("reboot it by hand" in said) == (what in ("systemd-run", "the order"))
    assert not host.exists(TURN)
    armed = host.read(f"{HOME}/trial")
    assert not host.exists(f"{HOME}/owed") and armed.startswith(f"boot {host.read(BOOT)}") and "until" not in armed


def test_nothing_is_asked_of_a_disk_once_the_restart_is_ordered(host: Host) -> None:
    """The system goes down under the run, which has an answer all the same."""
    host.write(f"{HOME}/trial", ARMED)

    def ordered(_arguments: Sequence[str], _stdin: bytes) -> int:
        (host.root / HOME[1:]).rename(host.root / "gone")
        return 0

    host.programs["systemd-run"] = ordered
    answer = ask(host)
    assert answer["turn"] and answer["armed"]


def test_what_the_host_said_of_its_guests_is_told_before_a_restart_that_forgets_it(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.write("/run/homelab/started", "VM 103 ran before the restart, and did not start after it\n")
    ask(host)
    assert "note: VM 103 ran before the restart, and did not start after it" in capsys.readouterr().err


def test_nothing_is_armed_or_restarted_while_the_cluster_cant_do_without_the_node(host: Host) -> None:
    """Planned, refused, and then done; and in the next boot whoever finds no reason for another restart ends the turn."""
    host.turn_of("pve2")
    before = host.tree()
    planned = ask(host, "plan")
    assert planned["reboot"] == "yes" and planned["cluster"].startswith("pve2 restarts, since")
    assert host.tree() == before
    assert "pve2 restarts" in refusal(host) and not host.exists(f"{HOME}/trial")
    (host.root / TURN[1:]).unlink()
    assert ask(host)["turn"] is True and host.read(TURN).startswith("node pve1\n")
    host.write(BOOT, "7d4f0d3c-0000-4000-8000-000000000002\n")
    host.write("/proc/cmdline", "quiet iommu=pt\n")
    did = ask(host)
    assert (did["reboot"], did["turn"]) == ("no", False)
    assert not host.exists(TURN)
    assert host.exists(f"{HOME}/owed"), "which guests ran is for whoever confirms this boot"


def test_a_boot_configuration_that_wasnt_made_is_started_by_nobody(host: Host) -> None:
    host.write(f"{HOME}/pending/boot", "")
    assert refusal(host) == snapshot("""\
wanted: this host restarted with what was configured
found:  the boot configuration was not made after the last change (/var/lib/homelab/pending/boot)
why:    it would start with what was configured before, and be restarted again and again
next:   run `pulumi up --refresh`, which makes it; then this host restarts\
""")
    assert not host.exists(TURN)


def test_a_host_that_is_alone_waits_for_its_backup_and_is_then_refused(host: Host, clock: Clock) -> None:
    (host.root / "etc/pve/corosync.conf").unlink()
    upid = "UPID:pve1:00001A2B:0094C3F1:6B010CC4:vzdump:100:root@pam!nightly:"
    host.write("/var/log/pve/tasks/active", f"{upid} 0\n")
    host.write(f"/proc/{0x1A2B}/stat", f"{0x1A2B} (task) S {' '.join(['7'] * 18)} {0x0094C3F1} 99 99\n")
    assert ask(host, "plan")["cluster"].startswith("the task vzdump 100 runs here, since")
    message = refusal(host)
    assert "found:  the task vzdump 100 runs here" in message
    assert "a restart would cut off what is at work here" in message
    # One that never ends by itself has a way out, too.
    for way in ("pvenode task list --source active", "ha-manager status", "Or reboot this host by hand"):
        assert way in message
    assert not host.exists(f"{HOME}/trial")
    clock.meanwhile = lambda: shutil.rmtree(host.root / f"proc/{0x1A2B}", ignore_errors=True)
    assert ask(host)["turn"] is False and restarts(host)


# Cut short.


def test_the_next_up_restarts_what_was_cut_short_at_any_moment_and_the_boot_after_it_has_all_back(
    host: Host, tmp_path: Path
) -> None:
    """With the boot on trial, all that is set in the cluster, and the guests that ran."""

    def later(cut: Cut, host: Host, place: Path) -> Host:
        """What is left, some minutes later."""
        left = left_by(cut, host, place)
        booted(left)
        left.write("/proc/stat", "btime 1\n")
        return left

    host.with_disks()
    host.write(f"{HOME}/trial", ARMED)
    boot = host.read(BOOT)
    found = cuts(host, ask, in_cluster=True, most=6, name="again")
    assert len(found) >= 6
    for number, cut in enumerate(found):
        said = f"HOMELAB_SEED={sampling.SEED} {cut.how}"
        left = later(cut, host, tmp_path / f"again-{number}")
        left.write(BOOT, boot if cut.how.startswith("killed") else "another one\n")
        did = ask(left)
        assert did["turn"] and did["armed"] and restarts(left), said
        assert [vmid for _, vmid, _ in cluster_kit.who_ran(left)] == [103, 200, 901, 902], said
        assert "until" in left.read(f"{HOME}/trial"), said
        left.write(BOOT, "the next one\n")
        left.write("/proc/cmdline", "quiet iommu=pt\n")
        (left.root / ORDERED[1:]).unlink()
        did = ask(left)
        assert (did["reboot"], did["turn"]) == ("no", False), said
        assert not left.exists(TURN), said
        assert (left.root / f"{HOME}/owed"[1:]).exists(), said


def test_a_switch_says_since_when_it_is_armed(host: Host) -> None:
    assert trial.armed_since(host.system()) == ""
    os.utime(host.write(f"{HOME}/trial", ARMED), ns=(0, 1_700_000_000_123_456_789))
    assert trial.armed_since(host.system()) == "1700000000.123456789"


@pytest.mark.parametrize(
    ("undone", "rolling_back", "stays"),
    [("earlier", "", False), ("earlier", "this", True)],
    ids=["an earlier one", "one that has still to restart"],
)
def test_where_no_reboot_is_needed_an_earlier_boot_that_was_undone_is_no_news(
    host: Host, undone: str, rolling_back: str, stays: bool
) -> None:
    """Nor are guests owed a start that ran before a restart which didn't come."""
    this = host.read(cluster_kit.BOOT).strip()
    host.write("/proc/cmdline", "quiet iommu=pt\n")
    host.write(f"{HOME}/rolled-back", f"boot {this if undone == 'this' else undone} was not confirmed")
    cluster_kit.note_ran(host, ("qm", 103, this), ("qm", 107, "earlier"))
    if rolling_back:
        host.write("/run/homelab/restarting", f"boot {rolling_back}\n")
    assert ask(host)["reboot"] == "no"
    assert host.exists(f"{HOME}/rolled-back") is stays
    assert cluster_kit.who_ran(host) == [("qm", 107, "earlier")]
