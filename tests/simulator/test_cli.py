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
from tests.simulator.ssh_kit import openssh
from tests.waiting import PATIENCE, wait_until

REPOSITORY = Path(__file__).parents[2]


def _namespaces() -> bool:
    """Whether this machine gives some, to root or to users."""
    found = (subprocess.run(["unshare", *options, "true"], capture_output=True) for options in (["-mp"], ["-Ump"]))
    return any(done.returncode == 0 for done in found)


NEEDS_NAMESPACES = pytest.mark.skipif(not _namespaces(), reason="without namespaces `python -m lab run` runs nothing")


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
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


@NEEDS_NAMESPACES
def test_run_passes_output_and_exit_status_on(state: Path) -> None:
    done = cli("run", "--state", str(state), "--", 'echo "$HOMELAB_ROOT"; exit 9')
    assert (done.stdout.strip(), done.returncode) == (str(state / "root"), 9)


@NEEDS_NAMESPACES
def test_run_keeps_the_arguments_of_a_command_apart(state: Path) -> None:
    done = cli("run", "--state", str(state), "--", "printf", "<%s>", "a b", "$HOMELAB_ROOT")
    assert done.stdout == "<a b><$HOMELAB_ROOT>"


def run(state: Path, text: str, *before: str) -> subprocess.CompletedProcess[str]:
    """What a person's command does; ``before``: what runs the command line."""
    return subprocess.run(
        [*before, sys.executable, "-m", "lab", "run", "--state", str(state), "--", text],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# As in a container: a root that may not mount, who gets a namespace of users.
LESS_ROOT = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
NEEDS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="root alone can give up a right of root's")
BOTH = pytest.mark.parametrize(
    "before", [pytest.param((), id="own"), pytest.param(LESS_ROOT, id="less-root", marks=NEEDS_ROOT)]
)


@BOTH
@NEEDS_NAMESPACES
def test_a_command_sees_the_labs_files_where_a_host_has_them(state: Path, before: tuple[str, ...]) -> None:
    done = run(
        state,
        "cat /etc/hostname; touch /etc/modprobe.d/mine.conf; cd /sys/bus/pci && uname -r; wc -l < <(echo); awk 'BEGIN { print 2 }'",
        *before,
    )
    assert done.stdout.split() == ["pve", "6.17.2-1-pve", "1", "2"], done.stderr
    written = state / "root/etc/modprobe.d/mine.conf"
    assert written.exists()
    written.unlink()


@BOTH
@NEEDS_NAMESPACES
def test_a_command_sees_what_the_lab_has_of_proc(state: Path, before: tuple[str, ...]) -> None:
    """Each file, those that the kernel has as links or hasn't, and processes: a command that reads one can't take this machine for the host."""
    proc = state / "root/proc"
    files = [
        one.relative_to(proc).as_posix() for one in sorted(proc.rglob("*")) if one.is_file() and "self" not in one.parts
    ]
    static = [one for one in files if one != "uptime" and "/fd/" not in one]
    assert {"cmdline", "mounts", "modules", "net/route", "sys/kernel/osrelease"} <= {*static}
    done = run(state, "".join(f"cat /proc/{one}; echo ==; " for one in static), *before)
    assert done.stdout.split("==\n")[:-1] == [(proc / one).read_text() for one in static], done.stderr


@BOTH
@NEEDS_NAMESPACES
def test_a_command_sees_proc_as_it_is_by_then_and_itself(state: Path, before: tuple[str, ...]) -> None:
    new = "cp $HOMELAB_ROOT/proc/modules $HOMELAB_ROOT/tmp/old; echo mine >$HOMELAB_ROOT/proc/new && mv $HOMELAB_ROOT/proc/new $HOMELAB_ROOT/proc/modules"
    done = run(
        state,
        f"{new}; cat /proc/modules; mv $HOMELAB_ROOT/tmp/old $HOMELAB_ROOT/proc/modules; read -r x </proc/self/comm && echo $x",
        *before,
    )
    assert done.stdout.split() == ["mine", "bash"], done.stderr
    done = run(state, "shopt -s nullglob; echo /proc/self/fd/[0-2] /proc/stat; : >/proc/cmdline", *before)
    assert done.stdout.split() == [f"/proc/self/fd/{number}" for number in range(3)] + ["/proc/stat"]
    assert "Read-only file system" in done.stderr


@BOTH
@NEEDS_NAMESPACES
def test_a_command_can_write_nothing_of_this_machine(state: Path, tmp_path: Path, before: tuple[str, ...]) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for path in (str(mine), str(REPOSITORY / "README.md"), "/usr/bin/env", "/proc/sys/kernel/hostname"):
        done = run(state, f"{{ : >>{path}; }} 2>&1 && echo written", *before)
        assert "Read-only file system" in done.stdout and "written" not in done.stdout, (path, done.stdout)
    gone = run(
        state,
        f"rm -rf {tmp_path}/mine 2>&1; /bin/mount -o remount,rw / 2>&1; /bin/umount /etc 2>&1; : >>{mine}",
        *before,
    )
    assert gone.returncode != 0 and mine.read_text() == "mine"


@BOTH
@NEEDS_NAMESPACES
def test_a_command_reaches_no_device_and_no_process_of_this_machine(state: Path, before: tuple[str, ...]) -> None:
    """bash's own tests and globs: ls and test are the lab's."""
    done = run(
        state,
        f"shopt -s nullglob; echo $$ /dev/*; [[ -d /proc/{os.getpid()} ]] && echo seen; [[ -S /run/docker.sock ]]",
        *before,
    )
    shown = {"fd", "full", "null", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert done.stdout.split()[0] == "1" and {Path(one).name for one in done.stdout.split()[1:]} <= shown, done.stdout
    assert done.returncode == 1


@NEEDS_NAMESPACES
def test_breaking_things_is_the_labs_alone(state: Path) -> None:
    lab = Lab.open(state)
    mark = lab.mark()
    assert run(state, "rm -rf /etc/default/grub.d /home/* /opt/*; update-grub && reboot").returncode == 0
    lab.wait_settled()
    assert not (state / "root/etc/default/grub.d").exists() and Path("/etc/passwd").exists()
    assert len(lab.boots(since=mark)) == 1
    lab.reset()


@NEEDS_ROOT
@NEEDS_NAMESPACES
def test_where_there_are_no_namespaces_nothing_is_run(state: Path, tmp_path: Path) -> None:
    """In a namespace of users that may have no other, as root without the right to mount."""
    without = (
        'echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"'
    )
    done = run(state, f"touch {state}/root/tmp/ran", "unshare", "-Ur", "bash", "-c", without, "bash")
    assert done.returncode == 1 and "namespaces of its own" in done.stderr and "--unprotected" in done.stderr, (
        done.stderr
    )
    assert not (state / "root/tmp/ran").exists()


def test_a_fault_is_set_and_cleared(state: Path) -> None:
    assert cli("fault", "--state", str(state), "hang-seconds", "2").returncode == 0
    assert Lab.open(state).machine.faults == {"hang-seconds": 2}
    assert cli("fault", "--state", str(state), "hang-seconds", "null").returncode == 0
    assert Lab.open(state).machine.faults == {}


def test_reset_makes_the_host_stock_again(state: Path) -> None:
    (state / "root/etc/new").write_text("new")
    done = cli("reset", "--state", str(state), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["phase"] == "up"
    assert not (state / "root/etc/new").exists()


def test_log_tells_boots_connections_and_commands_in_their_order(state: Path) -> None:
    lab = Lab.open(state)
    # A VM that starts with the host has its own time.
    wait_until(lambda: [one["at"] for one in lab.guest_boots(103)][-1:] > [one["at"] for one in lab.boots()][-1:])
    with openssh(lab.connection, "exit 3") as client:
        client.wait()
    lines = cli("log", "--state", str(state)).stdout.splitlines()
    kinds = [line.split()[1] for line in lines]
    assert kinds[0] == "boots"
    assert kinds[-2:] == ["connections", "commands"]
    assert '"exit": 3' in lines[-1]
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
    cli("stop", "--state", str(state))
    subprocess.run(
        [sys.executable, "-m", "lab", "start", "--state", str(state)],
        cwd=REPOSITORY,
        close_fds=False,
        stdout=writer,
        check=True,
        timeout=PATIENCE,
    )
    os.close(writer)
    with os.fdopen(reader) as output:
        assert "up" in output.read()  # ends only when nobody holds the other end


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
