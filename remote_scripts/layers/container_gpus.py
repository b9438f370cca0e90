"""The device nodes of cards in a container's configuration, by dev[n] options or raw lxc.* lines.

Changes /etc/pve/lxc/CTID.conf: our own keys and lines alone, which are noted in /var/lib/homelab/containers/CTID
(shared/container_notes.py). What others have given the container stays. `revert` takes them out, and restarts the
container if it runs; where it is on another node by then, container_record and `revert` there do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from remote_scripts.shared import handover, pmxcfs
from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.container_change import ConfigChange
from remote_scripts.shared.container_notes import Given, Noted, Notes, waits_for_restart
from remote_scripts.shared.container_power import Power, Shutdown
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System, changes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`keep`: the container is removed with the stack, so that `revert` takes nothing out of it; `guest`: its name in
    the settings: a `revert` under another name than that of the last `apply` leaves the container as it is.
    """

    ctid: int
    cards: Cards = field(default_factory=Cards)
    shutdown: Shutdown = field(default_factory=Shutdown)
    keep: bool = False
    guest: str = ""


@dataclass(frozen=True)
class Answer:
    """`digest`: of what gives the container its devices; `revision`: how often it was changed; `devices`: a node's path
    -> how it is given, dev or mount.
    """

    digest: str
    revision: int
    devices: dict[str, str]


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Brings the configuration to what it is to be; the container isn't restarted (container_restart.py).

    :raises Failure: a node isn't there, the container can't be changed, or one of the host's cards is away.
    """
    handover.need_rest(system)
    config = ConfigChange(system, wanted.ctid, Power(system, wanted.ctid, wanted.shutdown), wanted.cards)
    provided = config.apply().provided
    config.notes.change(guest=wanted.guest)
    if not config.changed:
        system.log.say(f"container {wanted.ctid} has what it is to have")
    lines = []
    for path, how in provided.items():
        device = system.files.device(path)
        lines.append(f"{path} {how} {device.numbers}\n" if device else "")
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Answer(digest, config.notes.read().revision, {path: how.partition(" ")[0] for path, how in provided.items()})


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes our lines out, and nothing else. A container that runs is restarted.

    :raises Failure: it can't be changed, or doesn't go off in its time.
    """
    ctid, notes = wanted.ctid, Notes(system, wanted.ctid)
    holder = notes.read().guest
    is_here = pmxcfs.content_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf") is not None
    if wanted.guest and holder and holder != wanted.guest:
        system.log.say(f"note: container {ctid} is containers.{holder} now, and keeps what it was given")
        return Changed(False)
    node = "" if is_here else pmxcfs.node_of(system, ctid)
    if node:
        system.log.say(
            f"note: container {ctid} is on {node} now: what is noted of it stays until it is given back there"
        )
        return Changed(False)
    if wanted.keep or not is_here:
        system.log.say(f"there is nothing to take out of container {ctid}")
        notes.write(Noted())
        return Changed(False)
    power = Power(system, ctid, wanted.shutdown)
    config = ConfigChange(system, ctid, power, Cards(method="mount-entry"))
    config.apply()
    notes.change(given=Given(), revision=0)
    if waits_for_restart(system, ctid) and power.is_up() and not power.shut_down_to_start():
        raise power.shutdown_failure("has no card any more", f"switch it off: `pct stop {ctid}`")
    config.mark_in_force()
    if power.is_owed():
        power.start()
    notes.write(Noted())
    return Changed(config.changed)
