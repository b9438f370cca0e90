"""The guests that a person names: by id, by `vm 103` or `ct:901`, by Proxmox VE's name or the settings'. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from homelab.facts.guests import GuestConfig
from homelab.settings import Container, Vm

_KINDS = r"(?<!\S)(?:vm|(ct|lxc|containers?))[\s:]+(?=\S)"


class Named(NamedTuple):
    """A guest by its name in the settings. `kind`: vm or lxc."""

    kind: str
    id: int
    name: str


def named(vms: Mapping[str, Vm], containers: Mapping[str, Container]) -> list[Named]:
    """Guests by their names in the settings."""
    return [
        *(Named("vm", vm.vmid, name) for name, vm in vms.items()),
        *(Named("lxc", container.ctid, name) for name, container in containers.items()),
    ]


def meant(text: str, *known: Iterable[Named | GuestConfig]) -> list[Named | GuestConfig]:
    """The guests that a text names; empty: one of them isn't known, or two have that name.

    :param known: where several have a name, the first of these that know it count.
    """
    words = re.sub(_KINDS, lambda kind: "lxc:" if kind[1] else "vm:", text.lower().replace(",", " ")).split()
    found = [next(filter(None, (_of(word, guests) for guests in known)), []) for word in words]
    return [*{one.id: one for [one] in found}.values()] if all(len(ones) == 1 for ones in found) else []


def _of(word: str, guests: Iterable[Named | GuestConfig]) -> list[Named | GuestConfig]:
    kind, _, name = word.rpartition(":")
    return [one for one in guests if kind in ("", one.kind) and name in (str(one.id), one.name.lower())]
