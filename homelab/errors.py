"""The one kind of error that a person gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from homelab.text import clean


class HomelabError(Exception):
    """Something a person has to act on; its text says what was wanted, what was found, why it matters, what to do next.

    Whatever a host has put into a part is made safe to show (homelab/text.py).
    """

    #: What is known of a resource that the work on it has failed with, as its `Outputs`: the state keeps it. None: as
    #: it was before.
    outputs: Any = None

    def __init__(self, *, wanted: str, found: str, why: str, next: str) -> None:
        self.wanted, self.found, self.why, self.next = (clean(part) for part in (wanted, found, why, next))
        super().__init__(f"wanted: {self.wanted}\nfound:  {self.found}\nwhy:    {self.why}\nnext:   {self.next}")

    def parts(self) -> dict[str, str]:
        """What its text is made of, by the names of `__init__`."""
        return {"wanted": self.wanted, "found": self.found, "why": self.why, "next": self.next}

    def retold(self, **parts: str) -> Self:
        """The same error, of the same kind and with all that it knows besides, with other words in these parts.

        :param parts: those of `wanted`, `found`, `why` and `next` that become others.
        """
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        HomelabError.__init__(other, **{**self.parts(), **parts})
        return other


class UnreachableError(HomelabError):
    """The host doesn't answer on its SSH port, or not in time: it may be off, booting, or out of this network's
    reach."""


class LoginRefusedError(HomelabError):
    """The host answers, and doesn't let this user in by what was shown."""


class UnfinishedError(Exception):
    """The work on a resource has failed, and what is known of it by then belongs into the state."""

    def __init__(self, error: HomelabError, id_: str, state: Mapping[str, object]) -> None:
        super().__init__(str(error))
        self.id, self.state = id_, state


class SeveralErrors(HomelabError):
    """All that stands against a change at once, so that a person can mend it in one go."""

    def __init__(self, errors: list[HomelabError]) -> None:
        numbered = (f"{number}.\n{error}" for number, error in enumerate(errors, start=1))
        # The first line is what a narrow display shows of it.
        Exception.__init__(self, "\n".join([f"{len(errors)} problems prevent this:", *numbered]))
        self.errors = errors
        # For whoever tells more of an error.
        self.wanted, self.found, self.why, self.next = (
            "; ".join(dict.fromkeys(getattr(one, part) for one in errors))
            for part in ("wanted", "found", "why", "next")
        )


def raise_all(errors: list[HomelabError]) -> None:
    """Raises the error, or all of them as one; nothing for an empty list."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


def elsewhere(wanted: str, kind: str, guest: int, here: str, there: str) -> HomelabError:
    """A guest that is on another node of the cluster.

    :param kind: qemu or lxc.
    :param here: the name of the node that it is to be on.
    :param there: the name of the node that it is on.
    """
    name, command = ("VM", "qm") if kind == "qemu" else ("container", "pct")
    return HomelabError(
        wanted=wanted,
        found=f"{name} {guest} is on the node {there}, not on {here}",
        why="a card is in one machine: a guest can have it only on the node that the card is in",
        next=f"migrate it to {here} (on {there}, while it is off: `{command} migrate {guest} {here}`); or describe "
        f"{there} as a host of its own under "
        "homelab:hosts, and name that host for the guest",
    )


def unlocking(kind: str, guest: int | str, lock: str) -> str:
    """What to do about a guest that is locked.

    :param kind: qemu or lxc.
    :param lock: the lock's name, such as `backup`.
    """
    if lock == "suspended":
        # It sleeps, with its memory on a disk: without the lock it would start anew, and that memory would be lost.
        return f"wake it up: `qm resume {guest}`"
    return f"wait for the task; if there is none any more: `{'qm' if kind == 'qemu' else 'pct'} unlock {guest}`"
