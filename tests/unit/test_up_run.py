"""`homelab up --all` as a program, with a stand-in for Pulumi's CLI: what it starts and when, what it shows, how it ends. tests/e2e/test_up_all.py
has the real one."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.console import Console

from homelab.all_stacks.progress import Progress
from homelab.cli import board
from homelab.cli.command_line import main
from tests.conftest import PROJECT
from tests.unit.test_all_stacks import OTHER_KEY, RSA, host, write
from tests.waiting import PATIENCE, wait_until

# What is called of Pulumi. Each call is noted; FAKE/STACK.OPERATION.py may say what it does else, with `say`, `fail`, `wait`, `step` at hand.
PULUMI = """#!{python}
import json, os, pathlib, signal, sys, time
arguments, fake = sys.argv[1:], pathlib.Path(os.environ["FAKE"])
def note(**what):
    with open(fake / "calls.jsonl", "a") as log: log.write(json.dumps(what) + "\\n")
if arguments[:1] == ["whoami"]:
    if (fake / "logged-out").exists(): sys.exit(1)
    print(json.dumps({{"user": "me", "url": "file://~"}})); sys.exit()
if arguments[:2] == ["stack", "ls"]:
    print(json.dumps([{{"name": name}} for name in (fake / "stacks").read_text().split()])); sys.exit()
operation, stack = arguments[0], arguments[arguments.index("--stack") + 1]
log = open(arguments[arguments.index("--event-log") + 1], "a", buffering=1)
def event(**what): log.write(json.dumps(what) + "\\n")
def say(text, severity="info"): event(diagnosticEvent={{"severity": severity, "message": text}})
def step(name, kind="resourcePreEvent"): event(**{{kind: {{"metadata": {{"op": "create", "type": "x:y:Z", "urn": "urn:pulumi:s::p::x:y:Z::" + name}}}}}})
def fail(text):
    say(text, "error"); note(stack=stack, operation=operation, ended=True); sys.exit(255)
def wait(path, seconds=100):
    until = time.monotonic() + seconds
    while not (fake / path).exists():
        if time.monotonic() > until: fail("waited in vain for " + path)
        time.sleep(0.01)
def interrupted(*_):
    note(stack=stack, operation=operation, signal="SIGINT")
    (fake / (stack + ".interrupted")).touch()
signal.signal(signal.SIGINT, interrupted)
note(stack=stack, operation=operation, arguments=arguments, began=True, passphrase=os.environ.get("PULUMI_CONFIG_PASSPHRASE"))
(fake / (stack + "." + operation)).touch()
changes = {{"create": 2, "same": 1}}
more = fake / (stack + "." + operation + ".py")
if more.exists(): exec(more.read_text())
event(summaryEvent={{"resourceChanges": changes}})
note(stack=stack, operation=operation, ended=True)
"""


class Desk:
    """A project with stacks, and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stack(self, name: str, address: str, key: str, **programs: str) -> None:
        write(self.folder, name, host(address, key))
        with (self.folder / "stacks").open("a") as names:
            names.write(f"{name}\n")
        for operation, program in programs.items():
            (self.folder / f"{name}.{operation}.py").write_text(program)

    @property
    def calls(self) -> list[dict[str, Any]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def order(self) -> list[str]:
        """``up work begins``, ``up work ends``, in their order."""
        return [
            f"{call['operation']} {call['stack']} {'begins' if 'began' in call else 'ends'}"
            for call in self.calls
            if "began" in call or "ended" in call
        ]

    def terminal(self, columns: int, *arguments: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            sys.executable,
            ["-m", "homelab", *arguments],
            cwd=str(self.folder),
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=PATIENCE,
        )


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pulumi"
    program.write_text(PULUMI.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "Pulumi.yaml").write_text((PROJECT / "Pulumi.yaml").read_text())
    (tmp_path / "stacks").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "FAKE": str(tmp_path),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_CONFIG_PASSPHRASE": "geheim",
        "TMPDIR": str(tmp_path / "tmp"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Desk(tmp_path)


def run(desk: Desk, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main([*arguments])
    out, err = capsys.readouterr()
    return status, out + err


# -- side by side, one after the other ---------------------------------------------------------------------------------------
def test_stacks_of_two_hosts_run_side_by_side(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    # Each ends only when the other has begun.
    desk.stack("a", "192.0.2.1", OTHER_KEY, preview='wait("b.preview")', up='wait("b.up")')
    desk.stack("b", "192.0.2.2", RSA, preview='wait("a.preview")', up='wait("a.up")')
    status, shown = run(desk, capsys, "up", "--all", "--yes")
    assert status == 0, shown
    assert desk.order[:4] != sorted(desk.order[:4]) or "preview b begins" in desk.order[:2]
    assert all(call.get("passphrase", "geheim") == "geheim" for call in desk.calls)
    assert not any("geheim" in " ".join(call.get("arguments", [])) for call in desk.calls) and "geheim" not in shown
    assert re.search(r"a +pve \(192\.0\.2\.1\) +2 created", shown)
    assert list((desk.folder / "tmp").iterdir()) == []


def test_stacks_of_one_host_run_one_after_the_other_and_it_is_said(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "a"):
        desk.stack(name, "192.0.2.1", OTHER_KEY)
    status, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    assert status == 0 and desk.order == ["up a begins", "up a ends", "up b begins", "up b ends"]
    assert "192.0.2.1: a, then b; one after the other" in shown


def test_no_more_than_asked_for_run_at_the_same_time(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    desk.stack("b", "192.0.2.2", RSA)
    assert run(desk, capsys, "preview", "--all", "--parallel", "1")[0] == 0
    assert desk.order == ["preview a begins", "preview a ends", "preview b begins", "preview b ends"]


# -- one yes, after the previews --------------------------------------------------------------------------------------------------
REFUSAL = 'fail("wanted: a card\\nfound: none\\nwhy: it is needed\\nnext: put one in")'


def test_a_refused_preview_leaves_its_stack_out_and_the_others_go_on_after_the_yes(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, preview=REFUSAL)
    desk.stack("b", "192.0.2.2", RSA)
    status, shown = run(desk, capsys, "up", "--all", "--yes")
    assert status == 1 and "refused: a card" in shown and "next:   put one in" in shown.replace("next: p", "next:   p")
    assert "a is left out: its preview was refused." in shown
    assert [one for one in desk.order if one.startswith("up")] == ["up b begins", "up b ends"]


def test_a_no_changes_nothing(desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    status, shown = run(desk, capsys, "up", "--all")
    assert status == 1 and "Do this (a)?" in shown and "Nothing was done." in shown
    assert [call["operation"] for call in desk.calls if "began" in call] == ["preview"]


def test_where_nobody_answers_nothing_is_begun(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    status, shown = run(desk, capsys, "up", "--all")
    assert status == 2 and "the input has ended" in shown and "up a begins" not in desk.order


def test_without_a_change_nothing_is_asked_and_nothing_done(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, preview='changes = {"same": 3}')
    status, shown = run(desk, capsys, "up", "--all")
    assert status == 0 and "nothing to change" in shown and desk.order == ["preview a begins", "preview a ends"]


def test_options_reach_every_run(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    run(desk, capsys, "up", "--stack", "a", "--yes", "--refresh", "--policy-pack", "policies")
    begun = [call["arguments"] for call in desk.calls if "began" in call]
    assert len(begun) == 2 and all("--refresh" in one and str(desk.folder / "policies") in one for one in begun)
    assert begun[1][:3] == ["up", "--yes", "--skip-preview"] and "--non-interactive" in begun[0]


# -- one fails ---------------------------------------------------------------------------------------------------------------------
def test_one_that_fails_stops_no_other_and_its_output_is_kept(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up='print("all of it"); ' + REFUSAL)
    desk.stack("b", "192.0.2.1", OTHER_KEY)
    status, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    assert status == 1 and desk.order[-1] == "up b ends" and "failed: a card" in shown and "2 created" in shown
    (kept,) = (desk.folder / "tmp").glob("*/*")
    assert kept.read_text() == "all of it\n" and f"Its whole output: {kept}" in shown


def test_one_that_is_killed_says_so(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up="os.kill(os.getpid(), signal.SIGKILL)")
    status, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    assert status == 1 and "ended by the signal 9" in shown and "pulumi cancel --stack a" in shown


# -- bad input: one clear error before anything ---------------------------------------------------------------------------------------
def nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.folder / "logged-out").touch()


def no_passphrase(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE")


def no_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", "none")


def no_stack(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.folder / "stacks").write_text("")


def no_cli(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def a_folder(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.folder / "Pulumi.b.yaml").mkdir()
    (desk.folder / "stacks").write_text("a b")


INPUT = {
    "nobody is logged in": (nobody, "a backend that Pulumi is logged in to"),
    "no passphrase": (no_passphrase, "the passphrase of a"),
    "the passphrase's file is none": (no_file, "PULUMI_CONFIG_PASSPHRASE_FILE"),
    "no stack": (no_stack, "not a stack yet"),
    "no CLI": (no_cli, "Pulumi's CLI"),
    "a file that is none": (a_folder, "Pulumi.b.yaml"),
}


@pytest.mark.parametrize("case", INPUT)
def test_bad_input_is_one_clear_error_before_anything(
    case: str, desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    make, said = INPUT[case]
    make(desk, monkeypatch)
    status, shown = run(desk, capsys, "up", "--all", "--yes")
    assert status == 2 and said in shown and shown.count("wanted:") == 1 and desk.order == []
    assert list((desk.folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "--stack", "a"],
        ["--all", "--parallel", "0"],
        ["--all", "--parallel", "many"],
        ["--all", "--skip-preview"],
        ["--stack", "$(reboot)"],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["up", *arguments])
    assert end.value.code == 2 and desk.calls == []


# -- interrupted ----------------------------------------------------------------------------------------------------------------------
# One step is done, the next is under way; an interruption ends it after that, in good order.
SLOW = """
step("one"); step("one", "resOutputsEvent"); step("two")
(fake / (stack + ".busy")).touch()
wait(stack + ".interrupted")
fail("update canceled")
"""


def signals(desk: Desk) -> list[str]:
    return [call["stack"] for call in desk.calls if "signal" in call]


def when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Does something as soon as it holds, beside a run in this process."""

    def wait() -> None:
        wait_until(condition, PATIENCE)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def busy(desk: Desk, *stacks: str) -> bool:
    return all((desk.folder / f"{stack}.busy").exists() for stack in stacks)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_reaches_each_run_once_and_each_says_where_it_stands(
    name: str, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up=SLOW)
    desk.stack("b", "192.0.2.2", RSA, up=SLOW)
    desk.stack("c", "192.0.2.2", RSA)
    when(lambda: busy(desk, "a", "b"), lambda: os.kill(os.getpid(), getattr(signal, name)))
    status, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    assert status == 130, shown
    assert sorted(signals(desk)) == ["a", "b"]
    for stack in "ab":
        assert f"{stack}: done: one" in shown and f"to go on from there: pulumi up --stack {stack}" in shown
    assert "perhaps done, since it was under way: two" in shown and "c: nothing was changed" in shown
    assert "up c begins" not in desk.order


def test_ctrl_c_in_a_terminal_whose_whole_group_gets_it_reaches_each_run_once(desk: Desk) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up=SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "homelab", "up", "--all", "--yes", "--skip-preview"],
        cwd=desk.folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: busy(desk, "a"), PATIENCE)
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and signals(desk) == ["a"] and "a: done: one" in shown, shown


def test_a_second_interruption_is_passed_on_too(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up=SLOW.replace('wait(stack + ".interrupted")', 'wait("twice")'))

    def twice() -> None:
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda number=number: len(signals(desk)) == number, PATIENCE)  # type: ignore[misc]
        (desk.folder / "twice").touch()

    when(lambda: busy(desk, "a"), twice)
    status, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    assert status == 130 and "Ctrl-C again ends it at once" in shown and "a: ends at once" in shown


def test_in_previews_an_interruption_changes_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, preview=SLOW)
    when(lambda: busy(desk, "a"), lambda: os.kill(os.getpid(), signal.SIGINT))
    status, shown = run(desk, capsys, "up", "--all", "--yes")
    assert status == 130 and "a: nothing was changed" in shown and "up a begins" not in desk.order


def test_a_reader_that_is_gone_ends_no_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    desk.stack("a", "192.0.2.1", OTHER_KEY, up='say("more")')
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["up", "--all", "--yes", "--skip-preview"]) == 0
    assert desk.order == ["up a begins", "up a ends"]


# -- what a person sees ------------------------------------------------------------------------------------------------------------------
def test_in_a_pipe_each_thing_that_happens_is_a_line(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY, up='step("pve-boot"); say("verified\\nmore"); say("\\x1b[2Jnoise")')
    _, shown = run(desk, capsys, "up", "--all", "--yes", "--skip-preview")
    lines = shown.splitlines()
    assert lines[:5] == ["a: up begins", "a: pve-boot: create", "a: verified", "a: noise", "a: 2 created"]
    assert "\x1b" not in shown


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def drawn(runs: list[Progress], columns: int, lines: int) -> list[str]:
    console = Console(width=columns, height=lines, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(board._drawn(runs, columns, lines))
    written: io.StringIO = console.file  # type: ignore[assignment]
    return visible(written.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("count", [1, 30])
def test_the_table_is_no_wider_and_no_higher_than_the_terminal(columns: int, count: int) -> None:
    runs = [Progress(f"stack-{number:02}-with-a-long-name", "pve (192.0.2.1)", "up") for number in range(count)]
    for one in runs:
        one.state, one.now, one.seconds = "waiting", "[bold]no markup[/] " * 20, 3725
    runs[-1].state = "running"
    lines = drawn(runs, columns, 24)
    assert len(lines) <= 24 and max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "runn" in text and ("Hosts" in text) is (columns >= 80)
    # Those at work are never among the rows that have no room.
    assert count == 1 or "and " in text


def test_in_a_terminal_there_is_one_table_and_one_question(desk: Desk) -> None:
    desk.stack("a", "192.0.2.1", OTHER_KEY)
    desk.stack("b", "192.0.2.2", RSA)
    terminal = desk.terminal(100, "up", "--all")
    terminal.expect("Do this")
    live = visible(str(terminal.before))
    terminal.send("y\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0, live
    assert "State" in live and "2 to create" in live and "a: preview begins" not in live
    assert desk.order[-1].startswith("up") and "2 created" in visible(str(terminal.before))


def test_in_a_terminal_the_passphrase_is_asked_for_once_and_not_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE")
    desk.stack("a", "192.0.2.1", OTHER_KEY, preview='changes = {"same": 3}')
    desk.stack("b", "192.0.2.2", RSA, preview='changes = {"same": 3}')
    terminal = desk.terminal(100, "up", "--all")
    terminal.expect("Passphrase of a, b")
    terminal.send("offen\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0 and "offen" not in visible(str(terminal.before))
    assert {call["passphrase"] for call in desk.calls if "began" in call} == {"offen"}
