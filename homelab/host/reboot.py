"""Why a host is rebooted, in a few plain words: what the script says of each function and word
(remote_scripts/lib/lacking.sh), for a person. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from homelab.host import names
from homelab.shapes import CardPlan

_MISSING = re.compile(r"(?P<words>.+) is not on the running kernel's command line")
_UNWANTED = re.compile(r"(?P<word>\S+) is no longer wanted")
_ON_ANOTHER_DRIVER = re.compile(r"(?P<address>\S+) is on .+, not on (?P<driver>vfio-pci|NVIDIA's driver)")
# A function in the word that names each with its id.
_FUNCTION = re.compile(r"(?:homelab\.vfio=|,)([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])=")
# Words that follow from the cards: what a person wants to know is which cards.
_OF_CARDS = ("homelab.vfio=", "modprobe.blacklist=")


# Where nothing else changes.
_BLACKLIST_ALONE = "the list of drivers that are kept off the cards changes (modprobe.blacklist)"


def in_short(reasons: Sequence[str], cards: Mapping[str, CardPlan]) -> str:
    """`the kernel command line gets amd_iommu=on iommu=pt, and RTX 5090 goes to vfio-pci`.

    :param reasons: as reboot_host.sh answers them; one that isn't understood is said as it is.
    :param cards: of the plan, as HostProbe puts them out.
    """
    said = list(dict.fromkeys(_each(reasons, cards)))
    return _joined(said or [_BLACKLIST_ALONE] * bool(reasons), ", and ")


def stopping(guests: str, moves: str = "", *, again: bool = True) -> str:
    """What a reboot does to guests.

    :param guests: as reboot_host.sh names those that it stops.
    :param moves: those that are on other nodes meanwhile.
    :param again: it is this program's, which starts them again, with `onboot` or without.
    """
    away = f"other nodes have {moves} meanwhile; " if moves else ""
    if not guests or not again:
        return f"{away}it stops {guests or 'no running guest'}"
    return f"{away}it stops {guests}, and starts {'them' if '), ' in guests else 'it'} again"


def _each(reasons: Sequence[str], cards: Mapping[str, CardPlan]) -> Iterator[str]:
    called = {one["address"]: names.model_of_output(card) for card in cards.values() for one in card["functions"]}
    added: list[str] = []
    removed: list[str] = []
    moved: dict[str, list[str]] = {}
    others = []
    gone = False
    for reason in reasons:
        if found := _MISSING.fullmatch(reason):
            added += [word for word in found["words"].split() if not word.startswith(_OF_CARDS)]
            moved.setdefault("vfio-pci", []).extend(called.get(one, one) for one in _FUNCTION.findall(found["words"]))
        elif found := _UNWANTED.fullmatch(reason):
            gone = gone or found["word"].startswith("homelab.vfio=")
            removed += [] if found["word"].startswith(_OF_CARDS) else [found["word"]]
        elif found := _ON_ANOTHER_DRIVER.fullmatch(reason):
            moved.setdefault(found["driver"], []).append(called.get(found["address"], found["address"]))
        else:
            others.append(reason)
    if added:
        yield f"the kernel command line gets {' '.join(added)}"
    if removed:
        yield f"the kernel command line loses {' '.join(removed)}"
    for driver, found_cards in moved.items():
        if found_cards:
            several = list(dict.fromkeys(found_cards))
            yield f"{_joined(several, ' and ')} {'goes' if len(several) == 1 else 'go'} to {driver}"
    if gone and not moved.get("vfio-pci"):
        yield "no card is for a VM any more"
    elif gone:
        yield "the cards that VMs get are others"
    yield from others


def _joined(parts: Sequence[str], last: str) -> str:
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
