"""A whole `Pulumi.<stack>.yaml`, read without Pulumi; and its keys: those that Pulumi and the program read, and the
others, which are refused.

Pulumi passes over a key that it doesn't know. So settings in a wrong place, such as below `encryptionsalt` instead of
`config`, would be without effect and without a message.

The file is read as Pulumi reads it, by YAML 1.2 with some of 1.1 (Go's yaml.v3). In PyYAML's YAML 1.1 `01:00.0` is a
minute, and `off` is false.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic.alias_generators import to_camel

from homelab.errors import HomelabError
from homelab.fields.paths import project, text_of
from homelab.fields.types import ENCRYPTED
from homelab.host.settings import Host
from homelab.settings.parsing import parse
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
    """Takes for a text, and for a number, what Pulumi takes for one."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        name = tag.rpartition(":")[2]
        # Pulumi makes a longer text of a date; nothing here takes one for more than a text.
        is_time = name == "timestamp" or (name in ("int", "float") and ":" in value)
        is_word = name == "bool" and value.lower() not in ("true", "false")
        return self.DEFAULT_SCALAR_TAG if is_time or is_word else tag


class Writer(yaml.SafeDumper):
    """Puts into quotes what YAML 1.1 or Pulumi takes for something else than a text."""


_INTEGER_TAG = "tag:yaml.org,2002:int"
# Numbers of Go's yaml.v3 (resolve.go), of which YAML 1.1 has `1e3`, `0o17` and `08` as texts.
_NUMBER = re.compile(
    r"[-+]?(?:0[bB]_*[01][01_]*|0[oO]_*[0-7][0-7_]*|0[xX]_*[0-9a-fA-F][0-9a-fA-F_]*"
    r"|(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9][0-9_]*)?)\Z"
)


def _construct_number(_: Loader, node: yaml.ScalarNode) -> float | str:
    if not _NUMBER.match(node.value):  # YAML 1.1 takes `0x_` for one
        return str(node.value)
    digits = re.sub(r"^([-+]?0)([0-7]+)$", r"\1o\2", node.value.replace("_", ""))
    try:
        return int(digits, 0)
    except ValueError:
        return float(digits)


Loader.add_constructor(_INTEGER_TAG, _construct_number)
for _kind in (Loader, Writer):
    _kind.add_implicit_resolver(_INTEGER_TAG, _NUMBER, [*"-+.0123456789"])


def parsed(text: str, loader: type[Loader] = Loader) -> Any:
    """What a stack's file says, as Pulumi reads it.

    :param loader: a stricter one, where a file is to be changed.
    :raises yaml.YAMLError: it isn't YAML.
    """
    return yaml.load(text, Loader=loader)  # noqa: S506 (derived from the safe one)


def not_yaml(error: Exception) -> str:
    """Where a file isn't YAML. The parser's own message may quote the line, and that a secret."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}" if mark else "it"
    return f"{where} isn't YAML in UTF-8: often a tab, or a quote, bracket or colon that is missing there or above"


def is_encrypted(value: Any) -> bool:
    """Whether a value of a stack's file is one that Pulumi has encrypted."""
    return isinstance(value, dict) and list(value) == ["secure"]


def readable(value: Any) -> Any:
    """A value of a stack's file with ENCRYPTED in place of each encrypted value, for use without the passphrase."""
    if is_encrypted(value):
        return ENCRYPTED
    if isinstance(value, dict):
        # A key that YAML takes for a number or a truth value is a text for Pulumi.
        return {json.dumps(key) if isinstance(key, bool) else str(key): readable(item) for key, item in value.items()}
    return [readable(item) for item in value] if isinstance(value, list) else value


def config_of(content: Any) -> dict[Any, Any]:
    """What a whole file has below `config:`; empty where that is no mapping."""
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) else {}


def values_of(content: Any) -> dict[str, Any]:
    """What a whole file has under `homelab:`, by key without that."""
    config = {str(key): value for key, value in config_of(content).items()}
    return {key.removeprefix("homelab:"): value for key, value in config.items() if key.startswith("homelab:")}


def path_of(stack: str) -> Path:
    """Where Pulumi keeps a stack's configuration; of `organization/project/stack` the last part counts."""
    return project() / f"Pulumi.{stack.rpartition('/')[2]}.yaml"


@dataclass(frozen=True)
class StackFile:
    """`path`: the file; `values`: what it has under `homelab:`, by key without that, with a host in `hosts`;
    `is_whole`: they say all that is wanted, which the login at a host alone doesn't."""

    path: Path
    values: dict[str, Any]
    is_whole: bool = True

    @classmethod
    def read(cls, path: Path) -> Self:
        """A stack's configuration file.

        :raises HomelabError: it isn't there, isn't YAML, or has no hosts.
        """
        try:
            content = parsed(text_of(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            others = ", ".join(sorted(file.name for file in project().glob("Pulumi.*.yaml")))
            raise HomelabError(
                wanted=f"a stack's configuration in {path}",
                found=getattr(error, "strerror", None) or not_yaml(error),
                why="it says how the host is reached",
                next=f"correct it, or give --stack, or --config-file (here: {others or 'none'}), or `homelab init`",
            ) from None
        check(content, str(path))
        values = values_of(content)
        hosts = values.get("hosts")
        if not isinstance(hosts, dict) or not hosts or is_encrypted(hosts):
            raise HomelabError(
                wanted=f"hosts under homelab:hosts in {path}",
                found="they are encrypted as a whole" if is_encrypted(hosts) else "none",
                why="they say how a host is reached",
                next="see Pulumi.homelab.yaml for an example; only single values in it are secrets. A program that "
                "describes its hosts itself has none there: write the same into a file, and give it with --config-file",
            )
        return cls(path, values)

    @property
    def stack(self) -> str:
        """The stack's name, by the file's."""
        return self.path.stem.removeprefix("Pulumi.")

    def host(self, name: str | None, identity: str | None = None) -> tuple[str, Host]:
        """A host by its name, or the only one there is.

        :param identity: a private key's file, in place of what the settings log in with.
        :raises HomelabError: it is missing or mistaken.
        """
        hosts = self.values["hosts"]
        chosen = name or next(iter(hosts))
        if chosen not in hosts or (name is None and len(hosts) > 1):
            raise HomelabError(
                wanted=f"one host of {self.path}" if name is None else f"the host {name} in {self.path}",
                found=f"hosts there: {', '.join(map(str, hosts))}",
                why="one host is looked at at a time",
                next=f"say which: --host {next(iter(hosts))}",
            )
        host = parse({"hosts": readable({chosen: hosts[chosen]})}, self.path).hosts[chosen]
        return chosen, host.model_copy(update={"ssh": host.ssh.by_key(identity)})

    def host_names(self) -> list[str]:
        """All hosts, in the file's order."""
        return list(self.values["hosts"])

    def asked(self, name: str | None) -> list[str]:
        """The hosts to look at: the named one, or all."""
        return [name] if name else self.host_names()

    def guests(self) -> Settings:
        """The settings of hosts, VMs and containers, with a word in place of what is encrypted: who has which card, and
        where it is reached.

        :raises HomelabError: they are mistaken.
        """
        kinds = ("hosts", "vms", "containers")
        return parse({kind: readable(self.values[kind]) for kind in kinds if self.values.get(kind)}, self.path)


def unread(keys: Iterable[Any]) -> list[str]:
    """A line for each key of a whole file that Pulumi doesn't read."""
    return [
        f"{key}: it is beside `config:`, where Pulumi reads {', '.join(KEYS_OF_PULUMI)} alone; a setting goes under "
        "`config:`, such as homelab:hosts"
        for key in keys
        if key not in KEYS_OF_PULUMI
    ]


def misspelt(keys: Iterable[str]) -> list[str]:
    """A line for each key below `config:` that is a misspelt one of homelab's.

    Keys of other projects and of providers, such as `aws:region`, are left out.

    :param keys: those below `config:`.
    """
    lines = []
    for key in keys:
        # Without the project's name, Pulumi takes a key for the project's own.
        namespace, _, name = key.rpartition(":")
        known, text = (["homelab"], namespace) if namespace else (_SETTINGS, name)
        meant = difflib.get_close_matches(text, known, n=1, cutoff=_ALIKE)
        if meant and text not in known:
            lines.append(f"{key}: unknown key, did you mean `homelab:{name if namespace else meant[0]}`?")
    return lines


def check(whole: Any, file: str) -> None:
    """Accepts a file if Pulumi or the program reads every key in it.

    :param whole: the file, as YAML has it.
    :param file: its name, for the message.
    :raises HomelabError: it has other keys.
    """
    lines = unread(whole if isinstance(whole, dict) else ()) + misspelt(map(str, config_of(whole)))
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
