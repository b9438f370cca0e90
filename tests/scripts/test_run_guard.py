"""run_guard.sh: one run at a time on a host, for as long as its client's end of the connection is open and says something."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder, library
from tests.waiting import PATIENCE


@contextmanager
def run(folder: Folder, who: str, silence: str = "60") -> Iterator[subprocess.Popen[str]]:
    with guarded(folder.environment, who, silence) as process:
        yield process


@contextmanager
def guarded(
    environment: Mapping[str, str], who: str, silence: str = "60", handing: str = "45", ending: str = "2"
) -> Iterator[subprocess.Popen[str]]:
    text = scripts.compose("run_guard.sh", WHO=who)
    for name, was, value in (
        ("SILENCE", 60, silence),
        ("PATIENCE", 5, "0.2"),
        ("ENDING", 20, ending),
        ("HANDING", 45, handing),
    ):
        assert f"{name}_SECONDS={was}\n" in text
        text = text.replace(f"{name}_SECONDS={was}\n", f"{name}_SECONDS={value}\n")
    process = subprocess.Popen(
        ["bash", "-s", "--", "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(text)
    process.stdin.flush()
    with process:
        yield process
        process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


HELD = '{"held":"yes"}\n'


def test_the_second_is_told_who_is_at_work_and_the_first_goes_on(folder: Folder) -> None:
    with run(folder, "anna on desk, since 14:02") as first:
        assert answer(first) == HELD
        with run(folder, "ben") as second:
            said, _ = second.communicate()
        assert second.returncode == 1
        assert "found:  another one is: anna on desk, since 14:02\n" in said and "this run changes nothing more" in said
        assert first.poll() is None


@pytest.mark.parametrize("end", ["its input ends", "it is told to end", "it is killed", "it hears nothing any more"])
def test_the_host_is_free_again_however_the_first_ends(folder: Folder, end: str) -> None:
    with run(folder, "anna", silence="0.3" if end == "it hears nothing any more" else "60") as first:
        assert answer(first) == HELD and first.stdin is not None
        if end == "its input ends":
            first.stdin.close()
        elif end != "it hears nothing any more":
            first.send_signal(signal.SIGTERM if end == "it is told to end" else signal.SIGKILL)
        first.wait(timeout=PATIENCE)
        with run(folder, "ben") as second:
            assert answer(second) == HELD


def test_what_steps_note_is_the_clients_to_tell_and_goes_with_the_run(folder: Folder) -> None:
    """pulumi-command shows what a step says only while it runs."""
    with run(folder, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        step = folder.bash("log 'wrote a file'; log 'note: it was edited by hand'")
        assert "wrote a file" in step.stderr
        assert answer(first) == "note: it was edited by hand\n"
        first.stdin.close()
        first.wait(timeout=PATIENCE)
    assert not (folder.root / "run/homelab/notes").exists()
    folder.bash("log 'note: nobody is at work'")
    assert not (folder.root / "run/homelab/notes").exists()


def test_it_goes_on_for_as_long_as_it_hears_something(folder: Folder) -> None:
    with run(folder, "anna", silence="2") as first:
        assert answer(first) == HELD and first.stdin is not None
        for _ in range(8):
            with pytest.raises(subprocess.TimeoutExpired):
                first.wait(timeout=0.4)
            first.stdin.write("\n")
            first.stdin.flush()


def test_a_full_run_keeps_nobody_from_holding_the_host(folder: Folder) -> None:
    """What it needs no byte of disk for, and a `destroy` may be what makes room."""
    folder.write("/run/homelab/up", "")
    (folder.root / "run/homelab/up").unlink()
    (folder.root / "run/homelab/up").symlink_to("/dev/full")
    with run(folder, "anna") as first:
        assert answer(first) == HELD
        assert first.poll() is None


STEP = """\
take_lock
told_from_now
while read -r -t 0.2 word || (($? > 128)); do
  [[ -z ${word:-} ]] || printf '%s\n' "$word"
  tell_now_and_then "waiting for the test"
done <"$ROOT/go"
log 'goes on to its end'
"""


@contextmanager
def step(folder: Folder, text: str = STEP, limit: int = 60) -> Iterator[subprocess.Popen[str]]:
    """A step of a run, which holds the lock and waits until the test has written to `go`."""
    subprocess.run(["mkfifo", str(folder.root / "go")], check=True)
    text = scripts.with_time_limit(library("files", "lock") + text, limit)
    process = subprocess.Popen(
        ["bash", "-s", "--", "apply"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=folder.environment,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(text)
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    with process, (folder.root / "go").open("w") as go:
        print("begun", file=go, flush=True)
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", ["it is cancelled", "its client is gone", "it is killed"])
def test_what_a_run_has_begun_ends_where_it_waits_when_that_run_ends(folder: Folder, end: str) -> None:
    with run(folder, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        with step(folder) as begun:
            if end == "it is cancelled":
                print("cancelled", file=first.stdin, flush=True)
            elif end == "its client is gone":
                first.stdin.close()
            else:
                first.kill()
                with run(folder, "ben") as second:  # until then nobody has noted that the first is gone
                    second.communicate()
            said, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 1
    assert "found:  it has ended, or was cancelled\n" in said and said.count("wanted:") == 1
    with run(folder, "ben") as second:
        assert answer(second) == HELD


def test_no_run_begins_beside_a_step_of_an_earlier_one(folder: Folder) -> None:
    with run(folder, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        with step(folder, "take_lock\nread -r word <$ROOT/go\necho $word\nread -r _ <$ROOT/go\n") as begun:
            first.stdin.close()
            first.wait(PATIENCE)
            with run(folder, "ben") as second:
                said, _ = second.communicate()
            assert "found:  a step of an earlier run is still at work, of anna (" in said and second.returncode == 1
            with run(folder, "anna") as same:
                assert answer(same) == HELD, "its own step"
            assert begun.poll() is None


def test_a_run_that_holds_the_host_after_its_first_steps_waits_for_none_of_them(folder: Folder) -> None:
    with step(folder) as begun:
        with run(folder, "anna") as first:
            assert answer(first) == HELD
        assert begun.poll() is None


def test_no_run_begins_beside_a_step_in_a_container(folder: Folder) -> None:
    subprocess.run(["mkfifo", str(folder.root / "go")], check=True)
    folder.command("pct", '[[ $1 != exec ]] || exec "${@:4}"; echo "status: running"')
    inside = 'while read -r word; do echo "$word" >&2; done <"$ROOT/go"\n'
    text = scripts.with_time_limit(scripts.compose("in_container.sh", CTID="901", SCRIPT=inside), 60)
    with run(folder, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        with subprocess.Popen(
            ["bash", "-c", 'bash -s -- apply <<<"$1"', "bash", text],
            stderr=subprocess.PIPE,
            text=True,
            env=folder.environment,
        ) as begun:
            with (folder.root / "go").open("w") as go:
                print("begun", file=go, flush=True)
                assert begun.stderr is not None and begun.stderr.readline() == "begun\n"
                first.stdin.close()
                first.wait(PATIENCE)
                with run(folder, "ben") as second:
                    assert "a step of an earlier run is still at work, of anna" in second.communicate()[0]
            begun.communicate(timeout=PATIENCE)
    with run(folder, "ben") as second:
        assert answer(second) == HELD


def test_a_step_that_no_run_has_begun_is_ended_by_its_limit_alone(folder: Folder) -> None:
    with step(folder, limit=8) as begun:
        with run(folder, "ben") as other:
            assert answer(other) == HELD
        said, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 1
    assert "wanted: this step done within 8 s\nfound:  it still waits: waiting for the test\n" in said
