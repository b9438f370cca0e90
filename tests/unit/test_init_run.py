"""`homelab init` as a program: however it ends, its exit status, its output and the file that it writes are right. Without a host."""

from __future__ import annotations

import getpass
import io
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from homelab.cli import access, command_line, conversation, init, questions
from homelab.cli.access import Access
from homelab.cli.command_line import main
from homelab.cli.conversation import Conversation
from homelab.cli.output import Output
from homelab.cli.pulumi import Pulumi
from homelab.cli.questions import Lines, Widgets
from homelab.cli.settings_file import read_settings, write_settings
from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.init import cards as init_cards
from homelab.init.choices import Use
from homelab.init.proposal import existing
from homelab.remote import first_contact, ssh
from homelab.remote.first_contact import HostKey
from tests.conftest import PROJECT
from tests.unit import hosts
from tests.unit.test_gates import was_for_a_vm
from tests.unit.test_init import ACCESS, host

REFUSED = LoginRefusedError(wanted="to log in", found="refused", why="so", next="do")
SETTINGS = f"""config:
  homelab:hosts:
    pve:
      address: 192.0.2.1
      ssh: {{hostKey: {hosts.KEY}, agent: true}}
      gpus:
        old: {{match: "10de:2204", use: vm}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "Pulumi.yaml").write_text((PROJECT / "Pulumi.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# -- however it ends ------------------------------------------------------------------------------------------------------
def ending(monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    """A run that ends in its second step."""

    def hold(self: Conversation) -> None:
        self.output.steps(["one", "two", "three"], "homelab init 192.0.2.1")
        self.output.did("one")
        how()

    monkeypatch.setattr(Conversation, "hold", hold)


def raising(error: BaseException) -> Callable[[], None]:
    def how() -> None:
        raise error

    return how


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "Pulumi.homelab.yaml"), "Pulumi.homelab.yaml"),
        (ValueError("hunter2"), "ValueError"),
        (KeyError("hunter2"), "KeyError"),
    ],
)
def test_any_error_reports_the_steps_and_is_no_refusal(
    error: Exception, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, raising(error))
    assert init.main(["192.0.2.1", "--json", "--yes"]) == 2
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert said in answer["error"] and answer["done"] == ["one"]
    assert "Perhaps done" in err and "next:" in err and "homelab init 192.0.2.1" in err
    # What was given may be a password.
    assert "hunter2" not in out + err


@pytest.mark.parametrize("name", [name for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)])
def test_being_ended_is_said_as_ctrl_c_is(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    # Where this isn't handled, the test's own process must not end.
    signal.signal(number, lambda *_: None)
    ending(monkeypatch, lambda: signal.raise_signal(number))
    try:
        assert init.main(["192.0.2.1", "--yes"]) == 130
    finally:
        signal.signal(number, before)
    assert "Perhaps done" in capsys.readouterr().out


def test_where_nobody_reads_the_output_the_rest_is_said_on_standard_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    ending(monkeypatch, lambda: None)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert init.main(["192.0.2.1", "--yes"]) == 2
    assert "BrokenPipeError" in (said := capsys.readouterr().err) and "Perhaps done" in said


def test_a_shell_of_a_simulated_host_takes_nobodys_own_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Conversation, "hold", lambda _: pytest.fail("nothing is asked or read"))
    monkeypatch.setenv("HOMELAB_LAB", "/home/ann/homelab/.lab/rtx5090")
    assert command_line.main(["init", "192.0.2.1", "--yes"]) == init.FAILED
    said = capsys.readouterr().err
    assert (
        "with an empty passphrase" in said
        and "next:   open another shell" in said
        and not list(folder.glob("Pulumi.*.yaml"))
    )


def test_text_that_the_terminal_can_not_show_ends_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))

    def hold(self: Conversation) -> None:
        self.output.say("Größe")

    monkeypatch.setattr(Conversation, "hold", hold)
    assert command_line.main(["init", "192.0.2.1", "--yes"]) == 0
    assert shown.getvalue().rstrip() == b"Gr\\xf6\\xdfe"


@pytest.mark.parametrize("ask", ["secret", "text", "confirm"])
def test_ctrl_d_at_a_widget_is_an_end_of_the_input(ask: str) -> None:
    class Ended:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: self

        def unsafe_ask(self) -> str:
            raise EOFError

    widgets = Widgets.__new__(Widgets)
    widgets._ask = Ended()  # type: ignore[assignment]
    more = {"secret": (), "text": ("",), "confirm": (True,)}[ask]
    with pytest.raises(HomelabError, match="the input has ended"):
        getattr(widgets, ask)("Password", *more)


def test_ctrl_d_at_a_password_is_an_end_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", ended)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    with pytest.raises(HomelabError, match="the input has ended"):
        Lines().secret("Password")


@pytest.mark.parametrize(
    ("terminal", "environment", "kind"),
    [
        (True, {"TERM": "xterm"}, questions.Widgets),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, questions.Lines),
        (True, {"TERM": "dumb"}, questions.Lines),
        (False, {"TERM": "xterm"}, questions.Lines),
    ],
)
def test_questions_are_widgets_in_a_terminal_with_colours_else_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], kind: type
) -> None:
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, type("Stream", (io.StringIO,), {"isatty": lambda _: terminal})())
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(questions.questions(), kind)


def test_a_password_keeps_its_spaces_and_other_answers_do_not() -> None:
    lines = Lines(io.StringIO(" two words \r\n gpu \n"), io.StringIO())
    assert lines.secret("Password") == " two words "
    assert lines.text("Name", "") == "gpu"


# -- what it gives to others ---------------------------------------------------------------------------------------------
def test_pulumi_gets_no_password_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOMELAB_PASSWORD", "hunter2")
    assert "hunter2" not in Pulumi("pulumi", tmp_path, "homelab").environment.values()


def test_a_preview_for_a_program_is_shown_on_standard_error(tmp_path: Path) -> None:
    shown = "from pathlib import Path; from homelab.cli.pulumi import Pulumi; Pulumi('echo', Path(), 'homelab').preview(to_errors=True)"
    done = subprocess.run([sys.executable, "-c", shown], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "preview --suppress-outputs --stack homelab\n")


@pytest.mark.parametrize("password", ["hunter2\x01", "hunter2\x1b[31m"])
def test_a_password_that_can_not_be_one_is_not_repeated(password: str) -> None:
    with pytest.raises(HomelabError) as raised:
        access.host_at("192.0.2.1", {"user": "root", "password": password}, hosts.KEY)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("before", [None, "ssh-rsa AAAA of another\n", "ssh-rsa AAAA of another"])
def test_a_key_of_a_user_is_put_into_the_users_home(before: str | None, tmp_path: Path) -> None:
    line = f"ssh-ed25519 {'A' * 60}"
    # Of sudo, the home is root's. The program that becomes the user, as far as the command needs it.
    (tmp_path / "admin").mkdir()
    (tmp_path / "root").mkdir()
    program = tmp_path / "runuser"
    program.write_text(f'#!/bin/bash\n[ "$1 $2" = "-l admin" ] && HOME={tmp_path}/admin exec bash -c "${{@: -1}}"\n')
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path / "root"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    keys = tmp_path / "admin/.ssh/authorized_keys"
    if before is not None:
        keys.parent.mkdir()
        keys.touch(mode=0o600)
        keys.write_text(before)
    for _ in range(2):
        subprocess.run(["bash", "-c", first_contact.authorizing_command(line, "admin")], env=environment, check=True)
    lines = [*([before.rstrip()] if before else []), f"{line} homelab", ""]
    assert keys.read_text(encoding="utf-8").split("\n") == lines and stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert not (tmp_path / "root/.ssh").exists()


def test_half_a_key_of_an_ended_run_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "homelab_ed25519"
    (tmp_path / "homelab_ed25519.new").write_text("-----BEGIN")
    line = first_contact.make_key(path)
    assert line == first_contact.make_key(path) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["homelab_ed25519", "homelab_ed25519.pub"]


# -- the settings file -----------------------------------------------------------------------------------------------------
def test_every_byte_of_the_settings_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.homelab.yaml"
    file.write_bytes("\ufeffconfig: {} # Größe\r\n".encode())
    write_settings(file, read_settings(file))
    assert file.read_bytes() == "\ufeffconfig: {} # Größe\r\n".encode()


def test_a_link_stays_one_and_who_may_read_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    kept = tmp_path / "kept" / "settings.yaml"
    kept.write_text("old")
    kept.chmod(0o640)
    file = tmp_path / "Pulumi.homelab.yaml"
    file.symlink_to(kept)
    write_settings(file, "new")
    assert (
        file.is_symlink() and kept.read_text(encoding="utf-8") == "new" and stat.S_IMODE(kept.stat().st_mode) == 0o640
    )


def test_a_full_disk_leaves_the_file_unchanged_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "Pulumi.homelab.yaml"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_settings(file, "new")
    assert [one.read_text(encoding="utf-8") for one in tmp_path.iterdir()] == ["old"]


def test_a_file_that_is_no_text_is_an_error_with_four_parts(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.homelab.yaml").write_bytes(b"config: \xff")
    with pytest.raises(HomelabError, match="UTF-8"):
        read_settings(tmp_path / "Pulumi.homelab.yaml")


def test_what_somebody_put_into_the_file_meanwhile_is_not_lost(folder: Path) -> None:
    run = Conversation(init.parser().parse_args(["192.0.2.1"]), Output(io.StringIO()), Lines())
    run.before = existing("", run.file.name)
    run.file.write_text("config: {} # mine\n")
    with pytest.raises(HomelabError, match="meanwhile"):
        run._write("config: {}\n")
    assert run.file.read_text(encoding="utf-8") == "config: {} # mine\n"


def test_a_card_of_a_vm_leaves_the_vm_in_a_separate_run(folder: Path) -> None:
    """Containers and the host aren't offered for it, and why is said."""
    facts, shown = was_for_a_vm(), io.StringIO()
    [card] = [one for one in init_cards.cards(facts) if one.is_nvidia]
    run = Conversation(init.parser().parse_args(["192.0.2.1"]), Output(shown), Lines(io.StringIO("\n"), shown))
    run.facts, run.access = facts, Access(hosts.settings(), {}, HostKey("ssh-ed25519", ""))
    assert str(run._use_of(card, Use("vm", (103,)))) == "vm:103"
    said = " ".join(shown.getvalue().split())
    assert "rtx5090 can't go back to the host's driver now: " in said and "takes it out of VM 103 (Sandbox)" in said
    assert "VM 103" in said and "containers (shared)" not in said and "the host itself" not in said


@pytest.mark.parametrize(("there", "put"), [("FILL-IN", "hunter2"), ("(encrypted)", "")])
def test_the_next_run_puts_in_a_password_left_open(
    there: str, put: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMELAB_PASSWORD", "hunter2")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(first_contact, "refusal", lambda host, **_: None if host.ssh.password else REFUSED)
    before = existing(SETTINGS.replace("agent: true", f'password: "{there}"'), "Pulumi.homelab.yaml")
    found = access.access_to(init.parser().parse_args(["--yes"]), before, Output(io.StringIO()), Lines())
    assert (found.name, found.password) == ("pve", put)


@pytest.mark.parametrize("kinds", [["rsa-sha2-512", "ecdsa-sha2-nistp256"], ["rsa-sha2-512"]])
def test_a_host_is_asked_for_a_key_that_every_step_can_use(kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(*_: object, server_host_key_algs: list[str], **__: object) -> asyncssh.SSHKey:
        if server_host_key_algs[0] not in kinds:
            raise asyncssh.KeyExchangeFailed("Unable to find compatible server host key")
        return asyncssh.import_public_key(ECDSA)

    monkeypatch.setattr(asyncssh, "get_server_host_key", get)
    if len(kinds) > 1:
        assert first_contact.host_key("192.0.2.1", 22, 20).line == ECDSA
    else:
        with pytest.raises(HomelabError, match="none of the kinds ssh-ed25519, ecdsa"):
            first_contact.host_key("192.0.2.1", 22, 20)


def test_a_host_that_locks_out_who_it_has_refused_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSH's PerSourcePenalties, after the keys of this machine: a password that is right comes too early."""
    cut = UnreachableError(wanted="w", found="Connection lost", why="y", next="n")
    answers: list[HomelabError | None] = [REFUSED, cut, cut, None]

    async def log_in(*_: object) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(ssh, "log_in", log_in)
    monkeypatch.setattr(ssh, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(first_contact, "usual_keys", lambda _: [Path("id_ed25519")])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOMELAB_PASSWORD", "hunter2")
    monkeypatch.setattr(first_contact, "host_key", lambda *_: first_contact.of_line(hosts.KEY))
    arguments = init.parser().parse_args(["192.0.2.1", "--host-key", hosts.KEY, "--yes"])
    found = access.access_to(arguments, existing("", "Pulumi.homelab.yaml"), Output(io.StringIO()), Lines())
    assert found.host.ssh.password is not None and answers == []


# -- another host ------------------------------------------------------------------------------------------------------------
def test_a_second_host_with_the_same_node_name_is_a_host_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "Pulumi.homelab.yaml").write_text(SETTINGS)
    other = {"address": "192.0.2.2", "ssh": ACCESS["ssh"]}

    def read(*_: Any, **__: Any) -> Any:
        return host()

    reached = access.host_at("192.0.2.2", {"agent": True}, hosts.KEY)
    reached_by = Access(reached, {"agent": True, "hostKey": hosts.KEY}, HostKey(hosts.KEY, "SHA256:x"))
    monkeypatch.setattr(conversation, "access_to", lambda *_: reached_by)
    monkeypatch.setattr(ssh, "read", read)
    status = init.main([str(other["address"]), "--card", "rtx5090=vm:103", "--json", "--dry-run"])
    out, err = capsys.readouterr()
    assert status == 0, err
    found = yaml.safe_load(json.loads(out)["settings"])["config"]
    assert found["homelab:hosts"]["pve"]["gpus"].keys() == {"old"}
    assert (
        found["homelab:hosts"]["pve-2"]["address"] == "192.0.2.2" and found["homelab:hosts"]["pve-2"]["node"] == "pve"
    )
    assert found["homelab:vms"]["sandbox"]["host"] == "pve-2"


def test_a_host_in_the_settings_at_another_address_is_refused() -> None:
    key = first_contact.of_line(hosts.KEY)
    with pytest.raises(HomelabError, match=r"192\.0\.2\.1"):
        access._refuse_duplicate("pve.lan", 22, key, existing(SETTINGS, "Pulumi.homelab.yaml"))


@pytest.mark.parametrize("name", ["a,b", "a b", "", "a/b/c/d", "$(reboot)", "../../x\n"])
@pytest.mark.parametrize(
    "command", [["init", "192.0.2.1"], ["doctor"], ["show"], ["doctor", "log"]], ids=lambda one: one[-1]
)
def test_a_name_that_no_stack_can_have_is_refused_before_anything(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, f"--stack={name}"])
    assert end.value.code == 2 and "a stack's name has letters" in capsys.readouterr().err


def test_in_a_terminal_sentences_are_folded_between_words_and_commands_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    shown = Terminal()
    output = Output(shown)
    output.say("    not possible for a VM because: another card first", "wanted: one\nfound:  two")
    output.show("  read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE")
    assert shown.getvalue().splitlines() == [
        "    not possible for a VM",
        "      because: another card",
        "      first",
        "wanted: one",
        "found:  two",
        "  read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE",
    ]


@pytest.mark.parametrize("columns", [80, 100])
def test_what_init_says_is_folded_between_words_in_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    shown = Tty()
    output = Output(shown)
    step = " and ".join(["your public key put onto 192.0.2.1"] * 4)
    output.did(step)
    output.say(
        f"    not possible for a VM because: {'containers that use it: 950; take the card out of them first; ' * 3}"
    )
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= columns and "  done: your public key" in lines[0]
    assert set(step.split()) <= set(shown.getvalue().split())


# -- host keys ---------------------------------------------------------------------------------------------------------------
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBrXjxXpSQzmEzGHG6mxTDVhZSDsFtTfdIwJZNhTlRO"
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAA"
    "BBBFfxbuA/YBMuD0zvvnnUrHiUO5wWHWHu/GmB92WUE/rVanrQFs+sQ2Y+dfhJg/l7vp6zFtEQSZugLMadKjoJIu4="
)
KNOWN_HOSTS = {
    f"192.0.2.1 {hosts.KEY}": "known",
    f"192.0.2.1 {ECDSA}\n192.0.2.1 {hosts.KEY}": "known",
    f"192.0.2.1 {ECDSA}": "unknown",  # of a key of another kind nothing is known
    f"192.0.2.1 {OTHER}": "another",
    f"@revoked 192.0.2.1 {hosts.KEY}": "revoked",
    f"@revoked * {hosts.KEY}\n192.0.2.1 {hosts.KEY}": "revoked",
    f"@revoked 192.0.2.1 {OTHER}\n192.0.2.1 {hosts.KEY}": "known",
    f"@revoked 192.0.2.9 {hosts.KEY}": "unknown",
    "": "unknown",
    "no line of the form": "unknown",
    f"no line of the form\nlänger ssh-ed25519\n@revoked 192.0.2.1 {hosts.KEY}": "revoked",
}


@pytest.mark.parametrize("address", ["192.0.2.1", "pve.lan", "fe80::1%eth0"])
@pytest.mark.parametrize("text", KNOWN_HOSTS)
def test_what_known_hosts_says_of_a_key(text: str, address: str, tmp_path: Path) -> None:
    file, key = tmp_path / "known_hosts", first_contact.of_line(hosts.KEY)
    file.write_text(text.replace("192.0.2.1", address) + "\n", encoding="latin-1")
    assert first_contact.standing(address, 22, key, file) == KNOWN_HOSTS[text]
    assert first_contact.standing(address, 22, key, tmp_path / "none") == "unknown"


@pytest.mark.parametrize("given", [None, hosts.KEY])
def test_a_revoked_key_is_refused_even_if_it_is_given(given: str | None, folder: Path) -> None:
    (folder / ".ssh").mkdir()
    (folder / ".ssh/known_hosts").write_text(f"@revoked 192.0.2.1 {hosts.KEY}\n")
    key = first_contact.of_line(hosts.KEY)
    with pytest.raises(HomelabError, match="@revoked"):
        access.confirm_key(given, "--host-key", "192.0.2.1", 22, key, Output(io.StringIO()), Lines(io.StringIO("y\n")))


def test_another_host_key_than_the_settings_have_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_contact, "refusal", lambda *_, **__: None)
    before = existing(SETTINGS, "Pulumi.homelab.yaml")

    def reach(given: str) -> Access:
        arguments = init.parser().parse_args(["--yes", "--agent", "--host-key", given])
        return access.access_to(arguments, before, Output(io.StringIO()), Lines())

    with pytest.raises(HomelabError, match=r"hosts\.pve\.ssh\.hostKey"):
        reach(OTHER)
    for given in (hosts.KEY, f"{hosts.KEY} me@here", first_contact.of_line(hosts.KEY).fingerprint):
        assert reach(given).name == "pve"


def test_a_temporary_file_of_a_killed_run_goes_with_the_next(tmp_path: Path) -> None:
    for name in (".Pulumi.homelab.yaml.x.homelab-tmp", ".Pulumi.homelab.yaml.swp", ".Pulumi.other.yaml.x.homelab-tmp"):
        (tmp_path / name).write_text("left")
    write_settings(tmp_path / "Pulumi.homelab.yaml", "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".Pulumi.homelab.yaml.swp",
        ".Pulumi.other.yaml.x.homelab-tmp",
        "Pulumi.homelab.yaml",
    ]


def test_answers_in_a_file_are_options_as_a_shell_takes_them(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("--card rtx5090=vm:103  # the sandbox\n\n--driver none --vm-name 'a b'\n")
    arguments = init.parser().parse_args(init.words(["192.0.2.1", f"@{tmp_path / 'answers'}", "--yes"]))
    assert (arguments.card, arguments.driver, arguments.vm_name) == (["rtx5090=vm:103"], "none", "a b")
