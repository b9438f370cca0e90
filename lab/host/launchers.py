"""The folder of simulated commands at the beginning of a system's PATH: one small launcher each, for run.py."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from . import run
from .state import APT_CONFIG

#: Beside the launchers: the sum of what they say.
_MADE = ".made"
#: In it: those of the programs that a package or an installer puts into a system's tree.
INSTALLED = "installed"
#: What asks a command server for a command.
_CLIENT = Path(__file__).with_name("command.pl")
#: apt's configuration: this machine's apt works on the system, and gets the lab's files, checked by the lab's keys.
_APT = """\
Dir "{root}";
Dir::State::status "{root}/var/lib/dpkg/status";
Dir::Bin::Methods {{
  http "{bin}/lab-apt-method";
  https "{bin}/lab-apt-method";
  gpgv "{bin}/lab-apt-method";
  sqv "{bin}/lab-apt-method";
}};
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries::Delay "false";
DPkg::Path "";
DPkg::Options {{ "--log={root}/var/log/dpkg.log"; }};
"""


def write(folder: Path, names: Collection[str], *, container: bool = False) -> None:
    """Make the launchers, unless they are there.

    They name the Python and the checkout in use, and are made anew when one of these has moved.

    Args:
        folder: STATE/bin.
        names: commands, of those in run.PROGRAMS, or in run.CONTAINER_PROGRAMS for a container.
        container: whether they are a container's.
    """
    wanted, digest = texts(frozenset(names), container=container)
    made = folder / _MADE
    is_made = made.exists() and made.read_text(encoding="utf-8") == digest
    if is_made and all((folder / name).exists() for name in (*wanted, APT_CONFIG)):
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / INSTALLED).mkdir(parents=True)
    (folder / APT_CONFIG).write_text(_APT.format(bin=folder, root=folder.parent / "root"), encoding="utf-8")
    for name, text in wanted.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    made.write_text(digest, encoding="utf-8")


@functools.cache
def texts(names: frozenset[str], *, container: bool) -> tuple[dict[str, str], str]:
    """What these launchers say, and a sum of it: a test's process asks for them hundreds of times."""
    places = {name: name for name in sorted(names)} | {f"{INSTALLED}/{name}": name for name in run.INSTALLED}
    found = {path: text_of(name, container=container) for path, name in places.items()}
    return found, hashlib.sha256(repr(found).encode()).hexdigest()


def text_of(name: str, *first: str, container: bool = False) -> str:
    """What starts one simulated command, as a script.

    Args:
        name: of a launcher.
        first: arguments that come before those that it is given.
        container: whether it is a container's.
    """
    command = [*(["--container"] if container else []), name, *first]
    words = [os.path.realpath(sys.executable), "-I", "-S", run.__file__, *command]
    perl = shutil.which("perl", path="/usr/bin:/bin")
    if perl and name != run.HOST_PYTHON:
        said, client = (" ".join(os.fsencode(word).hex() for word in some) for some in (words, [str(_CLIENT)]))
        return f"#!{perl}\n@own = map {{ pack 'H*', $_ }} qw({said}); do pack 'H*', '{client}';\n"
    return f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
