"""A host's reboot: what the settings say of it, and its reasons in few words, from the reasons for each function and
word (remote_scripts/reading/reboot_required.py). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from homelab.facts import names
from homelab.settings import Host
from homelab.shapes import CardPlan
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.reboot import Wanted

_MISSING = re.compile(r"(?P<words>.+) is not on the running kernel's command line")
_UNWANTED = re.compile(r"(?P<word>\S+) is no longer wanted")
_ON_ANOTHER_DRIVER = re.compile(r"(?P<address>\S+) is on .+, not on (?P<driver>vfio-pci|NVIDIA's driver)")
# A function in the word that names each with its id.
_FUNCTION = re.compile(r"(?:homelab\.vfio=|,)([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])=")
# Words that follow from the cards, which are named instead.
_OF_CARDS = ("homelab.vfio=", "modprobe.blacklist=")


def wanted(host: Host, words: str, functions: Iterable[str], driver: str = "", flavour: str = "") -> Wanted:
    """What the layer reboot is asked of a host.

    :param words: of the kernel's command line, which its next boot is to have; the others as of `Boot`.
    """
    return Wanted(
        policy=host.reboot,
        boot=Boot(words=tuple(words.split()), functions=tuple(sorted(functions)), driver=driver, flavour=flavour),
        rollback_after=host.timeouts.rollback,
        awaited=host.timeouts.boot,
        keep_quorum=not host.allow_quorum_loss,
    )


def in_short(reasons: Sequence[str], cards: Mapping[str, CardPlan]) -> str:
    """`the kernel command line gets amd_iommu=on iommu=pt, and RTX 5090 goes to vfio-pci`.

    :param reasons: as the layer reboot answers them; an unknown one is kept as it is.
    :param cards: of the plan, as in HostProbe's outputs.
    """
    phrases = list(dict.fromkeys(_phrases(reasons, cards)))
    return _joined(phrases or reasons, ", and ")


def drivers_after(reasons: Sequence[str]) -> dict[str, str]:
    """Functions that the reboot brings to another driver: address -> that driver.

    :param reasons: as the layer reboot answers them.
    """
    return {match["address"]: match["driver"] for match in map(_ON_ANOTHER_DRIVER.fullmatch, reasons) if match}


def stopping(guests: str, *, again: bool = True) -> str:
    """The effect of a reboot on guests, as a part of a sentence.

    :param guests: that it stops, as the layer reboot names them.
    :param again: whether the guests are started again, which this program's reboots do even without `onboot`.
    """
    if not guests or not again:
        return f"it stops {guests or 'no running guest'}"
    return f"it stops {guests}, and starts {'them' if '), ' in guests else 'it'} again"


def _phrases(reasons: Sequence[str], cards: Mapping[str, CardPlan]) -> Iterator[str]:
    models = names.models_of_outputs(cards)
    card_names = {function["address"]: models[name] for name, card in cards.items() for function in card["functions"]}
    added: list[str] = []
    removed: list[str] = []
    bound: list[str] = []
    moved: dict[str, list[str]] = {}
    others = []
    binding_removed = False
    for reason in reasons:
        if match := _MISSING.fullmatch(reason):
            added += [word for word in match["words"].split() if not word.startswith(_OF_CARDS)]
            bound += [card_names.get(address, address) for address in _FUNCTION.findall(match["words"])]
        elif match := _UNWANTED.fullmatch(reason):
            binding_removed = binding_removed or match["word"].startswith("homelab.vfio=")
            removed += [] if match["word"].startswith(_OF_CARDS) else [match["word"]]
        elif match := _ON_ANOTHER_DRIVER.fullmatch(reason):
            moved.setdefault(match["driver"], []).append(card_names.get(match["address"], match["address"]))
        else:
            others.append(reason)
    if added:
        yield f"the kernel command line gets {' '.join(added)}"
    if removed:
        yield f"the kernel command line loses {' '.join(removed)}"
    for driver, moved_cards in moved.items():
        distinct_cards = list(dict.fromkeys(moved_cards))
        yield f"{_joined(distinct_cards, ' and ')} {'goes' if len(distinct_cards) == 1 else 'go'} to {driver}"
    # What is on vfio-pci by the start of its VM doesn't go there.
    if stays := [card for card in dict.fromkeys(bound) if card not in moved.get("vfio-pci", ())]:
        yield f"{_joined(stays, ' and ')} {'is' if len(stays) == 1 else 'are'} bound to vfio-pci from the boot on"
    if binding_removed and not bound and not moved.get("vfio-pci"):
        yield "no card is for a VM any more"
    yield from others


def _joined(parts: Sequence[str], last: str) -> str:
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
