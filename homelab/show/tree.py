"""One tree of a host's cards: host → IOMMU group → card → guest, with what changes marked. Pure; renderers walk it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from homelab.show.cards import ShownCard, ShownGuest, Traits

Mark = Literal["stays", "new", "gone", "changes"]
NodeKind = Literal["host", "group", "card", "guest", "setting", "other"]
# What a mark is in a line of text, where there may be no colours.
SIGNS: dict[Mark, str] = {"stays": "", "new": "+ ", "gone": "- ", "changes": "~ "}


@dataclass(frozen=True)
class TreeNode:
    """`text`: what it is; `mark`: what becomes of it."""

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


def of_host(
    title: str,
    now: Sequence[ShownCard] | None,
    planned: Sequence[ShownCard] | None,
    about: tuple[Traits | None, Traits | None] = (None, None),
) -> TreeNode:
    """A host's tree. With both `now` and `planned`, what changes is marked.

    :param title: what the host is, such as `pve (192.168.0.202)`.
    :param now: as it is; None: that isn't shown.
    :param planned: as the settings want it; None: that isn't shown.
    :param about: what is set of the host: as it is, and as the settings want it.
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
    nothing = (TreeNode("other", "no card of NVIDIA's, and none in the settings"),)
    have, want = about
    settings = _settings(want if now is None else have, have if planned is None else want)
    return TreeNode("host", title, children=(*settings, *(tuple(shown) or nothing)))


def _settings(before: Traits | None, after: Traits | None) -> tuple[TreeNode, ...]:
    """What is set of something; where nobody has read how it is, nothing is marked."""
    had, has = dict((after if before is None else before) or ()), dict((before if after is None else after) or ())
    found = []
    for what in {**has, **had}:
        mark: Mark = "stays" if had.get(what) == has.get(what) else "changes"
        text = f"{what}: {has.get(what, had.get(what))}"
        if mark == "changes" and what in had and what in has:
            text = f"{what}: {had[what]} → {has[what]}"
        elif mark == "changes":
            mark = "new" if what in has else "gone"
        found.append(TreeNode("setting", text, mark))
    return tuple(found)


def _card(before: ShownCard | None, after: ShownCard | None) -> TreeNode:
    card = after or before
    assert card is not None
    if before is None or after is None:
        mark: Mark = "new" if before is None else "gone"
        text = f"{card.called}{f', {card.driver}' if card.driver else ''}"
        alike = (TreeNode("guest", str(guest), mark, _settings(guest.about, None)) for guest in card.guests)
        return TreeNode("card", text, mark, (*_settings(card.about, None), *alike))
    changed = before.driver != after.driver
    driver = f"{before.driver or 'not read'} → {after.driver}" if changed else after.driver
    guests = tuple(_guest(guest, before, after) for guest in sorted({*after.guests, *before.guests}))
    settings = _settings(before.about, after.about)
    moved = changed or any(node.mark != "stays" for node in (*guests, *settings))
    if not guests:
        guests = (TreeNode("other", "nobody has it"),)
    return TreeNode(
        "card", f"{card.called}{f', {driver}' if driver else ''}", "changes" if moved else "stays", (*settings, *guests)
    )


def _guest(guest: ShownGuest, before: ShownCard, after: ShownCard) -> TreeNode:
    had, has = ({one: one.about for one in card.guests} for card in (before, after))
    if guest not in had or guest not in has:
        settings = _settings({**had, **has}[guest], None)
        return TreeNode("guest", str(guest), "new" if guest in has else "gone", settings)
    settings = _settings(had[guest], has[guest])
    moved = any(node.mark != "stays" for node in settings)
    return TreeNode("guest", str(guest), "changes" if moved else "stays", settings)


def counts(nodes: Iterable[TreeNode]) -> dict[Mark, int]:
    """How many guests and cards each thing happens to."""
    found: dict[Mark, int] = {}
    for top in nodes:
        for node in top.walk():
            if node.kind in ("card", "guest"):
                found[node.mark] = found.get(node.mark, 0) + 1
    return found
