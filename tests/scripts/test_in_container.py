"""in_container.sh: a script inside a container, whose way is seen from outside, and whose end is told as it was."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder, library

# What a script of this project's own begins with in there.
LIBRARY = library("common", "files", "lock")
# As pct does it: the rest of its words is run, with our standard input.
EXEC = '[[ $1 == status ]] && echo "status: running" && exit; shift 3; "$@"'


def run(folder: Folder, script: str, *, verb: str = "apply", pct: str = EXEC) -> subprocess.CompletedProcess[str]:
    """``meanwhile PATTERN`` in the script waits until a person was told so."""
    folder.command("meanwhile", 'until grep -qE "$1" "$ROOT/told"; do read -rt 0.05 <> <(:) || :; done')
    folder.command("pct", pct)
    outer = scripts.compose("in_container.sh", CTID="901", SCRIPT=script)
    # By tee, whose end the run's own waits for: all that a person is told is there then.
    return folder.run(verb, f'exec 2> >(exec tee "$ROOT/told" >&2)\nPROGRESS_SECONDS=1 LAST_WORDS_SECONDS=1\n{outer}')


def told(folder: Folder) -> list[str]:
    return folder.read("/told").splitlines()


def words(folder: Folder) -> list[str]:
    """The script's own: a slow machine takes seconds for many of them, which a person is told."""
    return [line for line in told(folder) if not re.fullmatch(r"container 901: \d+ s", line)]


def test_a_script_that_says_nothing_for_long_is_waited_for_in_words(folder: Folder) -> None:
    done = run(folder, "meanwhile 'container 901: [0-9]'; echo '{}'")
    assert (done.returncode, done.stdout) == (0, "{}\n")
    assert re.fullmatch(r"container 901: [23] s", told(folder)[0]), told(folder)


def test_what_it_says_is_passed_on_as_it_comes_and_is_in_the_hosts_log_below_a_heading(folder: Folder) -> None:
    # It waits for its own line: that is out before the script has ended.
    assert run(folder, "echo 'CUDA toolkit: 40 %' >&2; meanwhile CUDA; echo '{\"changed\":\"yes\"}'").returncode == 0
    assert told(folder) == ["CUDA toolkit: 40 %"]
    heading, line = folder.read("/run/homelab/steps").splitlines()
    assert heading.endswith(" container 901: apply") and line == "  container 901: CUDA toolkit: 40 %"


def test_a_line_that_comes_in_parts_is_one_line(folder: Folder) -> None:
    assert run(folder, "printf 'one ' >&2; meanwhile '901: 2 s'; printf 'line\\n' >&2").returncode == 0
    assert told(folder)[-1] == "one line"


def test_the_answer_is_whole_and_no_part_of_the_log(folder: Folder) -> None:
    done = run(folder, "printf '%s\\n' '{\"text\":\"'; head -c 300000 /dev/zero | tr '\\0' x; printf '\"}\\n'")
    assert len(done.stdout) == 300_000 + len('{"text":"\n"}\n') and told(folder) == []


def test_a_failure_of_the_script_is_its_own_message(folder: Folder) -> None:
    done = run(folder, "echo why >&2; echo 'wanted: a card'; exit 1")
    assert (done.returncode, done.stdout, told(folder)) == (1, "wanted: a card\n", ["why"])


@pytest.mark.parametrize(
    ("pct", "script", "status"),
    [
        ("[[ $1 == status ]] && echo status: running && exit; echo 'lxc-attach: 901: no such namespace' >&2; exit 1", "", 1),
        ("[[ $1 == status ]] && echo status: running && exit; exit 255", "", 255),
        (EXEC, "exit 127", 127),
        (EXEC, "kill -9 $$", 137),
        (EXEC, "kill -9 $PPID; sleep 0.2", 137),
    ],
    ids=["lxc-attach", "pct", "no program", "its bash is killed", "what started it is killed"],
)  # fmt: skip
def test_what_fails_before_or_around_the_script_is_a_message_of_four_parts(
    folder: Folder, pct: str, script: str, status: int
) -> None:
    done = run(folder, script, pct=pct)
    assert done.returncode == 1
    parts = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert parts == ["wanted", "found", "why", "next"], done.stdout
    assert f"exit status {status} of pct exec" in done.stdout


def test_what_the_script_leaves_running_is_not_waited_for(folder: Folder) -> None:
    done = run(folder, "sleep 50 >/dev/null & echo '{}'")  # it has the pipe of what is said
    assert done.stdout == "{}\n" and done.returncode == 0


def test_a_process_that_goes_on_and_has_nothing_of_the_run_holds_nothing_of_it(folder: Folder) -> None:
    began = time.monotonic()
    done = run(folder, "sleep 50 </dev/null >/dev/null 2>&1 & echo '{}'")
    assert done.stdout == "{}\n" and time.monotonic() - began < 40


def test_one_that_goes_on_speaking_is_not_listened_to_for_ever(folder: Folder) -> None:
    done = run(folder, "while echo on; do read -rt 0.2 <> <(:) || :; done >&2 & echo '{}'")
    assert done.stdout == "{}\n" and set(told(folder)) == {"on"}


@pytest.mark.parametrize("verb", ["apply", "confirm"])
def test_what_runs_in_there_has_its_three_descriptors_and_no_other(folder: Folder, verb: str) -> None:
    run(folder, "ls /proc/$$/fd >&2", verb=verb)
    assert told(folder) == ["0", "1", "2"]


def test_the_last_words_are_passed_on_whatever_they_go_through(folder: Folder) -> None:
    slow = "exec 2> >(sleep 0.5; exec cat >&2)\necho why >&2; printf 'and how' >&2\nexit 1"
    assert run(folder, slow).returncode == 1
    assert told(folder) == ["why", "and how"]


def test_of_the_librarys_own_scripts_no_line_is_lost(folder: Folder) -> None:
    for _ in range(5):
        assert run(folder, f"{LIBRARY}\nlog 'E: the reason, é'\ndie a b c d").returncode == 1
        assert told(folder) == ["E: the reason, é"]
    lines = [f"line {number}" for number in range(1, 301)]
    run(folder, f'{LIBRARY}\nfor n in {{1..300}}; do log "line $n"; done\ndie a b c d')
    assert words(folder) == lines
    assert folder.read("/run/homelab/steps").splitlines()[-300:] == [f"  container 901: {line}" for line in lines]


def test_the_beginning_of_a_line_is_passed_on_where_what_started_it_is_killed(folder: Folder) -> None:
    run(folder, "printf 'half a line' >&2; kill -9 $PPID; sleep 0.2")
    assert told(folder)[0].startswith("half a line")


def test_a_line_of_any_length_comes_in_pieces_and_none_is_lost(folder: Folder) -> None:
    some = "head -c 35000 /dev/zero | tr '\\0' x >&2"
    run(folder, f"{some}; meanwhile '901: [0-9]'; {some}; echo end >&2; echo '{{}}'")
    # Of the length that the plugin can show (LINE_BYTES).
    assert [len(line) for line in words(folder)] == [*[16_384] * 4, 70_003 - 65_536]


def test_the_hosts_log_has_text_alone(folder: Folder) -> None:
    run(folder, r"printf '\033[31mred\033[0m \007bell\n' >&2")
    assert folder.read("/run/homelab/steps").splitlines()[1:] == ["  container 901: red �bell"]


def test_a_folder_that_is_not_roots_own_is_not_written_to(folder: Folder) -> None:
    folder.write("/etc/victim", "kept\n")
    folder.write("/etc/other/kept", "")
    (folder.root / "etc/other/steps").symlink_to(folder.root / "etc/victim")
    (folder.root / "run/homelab").symlink_to(folder.root / "etc/other")
    before = folder.tree()
    assert run(folder, "echo said >&2; echo '{}'").stdout == "{}\n"
    assert told(folder) == ["said"]
    (folder.root / "told").unlink()
    assert folder.tree() == before


# By the proxy of the settings, which only the script in there is given; and by an address that somebody else has set.
SAYS = "sh -c 'echo cannot connect to http://u:hunter2@proxy:3128; exit 5'"


@pytest.mark.parametrize(
    "script",
    [
        f'PROXY=http://u:hunter2@proxy:3128\n{LIBRARY}\ntake_lock; run_logged {SAYS} || die a "$OUTPUT" c d',
        f"PROXY=http://u:hunter2@proxy:3128\n{LIBRARY}\nlog 'the password is hunter2'; die a hunter2 c d",
        f"{LIBRARY}\n{SAYS} >&2 || {SAYS} >&2",
        f"{SAYS} >&2",
    ],
    ids=["a command of the library", "the password alone", "a command by itself", "no library"],
)
def test_a_proxys_password_is_nowhere(folder: Folder, script: str) -> None:
    done = run(folder, script)
    seen = folder.read("/run/homelab/steps") + folder.read("/told") + done.stdout + done.stderr
    assert "(secret)" in seen and "hunter2" not in seen


def test_lines_of_two_containers_are_told_apart(folder: Folder) -> None:
    folder.command("pct", EXEC)
    one, other = (
        scripts.compose("in_container.sh", CTID=ctid, SCRIPT=f"echo 'of {ctid}' >&2") for ctid in ("901", "902")
    )
    folder.run("apply", f"({one}) &\n({other})\nwait")
    lines = [line for line in folder.read("/run/homelab/steps").splitlines() if line.startswith("  ")]
    assert sorted(lines) == ["  container 901: of 901", "  container 902: of 902"]


def test_what_is_in_a_container_that_has_moved_is_not_taken_out_and_it_is_said_where_it_is(folder: Folder) -> None:
    folder.write("/etc/pve/nodes/pve2/lxc/901.conf", "hostname: ai\n")
    folder.command("hostname", "echo pve1")
    done = run(folder, "echo '{}'", verb="revert", pct='echo "$*" >>"$ROOT/asked"')
    assert done.returncode == 1 and "it is on the node pve2 now" in done.stdout
    assert "run `pulumi up`" in done.stdout and "`pct migrate 901 pve1` on pve2" in done.stdout
    assert not (folder.root / "asked").exists(), "nothing is done in it"
