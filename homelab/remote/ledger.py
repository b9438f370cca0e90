"""The ledger: the originals of mappings and downloads that `destroy` needs, noted on their host as well as in
Pulumi's state.

A state can be lost: a laptop's disk, a backend that is gone. Changes in files can be found again by the records of the
layers in /var/lib/homelab; a mapping's entry doesn't tell who wrote it. (A VM's originals: remote_scripts/guests.) So
the originals that a resource puts into the state are noted here as well, before anything is changed, and forgotten when
they have been given back. The state has them only once the work has ended: the note of a run that was killed before
that counts beside the state.

A mapping's note has the card's key in `gpus` (`gpu`). That name is no identity: if a card gets another name in the
settings, the engine first creates the resource of the new name, and deletes that of the old name after that. The
deletion sees by the note that the mapping is the other resource's by then.

Names: `mapping/<node>/<mapping>`, `file/<node>/<volume>`. Notes are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from homelab.facts.guests import noted_in
from remote_scripts.both.ledger import Wanted

if TYPE_CHECKING:
    from homelab.remote.ssh import Session


def of_mapping(node: str, mapping: str) -> str:
    """The name of the note of a mapping's entry of this node."""
    return f"mapping/{node}/{mapping}"


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
    return noted_in({name: str(answer["note"])}, name)


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
