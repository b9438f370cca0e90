"""The stand-in in what pulumi-command's documentation says and no recording shows."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from engine import install
from tests import agent_kit
from tests.engine.plugin_process import UNKNOWN, Answer, Json, LogLine, Plugin
from tests.engine.ssh_host import PASSWORD, SshHost, refusing_port
from tests.waiting import PATIENCE

REMOTE = "command:remote:Command"
COPY = "command:remote:CopyToRemote"
LOCAL = "command:local:Command"
ASSET = {"4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17"}
ARCHIVE = {"4dabf18193072939515e22adb298388d": "0def7320c3a5731c473e5ecbe6d01bc7"}


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


def test_a_host_that_accepts_and_says_nothing_is_a_failed_attempt(plugin: Plugin, host: SshHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = host.connection(port=silent.getsockname()[1], perDialTimeout=1)
        failed = plugin.create(REMOTE, {"connection": connection, "create": "true"})
    assert "ssh: handshake failed" in failed.failure


def test_the_host_key_decides_which_of_the_hosts_keys_is_asked_for(plugin: Plugin, host: SshHost) -> None:
    assert host.host_key.startswith("ssh-ed25519 "), "the host has an ecdsa key too, which comes first otherwise"
    created = plugin.create(REMOTE, {"connection": host.connection(), "create": "echo in"})
    assert created.properties["stdout"] == "in"


def test_without_a_host_key_any_host_is_accepted(plugin: Plugin, host: SshHost) -> None:
    created = plugin.create(REMOTE, {"connection": host.connection(hostKey=None), "create": "echo in"})
    assert created.properties["stdout"] == "in"


def test_a_host_key_that_is_none_is_named(plugin: Plugin, host: SshHost) -> None:
    failed = plugin.create(REMOTE, {"connection": host.connection(hostKey="SHA256:abc"), "create": "true"})
    assert 'found "SHA256:abc"' in failed.failure
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
def test_an_agent_that_hangs_is_a_failed_attempt(plugin: Plugin, host: SshHost, tmp_path: Path, fault: str) -> None:
    key = asyncssh.import_private_key(host.private_key)
    with agent_kit.agent(tmp_path / "agent", key, fault):
        limits = {"perDialTimeout": 1, "dialErrorLimit": 1}
        connection = host.connection(privateKey=None, agentSocketPath=str(tmp_path / "agent"), **limits)
        failed = plugin.create(REMOTE, {"connection": connection, "create": "true"})
    assert "after 1 failed attempts" in failed.failure and "agent" in failed.failure and "timeout" in failed.failure


def test_a_bastion_is_gone_through(plugin: Plugin, host: SshHost, tmp_path: Path) -> None:
    bastion_root = tmp_path / "bastion"
    bastion_root.mkdir()
    with SshHost(bastion_root) as bastion:
        connection = host.connection(proxy=bastion.connection())
        created = plugin.create(REMOTE, {"connection": connection, "create": "pwd"})
        assert created.properties["stdout"] == str(host.root)
        assert (len(bastion.connections), bastion.commands) == (1, [])


def test_a_bastion_that_is_away_is_told_from_the_host(plugin: Plugin, host: SshHost) -> None:
    with refusing_port() as port:
        connection = host.connection(proxy=host.connection(port=port))
        failed = plugin.create(REMOTE, {"connection": connection, "create": "true"})
    assert f"proxy: after 0 failed attempts: dial tcp 127.0.0.1:{port}" in failed.failure


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
    assert host.disconnected.wait(PATIENCE)
    assert len(host.connections) == 1


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


def test_stdin_that_the_command_leaves_unread_is_no_error(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "echo done", "stdin": "x" * 4_000_000}
    assert plugin.create(REMOTE, inputs).properties["stdout"] == "done"


def test_stdin_is_not_in_an_error(plugin: Plugin, host: SshHost) -> None:
    inputs = {"connection": host.connection(), "create": "exit 1", "stdin": "hunter2"}
    failed = plugin.create(REMOTE, inputs)
    assert "hunter2" not in failed.failure


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        (None, {"to stdout", "to stderr", "unfinished"}),
        ("stdoutAndStderr", {"to stdout", "to stderr", "unfinished"}),
        ("stdout", {"to stdout"}),
        ("stderr", {"to stderr", "unfinished"}),
        ("none", set()),
    ],
)
def test_logging_says_which_output_is_logged(plugin: Plugin, host: SshHost, mode: str | None, wanted: set[str]) -> None:
    says = "echo to stdout; echo to stderr >&2; printf unfinished >&2"
    inputs = {"connection": host.connection(), "create": says} | ({"logging": mode} if mode else {})
    created = plugin.create(REMOTE, inputs)
    assert created.properties["stderr"] == "to stderr\nunfinished"
    assert set(plugin.log.lines()) == {LogLine("info", message, ephemeral=False) for message in wanted}


def test_output_is_logged_while_the_command_runs(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    waits = "echo working; read -r -t 60 go < go; echo $go"
    subprocess.run(["mkfifo", str(host.root / "go")], check=True)
    created = threads.submit(plugin.create, REMOTE, {"connection": host.connection(), "create": waits})
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
    assert [message.split(".")[0] for message in warned] == [
        "Unable to set 'PULUMI_COMMAND_STDERR'",
        "Unable to set 'PULUMI_COMMAND_STDOUT'",
    ]
    assert all("configured to accept\n\tthese variables via AcceptEnv" in message for message in warned)


def test_the_previous_output_can_be_left_out(plugin: Plugin, host: SshHost) -> None:
    plugin.update(REMOTE, *previous_output(host, addPreviousOutputInEnv=False, logging="none"))
    assert plugin.log.lines() == []


def test_cancel_ends_a_running_command(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    sleeps = "echo running; sleep 600"
    created = threads.submit(plugin.create, REMOTE, {"connection": host.connection(), "create": sleeps})
    plugin.log.wait_for("running")
    assert plugin.call("Cancel", {}).error is None
    failed = created.result(PATIENCE)
    assert "context canceled" in failed.failure
    assert host.ended.wait(PATIENCE), "the command goes on on the host"
    assert host.disconnected.wait(PATIENCE)


def test_an_engine_that_is_gone_ends_a_running_command(
    plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor
) -> None:
    sleeps = "echo running; sleep 600"
    created = threads.submit(plugin.create, REMOTE, {"connection": host.connection(), "create": sleeps})
    plugin.log.wait_for("running")
    plugin.disconnect()
    assert created.result(PATIENCE).error
    assert host.ended.wait(PATIENCE), "the command goes on on the host"


def test_cancel_ends_the_waiting_for_a_host(plugin: Plugin, host: SshHost, threads: ThreadPoolExecutor) -> None:
    with refusing_port() as port:
        connection = host.connection(port=port, dialErrorLimit=-1)
        created = threads.submit(plugin.create, REMOTE, {"connection": connection, "create": "true"})
        plugin.log.wait_for("Dial 1/inf failed: retrying")
        plugin.call("Cancel", {})
        failed = created.result(PATIENCE)
    assert "context canceled" in failed.failure


def test_a_resources_time_limit_ends_its_command(plugin: Plugin, host: SshHost) -> None:
    failed = plugin.call(
        "Create",
        {
            "urn": f"urn:pulumi:dev::proj::{REMOTE}::test",
            "timeout": 2,
            "properties": {"connection": host.connection(), "create": "sleep 600"},
        },
    )
    assert "context deadline exceeded" in failed.failure
    assert host.disconnected.wait(PATIENCE)


# --- copying ---


def copied(plugin: Plugin, host: SshHost, source: Json, remote_path: str) -> Answer:
    inputs = {"connection": host.connection(), "source": source, "remotePath": remote_path}
    return plugin.create(COPY, inputs)


def test_a_text_is_copied_and_missing_folders_are_made(plugin: Plugin, host: SshHost) -> None:
    assert copied(plugin, host, ASSET | {"text": "hello\n"}, "/etc/new/motd").properties
    assert (host.root / "etc/new/motd").read_text() == "hello\n"


def test_a_file_goes_into_an_existing_folder_under_its_name(plugin: Plugin, host: SshHost, program: Path) -> None:
    (program / "motd").write_bytes(b"\x00\xff" * 100_000)
    (host.root / "etc").mkdir()
    assert copied(plugin, host, ASSET | {"path": "motd"}, "/etc").properties
    assert (host.root / "etc/motd").read_bytes() == b"\x00\xff" * 100_000


def test_a_folder_is_copied_with_what_is_in_it(plugin: Plugin, host: SshHost, program: Path) -> None:
    (program / "conf/sub").mkdir(parents=True)
    (program / "conf/sub/a").write_text("a")
    (program / "conf/b").write_text("b")
    assert copied(plugin, host, ARCHIVE | {"path": "conf"}, "/etc/conf.d").properties
    assert copied(plugin, host, ARCHIVE | {"path": "conf"}, "/etc").properties
    for folder in ("etc/conf.d", "etc/conf"):
        assert (host.root / folder / "sub/a").read_text() == "a"
        assert (host.root / folder / "b").read_text() == "b"


def test_a_folder_does_not_replace_a_file(plugin: Plugin, host: SshHost, program: Path) -> None:
    (program / "conf").mkdir()
    (host.root / "conf").write_text("mine")
    failed = copied(plugin, host, ARCHIVE | {"path": "conf"}, "/conf")
    assert "found a file, which a folder can't replace" in failed.failure
    assert (host.root / "conf").read_text() == "mine"


def test_a_source_that_is_missing_is_named_before_connecting(plugin: Plugin, host: SshHost) -> None:
    failed = copied(plugin, host, ARCHIVE | {"path": "absent"}, "/conf")
    assert "absent" in failed.failure
    assert not host.connections


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


def test_local_files_are_returned_by_their_patterns(plugin: Plugin) -> None:
    names = ["assets/logos/logo.svg", "src/index.js", "src/secret.js", "README"]
    creates = "; ".join(f"mkdir -p $(dirname {name}); echo {name} > {name}" for name in names)
    patterns = ["assets/**", "src/**.js", "!**secret.*"]
    created = plugin.create(LOCAL, {"create": creates, "assetPaths": patterns, "archivePaths": ["*"]})
    assert set(created.properties["assets"]) == {"assets/logos/logo.svg", "src/index.js"}
    assert created.properties["assets"]["src/index.js"]["path"] == "src/index.js"
    assert set(created.properties["archive"]["assets"]) == {"README"}


def test_cancel_ends_a_local_command_and_what_it_started(
    plugin: Plugin, program: Path, threads: ThreadPoolExecutor
) -> None:
    subprocess.run(["mkfifo", str(program / "held")], check=True)
    # The inner sleep holds the fifo open: reading it to its end waits for that process to be gone.
    starts = "(echo started > held; exec sleep 600) > held; true"
    created = threads.submit(plugin.create, LOCAL, {"create": starts})
    with (program / "held").open() as held:
        assert held.readline() == "started\n"
        plugin.call("Cancel", {})
        readable, _, _ = select.select([held], [], [], PATIENCE)
        assert readable, "what the command had started goes on"
        assert held.read() == ""
    failed = created.result(PATIENCE)
    assert "context canceled" in failed.failure


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
