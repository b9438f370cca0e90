"""The stacks of a project: each `Pulumi.<stack>.yaml` that is one, with its settings and hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from homelab.doctor import stack as stack_file
from homelab.doctor.stack import path_of
from homelab.errors import HomelabError, raise_all
from homelab.settings import Host, Settings, parse, project
from homelab.settings.secrets import readable
from homelab.text import clean

# As Pulumi takes a stack's name (pkg/backend: 100 characters of these).
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True)
class Member:
    """A stack. `name`: as `--stack` takes it; `text`: its file's."""

    name: str
    text: str
    settings: Settings

    @property
    def hosts(self) -> dict[str, Host]:
        """Its hosts, by their names in the settings."""
        return self.settings.hosts

    @property
    def shown_hosts(self) -> str:
        """`pve (192.0.2.1), second (192.0.2.2)`."""
        return ", ".join(f"{name} ({host.address})" for name, host in self.hosts.items())


def files() -> dict[str, Path]:
    """The project's settings files by their stack's name, in the names' order."""
    found = {path.name.removeprefix("Pulumi.").removesuffix(".yaml"): path for path in project().glob("Pulumi.*.yaml")}
    return {name: found[name] for name in sorted(found)}


def members(chosen: Sequence[str], there: Collection[str]) -> tuple[list[Member], list[str]]:
    """The stacks that are to run, and of each file that is left out a sentence that says why.

    :param chosen: by name; empty: all that have a file.
    :param there: names of the stacks that the backend has.
    :raises HomelabError: one can't be run as it is: then none is.
    """
    left: list[str] = []
    names = list(dict.fromkeys(chosen))
    if not chosen:
        for name in files():
            if not _NAME.fullmatch(name):
                left.append(
                    f"Pulumi.{clean(name)}.yaml is left out: a stack's name has letters, digits, hyphens, underscores and periods"
                )
            elif name not in there:
                left.append(f"{name} is left out: not a stack yet (pulumi stack init {name})")
            else:
                names.append(name)
    if not names:
        raise HomelabError(
            wanted=f"stacks of the project {project()}",
            found="; ".join(left) or "no file Pulumi.STACK.yaml there",
            why="a stack is a settings file, and a state that the backend keeps for it",
            next="homelab init ADDRESS makes both; `pulumi stack init NAME` makes the state of a file that is there",
        )
    found: list[Member] = []
    errors: list[HomelabError] = []
    for name in names:
        try:
            found.append(_member(name, there))
        except HomelabError as error:
            errors.append(error)
    if errors and not chosen and len(names) > 1:
        errors[-1] = _with_a_way_round(errors[-1])
    raise_all(errors)
    return found, left


def _member(name: str, there: Collection[str]) -> Member:
    """:raises HomelabError: there is no such stack, or its settings are mistaken."""
    file = path_of(name)
    # Of a name with its organization, the backend's list need not know.
    if "/" not in name and name not in there:
        raise HomelabError(
            wanted=f"the stack {name}",
            found=f"not a stack yet: {file.name} is there, but the backend has no state of it"
            if file.is_file()
            else f"no {file.name}, and the backend has no stack of this name",
            why="without a state, nobody would know what has been done",
            next=f"make it: pulumi stack init {name}; or correct the name",
        )
    read = stack_file.read(file)
    if not read.host_names():
        read.host(None)  # says what is wrong
    try:
        settings = parse({key: json.dumps(readable(value)) for key, value in read.values.items()})
    except HomelabError as error:
        raise HomelabError(
            wanted=f"settings of the stack {name} that can be carried out ({file.name})",
            found=str(error),
            why="`pulumi up` would refuse them",
            next=f"correct {file.name}; docs/settings.md has the keys",
        ) from None
    return Member(name, file.read_text(encoding="utf-8"), settings)


def _with_a_way_round(error: HomelabError) -> HomelabError:
    return error.retold(next=f"{error.next}; or name only the stacks that are to run: --stack A --stack B")
