"""What the kernel of a host says of its cards since it booted, recognised by its real texts (kernel_log.yaml); and
cards that are gone.

A message counts for a card only if it is about it: the PCI addresses in it are the card's own functions, or, where it
is about the link, bridges above them. The scripts pass the lines on (read_host.sh); what a message is of them,
homelab/messages.py knows, and what it means is decided here. What NVIDIA's driver says is known to
homelab/nvidia/symptoms.py. Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.host.facts import HostFacts
from homelab.messages import Message, compiled, messages, shown

# What NVIDIA's driver says, and the kernel of modules that it didn't take, without naming them: for
# homelab/nvidia/symptoms.py. Each line of a message of several has it, so that the host's grep leaves no half of one.
OF_MODULES = "NVRM|nvidia|nouveau|unsigned module"
# How many lines of one kind are quoted, the first and the last of them.
_QUOTED = 4
_LONGEST = 240
_ADDRESS = re.compile(
    r"(?:(?<=PCI:)|(?<![\w:.]))(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f])(?:\.([0-7])(?!\w)|(?![\w:.]))",
    re.IGNORECASE,
)
# The row that VFIO can be told to go on without.
UNSAFE = "no-remapping"
# With which NVIDIA's module begins: what was said before is of one that is loaded no more.
_LOADED = "nvidia-nvlink: Nvlink Core is being initialized"


def _compiles(value: str) -> str:
    compiled(value)
    return value


Pattern = Annotated[str, AfterValidator(_compiles)]


class Sign(BaseModel):
    """A row of the data; see there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: Pattern
    of: Literal["card", "port", "host"]
    cured: Pattern | None = None
    same: Pattern | None = None
    wanted: str
    why: str
    next: str
    stops: bool = True
    harmless: bool = False
    hides: tuple[str, ...] = ()
    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report", "unconfirmed"]

    def part(self, text: str) -> tuple[list[str], str]:
        """What a message is about: addresses, and which part of the device."""
        match = compiled(self.same).search(text) if self.same else None
        return named(text), match[0] if match else ""


class StartSign(BaseModel):
    """A row of what Proxmox VE and QEMU say when a VM doesn't start with a card, or (`lost`) of a card that is lost
    though it starts; see the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: Pattern
    why: str
    next: str
    lost: bool = False
    hides: tuple[str, ...] = ()
    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report", "unconfirmed"]


@dataclass(frozen=True)
class Trouble:
    """What a sign tells of a card or the host. `stops`: is it a reason for `up` to fail? `harmless`: it looks bad, and
    is no failure."""

    error: HomelabError
    stops: bool
    harmless: bool = False

    @property
    def remark(self) -> str:
        """In one sentence."""
        return f"{self.error.found}: {self.error.why}; {self.error.next}"


@functools.cache
def signs() -> tuple[Sign, ...]:
    """All rows, in the order in which they are told."""
    return tuple(Sign.model_validate(row) for row in _data()["signs"])


@functools.cache
def start_signs() -> tuple[StartSign, ...]:
    """What Proxmox VE and QEMU say of a start that failed."""
    return tuple(StartSign.model_validate(row) for row in _data()["starts"])


def _data() -> Any:
    return tables.read(Path(__file__).with_suffix(".yaml"))


@functools.cache
def filter_of_lines() -> str:
    """The extended regular expression by which the host's grep finds the lines that matter here and to
    homelab/nvidia/symptoms.py."""
    patterns = [part for row in signs() for part in (row.pattern, row.cured) if part]
    return "|".join([OF_MODULES, *patterns])


def of_card(facts: HostFacts, name: str, functions: Iterable[str]) -> list[Trouble]:
    """What is wrong with a card, and what looks like it.

    :param name: for messages, such as `gpus.rtx5090`.
    :param functions: addresses of the functions that are the card.
    """
    own = set(functions)
    gone = sorted(own & set(facts.lost))
    found = [Trouble(lost(name, gone), stops=True)] if gone else []
    above = {bridge for address in own if address in facts.by_address for bridge in facts.by_address[address].ancestors}
    every = messages(facts.kernel_log)
    rows = [row for row in signs() if row.of != "host"]
    return found + _told(
        name, rows, lambda row: [one for one in every if _is_about(one.text, own, above, row.of == "port")]
    )


def of_host(facts: HostFacts, name: str) -> list[Trouble]:
    """What keeps the host from giving away any card, and what looks like it.

    :param name: as it is called in messages.
    """
    every = messages(facts.kernel_log)
    rows = [row for row in signs() if row.of == "host" and not (row.name == UNSAFE and facts.unsafe_interrupts)]
    return _told(name, rows, lambda _: every)


def of_start(text: str) -> list[StartSign]:
    """What a VM's start met with, by what Proxmox VE and QEMU say."""
    log = "\n".join(message.text for message in messages(text))
    found = [row for row in start_signs() if compiled(row.pattern).search(log)]
    hidden = {name for row in found for name in row.hides}
    return [row for row in found if row.name not in hidden]


def of_iommu(lines: Iterable[str]) -> list[str]:
    """Of the kernel's lines about the IOMMU, those that tell of something wrong; none on a healthy host."""
    every = messages("\n".join(lines))
    rows = [row for row in signs() if row.of == "host" and not row.harmless]
    told = [message.shown for row in rows for message in _uncured(row, every)]
    return [message.shown for message in every if message.shown in told]


def about_card(facts: HostFacts, functions: Iterable[str]) -> str:
    """What NVIDIA's driver has said since it was last loaded of a card, or without naming one: for
    homelab/nvidia/symptoms.py."""
    own = set(functions)
    # One that vfio-pci has is none of the driver's: what it says without a name is of another card.
    drivers = {facts.by_address[address].driver for address in own if address in facts.by_address}
    nameless = drivers != {"vfio-pci"}
    return shown(
        [
            message
            for message in messages("\n".join(since_loaded(facts.kernel_log)))
            if compiled(OF_MODULES).search(message.text)
            and (_is_about(message.text, own, set(), with_ports=False) or (nameless and not named(message.text)))
        ]
    )


def since_loaded(log: str) -> list[str]:
    """The lines since NVIDIA's module was last loaded; all where none says that it was."""
    lines = log.splitlines()
    return lines[max((number for number, line in enumerate(lines) if _LOADED in line), default=0) :]


def excerpt(text: str, lines: int = _QUOTED) -> str:
    """Head and tail of a log, in one line."""
    every = [line.strip() for line in text.splitlines() if line.strip()]
    if len(every) > lines:
        head = (lines + 1) // 2
        left = len(every) - lines
        every = [*every[:head], f"… {left} {'line' if left == 1 else 'lines'} …", *every[len(every) - (lines - head) :]]
    return " | ".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in every)


def named(text: str) -> list[str]:
    """The PCI addresses in a message: `0000:01:00.0`, or `0000:01:00` where it names no function."""
    found = []
    for match in _ADDRESS.finditer(text):
        domain, device, function = match.groups()
        if domain is None and function is None:
            continue  # 01:00 alone may be anything, such as a time
        # As sysfs writes it; nvidia-smi, and what quotes it, has eight digits.
        found.append(f"{int(domain or '0', 16):04x}:{device.lower()}{'.' + function if function else ''}")
    return found


def _is_about(text: str, own: set[str], above: set[str], with_ports: bool) -> bool:
    slots = {address.rpartition(".")[0] for address in own}
    addresses = named(text)
    if not addresses:
        return False
    ours = [address in own or address in slots for address in addresses]
    if not with_ports:
        return all(ours)
    # A port tells of another device behind it by that one's address.
    return all(mine or address in above for mine, address in zip(ours, addresses, strict=True))


def _told(name: str, rows: list[Sign], messages_of: Callable[[Sign], list[Message]]) -> list[Trouble]:
    found = {row.name: (row, said) for row in rows if (said := _uncured(row, messages_of(row)))}
    hidden = {other for row, _ in found.values() for other in row.hides}
    return [
        Trouble(
            HomelabError(
                wanted=f"{name}: {row.wanted}",
                found=f"the kernel says: {excerpt(shown(said))}",
                why=row.why,
                next=row.next,
            ),
            row.stops and not row.harmless,
            row.harmless,
        )
        for row, said in found.values()
        if row.name not in hidden
    ]


def _uncured(row: Sign, every: list[Message]) -> list[Message]:
    """The messages of a sign, but for those that a later one takes back."""
    said: list[Message] = []
    for message in every:
        if compiled(row.pattern).search(message.text):
            said.append(message)
        elif row.cured and compiled(row.cured).search(message.text):
            said = [one for one in said if row.of == "card" and row.part(one.text) != row.part(message.text)]
    return said


def lost(name: str, addresses: list[str]) -> HomelabError:
    """The error for functions whose configuration space can't be read, or reads as ones, which is the same: so the bus
    answers for a device that doesn't.

    :param name: as of `of_card`.
    """
    return HomelabError(
        wanted=f"{name}: a card that answers on the PCI bus",
        found=f"the configuration space of {', '.join(addresses)} can't be read: every bit is one",
        why="the card is lost: no driver and no guest can use it, and what binds or resets it now may hang",
        next="switch the host off, wait half a minute, switch it on (a warm reboot often isn't enough); look at the "
        "card's power cables, slot "
        "and riser if it happens again, and for newer firmware of card and board",
    )
