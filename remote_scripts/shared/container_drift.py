"""How a container differs from what it is to have. Nothing is changed here."""

from __future__ import annotations

from remote_scripts.shared import card_nodes, container_lines, guest_notes, pmxcfs
from remote_scripts.shared.container_conf import ConfText, conf_text, options_of
from remote_scripts.shared.container_note import Cards, ContainerNote
from remote_scripts.shared.container_text import as_options, own_lines
from remote_scripts.shared.guest_kinds import CONTAINER
from remote_scripts.shared.guest_note import is_another
from remote_scripts.shared.properties import differing
from remote_scripts.tools.system import System

_CUT_SHORT = "a run was cut short while it changed the container"


def differences(system: System, conf: ConfText, note: ContainerNote, cards: Cards) -> list[str]:
    """What would be changed in its configuration so that it has these cards, and what is in the way, a line each."""
    own, config = own_lines(conf, note), options_of(conf)
    lines = container_lines.lines_for(system, own.others, cards, note.given.groups)
    base = note.base(config, {})
    target = {**{key: base.get(key) for key in note.values}, **as_options(conf.text, own, lines.want)}
    change = differing(target, config)
    lacking = card_nodes.missing(system, card_nodes.nodes_of(system, cards))
    return [
        *(f"{path} is not on the host" for path in lacking),
        *(_said(key, config.get(key), value) for key, value in change.items()),
        *([_CUT_SHORT] if note.is_under_way else []),
    ]


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
    if is_another(note, options_of(conf)):
        return [f"container {ctid} isn't the container that was given its cards"]
    return differences(system, conf, note, note.given.cards or Cards())


def noted(system: System, ctid: int) -> ContainerNote:
    """What is noted of a container.

    :raises Failure: it can't be read.
    """
    return guest_notes.of(system, CONTAINER, ctid, ContainerNote)
