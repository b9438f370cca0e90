#!/usr/bin/env python3
"""Finds the Pulumi CLI and the plugin of pulumi-command, or fetches or builds them.

Owns the project's cache folder (`HOMELAB_CACHE`, default `.cache` in the repository):

- `engine/<key>/bin`: the CLI; the key names its version and the hash of the module files that it is built from where it isn't fetched.
- `engine/plugin-<key>/`: the stand-in for pulumi-command's plugin, keyed by the hash of its sources.
- `home/`: a `PULUMI_HOME` of the project's own. The user's `~/.pulumi` is read, never written.
- `engine/…-windows`, `home-windows/`: the same as programs of Windows, which tests run under Wine (`Maker.for_windows`).

Every folder appears whole, by a rename, and under a lock: several runs at once make each thing once. The
standard library is enough, so that this also runs before any environment is set up::

    python lab/engine/install.py               what was found, for people
    python lab/engine/install.py --json        the same for programs
    eval "$(python lab/engine/install.py --print-env)"

Facts used here: plugins are looked up in `$PULUMI_HOME/plugins/<kind>-<name>-v<version>/`, and an install
that was interrupted leaves `<folder>.partial` beside it (Pulumi's sdk/go/common/workspace); language hosts
are looked up on PATH and beside the CLI.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import http.client
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

MODULES = Path(__file__).resolve().parent
REPOSITORY = MODULES.parents[1]

PULUMI_VERSION = "3.259.0"
"""The CLI that is fetched or built, and the oldest that the program runs on; a test compares lab/engine/go.mod, the SDK in pyproject.toml, Pulumi.yaml and README.md."""

REQUIRED_PULUMI_VERSION = f">={PULUMI_VERSION} <4.0.0"
"""The CLIs that the program runs on: `requiredPulumiVersion` in Pulumi.yaml."""

PLUGIN_VERSION = "1.2.1"
PLUGIN_FOLDER = f"resource-command-v{PLUGIN_VERSION}"
STAND_IN_NOTE = "STAND-IN.txt"
"""A file that only the stand-in's plugin folder has. Its first line is the key of its sources."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
SYSTEM = f"{platform.system()}-{_MACHINES.get(platform.machine(), platform.machine())}".lower()
CLI_ARCHIVE = f"pulumi-v{PULUMI_VERSION}-{SYSTEM.replace('amd64', 'x64')}.tar.gz"
PLUGIN_ARCHIVE = f"pulumi-resource-command-v{PLUGIN_VERSION}-{SYSTEM}.tar.gz"
PINS: dict[str, Any] = json.loads((MODULES / "pins.json").read_text("utf-8"))
"""Of Pulumi's archives by their names: `sha256`, and the `sources` that have this sum."""
PULUMI = "github.com/pulumi/pulumi"
# Beside the CLI; the module `sdk/v3` has both below `python/`.
HELPERS = ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python")

DOWNLOADS = "https://get.pulumi.com"
REACHABLE_SECONDS = 3.0
"""Patience for a host that neither answers nor refuses. Without a way out, DNS mostly fails at once."""
FETCH_SECONDS = 30.0
"""Patience for the next part of an archive."""
TELL_SECONDS = 5.0
PLUGIN_SECONDS = 600.0
VERSION_SECONDS = 60.0

WINDOWS = os.name == "nt"
EXE = ".exe" if WINDOWS else ""

Say = Callable[[str], None]
Environ = Mapping[str, str]


class EngineError(Exception):
    """No engine: the message says what was wanted, what was found, why it matters and what to do next."""


@dataclasses.dataclass(frozen=True)
class Cli:
    """A Pulumi CLI: the program, its version without the `v`, and where it comes from."""

    pulumi: Path
    version: str
    source: Literal["path", "made"]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A CLI and a plugin that fit together, and the environment in which they find each other."""

    pulumi: Path
    version: str
    source: Literal["path", "made"]
    plugin: Literal["real", "stand-in"]
    home: Path
    bin: Path

    def variables(self) -> dict[str, str]:
        """The variables to set, beside PATH.

        PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION stays as it is: other plugins may be downloaded.
        """
        return {"PULUMI_HOME": str(self.home), "PULUMI_SKIP_UPDATE_CHECK": "true"}

    def environment(self, base: Environ | None = None) -> dict[str, str]:
        """`base` (default: this process's environment) with what running `pulumi` needs."""
        environment = dict(os.environ if base is None else base)
        environment["PATH"] = os.pathsep.join(filter(None, [str(self.bin), environment.get("PATH", "")]))
        return environment | self.variables()

    def as_json(self) -> str:
        """One line of JSON with the fields as strings."""
        return json.dumps({field: str(value) for field, value in dataclasses.asdict(self).items()})


def say_on_stderr(line: str) -> None:
    """Tells the user what happens, on stderr: stdout is for the result."""
    print(f"engine: {line}", file=sys.stderr, flush=True)


def cache_folder(environ: Environ = os.environ) -> Path:
    """Where all that is made here is kept: `HOMELAB_CACHE`, or `.cache` in the repository."""
    return Path(environ.get("HOMELAB_CACHE") or REPOSITORY / ".cache").expanduser().absolute()


def ensure(environ: Environ = os.environ, say: Say = say_on_stderr) -> Engine:
    """Finds or makes the engine. With everything in place this only looks.

    :raises EngineError: there is none and none could be made.
    """
    maker = Maker(environ, say)
    cli = maker.cli()
    plugin = maker.plugin(cli)
    return Engine(cli.pulumi, cli.version, cli.source, plugin, maker.home, cli.pulumi.parent)


# --- versions ---

Version = tuple[int, int, int]


def parse_version(text: str) -> Version:
    """The three numbers of a version like `v3.259.0` or `3.259.0-alpha.1` (whose tail is left out).

    :raises ValueError: the text isn't a version.
    """
    found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", text.strip())
    if not found:
        raise ValueError(f"wanted a version like 3.259.0, found {text.strip()!r}")
    return int(found[1]), int(found[2]), int(found[3])


def in_range(version: str) -> bool:
    """Whether the program runs on a CLI of this version (`REQUIRED_PULUMI_VERSION`)."""
    return parse_version(PULUMI_VERSION) <= parse_version(version) < (4, 0, 0)


# --- small tools ---


def key_of(folder: Path) -> str:
    """A short hash of the sources that are built in a folder: of their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".go", ".mod", ".sum"}:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def reachable(url: str = DOWNLOADS, seconds: float = REACHABLE_SECONDS) -> str | None:
    """None when the host answers within `seconds`, else why not. Proxies of the environment are used."""
    answer = [f"no answer within {seconds:g} seconds"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answer[0] = ""
        except (OSError, ValueError) as error:
            answer[0] = str(getattr(error, "reason", None) or error)

    # Looking up a name has no time limit of its own: a thread that may be left behind gives it one.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answer[0] or None


# What a program that only builds or fetches has no use for. Addresses of proxies stay, which it needs.
_SECRET = re.compile(r"PASSPHRASE|PASSWORD|SECRET|TOKEN|CREDENTIAL|(ACCESS|PRIVATE|API)_?KEY", re.IGNORECASE)


def without_secrets(environ: Environ) -> dict[str, str]:
    """An environment without the user's passphrase and tokens: for whatever is run here to find, fetch or build the engine."""
    return {name: value for name, value in environ.items() if not _SECRET.search(name)}


@contextlib.contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Holds an exclusive lock while the block runs. The system lets go of it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        if not _lock(handle.fileno(), wait=False):
            say(f"another run is making the engine; waiting for it ({path})")
            _lock(handle.fileno(), wait=True)
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> bool:
        while True:
            try:
                os.lseek(descriptor, 0, os.SEEK_SET)
                # LK_LOCK tries for ten seconds, then raises.
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
            else:
                return True

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


def pinned(archive: str) -> str | None:
    """The SHA-256 of one of Pulumi's archives; None unless two independent sources have it."""
    pin = PINS.get(archive, {"sources": []})
    return str(pin["sha256"]) if len(pin["sources"]) > 1 else None


@contextlib.contextmanager
def telling(say: Say, progress: Callable[[], str]) -> Iterator[None]:
    """Says every few seconds how far the block is."""
    done, since = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            say(f"{progress()}, {time.monotonic() - since:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, beside the one that is wanted; it takes its place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        yield fresh
        remove(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove(path: Path) -> None:
    """Takes away a file, a link or a folder; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


# --- finding and making ---


class Maker:
    """Looks for each part in order, and makes what is missing. `windows`: programs of Windows, wherever this runs."""

    def __init__(self, environ: Environ, say: Say, *, windows: bool = WINDOWS) -> None:
        self.environ = environ
        self.say = say
        self.cache = cache_folder(environ)
        self.folder = self.cache / "engine"
        self.windows = windows
        self.exe = ".exe" if windows else ""
        self._elsewhere = "" if windows == WINDOWS else "-windows"
        self.home = self.cache / f"home{self._elsewhere}"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One lock for all that is made: parts depend on each other, and a machine has but so many cores."""
        return locked(self.folder / "lock", self.say)

    @functools.cached_property
    def unreachable(self) -> str | None:
        """Why Pulumi's downloads can't be reached, asked once; None when they can."""
        return reachable()

    def for_windows(self) -> Engine:
        """The CLI, and the plugin (the real one where `home` has it, else the stand-in), as programs of Windows that are built here.

        :raises EngineError: they can't be built.
        """
        with self.lock():
            cli = self.cli_made_earlier() or self.build_cli()
            here = plugin_in(self.home)
            plugin: Literal["real", "stand-in"] = "real" if is_real(here) else "stand-in"
            if plugin == "stand-in" and note_of(here) != key_of(MODULES / "command"):
                self.put_stand_in()
        return Engine(cli.pulumi, cli.version, cli.source, plugin, self.home, cli.pulumi.parent)

    # The CLI.

    def cli(self) -> Cli:
        """The CLI: on PATH, else made earlier, else fetched, else built.

        Nothing is run unchecked: an archive has a pinned sum, and a build checks every source against go.sum. Pulumi's installer is a
        script that changes with every release and checks nothing that it fetches.
        """
        found = self.cli_on_path() or self.cli_made_earlier()
        if found:
            return found
        with self.lock():
            return self.cli_made_earlier() or self.fetch_cli() or self.build_cli()

    def cli_on_path(self) -> Cli | None:
        """`pulumi` on PATH, when its version is in range and Python programs can run on it."""
        where = shutil.which("pulumi", path=self.environ.get("PATH", ""))
        if where is None:
            return None
        pulumi = Path(where)
        if self.folder in pulumi.parents:
            return None  # one of ours, on PATH since an earlier run; it may be of older pins
        version = self.version_of(pulumi)
        if version is None:
            return None
        if not in_range(version):
            self.say(
                f"not used: {pulumi} is version {version}, outside {REQUIRED_PULUMI_VERSION}, "
                "which this program was tried on"
            )
            return None
        host = f"pulumi-language-python{EXE}"
        # A link like /usr/local/bin/pulumi has its language hosts where it points to.
        beside = {pulumi.parent, pulumi.resolve().parent}
        on_path = shutil.which(host, path=self.environ.get("PATH", ""))
        if on_path is None and not any((folder / host).exists() for folder in beside):
            self.say(f"not used: {pulumi} can't run Python programs: no {host} beside it or on PATH")
            return None
        return Cli(pulumi, version, "path")

    def version_of(self, pulumi: Path) -> str | None:
        """What `pulumi version` says, without the `v`; None, with a line said, if that is none."""
        try:
            answer = subprocess.run(
                [str(pulumi), "version"],
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                check=True,
                timeout=VERSION_SECONDS,
                env={**without_secrets(self.environ), "PULUMI_SKIP_UPDATE_CHECK": "true"},
            )
            parse_version(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self.say(f"not used: {pulumi} doesn't tell its version ({error})")
            return None
        return answer.stdout.strip().removeprefix("v")

    def cli_made_earlier(self) -> Cli | None:
        """What an earlier run fetched or built; whole folders only, so that its being there is enough."""
        made = self.made_folder() / "bin" / f"pulumi{self.exe}"
        return Cli(made, PULUMI_VERSION, "made") if made.exists() else None

    def made_folder(self) -> Path:
        """Where the CLI goes that is fetched or built; another version or checksum is another folder."""
        key = hashlib.sha256()
        for module in (MODULES, MODULES / "python"):
            for name in ("go.mod", "go.sum"):
                key.update((module / name).read_bytes())
        return self.folder / f"{PULUMI_VERSION}-{key.hexdigest()[:12]}{self._elsewhere}"

    def fetch_cli(self) -> Cli | None:
        """The CLI and the Python language host out of Pulumi's archive; None when that isn't possible."""
        names = ("pulumi", "pulumi-language-python", *(Path(helper).name for helper in HELPERS))
        wanted = ["--strip-components=1", *(f"pulumi/{name}" for name in names)]
        return self.cli_made_earlier() if self.unpack("sdk", CLI_ARCHIVE, self.made_folder(), "bin", wanted) else None

    def unpack(self, kind: str, archive: str, folder: Path, below: str = "", wanted: Sequence[str] = ()) -> bool:
        """Puts what is wanted of one of Pulumi's archives into a new folder; False, with a line said, when that isn't possible.

        `pulumi plugin install --checksum` leaves the last bytes out where they come together with the end (3.259.0), so it isn't asked.
        """
        pin = pinned(archive)
        why_not = self.unreachable if pin else "lab/engine/pins.json has no sum of it from two sources"
        if pin and why_not is None:
            try:
                content = self.fetch(f"{kind}/{archive}", pin)
                with appearing(folder) as fresh:
                    (fresh / below).mkdir(exist_ok=True)
                    environ = without_secrets(self.environ)
                    subprocess.run(["tar", "-xz", *wanted], input=content, cwd=fresh / below, env=environ, check=True)
                return True
            except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
                why_not = str(error)
        self.say(f"Pulumi's {archive} isn't used: {why_not}")
        return False

    def fetch(self, path: str, pin: str) -> bytes:
        """One of Pulumi's archives.

        :raises OSError, HTTPException: it didn't arrive.
        :raises ValueError: its sum isn't the pinned one.
        """
        content = bytearray()
        with urllib.request.urlopen(f"{DOWNLOADS}/releases/{path}", timeout=FETCH_SECONDS) as answer:
            size = int(answer.headers.get("Content-Length", 0))
            with telling(self.say, lambda: f"fetching {path}: {len(content) >> 20} of {size >> 20} MB"):
                while part := answer.read(1 << 20):
                    content += part
        if len(content) < size:
            raise ValueError(f"only {len(content)} of its {size} bytes arrived")
        actual = hashlib.sha256(content).hexdigest()
        if actual != pin:
            raise ValueError(f"its SHA-256 is {actual}, the pinned one is {pin}")
        return bytes(content)

    def build_cli(self) -> Cli:
        """The CLI and the Python language host from their Go modules, with the two files that aren't Go."""
        go = self.go("the Pulumi CLI")
        self.say(f"building Pulumi {PULUMI_VERSION} from Go modules: about 5 minutes on 2 cores, once")
        cli = (MODULES, f"{PULUMI}/pkg/v3/cmd/pulumi")
        host = (MODULES / "python", f"{PULUMI}/sdk/python/cmd/pulumi-language-python/v3")
        go.fetch(cli, host, *([(MODULES / "command", ".")] if self.unreachable else []))
        with appearing(self.made_folder()) as fresh:
            target = fresh / "bin"
            target.mkdir()
            go.build(*cli, target / f"pulumi{self.exe}")
            go.build(*host, target / f"pulumi-language-python{self.exe}")
            sdk = go.module_folder(MODULES, f"{PULUMI}/sdk/v3")
            for helper in (*HELPERS, *([f"{HELPERS[1]}.cmd"] if self.windows else [])):
                copy = target / Path(helper).name
                copy.write_bytes((sdk / "python" / helper).read_bytes())
                copy.chmod(0o755)
        return Cli(self.made_folder() / "bin" / f"pulumi{self.exe}", PULUMI_VERSION, "made")

    def go(self, for_what: str) -> Go:
        """The Go command.

        :raises EngineError: there is none on PATH.
        """
        where = shutil.which("go", path=self.environ.get("PATH", ""))
        if where is None:
            raise EngineError(
                f"wanted: the Go command (1.25 or newer), to build {for_what}; found: none on PATH. "
                "Without it nothing can be built, and nothing is downloaded to be run unchecked. "
                "Next: run this again, if a download failed above; or install Pulumi (https://www.pulumi.com/docs/iac/download-install) and run this again, or Go "
                "(https://go.dev/dl, or your distribution's golang); "
                f"pulumi {REQUIRED_PULUMI_VERSION} is looked for on PATH, its plugin in ~/.pulumi/plugins/{PLUGIN_FOLDER}."
            )
        return Go(Path(where), self.environ, self.folder, self.say, "windows" if self._elsewhere else "")

    # The plugin.

    def plugin(self, cli: Cli) -> Literal["real", "stand-in"]:
        """Sees to it that pulumi-command's plugin is in the home, and picks the home.

        The home is the project's own, unless `PULUMI_HOME` names one that has the real plugin, which is
        used wherever it already is. The stand-in goes into the project's home only.
        """
        chosen = self.environ.get("PULUMI_HOME")
        if chosen and Path(chosen).absolute() != self.home:
            if is_real(plugin_in(Path(chosen))):
                self.home = Path(chosen).absolute()
                return "real"
            self.say(
                f"PULUMI_HOME={chosen} has no plugin of pulumi-command {PLUGIN_VERSION}: using {self.home}, "
                "so that nothing is put into a folder of yours"
            )
        found = self.plugin_in_home()
        if found:
            return found
        with self.lock():
            return self.plugin_in_home() or self.share_users_plugin() or self.install_plugin(cli) or self.put_stand_in()

    def users_plugin(self) -> Path:
        """Where the user's own Pulumi keeps the plugin."""
        return plugin_in(Path(self.environ.get("HOME") or Path.home()) / ".pulumi")

    def plugin_in_home(self) -> Literal["real", "stand-in"] | None:
        """The plugin in the project's home; a stand-in counts if it is current and there is no real one."""
        here = plugin_in(self.home)
        if is_real(here):
            return "real"
        current = note_of(here) == key_of(MODULES / "command")
        return "stand-in" if current and not is_real(self.users_plugin()) else None

    def share_users_plugin(self) -> Literal["real"] | None:
        """Makes the user's real plugin the one in the project's home too, in a stand-in's place."""
        users = self.users_plugin()
        if not is_real(users):
            return None
        # A real folder: Pulumi takes no notice of a plugin folder that is a symbolic link.
        with appearing(plugin_in(self.home)) as fresh:
            shutil.copytree(users, fresh, copy_function=link_or_copy, dirs_exist_ok=True)
        self.say(f"the plugin of pulumi-command is the real one, from {users}")
        return "real"

    def install_plugin(self, cli: Cli) -> Literal["real"] | None:
        """The real plugin: its archive if its sum is pinned, else by Pulumi itself, unchecked; None, with a line said, when that isn't possible."""
        if self.unpack("plugins", PLUGIN_ARCHIVE, plugin_in(self.home)):
            return "real"
        why_not = self.unreachable or ("it isn't the pinned one" if pinned(PLUGIN_ARCHIVE) else None)
        if why_not is None:
            self.say("`pulumi plugin install` fetches it instead, and compares it with nothing")
            remove(plugin_in(self.home))  # a stand-in of older sources: Pulumi would take it for the real one
            why_not = self.run_plugin_install(cli)
            if is_real(plugin_in(self.home)):
                return "real"
        self.say(
            f"the real plugin of pulumi-command {PLUGIN_VERSION} can't be downloaded ({why_not}): using the "
            "offline stand-in from lab/engine/command; to use the real one instead, put it into "
            f"{plugin_in(self.home)}"
        )
        return None

    def run_plugin_install(self, cli: Cli) -> str:
        """Runs `pulumi plugin install` for the project's home and says how it ended."""
        try:
            done = subprocess.run(
                [str(cli.pulumi), "plugin", "install", "resource", "command", PLUGIN_VERSION],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                timeout=PLUGIN_SECONDS,
                env={
                    **without_secrets(self.environ),
                    "PULUMI_HOME": str(self.home),
                    "PULUMI_SKIP_UPDATE_CHECK": "true",
                },
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"`pulumi plugin install` failed: {error}"
        return f"`pulumi plugin install` ended with exit status {done.returncode}"

    def built_stand_in(self) -> Path:
        """The stand-in's program in the cache, built if need be. Call it under the lock."""
        sources = MODULES / "command"
        built = self.folder / f"plugin-{key_of(sources)}{self._elsewhere}"
        name = f"pulumi-resource-command{self.exe}"
        if not (built / name).exists():
            go = self.go("the stand-in for pulumi-command's plugin")
            go.fetch((sources, "."))
            with appearing(built) as fresh:
                go.build(sources, ".", fresh / name)
        return built / name

    def put_stand_in(self) -> Literal["stand-in"]:
        """Puts the stand-in into the project's home, as the plugin."""
        built, key = self.built_stand_in(), key_of(MODULES / "command")
        with appearing(plugin_in(self.home)) as folder:
            shutil.copy2(built, folder / built.name)
            (folder / STAND_IN_NOTE).write_text(
                f"{key}\n\nThis is not the plugin that Pulumi publishes, but a stand-in for it, built from "
                "lab/engine/command of the homelab project\nbecause the real one could not be downloaded.\n",
                "utf-8",
            )
        return "stand-in"


def plugin_in(home: Path) -> Path:
    """The folder of pulumi-command's plugin in a `PULUMI_HOME`."""
    return home / "plugins" / PLUGIN_FOLDER


def is_real(folder: Path) -> bool:
    """Whether the plugin that Pulumi publishes is in a plugin folder, whole."""
    return (
        any((folder / f"pulumi-resource-command{exe}").exists() for exe in ("", ".exe"))
        and not folder.with_name(folder.name + ".partial").exists()
        and note_of(folder) is None
    )


def note_of(folder: Path) -> str | None:
    """The key of the stand-in in a plugin folder; None when it isn't a stand-in."""
    try:
        return (folder / STAND_IN_NOTE).read_text("utf-8").split("\n", 1)[0]
    except OSError:
        return None


def link_or_copy(source: str, target: str) -> None:
    """Gives a file a second name; a copy where that isn't possible (another file system)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Go:
    """The Go command, kept apart from the user's own Go settings. `system`: of the programs that it builds, as in GOOS; empty: this one."""

    def __init__(self, go: Path, environ: Environ, logs: Path, say: Say, system: str = "") -> None:
        self.go = go
        self.logs = logs
        self.say = say
        self.packages: dict[Path, int] = {}
        # GOFLAGS and GOWORK may be in the environment or in the file of `go env -w`: a value set here wins
        # over both. GOOS and GOARCH would cross-compile what has to run here.
        known = without_secrets(environ)
        self.environ = {name: value for name, value in known.items() if name not in {"GOOS", "GOARCH"}}
        self.environ |= {"GOFLAGS": "-mod=readonly", "GOWORK": "off", "CGO_ENABLED": "0"}
        if system:
            self.environ["GOOS"] = system

    def fetch(self, *builds: tuple[Path, str]) -> None:
        """Downloads the modules of several builds side by side, and counts their packages.

        :raises EngineError: one couldn't be downloaded.
        """

        def count(build: tuple[Path, str]) -> tuple[Path, int]:
            module, package = build
            doing = f"fetching the modules of {module.name}, {{}} so far"
            return module, self.run(module, "list", "-deps", package, doing=doing).count("\n")

        with ThreadPoolExecutor() as pool:
            self.packages |= dict(pool.map(count, builds))

    def build(self, module: Path, package: str, target: Path) -> None:
        """Builds a package of a module that was fetched into a file, with the version in it that the CLI and its hosts report.

        :raises EngineError: it didn't build.
        """
        version = f"{PULUMI}/sdk/v3/go/common/version.Version=v{PULUMI_VERSION}"
        flags = ["-v", "-buildvcs=false", "-trimpath", "-ldflags", f"-s -w -X {version}"]
        doing = f"building {target.name}, {{}} of at most {self.packages[module]} packages so far"
        self.run(module, "build", *flags, "-o", str(target), package, doing=doing)

    def module_folder(self, module: Path, path: str) -> Path:
        """Where the sources of a module that another one needs are.

        :raises EngineError: it couldn't be downloaded.
        """
        return Path(self.run(module, "list", "-m", "-f", "{{.Dir}}", path).strip())

    def run(self, module: Path, *arguments: str, doing: str = "{}") -> str:
        """Runs Go in a module's folder and returns what it prints. `doing` tells how far it is, by the number of lines on its stderr."""
        path = self.logs / f"{module.name}.log"
        with path.open("wb") as log, telling(self.say, lambda: doing.format(len(path.read_bytes().splitlines()))):
            done = subprocess.run(
                [str(self.go), *arguments],
                cwd=module,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            last = "\n".join(path.read_text("utf-8", "replace").strip().splitlines()[-10:])
            raise EngineError(
                f"wanted: `go {' '.join(arguments)}` in {module}; "
                f"found: exit status {done.returncode}:\n{last}\n"
                f"Without it there is no engine to run the program. The whole output is in {path}. "
                "Next: see that the Go module proxy can be reached (go env GOPROXY) and that Go is 1.25 or "
                "newer, and try again."
            )
        return output


# --- command line ---


def shell_lines(engine: Engine) -> str:
    """The environment as lines for the shell: sh, or PowerShell on Windows."""
    if WINDOWS:
        lines = [f"$env:PATH = '{engine.bin};' + $env:PATH"]
        lines += [f"$env:{name} = '{value}'" for name, value in engine.variables().items()]
    else:
        lines = [f'export PATH={shlex.quote(str(engine.bin))}:"$PATH"']
        lines += [f"export {name}={shlex.quote(value)}" for name, value in engine.variables().items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(description="Finds or makes the Pulumi CLI and pulumi-command's plugin.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one line of JSON")
    form.add_argument("--print-env", action="store_true", help="print the environment as lines of shell")
    options = parser.parse_args(arguments)
    try:
        engine = ensure()
    except EngineError as error:
        say_on_stderr(str(error))
        return 1
    if options.json:
        print(engine.as_json())
    elif options.print_env:
        print(shell_lines(engine))
    else:
        print(f"Pulumi {engine.version} ({engine.source}): {engine.pulumi}")
        print(f"pulumi-command {PLUGIN_VERSION} ({engine.plugin}): {plugin_in(engine.home)}")
        print(shell_lines(engine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
