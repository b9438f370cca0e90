"""Where the engine is looked for, in which order, and what is made when it is nowhere.

``pulumi`` and ``go`` are small programs on a PATH of their own, so that order and arguments can be seen
without building anything.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.engine import install
from tests.rows import rows

pytestmark = pytest.mark.skipif(install.WINDOWS, reason="the fake programs are scripts with a #! line")

NO_WAY_OUT = "Name or service not known"
CLI = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")


class Machine:
    """A machine with nothing on it: a PATH, a home and a cache, and what was said and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.cache = folder / "cache"
        self.log = folder / "log"
        self.said: list[str] = []
        self.environ = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "HOMELAB_CACHE": str(self.cache),
            # For what runs as a process of its own: no download, whatever this machine can reach.
            "https_proxy": "http://127.0.0.1:9",
        }
        for path in (self.bin, self.home):
            path.mkdir()

    def program(self, name: str, body: str, folder: Path | None = None) -> Path:
        """Puts a Python program on PATH. It finds its arguments in ``args`` and notes each run in the log."""
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"""\
            #!{sys.executable}
            import json, os, pathlib, sys
            args = sys.argv[1:]
            with open({str(self.log)!r}, "a") as log:
                log.write(json.dumps([{name!r}, os.getcwd(), *args]) + "\\n")
            """
        path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        path.chmod(0o755)
        return path

    def runs(self, name: str) -> list[list[str]]:
        """The runs of a program: its folder and arguments."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [run[1:] for run in map(json.loads, lines) if run[0] == name]

    def pulumi(self, version: str, *, hosts: bool = True) -> Path:
        if hosts:
            self.program("pulumi-language-python", "")
        return self.program("pulumi", f"print('v{version}')")

    def go(self) -> None:
        """A Go that builds nothing: it writes the file that is wanted, with the flags that it saw."""
        sdk = self.folder / "sdk"
        for name in ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python"):
            (sdk / "python" / name).parent.mkdir(parents=True, exist_ok=True)
            (sdk / "python" / name).write_text(name)
        body = f"""
            if args[:2] == ["list", "-m"]:
                print({str(sdk)!r})
            elif args[0] == "list":
                print("fmt\\nos\\nmain")
            else:
                seen = {{name: os.environ.get(name) for name in ("GOFLAGS", "GOWORK", "GOOS")}}
                pathlib.Path(args[args.index("-o") + 1]).write_text(json.dumps(seen))
            """
        self.program("go", body)

    def plugin(self, home: Path) -> Path:
        """Puts a real plugin into a PULUMI_HOME."""
        folder = install.plugin_in(home)
        folder.mkdir(parents=True)
        (folder / "pulumi-resource-command").write_text("real")
        return folder

    def ensure(self) -> install.Engine:
        return install.ensure(self.environ, self.said.append)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without a way out."""
    monkeypatch.setattr(install, "reachable", lambda: NO_WAY_OUT)
    return Machine(tmp_path)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of Pulumi's downloads, which come from this machine by HTTP."""
    folder = tmp_path / "downloads"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(install, "DOWNLOADS", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(install, "PINS", {})
        yield folder / "releases"
        server.shutdown()


@pytest.fixture
def online(machine: Machine, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that reaches Pulumi's downloads."""
    monkeypatch.setattr(install, "reachable", lambda: None)
    for tool in ("tar", "gzip"):
        (machine.bin / tool).symlink_to(str(shutil.which(tool)))
    return machine


def offer(archive: Path, *files: str) -> Path:
    """Puts an archive of files that have their names in them among the downloads, with a pin that two sources have."""
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as members:
        for name in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(name), 0o755
            members.addfile(member, io.BytesIO(name.encode()))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    install.PINS[archive.name] = {"sha256": digest, "sources": ["one", "two"]}
    return archive


def built_once(machine: Machine) -> list[str]:
    """The names of what Go built, in order."""
    return [Path(run[run.index("-o") + 1]).name for run in machine.runs("go") if "build" in run]


# --- versions ---


@rows(
    ("version", "fits"),
    [("3.187.0", False), ("3.258.9", False), ("v3.259.0", True), ("3.1000.0", True), ("4.0.0", False)],
)
def test_a_version_is_compared_number_by_number(version: str, fits: bool) -> None:
    assert install.in_range(version) is fits


def test_a_version_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"wanted a version like 3\.259\.0, found 'dev'"):
        install.parse_version("dev\n")


@pytest.mark.parametrize("folder", [".", "examples/gaming_vm"])
def test_the_range_is_the_projects(folder: str) -> None:
    project = install.REPOSITORY / folder / "Pulumi.yaml"
    found = re.search(r"^requiredPulumiVersion:\s*(['\"]?)(.+?)\1\s*$", project.read_text("utf-8"), re.MULTILINE)
    assert found, f"{project} has no requiredPulumiVersion"
    assert found[2].replace(",", " ").split() == install.REQUIRED_PULUMI_VERSION.split()


def test_the_pins_are_those_of_the_modules() -> None:
    cli = (install.MODULES / "go.mod").read_text("utf-8")
    assert f"require github.com/pulumi/pulumi/pkg/v3 v{install.PULUMI_VERSION}\n" in cli
    assert f"\tgithub.com/pulumi/pulumi/sdk/v3 v{install.PULUMI_VERSION} // indirect\n" in cli
    assert install.in_range(install.PULUMI_VERSION)
    assert f'"pulumi~={install.PULUMI_VERSION}"' in (install.REPOSITORY / "pyproject.toml").read_text("utf-8")
    older = install.PULUMI_VERSION.rpartition(".")[0]
    assert f"({older} or later)" in (install.REPOSITORY / "README.md").read_text("utf-8")
    plugin = (install.MODULES / "command" / "main.go").read_text("utf-8")
    assert f'pluginVersion = "{install.PLUGIN_VERSION}"' in plugin


@pytest.mark.parametrize("module", [".", "python", "command"])
def test_every_required_module_has_its_checksum(module: str) -> None:
    text = (install.MODULES / module / "go.mod").read_text("utf-8")
    sums = (install.MODULES / module / "go.sum").read_text("utf-8")
    required = set(re.findall(r"^(?:require )?\s*(\S+\.\S+/\S+) (v\S+)", text, re.MULTILINE))
    assert len(required) > 50
    replaced = set(re.findall(r"^replace (\S+) =>", text, re.MULTILINE))
    missing = [
        path for path, version in required if path not in replaced and f"{path} {version}/go.mod h1:" not in sums
    ]
    assert missing == []


# --- the CLI ---


def test_a_pulumi_on_path_is_used(machine: Machine) -> None:
    pulumi = machine.pulumi("3.260.0")
    machine.plugin(machine.cache / "home")
    engine = machine.ensure()
    assert (engine.pulumi, engine.version, engine.source, engine.bin) == (
        pulumi,
        "3.260.0",
        "path",
        machine.bin,
    )
    assert machine.said == []


def test_a_linked_pulumi_has_its_language_host_where_the_link_points(machine: Machine) -> None:
    real = machine.folder / "opt"
    machine.program("pulumi-language-python", "", real)
    (machine.bin / "pulumi").symlink_to(machine.program("pulumi", "print('v3.260.0')", real))
    machine.plugin(machine.cache / "home")
    assert machine.ensure().source == "path"


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (lambda machine: machine.pulumi("3.100.0"), "is version 3.100.0, outside >=3.259.0 <4.0.0"),
        (
            lambda machine: machine.pulumi("3.260.0", hosts=False),
            "no pulumi-language-python beside it or on PATH",
        ),
        (lambda machine: machine.program("pulumi", "sys.exit(3)"), "doesn't tell its version"),
        (lambda machine: machine.program("pulumi", "print('hello')"), "wanted a version like"),
    ],
)
def test_a_pulumi_that_does_not_fit_is_named_and_one_is_built(
    machine: Machine, put: Callable[[Machine], Path], why: str
) -> None:
    pulumi = put(machine)
    machine.go()
    assert machine.ensure().source == "made"
    assert machine.said[0].startswith(f"not used: {pulumi} ")
    assert why in machine.said[0]


def test_the_cli_comes_out_of_pulumis_archive(online: Machine, downloads: Path) -> None:
    offer(downloads / "sdk" / install.CLI_ARCHIVE, *(f"pulumi/{name}" for name in (*CLI, "pulumi-language-go")))
    online.plugin(online.home / ".pulumi")
    engine = online.ensure()
    assert engine.source == "made"
    assert {path.name: path.read_text() for path in engine.bin.iterdir()} == {name: f"pulumi/{name}" for name in CLI}
    assert all(os.access(path, os.X_OK) for path in engine.bin.iterdir())
    assert online.ensure() == engine


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("another one", "its SHA-256 is "),
        ("cut short", "bytes arrived"),
        ("without the language host", "returned non-zero exit status"),
        ("of one source", "lab/engine/pins.json has no sum of it from two sources"),
        ("not there", "HTTP Error 404"),
    ],
)
def test_an_archive_that_is_not_the_pinned_one_is_not_used(
    online: Machine, downloads: Path, monkeypatch: pytest.MonkeyPatch, fault: str, why: str
) -> None:
    names = CLI[:1] if fault == "without the language host" else CLI
    archive = offer(downloads / "sdk" / install.CLI_ARCHIVE, *(f"pulumi/{name}" for name in names))
    if fault == "another one":
        archive.write_bytes(archive.read_bytes() + b"\n")
    if fault == "cut short":  # the connection, not what the server has
        monkeypatch.setattr(
            http.server.SimpleHTTPRequestHandler, "copyfile", lambda _, source, out: out.write(source.read(9))
        )
    if fault == "of one source":
        install.PINS[archive.name]["sources"] = ["one"]
    if fault == "not there":
        archive.unlink()
    online.go()
    online.plugin(online.home / ".pulumi")
    engine = online.ensure()
    assert engine.pulumi.read_text().startswith('{"GOFLAGS"'), "it is the one that Go has built"
    said = f"Pulumi's {archive.name} isn't used: "
    assert [line for line in online.said if line.startswith(said) and why in line]
    assert not [path for path in (online.cache / "engine").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("machine", ["x64", "arm64"])
def test_a_pin_of_the_cli_has_two_sources_that_do_not_copy_each_other(system: str, machine: str) -> None:
    pin = install.PINS[f"pulumi-v{install.PULUMI_VERSION}-{system}-{machine}.tar.gz"]
    assert re.fullmatch("[0-9a-f]{64}", pin["sha256"])
    assert len({source.split("/")[3] for source in pin["sources"]}) > 1


def test_what_is_run_to_make_the_engine_gets_no_secret(
    machine: Machine, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go, tar, `pulumi version` and `pulumi plugin install` all see the environment of `without_secrets`."""
    secrets = {
        "PULUMI_CONFIG_PASSPHRASE": "geheim",
        "PULUMI_CONFIG_PASSPHRASE_FILE": "/f",
        "PULUMI_ACCESS_TOKEN": "pul-1",
    }
    secrets |= {"AWS_SECRET_ACCESS_KEY": "a", "GITHUB_TOKEN": "ghp", "VAULT_PASSWORD": "p", "GOOGLE_CREDENTIALS": "c"}
    machine.environ |= secrets
    seen = f"pathlib.Path({str(machine.folder)!r}, 'seen-' + name).write_text(json.dumps(dict(os.environ)))"
    machine.program("pulumi-language-python", "")
    machine.program("pulumi", f"name = 'pulumi-' + args[0]\n{seen}\nprint('v3.260.0')")
    made = install.Maker(machine.environ, machine.said.append)
    cli = made.cli()
    made.run_plugin_install(cli)
    machine.program("go", f"name = 'go'\n{seen}")
    install.Go(machine.bin / "go", machine.environ, machine.folder, machine.said.append).run(machine.folder, "version")
    offer(downloads / "sdk" / install.CLI_ARCHIVE)
    monkeypatch.setattr(install, "reachable", lambda: None)
    machine.program("tar", f"name = 'tar'\n{seen}\nsys.exit(1)")
    assert install.Maker(machine.environ, machine.said.append).fetch_cli() is None
    for name in ("pulumi-version", "pulumi-plugin", "go", "tar"):
        known = json.loads((machine.folder / f"seen-{name}").read_text())
        assert not secrets.keys() & known.keys(), name
        assert known["HOME"] == str(machine.home) and known["https_proxy"]


def test_the_cli_is_built_from_the_modules(machine: Machine) -> None:
    machine.environ |= {"GOFLAGS": "-mod=mod", "GOWORK": "/somewhere/go.work", "GOOS": "plan9"}
    machine.go()
    engine = machine.ensure()
    assert engine.source == "made"
    assert engine.pulumi == engine.bin / "pulumi"
    names = {path.name: path.stat().st_mode & 0o111 for path in engine.bin.iterdir()}
    assert set(names) == set(CLI)
    assert names["pulumi-language-python-exec"]
    assert names["pulumi-resource-pulumi-python"]
    assert json.loads(engine.pulumi.read_text()) == {
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
        "GOOS": None,
    }
    folder, *arguments = next(run for run in machine.runs("go") if "build" in run)
    assert folder == str(install.MODULES)
    assert arguments[:5] == ["build", "-v", "-buildvcs=false", "-trimpath", "-ldflags"]
    assert arguments[5].startswith("-s -w -X github.com/pulumi/pulumi/sdk/v3/")
    assert arguments[5].endswith(f"version.Version=v{install.PULUMI_VERSION}")
    assert arguments[-1] == "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
    assert machine.said[:2] == [
        f"Pulumi's {install.CLI_ARCHIVE} isn't used: {NO_WAY_OUT}",
        f"building Pulumi {install.PULUMI_VERSION} from Go modules: about 5 minutes on 2 cores, once",
    ]


def test_the_modules_of_all_builds_are_fetched_before_the_first_is_built(machine: Machine) -> None:
    machine.go()
    machine.ensure()
    fetched = [Path(run[0]).name for run in machine.runs("go")[:3] if run[1:3] == ["list", "-deps"]]
    assert sorted(fetched) == ["command", "engine", "python"]


def test_how_far_it_is_is_said_every_few_seconds(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "TELL_SECONDS", 0.01)
    go = machine.program("go", "print(*'abc', sep='\\n')")
    tool = install.Go(go, machine.environ, machine.folder, machine.said.append)
    tool.fetch((machine.folder, "."))
    two = "print('fmt\\nos', file=sys.stderr, flush=True)"
    machine.program(
        "go", f"{two}\nimport time\nwhile not pathlib.Path({str(machine.folder / 'seen')!r}).exists(): time.sleep(0.01)"
    )
    wanted = "building pulumi, 2 of at most 3 packages so far, 0 s"

    def say(line: str) -> None:
        if re.sub(r"\d+ s$", "0 s", line) == wanted:
            (machine.folder / "seen").touch()

    tool.say = say
    tool.build(machine.folder, ".", machine.folder / "pulumi")
    assert (machine.folder / "seen").exists()


def test_a_second_run_makes_nothing_and_says_nothing(machine: Machine) -> None:
    machine.go()
    first = machine.ensure()
    ran = machine.runs("go")
    machine.said.clear()
    assert machine.ensure() == first
    assert machine.runs("go") == ran
    assert machine.said == []


def test_what_was_built_is_not_taken_for_the_users_own(machine: Machine) -> None:
    machine.go()
    engine = machine.ensure()
    machine.environ = engine.environment(machine.environ)
    assert machine.ensure() == engine


def test_two_runs_at_once_build_once(machine: Machine) -> None:
    machine.go()
    with ThreadPoolExecutor(2) as pool:
        engines = [run.result() for run in [pool.submit(machine.ensure) for _ in range(2)]]
    assert engines[0] == engines[1]
    assert sorted(built_once(machine)) == ["pulumi", "pulumi-language-python", "pulumi-resource-command"]


def test_other_pins_are_another_folder(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = install.Maker(machine.environ, machine.said.append)
    before = maker.made_folder()
    modules = tmp_path / "modules"
    for name in ("go.mod", "go.sum", "python/go.mod", "python/go.sum"):
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_bytes((install.MODULES / name).read_bytes())
    monkeypatch.setattr(install, "MODULES", modules)
    assert maker.made_folder() == before
    with (modules / "python" / "go.sum").open("a") as sums:
        sums.write("\n")
    assert maker.made_folder() != before


def test_a_build_that_fails_says_how_and_leaves_nothing(machine: Machine) -> None:
    machine.program("go", "print('proxy: 404 Not Found', file=sys.stderr); sys.exit(1)")
    with pytest.raises(
        install.EngineError, match=r"(?s)wanted: `go list .*found: exit status 1:\nproxy: 404 Not Found"
    ):
        machine.ensure()
    left = {path.name for path in (machine.cache / "engine").iterdir()}
    assert left == {"lock", "engine.log", "python.log", "command.log"}


def test_without_go_the_message_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(install.EngineError) as failure:
        machine.ensure()
    message = str(failure.value)
    assert message.startswith("wanted: the Go command")
    for part in (
        "found: none on PATH",
        "nothing is downloaded to be run unchecked",
        "install Pulumi (",
        f"pulumi {install.REQUIRED_PULUMI_VERSION}",
    ):
        assert part in message


def test_a_host_that_never_answers_is_unreachable_within_the_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        why = install.reachable(url, seconds=0.2)
    assert why is not None


def test_a_name_that_is_none_is_unreachable() -> None:
    assert install.reachable("https://pulumi.invalid", seconds=10)


# --- the plugin ---


def test_a_real_plugin_in_the_chosen_home_is_used_as_it_is(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    chosen = machine.folder / "chosen"
    machine.plugin(chosen)
    machine.environ["PULUMI_HOME"] = str(chosen)
    engine = machine.ensure()
    assert (engine.plugin, engine.home) == ("real", chosen)
    assert not (machine.cache / "home").exists()


def test_a_real_plugin_in_the_users_home_is_used_too(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    users = machine.plugin(machine.home / ".pulumi")
    engine = machine.ensure()
    assert (engine.plugin, engine.home) == ("real", machine.cache / "home")
    shared = install.plugin_in(engine.home)
    assert not shared.is_symlink(), "Pulumi takes no notice of a plugin folder that is a symbolic link"
    assert [path.name for path in shared.iterdir()] == ["pulumi-resource-command"]
    assert (shared / "pulumi-resource-command").samefile(users / "pulumi-resource-command")
    assert not machine.runs("go")


def test_an_interrupted_install_is_not_a_plugin(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    machine.go()
    folder = machine.plugin(machine.home / ".pulumi")
    folder.with_name(folder.name + ".partial").touch()
    assert machine.ensure().plugin == "stand-in"


def test_pulumi_installs_the_real_plugin_where_it_can(online: Machine) -> None:
    online.program("pulumi-language-python", "")
    body = f"""
        if args == ["version"]:
            print("v3.260.0")
        else:
            folder = pathlib.Path(os.environ["PULUMI_HOME"], "plugins", {install.PLUGIN_FOLDER!r})
            folder.mkdir(parents=True)
            (folder / "pulumi-resource-command").touch()
        """
    online.program("pulumi", body)
    engine = online.ensure()
    assert (engine.plugin, engine.home) == ("real", online.cache / "home")
    assert online.runs("pulumi")[1][1:] == ["plugin", "install", "resource", "command", install.PLUGIN_VERSION]
    assert online.said[-2:] == [
        f"Pulumi's {install.PLUGIN_ARCHIVE} isn't used: lab/engine/pins.json has no sum of it from two sources",
        "`pulumi plugin install` fetches it instead, and compares it with nothing",
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_the_real_plugin_comes_out_of_pulumis_archive(online: Machine, downloads: Path, whole: bool) -> None:
    online.pulumi("3.260.0")
    online.go()
    archive = offer(downloads / "plugins" / install.PLUGIN_ARCHIVE, "pulumi-resource-command")
    if not whole:
        archive.write_bytes(archive.read_bytes()[:-1])
    engine = online.ensure()
    assert engine.plugin == ("real" if whole else "stand-in"), "what isn't pinned isn't fetched in another way either"
    text = (install.plugin_in(engine.home) / "pulumi-resource-command").read_text()
    assert text.startswith("pulumi-resource-command" if whole else "{")
    assert [run[1:] for run in online.runs("pulumi")] == [["version"]]


def test_a_plugin_install_that_fails_is_said_and_the_stand_in_follows(online: Machine) -> None:
    online.program("pulumi-language-python", "")
    online.program("pulumi", "print('v3.260.0') if args == ['version'] else sys.exit(5)")
    online.go()
    assert online.ensure().plugin == "stand-in"
    assert any("`pulumi plugin install` ended with exit status 5" in line for line in online.said)


def test_the_stand_in_goes_into_the_projects_home_only_and_is_said(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    machine.go()
    users = machine.home / ".pulumi"
    machine.environ["PULUMI_HOME"] = str(users)
    engine = machine.ensure()
    assert (engine.plugin, engine.home) == ("stand-in", machine.cache / "home")
    folder = install.plugin_in(engine.home)
    assert {path.name for path in folder.iterdir()} == {"pulumi-resource-command", install.STAND_IN_NOTE}
    assert not users.exists()
    assert len([line for line in machine.said if "stand-in" in line and NO_WAY_OUT in line]) == 1
    assert any(line.startswith(f"PULUMI_HOME={users} has no plugin") for line in machine.said)


def test_a_real_plugin_takes_the_stand_ins_place(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    machine.go()
    assert machine.ensure().plugin == "stand-in"
    users = machine.plugin(machine.home / ".pulumi")
    engine = machine.ensure()
    assert engine.plugin == "real"
    shared = install.plugin_in(engine.home)
    assert not shared.is_symlink(), "Pulumi takes no notice of a plugin folder that is a symbolic link"
    assert [path.name for path in shared.iterdir()] == ["pulumi-resource-command"]
    assert (shared / "pulumi-resource-command").samefile(users / "pulumi-resource-command")


def test_a_real_plugin_put_over_the_stand_in_is_used(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    machine.go()
    engine = machine.ensure()
    install.remove(install.plugin_in(engine.home))
    machine.plugin(engine.home)
    assert machine.ensure().plugin == "real"


def test_a_stand_in_of_other_sources_is_built_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.pulumi("3.260.0")
    machine.go()
    machine.ensure()
    monkeypatch.setattr(install, "key_of", lambda folder: "0123456789ab")
    machine.ensure()
    assert built_once(machine) == ["pulumi-resource-command"] * 2
    assert install.note_of(install.plugin_in(machine.cache / "home")) == "0123456789ab"


def test_the_key_changes_with_a_source(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.go").write_text("package a")
    (tmp_path / "notes.md").write_text("one")
    before = install.key_of(tmp_path)
    (tmp_path / "notes.md").write_text("two")
    assert install.key_of(tmp_path) == before
    (tmp_path / "sub" / "a.go").rename(tmp_path / "sub" / "b.go")
    assert install.key_of(tmp_path) != before


# --- the command line ---


def run_installer(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(install.MODULES / "install.py"), *arguments]
    return subprocess.run(command, env=machine.environ, capture_output=True, text=True, check=False)


def test_json_is_for_programs(machine: Machine) -> None:
    machine.pulumi("3.260.0")
    machine.plugin(machine.cache / "home")
    done = run_installer(machine, "--json")
    assert json.loads(done.stdout) == {
        "pulumi": str(machine.bin / "pulumi"),
        "version": "3.260.0",
        "source": "path",
        "plugin": "real",
        "home": str(machine.cache / "home"),
        "bin": str(machine.bin),
    }


def test_the_printed_environment_is_what_the_engine_runs_in(machine: Machine) -> None:
    machine.cache = machine.folder / "a cache with 'quotes'"
    machine.environ["HOMELAB_CACHE"] = str(machine.cache)
    machine.pulumi("3.260.0")
    machine.plugin(machine.cache / "home")
    lines = run_installer(machine, "--print-env").stdout
    shows = 'printf "%s\\n" "$PATH" "$PULUMI_HOME" "$PULUMI_SKIP_UPDATE_CHECK"'
    shown = subprocess.run(
        ["/bin/sh", "-c", lines + shows], env={"PATH": "/usr/bin"}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == [f"{machine.bin}:/usr/bin", str(machine.cache / "home"), "true"]


def test_no_engine_is_exit_status_1_and_nothing_on_stdout(machine: Machine) -> None:
    machine.program("go", "sys.exit(1)")
    done = run_installer(machine, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "engine: wanted: `go list" in done.stderr


def test_the_cache_is_in_the_repository_unless_it_is_named() -> None:
    assert install.cache_folder({}) == install.REPOSITORY / ".cache"
    assert install.cache_folder({"HOMELAB_CACHE": "/var/cache/lab"}) == Path("/var/cache/lab")


def test_the_environment_keeps_what_was_there() -> None:
    engine = install.Engine(Path("/e/pulumi"), "3.259.0", "made", "stand-in", Path("/h"), Path("/e"))
    found = engine.environment({"PATH": "/usr/bin", "LANG": "C"})
    assert found == {
        "PATH": f"/e{os.pathsep}/usr/bin",
        "LANG": "C",
        "PULUMI_HOME": "/h",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
