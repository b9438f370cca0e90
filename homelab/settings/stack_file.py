"""`Pulumi.<stack>.yaml` as a whole: which keys it may have beside the settings, and those that nobody reads.

Pulumi passes over a key that it doesn't know. So settings that stand in a wrong place, such as under `encryptionsalt`
instead of `config`, would be without effect, and nobody would say so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from homelab.errors import HomelabError
from homelab.model import camel
from homelab.settings.whole import Settings

# The keys that Pulumi reads (sdk/go/common/workspace/project.go, ProjectStack), and what each is.
KEYS_OF_PULUMI = {
    "config": "The settings.",
    "encryptionsalt": "What Pulumi makes the key from, together with your passphrase. Pulumi writes it.",
    "encryptedkey": "The key to the secrets, encrypted. Pulumi writes it.",
    "secretsprovider": "Where the key to the secrets is kept. Pulumi writes it.",
    "environment": "Environments of Pulumi ESC whose values this stack takes.",
}
_SETTINGS = [camel(name) for name in Settings.model_fields]
# How alike two names must be for one to be the other misspelt; a project called `homelab-gaming` is none of this one's.
_ALIKE = 0.8


def unread(keys: Iterable[Any]) -> list[str]:
    """What is wrong with the keys of a whole file: a line for each one that nobody reads."""
    return [f"{key}: {_meant_beside(str(key))}" for key in keys if key not in KEYS_OF_PULUMI]


def _meant_beside(key: str) -> str:
    name = key.removeprefix("homelab:")
    if name in _SETTINGS:
        return f"it is beside `config:`, where nothing reads it; put it under `config:`, as `homelab:{name}`"
    close = difflib.get_close_matches(key, KEYS_OF_PULUMI, n=1) or [
        f"homelab:{one}" for one in difflib.get_close_matches(name, _SETTINGS, n=1)
    ]
    return "unknown key" + (
        f", did you mean `{close[0]}`{' under `config:`' if ':' in close[0] else ''}?"
        if close
        else f"; known are {', '.join(KEYS_OF_PULUMI)}"
    )


def misspelt(keys: Iterable[str]) -> list[str]:
    """Of the keys under `config:`, those of another name before the colon that were meant to be homelab's; a line for
    each.

    Keys of other projects and of providers, such as `aws:region`, are theirs.
    """
    lines = []
    for key in keys:
        space, colon, name = key.partition(":")
        if not colon:
            space, name = "", key
        if space == "homelab":
            continue
        # Without the project's name, Pulumi takes a key for the project's own.
        if (space and not difflib.get_close_matches(space, ["homelab"], n=1, cutoff=_ALIKE)) or key in _SETTINGS:
            continue
        meant = next(iter(difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=_ALIKE)), name if space else None)
        if meant:
            lines.append(f"{key}: unknown key, did you mean `homelab:{meant}`?")
    return lines


def check(whole: Any, file: str) -> None:
    """Accepts a file if every key in it is read by the program.

    :param whole: the file, as YAML has it.
    :param file: its name, for the message.
    :raises HomelabError: it has others.
    """
    if not isinstance(whole, Mapping):
        return
    config = whole.get("config")
    lines = unread(whole) + misspelt(map(str, config) if isinstance(config, Mapping) else ())
    if lines:
        raise not_read(lines, file)


def not_read(lines: list[str], file: str) -> HomelabError:
    """The error for keys that nobody reads."""
    return HomelabError(
        wanted=f"only known keys in {file}",
        found="\n        ".join(lines),
        why="Pulumi ignores such a key without a word: what it says would not be done",
        next=f"correct {file}; docs/settings.md describes the keys",
    )
