"""lib/common.sh, and what is sent before it: nothing that a script starts on a host may hold it, and its lock, for ever."""

from __future__ import annotations

import subprocess
import time

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder, library
from tests.waiting import PATIENCE, wait_until

HANGS = "trap '' TERM HUP; echo half an answer; while :; do sleep 60; done"
SHORT = (
    "RUN_SECONDS=0.3\nASK_SECONDS=0.3\n"
    'exec_within() { exec timeout -k 0.1 "$1" env --default-signal=TERM,HUP,PIPE "${@:2}"; }\n'
)


def test_a_program_that_hangs_is_given_up_and_the_lock_with_it(folder: Folder) -> None:
    folder.command("update-initramfs", HANGS)
    started = time.monotonic()
    done = folder.bash(f'{SHORT}take_lock\nrun_logged update-initramfs -u || die "an initramfs" "$OUTPUT" why next')
    assert done.returncode == 1 and time.monotonic() - started < 20
    assert "found:  half an answer" in done.stdout and "update-initramfs -u: given up after 0.3 s" in done.stdout
    assert folder.bash("LOCK_TIMEOUT=0\ntake_lock && echo free").stdout == "free\n"


def test_a_program_that_ends_in_time_keeps_its_status_and_its_output(folder: Folder) -> None:
    done = folder.bash(
        f"{SHORT}take_lock\nstatus=0\nrun_logged bash -c 'echo said; exit 7' || status=$?\necho \"$status $OUTPUT\""
    )
    assert done.stdout == "7 said\n"


def test_what_is_started_obeys_the_signals_that_the_script_ignores(folder: Folder) -> None:
    done = folder.bash("within 30 bash -c 'kill -TERM $$; echo survived' || echo \"$?\"")
    assert done.stdout.strip() == "143"


@pytest.mark.parametrize("ignored", ["", "PIPE", "HUP", "TERM", "PIPE HUP TERM"])
def test_no_signal_is_ignored_in_what_is_started_whatever_the_script_was_started_with(
    folder: Folder, ignored: str
) -> None:
    """systemd ignores PIPE for a service, nohup HUP; what a script starts in a container ignores all three."""
    ask = "grep SigIgn /proc/self/status"
    folder.write("/script", f"{library('common')}within 30 {ask}; found=$(within 30 {ask}); echo $found; {ask}")
    before = f"trap '' {ignored}\n" if ignored else ""
    done = folder.bash(f'{before}exec bash "$ROOT/script"', parts=())
    assert [int(line.split()[1], 16) & 0x5001 for line in done.stdout.splitlines()] == [0, 0, 0x5001], done.stderr


# As `qm status` prints it: QMP's own word (PVE::CLI::qm, `vmstatus` with `full`); `pct status` has the first three.
@pytest.mark.parametrize(
    ("answer", "power"),
    [
        ("echo status: running", "on"),
        ("echo status: stopped", "off"),
        ("echo status: unknown", "unknown"),
        ("echo status: paused", "on"),
        ("echo status: io-error", "on"),
        ("echo status: prelaunch", "on"),
        ("echo warning: a storage is slow >&2; echo status: stopped", "off"),
        ("echo status: running; exit 1", "unknown"),
        ("echo ipcc_send_rec failed: Connection refused >&2; exit 111", "unknown"),
        ("exit 0", "unknown"),
        ("sleep 60", "unknown"),
        ('printf . >>"$ROOT/asked"; [[ $(<"$ROOT/asked") == ... ]] && echo status: stopped', "off"),
    ],
    ids=lambda value: str(value)[-18:],
)
@pytest.mark.parametrize("program", ["qm", "pct"])
def test_a_guest_is_on_off_or_not_known_and_is_asked_again(
    folder: Folder, program: str, answer: str, power: str
) -> None:
    folder.command(program, answer)
    folder.as_sent = "sleep" in answer
    asked = f"{SHORT}sleep() {{ SECONDS=$((SECONDS + 20)); }}\nfind_power {program} 901\necho $POWER_NOW"
    assert folder.bash(asked, parts=["guests"]).stdout == f"{power}\n"


def test_a_guest_that_this_node_no_longer_has_is_not_asked_for_a_minute(folder: Folder) -> None:
    folder.command("qm", "exit 2")
    (folder.root / "etc/pve/qemu-server").mkdir(parents=True)
    assert folder.bash("find_power qm 103\necho $POWER_NOW $SECONDS", parts=["guests"]).stdout.startswith("gone ")


def test_a_megabyte_of_empty_lines_at_the_end_of_an_answer_takes_no_time(folder: Folder) -> None:
    many = r"printf '\na\n\nb\n'; head -c 1000000 /dev/zero | tr '\0' '\n'"
    done = folder.bash('answer_of 20 1048576 bash -c "$1"\nprintf "<%s>" "$ANSWER"\n((SECONDS < 10))', many)
    assert (done.returncode, done.stdout) == (0, "<\na\n\nb>"), done.stdout[-300:] + done.stderr


def limited(folder: Folder, text: str, seconds: int = 3, *, sent: int | None = None) -> tuple[int, str, str, float]:
    """A step as it is sent: its status, what it says, its log, how long it took.

    :param sent: so much of it comes, and no end: the rest is still on its way.
    """
    script = scripts.with_time_limit(library("files", "lock") + text, seconds)
    began = time.monotonic()
    with subprocess.Popen(
        ["bash", "-s", "--", "apply"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=folder.environment,
        start_new_session=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if sent is None:
            said, log = process.communicate(script, timeout=PATIENCE)
        else:
            process.stdin.write(script[: script.index("\n") + 1 + sent])
            process.stdin.flush()
            said, log = process.stdout.read(), process.stderr.read()
        status = process.wait(PATIENCE)
    # Of its session nothing is left.
    wait_until(lambda: not of_session(process.pid), 20)
    return status, said, log, time.monotonic() - began


def of_session(leader: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "pid=,stat=,args=", "-s", str(leader)], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if " Z" not in line]


HANGS_IN = {
    "a command of the script": "trap '' TERM; sleep 600",
    "a question": "ASK_SECONDS=600; within 600 bash -c 'trap \"\" TERM; while :; do sleep 60; done' || sleep 600",
    "bash itself": "while :; do :; done",
    "what it has left behind": "(trap '' TERM; sleep 600) & wait",
}


@pytest.mark.parametrize("where", HANGS_IN)
def test_a_step_that_hangs_is_ended_in_its_time_with_all_that_it_has_started(folder: Folder, where: str) -> None:
    status, said, _, took = limited(folder, f"take_lock\n{HANGS_IN[where]}\n")
    assert status == 1 and took < 30
    assert said.startswith("wanted: this step done within 3 s\nfound:  it has not ended; it was killed")
    assert [said.count(part) for part in ("wanted:", "found:", "why:", "next:")] == [1, 1, 1, 1]
    assert folder.bash("LOCK_TIMEOUT=0\ntake_lock && echo free").stdout == "free\n"


def test_a_long_command_that_hangs_is_named_and_what_was_changed_is_put_back(folder: Folder) -> None:
    folder.command("update-initramfs", HANGS)
    before = folder.tree()
    text = 'take_lock\nput_file x /etc/ours 0644 x\nrun_logged update-initramfs -u || die "an initramfs" "$OUTPUT" why next\n'
    status, said, log, took = limited(folder, text, 10)
    assert status == 1 and took < 40
    assert (
        said.startswith("wanted: an initramfs\nfound:  half an answer") and "update-initramfs -u: given up after" in log
    )
    assert folder.tree() == before


@pytest.mark.parametrize("sent", [0, 40], ids=["nothing", "a part"])
def test_a_step_that_does_not_come_whole_does_nothing_and_ends_in_its_time(folder: Folder, sent: int) -> None:
    before = folder.tree()
    status, said, _, _ = limited(folder, "", sent=sent)
    assert status == 1 and "found:  it has not ended" in said
    assert folder.tree() == before


def test_a_step_that_ends_in_time_keeps_its_status_its_verb_and_its_words(folder: Folder) -> None:
    for status in (0, 1, 7, 137):
        text = f"printf '%s ä\\n' \"$1\"\nlog told\ntrap - EXIT\nexit {status}\n"
        assert limited(folder, text, 60)[:3] == (status, "apply ä\n", "told\n")
