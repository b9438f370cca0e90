"""How a container differs from what it is to have. Nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import card_nodes, container_lines, guest_notes, pmxcfs
from remote_scripts.shared.container_conf import ConfText, conf_text, options_of
from remote_scripts.shared.container_note import Cards, ContainerNote
from remote_scripts.shared.container_text import as_options, own_lines
from remote_scripts.shared.guest_kinds import CONTAINER
from remote_scripts.shared.guest_note import is_another
from remote_scripts.shared.properties import differing
from remote_scripts.tools.system import System

_CUT_SHORT = "a run was cut short while it changed the container"


@dataclass(frozen=True)
class Decided:
    """What a container is to have. `nodes`: of the host, as container_lines.Lines has them; `options`: homelab's lines;
    `target`: these, and what all else of homelab's becomes.
    """

    nodes: tuple[str, ...]
    options: dict[str, str]
    target: dict[str, str | None]


def decided(system: System, conf: ConfText, note: ContainerNote) -> Decided:
    """By what is noted that it was given, and the nodes of that which are there now."""
    cards = card_nodes.renumbered(system, note.given.cards or Cards())
    own, base = own_lines(conf, note), note.base(options_of(conf), {})
    lines = container_lines.lines_for(system, own.others, cards, note.given.groups)
    options = as_options(conf.text, own, lines.want)
    return Decided(lines.nodes, options, {**{key: base.get(key) for key in note.values}, **options})


def _said(key: str, now: str | None, wanted: str | None) -> str:
    line = f"{key}: {now or wanted}" if now or wanted else key
    if now is not None and wanted is not None:
        return f"{line} instead of {wanted}"
    return f"{line} is no longer needed" if wanted is None else f"{line} is not there"


def drift(system: System, ctid: int, note: ContainerNote) -> list[str]:
    """How it differs from what it was given last. It asks no API.

    :raises Failure: its configuration can't be read.
    """
    text = pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf")
    if not text:
        return [f"container {ctid} is gone"]
    conf = conf_text(text)
    config = options_of(conf)
    if is_another(note, config):
        return [f"container {ctid} isn't the container that was given its cards"]
    change = differing(decided(system, conf, note).target, config)
    lacking = card_nodes.missing(system, card_nodes.nodes_of(system, note.given.cards or Cards()))
    return [
        *(f"{path} is not on the host" for path in lacking),
        *(_said(key, config.get(key), value) for key, value in change.items()),
        *([_CUT_SHORT] if note.is_under_way else []),
    ]


def noted(system: System, ctid: int) -> ContainerNote:
    """What is noted of a container.

    :raises Failure: it can't be read.
    """
    return guest_notes.of(system, CONTAINER, ctid, ContainerNote)
