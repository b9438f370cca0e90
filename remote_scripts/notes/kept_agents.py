"""The agents that stacks keep on a system, each in the stack's folder (put_agent.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from remote_scripts.tools.files import HOME, Files

FOLDER = f"{HOME}/agents"
# Of a file in bytes, many times what it has.
_MOST = 1 << 26


def versions(files: Files, names: Iterable[str]) -> dict[str, str]:
    """Stack's folder -> the version of the agent in it; empty: none is there that is whole.

    :param names: of what is in FOLDER.
    """
    return {name: _version(files, f"{FOLDER}/{name}") for name in names if files.is_folder(f"{FOLDER}/{name}")}


def _version(files: Files, folder: str) -> str:
    content = files.read(f"{folder}/agent.pyz", _MOST) or b""
    whole = hashlib.sha256(content[:-64]).hexdigest()
    return content[-80:-64].decode("ascii", "replace") if content.endswith(whole.encode()) else ""
