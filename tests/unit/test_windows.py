"""The program on Windows: nothing that only POSIX has, its files, paths, encodings and launcher.

Most of it holds on every system, and is tried on each. What can't be tried on the one at hand is skipped, and says so.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest

from homelab.cli import access
from homelab.cli.settings_file import read_settings, write_settings
from homelab.errors import HomelabError
from homelab.fields.access import Ssh
from homelab.fields.paths import resolved
from homelab.remote import scripts
from homelab.settings import secrets
from homelab.settings.stack_file import StackFile
from homelab.show import terminal
from homelab.text import encodable, tell
from tests import sampling
from tests.conftest import PROJECT, ours_below
from tests.rows import rows
from tests.unit.hosts import KEY
from tests.unit.script_folder import scripts_of
from tests.unit.test_show import DRAWN
from tests.waiting import PATIENCE

PROGRAM = [PROJECT / "__main__.py", *(PROJECT / "components").rglob("*.py"), *(PROJECT / "homelab").rglob("*.py")]


def test_the_program_and_its_commands_need_no_module_that_windows_does_not_have(tmp_path: Path) -> None:
    # Imports every module of the program, then runs commands, in a Python whose program finds no module that Windows doesn't have. `make lint`
    # has mypy look at the attributes (os.geteuid) with the types of Windows and macOS, but not at those of the host's half, which is only imported.
    as_on_windows = """
import builtins, importlib, json, os, pkgutil, signal, sys
for module, names in ((signal, "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2"), (os, "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK")):
    for name in names.split():
        delattr(module, name)
POSIX_ONLY = set("crypt curses fcntl grp nis ossaudiodev posix pty pwd readline resource spwd syslog termios tty".split())
found = builtins.__import__

def as_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "").partition(".")[0]
    if level == 0 and name.partition(".")[0] in POSIX_ONLY and importer in ("homelab", "components", "remote_scripts", "__main__"):
        raise ModuleNotFoundError(f"no module {name} on Windows, for {(globals or {})['__name__']}")
    return found(name, globals, locals, fromlist, level)

builtins.__import__ = as_on_windows
import components, homelab
names = [one.name for package in (homelab, components) for one in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from homelab.cli.command_line import main
statuses = []
for words in json.loads(sys.argv[1]):
    try:
        statuses.append(main(words))
    except SystemExit as end:
        statuses.append(end.code)
sys.stdout.flush()
sys.stderr.write("\\n" + json.dumps([len(names), statuses]))
"""
    commands = [
        *([name, "--help"] for name in ("init", "doctor", "show")),
        ["doctor", "log", "--help"],
        *(
            [*words, "--config-file", str(tmp_path / "none.yaml")]
            for words in (["doctor"], ["doctor", "log"], ["show"])
        ),
        ["init", "192.0.2.1", "--dry-run", "--stack", "none", "--yes"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", as_on_windows, json.dumps(commands)],
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    modules, statuses = json.loads(done.stderr.splitlines()[-1])
    assert modules > 100
    assert statuses == [0, 0, 0, 0, 2, 2, 2, 2], done.stderr


def test_no_text_is_read_or_written_in_the_encoding_that_a_system_happens_to_have() -> None:
    """Python's own is the ANSI code page on Windows."""
    found = []
    for path in [*PROGRAM, *(PROJECT / "lab" / "engine").rglob("*.py"), *ours_below(PROJECT / "examples", ".py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {one.arg: one.value for one in node.keywords}
            constants = [one.value for one in node.args if isinstance(one, ast.Constant)]
            texts = {"read_text": 1, "write_text": 2}.get(name, 99) > len(node.args) and name in (
                "read_text",
                "write_text",
            )
            binary = any(isinstance(one, str) and "b" in one and len(one) <= 3 for one in constants)
            opens = name in ("open", "fdopen", "NamedTemporaryFile") and not binary
            runs = {"text", "universal_newlines"} & words.keys() and name in ("run", "Popen", "check_output")
            if "encoding" not in words and (texts or opens or runs):
                found.append(f"{path.relative_to(PROJECT).as_posix()}:{node.lineno}: {name}")
    assert found == []


def test_a_file_has_the_same_line_ends_on_every_system() -> None:
    """What goes into a repository or to another machine isn't another text because it was written on Windows."""
    found = [
        f"{path.relative_to(PROJECT).as_posix()}:{node.lineno}"
        for path in PROGRAM
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "write_text"
        if "newline" not in {one.arg for one in node.keywords}
    ]
    assert found == []


def test_no_expression_needs_what_python_3_11_2_matches_wrongly() -> None:
    """Possessive quantifiers: wrong up to 3.11.4 (gh-106052), and Debian 12 has 3.11.2."""
    possessive = re.compile(r"[)\]}][*+?]\+|\\[wWdDsS][*+?]\+|\(\?>")
    for path in PROGRAM:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                for one in ast.walk(node):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        assert not possessive.search(one.value), f"{path}:{node.lineno}"


# -- files that a person or PowerShell has written --

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]  # the last as PowerShell 5 has it: `>`, Out-File
SETTINGS = "config:\r\n  homelab:hosts:\r\n    pve: {address: pve.lan} # für Jürgen\r\n"


@pytest.fixture(params=ENCODINGS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "Pulumi.homelab.yaml"
        path.write_bytes(text.encode(request.param))
        return path

    return write


def test_a_settings_file_is_read_as_windows_writes_it(written: Callable[[str], Path]) -> None:
    file = written(SETTINGS)
    assert StackFile.read(file).values == {"hosts": {"pve": {"address": "pve.lan"}}}
    assert read_settings(file).removeprefix("\ufeff") == SETTINGS
    assert isinstance(secrets.file_of_configuration({"homelab:hosts": '{"pve": {"address": "pve.lan"}}'}, file), dict)


def test_a_host_key_is_read_as_windows_writes_it(written: Callable[[str], Path]) -> None:
    file = written(f"{KEY} root@pve\r\n")
    assert Ssh.model_validate({"hostKeyFile": str(file), "agent": True}).pinned_host_key == " ".join(KEY.split()[:2])


def test_a_private_key_is_read_as_windows_writes_it(written: Callable[[str], Path]) -> None:
    file = written("-----BEGIN\r\nAAAA\r\n")
    assert Ssh.model_validate({"hostKey": KEY, "privateKeyFile": str(file)}).key == "-----BEGIN\nAAAA\n"


@pytest.mark.parametrize("read", [read_settings, StackFile.read])
def test_a_settings_file_in_a_code_page_is_one_clear_error(read: Callable[[Path], object], tmp_path: Path) -> None:
    (file := tmp_path / "Pulumi.homelab.yaml").write_bytes(SETTINGS.encode("cp1252"))
    with pytest.raises(HomelabError, match="UTF-8"):
        read(file)


def test_a_settings_file_that_another_program_holds_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(self: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied", str(target))

    (file := tmp_path / "Pulumi.homelab.yaml").write_text("old", encoding="utf-8")
    file.chmod(0o444)
    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(HomelabError, match="close the programs that have the file open"):
        write_settings(file, "new")
    assert [(one.name, one.read_text(encoding="utf-8")) for one in tmp_path.iterdir()] == [
        ("Pulumi.homelab.yaml", "old")
    ]
    file.chmod(0o644)


# -- paths --


@rows(
    ("path", "home", "shown"),
    [
        (PureWindowsPath(r"C:\Users\Jürgen Müller\.ssh\id"), PureWindowsPath(r"C:\Users\Jürgen Müller"), "~/.ssh/id"),
        (PureWindowsPath(r"c:\users\ANNA\.ssh\id"), PureWindowsPath(r"C:\Users\Anna"), "~/.ssh/id"),
        (PureWindowsPath(r"D:\keys\id"), PureWindowsPath(r"C:\Users\Anna"), "D:/keys/id"),
        (PureWindowsPath(r"\\nas\keys\id"), PureWindowsPath(r"C:\Users\Anna"), "//nas/keys/id"),
        (PureWindowsPath(r"C:\Users\Annabel\id"), PureWindowsPath(r"C:\Users\Anna"), "C:/Users/Annabel/id"),
        (PurePosixPath("/home/anna/.ssh/id"), PurePosixPath("/home/anna"), "~/.ssh/id"),
        (PurePosixPath("/srv/id"), PurePosixPath("/home/anna"), "/srv/id"),
    ],
)
def test_a_path_goes_into_the_settings_with_slashes_and_from_there_to_the_same_file(
    path: PurePath, home: PurePath, shown: str
) -> None:
    assert access.settings_path(path, home) == shown
    assert Ssh.model_validate({"hostKey": KEY, "privateKeyFile": shown}).private_key_file == shown
    assert type(path)(shown.replace("~", str(home))) == path


@pytest.mark.parametrize("name", ["id_ed25519", "my key", "Schlüssel", "鍵"])
def test_a_path_from_the_home_folder_is_found_whatever_the_person_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "Jürgen Müller & Söhne"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / name).write_text("key\n", encoding="utf-8")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    separators = "/\\" if os.name == "nt" else "/"
    for separator in separators:
        assert (
            Ssh.model_validate({"hostKey": KEY, "privateKeyFile": f"~{separator}.ssh{separator}{name}"}).key == "key\n"
        )


@pytest.mark.skipif(os.name != "nt", reason="drive letters are Windows'")
@pytest.mark.parametrize("text", [r"C:\Users\me\.ssh\id_ed25519", "C:/Users/me/.ssh/id_ed25519", r"\\nas\keys\id"])
def test_a_whole_path_of_windows_is_not_looked_for_in_the_project(text: str) -> None:
    assert resolved(text) == Path(text)


# -- what is sent to a host --


def test_every_script_and_file_is_sent_the_same_from_a_checkout_with_windows_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (one for one in scripts.FOLDER.rglob("*") if one.is_file()):
        copy = tmp_path / path.relative_to(scripts.FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))

    def sent() -> dict[str, str]:
        return {one.name: scripts.file(one.name) for one in (scripts.FOLDER / "files").iterdir()}

    ours = sent()
    with scripts_of(tmp_path, monkeypatch):
        assert sent() == ours and len(ours) > 8
    assert not any("\r" in text for text in ours.values())


# -- what a person sees --


@pytest.mark.parametrize("encoding", ["cp437", "cp850", "cp1252", "ascii"])
def test_a_tree_is_readable_in_a_terminal_that_has_no_unicode(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", encodable(io.TextIOWrapper(shown, encoding=encoding, newline="\n")))
    print(terminal.text([DRAWN], width=100), end="", flush=True)
    assert shown.getvalue().decode("ascii").splitlines() == [
        "pve",
        "`-- IOMMU group 16",
        "    `-- ~ RTX 5090 [10de:2b85] at 0000:01:00, nouveau -> vfio-pci",
        "        `-- + VM 103 (sandbox)",
    ]


def test_a_console_that_knows_no_escape_sequences_is_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' own, where no program has asked it to: `cmd` outside of Windows Terminal."""
    assert "\x1b[" in terminal.text([DRAWN], width=80, colours=True)
    monkeypatch.setattr("rich.console.detect_legacy_windows", lambda: True)
    shown = terminal.text([DRAWN], width=80, colours=True)
    assert "VM 103 (sandbox)" in shown and "\x1b" not in shown


@pytest.mark.parametrize("width", [40, 80])
def test_what_the_doctor_says_is_as_wide_as_the_console(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.width(132) == 132  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert terminal.width(132) == width and terminal.width(30) == 30


def test_what_is_told_ends_no_program_for_want_of_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252", newline="\n"))
    tell("nouveau → vfio-pci… für 日本")
    sys.stdout.flush()
    assert shown.getvalue() == "nouveau -> vfio-pci… für \\u65e5\\u672c\n".encode("cp1252")


@pytest.mark.parametrize(
    ("words", "page"), sampling.paired([["doctor"], ["show"], ["doctor", "log"]], ["cp850", "cp1252"], "code pages")
)
def test_a_command_says_what_it_has_to_say_in_a_code_page(words: list[str], page: str, tmp_path: Path) -> None:
    (folder := tmp_path / "Größe → 日本").mkdir()
    (folder / "Pulumi.yaml").touch()
    done = subprocess.run(
        [sys.executable, "-m", "homelab", *words],
        cwd=folder,
        capture_output=True,
        encoding=page,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": page, "PYTHONPATH": str(PROJECT), "PYTHONUTF8": "0"},
    )
    said = done.stdout + done.stderr
    assert "Größe -> \\u65e5\\u672c" in said, said
    assert "Traceback" not in said


# -- the provider's launcher --


@pytest.mark.parametrize("folder", ["provider", "examples/gaming_vm/provider", "examples/own_program/provider"])
def test_the_launcher_of_windows_starts_what_the_other_one_starts(folder: str) -> None:
    """The engine looks for it with `.exe`, then `.cmd` (Pulumi's sdk/go/common/workspace/plugins.go)."""
    texts = [
        (PROJECT / folder / f"pulumi-resource-homelab{ending}").read_text(encoding="utf-8") for ending in ("", ".cmd")
    ]
    for said in ("PULUMI_RUNTIME_VIRTUALENV", "-m homelab.provider"):
        assert all(said in text for text in texts)


def test_the_launcher_serves_until_its_standard_input_ends() -> None:
    environment = Path(sys.prefix)
    if not (environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")).exists():
        pytest.skip("not in a virtual environment")
    launcher = PROJECT / "provider" / f"pulumi-resource-homelab{'.cmd' if os.name == 'nt' else ''}"
    with subprocess.Popen(
        [launcher, "127.0.0.1:1"],
        cwd=PROJECT,
        env={**os.environ, "PULUMI_RUNTIME_VIRTUALENV": str(environment)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout
        assert int(process.stdout.readline()) > 0
        process.stdin.close()
        assert process.wait(timeout=PATIENCE) == 0
