"""What the other nodes of a host's cluster have noted of a guest (homelab/remote/ledger.py).

A guest that has come from another node is noted there: a state knows that, and one that was lost doesn't. A node that
doesn't answer has said nothing: that nothing is noted there isn't known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from homelab.errors import HomelabError
from homelab.provider.base import StackTexts
from homelab.remote import ledger, ssh
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.layers.container_record import Wanted as ContainerRecord

T = TypeVar("T")


@dataclass(frozen=True)
class PeerNotes:
    """What other nodes noted of a guest. `by_host`: host -> what is noted there; `errors`: host -> why it couldn't be
    asked."""

    by_host: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, str]

    def require_all(self, label: str, why: str) -> None:
        """:param label: of the guest.
        :raises HomelabError: one of the hosts couldn't be asked.
        """
        if self.errors:
            names = ", ".join(self.errors)
            raise HomelabError(
                wanted=f"to know what {names} noted about {label}, which may have come from there",
                found="; ".join(f"{name}: {reason}" for name, reason in self.errors.items()),
                why=why,
                next=f"switch {names} on and run the same command again; or, if it won't come back, take it out of "
                "homelab:hosts",
            )


def noted_by(stack: StackTexts, host: str, name: str) -> Mapping[str, Any]:
    """What a host has noted; empty: nothing.

    :raises HomelabError: it can't be asked.
    """
    return ledger.noted(ssh.Session(stack.host(host)), name) or {}


def noted_by_peers(stack: StackTexts, host: str, name: str) -> PeerNotes:
    """What the other hosts of a host's cluster have noted by a name.

    :param host: in the settings; it isn't asked itself.
    :param name: of the note.
    """
    return ask_peers(stack, host, lambda peer: noted_by(stack, peer, name))


def container_record_of(stack: StackTexts, host: str, ctid: int) -> Mapping[str, Any]:
    """What a host has noted of a container's lines, as its layer container_record gives it; empty: nothing.

    :raises HomelabError: it can't be asked.
    """
    answer = ssh.Session(stack.host(host)).ask("read", "container_record", ContainerRecord(ctid=ctid))
    return answer if answer["record"] else {}


def ask_peers(stack: StackTexts, host: str, ask: Callable[[str], Mapping[str, Any]]) -> PeerNotes:
    """What the other hosts of a host's cluster answer.

    :param host: in the settings; it isn't asked itself.
    :param ask: asks one of the others what it has noted.
    """

    def answer_of(peer: str) -> Mapping[str, Any] | HomelabError:
        try:
            return ask(peer)
        except HomelabError as error:
            return error

    answers = _side_by_side(answer_of, stack.peers(host))
    return PeerNotes(
        {peer: answer for peer, answer in answers.items() if answer and not isinstance(answer, HomelabError)},
        {peer: answer.found for peer, answer in answers.items() if isinstance(answer, HomelabError)},
    )


def _side_by_side(do: Callable[[str], T], peers: Sequence[str]) -> dict[str, T]:
    """What is done with each of the peers: one that doesn't answer is waited for beside the others."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(peers, threads.map(do, peers), strict=True))


def forget_notes(host: Host, names: Iterable[str]) -> None:
    """Takes notes out of a host's ledger: what they are about has been given back.

    :raises HomelabError: it can't be asked.
    """
    session = ssh.Session(host)
    for name in names:
        ledger.forget(session, name)


def forget_on_peers(stack: StackTexts, host: str, guest: str, names: Sequence[str]) -> None:
    """What is given back is noted nowhere: a node that couldn't be told when the guest left it still has its notes, and
    is told now.

    :param guest: its name in the settings; a note that is kept by another name stays.
    """
    _side_by_side(lambda peer: forget_on(stack, peer, guest, names), stack.peers(host))


def forget_on(stack: StackTexts, host: str, guest: str, names: Sequence[str]) -> None:
    """What is noted of a guest on a node that it has left no longer counts. A node that doesn't answer is named, and
    holds up nothing.

    :param guest: as of `forget_on_peers`.
    :param names: as of `forget_on_peers`.
    """
    try:
        session = ssh.Session(stack.host(host))
        for name in names:
            noted = ledger.noted(session, name)
            if noted and not ledger.held_by(noted, guest):
                ledger.forget(session, name)
    except HomelabError as error:
        _stays(guest, host, error)


def _stays(guest: str, host: str, error: HomelabError) -> None:
    tell(
        f"{guest}: note: {host} couldn't forget it ({error.found}): what is noted there of {guest} stays "
        "(/var/lib/homelab/ledger)"
    )
