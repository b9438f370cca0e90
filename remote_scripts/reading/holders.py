"""Who has a graphics card open."""

from __future__ import annotations

import re

from remote_scripts.containers.card_nodes import DrmNodes
from remote_scripts.reading.answer import Holder
from remote_scripts.reading.source import Source, deepest

_NODE = re.compile(r"(?:/dev/nvidia[0-9].*|/dev/dri/.*)")


def holders(source: Source, minors: dict[str, int], drm: dict[str, DrmNodes]) -> list[Holder]:
    """Processes, in the order of their numbers, and the console.

    :param minors: PCI address -> the number of its /dev/nvidiaN.
    :param drm: PCI address -> its nodes in /dev/dri.
    """
    cards = {f"nvidia{minor}": address for address, minor in minors.items()}
    cards |= {name: address for address, nodes in drm.items() for name in (nodes.card, nodes.render) if name}
    processes = []
    # Without a node of a card there is nothing to have open.
    for pid in sorted(int(name) for name in source.names("/proc") if name.isdecimal()) if cards else []:
        nodes = (source.link(f"/proc/{pid}/fd/{number}") for number in source.files.names(f"/proc/{pid}/fd"))
        names = (node.rpartition("/")[2] for node in nodes if _NODE.fullmatch(node))
        opened = [*dict.fromkeys(cards[name] for name in names if name in cards)]
        if opened and source.files.exists(f"/proc/{pid}/comm"):  # or it has ended meanwhile
            processes.append(Holder(pid, source.files.text(f"/proc/{pid}/comm"), opened))
    return processes + _console(source)


def _console(source: Source) -> list[Holder]:
    """The text console's framebuffers."""
    if "1" not in (source.word("/sys/class/vtconsole/vtcon1/bind") or ""):
        return []
    return [
        Holder(0, f"the text console ({name})", [address])
        for name in source.names("/sys/class/graphics")
        if re.match(r"fb[0-9]", name) and (address := deepest(source.files.real(f"/sys/class/graphics/{name}")))
    ]
