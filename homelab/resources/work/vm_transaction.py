"""Asks a VM's host for a transaction (remote_scripts/layers/guest_cards.py): what the VM is to have is decided here, by
what the host says of it, and refused before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from homelab.errors import HomelabError
from homelab.findings import JudgedGuest
from homelab.remote import ssh
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.tools.plain import of_plain

# How often is decided anew where the VM was changed meanwhile.
TRIES = 3
# How long the host's part may take beside the guest's own shutdown, in seconds: it may wait for a shared card.
_HOST_SECONDS = 2400


class VmTransaction:
    """Of one VM.

    :param host: the settings of its host.
    :param label: for messages, such as `sandbox`.
    """

    def __init__(self, host: Host, label: str) -> None:
        self._host, self._label = host, label

    def read(self, wanted: Wanted) -> Answer:
        """The VM; of one on another node, that node's name alone.

        :raises HomelabError: it can't be read.
        """
        return self._asked("read", wanted)

    def apply(self, wanted: Wanted, decide: Callable[[Answer], JudgedGuest | None] = lambda _: None) -> Answer:
        """Brings it to what is decided.

        :param wanted: but for the options, and for which of them wait.
        :param decide: what is judged of the VM, with its options, by what the host says of it; None: it has those that
            it has from this program.
        :raises HomelabError: as `decide`, and nothing was changed; or it has what it had before.
        """
        for _ in range(TRIES):
            seen = self.read(wanted)
            if not seen.node:
                raise _missing(wanted.vmid)
            asked = replace(wanted, digest=seen.digest)
            if judged := decide(seen):
                asked = replace(asked, options=judged.options, terms=replace(wanted.terms, waits=tuple(judged.waits)))
            done = self._asked("apply", asked)
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
        """Gives it back what it had; of one that is gone the note is removed, and one on another node keeps it."""
        return self._asked("revert", wanted)

    def _asked(self, verb: str, wanted: Wanted) -> Answer:
        """What the layer answers; what it has begun it ends, also without this connection."""
        seconds = _HOST_SECONDS + wanted.terms.shutdown

        def say(line: str) -> None:
            tell(f"{self._label}: {line}")

        session = ssh.Session(self._host)
        return of_plain(Answer, session.ask(verb, "guest_cards", wanted, seconds, say, goes_on=True))


def _missing(vmid: int) -> HomelabError:
    return HomelabError(
        wanted=f"VM {vmid}",
        found="no node of its host's cluster has it",
        why="a card can't be given to a VM that isn't there",
        next="correct its vmid in the settings, or take the VM out of them if it was removed, then run `pulumi up` "
        "again",
    )
