"""The keys of a whole `Pulumi.<stack>.yaml`: those that Pulumi and the program read, and the others, which are refused.

Pulumi passes over a key that it doesn't know. So settings in a wrong place, such as below `encryptionsalt` instead of
`config`, would be without effect and without a message.

The file is read as Pulumi reads it, by YAML 1.2 with some of 1.1 (Go's yaml.v3). In PyYAML's YAML 1.1 `01:00.0` is a
minute, and `off` is false.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from homelab.errors import HomelabError
from homelab.settings.whole import Settings

# The keys that Pulumi reads (sdk/go/common/workspace/project.go, ProjectStack), and their descriptions.
KEYS_OF_PULUMI = {
    "config": "The settings.",
    "encryptionsalt": "What Pulumi makes the key from, together with your passphrase. Pulumi writes it.",
    "encryptedkey": "The key to the secrets, encrypted. Pulumi writes it.",
    "secretsprovider": "Where the key to the secrets is kept. Pulumi writes it.",
    "environment": "Environments of Pulumi ESC whose values this stack takes.",
}
_SETTINGS = [to_camel(name) for name in Settings.model_fields]
# The similarity, for difflib, from which on a name is a misspelt one; `homelab-gaming`, another project, is below it.
_ALIKE = 0.8


class Loader(yaml.SafeLoader):
    """Takes for a text what Pulumi takes for one."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        name = tag.rpartition(":")[2]
        # Pulumi makes a longer text of a date; nothing here takes one for more than a text.
        is_time = name == "timestamp" or (name in ("int", "float") and ":" in value)
        is_word = name == "bool" and value.lower() not in ("true", "false")
        return self.DEFAULT_SCALAR_TAG if is_time or is_word else tag


def parsed(text: str) -> Any:
    """What a stack's file says, as Pulumi reads it.

    :raises yaml.YAMLError: it isn't YAML.
    """
    return yaml.load(text, Loader=Loader)  # noqa: S506 (derived from the safe one)


def unread(keys: Iterable[Any]) -> list[str]:
    """A line for each key of a whole file that Pulumi doesn't read."""
    return [f"{key}: {_suggestion_beside(str(key))}" for key in keys if key not in KEYS_OF_PULUMI]


def _suggestion_beside(key: str) -> str:
    name = key.removeprefix("homelab:")
    if name in _SETTINGS:
        return f"it is beside `config:`, where nothing reads it; put it under `config:`, as `homelab:{name}`"
    matches = difflib.get_close_matches(key, KEYS_OF_PULUMI, n=1) or [
        f"homelab:{setting}" for setting in difflib.get_close_matches(name, _SETTINGS, n=1)
    ]
    return "unknown key" + (
        f", did you mean `{matches[0]}`{' under `config:`' if ':' in matches[0] else ''}?"
        if matches
        else f"; known are {', '.join(KEYS_OF_PULUMI)}"
    )


def misspelt(keys: Iterable[str]) -> list[str]:
    """A line for each key below `config:` that is a misspelt one of homelab's.

    Keys of other projects and of providers, such as `aws:region`, are left out.

    :param keys: those below `config:`.
    """
    lines = []
    for key in keys:
        # Without the project's name, Pulumi takes a key for the project's own.
        namespace, _, name = key.rpartition(":")
        of_others = namespace and not difflib.get_close_matches(namespace, ["homelab"], n=1, cutoff=_ALIKE)
        if namespace == "homelab" or of_others or key in _SETTINGS:
            continue
        suggestion = next(
            iter(difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=_ALIKE)), name if namespace else None
        )
        if suggestion:
            lines.append(f"{key}: unknown key, did you mean `homelab:{suggestion}`?")
    return lines


def check(whole: Any, file: str) -> None:
    """Accepts a file if Pulumi or the program reads every key in it.

    :param whole: the file, as YAML has it.
    :param file: its name, for the message.
    :raises HomelabError: it has other keys.
    """
    if not isinstance(whole, Mapping):
        return
    config = whole.get("config")
    lines = unread(whole) + misspelt(map(str, config) if isinstance(config, Mapping) else ())
    if lines:
        raise not_read(lines, file)


def not_read(lines: list[str], file: str) -> HomelabError:
    """The refusal of keys that neither Pulumi nor the program reads.

    :param lines: one for each key.
    :param file: its name, for the message.
    """
    return HomelabError(
        wanted=f"only known keys in {file}",
        found="\n        ".join(lines),
        why="Pulumi ignores such a key without a word: what it says would not be done",
        next=f"correct {file}; docs/settings.md describes the keys",
    )
