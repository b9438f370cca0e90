"""`python -m lab`: what it prints, its exit status, and what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab

REPOSITORY = Path(__file__).parents[2]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a lab that `start` has started."""
    folder = tmp_path_factory.mktemp("cli") / "lab"
    done = cli("start", "--state", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    yield folder
    cli("stop", "--state", str(folder))


def test_start_prints_how_to_reach_the_host(state: Path) -> None:
    done = cli("start", "--state", str(state), "--json")
    status = json.loads(done.stdout)
    assert done.returncode == 0
    assert "already running" in done.stderr
    assert status["phase"] == "up"
    assert status["ssh"] == Lab.open(state).connection
    assert Path(status["ssh"]["privateKeyFile"]).stat().st_mode & 0o777 == 0o600
    assert status["ssh"]["hostKey"].startswith("ssh-ed25519 ")


def test_the_ssh_command_that_status_prints_works(state: Path) -> None:
    done = cli("status", "--state", str(state))
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.strip().startswith("ssh ")]
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    command = line.replace("ssh ", f"ssh {options} ", 1).replace("<command>", "'echo $USER; exit 5'")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("root\n", 5)


def test_status_of_a_lab_that_isnt_there_says_so(tmp_path: Path) -> None:
    done = cli("status", "--state", str(tmp_path), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"running": False, "phase": "absent"}


def test_stop_is_idempotent_and_a_start_finds_the_host_as_it_was(tmp_path: Path) -> None:
    state = str(tmp_path / "lab")
    assert cli("stop", "--state", state).returncode == 0
    first = json.loads(cli("start", "--state", state, "--json").stdout)
    (tmp_path / "lab/root/etc/kept").write_text("kept")
    for _ in range(2):
        assert cli("stop", "--state", state).returncode == 0
        assert cli("status", "--state", state).returncode == 3
    second = json.loads(cli("start", "--state", state, "--json").stdout)
    cli("stop", "--state", state)
    assert first["ssh"] == second["ssh"]
    assert (tmp_path / "lab/root/etc/kept").exists()


def test_run_passes_output_and_exit_status_on(state: Path) -> None:
    done = cli("run", "--state", str(state), "--", 'echo "$ROOT"; exit 9')
    assert (done.stdout.strip(), done.returncode) == (str(state / "root"), 9)


def test_run_keeps_the_arguments_of_a_command_apart(state: Path) -> None:
    done = cli("run", "--state", str(state), "--", "printf", "<%s>", "a b", "$ROOT")
    assert done.stdout == "<a b><$ROOT>"


def test_a_fault_is_set_and_cleared(state: Path) -> None:
    assert cli("fault", "--state", str(state), "hang-seconds", "2").returncode == 0
    assert Lab.open(state).machine.faults == {"hang-seconds": 2}
    assert cli("fault", "--state", str(state), "hang-seconds", "null").returncode == 0
    assert Lab.open(state).machine.faults == {}


def test_rebind_moves_a_function_to_a_driver(state: Path) -> None:
    assert cli("rebind", "--state", str(state), "0000:01:00.1", "none").returncode == 0
    assert not (state / "root/sys/bus/pci/devices/0000:01:00.1/driver").exists()


def test_reset_makes_the_host_stock_again(state: Path) -> None:
    (state / "root/etc/new").write_text("new")
    done = cli("reset", "--state", str(state), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["phase"] == "up"
    assert not (state / "root/etc/new").exists()


def test_log_tells_boots_connections_and_commands_in_their_order(state: Path) -> None:
    connection = Lab.open(state).connection
    options = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-F/dev/null"]
    target = ["-i", connection["privateKeyFile"], "-p", str(connection["port"]), "root@127.0.0.1"]
    subprocess.run(["ssh", *options, *target, "exit 3"], stdin=subprocess.DEVNULL, check=False)
    lines = cli("log", "--state", str(state)).stdout.splitlines()
    kinds = [line.split()[1] for line in lines]
    assert kinds[0] == "boot"
    assert kinds[-2:] == ["connection", "command"]
    assert "exit 3" in lines[-1]
    events = json.loads(cli("log", "--state", str(state), "--json").stdout)["events"]
    assert [event["log"] for event in events][-2:] == ["connections", "commands"]


def test_scenarios_are_listed_with_a_line_each() -> None:
    done = cli("scenarios")
    assert done.returncode == 0
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert listed["rtx5090"]
    assert json.loads(cli("scenarios", "--json").stdout).keys() == listed.keys()


@pytest.mark.parametrize("verb", ["reset", "log", "run", "fault"])
def test_a_verb_that_needs_a_lab_says_that_there_is_none(tmp_path: Path, verb: str) -> None:
    arguments = ["hang-seconds", "1"] if verb == "fault" else []
    done = cli(verb, "--state", str(tmp_path), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Unable to use the lab in {tmp_path}: wanted its lab.json, found none.")
    assert "Traceback" not in done.stderr


def test_a_start_that_fails_says_why_in_one_message(tmp_path: Path) -> None:
    done = cli("start", "--state", str(tmp_path / "lab"), "--scenario", "no-such-scenario")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no-such-scenario" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_daemon_holds_nothing_of_its_starter(state: Path) -> None:
    """`out=$(python -m lab start)` must come back: no descriptor of the caller's may stay open in the daemon."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    lab = Lab.open(state)
    cli("stop", "--state", str(state))
    subprocess.run(
        [sys.executable, "-m", "lab", "start", "--state", str(state)],
        cwd=REPOSITORY,
        close_fds=False,
        stdout=writer,
        check=True,
        timeout=120,
    )
    os.close(writer)
    with os.fdopen(reader) as output:
        assert "up" in output.read()  # ends only when nobody holds the other end
    pid = lab.status()["pid"]
    session = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[3]
    assert int(session) not in (pid, os.getsid(0))
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/"


def test_status_and_the_client_dont_import_what_only_the_daemon_needs() -> None:
    heavy = "{'asyncssh', 'pydantic', 'yaml', 'asyncio', 'lab.machine', 'lab.server'}"
    program = (
        "import sys, runpy, contextlib\n"
        "from lab import Lab\n"
        "sys.argv = ['lab', 'status', '--state', '/nonexistent']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('lab', run_name='__main__')\n"
        f"print(sorted({heavy} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
