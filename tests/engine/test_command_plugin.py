"""The plugin of pulumi-command in what no recording shows. Each test is true for the stand-in and for the real one (1.2.1, built from its tag),
and runs against both where both are there: what the program may rely on, and what it must not."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from lab.engine import install
from tests import agent_kit
from tests.engine.plugin_process import UNKNOWN, Json, LogLine, Plugin
from tests.engine.ssh_host import PASSWORD, SshHost, refusing_port
from tests.waiting import PATIENCE, wait_until

REMOTE = "command:remote:Command"
COPY = "command:remote:CopyToRemote"
LOCAL = "command:local:Command"
LONGER_THAN_A_SECOND = 1.5
"""Seconds. What has a limit of one second and goes on after that has none."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For calls that go on while the test looks on."""
    with ThreadPoolExecutor() as pool:
        yield pool


def progress(plugin: Plugin) -> set[str]:
    """What was logged as progress: shown only while it is the latest."""
    return {line.message for line in plugin.log.lines() if line.ephemeral}


# --- connecting ---


def test_the_error_limit_is_the_number_of_failures_that_are_forgiven(plugin: Plugin, host: SshHost) -> None:
    connection = host.connection(privateKey=None, password="wrong", dialErrorLimit=2)
    failed = plugin.create(REMOTE, {"connection": connection, "create": "true"})
    assert "after 2 failed attempts" in failed.failure
    assert len(host.connections) == 3
    assert progress(plugin) == {"Dial 1/2 failed: retrying", "Dial 2/2 failed: retrying"}


def test_an_error_limit_of_zero_tries_once(plugin: Plugin, host: SshHost) -> None:
    connection = host.connection(privateKey=None, password="wrong", dialErrorLimit=0)
    assert plugin.create(REMOTE, {"connection": connection, "create": "true"}).error
    assert len(host.connections) == 1


def test_no_error_limit_waits_for_a_host_that_is_booting(
    plugin: Plugin, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with SshHost(tmp_path, listen=False) as host:
        connection = host.connection(dialErrorLimit=-1)
        created = threads.submit(plugin.create, REMOTE, {"connection": connection, "create": "echo up"})
        plugin.log.wait_for("Dial 3/inf failed: retrying")
        host.listen()
        assert created.result(PATIENCE).properties["stdout"] == "up"


def test_a_host_that_accepts_and_says_nothing_is_waited_for_without_end(
    plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = host.connection(port=silent.getsockname()[1], perDialTimeout=1)
        created = threads.submit(plugin.create, REMOTE, {"connection": connection, "create": "true"})
        accepted, _ = silent.accept()
        with accepted:
            time.sleep(LONGER_THAN_A_SECOND)
            assert not created.done(), "perDialTimeout is for TCP alone"
        assert "ssh: handshake failed" in created.result(PATIENCE).failure


def test_the_host_key_decides_which_of_the_hosts_keys_is_asked_for(plugin: Plugin, host: SshHost) -> None:
    assert host.host_key.startswith("ssh-ed25519 "), "the host has an ecdsa key too, which comes first otherwise"
    created = plugin.create(REMOTE, {"connection": host.connection(), "create": "echo in"})
    assert created.properties["stdout"] == "in"


def test_an_rsa_host_key_is_asked_for_by_sha_1_alone(plugin: Plugin, host: SshHost) -> None:
    key = asyncssh.generate_private_key("ssh-rsa").export_public_key("openssh").decode().strip()
    failed = plugin.create(REMOTE, {"connection": host.connection(hostKey=key), "create": "true"})
    assert "offered: [ssh-rsa]" in failed.failure


def test_without_a_host_key_any_host_is_accepted(plugin: Plugin, host: SshHost) -> None:
    created = plugin.create(REMOTE, {"connection": host.connection(hostKey=None), "create": "echo in"})
    assert created.properties["stdout"] == "in"


def test_a_host_key_that_is_none_is_refused(plugin: Plugin, host: SshHost) -> None:
    failed = plugin.create(REMOTE, {"connection": host.connection(hostKey="SHA256:abc"), "create": "true"})
    assert failed.failure.endswith("failed to parse host key: ssh: no key found")
    assert not host.connections


def test_a_password_logs_in(plugin: Plugin, host: SshHost) -> None:
    connection = host.connection(privateKey=None, password=PASSWORD)
    assert plugin.create(REMOTE, {"connection": connection, "create": "echo in"}).properties["stdout"] == "in"


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen makes the encrypted key, and isn't there")
def test_an_encrypted_key_is_opened_with_its_password(plugin: Plugin, host: SshHost, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(host.private_key)
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "sesame", "-f", str(key)], check=True, capture_output=True)
    connection = host.connection(privateKey=key.read_text(), privateKeyPassword="sesame")
    assert plugin.create(REMOTE, {"connection": connection, "create": "echo in"}).properties["stdout"] == "in"
    locked = plugin.create(REMOTE, {"connection": connection | {"privateKeyPassword": "x"}, "create": "true"})
    assert "decryption password incorrect" in locked.failure


@pytest.mark.skipif(not shutil.which("ssh-agent"), reason="ssh-agent isn't there")
def test_an_agent_logs_in(plugin: Plugin, host: SshHost, tmp_path: Path) -> None:
    socket_path = tmp_path / "agent"
    key = tmp_path / "key"
    key.write_text(host.private_key)
    key.chmod(0o600)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.PIPE)
    try:
        assert agent.stdout
        assert agent.stdout.readline(), "the agent says where it listens once it does"
        subprocess.run(
            ["ssh-add", "-q", str(key)],
            env={"SSH_AUTH_SOCK": str(socket_path)},
            check=True,
            capture_output=True,
        )
        connection = host.connection(privateKey=None, agentSocketPath=str(socket_path))
        created = plugin.create(REMOTE, {"connection": connection, "create": "echo in"})
        assert created.properties["stdout"] == "in"
    finally:
        agent.kill()
        agent.communicate()


@pytest.mark.parametrize("fault", ["silent", "silent-signing"])
def test_an_agent_that_hangs_is_waited_for_without_end(
    plugin: Plugin, host: SshHost, tmp_path: Path, fault: str, threads: ThreadPoolExecutor
) -> None:
    key = asyncssh.import_private_key(host.private_key)
    with agent_kit.agent(tmp_path / "agent", key, fault):
        connection = host.connection(
            privateKey=None, agentSocketPath=str(tmp_path / "agent"), perDialTimeout=1, dialErrorLimit=0
        )
        created = threads.submit(plugin.create, REMOTE, {"connection": connection, "create": "true"})
        wait_until(lambda: bool(host.connections))
        time.sleep(LONGER_THAN_A_SECOND)
        assert not created.done()
    assert "ssh: handshake failed" in created.result(PATIENCE).failure


def test_an_agent_that_is_gone_fails_what_needs_none(plugin: Plugin, host: SshHost, tmp_path: Path) -> None:
    connection = host.connection(agentSocketPath=str(tmp_path / "gone"))
    failed = plugin.create(REMOTE, {"connection": connection, "create": "true"})
    assert f"dial unix {tmp_path}/gone: connect: no such file or directory" in failed.failure
    assert not host.connections, "it is no attempt, and isn't repeated"


# --- running on a host ---


def test_a_preview_opens_no_connection_and_knows_no_output(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "echo in"}
    created = plugin.create(REMOTE, inputs, preview=True)
    assert created.properties["stdout"] == UNKNOWN
    old = inputs | {"stdout": "before", "stderr": ""}
    updated = plugin.update(REMOTE, old, inputs | {"create": "echo other"}, preview=True)
    assert updated.properties["stdout"] == UNKNOWN
    assert not host.connections


def test_one_connection_per_command(plugin: Plugin, host: SshHost) -> None:
    plugin.create(REMOTE, {"connection": host.connection(), "create": "true"})
    assert len(host.connections) == 1
    assert not host.disconnected.is_set(), "it is closed with the plugin's process"


def test_nothing_to_create_opens_no_connection(plugin: Plugin, host: SshHost) -> None:
    created = plugin.create(REMOTE, {"connection": host.connection(), "delete": "true"})
    assert created.properties["stdout"] == ""
    assert not host.connections


def test_update_runs_update(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "echo made", "update": "echo changed"}
    old = inputs | {"stdout": "made", "stderr": ""}
    assert plugin.update(REMOTE, old, inputs).properties["stdout"] == "changed"
    assert host.commands == ["echo changed"]


def test_update_runs_create_when_there_is_no_update(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "echo again", "addPreviousOutputInEnv": False}
    old = inputs | {"stdout": "before", "stderr": ""}
    assert plugin.update(REMOTE, old, inputs).properties["stdout"] == "again"


def test_delete_gets_the_same_stdin(plugin: Plugin, host: SshHost) -> None:
    old = {
        "connection": host.connection(),
        "delete": "cat > undone",
        "stdin": "script",
        "stdout": "",
        "stderr": "",
    }
    assert plugin.delete(REMOTE, old).error is None
    assert (host.root / "undone").read_text() == "script"


def test_a_failing_delete_is_an_error(plugin: Plugin, host: SshHost) -> None:
    old = {"connection": host.connection(), "delete": "echo no >&2; exit 3", "stdout": "", "stderr": ""}
    failed = plugin.delete(REMOTE, old)
    assert failed.error == (
        'rpc error: code = Unknown desc = Process exited with status 3: running "echo no >&2; exit 3":\nno\n'
    )


def test_stdin_and_output_of_a_megabyte_pass_unchanged(plugin: Plugin, host: SshHost) -> None:
    text = "".join(f"{number:07d}\n" for number in range(131072))
    inputs = {"connection": host.connection(), "create": "cat", "stdin": text, "logging": "none"}
    created = plugin.create(REMOTE, inputs)
    assert created.properties["stdout"] == text[:-1]


def test_stdin_is_not_in_an_error(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "exit 1", "stdin": "hunter2"}
    failed = plugin.create(REMOTE, inputs)
    assert "hunter2" not in failed.failure


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        (None, ["to stdout", "unfinishedto stderr"]),
        ("stdoutAndStderr", ["to stdout", "unfinishedto stderr"]),
        ("stdout", ["to stdout", "unfinished"]),
        ("stderr", ["to stderr"]),
        ("none", []),
    ],
)
def test_what_is_logged_is_gone_with_the_next_line(
    plugin: Plugin, host: SshHost, mode: str | None, wanted: list[str]
) -> None:
    says = "echo to stdout; printf unfinished; sleep 0.5; echo to stderr >&2"
    inputs = {"connection": host.connection(), "create": says} | ({"logging": mode} if mode else {})
    created = plugin.create(REMOTE, inputs)
    assert (created.properties["stdout"], created.properties["stderr"]) == ("to stdout\nunfinished", "to stderr")
    assert plugin.log.lines() == [LogLine("info", message, ephemeral=True) for message in wanted]


def test_a_logged_line_of_64_kib_is_waited_for_without_end(
    threads: ThreadPoolExecutor,  # which goes after the plugin: nothing else ends it
    plugin: Plugin,
    host: SshHost,
) -> None:
    inputs = {"connection": host.connection(), "create": "cat", "stdin": "x" * 60_000 + "\n"}
    assert len(plugin.create(REMOTE, inputs).properties["stdout"]) == 60_000
    host.ended.clear()
    created = threads.submit(plugin.create, REMOTE, inputs | {"stdin": "x" * 70_000 + "\n"})
    assert host.ended.wait(PATIENCE)
    time.sleep(LONGER_THAN_A_SECOND)
    assert not created.done()


def waiting(host: SshHost) -> Json:
    """The inputs of a command that says that it works, and goes on to its end when the test writes to the pipe `go` on the host."""
    subprocess.run(["mkfifo", str(host.root / "go")], check=True)
    waits = "echo working; read -r -t 60 go < go; echo $go; touch done"
    return {"connection": host.connection(), "create": waits}


def test_output_is_logged_while_the_command_runs(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    created = threads.submit(plugin.create, REMOTE, waiting(host))
    plugin.log.wait_for("working")
    assert not created.done()
    (host.root / "go").write_text("on\n")
    assert created.result(PATIENCE).properties["stdout"] == "working\non"


def previous_output(host: SshHost, **changes: object) -> tuple[Json, Json]:
    """The old state and the new inputs of a command that prints what it is told of its previous output."""
    prints = 'echo "out=$PULUMI_COMMAND_STDOUT err=$PULUMI_COMMAND_STDERR"'
    inputs = {"connection": host.connection(), "create": prints, **changes}
    return inputs | {"stdout": "was", "stderr": "said"}, inputs


def test_the_previous_output_is_in_the_environment_where_sshd_accepts_it(plugin: Plugin, tmp_path: Path) -> None:
    with SshHost(tmp_path, accept_env=True) as host:
        updated = plugin.update(REMOTE, *previous_output(host, environment={"X": "y"}))
    assert updated.properties["stdout"] == "out=was err=said"


def test_the_previous_output_refused_by_sshd_is_a_warning(plugin: Plugin, host: SshHost) -> None:
    updated = plugin.update(REMOTE, *previous_output(host))
    assert updated.properties["stdout"] == "out= err="
    warned = [line.message for line in plugin.log.lines() if line.severity == "warning"]
    assert {message.split(".")[0] for message in warned} == {
        "Unable to set 'PULUMI_COMMAND_STDERR'",
        "Unable to set 'PULUMI_COMMAND_STDOUT'",
    }
    assert all("configured to accept\n\tthese variables via AcceptEnv" in message for message in warned)


def test_the_previous_output_can_be_left_out(plugin: Plugin, host: SshHost) -> None:
    plugin.update(REMOTE, *previous_output(host, addPreviousOutputInEnv=False, logging="none"))
    assert plugin.log.lines() == []


def test_cancel_leaves_a_running_command_alone(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    created = threads.submit(plugin.create, REMOTE, waiting(host))
    plugin.log.wait_for("working")
    assert plugin.call("Cancel", {}).error is None
    (host.root / "go").write_text("on\n")
    assert created.result(PATIENCE).properties["stdout"] == "working\non"


def test_an_engine_that_is_gone_leaves_a_running_command_alone(
    plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor
) -> None:
    created = threads.submit(plugin.create, REMOTE, waiting(host))
    plugin.log.wait_for("working")
    plugin.disconnect()
    assert created.result(PATIENCE).error
    (host.root / "go").write_text("on\n")
    assert host.ended.wait(PATIENCE)
    assert (host.root / "done").exists()
    assert not host.disconnected.is_set()


def test_cancel_ends_the_waiting_for_a_host(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    with refusing_port() as port:
        connection = host.connection(port=port, dialErrorLimit=-1)
        created = threads.submit(plugin.create, REMOTE, {"connection": connection, "create": "true"})
        plugin.log.wait_for("Dial 1/inf failed: retrying")
        plugin.call("Cancel", {})
        failed = created.result(PATIENCE)
    assert "context canceled" in failed.failure


def test_a_resources_time_limit_leaves_its_command_alone(
    plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor
) -> None:
    request = {"urn": f"urn:pulumi:dev::proj::{REMOTE}::test", "timeout": 1, "properties": waiting(host)}
    created = threads.submit(plugin.call, "Create", request)
    plugin.log.wait_for("working")
    time.sleep(LONGER_THAN_A_SECOND)
    (host.root / "go").write_text("on\n")
    assert created.result(PATIENCE).properties["stdout"] == "working\non"


# --- running here ---


def test_a_local_command_runs_in_its_folder_with_its_interpreter(plugin: Plugin, tmp_path: Path) -> None:
    inputs = {
        "create": "import os, sys; print(os.getcwd(), os.environ['A'], sys.stdin.read())",
        "interpreter": ["python3", "-c"],
        "dir": str(tmp_path),
        "environment": {"A": "b"},
        "stdin": "given",
    }
    assert plugin.create(LOCAL, inputs).properties["stdout"] == f"{tmp_path} b given"


def test_a_local_command_that_fails_says_what_it_said(plugin: Plugin) -> None:
    failed = plugin.create(LOCAL, {"create": "echo why >&2; exit 4"})
    assert failed.error == ('rpc error: code = Unknown desc = exit status 4: running "echo why >&2; exit 4":\nwhy\n')


def test_a_local_command_knows_its_previous_output(plugin: Plugin) -> None:
    inputs = {"create": "echo again $PULUMI_COMMAND_STDOUT"}
    old = inputs | {"stdout": "was", "stderr": ""}
    assert plugin.update(LOCAL, old, inputs).properties["stdout"] == "again was"
    without = inputs | {"addPreviousOutputInEnv": False}
    assert plugin.update(LOCAL, old, without).properties["stdout"] == "again"


def test_a_local_update_runs_update(plugin: Plugin) -> None:
    inputs = {"create": "echo made", "update": "echo changed"}
    updated = plugin.update(LOCAL, inputs | {"stdout": "made", "stderr": ""}, inputs)
    assert updated.properties["stdout"] == "changed"


def test_a_local_delete_runs(plugin: Plugin, program: Path) -> None:
    assert plugin.delete(LOCAL, {"delete": "touch gone", "stdout": "", "stderr": ""}).error is None
    assert (program / "gone").exists()


def test_a_local_preview_runs_nothing(plugin: Plugin, program: Path) -> None:
    plugin.create(LOCAL, {"create": "touch made"}, preview=True)
    assert not (program / "made").exists()


def test_cancel_ends_a_local_command_but_not_what_it_has_started(
    plugin: Plugin, program: Path, threads: ThreadPoolExecutor
) -> None:
    subprocess.run(["mkfifo", str(program / "held")], check=True)
    # The inner shell holds the command's output, and with it the command's end.
    starts = "(echo started > held; read -r go < held; touch done) & wait"
    created = threads.submit(plugin.create, LOCAL, {"create": starts})
    with (program / "held").open() as held:
        assert held.readline() == "started\n"
    plugin.call("Cancel", {})
    time.sleep(LONGER_THAN_A_SECOND)
    assert not created.done()
    (program / "held").write_text("on\n")
    assert "signal: killed" in created.result(PATIENCE).failure
    assert (program / "done").exists()


# --- the schema ---


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def sent_by_the_sdk(module: str, arguments: str) -> set[str]:
    """The properties that the SDK sends, from one of its classes of arguments."""
    constructor = getattr(importlib.import_module(f"pulumi_command.{module}"), arguments)
    return {camel(name) for name in inspect.signature(constructor).parameters} - {"self"}


def schema_of(plugin: Plugin) -> Json:
    answer = plugin.call("GetSchema", {})
    assert answer.response, answer.error
    schema: Json = json.loads(answer.response["schema"])
    return schema


# The SDK's module of remote resources warns when it is imported, of one that isn't used here.
ignore_deprecated = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")


@ignore_deprecated
@pytest.mark.parametrize(
    ("token", "module", "arguments"),
    [(REMOTE, "remote", "CommandArgs"), (COPY, "remote", "CopyToRemoteArgs"), (LOCAL, "local", "CommandArgs")],
)
def test_the_inputs_are_those_that_the_sdk_sends(plugin: Plugin, token: str, module: str, arguments: str) -> None:
    found = schema_of(plugin)["resources"][token]["inputProperties"]
    assert set(found) == sent_by_the_sdk(module, arguments)


@ignore_deprecated
@pytest.mark.parametrize("name", ["Connection", "ProxyConnection"])
def test_a_connection_is_what_the_sdk_sends(plugin: Plugin, name: str) -> None:
    found = schema_of(plugin)["types"][f"command:remote:{name}"]["properties"]
    assert set(found) == sent_by_the_sdk("remote", f"{name}Args")


def test_the_version_is_the_sdks(plugin: Plugin) -> None:
    sdk = importlib.util.find_spec("pulumi_command")
    assert sdk
    assert sdk.origin
    description = json.loads(Path(sdk.origin).with_name("pulumi-plugin.json").read_text("utf-8"))
    info = plugin.call("GetPluginInfo", {})
    assert info.response == {"version": description["version"]} == {"version": install.PLUGIN_VERSION}
