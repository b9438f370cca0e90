"""What is said of cards, recognised by its real texts: the kernel's messages since the boot (kernel_log.yaml), and any
program's output by the rows of all tables (`of_text`); and lost cards.

A message counts for a card only if it is about it: the PCI addresses in it are the card's own functions, or, where it
is about the link, bridges above them. One without an address counts for the host, once. The lines are in a reading
(facts.py), and homelab/messages.py makes messages of them. homelab/symptoms.py recognises the messages of NVIDIA's
driver. Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

from homelab import tables
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.messages import Log, Message, messages, shown
from homelab.symptoms import recognise, symptoms
from remote_scripts.both.symptoms import Context, compiled

# In messages of NVIDIA's driver, and of the kernel about modules that it refused, without naming them: for
# homelab/symptoms.py. Each line of a message of several lines has it, so that the host's grep finds all of them.
OF_MODULES = "NVRM|nvidia|nouveau|unsigned module|module with unavailable key"
_DATA = Path(__file__).with_suffix(".yaml")
# How many lines of one kind are quoted, the first and the last of them.
_QUOTED = 4
_LONGEST = 240
_ADDRESS = re.compile(
    r"(?:(?<=PCI:)|(?<![\w:.]))(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f])(?:\.([0-7])(?!\w)|(?![\w:.]))",
    re.IGNORECASE,
)
# Intel's IOMMU names a function by its source id: eight bits of the bus, five of the device, three of the function.
_SOURCE_ID = re.compile(r"Time-out Error: SID ([0-9a-f]{1,4})(?![0-9a-f])", re.IGNORECASE)
# The first line of NVIDIA's module: messages before it are of a module that was unloaded.
_LOADED = "nvidia-nvlink: Nvlink Core is being initialized"


class _MessageRow(tables.SourcedRow):
    name: str
    pattern: str
    wanted: str
    why: str
    next: str
    hides: tuple[str, ...] = ()
    stops: bool = True
    lasts: bool = False
    harmless: bool = False
    seen: date

    def trouble(self, name: str, found: str, word: str = "", value: str = "") -> Trouble:
        """The trouble that the row tells of.

        :param name: whose, for messages.
        :param word: of `next`, in place of which `value` is said.
        """
        step = self.next.replace(word, value) if value else self.next
        error = HomelabError(wanted=f"{name}: {self.wanted}", found=found, why=self.why, next=step)
        error.symptom = self.name
        return Trouble(error, self.stops and not self.harmless, self.lasts, self.harmless)


class Sign(_MessageRow):
    """A row of `signs` in kernel_log.yaml, which explains the keys: a message of the kernel and its meaning."""

    of: Literal["card", "port", "host", "system"]
    after: str | None = None
    cured: str | None = None
    same: str | None = None

    def part(self, text: str) -> tuple[list[str], str]:
        """The addresses that a message names, and the part of the device (`same`)."""
        match = compiled(self.same).search(text) if self.same else None
        return addresses_in(text), match[0] if match else ""


class StartSign(_MessageRow):
    """A row of `starts` in kernel_log.yaml: a message of Proxmox VE, QEMU or lxc of a guest with a card."""

    wanted: str = "a guest that starts with its card"
    stops: bool = False


@dataclass(frozen=True)
class Trouble:
    """The trouble of a card or host that a sign or a symptom shows. `stops`: whether `up` fails for it after the host's
    restart; `lasts`: neither a restart nor a driver mends it, so `up` doesn't begin; `harmless`: it looks bad, and is
    no failure."""

    error: HomelabError
    stops: bool = False
    lasts: bool = False
    harmless: bool = False

    @property
    def remark(self) -> str:
        """The trouble in one sentence."""
        return f"{self.error.found}: {self.error.why}; {self.error.next}"


@functools.cache
def signs() -> tuple[Sign, ...]:
    """All rows of `signs`, in the order of messages to the user."""
    return tuple(Sign.model_validate(row) for row in tables.read(_DATA)["signs"])


@functools.cache
def start_signs() -> tuple[StartSign, ...]:
    """All rows of `starts`."""
    return tuple(StartSign.model_validate(row) for row in tables.read(_DATA)["starts"])


@functools.cache
def filter_of_lines() -> str:
    """The regular expression by which a reading finds the lines."""
    patterns = [part for row in signs() for part in (row.pattern, row.after, row.cured) if part]
    return "|".join([OF_MODULES, *patterns])


@functools.cache
def _hides() -> dict[str, frozenset[str]]:
    return {row.name: frozenset(row.hides) for rows in (signs(), start_signs(), symptoms()) for row in rows}


def stories(found: Sequence[Trouble]) -> list[Trouble]:
    """One trouble for each cause, with all that was found of it: what only repeats it (`hides`) as well."""
    told, hidden = dict[str, Trouble](), {name for one in found for name in _hides()[one.error.symptom]}
    for cause in found:
        names = {cause.error.symptom, *_hides()[cause.error.symptom]}
        own = [cause, *(one for one in found if one.error.symptom in names)]
        error = cause.error.retold(found="; ".join(dict.fromkeys(one.error.found for one in own)))
        stops, lasts = any(one.stops for one in own), any(one.lasts for one in own)
        told.setdefault(error.symptom, Trouble(error, stops, lasts, all(one.harmless for one in own)))
    return [trouble for name, trouble in told.items() if name not in hidden]


def troubles(facts: HostFacts, node: str, cards: Mapping[str, Collection[str]], *, with_host: bool) -> list[Trouble]:
    """The troubles of cards and of what they have in common, each once, harmless ones included; with what NVIDIA's
    driver says since it was last loaded.

    :param node: the host's name, for messages.
    :param cards: a card's name for messages -> addresses of the functions that are the card.
    :param with_host: whether what keeps the host from giving away any card counts.
    """
    said = [
        (message, addresses_in(message.text))
        for message in messages("\n".join(since_loaded(facts.kernel_log)))
        if compiled(OF_MODULES).search(message.text)
    ]
    nameless = shown([message for message, addresses in said if not addresses])
    found, drivers = list[Trouble](), list[str | None]()
    for name, functions in cards.items():
        of_it = shown([message for message, addresses in said if _names_card(addresses, set(functions))])
        device = next((facts.by_address[address] for address in functions if address in facts.by_address), None)
        narrow = "narrow-link" if facts.narrow_link(functions) else None
        context = Context(name, "host", bound=device.driver if device else None, known=narrow)
        # NVIDIA's driver has no other maker's card, and none that is on vfio-pci: its messages without an address are
        # about another.
        asked = device is None or (device.is_nvidia and context.bound != "vfio-pci")
        drivers += [context.bound] if asked else []
        of_driver = recognise(of_it, context, nameless if asked else "")
        found += stories([*of_card(facts, name, functions), *map(Trouble, of_driver)])
    found += of_host(facts, node, for_vms=with_host)
    libraries = getattr(facts.systems.get("host"), "libraries", "")
    own = "own-libraries" if libraries and libraries == facts.nvidia.version else None
    # What is said of a card, or only repeats that, isn't said of the host, too.
    names = {name for one in found for name in (one.error.symptom, *_hides()[one.error.symptom])}
    for driver in dict.fromkeys(drivers):
        errors = recognise(nameless, Context(node, "host", bound=driver, known=own))
        found += [Trouble(error) for error in errors if error.symptom not in names]
    return list({str(trouble.error): trouble for trouble in found}.values())


def of_card(facts: HostFacts, name: str, functions: Iterable[str]) -> list[Trouble]:
    """The troubles of a card, harmless ones included, without what NVIDIA's driver says of it.

    :param name: for messages, such as `gpus.rtx5090`.
    :param functions: addresses of the functions that are the card.
    """
    card_addresses = set(functions)
    lost_addresses = sorted(card_addresses & set(facts.lost))
    unread = f"the configuration space of {', '.join(lost_addresses)} can't be read: every bit is one"
    found = [lost(name, unread)] if lost_addresses else []
    if narrow := facts.narrow_link(sorted(card_addresses)):
        row = next(row for row in signs() if row.name == "narrow-link")
        found.append(row.trouble(name, f"its PCIe link has {narrow} lanes"))
    devices = [device for device in facts.devices if device.address in card_addresses]
    bridges = {bridge for device in devices or facts.devices for bridge in device.ancestors}
    if not devices:  # it has gone from the bus: of a port behind which nothing is any more
        bridges = {device.address for device in facts.devices if device.is_bridge} - bridges
    said = messages(facts.kernel_log)
    # If the card works now with NVIDIA's driver, older messages of that driver no longer count. Messages about the
    # card's memory and the bus still do: another line says when such a trouble has ended.
    works = not lost_addresses and not card_addresses.isdisjoint(facts.nvidia_minors)
    loaded = max((number for number, message in enumerate(said) if works and _LOADED in message.text), default=0)
    of_now = [*(message for message in said[:loaded] if not compiled(OF_MODULES).search(message.text)), *said[loaded:]]
    found += _troubles(
        name,
        [row for row in signs() if row.of in ("card", "port")],
        lambda row: [
            message
            for message in (said if row.cured else of_now)
            if _names_card(addresses_in(message.text), card_addresses, bridges if row.of == "port" else ())
        ],
    )
    return stories(found)


def of_host(facts: HostFacts, name: str, *, for_vms: bool = True) -> list[Trouble]:
    """The troubles of a host that are no single card's, harmless ones included.

    :param name: of the host, for messages.
    :param for_vms: whether what keeps it from giving any card to a VM counts.
    """
    log_messages = messages(facts.kernel_log)
    kinds = ("system", "host") if for_vms else ("system",)
    # VFIO may be allowed to go on without interrupt remapping.
    allowed = ("no-remapping", "interrupts-misdescribed") if facts.unsafe_interrupts else ()
    rows = [row for row in signs() if row.of in kinds and row.name not in allowed]
    return stories(_troubles(name, rows, lambda _: log_messages))


def of_text(text: str, context: Context, guest: int | None = None) -> list[Trouble]:
    """What any program's output tells, by the rows of all tables, whatever addresses it names: remarks last.

    :param guest: the id of the one that it is about, which the commands of `next` then name.
    """
    log, number = Log(text), f" {guest}" if guest else ""
    found = [
        row.trouble(context.name, f"the log says: {log.quote(match, _LONGEST)}", " ID", number)
        for row in start_signs()
        if (match := compiled(row.pattern).search(log.text))
    ]
    found += [*map(Trouble, recognise(text, context)), *_troubles(context.name, signs(), lambda _: log.messages)]
    return sorted(stories(found), key=lambda trouble: trouble.harmless)


def of_iommu(lines: Iterable[str]) -> list[str]:
    """The messages about trouble among the kernel's lines about the IOMMU; none on a healthy host."""
    log_messages = messages("\n".join(lines))
    rows = [row for row in signs() if row.of == "host" and not row.harmless]
    wrong = [message.shown for row in rows for message in _uncured(row, log_messages)]
    return [message.shown for message in log_messages if message.shown in wrong]


def since_loaded(log: str) -> list[str]:
    """The lines since NVIDIA's module was last loaded; all lines, if none says that it was."""
    lines = log.splitlines()
    return lines[max((number for number, line in enumerate(lines) if _LOADED in line), default=0) :]


def excerpt(text: str, lines: int = _QUOTED) -> str:
    """The first and the last lines of a log, joined to one line.

    :param lines: how many, at most.
    """
    log_lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(log_lines) > lines:
        left_out = f"… lines left out here: {len(log_lines) - lines} …"
        log_lines = [*log_lines[: (lines + 1) // 2], left_out, *log_lines[-(lines // 2) :]]
    return " | ".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in log_lines)


def addresses_in(text: str) -> list[str]:
    """The PCI addresses in a message: `0000:01:00.0`, or `0000:01:00` if it names no function."""
    ids = (int(match[1], 16) for match in _SOURCE_ID.finditer(text))
    addresses = [f"0000:{source >> 8:02x}:{source >> 3 & 31:02x}.{source & 7}" for source in ids]
    for match in _ADDRESS.finditer(text):
        domain, device, function = match.groups()
        if domain is None and function is None:
            continue  # 01:00 alone may be anything, such as a time
        # As sysfs writes it; nvidia-smi, and what quotes it, has eight digits.
        addresses.append(f"{int(domain or '0', 16):04x}:{device.lower()}{'.' + function if function else ''}")
    return addresses


def _names_card(addresses: list[str], card_addresses: set[str], bridges: Collection[str] = ()) -> bool:
    """Whether a message is about a card: it has addresses, all of them the card's.

    :param bridges: those above the card, for a message of a port; it also has the address of the device behind it.
    """
    slots = (address.rpartition(".")[0] for address in card_addresses)
    return bool(addresses) and {*card_addresses, *slots, *bridges}.issuperset(addresses)


def _troubles(name: str, rows: Sequence[Sign], messages_of: Callable[[Sign], list[Message]]) -> list[Trouble]:
    found = list[Trouble]()
    for row in rows:
        if row_messages := _uncured(row, messages_of(row)):
            address, said = [*addresses_in(row_messages[0].text), ""][0], excerpt(shown(row_messages))
            found.append(row.trouble(name, f"the kernel says: {said}", "ADDRESS", address))
    return found


def _uncured(row: Sign, log_messages: list[Message]) -> list[Message]:
    """The messages of a sign, without those that a later message cures."""
    matching: list[Message] = []
    is_on = row.after is None
    for message in log_messages:
        is_on = is_on or bool(row.after and compiled(row.after).search(message.text))
        if is_on and compiled(row.pattern).search(message.text):
            matching.append(message)
        elif row.cured and compiled(row.cured).search(message.text):
            matching = [
                earlier for earlier in matching if row.of == "card" and row.part(earlier.text) != row.part(message.text)
            ]
    return matching


def lost(name: str, found: str) -> Trouble:
    """The trouble of lost functions: their configuration space can't be read, or reads as ones, which the bus answers
    for a device that doesn't.

    :param name: of the card, for messages.
    """
    return replace(next(row for row in signs() if row.name == "lost").trouble(name, found), lasts=True)
