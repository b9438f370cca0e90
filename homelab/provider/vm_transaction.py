"""Asks a VM's host for a transaction (remote_scripts/layers/guest_cards.py): what the VM is to have is decided here, by
what the host says of it, and refused before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from homelab.errors import HomelabError
from homelab.provider.base import StackTexts
from homelab.remote import ssh
from homelab.text import tell
from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.tools.plain import of_plain

# How often is decided anew where the VM was changed meanwhile.
TRIES = 3
# How long the host's part may take beside the guest's own shutdown, in seconds: it may wait for a shared card.
_HOST_SECONDS = 2400


class VmTransaction:
    """Of one VM.

    :param host: of the settings, on which it counts.
    :param label: for messages, such as `sandbox`.
    """

    def __init__(self, stack: StackTexts, host: str, label: str) -> None:
        self._stack, self._host, self._label = stack, host, label

    def read(self, wanted: Wanted) -> Answer:
        """The VM, by the node that it is on now; of one on a node that the settings don't have, that node's name alone.

        :raises HomelabError: it can't be read.
        """
        return self._asked("read", wanted)

    def apply(
        self, wanted: Wanted, decide: Callable[[Answer], dict[str, str | None] | None] = lambda _: None
    ) -> Answer:
        """Brings it to what is decided.

        :param wanted: but for the options.
        :param decide: the options, by what the host says of the VM; None: those that it has from this program.
        :raises HomelabError: as `decide`, and nothing was changed; or it has what it had before.
        """
        for _ in range(TRIES):
            seen = self.read(wanted)
            if not seen.node:
                raise _missing(wanted.vmid)
            done = self._asked("apply", replace(wanted, options=decide(seen), digest=seen.digest))
            if done.done:
                return done
            tell(f"{self._label}: VM {wanted.vmid} was changed from elsewhere a moment ago; reading it again")
        raise HomelabError(
            wanted=f"VM {wanted.vmid} changed",
            found=f"its configuration was changed from elsewhere {TRIES} times meanwhile",
            why="writing now could lose another change; nothing was changed",
            next="see who changes it, then run `pulumi up` again",
        )

    def revert(self, wanted: Wanted) -> Answer:
        """Gives it back what it had, on the node that it is on now; of one that is gone the note is removed."""
        return self._asked("revert", wanted)

    def _asked(self, verb: str, wanted: Wanted) -> Answer:
        """What the layer answers; what it has begun it ends, also without this connection."""
        answer = self._of_host(self._host, verb, wanted)
        if not answer.node or answer.is_here:
            return answer
        there = self._stack.name_at(self._host, answer.node)
        if there is None and verb == "read":
            return answer
        if there is None:
            raise HomelabError(
                wanted=f"VM {wanted.vmid} on a host of the settings",
                found=f"it is on the node {answer.node}",
                why="only that node can change it; nothing was done",
                next=f"add {answer.node} to homelab:hosts, or move the VM back, then run the same again",
            )
        tell(f"{self._label}: VM {wanted.vmid} is on {answer.node} now")
        return self._of_host(there, verb, wanted)

    def _of_host(self, host: str, verb: str, wanted: Wanted) -> Answer:
        seconds = _HOST_SECONDS + wanted.terms.shutdown
        session = ssh.Session(self._stack.host(host))

        def say(line: str) -> None:
            tell(f"{self._label}: {line}")

        return of_plain(Answer, session.ask(verb, "guest_cards", wanted, seconds, say, goes_on=True))


def _missing(vmid: int) -> HomelabError:
    return HomelabError(
        wanted=f"VM {vmid}",
        found="no node of its host's cluster has it",
        why="a card can't be given to a VM that isn't there",
        next="correct its vmid in the settings, or take the VM out of them if it was removed, then run `pulumi up` "
        "again",
    )
