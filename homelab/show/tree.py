"""The tree of a host's cards: host → IOMMU group → card → guest, with changes marked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from homelab.show.cards import Data, ShownCard, ShownGuest, Traits

Mark = Literal["stays", "new", "gone", "changes"]
NodeKind = Literal["host", "group", "card", "guest", "setting", "other"]
# A mark in a line of text, for output without colours.
SIGNS: dict[Mark, str] = {"stays": "", "new": "+ ", "gone": "- ", "changes": "~ "}
_PARTS: dict[NodeKind, tuple[NodeKind, ...]] = {"host": ("card", "guest"), "card": ("guest",)}
LEGEND = "With the next `pulumi up`: + comes, - goes, ~ changes."


@dataclass(frozen=True)
class TreeNode:
    """A line of the tree. `text`: without its mark; `mark`: whether it stays, comes, goes or changes; `data`: what
    programs ask of it.
    """

    kind: NodeKind
    text: str
    mark: Mark = "stays"
    children: tuple[TreeNode, ...] = ()
    data: Data = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The text with its mark."""
        return f"{SIGNS[self.mark]}{self.text}"

    def walk(self) -> Iterable[TreeNode]:
        """The node and its descendants."""
        yield self
        for child in self.children:
            yield from child.walk()

    def values(self) -> dict[str, Any]:
        """The same for programs: the groups' cards are the host's own, and the steps are texts."""
        below = [one for child in self.children for one in (child.children if child.kind == "group" else [child])]
        steps = [one.text for one in below if one.kind == "setting" and one.mark != "stays"]
        parts = {f"{kind}s": [one.values() for one in below if one.kind == kind] for kind in _PARTS.get(self.kind, ())}
        changes = self.mark == "stays" and any(one.mark != "stays" for one in self.walk())
        return {**self.data, "mark": "changes" if changes else self.mark, "steps": steps, **parts}


def of_host(
    title: str,
    current: Sequence[ShownCard],
    planned: Sequence[ShownCard],
    traits: Traits = (),
    steps: Sequence[str] = (),
    notes: Sequence[str] = (),
    beside: Sequence[ShownGuest] = (),
) -> TreeNode:
    """A host's tree.

    :param title: what the host is, such as `pve (192.168.0.202)`.
    :param current: its cards as they are.
    :param planned: its cards with what is done.
    :param traits: the host's options.
    :param steps: what is done with the host itself.
    :param notes: refusals, and what else its owner is told, a sentence each.
    :param beside: guests with steps that have none of the cards.
    """
    before, after = ({card.place: card for card in cards} for cards in (current, planned))
    shown = {**before, **after}
    groups: dict[str, list[ShownCard]] = {}
    for place in sorted(shown):
        groups.setdefault(shown[place].group, []).append(shown[place])
    group_nodes = []
    for group, cards in groups.items():
        nodes = [_card(card, before.get(card.place), after.get(card.place)) for card in cards]
        others = dict.fromkeys(other for card in cards for other in card.others_in_group)
        nodes += [TreeNode("other", other) for other in others if not other.startswith(tuple(shown))]
        group_nodes.append(TreeNode("group", group, children=tuple(nodes)))
    no_card = [TreeNode("other", "no card of NVIDIA's or of the settings is there")]
    texts = [TreeNode("other", text) for text in notes]
    guests = [_node("guest", str(guest), True, True, _steps(guest.steps), guest.data) for guest in beside]
    return TreeNode(
        "host", title, children=(*_settings(traits), *_steps(steps), *texts, *(group_nodes or no_card), *guests)
    )


def _settings(traits: Traits | None) -> tuple[TreeNode, ...]:
    """Nodes of options."""
    return tuple(TreeNode("setting", f"{name}: {value}") for name, value in traits or ())


def _steps(steps: Sequence[str]) -> tuple[TreeNode, ...]:
    return tuple(TreeNode("setting", step, "changes") for step in steps)


def _card(card: ShownCard, before: ShownCard | None, after: ShownCard | None) -> TreeNode:
    old, new = ({guest: guest for guest in (one.guests if one else ())} for one in (before, after))
    guests = [
        _node("guest", str(guest), guest in old, guest in new, (*_settings(has.traits), *_steps(has.steps)), guest.data)
        for guest in sorted({*old, *new})
        for has in [new.get(guest) or old[guest]]
    ]
    driver, is_other = card.driver, bool(before and after and before.driver != after.driver)
    if before and after and is_other:
        driver = f"{before.driver or 'not read'} → {after.driver}"
    text = f"{card.name}{f', {driver}' if driver else ''}"
    children = (*_settings(card.traits), *_steps(card.steps), *(guests or [TreeNode("other", "nobody has it")]))
    data = {**card.data, "nextDriver": after.driver if after and is_other else None}
    return _node("card", text, before is not None, after is not None, children, data, is_other)


def _node(
    kind: NodeKind, text: str, was: bool, stays: bool, children: tuple[TreeNode, ...], data: Data, changes: bool = False
) -> TreeNode:
    """A node with its mark: one that is there before and after changes, too, where something below it does."""
    changes = changes or any(node.mark != "stays" for node in children)
    mark: Mark = ("changes" if changes else "stays") if was and stays else "new" if stays else "gone"
    return TreeNode(kind, text, mark, children, data)
