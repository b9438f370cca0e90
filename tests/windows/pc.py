"""A Windows PC: a Wine prefix with Pulumi's Windows programs, Python for Windows and the program's Windows packages, made once in the cache.

Python is that of `org.bytedeco:cpython`, an artifact of Maven's central repository: python.org's sources, built for Windows. It comes without
what python.org's installer adds: `python3.dll`, which passes everything on to python311.dll, and the launcher of virtual environments, for
which python.exe itself stands in. In a console of Wine nothing is started that Windows wouldn't start: programs, folders and files are a PC's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from homelab.errors import HomelabError
from lab.engine import install
from tests.conftest import PROJECT
from tests.waiting import PATIENCE
from tests.windows import prerequisites

ARTIFACT = ("org.bytedeco", "cpython", "3.11.3-1.5.9", "windows-x86_64")
SHA256 = "3263a50b256447bb7b9e604d6587627e419891370fc33b94469e6a06ff4de834"
_LIBRARY = Path(__file__).with_name("processprng.c")
# The project, as a person has cloned it.
PROGRAM = ("Pulumi.yaml", "__main__.py", "homelab", "components", "remote_scripts", "provider")


@dataclass(frozen=True)
class Pc:
    """`prefix`: Wine's folder; `engine`: Pulumi's programs for Windows; `home`: the user's folder."""

    prefix: Path
    engine: install.Engine
    home: Path

    @property
    def python(self) -> str:
        """Of the virtual environment, from the project's folder."""
        return r".venv\Scripts\python.exe"

    def clone(self, folder: Path) -> None:
        """The project in a folder, with its virtual environment; a checkout with autocrlf has Windows' line ends in every file."""
        folder.mkdir(parents=True)
        for name in PROGRAM:
            source = PROJECT / name
            for path in [source] if source.is_file() else sorted(source.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    copy = folder / path.relative_to(PROJECT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        shutil.copytree(self.prefix / "venv", folder / ".venv")

    def environment(self, **own: str) -> dict[str, str]:
        """Nothing of this machine's user is in it."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.prefix),
            "LANG": "C.UTF-8",
            "WINEPREFIX": str(self.prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=d",
            "WINEPATH": windows_path(self.engine.bin),
            "PULUMI_HOME": windows_path(self.engine.home),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            **own,
        }

    def command(self, program: str, *arguments: str) -> list[str]:
        return [_wine(), program, *arguments]

    def run(
        self, folder: Path, program: str, *arguments: str, encoding: str = "utf-8", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A program of Windows, to its end, without a console."""
        return subprocess.run(
            self.command(program, *arguments),
            cwd=folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding=encoding,
            errors="replace",
            timeout=PATIENCE,
        )


def windows_path(path: Path) -> str:
    """As a program under Wine finds a path of this machine: Wine has it all on the drive Z."""
    return "Z:" + str(path).replace("/", "\\")


def _wine() -> str:
    found = shutil.which("wine64", path=prerequisites.PATH)
    assert found
    return found


def ensure() -> Pc:
    """The PC, made if there is none of this recipe.

    :raises HomelabError: something is missing on this machine, or Python for Windows can't be had.
    :raises install.EngineError: Pulumi's programs can't be built.
    """
    prerequisites.check()
    engine = install.Maker(os.environ, install.say_on_stderr, windows=True).for_windows()
    digest = hashlib.sha256()
    for path in (Path(__file__), _LIBRARY, PROJECT / "requirements.txt"):
        digest.update(path.read_bytes())
    prefix = install.cache_folder() / "windows" / digest.hexdigest()[:12]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with (prefix.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not prefix.is_dir():
            _remove_others(prefix.parent)
            jar = _python(prefix.parent)
            # Wine notes the prefix's own path nowhere that matters: it may be made beside its place.
            fresh = prefix.with_name(f".{prefix.name}")
            _make(Pc(fresh, engine, fresh / "drive_c" / "users"), jar)
            fresh.rename(prefix)
        # Until this process ends.
        fcntl.flock(os.open(prefix, os.O_RDONLY), fcntl.LOCK_SH)
    return Pc(prefix, engine, prefix / "drive_c" / "users")


def _remove_others(folder: Path) -> None:
    """Removes PCs of other recipes, which take a gigabyte each, but for one that another process uses."""
    for other in filter(Path.is_dir, list(folder.iterdir())):
        descriptor = os.open(other, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _python(folder: Path) -> Path:
    """The archive with Python for Windows.

    :raises HomelabError: it can't be had, or is another one.
    """
    group, name, version, classifier = ARTIFACT
    jar = folder / f"{name}-{version}-{classifier}.jar"
    if not jar.exists():
        done = subprocess.run(
            [
                *("mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"),
                *(f"-Dartifact={group}:{name}:{version}:jar:{classifier}", f"-DoutputDirectory={folder}"),
            ],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            raise _no_python(done.stdout[-800:])
    if hashlib.sha256(jar.read_bytes()).hexdigest() != SHA256:
        jar.unlink()
        raise _no_python("an archive with another hash")
    return jar


def _no_python(found: str) -> HomelabError:
    return HomelabError(
        wanted=f"Python for Windows ({':'.join(ARTIFACT)})",
        found=found,
        why="without it nothing but the Go programs can be started",
        next="see whether Maven reaches its central repository",
    )


def _make(pc: Pc, jar: Path) -> None:
    print("making a Windows PC under Wine, once: about a minute", file=sys.stderr, flush=True)
    pc.prefix.mkdir()
    _call(pc, [_wine(), "wineboot", "-i"])
    system = pc.prefix / "drive_c" / "windows" / "system32"
    compiler = ["x86_64-w64-mingw32-gcc", "-shared", "-O2", "-s"]
    if not (system / "bcryptprimitives.dll").exists():
        _call(pc, [*compiler, "-o", str(system / "bcryptprimitives.dll"), str(_LIBRARY), "-ladvapi32"])
    unpacked = pc.prefix / "unpacked"
    with zipfile.ZipFile(jar) as archive:
        archive.extractall(unpacked)
    source, base = unpacked / "org/bytedeco/cpython/windows-x86_64", pc.prefix / "drive_c" / "Python311"
    (base / "DLLs").mkdir(parents=True)
    (source / "lib").rename(base / "Lib")
    for path in [*(base / "Lib").glob("*.pyd"), *(base / "Lib").glob("*.dll")]:
        path.rename((base if path.name.startswith("vcruntime") else base / "DLLs") / path.name)
    for name in ("pip", "setuptools", "pkg_resources", "_distutils_hack", "test"):
        shutil.rmtree(base / "Lib" / name, ignore_errors=True)
    shutil.copy(source / "bin" / "python.exe", base)
    shutil.copy(source / "bin" / "python.exe", base / "Lib/venv/scripts/nt")
    for folder in (base, system):
        shutil.copy(source / "python311.dll", folder)
    _stable_library(pc, source / "python311.dll", system / "python3.dll", compiler)
    done = pc.run(
        pc.prefix, r"C:\Python311\python.exe", "-m", "venv", "--without-pip", windows_path(pc.prefix / "venv")
    )
    assert done.returncode == 0, done.stdout
    (pc.prefix / "venv" / "pyvenv.cfg").write_text(
        "home = C:\\Python311\ninclude-system-site-packages = false\nversion = 3.11.3\n", encoding="utf-8"
    )
    packages = pc.prefix / "venv" / "Lib" / "site-packages"
    with zipfile.ZipFile(next((base / "Lib/ensurepip/_bundled").glob("pip-*.whl"))) as wheel:
        wheel.extractall(packages)
    _call(
        pc,
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config", "--only-binary", ":all:"),
            *("--python-platform", "x86_64-pc-windows-msvc", "--python-version", "3.11", "--target", str(packages)),
            *("--require-hashes", "-r", str(PROJECT / "requirements.txt")),
        ],
        this_machines=True,
    )
    shutil.rmtree(unpacked)
    # Compiled once, not in each copy's first run.
    pc.run(pc.prefix, r"C:\Python311\python.exe", "-m", "compileall", "-q", windows_path(packages))
    subprocess.run([str(Path(_wine()).with_name("wineserver")), "-k"], env=pc.environment(), check=False)


def _stable_library(pc: Pc, library: Path, target: Path, compiler: list[str]) -> None:
    """python3.dll: each name of the library, passed on to it."""
    listed = subprocess.run(
        ["x86_64-w64-mingw32-objdump", "-p", str(library)], capture_output=True, text=True, check=True
    )
    table = listed.stdout.partition("[Ordinal/Name Pointer] Table")[2].partition("\n\n")[0]
    names = re.findall(r"(\w+)$", table, flags=re.MULTILINE)
    definitions = pc.prefix / "python3.def"
    lines = ["LIBRARY python3.dll", "EXPORTS", *(f"{name}={library.stem}.{name}" for name in names if name[0] in "P_")]
    definitions.write_text("\n".join(lines) + "\n", encoding="ascii")
    _call(pc, [*compiler, "-nostdlib", "-Wl,--entry=0", "-o", str(target), str(definitions)])


def _call(pc: Pc, command: list[str], *, this_machines: bool = False) -> None:
    """:raises subprocess.CalledProcessError: it fails; what it said is in the error's note."""
    environment = dict(os.environ) if this_machines else pc.environment()
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command)
        error.add_note(done.stdout)
        raise error
