"""`homelab init` as a program: however it ends, its exit status, its output and the file that it writes are right. Without a host."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import asyncssh
import pytest

from homelab import text
from homelab.cli import access, command_line, conversation, init, project
from homelab.cli import pulumi as pulumi_cli
from homelab.cli.access import Access
from homelab.cli.command_line import main
from homelab.cli.pulumi import Pulumi
from homelab.cli.settings_file import read_settings, write_settings
from homelab.errors import Declined, HomelabError, LoginRefusedError, Mistake, UnreachableError
from homelab.init import ask
from homelab.init import draft as draft_of
from homelab.init.ask import Ask
from homelab.init.cards import Use
from homelab.init.new import New
from homelab.init.settings import values_in
from homelab.judged.tree import judged
from homelab.reading import planning
from homelab.remote import first_contact, logins, ssh
from homelab.settings import parse
from tests.conftest import PROJECT
from tests.unit import hosts

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
    """A run that ends after its first step."""

    def hold(_: object, __: Ask, done: list[str]) -> None:
        done.append("one")
        how()

    monkeypatch.setattr(conversation, "hold", hold)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "Pulumi.homelab.yaml"), "Pulumi.homelab.yaml"),
        (ValueError("hunter2"), "ValueError"),
        (KeyError("hunter2"), "KeyError"),
    ],
)
def test_any_error_says_what_is_done_and_is_no_refusal(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: BaseException) -> Callable[[], None]:
        def how() -> None:
            raise error

        return how

    ending(monkeypatch, raising(error))
    assert init.main(["192.0.2.1", "--yes"]) == 2
    out, err = capsys.readouterr()
    assert said in out and "Done: one. Run it again" in out
    # What was given may be a password.
    assert "hunter2" not in out + err


def test_the_first_line_comes_before_what_takes_a_second_to_load() -> None:
    script = "import sys, homelab.cli.init; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"asyncssh", "pydantic", "yaml"} & set(done.stdout.split())


def test_a_shell_of_a_simulated_host_takes_nobodys_own_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOMELAB_LAB", "/home/ann/homelab/.lab/rtx5090")
    assert command_line.main(["init", "192.0.2.1", "--yes"]) == init.FAILED
    said = capsys.readouterr().out
    assert "HOMELAB_LAB=/home/ann/homelab/.lab/rtx5090" in said and "another shell" in said


def test_an_answer_that_is_none_is_asked_for_again_and_the_end_of_the_input_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helps = {"option": "--sure", "text": "It is about the card."}
    monkeypatch.setattr(sys, "stdin", io.StringIO("maybe\n?\ny\n?\nword\n"))
    assert Ask(False).confirm("Sure?", helps) is True and Ask(False).secret("Word", helps) == "word"
    said = capsys.readouterr().out
    assert "y or n" in said and said.count("It is about the card.\n  Without a question: --sure.") == 2
    for question in (Ask(False).confirm, Ask(False).secret, Ask(True).secret):
        with pytest.raises(Mistake, match=r"No answer to “Sure\?.*: --sure"):
            question("Sure?", helps)


@pytest.mark.parametrize("mended", ["host", "vms", "new-vm"])
def test_each_answer_on_a_host_without_guests_is_judged_before_it_is_offered(
    mended: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `up` would, and with what was said of it marked in each list: also in the one that `?` shows."""

    def parsed(refused: Collection[str], answer: str) -> Use:
        if answer == "?":
            raise Mistake(draft_of.answers(draft, refused))
        if answer == mended:
            raise Mistake(f"mend what {answer} needs")
        return Use()

    new = {"new-vm": New("ubuntu", "Ubuntu", {}), "new-container": New("debian", "Debian", {"rootfs": "a:8"})}
    draft = draft_of.Draft("pve", {}, hosts.desktop(), "", offers=lambda: new)
    monkeypatch.setattr(sys, "stdin", io.StringIO("?\nnobody\n"))
    conversation._asked(Ask(False), draft, "vms", parsed)
    said = capsys.readouterr().out
    marked = {line.split(":")[0].strip() for line in said.splitlines() if "not yet" in line}
    assert marked == {mended, {"host": "new-container"}.get(mended, "new-vm")}
    assert said.count(f"mend what {mended} needs") == 1 and said.count("not yet") == 2 * len(marked)


# -- what it gives to others ---------------------------------------------------------------------------------------------
def test_pulumi_gets_no_password_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOMELAB_PASSWORD", "hunter2")
    assert "hunter2" not in Pulumi("pulumi", tmp_path, "homelab").environment.values()


@pytest.mark.parametrize("password", ["hunter2\x01", "hunter2\x1b[31m"])
def test_a_password_that_can_not_be_one_is_not_repeated(password: str) -> None:
    with pytest.raises(HomelabError) as raised:
        access.host_at("192.0.2.1", {"user": "root", "password": password, "hostKey": hosts.KEY})
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
        subprocess.run(["bash", "-c", first_contact.authorizing(line, "admin")], env=environment, check=True)
    lines = [*([before.rstrip()] if before else []), f"{line} homelab", ""]
    assert keys.read_text(encoding="utf-8").split("\n") == lines and stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert not (tmp_path / "root/.ssh").exists()


def test_half_a_key_of_an_ended_run_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "homelab_ed25519"
    (tmp_path / ".homelab_ed25519.x.homelab-tmp").write_text("-----BEGIN")
    assert first_contact.made(path) == first_contact.made(path) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["homelab_ed25519", "homelab_ed25519.pub"]


def test_a_key_with_a_passphrase_is_none_that_logs_in_by_itself(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "id_ed25519").write_bytes(key.export_private_key(passphrase="hunter2"))
    (tmp_path / "id_rsa").write_bytes(key.export_private_key("pkcs8-pem"))
    (tmp_path / "id_ecdsa").write_text("none")
    assert first_contact.usual_keys(tmp_path) == [tmp_path / "id_rsa"]
    assert first_contact.usual_keys(tmp_path, locked=True) == [tmp_path / "id_ed25519"]


@pytest.mark.parametrize("host", ["hosts.pve.", "homelab:hosts.phoenix.", ""])
def test_what_is_set_of_a_host_counts_for_its_first_reading(host: str) -> None:
    """Whatever its name turns out to be."""
    ssh_login = {"hostKey": hosts.KEY, "agent": True}
    entry = Access(access.host_at("192.0.2.1", ssh_login), {"address": "192.0.2.1", "ssh": ssh_login})
    found = conversation._as_set(entry, "", [f"{host}timeouts.api=900", f"{host}gpus.a.allowConsole=true"], "f")
    assert found.timeouts.api == 900 and not found.gpus and found.ssh == entry.host.ssh
    entry = Access(parse(values_in(SETTINGS)).hosts["pve"], {}, "pve")
    found = conversation._as_set(entry, SETTINGS, ["hosts.pve.timeouts.connect=99"], "f")
    assert found.timeouts.connect == 99 and found.gpus == entry.host.gpus
    with pytest.raises(Mistake, match="correct --set, or f"):
        conversation._as_set(entry, SETTINGS, ["hosts.pve.timeouts.apii=99"], "f")


IN_A_VM = SETTINGS.replace('old: {match: "10de:2204"', 'rtx5090: {match: "10de:2b85"') + (
    "  homelab:vms:\n    gaming: {host: pve, vmid: 103, gpus: [rtx5090]}\n"
)


def conversing(monkeypatch: pytest.MonkeyPatch, settings: str, *words: str) -> None:
    """The conversation about a host of the settings whose first card a VM has, up to the plan; nothing of it is read
    that the host's first reading doesn't tell.
    """
    Path("Pulumi.homelab.yaml").write_text(settings)
    pulumi = SimpleNamespace(stack="homelab", run=lambda *_: SimpleNamespace(stdout="Backend URL: file://~"))
    monkeypatch.setattr(conversation, "Pulumi", lambda *_: pulumi)
    monkeypatch.setattr(conversation, "installed", lambda: "pulumi")
    monkeypatch.setattr(conversation, "selected_stack", lambda _: "homelab")
    monkeypatch.setattr(first_contact, "refusal", lambda _: None)
    monkeypatch.setattr(access, "public_key", lambda _: "")
    monkeypatch.setattr(ssh, "read", lambda *_, **__: hosts.one_in_vm())
    monkeypatch.setattr(
        planning, "planned", lambda wanted, **more: replace(judged(more["facts"], wanted), is_changed=True)
    )
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "")
    arguments = init.parser().parse_args(["pve", "--yes", "--dry-run", *words])
    conversation.hold(arguments, Ask(yes=True), [])


def test_a_further_run_gives_another_card_while_a_vm_has_the_first_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversing(monkeypatch, IN_A_VM, "--card", "05:00=901")
    assert "Nothing was done: --dry-run." in capsys.readouterr().out


def test_a_card_that_is_in_no_answer_leaves_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` would refuse of it is said before anything is written."""
    without = SETTINGS.partition("      gpus:")[0]
    with pytest.raises(HomelabError, match="since no card of gpus is it"):
        conversing(monkeypatch, without, "--card", "05:00=901")


def test_a_plugin_that_takes_too_long_is_waited_for_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pulumi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(pulumi_cli, "PLUGIN_SECONDS", 0.2)
    [said] = Pulumi(str(program), tmp_path, "homelab").fetch_plugin()
    assert "can't be fetched: not within 0.2 s. With its archive: `pulumi plugin install" in said


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
    assert file.is_symlink() and kept.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


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


@pytest.mark.parametrize("kinds", [["rsa-sha2-512", "ecdsa-sha2-nistp256"], ["rsa-sha2-512"]])
def test_a_host_is_asked_for_a_key_that_every_step_can_use(kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(*_: object, server_host_key_algs: list[str], **__: object) -> asyncssh.SSHKey:
        if set(kinds).isdisjoint(server_host_key_algs):
            raise asyncssh.KeyExchangeFailed("Unable to find compatible server host key")
        return asyncssh.import_public_key(ECDSA)

    monkeypatch.setattr(asyncssh, "get_server_host_key", get)
    if len(kinds) > 1:
        assert first_contact.host_key("192.0.2.1", 22).line == ECDSA
    else:
        with pytest.raises(HomelabError, match="of the kind ssh-ed25519 or ecdsa"):
            first_contact.host_key("192.0.2.1", 22)


def test_a_host_that_locks_out_who_it_has_refused_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSH's PerSourcePenalties, after the keys of this machine: a password that is right comes too early."""
    refused = LoginRefusedError(wanted="to log in", found="refused", why="so", next="do")
    cut = UnreachableError(wanted="w", found="Connection lost", why="y", next="n")
    answers: list[HomelabError | None] = [refused, cut, cut, None]

    async def connected(*_: object) -> SimpleNamespace:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return SimpleNamespace(ssh=SimpleNamespace(abort=lambda: None))

    monkeypatch.setattr(logins, "_connected", connected)
    monkeypatch.setattr(logins, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(first_contact, "usual_keys", lambda _, locked=False: [] if locked else [Path("id_ed25519")])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOMELAB_PASSWORD", "hunter2")
    monkeypatch.setattr(first_contact, "host_key", lambda *_: first_contact.of_line(hosts.KEY))
    found = access.access_to("192.0.2.1", hosts.KEY, None, {}, Ask(True))
    assert found.host.ssh.password is not None and answers == []


# -- another host ------------------------------------------------------------------------------------------------------------
def test_a_host_in_the_settings_at_another_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_contact, "host_key", lambda *_: first_contact.of_line(hosts.KEY))
    with pytest.raises(Mistake, match=r"This is pve, which the settings have at 192\.0\.2\.1:22"):
        access.access_to("pve.lan", hosts.KEY, None, parse(values_in(SETTINGS)).hosts, Ask(True))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("192.168.0.202", ("root", "192.168.0.202", 22)),
        ("ops@pve.lan:2222", ("ops", "pve.lan", 2222)),
        ("[fe80::1]:22", ("root", "fe80::1", 22)),
        ("fe80::1", ("root", "fe80::1", 22)),
    ],
)
def test_an_address_may_have_a_user_and_a_port(text: str, parts: tuple[str, str, int]) -> None:
    assert access.parse_address(text) == parts
    with pytest.raises(Mistake):
        access.parse_address(f"{text} x")


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
    monkeypatch.setattr(sys, "stdout", shown)
    ask.say("    not possible for a VM because: another card first", "wanted: one\nfound:  two")
    ask.show("  read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE")
    monkeypatch.setattr(text, "_IN_A_CLONE", False)  # a page's name becomes longer before it is folded
    ask.say("its display and xVga: docs/cards.md")
    assert shown.getvalue().splitlines() == [
        "    not possible for a VM",
        "      because: another card",
        "      first",
        "wanted: one",
        "found:  two",
        "  read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE",
        "its display and xVga: `homelab",
        "  docs cards`",
    ]


@pytest.mark.parametrize(
    ("passphrase", "windows", "line"),
    [
        ("", False, "export PULUMI_CONFIG_PASSPHRASE="),
        ("x", False, "read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE"),
        ("", True, '$env:PULUMI_CONFIG_PASSPHRASE_FILE = (New-Item -Force "$HOME\\.pulumi\\no-passphrase").FullName'),
        ("x", True, "$env:PULUMI_CONFIG_PASSPHRASE = [Net.NetworkCredential]::new('', (Read-Host -AsSecureString)).Password"),
    ],
)  # fmt: skip
def test_the_line_that_sets_the_passphrase_is_the_shells(passphrase: str, windows: bool, line: str) -> None:
    """PowerShell before 7.5 can't set an empty variable. No line has the passphrase itself."""
    assert conversation._setting_it(passphrase, windows=windows) == line


# -- host keys ---------------------------------------------------------------------------------------------------------------
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBrXjxXpSQzmEzGHG6mxTDVhZSDsFtTfdIwJZNhTlRO"
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAA"
    "BBBFfxbuA/YBMuD0zvvnnUrHiUO5wWHWHu/GmB92WUE/rVanrQFs+sQ2Y+dfhJg/l7vp6zFtEQSZugLMadKjoJIu4="
)


@pytest.mark.parametrize("address", ["192.0.2.1", "pve.lan", "fe80::1%eth0"])
@pytest.mark.parametrize(
    ("text", "expected"),
    {
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
    }.items(),
)
def test_what_known_hosts_says_of_a_key(text: str, expected: str, address: str, tmp_path: Path) -> None:
    file, key = tmp_path / "known_hosts", first_contact.of_line(hosts.KEY)
    file.write_text(text.replace("192.0.2.1", address) + "\n", encoding="latin-1")
    assert first_contact.standing(address, 22, key, file) == expected
    assert first_contact.standing(address, 22, key, tmp_path / "none") == "unknown"


@pytest.mark.parametrize("given", [None, hosts.KEY])
def test_a_revoked_key_is_refused_even_if_it_is_given(given: str | None, folder: Path) -> None:
    (folder / ".ssh").mkdir()
    (folder / ".ssh/known_hosts").write_text(f"@revoked 192.0.2.1 {hosts.KEY}\n")
    key = first_contact.of_line(hosts.KEY)
    with pytest.raises(HomelabError, match="@revoked"):
        access._confirm(given, "192.0.2.1", 22, key, Ask(True))


def test_a_key_that_the_person_doesnt_confirm_declines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for ask_, answers in ((Ask(False), "?\nn\n"), (Ask(True), "")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
        with pytest.raises(Declined, match="--host-key"):
            access._confirm(None, "192.0.2.1", 22, first_contact.of_line(hosts.KEY), ask_)
        assert ("(https://192.0.2.1:8006)" in capsys.readouterr().out) == bool(answers)


def test_a_host_of_the_settings_is_reached_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse(values_in(SETTINGS)).hosts
    monkeypatch.setattr(first_contact, "refusal", lambda *_, **__: None)
    for address in ("pve", "192.0.2.1", "192.0.2.1:22", "root@192.0.2.1"):
        assert access.access_to(address, None, None, found, Ask(True)) == Access(found["pve"], {}, "pve")


@pytest.mark.parametrize("text", [None, "name: my-lab\nruntime: python\n", 'description: x\nname: "my-lab" # mine\n'])
def test_a_stack_is_named_as_its_guests_notes_name_it(text: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "my lab"
    folder.mkdir()
    if text is not None:
        (folder / "Pulumi.yaml").write_text(text)
    assert project.stack_of(folder, "someone/other/homelab") == project.stack_of(folder, "homelab") == "my-lab/homelab"


def test_a_temporary_file_of_a_killed_run_goes_with_the_next(tmp_path: Path) -> None:
    for name in (".Pulumi.homelab.yaml.x.homelab-tmp", ".Pulumi.homelab.yaml.swp", ".Pulumi.other.yaml.x.homelab-tmp"):
        (tmp_path / name).write_text("left")
    write_settings(tmp_path / "Pulumi.homelab.yaml", "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".Pulumi.homelab.yaml.swp",
        ".Pulumi.other.yaml.x.homelab-tmp",
        "Pulumi.homelab.yaml",
    ]
