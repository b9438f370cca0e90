"""What runs on a host besides the agent (homelab/remote/agent.py): single commands in its shell; files that are
installed there; and the answers of both.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import remote_scripts
from homelab.errors import HomelabError

FOLDER = Path(remote_scripts.__path__[0])


@functools.cache
def file(name: str) -> str:
    """The text of a file that is installed on a host, without its last newline (a layer adds it).

    :raises FileNotFoundError: there is no remote_scripts/files/<name>.
    """
    # Text mode turns CRLF, which a Windows checkout may have, into the LF that sh needs.
    return (FOLDER / "files" / name).read_text(encoding="utf-8").removesuffix("\n")


# Keys of an answer that describe one run of the layer, and not the system.
_RUN_KEYS = frozenset(("why", "changed", "restarted", "before"))


def same_answers(old: Any, new: Any) -> bool:
    """Whether two answers of a layer describe the same system, without a restart since the old one: then the layer
    ran again only because its code has changed.

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
    """A layer's answer: the JSON object at the end of its output's last line. A login may print something of its own
    before, such as a terminal's title, which has no end of a line.

    :raises HomelabError: the last line ends with no JSON object.
    """
    line = output.strip().rpartition("\n")[2]
    try:
        value: dict[str, Any] = json.loads("{" + line.partition("{")[2])
    except ValueError as error:
        raise HomelabError(
            wanted="one line of JSON as an answer",
            found=f"{line[:200]!r} ({error})",
            why="without a readable answer nothing can be decided",
            next="log in and see whether root's shell prints something of its own for non-interactive sessions "
            "(~/.bashrc)",
        ) from error
    # Half a surrogate pair, which JSON can escape, can't be written anywhere.
    return value if "\\ud" not in line.lower() else dict(_writable(value))


def _writable(value: Any) -> Any:
    """A JSON value with "?" for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list) else value


def command(verb: str, user: str) -> str:
    """The command line that runs commands from standard input: as root, through sudo for any other user.

    :param verb: what it is about, for whoever looks at the host's processes.
    """
    return f"bash -s {verb}" if user == "root" else f"sudo -n bash -s {verb}"


def tidy_up(key: str) -> str:
    """Standard input that removes an empty file of mappings, as Proxmox VE leaves it, from the disk, too, and prints
    `key` where root's authorized_keys has this one as `homelab init` puts it there.

    :param key: the public key in base64.
    """
    return f"""file=${{HOMELAB_ROOT:-}}/etc/pve/mapping/pci.cfg
[ -s "$file" ] || [ ! -e "$file" ] || {{ rm "$file" && sync "${{file%/*}}"; }}
! grep -qs '{key} homelab$' ~/.ssh/authorized_keys || echo key
"""
