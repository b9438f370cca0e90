"""A host's guests as its reading has them: their configurations, what is noted of them, and who has a card. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import unquote

from remote_scripts.notes.guest_note import Note
from remote_scripts.pve import container_conf, reservations, vm_conf
from remote_scripts.pve.booleans import is_true
from remote_scripts.pve.container_conf import ContainerConf, conf_text, sections_of
from remote_scripts.pve.guest_kinds import CONTAINER, VM, Kind
from remote_scripts.pve.properties import functions_of, overlap
from remote_scripts.pve.properties import parse as parse_properties
from remote_scripts.reading import answer
from remote_scripts.tools.plain import FormError, of_plain

NoteT = TypeVar("NoteT", bound=Note)
_OF_NVIDIA = re.compile(r"lxc\.mount\.entry\s*[:=]\s*(?!/dev/)/\S*(?:nvidia|libcuda)\S*\s+(\S+)")
# What the note of a mapping has at least (homelab/remote/ledger.py).
_OF_A_MAPPING: dict[str, type | tuple[type, ...]] = {
    "gpu": str,
    "path": str,
    "before": (str, type(None)),
    "had_flag": bool,
}


def ledger_entry(ledger: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """The ledger's entry of this name. One that can't be parsed, or lacks something, counts as none: entries are
    written whole, so it was edited by hand.

    :param ledger: name -> JSON.
    """
    try:
        note = json.loads(ledger.get(name, ""))
    except (ValueError, FormError):
        return None
    parts = _OF_A_MAPPING if name.startswith("mapping/") else {}
    if not isinstance(note, dict) or any(
        key not in note or not isinstance(note[key], kind) for key, kind in parts.items()
    ):
        return None
    return note


def of_mapping(node: str, mapping: str) -> str:
    """The name of the note of a mapping's entry of this node."""
    return f"mapping/{node}/{mapping}"


def mapping_note(ledger: Mapping[str, str], node: str, mapping: str) -> dict[str, Any] | None:
    """What is noted of a mapping's entry of this node, as of `ledger_entry`."""
    return ledger_entry(ledger, of_mapping(node, mapping))


class GuestConfig(answer.GuestConfig):
    """A guest's configuration, with what follows from its lines."""

    @property
    def guest_kind(self) -> Kind:
        return CONTAINER if self.kind == "lxc" else VM

    @property
    def name(self) -> str:
        """Empty: it has none."""
        return self.values.get("hostname" if self.kind == "lxc" else "name", "")

    @cached_property
    def container(self) -> ContainerConf:
        """The configuration of a container, as far as it is in the reading."""
        return container_conf.parse(self.lines)

    @property
    def nvidia_mounts(self) -> list[str]:
        """Where a container's own lines mount NVIDIA's files of the host, its device nodes aside."""
        mounts = map(_OF_NVIDIA.match, sections_of(self.lines)[""])
        return [f"/{mount[1].lstrip('/')}" for mount in mounts if mount]

    @property
    def values(self) -> dict[str, str]:
        """Proxmox VE's own keys -> values; of a VM those of its next start, as in Proxmox VE's API."""
        if self.kind == "lxc":
            return self.container.options
        return dict(self._next)

    @property
    def described(self) -> dict[str, str]:
        """Its values, with the lines of its description that are in the reading: those with a mark of who made it."""
        lines = (line for line in sections_of(self.lines)[""] if line.startswith("#"))
        return {**self.values, "description": "\n".join(unquote(line[1:]) for line in lines)}

    @property
    def options(self) -> dict[str, str]:
        """Key -> value as a note has them (remote_scripts/notes/guest_note.py): a container's lxc.* line is a key."""
        if self.kind == "lxc":
            return container_conf.options_of(conf_text(self.lines))
        return self.values

    @property
    def current(self) -> dict[str, str]:
        """Key -> value of a VM's configuration, without what is pending for its next start."""
        return dict(self._options[0])

    @property
    def waiting(self) -> dict[str, str | None]:
        """What waits for the guest's next start: key -> value, which isn't read of each; None: the key goes."""
        pending = dict(self._options[1])
        deleted = [key.removeprefix("!") for key in re.split(r"[,;\s]+", pending.pop("delete", "")) if key]
        return {**dict.fromkeys(deleted), **pending}

    def devices(self, *, current: bool) -> list[tuple[str, str]]:
        """A VM's hostpci options, key and value: the current ones, or those of its next start."""
        return vm_conf.devices(self._options[0] if current else self._next)

    @property
    def is_template(self) -> bool:
        """Whether it is a template, which never runs."""
        return is_true(self.values.get("template", ""))

    @property
    def is_windows(self) -> bool:
        """Whether the VM's system is Windows for Proxmox VE (`ostype`: win11, w2k8, wxp, wvista;
        PVE::QemuServer::windows_version)."""
        return self.kind == "vm" and self.values.get("ostype", "").startswith("w")

    @property
    def by_args(self) -> set[str]:
        """Addresses of the functions that a VM has, or gets at its next start, by options of QEMU itself (`args`)."""
        texts = (values.get("args", "") for values in (self.current, self.values)) if self.kind == "vm" else ()
        return {address for text in texts for address in functions_of(text.replace(" ", ";"))}

    @property
    def _options(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Current, and what waits for the next start."""
        by_section = sections_of(self.lines)
        waiting = by_section.get("pve:pending" if self.kind == "lxc" else "pending", [])
        return vm_conf.options(by_section[""]), vm_conf.options(waiting)

    @property
    def _next(self) -> list[tuple[str, str]]:
        current, pending = self._options
        kept = [pair for pair in current if pair[0] not in self.waiting]
        return kept + [pair for pair in pending if pair[0] != "delete"]


def guest_note(ledger: Mapping[str, str], kind: Kind, guest: int, form: type[NoteT]) -> NoteT:
    """What is noted of a guest. A note that can't be read counts as none: the host's layer refuses it.

    :param ledger: `HostFacts.ledger`.
    :param form: the class of its kind's notes.
    """
    try:
        return of_plain(form, json.loads(ledger.get(f"{kind.name}-{guest}", "{}")))
    except (ValueError, FormError):
        return form()


@dataclass(frozen=True)
class CardUser:
    """A VM whose configuration names a card, or that runs with it.

    `running`: it runs with the card; false also for a running VM that only its next start gives the card.
    """

    vmid: int
    name: str
    running: bool
    onboot: bool

    def __str__(self) -> str:
        return f"VM {self.vmid} ({self.name})"


@dataclass(frozen=True)
class Guests(answer.Guests):
    """The host's guests, and who of them has a card."""

    running: frozenset[int]
    configs: list[GuestConfig]

    def config(self, vmid: int) -> GuestConfig | None:
        """The configuration of a VM or container; None: there is none of that id."""
        return next((config for config in self.configs if config.id == vmid), None)

    def listed(self, kind: Kind) -> str:
        """The guests of a kind, for a message."""
        of_kind = sorted((config for config in self.configs if config.guest_kind is kind), key=lambda config: config.id)
        return ", ".join(f"{config.id} ({config.name})" for config in of_kind) or "none"

    def users_of(self, path: str, node: str) -> list[CardUser]:
        """The VMs that have a function of `path`, by address or by any mapping of this node that has it; no template,
        as it never runs.

        :param path: of a card, as Proxmox VE names it: its slot, or its functions joined by `;`.
        """
        known = reservations.parse(self.reservations)
        reserved = {one.vmid for one in known if overlap(one.address, path)} & self.running
        users = []
        for config in self.configs:
            if config.kind != "vm" or config.is_template:
                continue
            if self.options_of(config, path, node) or config.id in reserved:
                has_card = config.id in reserved or bool(self.options_in(config.devices(current=True), path, node))
                running, onboot = config.id in self.running and has_card, is_true(config.values.get("onboot", ""))
                users.append(CardUser(config.id, config.name or f"VM {config.id}", running, onboot))
        return users

    def options_of(self, config: GuestConfig, path: str, node: str) -> dict[str, dict[str, str]]:
        """A VM's hostpci options that give it a function of `path`, by address or by any mapping of this node that has
        it: name -> properties.

        They are those of its next start, and while it runs, also the current ones. (A VM that was shut down from inside
        keeps its pending options.)
        """
        current = config.devices(current=True) if config.id in self.running else []
        return self.options_in([*current, *config.devices(current=False)], path, node)

    def options_in(self, pairs: Iterable[tuple[str, str]], path: str, node: str) -> dict[str, dict[str, str]]:
        """Those of these hostpci options that give a function of `path`, as of `options_of`."""
        options = ((key, parse_properties(key, value)) for key, value in pairs)
        entries = self.mapping_entries
        return {key: option for key, option in options if vm_conf.names_card(option, entries, node, path)}

    @property
    def mapping_entries(self) -> dict[str, list[dict[str, str]]]:
        """PCI mapping's id -> its entries, one a device and node."""
        return vm_conf.mapping_entries(self.mappings)
