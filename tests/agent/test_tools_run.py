"""tools/run.py and tools/text.py: programs have an end, and what they say has a greatest length."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homelab.remote.scripts import FOLDER
from remote_scripts.tools.done import NOT_FOUND, TIMED_OUT, TOO_MUCH
from remote_scripts.tools.log import Log
from remote_scripts.tools.run import Run
from remote_scripts.tools.system import System
from remote_scripts.tools.text import LOG_BYTES, as_text, without_secrets
from tests.waiting import PATIENCE, wait_until


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run/homelab").mkdir(parents=True, mode=0o700)
    return System(tmp_path).run


def test_a_question_has_an_answer_a_status_and_an_end(run: Run) -> None:
    assert run.ask("sh", "-c", "echo one; echo two >&2; exit 3").output == b"one\n"
    assert run.ask("sh", "-c", "echo two >&2; exit 3").status == 3
    assert run.ask("cat", stdin=b"said").text == "said"
    assert run.ask("nothing-of-that-name").status == NOT_FOUND
    began = time.monotonic()
    assert run.ask("sh", "-c", "echo before; sleep 60", seconds=0.5).status == TIMED_OUT
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("/home/a/bin:/usr/bin:/bin", "/home/a/bin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin"),
    ],
    ids=["none", "of a user"],
)
def test_programs_of_the_system_are_found_whoever_logs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, path: str
) -> None:
    """modinfo is in /usr/sbin, which sudo may not have: no driver would seem to be there."""
    monkeypatch.setenv("PATH", given)
    run = System(tmp_path).run
    assert run.ask("sh", "-c", 'printf %s "$PATH"').text == path and run.has("sh")


def test_root_starts_no_program_from_a_folder_in_which_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over sudo without secure_path, the environment is that of a user."""
    tmp_path.chmod(0o777)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/lib:{tmp_path}/not-there:/usr/bin:/bin")
    kept = "/usr/lib:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin"
    assert System(Path("/")).run.environment["PATH"] == kept


def test_more_than_was_asked_for_is_no_answer(run: Run) -> None:
    done = run.ask("yes", limit=1000)
    assert done.status == TOO_MUCH and len(done.output) == 1000
    assert run.ask("sh", "-c", "head -c 5000 /dev/zero", limit=1000).status == TOO_MUCH


ASKS = """
import sys, pathlib
from remote_scripts import agent
from remote_scripts.tools.system import System
run = System(pathlib.Path("PLACE")).run
sys.exit(agent._limited(2, lambda: getattr(run, sys.argv[1])("sh", "-c", "echo $$ >PLACE/new; mv PLACE/new PLACE/pid; sleep 6; echo >PLACE/done", seconds=60).status))
"""


@pytest.mark.parametrize(("how", "goes_on"), [("ask", False), ("do", True)])
def test_a_question_ends_with_the_step_that_has_asked_it_and_work_goes_on(
    tmp_path: Path, how: str, goes_on: bool
) -> None:
    """The step hangs, and is killed at its time."""
    code = ASKS.replace("PLACE", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code, how], cwd=FOLDER.parent, stdout=subprocess.DEVNULL)
    assert process.wait(PATIENCE) == 1
    program = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(program))
    assert (tmp_path / "done").exists() is goes_on


def is_alive(process: int) -> bool:
    """A zombie, whom nobody has waited for yet, isn't."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_endless_errors_are_kept_in_part(run: Run) -> None:
    done = run.ask("sh", "-c", "yes >&2", seconds=1)
    assert done.status == TIMED_OUT and len(done.error) <= LOG_BYTES  # they may have begun anew


def test_a_process_that_is_left_behind_with_the_output_open_holds_nobody(run: Run) -> None:
    began = time.monotonic()
    assert run.ask("sh", "-c", "sleep 30 & echo done").text == "done"
    assert time.monotonic() - began < 10


# Its process is left to whoever takes this one's children.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_program_that_no_signal_ends_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.killpg", lambda _group, _number: None)
    began = time.monotonic()
    done = run.ask("sleep", "12", seconds=0.5)
    assert done.status == TIMED_OUT and time.monotonic() - began < 10


def test_long_work_says_how_long_it_takes_and_its_last_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("remote_scripts.tools.run.PROGRESS_SECONDS", 0.1)
    run.do("sh", "-c", "echo first; printf 'read 1\\rread 2\\n'; sleep 2", doing="reading")
    assert re.search(r"^reading: \d s: read 2$", capsys.readouterr().err, re.MULTILINE)


def test_work_says_the_end_of_its_output_and_all_of_it_is_in_the_log(run: Run, tmp_path: Path) -> None:
    done = run.do("sh", "-c", "seq 100; printf 'a\\rb\\n'; exit 4")
    assert (done.status, done.text.split("\n")) == (4, ["98", "99", "100", "a", "b"])
    log = (tmp_path / "run/homelab/steps").read_text()
    assert "  1\n  2\n" in log and "  b\n" in log


def test_work_that_is_given_up_may_put_away_what_it_has_begun_and_leaves_nothing_running(
    run: Run, tmp_path: Path
) -> None:
    program = """trap "echo put away; exit" TERM; (trap "" TERM; exec sleep 999) & echo $! >pid; wait"""
    done = run.do("sh", "-c", f"cd {tmp_path}; {program}", seconds=0.5)
    assert done.status == TIMED_OUT and done.text.startswith("put away\n")
    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(left))


def test_work_that_says_something_without_end_fills_no_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a question that is asked again and again, where nobody answers. The file with it is in memory."""
    monkeypatch.setattr("remote_scripts.tools.run._FILE_BYTES", 100_000)
    sizes = tmp_path / "sizes"
    asks = f"yes 'Sorry, try again' | head -c 200000; sleep 0.05; stat -L -c %s /proc/$$/fd/1 >>{sizes}"
    done = run.do("sh", "-c", f"for i in $(seq 20); do {asks}; done; echo; echo the end")
    assert (done.status, done.text.rpartition("\n")[2]) == (0, "the end")
    assert max(map(int, sizes.read_text().split())) < 20 * 200_000 / 2


def test_what_a_program_says_is_no_note_of_ours(run: Run, tmp_path: Path) -> None:
    """It may be a container's."""
    notes = tmp_path / "run/homelab/notes"
    notes.write_bytes(b"")
    run.do("sh", "-c", "echo note: run this on the host; exit 1")
    assert notes.read_bytes() == b""


def test_a_proxys_user_and_password_are_taken_out_wherever_a_program_says_them(tmp_path: Path) -> None:
    log = Log(tmp_path, "http://me:s3cret@proxy.lan:3128")
    assert log.clean("curl: s3cret for me:s3cret") == "curl: (secret) for (secret)"


def test_texts_are_cleaned_in_no_time() -> None:
    began = time.monotonic()
    assert as_text(b"a" + b"\r" * 200_000 + b"b").count("\n") == 200_000
    assert time.monotonic() - began < 5
    assert as_text(b"\x1b[31mred\x1b[0m\r\nx\xff\x00y\x07") == "red\nx\ufffdy\ufffd"
    assert without_secrets("at http://user:word@proxy/x") == "at http://(secret)@proxy/x"
