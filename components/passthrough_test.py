"""PassthroughTest: a small VM gets the cards, boots the host's own kernel and says from inside what it sees; then it is removed.

Owns nothing that lasts, so nothing is undone. It is an act: its triggers are what it depends on, and the functions are among
them, so that a change there, such as another boot of the host or another card, replaces it, which tests again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Host
from homelab.shapes import PassthroughSeen


@dataclass(frozen=True, kw_only=True)
class PassthroughTestArgs:
    """`functions`: PCI address -> vendor:device of every function of the cards; they must be on vfio-pci, and no VM that runs may
    have one. `triggers`: what must be followed by another test, such as the verified boot."""

    host: Host
    functions: pulumi.Input[Mapping[str, str]]
    triggers: Sequence[pulumi.Input[object]] = ()


class PassthroughTest(pulumi.ComponentResource):
    """Outputs: `seen`: what the VM saw."""

    seen: pulumi.Output[PassthroughSeen]

    def __init__(self, name: str, args: PassthroughTestArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:gpu:PassthroughTest", name, {}, opts)
        wanted = pulumi.Output.from_input(args.functions)
        test = remote.script(
            f"{name}-vm",
            args.host,
            wanted.apply(scripts.passthrough_test),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            undone=False,
            triggers=[wanted, *args.triggers],
        )
        self.seen = test.stdout.apply(lambda text: cast("PassthroughSeen", scripts.answer(text)))
        self.register_outputs({"seen": self.seen})
