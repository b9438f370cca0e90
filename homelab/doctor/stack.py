"""The stack's configuration file, read without Pulumi."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from homelab.errors import HomelabError
from homelab.fields.paths import text_of
from homelab.settings import Host, Settings, parse, project, stack_file
from homelab.settings.secrets import is_encrypted, readable


@dataclass(frozen=True)
class StackFile:
    """`path`: the file; `values`: what it has under `homelab:`, by key without that, with a host in `hosts`."""

    path: Path
    values: dict[str, Any]

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
        host = parse({"hosts": readable({chosen: hosts[chosen]})}).hosts[chosen]
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
        return parse({kind: readable(self.values[kind]) for kind in kinds if self.values.get(kind)})


def read(path: Path) -> StackFile:
    """A stack's configuration file.

    :raises HomelabError: it isn't there, isn't YAML, or has no hosts.
    """
    try:
        content = stack_file.parsed(text_of(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # A parser's message may quote the line, and that a secret.
        problem = error.strerror if isinstance(error, OSError) else "it isn't valid YAML"
        others = ", ".join(sorted(file.name for file in project().glob("Pulumi.*.yaml")))
        raise HomelabError(
            wanted=f"a stack's configuration in {path}",
            found=str(problem),
            why="it says how the host is reached",
            next=f"give a stack with --stack NAME, or a file with --config-file (here: {others or 'none'})",
        ) from None
    stack_file.check(content, str(path))
    config = content.get("config") if isinstance(content, dict) else None
    whole = config if isinstance(config, dict) else {}
    values = {
        str(key).removeprefix("homelab:"): value for key, value in whole.items() if str(key).startswith("homelab:")
    }
    hosts = values.get("hosts")
    if not isinstance(hosts, dict) or not hosts or is_encrypted(hosts):
        raise HomelabError(
            wanted=f"hosts under homelab:hosts in {path}",
            found="they are encrypted as a whole" if is_encrypted(hosts) else "none",
            why="they say how a host is reached",
            next="see Pulumi.homelab.yaml for an example; only single values in it are secrets. A program that "
            "describes its hosts itself has none there: write the same into a file, and give it with --config-file",
        )
    return StackFile(path, values)


def path_of(stack: str) -> Path:
    """Where Pulumi keeps a stack's configuration; of `organization/project/stack` the last part counts."""
    return project() / f"Pulumi.{stack.rpartition('/')[2]}.yaml"
