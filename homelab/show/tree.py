"""One tree of a host's cards: host → IOMMU group → card → guest, with what changes marked. Pure; renderers walk it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from homelab.show.cards import ShownCard, ShownGuest

Mark = Literal["stays", "new", "gone", "changes"]
NodeKind = Literal["host", "group", "card", "guest", "other"]
# What a mark is in a line of text, where there may be no colours.
SIGNS: dict[Mark, str] = {"stays": "", "new": "+ ", "gone": "- ", "changes": "~ "}


@dataclass(frozen=True)
class TreeNode:
    """``text``: what it is; ``mark``: what becomes of it."""

    kind: NodeKind
    text: str
    mark: Mark = "stays"
    children: tuple[TreeNode, ...] = ()

    @property
    def line(self) -> str:
        """The text with its mark."""
        return f"{SIGNS[self.mark]}{self.text}"

    def walk(self) -> Iterable[TreeNode]:
        """It, and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def of_host(title: str, now: Sequence[ShownCard] | None, planned: Sequence[ShownCard] | None) -> TreeNode:
    """A host's tree.

    :param title: what the host is, such as `pve (192.168.0.202)`.
    :param now: as it is; None: that isn't shown. ``planned``: as the settings want it; None: that isn't shown. With both, what changes is
        marked.
    """
    before = {card.place: card for card in (planned if now is None else now) or ()}
    after = {card.place: card for card in (now if planned is None else planned) or ()}
    places = sorted({*before, *after})
    groups: dict[str, list[TreeNode]] = {}
    beside: dict[str, list[str]] = {}
    for place in places:
        card = after.get(place) or before[place]
        groups.setdefault(card.group, []).append(_card(before.get(place), after.get(place)))
        for other in card.beside:
            if not any(other.startswith(one) for one in places) and other not in beside.setdefault(card.group, []):
                beside[card.group].append(other)
    shown = [
        TreeNode("group", group, children=(*cards, *(TreeNode("other", other) for other in beside.get(group, ()))))
        for group, cards in groups.items()
    ]
    return TreeNode(
        "host", title, children=tuple(shown) or (TreeNode("other", "no card of NVIDIA's, and none in the settings"),)
    )


def _card(before: ShownCard | None, after: ShownCard | None) -> TreeNode:
    card = after or before
    assert card is not None
    if before is None or after is None:
        mark: Mark = "new" if before is None else "gone"
        text = f"{card.called}{f', {card.driver}' if card.driver else ''}"
        return TreeNode("card", text, mark, tuple(TreeNode("guest", str(guest), mark) for guest in card.guests))
    changed = before.driver != after.driver
    driver = f"{before.driver or 'not read'} → {after.driver}" if changed else after.driver
    guests = tuple(_guest(guest, before, after) for guest in sorted({*after.guests, *before.guests}))
    moved = changed or any(guest.mark != "stays" for guest in guests)
    if not guests:
        guests = (TreeNode("other", "nobody has it"),)
    return TreeNode("card", f"{card.called}{f', {driver}' if driver else ''}", "changes" if moved else "stays", guests)


def _guest(guest: ShownGuest, before: ShownCard, after: ShownCard) -> TreeNode:
    mark: Mark = "stays"
    if guest not in before.guests:
        mark = "new"
    elif guest not in after.guests:
        mark = "gone"
    return TreeNode("guest", str(guest), mark)


def counts(nodes: Iterable[TreeNode]) -> dict[Mark, int]:
    """How many guests and cards each thing happens to."""
    found: dict[Mark, int] = {}
    for top in nodes:
        for node in top.walk():
            if node.kind in ("card", "guest"):
                found[node.mark] = found.get(node.mark, 0) + 1
    return found
