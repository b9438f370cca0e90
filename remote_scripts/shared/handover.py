"""Cards that a VM and this host's containers have in turn: what is noted of each.

/var/lib/homelab/handover/NAME.state has lines KEY=VALUE. Without it the card is with the host. lib/handover/state.sh
says what the keys are, and writes them.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, get_args

from remote_scripts.shared.guest_tasks import boot_of
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

FOLDER = f"{HOME}/handover"
_NEXT = "see why, and mend it; a reboot of the host gives its drivers every card, and then the file may be removed"

#: HOST: there is no file. DRAINING, FREE, DETACHED: on the way to the VM. HELD: with the host, and `why` the VM didn't
#: get it or its containers weren't started. STUCK: a driver doesn't let go. DEAD: the card doesn't answer.
State = Literal["HOST", "DRAINING", "FREE", "DETACHED", "VM", "RETURNING", "HELD", "STUCK", "DEAD"]


@dataclass(kw_only=True)
class Noted:
    """Where a card is. `since`: seconds since 1970; `boot`: of the host."""

    state: State = "HOST"
    vm: str = ""
    boot: str = ""
    since: str = ""

    @property
    def at(self) -> str:
        """When its state began."""
        return time.strftime("%F %T", time.localtime(int(self.since) if self.since.isdecimal() else 0))


_KEYS = tuple(one.name for one in fields(Noted))


def noted(system: System, name: str) -> Noted:
    """What is noted of a card.

    :raises Failure: it can't be read, or isn't whole: where the card is isn't known then.
    """
    path = f"{FOLDER}/{name}.state"
    try:
        text = system.files.at(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Noted()
    except OSError as error:
        raise _unknown(path, f"it can't be read: {error.strerror}") from error
    pairs = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    if pairs.get("state") not in get_args(State):
        raise _unknown(path, "it has no state that this program knows")
    return Noted(**{key: value for key, value in pairs.items() if key in _KEYS})  # type: ignore[arg-type]


def _unknown(path: str, found: str) -> Failure:
    return Failure(
        f"to know where the card is, by {path}",
        found,
        "a card may be on its way, or with a VM: nothing is decided without that",
        _NEXT,
    )


def away(system: System, vmids: Collection[str] = ()) -> str:
    """Which cards aren't with the host, in words; empty: all are.

    :param vmids: what is so on account of these VMs is left out.
    :raises Failure: as of `noted`.
    """
    found = []
    for file in system.files.names(FOLDER):
        name, dot, kind = file.rpartition(".")
        if not dot or kind != "state" or name.startswith("."):
            continue
        one = noted(system, name)
        if one.vm and one.vm in vmids and one.state not in ("STUCK", "DEAD"):
            continue
        # What was noted before the last start of the host tells nothing of now.
        if one.state in ("HELD", "HOST") or one.boot != boot_of(system):
            continue
        where = {"VM": f"is with VM {one.vm}"} | dict.fromkeys(("STUCK", "DEAD"), f"is {one.state} after VM {one.vm}")
        words = where.get(one.state, f"is on its way to or from VM {one.vm} ({one.state})")
        found.append(f"gpus.{name} {words} since {one.at}")
    return "; ".join(found)


def need_rest(system: System) -> None:
    """:raises Failure: a card of this host's is away. A container has none to hand over."""
    found = "" if system.is_container else away(system)
    if found:
        raise Failure(
            "this host's shared cards with the host",
            found,
            "NVIDIA's driver and containers can't be changed, verified or given back while one of their cards is away; "
            "nothing was changed",
            "shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor "
            "explains it)",
        )
