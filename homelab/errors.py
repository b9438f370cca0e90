"""All exceptions of the program.

    HomelabError                       what a user has to act on
        UnreachableError
        LoginRefusedError
        NoPythonError
        RefusedError                   another run is at work
        NotConfirmedError, NotStartedError  a boot; a guest
        ApiError                       of Proxmox VE's API
            NotThereError
            ElsewhereError
            ChangedMeanwhileError
            UnansweredError
                AwayError              an UnreachableError, too
            LockHeldError
            NoQuorumError
        SeveralErrors
    UnfinishedError                    carries a HomelabError to Pulumi's engine
    GoneError                          caught within the program
    Mistake, Declined                  of `homelab init`

homelab.stack.Refusal ends a program with a HomelabError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from homelab.text import clean


class HomelabError(Exception):
    """An error that the user has to act on. Its text has four parts: what was wanted, what was found, why it matters,
    what to do next. Control characters in them, which a host may have sent, are made safe to show (homelab/text.py).
    """

    #: The `Outputs` that the state keeps of the resource whose work failed with this error; None: those from before.
    outputs: Any = None
    #: The name of the symptom by which it was recognised (homelab/symptoms.py); empty: it wasn't.
    symptom = ""

    def __init__(self, *, wanted: str, found: str, why: str, next: str) -> None:
        self.wanted, self.found, self.why, self.next = (clean(part) for part in (wanted, found, why, next))
        super().__init__(f"wanted: {self.wanted}\nfound:  {self.found}\nwhy:    {self.why}\nnext:   {self.next}")

    def parts(self) -> dict[str, str]:
        """The four parts by their names."""
        return {"wanted": self.wanted, "found": self.found, "why": self.why, "next": self.next}

    def retold(self, **parts: str) -> Self:
        """A copy of the error, of the same class and with its further attributes, with other texts in some parts.

        :param parts: new texts, by the names `wanted`, `found`, `why` and `next`.
        """
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        HomelabError.__init__(copy, **{**self.parts(), **parts})
        return copy


class UnreachableError(HomelabError):
    """The host doesn't answer on its SSH port, or not in time: it may be off, booting, or out of this network's
    reach."""


class LoginRefusedError(HomelabError):
    """The host answers, and refuses this user's login."""


class NoPythonError(HomelabError):
    """The system has no Python, in which this program's part there is written."""


class RefusedError(HomelabError):
    """Another run is at work on the host."""


class NotConfirmedError(HomelabError):
    """A host says why its boot can't be confirmed, which doesn't go away by itself."""


class NotStartedError(HomelabError):
    """A guest's start was begun, and has failed."""


class ApiError(HomelabError):
    """The API refused a request, or a task failed. `status` is HTTP's (0: no answer), `reason` the node's own words,
    `sent`: False: the request certainly wasn't carried out, and may be sent again."""

    sent = True

    def __init__(self, *, wanted: str, found: str, why: str, next: str, status: int, reason: str) -> None:
        super().__init__(wanted=wanted, found=found, why=why, next=next)
        self.status, self.reason = status, reason


class NotThereError(ApiError):
    """A guest's configuration or a mapping doesn't exist."""


class ElsewhereError(ApiError):
    """The guest is on another node of the cluster: `node`."""

    node = ""


class ChangedMeanwhileError(ApiError):
    """The configuration was changed since it was read: its digest is another one."""


class UnansweredError(ApiError):
    """No answer, or none from the node; or what was asked for still goes on."""


class AwayError(UnansweredError, UnreachableError):
    """The host itself isn't reached, so nothing was asked."""

    sent = False


class LockHeldError(ApiError):
    """Another process holds the lock of a guest or file that was to be changed; nothing was done."""

    sent = False


class NoQuorumError(ApiError):
    """The cluster has no quorum, so that /etc/pve is read-only; nothing was done."""

    sent = False


class SeveralErrors(HomelabError):
    """All refusals of a change in one error, so that the user can correct them together."""

    def __init__(self, errors: list[HomelabError]) -> None:
        numbered = (f"{number}.\n{error}" for number, error in enumerate(errors, start=1))
        # A narrow display shows the first line alone.
        Exception.__init__(self, "\n".join([f"{len(errors)} problems prevent this:", *numbered]))
        self.errors = errors
        # The parts of all errors, for code that copies an error's parts.
        self.wanted, self.found, self.why, self.next = (
            "; ".join(dict.fromkeys(getattr(error, part) for error in errors))
            for part in ("wanted", "found", "why", "next")
        )


class UnfinishedError(Exception):
    """The work on a resource has failed. `id`, `state`: the resource's id and outputs by then, which Pulumi keeps."""

    def __init__(self, error: HomelabError, id_: str, state: Mapping[str, object]) -> None:
        super().__init__(str(error))
        self.id, self.state = id_, state


class GoneError(Exception):
    """A refresh found that the resource isn't there any more."""


class Mistake(Exception):
    """What a person gave can't be taken; the text says why, and what to give. A question is asked again, an option ends
    the command."""


class Declined(Exception):
    """The person said no, or there is nothing to do: the text says what that means."""


def raise_all(errors: Iterable[HomelabError]) -> None:
    """Raises the error, or all of them as one; nothing where there is none."""
    if found := [*errors]:
        raise found[0] if len(found) == 1 else SeveralErrors(found)


def elsewhere(wanted: str, kind: str, guest: int, here: str, there: str) -> HomelabError:
    """The refusal of a guest that is on another node of the cluster.

    :param wanted: the error's first part.
    :param kind: qemu or lxc.
    :param guest: its id.
    :param here: the name of the node that it is to be on.
    :param there: the name of the node that it is on.
    """
    name, command = ("VM", "qm") if kind == "qemu" else ("container", "pct")
    return HomelabError(
        wanted=wanted,
        found=f"{name} {guest} is on the node {there}, not on {here}",
        why="a card is in one machine: a guest can have it only on the node that the card is in",
        next=f"migrate it to {here} (on {there}, while it is off: `{command} migrate {guest} {here}`); or describe "
        f"{there} as a host of its own under homelab:hosts, and name that host for the guest",
    )
