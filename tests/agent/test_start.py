"""The agent as a host runs it: put there, compared, started, limited; and what comes of requests that it can't do."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from subprocess import PIPE

import pytest

from homelab.remote import agent
from homelab.remote.scripts import FOLDER
from lab.host.state import of_root
from remote_scripts import agent as remote_agent
from remote_scripts import put_agent
from remote_scripts.both.card_values import Value, Wanted
from remote_scripts.both.stack_folder import Wanted as StackFolder
from remote_scripts.notes import kept_agents
from remote_scripts.tools import boot_service, modules
from remote_scripts.tools.system import System
from tests import sent_along
from tests.agent.kit import Host, ask_in_memory, bash, command, held
from tests.rows import rows
from tests.waiting import PATIENCE

OWNER = "homelab-lab"
AWAKE = Wanted(values=(Value(address="0000:01:00.0", id="10de:2b85", attribute="d3cold_allowed", value="0"),))


def put_by_bash(host: Host) -> Path:
    done = bash(host, agent.command_to_put("root"), agent.put(OWNER))
    assert done.returncode == 0, done.stdout + done.stderr
    return host.root / agent.place(OWNER)[1:]


@functools.cache
def _put() -> bytes:
    """What is there then: its bytecode takes most of that time."""
    with tempfile.TemporaryDirectory() as place:
        return put_by_bash(Host(Path(place))).read_bytes()


def put(host: Host) -> Path:
    return host.write(agent.place(OWNER), _put(), 0o600)


def run(host: Host, verb: str, text: str) -> subprocess.CompletedProcess[str]:
    return bash(host, agent.command(verb, "root", OWNER), text)


def begun(line: str, **environment: str) -> subprocess.Popen[str]:
    """A command line that goes on."""
    return subprocess.Popen(["bash", "-c", line], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment)


def awake(host: Host) -> str:
    return host.read("/sys/bus/pci/devices/0000:01:00.0/d3cold_allowed").strip()


@pytest.fixture(autouse=True)
def card(host: Host) -> None:
    host.function("0000:01:00.0", "0x030000", "10de:2b85", d3cold_allowed="1\n")


def test_it_is_put_there_and_does_what_it_is_asked_and_gives_it_back(host: Host) -> None:
    assert put_by_bash(host).stat().st_mode & 0o777 == 0o600
    request = agent.request("card_values", AWAKE, seconds=60)
    assert json.loads(run(host, "apply", request).stdout) == {"changed": True} and awake(host) == "0"
    assert json.loads(run(host, "revert", request).stdout) == {"changed": True} and awake(host) == "1"


def test_sent_along_it_answers_and_leaves_nothing(host: Host) -> None:
    before = host.tree()
    done = ask_in_memory(host, "plan", agent.request("card_values", AWAKE))
    assert [file["how"] for file in json.loads(done.stdout)["files"]] == ["new", "changed"], done.stderr
    assert host.tree() == before and not (host.root / "run/homelab").exists()


def kept_agents_answer(host: Host) -> subprocess.CompletedProcess[str]:
    """To a session that has not sent the agent along."""
    return bash(host, agent.command_in_memory("root"), agent.asked("plan", agent.request("card_values", AWAKE)))


def test_one_that_another_stack_keeps_there_answers_a_session_and_writes_nothing(host: Host) -> None:
    host.write("/var/lib/homelab/agents/another-stack/agent.pyz", "an older one")
    host.write("/var/lib/homelab/agents/none", "a file")
    put(host)
    before = host.tree()
    done = kept_agents_answer(host)
    assert [file["how"] for file in json.loads(done.stdout)["files"]] == ["new", "changed"], done.stderr
    assert host.tree() == before


def test_of_the_agents_that_stacks_keep_those_that_are_whole_have_a_version(host: Host) -> None:
    def kept() -> dict[str, str]:
        files = System(host.root).files
        return kept_agents.versions(files, files.names(kept_agents.FOLDER))

    assert kept() == {}
    file = put(host)
    host.write("/var/lib/homelab/agents/another-stack/agent.pyz", "an older one")
    host.write("/var/lib/homelab/agents/without-one/file", "")
    host.write("/var/lib/homelab/agents/none", "a file")
    others = {"another-stack": "", "without-one": ""}
    assert kept() == {OWNER: agent.version(), **others}
    file.write_bytes(file.read_bytes()[:-1])
    assert kept() == {OWNER: "", **others}


@pytest.mark.parametrize("kept", ["none", "of another version", "a byte", "cut short", "empty"])
def test_a_session_is_asked_for_the_agent_where_none_of_its_version_is_whole(host: Host, kept: str) -> None:
    if kept != "none":
        file = put(host)
        content = file.read_bytes()
        middle = len(content) // 2
        older = content[:-80] + b"0" * 16
        file.write_bytes(
            {
                "of another version": older + hashlib.sha256(older).hexdigest().encode(),
                "a byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "cut short": content[:-1],
                "empty": b"",
            }[kept]
        )
    before = host.tree()
    assert kept_agents_answer(host).stdout.startswith(agent.WANTS_AGENT.decode())
    request = agent.request("card_values", AWAKE)
    assert json.loads(ask_in_memory(host, "plan", request).stdout)["files"] and host.tree() == before


def test_one_that_has_not_come_whole_does_nothing(host: Host) -> None:
    text = sent_along.text("apply", agent.request("card_values", AWAKE))
    before = host.tree()
    for length in (len(text) - 1, len(text) - 5, len(text) // 2):
        done = bash(host, agent.command_in_memory("root"), text[:length])
        assert done.returncode == 1 and "before all of the agent had come" in done.stderr
    assert host.tree() == before


def test_requests_sent_along_together_are_answered_in_lines_until_one_fails(host: Host) -> None:
    plan, wrong = agent.request("card_values", AWAKE), agent.request("card_values", AWAKE).replace('"address"', '"v"')
    done = ask_in_memory(host, "plan", plan, plan, wrong, plan)
    first, second, *rest = done.stdout.splitlines()
    assert first == second and json.loads(first)["files"]
    assert done.returncode == 1 and rest[0].startswith("wanted: ") and len(rest) == 4


@pytest.mark.parametrize("damage", ["cut short", "a byte", "bytecode", "nothing left"])
def test_one_that_isnt_what_was_put_there_does_nothing(host: Host, damage: str) -> None:
    file = put(host)
    content = file.read_bytes()
    middle = content.index(b"d3cold_allowed") if damage == "bytecode" else len(content) // 2
    changed = {"cut short": content[:-100], "nothing left": b""}.get(damage)
    file.write_bytes(
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if changed is None else changed
    )
    before = host.tree()
    done = run(host, "apply", agent.request("card_values", AWAKE))
    assert done.returncode != 0 and host.tree() == before
    if damage in ("a byte", "bytecode"):
        assert "it isn't what was put there" in done.stdout and "pulumi up --refresh" in done.stdout


def test_one_that_is_missing_is_said_and_there_is_nothing_to_give_back_on_a_host_without_notes(host: Host) -> None:
    request = agent.request("card_values", AWAKE)
    done = run(host, "apply", request)
    said = f"{agent.place(OWNER)} is missing or empty: run pulumi up --refresh, then the same again"
    assert done.returncode == 1 and said in done.stdout
    assert run(host, "revert", request).returncode == 0
    host.write("/var/lib/homelab/note", "")
    assert run(host, "revert", request).returncode == 1


def test_what_pulumi_command_quotes_of_a_step_that_fails_is_short() -> None:
    """Its message comes after that."""
    assert all(len(agent.command(verb, "root", "homelab-0123456789")) < 290 for verb in ("apply", "revert"))


@pytest.mark.parametrize(
    "left", ["all", "no agent", "no Python", "an empty folder", "an empty folder of folders", "nothing"]
)
def test_the_last_undoing_takes_the_agent_away_also_after_one_that_was_cut_short(
    host: Host, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.tree()
    agent_there = put(host)
    other = host.write(f"{agent.place('homelab-two')}", "another stack's") if left == "no agent" else None
    (agent_there.parent / "confirm_boot.sh.0123456789abcdef").write_text("text")
    match left:
        case "no agent":
            agent_there.unlink()
        case "an empty folder":
            shutil.rmtree(agent_there.parent)
            agent_there.parent.mkdir()
        case "an empty folder of folders":
            shutil.rmtree(agent_there.parent)
        case "nothing":
            shutil.rmtree(agent_there.parents[2])
    request = agent.request("stack_folder", StackFolder(owner=OWNER), seconds=60)
    if left == "no Python":  # NVIDIA's stack had brought it into a VM, and has taken it away
        monkeypatch.setattr(boot_service, "PYTHON", "/nowhere/python3 -I")
    for _ in "once", "more":
        done = bash(host, agent.command("revert", "root", OWNER, is_last=True), request)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not agent_there.parent.exists()
    if other:
        assert other.read_text() == "another stack's"
        shutil.rmtree(other.parents[2])
    assert host.tree() == before


def test_an_older_programs_request_is_refused_but_for_what_gives_back(host: Host) -> None:
    put(host)
    request = agent.request("card_values", AWAKE)
    assert run(host, "apply", request).returncode == 0
    older = request.replace(agent.code_of("card_values"), "0" * 16)
    done = run(host, "apply", older)
    assert done.returncode == 1 and "the one that lies on this system has" in done.stdout and awake(host) == "0"
    assert run(host, "revert", older).returncode == 0 and awake(host) == "1"


@pytest.mark.parametrize(
    ("verb", "text", "found"),
    [
        ("apply", "", "Expecting value"),
        ("apply", '{"layer": "nothing", "input": {}}', "no layer 'nothing'"),
        ("apply", '{"layer": "card_values", "input": {"values": [{}]}}', "input.values[0]: address is missing"),
        ("apply", '{"layer": "card_values", "input": {"values": 1}}', "input.values: "),
        ("apply", '{"layer": "../x", "input": {}}', "no layer '../x'"),
        ("apply", "[" * 100_000, "recursion"),
        ("eat", '{"layer": "card_values", "input": {}}', "the arguments ['eat']"),
    ],
)
def test_what_it_cant_understand_changes_nothing(host: Host, verb: str, text: str, found: str) -> None:
    put(host)
    before = host.tree()
    done = run(host, verb, text)
    assert done.returncode == 1 and found in done.stdout and "Traceback" not in done.stderr
    assert host.tree() == before


def test_a_step_that_hangs_is_killed_at_its_time_and_says_so(host: Host) -> None:
    put(host)
    lock = held(host)
    began = time.monotonic()
    done = run(host, "apply", agent.request("card_values", AWAKE, seconds=1))
    assert done.returncode == 1 and "this step done within 1 s" in done.stdout
    assert time.monotonic() - began < 30 and awake(host) == "1"
    lock.close()


#: A process that ends by no signal, as one that waits for a share that is gone.
HANGS = """
import os, sys, time
from remote_scripts import agent
agent._LAST_SECONDS = 0.2
os.kill = os.killpg = lambda *_: None
fork = os.fork
def forks():
    child = fork()
    if child:
        print(child, file=sys.stderr, flush=True)
    return child
os.fork = forks
os._exit(agent._limited(2, lambda: time.sleep(600)))
"""


def test_what_no_signal_ends_is_waited_for_by_nobody() -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", HANGS], cwd=FOLDER.parent, stdout=PIPE, stderr=PIPE, text=True)
    assert process.stdout and process.stderr
    child = int(process.stderr.readline())
    try:
        assert process.wait(PATIENCE) == 1 and time.monotonic() - began < 30
        assert "it was killed" in process.stdout.read()  # to its end: sshd, which reads it, isn't kept
    finally:
        os.kill(child, signal.SIGKILL)
        with process:
            pass


def test_no_answer_of_a_layer_moves_a_terminals_cursor(host: Host) -> None:
    """Names of guests, of files and of programs are whatever somebody has made them."""
    layer = types.ModuleType("layer")
    said = {"a\x1b[2Jb": ["c\x1b]0;d\x07e\u202ef\udcff", 1, None]}
    vars(layer).update(Wanted=StackFolder, read=lambda _system, _wanted: said)
    request = remote_agent.Request(layer="layer", input={"owner": OWNER})
    status, text = remote_agent.answered(host.system(), "read", request, layer)
    assert (status, json.loads(text)) == (0, {"ab": ["ce\ufffdf\ufffd", 1, None]})


def test_a_client_that_goes_leaves_it_at_work(host: Host) -> None:
    put(host)
    lock = held(host)
    line = f"exec {boot_service.PYTHON} {host.root}{agent.place(OWNER)} apply"
    process = begun(line, HOMELAB_ROOT=str(host.root), ROOT="/of/its/owner")
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(agent.request("card_values", AWAKE, seconds=60))
    process.stdin.close()
    process.stderr.readline()  # it waits for the lock
    for stream in (process.stdout, process.stderr):
        stream.close()
    for number in (signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    lock.close()
    assert process.wait(PATIENCE) == 0 and awake(host) == "0"


def test_a_run_that_has_ended_has_no_step_waiting(host: Host) -> None:
    put(host)
    lock = held(host)
    host.write("/run/homelab/up", "somebody\n")
    process = begun(agent.command("apply", "root", OWNER), **of_root(host.root), PATH=os.environ["PATH"])
    assert process.stderr and process.stdin and process.stdout
    process.stdin.write(agent.request("card_values", AWAKE, seconds=600))
    process.stdin.close()
    assert "waiting for another run" in process.stderr.readline()
    host.write("/run/homelab/up", "somebody, and was cancelled\n")
    assert "it has ended, or was cancelled" in process.stdout.read()
    with process:
        assert process.wait(PATIENCE) == 1
    assert awake(host) == "1"
    lock.close()


def test_a_python_that_is_too_old_is_refused_before_anything_is_written(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.tree()
    monkeypatch.setattr(put_agent, "OLDEST", (99, 0))
    with pytest.raises(SystemExit):
        put_agent.put("/var/lib/homelab/agents/x/agent.pyz", "")
    assert "Python 99.0 or later" in capsys.readouterr().out and host.tree() == before


def test_each_folder_that_is_made_for_it_lasts(host: Host) -> None:
    tells = 'import os; os.fsync = lambda descriptor: print(os.readlink(f"/proc/self/fd/{descriptor}"))\n'
    done = bash(host, agent.command_to_put("root"), tells + agent.put(OWNER))
    folders = ["lib", "lib/homelab", "lib/homelab/agents", f"lib/homelab/agents/{OWNER}"]
    assert {f"{host.root}/var/{folder}" for folder in folders} <= {*done.stdout.split()}


def test_a_full_disk_leaves_the_agent_that_was_there(host: Host) -> None:
    file = put(host)
    content = file.read_bytes()
    limit = f"ulimit -f {len(content) // 2048}; trap '' XFSZ; {agent.command_to_put('root')}"
    done = bash(host, limit, agent.put(OWNER))
    assert done.returncode == 1 and "it can't be written" in done.stdout
    assert file.read_bytes() == content and [one.name for one in file.parent.iterdir()] == ["agent.pyz"]


def test_a_layer_is_run_again_when_what_it_imports_has_changed_and_no_other() -> None:
    modules = agent.modules_of("remote_scripts.layers.card_values")
    assert {"remote_scripts.tools.files", "remote_scripts.tools.disk", "remote_scripts.both.card_values"} <= modules
    assert not {"remote_scripts.put_agent", "remote_scripts.both.cmdline"} & modules


@pytest.mark.parametrize("changed", [0, 1])
def test_a_layer_is_run_again_when_what_its_tables_are_made_of_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: int
) -> None:
    assert agent._TABLES in agent.modules_of("remote_scripts.layers.nvidia_packages")
    files = list(agent._MADE_OF)
    (tmp_path / "changed").write_bytes(files[changed].read_bytes() + b"\n# more\n")
    files[changed] = tmp_path / "changed"
    before = agent._digest(agent._TABLES)
    monkeypatch.setattr(agent, "_MADE_OF", files)
    assert agent._digest.__wrapped__(agent._TABLES) != before


@rows("file", sorted(path.relative_to(FOLDER.parent) for path in FOLDER.rglob("*.py")), ids=str)
def test_imports_are_read_as_python_reads_them_and_are_of_the_package_or_the_standard_library(file: Path) -> None:
    text = (FOLDER.parent / file).read_text(encoding="utf-8")
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    assert {name.partition(".")[0] for name in names} <= {modules.PACKAGE, *sys.stdlib_module_names}
    of_package = {name for name in names if name.partition(".")[0] == modules.PACKAGE}
    assert modules.imported(text) == set(filter(modules.is_module, of_package))


@pytest.mark.parametrize(
    "statement",
    [
        "from remote_scripts.tools import (\n    disk,  # what (it) is\n    files as kept,\n)",
        "from remote_scripts.tools import disk, files",
        "if True:\n    from remote_scripts.tools.disk import put\n    import remote_scripts.tools.files",
        "import remote_scripts.tools.disk as disk\nfrom remote_scripts.tools import files  # the rest",
    ],
)
def test_an_import_is_found_in_each_form(statement: str) -> None:
    assert modules.imported(f"import os\n{statement}\n") == {"remote_scripts.tools.disk", "remote_scripts.tools.files"}


def test_another_user_needs_leave_for_bash_alone(host: Host) -> None:
    """docs/settings.md asks for no more."""
    sudo = '[ "$1 $2" = "-n bash" ] || { echo "a password is required" >&2; exit 1; }\nshift\nexec "$@"'
    command(host, "sudo", sudo)
    assert bash(host, agent.command_to_put("admin"), agent.put(OWNER)).returncode == 0
    request = agent.request("card_values", AWAKE)
    assert bash(host, agent.command("apply", "admin", OWNER), request).returncode == 0 and awake(host) == "0"
    done = bash(host, agent.command_in_memory("admin"), sent_along.text("plan", request))
    assert json.loads(done.stdout) == {"files": []}
