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
from .node_programs import ELSEWHERE_REAL
from .state import HOST_PYTHON, OF_MACHINE

#: Scripts ask for the kernel's release more often than for anything else: a shell reads it from where uname does. Without
#: such a file, or LAB_STATE, uname itself answers.
_RELEASE = """\
file=${LAB_STATE:-/nowhere}/root/proc/sys/kernel/osrelease
if [ "$*" = -r ] && [ -r "$file" ] && read -r release <"$file"; then
  printf '%s\\n' "$release"
  exit
fi
"""
#: What a script's bash does itself (BASH_ENV), since a start costs it more than all else of these: uname -r as the launcher does it, and
#: sync of what is there. A lab loses no power: there is nothing to flush, and a test's host is flushed thousands of times. Where PATH
#: leads to another program, a test's own perhaps, that is started: what it led to when bash began, and where a script has set it since, what it leads to.
_IN_BASH = """\
# Before the functions of these names are there: `hash` passes over a function's name.
hash @NAMES@ 2>/dev/null || :
lab_is() { [[ ${BASH_CMDS[$1]-} == "$2" ]]; }
uname() {
  local release
  if [[ $# == 1 && $1 == -r ]] && lab_is uname "${LAB_STATE-}/bin/uname" &&
    { read -r release <"$LAB_STATE/root/proc/sys/kernel/osrelease"; } 2>/dev/null; then
    builtin printf '%s\\n' "$release"
  else
    command uname "$@" || return
  fi
}
sync() {
  local word there=
  if lab_is sync @SYNC@; then
    for word; do
      case $word in
        -f) ;;
        -*) there= && break ;;
        *) there=1 && [[ (-f $word || -d $word) && -r $word ]] || { there= && break; } ;;
      esac
    done
  fi
  [[ $there ]] || command sync "$@" || return
}
"""
#: What stands for the host's Python: this machine's own, with what the lab's kernel hears of (host_python.py).
PYTHON_WORDS = [HOST_PYTHON, "-I", "-S", "-B", "-X", "utf8", str(Path(__file__).with_name("host_python.py"))]
#: The same for a program that is this machine's own in most cases: without the launcher's shell.
_OWN_IN_BASH = """\
@NAME@() {
  local IFS=' '
  if lab_is @NAME@ "${LAB_STATE-}/bin/@NAME@"; then
    case "$PWD $*" in
      @OURS@) ;;
      *)
        @PROGRAM@ "$@" || return
        return
        ;;
    esac
  fi
  command @NAME@ "$@" || return
}
"""
#: Program -> the shell's pattern of the working directory and arguments with which it is the lab's.
_OURS_WHERE = {
    **dict.fromkeys(ELSEWHERE_REAL, '*/dev* | *" dev"* | */proc/*/fd*'),
    "tail": "*/efivars*",
    "python3": "*load_libraries.py*",
    "perl": "*dl_load_file*",
}
#: Of these, and sha256sum, what scripts start often.
_MOSTLY_OWN = ("stat", "tail", "dd", "sha256sum")
_OF_COMMANDS = "/usr/local/bin:/usr/bin:/bin"
#: Beside the launchers: the sum of what they say.
_MADE = ".made"
#: What the kernel reads of a script to find its interpreter is 256 bytes, its end among them (include/uapi/linux/binfmts.h).
_LONGEST_FIRST_LINE = 255


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
    if _is(made, digest) and wanted.keys() <= {path.name for path in folder.iterdir()}:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in wanted.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    made.write_text(digest, encoding="utf-8")


@functools.cache
def texts(names: frozenset[str], *, container: bool) -> tuple[dict[str, str], str]:
    """What these launchers say, and a sum of it: a test's process asks for them hundreds of times."""
    found = {name: _started_by_perl(name, container) or text_of(name, container=container) for name in sorted(names)}
    return found, hashlib.sha256(repr(found).encode()).hexdigest()


def in_bash() -> str:
    """Functions for bash on a host, in place of some launchers and of sync."""
    own = {name: program for name in _MOSTLY_OWN if (program := shutil.which(name, path=_OF_COMMANDS))}
    text = _IN_BASH.replace("@SYNC@", shlex.quote(shutil.which("sync", path=OF_MACHINE) or ""))
    text = text.replace("@NAMES@", " ".join(["uname", "sync", *own]))
    text += f'{HOST_PYTHON}() {{ command {shlex.join(PYTHON_WORDS)} "$@" || return; }}\n'
    for name, program in own.items():
        ours = "*' '?*" if name == "sha256sum" else _OURS_WHERE[name]
        text += _OWN_IN_BASH.replace("@NAME@", name).replace("@OURS@", ours).replace("@PROGRAM@", shlex.quote(program))
    return text


def _started_by_perl(name: str, container: bool) -> str | None:
    """A launcher that is started without a shell before Perl: of the processor time of a small command a sixth.

    None where the shell has something to decide before, or where the kernel doesn't take the line (execve(2)).
    """
    perl, client = shutil.which("perl", path="/usr/bin:/bin"), Path(__file__).with_name("command.pl")
    first = f"#!{perl} {client}\n"
    if perl is None or _before(name, container) or len(os.fsencode(first)) > _LONGEST_FIRST_LINE:
        return None
    words = [os.path.realpath(sys.executable), run.__file__, *(["--container"] if container else []), name]
    return first + "".join(f"#:{word}\n" for word in words)


def text_of(name: str, *, container: bool = False) -> str:
    """What starts one simulated command, as a shell's script."""
    python, program = shlex.quote(os.path.realpath(sys.executable)), shlex.quote(run.__file__)
    words = f'{program} --container {name} "$@"' if container else f'{program} {name} "$@"'
    first = _before(name, container)
    if perl := shutil.which("perl", path="/usr/bin:/bin"):
        client = shlex.quote(str(Path(__file__).with_name("command.pl")))
        first += f'[ -z "${{LAB_COMMANDS-}}" ] || exec {perl} {client} -- {python} {words}\n'
    return f"#!/bin/sh\n{first}exec {python} -I -S {words}\n"


def _before(name: str, container: bool) -> str:
    """What the shell decides before the lab's program is started."""
    everywhere = not container or name in ("python3", "perl")
    first = _of_stdin(name) if not everywhere or name == "sha256sum" else _first_choice(name)
    return first + (_RELEASE if name == "uname" else "")


def _of_stdin(name: str) -> str:
    """A launcher's line for sha256sum of stdin: scripts ask for that often, and it is this machine's own then."""
    program = shutil.which(name, path="/usr/bin:/bin") if name == "sha256sum" else None
    return f'[ "$#" -gt 0 ] || exec {shlex.quote(program)}\n' if program else ""


def _first_choice(name: str) -> str:
    """A launcher's line for programs that are this machine's own wherever no path is named for which there is one of the lab's."""
    program = shutil.which(name, path=_OF_COMMANDS) if name in _OURS_WHERE else None
    return f'case "$PWD $*" in {_OURS_WHERE[name]}) ;; *) exec {shlex.quote(program)} "$@" ;; esac\n' if program else ""


def _is(launcher: Path, text: str) -> bool:
    return launcher.exists() and launcher.read_text(encoding="utf-8") == text
