"""Composes the bash that runs on a host, as standard input, of arguments, the library and one script.

No value is ever part of a command line. For commands the host keeps scripts (homelab/remote/kept_scripts.py); other
scripts are sent whole. They are sent without comments and without functions that they don't use, so that only a change
of the code that runs changes a resource.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homelab.errors import HomelabError
from homelab.remote import bash_source

# Beside the package, also where it is installed.
_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = _PACKAGE.parent / "remote_scripts"

# From a boot's start until the dead man's switch checks it, in seconds; the settings' default.
ROLLBACK_SECONDS = 600
# How long a boot's confirmation waits for another run on the host, in seconds.
CONFIRM_LOCK_SECONDS = 45
# How long a VM that takes a shared card waits in its hookscript: for another handover (layers/handover.py: twice
# START_SECONDS for the host, RETURN_SECONDS between), then for the containers that are shut down for it.
HANDOVER_SECONDS = 2 * 180 + 900 + 600
_ARGUMENT = re.compile(r"[A-Z][A-Z0-9_]*")
# The line of a file's header that names the parts of the library whose functions or variables it uses.
_NEEDS = re.compile(r"^# Needs: (.+)$", re.MULTILINE)


@functools.cache
def _text(name: str) -> str:
    # Text mode turns CRLF, which a Windows checkout may have, into the LF that bash needs.
    return (FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _code(name: str) -> str:
    return bash_source.stripped(_text(name))


@functools.cache
def _program(script: str) -> str:
    return bash_source.needed([_code(f"lib/{name}.sh") for name in library_of(script)], _code(script))


@functools.cache
def file(name: str) -> str:
    """The text of a file that a script installs on the host, without its last newline (the script adds it).

    :raises FileNotFoundError: there is no remote_scripts/files/<name>.
    """
    return _text(f"files/{name}").removesuffix("\n")


def compose(script: str, **arguments: str) -> str:
    """The standard input for `bash -s -- VERB`.

    :param script: a file name in remote_scripts/.
    :param arguments: those that the script's header lists; each becomes a quoted assignment.
    :raises FileNotFoundError: there is no such script.
    :raises ValueError: a name isn't that of an argument; it would be code of the script.
    """
    if wrong := [name for name in arguments if not _ARGUMENT.fullmatch(name)]:
        raise ValueError(f"{script}: no names of arguments: {wrong}")
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(arguments.items()))
    return assignments + _program(script)


def library_of(script: str) -> tuple[str, ...]:
    """The names of the library's parts that a script, or a part (`lib/boot.sh`), needs, each after those that it needs
    itself.
    """
    parts: dict[str, None] = {}

    def add(file: str) -> None:
        needs = _NEEDS.search(_text(file))
        for name in needs[1].split(", ") if needs else ():
            if name not in parts:
                add(f"lib/{name}.sh")
                parts[name] = None

    add(script)
    return tuple(parts)


# Keys of an answer that describe one run of the script, and not the system.
_RUN_KEYS = frozenset(("why", "changed", "restarted"))


def same_answers(old: Any, new: Any) -> bool:
    """Whether two answers of a script describe the same system, without a restart since the old one: then the script
    ran again only because its text has changed.

    :param old: an answer as text, a text that ends with one, or a list of these and of other values.
    :param new: of the same form; during a preview it may be unknown.
    """
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same_answers, old, new))
    if not isinstance(old, str) or not isinstance(new, str) or "{" not in old or "{" not in new:
        return bool(old == new)
    (prefix, _, old_json), (new_prefix, _, new_json) = old.partition("{"), new.partition("{")
    try:
        before, after = answer("{" + old_json), answer("{" + new_json)
    except HomelabError:  # no answers
        return old == new
    same = {**before, **dict.fromkeys(_RUN_KEYS)} == {**after, **dict.fromkeys(_RUN_KEYS)}
    return prefix == new_prefix and same and (after.get("restarted") not in ("yes", True) or old == new)


def answer(output: str) -> dict[str, Any]:
    """A script's answer: the JSON object of its output's last line. A login may print something of its own before.

    :raises HomelabError: the last line is no JSON object.
    """
    line = output.strip().rpartition("\n")[2]
    try:
        value = json.loads(line)
        if isinstance(value, dict):
            # Half a surrogate pair, which JSON can escape, can't be written anywhere.
            return value if "\\ud" not in line.lower() else dict(_writable(value))
        problem = "it is no object"
    except ValueError as error:
        problem = str(error)
    raise HomelabError(
        wanted="one line of JSON from a script",
        found=f"{line[:200]!r} ({problem})",
        why="nothing follows from an answer that can't be read",
        next="log in and see whether root's shell prints something of its own for non-interactive sessions (~/.bashrc)",
    )


def _writable(value: Any) -> Any:
    """A JSON value with "?" for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list) else value


# Reads bytes, not characters, and in blocks, as only -N of bash's `read` does, whose status is that of the end of the
# input.
_READ_ALL_INPUT = 'LC_ALL=C; IFS= read -rN 99999999 SENT; eval "$SENT"'


def command(verb: str, user: str, *, at_once: bool = False) -> str:
    """The command line that runs a composed script: as root, through sudo for any other user.

    :param at_once: read all of standard input before anything runs. From a pipe `bash -s` reads one byte after the
        other, which for 60 kB is two thirds of the script's processor time. A script that is cut off on its way does
        nothing in either case: `main` is its last line.
    """
    bash = f"bash -c {shlex.quote(_READ_ALL_INPUT)} bash {verb}" if at_once else f"bash -s -- {verb}"
    return bash if user == "root" else f"sudo -n {bash}"


# The error of a step that was killed at its time limit; the script's own has more, where it still can write one
# (lib/common.sh).
_OVERDUE = (
    "wanted: this step done within {seconds} s\\n"
    "found:  it has not ended; it was killed, with all that it had started\\n"
    "why:    something on this system hangs: a disk, a share, a card, a script of a package. What is half done is "
    "noted there\\n"
    "next:   log in, see what hangs (`dmesg` may tell) and mend it; then run `pulumi up` again, which finishes the "
    "step. "
    "What takes longer by nature: timeouts.script\\n"
)
# bash takes this line alone from standard input, byte by byte; the script's own bash has the rest.
_LIMITED = (
    '{{ timeout -s KILL {seconds} bash -c {at_once} bash "$1" 2>&3 3>&-; }} 3>&2 2>/dev/null; STATUS=$?; '
    "[[ $STATUS != 137 ]] || ((SECONDS < {seconds})) || {{ printf {overdue}; STATUS=1; }}; exit $STATUS\n"
)


def with_time_limit(text: str, seconds: int) -> str:
    """A composed text, for `bash -s -- VERB`, with a time limit that the system where it runs keeps, also if the
    connection is lost: pulumi-command has no limit.

    After `seconds` its process group is killed; programs that it starts in groups of their own (bash's `within`) end
    by themselves before that. The last tenth of the time is for the script's error and for undoing.
    """
    overdue_message = shlex.quote(_OVERDUE.format(seconds=seconds))
    first_line = _LIMITED.format(seconds=seconds, at_once=shlex.quote(_READ_ALL_INPUT), overdue=overdue_message)
    return f"{first_line}TIME_LIMIT={seconds}\n{text}"


def host_command(command: Sequence[str], seconds: int) -> str:
    """Standard input that runs one command on the host: its output is the command's, and a last line with the
    command's exit status.

    :param seconds: the command's time limit.
    """
    # In English, and with all letters: Proxmox VE's commands decode their arguments by the locale (PVE::JSONSchema,
    # get_options).
    line = f"LC_ALL=C.UTF-8 timeout -k 5 {seconds} {shlex.join(command)} 2>&1 </dev/null"
    return f"{line} && status=0 || status=$?\nprintf '\\n%s\\n' \"$status\"\n"
