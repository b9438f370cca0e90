"""What `destroy` needs of VMs and mappings, noted on their host as well as in Pulumi's state.

A state can be lost: a laptop's disk, a backend that is gone. What we changed in files can be found again by what the
scripts noted in /var/lib/homelab; a VM's options and a mapping's entry look the same whoever wrote them. So what a
resource puts into the state is noted here as well, before anything is changed, and forgotten when it has been given
back. The state has it only once the work has ended:
what a run noted that was killed before that counts beside the state.

A note of a guest says by which name of the settings it is kept (`guest`). That name is no identity: a guest that gets
another one in the settings is made anew by the engine first, and what had the old name is undone after that. The second
one sees by the note that the guest is another's by then.

Names: `vm/<vmid>`, `power/<vmid>`, `mapping/<node>/<mapping>`, `file/<node>/<volume>`. Notes are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from homelab.host.facts import noted_in
from homelab.remote import scripts

if TYPE_CHECKING:
    from homelab.remote.ssh import Session


def of_vm(vmid: int) -> str:
    """The name of a VM's note."""
    return f"vm/{vmid}"


def of_power(vmid: int) -> str:
    """The name of the note that a VM ran when this program shut it down, until it runs again
    (homelab/provider/vm_memory.py says when it counts)."""
    return f"power/{vmid}"


def of_mapping(node: str, mapping: str) -> str:
    """The name of a mapping's note: the entry of this node."""
    return f"mapping/{node}/{mapping}"


def of_file(node: str, volume: str) -> str:
    """The name of a note of a file on a storage that this program downloads. A volume's one slash, after its content,
    becomes a plus sign."""
    return f"file/{node}/{volume.replace('/', '+', 1)}"


def held_by(noted: Mapping[str, Any] | None, guest: str) -> str:
    """The other name in the settings by which what is noted is kept now; empty: it is kept by `guest`."""
    holder = str((noted or {}).get("guest", ""))
    return "" if holder == guest else holder


async def noted(session: Session, name: str) -> Mapping[str, Any] | None:
    """What is noted there; None: nothing.

    :raises HomelabError: as `Session.run`.
    """
    answer = scripts.answer(await session.run("noted", scripts.ledger(name, "")))
    return noted_in({name: str(answer["note"])}, name)


async def note(session: Session, name: str, about: Mapping[str, Any]) -> None:
    """Notes it, in place of what is noted there.

    :raises HomelabError: as `Session.run`.
    """
    await session.run("apply", scripts.ledger(name, _line(about)))


async def keep(session: Session, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Notes it unless something is noted there.

    :returns: what is noted now.
    :raises HomelabError: as `Session.run`.
    """
    answer = scripts.answer(await session.run("apply", scripts.ledger(name, _line(about), keep=True)))
    return noted_in({name: str(answer["note"])}, name) or dict(about)


async def forget(session: Session, name: str) -> None:
    """What is noted there has been given back.

    :raises HomelabError: as `Session.run`.
    """
    await session.run("apply", scripts.ledger(name, ""))


def _line(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)
