"""Resources inside a component: what they are called, and what they were called by version 1.0, whose state goes on under the new names.

A component is called as its host or guest, what is in it by that and one word: `pve-cmdline`. Pulumi shows each in a column that is as wide
as the widest, so a long one costs all others what they say.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

# The module of every type of the provider in version 1.0: homelab:index:HostProbe.
FORMER_MODULE = "homelab:index"


def formerly(*names: str) -> pulumi.ResourceOptions:
    """For a resource that had these names; an empty one is none."""
    return pulumi.ResourceOptions(aliases=[pulumi.Alias(name=name) for name in names if name])


class Children:
    """The resources in a component.

    `component`: already registered; `opts`: what the component got: with it goes what it was called before; `former_type`: of the component, where it
    had another one; a URN has it for each resource in it, too.
    """

    def __init__(
        self,
        component: pulumi.ComponentResource,
        name: str,
        opts: pulumi.ResourceOptions | None,
        former_type: str | None = None,
    ) -> None:
        self._component, self._name = component, name
        known = (one.name for one in (opts and opts.aliases) or () if isinstance(one, pulumi.Alias))
        # `...` where an alias leaves the name as it is.
        self._names = list(dict.fromkeys([name, *(one for one in known if isinstance(one, str))]))
        # By its type alone does a URN know a parent.
        self._parents = [f"urn:pulumi:{pulumi.get_stack()}::{pulumi.get_project()}::{former_type}::any"][
            : bool(former_type)
        ]

    def named(self, word: str) -> str:
        """A resource's name."""
        return f"{self._name}-{word}"

    def options(
        self,
        word: str,
        *former: str,
        depends_on: pulumi.Input[Sequence[pulumi.Input[pulumi.Resource]] | pulumi.Resource] | None = None,
    ) -> pulumi.ResourceOptions:
        """Those of `named(word)`. Its former names are said out, though Pulumi makes them from its parent's by itself: it doesn't where a run
        ended between the two, and would then make it anew, and undo the old one after that.

        :param former: words that it had instead.
        """
        names = [f"{one}-{each}" for one in self._names for each in (word, *former)]
        aliases = [pulumi.Alias(name=one) for one in names if one != self.named(word)]
        aliases += [pulumi.Alias(name=one, parent=parent) for parent in self._parents for one in names]
        return pulumi.ResourceOptions(parent=self._component, depends_on=depends_on, aliases=aliases)
