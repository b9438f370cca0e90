"""What the other nodes of a host's cluster have noted of a container.

A guest that has come from another node is noted there: a state knows that, and one that was lost doesn't. A node that
doesn't answer has said nothing: that nothing is noted there isn't known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from homelab.errors import HomelabError
from homelab.provider.base import StackTexts
from homelab.remote import ledger, ssh
from homelab.settings import Host
from remote_scripts.layers.container_record import Wanted as ContainerRecord


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

    others = stack.peers(host)
    with ThreadPoolExecutor() as threads:  # one that doesn't answer is waited for beside the others
        answers = dict(zip(others, threads.map(answer_of, others), strict=True))
    return PeerNotes(
        {peer: answer for peer, answer in answers.items() if answer and not isinstance(answer, HomelabError)},
        {peer: answer.found for peer, answer in answers.items() if isinstance(answer, HomelabError)},
    )


def forget_notes(host: Host, names: Iterable[str]) -> None:
    """Takes notes out of a host's ledger: what they are about has been given back.

    :raises HomelabError: it can't be asked.
    """
    session = ssh.Session(host)
    for name in names:
        ledger.forget(session, name)
