"""A host's reboot: what the settings say of it, what the layer reboot answers, and its reasons in few words, from the
reasons for each function and word (remote_scripts/reading/reboot_required.py). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from homelab.facts import names
from homelab.later import later
from homelab.settings import Host
from homelab.shapes import CardPlan
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.reboot import Answer, Planned, Reason, Wanted
from remote_scripts.tools.plain import of_plain

if TYPE_CHECKING:  # of no use to what declares resources
    from homelab.facts import host as facts
else:
    facts = later("homelab.facts.host")

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


def answered(answer: Mapping[str, Any]) -> Answer:
    """What the layer reboot has answered; of an earlier version's answer, reasons and guests are texts alone."""
    if isinstance(answer["guests"], str):
        reasons = [{"said": said} for said in answer["reasons"]]
        answer = {**answer, "reasons": reasons, "guests": [], "unlisted": answer["guests"]}
    return of_plain(Answer, answer, "the answer of the layer reboot")


def in_short(reasons: Sequence[Reason], cards: Mapping[str, CardPlan]) -> str:
    """`the kernel command line gets amd_iommu=on iommu=pt, and RTX 5090 goes to vfio-pci`.

    :param reasons: one that is of no word and of no function is kept as it is.
    :param cards: of the plan, as in HostProbe's outputs.
    """
    phrases = list(dict.fromkeys(_phrases(reasons, cards)))
    return _joined(phrases or [one.said for one in reasons], ", and ")


def drivers_after(reasons: Sequence[Reason]) -> dict[str, str]:
    """Functions that the reboot brings to another driver: address -> that driver."""
    return {one.function: one.driver for one in reasons if one.function}


def stopped(planned: Planned) -> str:
    """What the reboot stops: `VM 103 (Sandbox), container 901 (ai-lab)`."""
    return ", ".join(map(str, planned.guests)) or planned.unlisted or "no running guest"


def stopping(planned: Planned, *, again: bool = True) -> str:
    """The effect of a reboot on guests, as a part of a sentence.

    :param again: whether the guests are started again, which this program's reboots do even without `onboot`.
    """
    is_any = again and (planned.guests or planned.unlisted)
    starts = f", and starts {'it' if len(planned.guests) == 1 else 'them'} again" if is_any else ""
    return f"it stops {stopped(planned)}{starts}"


def _phrases(reasons: Sequence[Reason], cards: Mapping[str, CardPlan]) -> Iterator[str]:
    models = names.models_of_outputs(cards)
    card_names = {function["address"]: models[name] for name, card in cards.items() for function in card["functions"]}
    words = {verb: " ".join(getattr(one, verb) for one in reasons) for verb in ("gets", "loses")}
    for verb, text in words.items():
        if others := [word for word in text.split() if not word.startswith(_OF_CARDS)]:
            yield f"the kernel command line {verb} {' '.join(others)}"
    moved: dict[str, dict[str, None]] = {}
    for address, driver in drivers_after(reasons).items():
        moved.setdefault(driver, {})[card_names.get(address, address)] = None
    for driver, leaving in moved.items():
        yield f"{_joined([*leaving], ' and ')} {'goes' if len(leaving) == 1 else 'go'} to {driver}"
    bound, unbound = ([card_names.get(one, one) for one in facts.bound_by_word(text)] for text in words.values())
    # What is on vfio-pci by the start of its VM doesn't go there.
    if stays := dict.fromkeys(card for card in bound if card not in (*moved.get("vfio-pci", ()), *unbound)):
        yield f"{_joined([*stays], ' and ')} {'is' if len(stays) == 1 else 'are'} bound to vfio-pci from the boot on"
    if unbound and not bound and "vfio-pci" not in moved:
        yield "no card is for a VM any more"
    yield from (one.said for one in reasons if not (one.gets or one.loses or one.function))


def _joined(parts: Sequence[str], last: str) -> str:
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
