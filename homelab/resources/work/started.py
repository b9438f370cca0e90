"""What a host says of a VM's cards before a start, after one, and after one that failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from homelab.cards import start as card_start
from homelab.errors import HomelabError, raise_all
from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from homelab.remote import ssh
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.both.symptoms import Context
from remote_scripts.pve.properties import functions_of

# For how long a card that reads as lost is asked again, during a reset, and how often.
CARD_SECONDS, CARD_POLL_SECONDS = 10.0, 1.0


def _while_a_reset_lasts() -> Iterator[None]:
    deadline = time.monotonic() + CARD_SECONDS
    yield
    while time.monotonic() < deadline:
        time.sleep(CARD_POLL_SECONDS)
        yield


def _read(host: Host) -> HostFacts:
    return ssh.read(host, guests=True, kernel_log=True)


def _functions(facts: HostFacts, places: Sequence[str]) -> list[str]:
    parts = [part for place in places for part in functions_of(place)]
    return [function.address for part in parts for function in facts.functions(part)]


def awake(host: Host, vmid: int, places: Sequence[str]) -> HostFacts:
    """The host before anything is changed, with the VM's cards awake.

    :param places: slots and functions of the cards that a start would need.
    :raises HomelabError: a card is lost, or the host can't be read.
    """
    for _ in _while_a_reset_lasts():
        facts = _read(host)
        silent = replace(facts, kernel_log="")  # what it says may be of long ago
        troubles = kernel_log.of_card(silent, f"the card of VM {vmid}", _functions(facts, places))
        if not troubles:
            break
    raise_all([trouble.error for trouble in troubles])
    return facts


def require_cards(host: Host, label: str, vmid: int, before: HostFacts, log: Sequence[str]) -> None:
    """Reads the VM's cards after a start, and tells the remarks about them.

    :param label: the VM's name in the settings.
    :param before: the host before the start.
    :param log: of the start's task.
    :raises HomelabError: a card is lost, or it can't be told which the VM has. Nothing is switched off: what the guest
        does is its owner's.
    """
    for _ in _while_a_reset_lasts():
        facts = _read(host)
        functions = card_start.functions_of(facts, vmid)
        config = facts.guests.config(vmid)
        if not functions and config and any(key.startswith("hostpci") for key in config.values):
            raise _unknown_cards(vmid)
        errors, remarks = card_start.outcome_of(before, facts, functions, list(log), f"VM {vmid} ({label})")
        if not errors:
            break
    for remark in remarks:
        tell(f"{label}: note: {remark}")
    runs = f"VM {vmid} {'runs' if vmid in facts.guests.running else 'is off by now'}"
    raise_all([error.retold(found=f"{error.found}; {runs}") for error in errors])


def explained(error: HomelabError, host: Host, vmid: int, places: Sequence[str]) -> HomelabError:
    """A start that failed, with what the host's kernel, or else QEMU, says of the VM's cards."""
    try:
        facts = _read(host)
        functions = _functions(facts, places)
        found = kernel_log.of_card(facts, f"the card of VM {vmid}", functions)
        found += kernel_log.of_host(facts, host.address)
    except HomelabError:
        found = []  # the start's own message is what there is
    causes = [trouble.error for trouble in found if not trouble.harmless]
    of_log = kernel_log.of_text(error.found, Context(f"VM {vmid}", "vm"), vmid)
    signs = causes or [trouble.error for trouble in of_log if not trouble.harmless]
    return error.retold(
        found="\n        ".join([error.found, *(cause.found for cause in causes)]),
        why="; ".join([error.why, *(sign.why for sign in signs)]),
        next="; ".join([*(sign.next for sign in signs), error.next]),
    )


def _unknown_cards(vmid: int) -> HomelabError:
    return HomelabError(
        wanted=f"the functions of the cards that VM {vmid} has been started with",
        found="the host names none, neither among qemu-server's reservations (/run/qemu-server/pci-id-reservations) "
        "nor by the VM's configuration",
        why="so it isn't known whether its cards came through the start",
        next=f"look at both on the host (`qm config {vmid}`), and whether the guest has its card; then run "
        "`pulumi up` again",
    )
