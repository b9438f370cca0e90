"""The tree of a host's cards: host → IOMMU group → card → guest, with changes marked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from homelab.errors import HomelabError
from homelab.findings import Finding
from homelab.show.cards import ShownCard, Traits

Mark = Literal["stays", "new", "gone", "changes"]
NodeKind = Literal["host", "group", "card", "guest", "setting", "other"]
# A mark in a line of text, for output without colours.
SIGNS: dict[Mark, str] = {"stays": "", "new": "+ ", "gone": "- ", "changes": "~ "}
LEGEND = "With the next `pulumi up`: + comes, - goes, ~ changes."


@dataclass(frozen=True)
class TreeNode:
    """A line of the tree. `text`: without its mark; `mark`: whether it stays, comes, goes or changes."""

    kind: NodeKind
    text: str
    mark: Mark = "stays"
    children: tuple[TreeNode, ...] = ()

    @property
    def line(self) -> str:
        """The text with its mark."""
        return f"{SIGNS[self.mark]}{self.text}"

    def walk(self) -> Iterable[TreeNode]:
        """The node and its descendants."""
        yield self
        for child in self.children:
            yield from child.walk()


def of_host(
    title: str,
    current: Sequence[ShownCard],
    planned: Sequence[ShownCard],
    traits: tuple[Traits | None, Traits | None] = (None, None),
    refused: Sequence[HomelabError] = (),
    remarks: Sequence[str] = (),
) -> TreeNode:
    """A host's tree.

    :param title: what the host is, such as `pve (192.168.0.202)`.
    :param current: its cards as they are.
    :param planned: its cards as they are to be.
    :param traits: the host's options: current, and as they are to be.
    :param refused: why `pulumi up` does nothing on it.
    :param remarks: a sentence each.
    """
    before = {card.place: card for card in current}
    after = {card.place: card for card in planned}
    places = sorted({*before, *after})
    groups: dict[str, list[TreeNode]] = {}
    others: dict[str, list[str]] = {}
    for place in places:
        card = after.get(place) or before[place]
        groups.setdefault(card.group, []).append(_card(before.get(place), after.get(place)))
        for other in card.others_in_group:
            is_card = any(other.startswith(card_place) for card_place in places)
            if not is_card and other not in others.setdefault(card.group, []):
                others[card.group].append(other)
    group_nodes = [
        TreeNode("group", group, children=(*cards, *(TreeNode("other", other) for other in others.get(group, ()))))
        for group, cards in groups.items()
    ]
    no_card = (TreeNode("other", "no card of NVIDIA's, and none in the settings"),)
    refusals = (f"`pulumi up` refuses: wanted: {one.wanted}; found: {one.found}" for one in Finding.of(*refused))
    texts = [TreeNode("other", text) for text in (*refusals, *remarks)]
    return TreeNode("host", title, children=(*_settings(*traits), *texts, *(tuple(group_nodes) or no_card)))


def _settings(before: Traits | None, after: Traits | None) -> tuple[TreeNode, ...]:
    """Nodes of options; without marks where there is nothing to compare them with."""
    old, new = dict((after if before is None else before) or ()), dict((before if after is None else after) or ())
    nodes = []
    for name in {**new, **old}:
        mark: Mark = "stays" if old.get(name) == new.get(name) else "changes"
        text = f"{name}: {new.get(name, old.get(name))}"
        if mark == "changes" and name in old and name in new:
            text = f"{name}: {old[name]} → {new[name]}"
        elif mark == "changes":
            mark = "new" if name in new else "gone"
        nodes.append(TreeNode("setting", text, mark))
    return tuple(nodes)


def _card(before: ShownCard | None, after: ShownCard | None) -> TreeNode:
    card = after or before
    assert card is not None
    settings = _settings(before.traits if before else None, after.traits if after else None)
    old, new = ({guest: guest.traits for guest in (one.guests if one else ())} for one in (before, after))
    guests = [
        _node("guest", str(guest), guest in old, guest in new, _settings(old.get(guest), new.get(guest)))
        for guest in sorted({*old, *new})
    ]
    driver, is_other = card.driver, bool(before and after and before.driver != after.driver)
    if before and after and is_other:
        driver = f"{before.driver or 'not read'} → {after.driver}"
    text = f"{card.name}{f', {driver}' if driver else ''}"
    children = (*settings, *(guests or [TreeNode("other", "nobody has it")]))
    return _node("card", text, before is not None, after is not None, children, changes=is_other)


def _node(
    kind: NodeKind, text: str, was: bool, stays: bool, children: tuple[TreeNode, ...], *, changes: bool = False
) -> TreeNode:
    """A node with its mark: one that is there before and after changes, too, where something below it does."""
    changes = changes or any(node.mark != "stays" for node in children)
    mark: Mark = ("changes" if changes else "stays") if was and stays else "new" if stays else "gone"
    return TreeNode(kind, text, mark, children)
