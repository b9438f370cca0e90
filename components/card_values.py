"""CardValues: how cards are reset and whether they may sleep, where the settings say so (`reset`, `keepAwake`).

Owns a udev rule, which sets the values whenever a function appears or gets a driver, and the values now. Undone: the rule goes, and a
function has the values again that it had before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from homelab.host import card_values
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Host
from homelab.shapes import CardPlan


@dataclass(frozen=True, kw_only=True)
class CardValuesArgs:
    """`cards`: as HostProbe puts them out; `generation`: raised when the values drifted, as it puts that out, too."""

    host: Host
    cards: pulumi.Input[Mapping[str, CardPlan]]
    generation: pulumi.Input[int]


class CardValues(pulumi.ComponentResource):
    """No outputs: a VM's start depends on it."""

    def __init__(self, name: str, args: CardValuesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardValues", name, {}, opts)
        wanted = pulumi.Output.all(args.cards, args.generation)
        remote.script(
            f"{name}-values",
            args.host,
            wanted.apply(lambda found: scripts.card_values(card_values.lines(found[0], args.host.gpus), found[1])),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
