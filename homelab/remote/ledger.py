"""The ledger: the originals of mappings and downloads that `destroy` needs, noted on their host as well as in
Pulumi's state.

A state can be lost: a laptop's disk, a backend that is gone. The layers' records in /var/lib/homelab show which files
were changed, but a mapping's entry doesn't show who wrote it. (A VM's originals: remote_scripts/guests.) So a resource
notes its originals here, too, before it changes anything, and deletes the note when it has restored them. The state has
them only once the work has ended: if a run was killed before that, only the note has them.

A mapping's note has the card's key in `gpus` (`gpu`). If a card gets another name in the settings, the engine first
creates a resource of the new name, then deletes the old one. By the note, the deletion sees that the mapping now
belongs to the new one.

Names: `mapping/<node>/<mapping>`, `file/<node>/<volume>`. Notes are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from homelab.facts.guests import ledger_entry
from remote_scripts.both.ledger import Wanted

if TYPE_CHECKING:
    from homelab.remote.ssh import Session


def of_file(node: str, volume: str) -> str:
    """The name of the note of a file that this program downloads to a storage. The volume's one slash, after its
    content, becomes a plus sign.
    """
    return f"file/{node}/{volume.replace('/', '+', 1)}"


def stack_of(urn: str) -> str:
    """The stack that a resource belongs to, as `project/stack`; empty: there is no URN.

    :param urn: the resource's.
    """
    stack_part, _, rest = urn.partition("::")
    return f"{rest.partition('::')[0]}/{stack_part.rpartition(':')[2]}" if rest else ""


def held_by(noted: Mapping[str, Any] | None, name: str) -> str:
    """The card's key in the settings that keeps a mapping's note, if it is another than `name`; else empty."""
    holder = str((noted or {}).get("gpu", ""))
    return "" if holder == name else holder


def noted(session: Session, name: str) -> Mapping[str, Any] | None:
    """The note of this name; None: there is none.

    :raises HomelabError: as `Session.run`.
    """
    answer = session.ask("read", "ledger", Wanted(name=name))
    return ledger_entry({name: str(answer["note"])}, name)


def note(session: Session, name: str, values: Mapping[str, Any]) -> None:
    """Writes a note, in place of an earlier one of this name.

    :raises HomelabError: as `Session.run`.
    """
    session.ask("apply", "ledger", Wanted(name=name, note=json.dumps(values, sort_keys=True)))


def forget(session: Session, name: str) -> None:
    """Removes the note of this name, if there is one.

    :raises HomelabError: as `Session.run`.
    """
    session.ask("apply", "ledger", Wanted(name=name))
