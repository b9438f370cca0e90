"""NewContainer: a container that this program makes through the API. Its template, its disk's storage and
whether it is unprivileged are never changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass

from homelab.resources.base import NewGuest, NewGuestInputs


class NewContainer(NewGuest):
    """A container that this program creates."""

    kind = "lxc:Container"
    replaced_by = frozenset(("host", "node", "ctid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NewGuestInputs):
        """`container`: its name in the settings."""

        container: str
        ctid: int
