"""What is judged of a host by its settings. Pure: preview, refresh, `up` and doctor ask the same functions."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from homelab import tables
from homelab.cards import group_gates, resolving
from homelab.cards import remarks as card_remarks
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from homelab.facts.kernel_log import Trouble
from homelab.findings import Judged, Stage
from homelab.host import gates, handover, plan, stack_folder
from homelab.host.plan import Wanted
from homelab.settings import Host, Vm
from homelab.shapes import BOOT_LAYERS
from remote_scripts.both.symptoms import Context


@dataclass(frozen=True, kw_only=True)
class JudgedHost(Judged):
    """What a host is to be, and what isn't as it must be."""

    why: str = "it was changed since the last `pulumi up`, or that has never run, or was cut short"
    stage: Stage = Stage.HOST
    want: Wanted
    """The plan."""
    drift: dict[str, list[str]]
    """Layer -> its differences from the plan: what the next `up` mends, a refresh's drift."""


def judge_host(
    facts: HostFacts,
    host: Host,
    vms: Collection[Vm] = (),
    had: Wanted | None = None,
    stack: str = "",
    agent: str = "",
    *,
    is_whole: bool = True,
) -> JudgedHost:
    """What is planned for a host, and what is judged of it.

    :param vms: of this host.
    :param had: the plan of an earlier run, of which the settings may have lost cards; by default it is theirs.
    :param stack: PROJECT/STACK; empty: it isn't known.
    :param agent: the version of the stack's agent there; empty: any.
    :param is_whole: as for `gates.check`.
    """
    slots, _ = resolving.resolve(facts, host.gpus)
    want = had or plan.wanted(facts, host, vms)
    want = replace(want, gpus={name: card for name, card in want.gpus.items() if name in host.gpus})
    # Of a card that isn't found that alone is said, and not where each function of it was.
    lost_cards = [name for name in host.gpus if name not in slots]
    of_lost = {one["address"] for name in lost_cards if name in want.gpus for one in want.gpus[name]["functions"]}
    of_found = {address: ids for address, ids in want.functions.items() if address not in of_lost}
    drift = plan.drift(facts, replace(want, functions=of_found))
    drift["vfio"] += [f"gpus.{name} isn't found as the settings describe it" for name in lost_cards]
    owner = stack_folder.owner(stack, host.name)
    if (had or stack) and facts.boot_lacks is None:  # whoever decides on a reboot notes it
        drift["iommu"].append("the host has no note of what its boot should have")
    kept = facts.agents.get(owner, "") if stack else "not asked"
    is_there = kept == agent if agent else bool(kept)
    drift["agent"] = [] if is_there else ["this program's agent is missing on the host, or is another one"]
    verification = [] if any(drift[layer] for layer in BOOT_LAYERS) else plan.verify(facts, host, want)
    next_boot = [HomelabError(**facts.next_boot)] if facts.next_boot else []
    lost = (_left_off(one.said) for one in facts.owed if one.is_lost)
    of_log = troubles(facts, slots, for_vms=host.gives_cards)
    warned = kernel_log.of_text(facts.boot_warnings, Context(facts.cluster.node)) if facts.boot_warnings else []
    return JudgedHost(
        title=f"the host {facts.cluster.node} configured as the settings have it",
        steps=list(dict.fromkeys(line for lines in drift.values() for line in lines)),
        against=gates.check(facts, host, vms, is_whole=is_whole)[1],
        wrong=[
            *verification,
            *next_boot,
            *lost,
            *_misspelt(facts),
            *_sunk(facts, host),
            *(one.error.retold(found=kernel_log.excerpt(facts.boot_warnings)) for one in warned),
            *(one.error for one in of_log if not (one.harmless or one.lasts)),  # what lasts is a gate
            *(_other_stacks(facts, owner) if stack else ()),
        ],
        remarks=[*card_remarks.remarks(facts, host, slots), *(one.said for one in facts.owed if not one.is_lost)],
        want=want,
        drift=drift,
    )


def troubles(
    facts: HostFacts, slots: Mapping[str, str], prefix: str = "gpus.", *, for_vms: bool = True
) -> list[Trouble]:
    """What the kernel says of cards, and of what keeps the host from giving any to a VM.

    :param slots: of the cards, by their names.
    :param prefix: of the names, for messages.
    :param for_vms: whether VMs have them, or are to have them.
    """
    cards = {f"{prefix}{name}": [one.address for one in facts.functions(slot)] for name, slot in slots.items()}
    return kernel_log.troubles(facts, facts.cluster.node, cards, with_host=for_vms)


def verified(facts: HostFacts, host: Host, name: str, want: Wanted) -> tuple[list[HomelabError], list[str]]:
    """The verification after a boot: what isn't as planned, and what need not stop the run, a sentence each.

    :param name: the host's, for messages.
    """
    slots = {gpu: card["slot"] for gpu, card in want.gpus.items()}
    found = troubles(facts, slots, f"{name}, gpus.", for_vms=host.gives_cards)
    errors = [*plan.verify(facts, host, want), *(one.error for one in found if one.stops)]
    return errors, [one.remark for one in found if not one.stops]


def _other_stacks(facts: HostFacts, owner: str) -> Iterator[HomelabError]:
    """The error for a host that several stacks set up."""
    others = sorted(other for other, version in facts.agents.items() if other != owner and version)
    if not others:
        return
    yield HomelabError(
        wanted=f"the host {facts.cluster.node} set up by one stack",
        found=f"another one has set it up as well: {', '.join(others)} (in /var/lib/homelab/agents)",
        why="a host's boot configuration, its cards' mappings and its guests are one stack's: each `pulumi up` writes "
        "them as its own settings have it, and `pulumi destroy` takes them away",
        next="keep the host in one stack, and run `pulumi destroy` for the other one; if that one is gone, remove its "
        "folder there",
    )


_TEXTS = Path(__file__).with_suffix(".yaml")
# The similarity, for difflib, from which on a word is a misspelt one; `amd_iommu_x`, another word, is below it.
_ALIKE = 0.8


def _misspelt(facts: HostFacts) -> Iterator[HomelabError]:
    """Errors of words on the kernel command line that are nearly ones by which cards are given away. Of a name the
    kernel and modprobe take `-` and `_` for the same."""
    data = tables.read(_TEXTS)
    known = {word.replace("-", "_"): word for word in data["words"]}
    for word in facts.cmdline.others.split():
        name = word.strip('"').partition("=")[0].replace("-", "_")
        if "=" in word and name not in known and (meant := difflib.get_close_matches(name, known, 1, _ALIKE)):
            values = {"meant": known[meant[0]], "entries": group_gates.new_entries(facts)}
            texts = {part: text.format(**values) for part, text in data["misspelt"].items()}
            yield HomelabError(found=word, **texts)


def _left_off(said: str) -> HomelabError:
    return HomelabError(
        wanted="each guest that homelab has switched off running again",
        found=said,
        why="a run of homelab was killed in that moment; against its owner none is started",
        next="start it if it is to run; else leave it off: the next change of it by `pulumi up` forgets that",
    )


def _sunk(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """Errors of shared cards whose handover has stopped."""
    for name in host.hands_over:
        if handover.has_sunk(facts, name):
            texts = tables.read(_TEXTS)["sinks"][handover.record_of(facts, name).state]
            wanted = f"gpus.{name} handed over whole, or not at all"
            yield HomelabError(wanted=wanted, found=handover.state_text(facts, name), **texts)
