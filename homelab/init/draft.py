"""The settings that `homelab init` would write for answers, and what is judged by them: whether an answer to "who gets
it" can be taken."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from homelab.errors import HomelabError, Mistake
from homelab.facts.host import HostFacts
from homelab.host import gates
from homelab.host.named import Named, meant
from homelab.init import settings as init_settings
from homelab.init.ask import to_type
from homelab.init.cards import READY, Card, Use, guest, takers
from homelab.init.new import New
from homelab.judged.tree import Settings as OfHost
from homelab.judged.tree import judged
from homelab.settings import Settings, parse


@dataclass(frozen=True)
class Draft:
    """A settings file to which cards are added."""

    name: str
    """The host's in the settings."""
    login: Mapping[str, Any]
    """`address`, `ssh` and `node` of a host that isn't in the settings yet."""
    facts: HostFacts
    text: str
    """What the file has now."""
    sets: Sequence[str] = ()
    """`PATH=VALUE` each (`--set`)."""
    stack: str = ""
    """PROJECT/STACK."""
    offers: Callable[[], Mapping[str, New]] = dict
    """Says which guests can be made, by the answers that mean them."""
    known: Sequence[Named] = ()
    """The host's guests by their names in the settings."""

    @cached_property
    def new(self) -> Mapping[str, New]:
        """The offers. The node is asked for what they are made of where an answer, or a list of all, wants them.

        :raises ApiError: it refused, or didn't answer.
        """
        return self.offers()

    @property
    def alike(self) -> dict[str, str]:
        """New guests' answers, each with the one that is refused for their kind: `vms`, or `host` for containers."""
        return {answer: READY if one.kind == "vm" else "host" for answer, one in self.new.items()}

    def written(self, given: Mapping[Card, Use], inside: Mapping[int, Mapping[str, object]] = {}) -> str:
        """The file's text with these cards given; `inside` as of `init_settings.addition`."""
        before = init_settings.values_in(self.text)
        more = init_settings.addition(self.name, self.login, given, self.facts, before, inside)
        return init_settings.merged(self.text, more, self.sets, self.name)

    def made(self, new: New, card: Card, given: Mapping[Card, Use]) -> New:
        """A new guest with its id: the one that the settings have of it already, with the card; else one that nobody
        has, on the host, in the settings or by another answer."""
        section, key = ("vms", "vmid") if new.kind == "vm" else ("containers", "ctid")
        entries = init_settings.values_in(self.text).get(section, {}).values()
        mine = [one for one in entries if one.get("host") == self.name and card.key in (one.get("gpus") or ())]
        same = [one[key] for one in mine if one.get("create") == new.create]
        taken = {int(number) for number in re.findall(r"\b(?:vmid|ctid)\W+(\d+)", self.written(given))}
        free = (number for number in itertools.count(new.id) if number not in {*taken, *self.facts.cluster.guests})
        return replace(new, id=next(itertools.chain(same, free)))

    def of_host(self, settings: Settings) -> OfHost:
        """What such settings want of the host, while questions are left."""
        guests = settings.guests_on(self.name)
        return OfHost(self.name, settings.hosts[self.name], *guests, self.stack, is_whole=False)

    def with_card(self, card: Card, use: Use) -> OfHost:
        """What the settings want of the host once they give a card. What `--set` says of guests and other cards, which
        may come with a later answer, counts for the plan of all.

        :raises HomelabError: these settings aren't valid.
        """
        values = init_settings.values_in(replace(self, sets=()).written({card: use}))
        host = init_settings.values_in(self.written({card: use}))["hosts"][self.name]
        gpus = {**values["hosts"][self.name]["gpus"], card.key: host["gpus"][card.key]}
        values["hosts"][self.name] = {**host, "gpus": gpus}
        return self.of_host(parse(values))

    def refused(self, card: Card, use: Use) -> list[HomelabError]:
        """What stands against that, whatever becomes of other cards: the gates, or the settings' own rules."""
        try:
            wanted = self.with_card(card, use)
        except HomelabError as error:
            return [error.retold(next="give it to somebody else, or correct --set or the settings file")]
        return gates.check(self.facts, wanted.host, wanted.vms.values(), card=card.key, is_whole=False)[1]


_WHOM = {"vm": "a VM", "lxc": "containers", "shared": "a VM and containers in turn", "host": "the host itself"}


def answers(draft: Draft, refused: Collection[str] = ()) -> str:
    """All answers to "who gets it", a line each.

    :param refused: of them those that `up` would refuse, as was said: with `vms` each new VM, with `host` each new
        container.
    """
    able = takers(draft.facts)
    vms = [str(one.id) for one in able if one.kind == "vm"][:1]
    containers = [str(one.id) for one in able if one.kind == "lxc"][:2]
    of_guests = [f"{one.id}: {guest(one, draft.facts)}" for one in able]
    of_guests += [f"{','.join(containers)}: these containers, together"] if containers[1:] else []
    of_guests += [f"{','.join([*vms, *containers])}: in turn, the VM while it runs"] if vms and containers else []
    lines = {READY: "no VM gets it yet: it is made ready, and tried in a small VM, which is removed again"}
    lines |= {answer: one.about for answer, one in draft.new.items()}
    lines |= {"host": "programs on the host itself", "nobody": "the card stays as it is"}
    marks = {word: " (not yet: see above)" for word in lines if {word, draft.alike.get(word)} & {*refused}}
    said = [f"{word}: {text}{marks.get(word, '')}" for word, text in lines.items()]
    return "\n    ".join(["there are, by number, name or word:", *of_guests, *said])


def parse_use(
    text: str, card: Card, draft: Draft, given: Mapping[Card, Use] = {}, refused: Collection[str] = ()
) -> Use:
    """The use that an answer means: guests by number or name, `host`, `nobody`.

    :param given: what the other answers mean.
    :param refused: as of `answers`.
    :raises Mistake: there is no such guest, or `up` would refuse it, whatever the person accepts; or a `?` asks for
        help.
    """
    words, facts = text.lower().split(), draft.facts
    if words in (["nobody"], ["none"]):
        return Use()
    able, word = takers(facts), " ".join(words)
    new = draft.new.get(word) if word.startswith("new-") else None
    new = new and draft.made(new, card, given)
    there = [one for one in draft.known if one.id in {config.id for config in able}]
    guests = [new] if new else meant(text, there, able)
    if not guests and words not in ([READY], ["host"]):
        what = "" if words == ["?"] else f"{text or 'nothing'} can't have {card.key}; "
        raise Mistake(f"{what}{answers(draft, refused)}")
    vms = tuple(one.id for one in guests if one.kind == "vm")
    containers = tuple(one.id for one in guests if one.kind == "lxc")
    if len(vms) > 1 and not containers:
        raise Mistake("One VM at a time can have a card: give one number, or a VM's with containers', in turn.")
    kind = "shared" if vms and containers else "lxc" if containers else "host" if words == ["host"] else "vm"
    plain = Use(kind, vms, containers, new=new)
    if "." in card.place and plain.use != "vm":
        raise Mistake(f"{card.key} is a virtual function: only a VM can have it.")
    # What `up` refuses, and settings of the card would allow.
    openers: dict[str, Any] = {
        "allowConsole": True,
        "allowContainers": [config.id for config in facts.containers_with(card.place)],
    }
    errors = draft.refused(card, plain)
    for size in range(3 if plain.use == "vm" else 1):
        for keys in itertools.combinations(openers, size):
            use = replace(plain, more={key: openers[key] for key in keys})
            if not (draft.refused(card, use) if keys else errors):
                return replace(use, refused=next(iter(errors), None), notes=_notes(draft, card, use))
    is_able = plain.use in ("vm", "shared") and "host" not in refused and not draft.refused(card, Use("lxc"))
    raise refusal(card, plain, errors[0], "; containers, or the host itself, can have it" if is_able else "")


def _notes(draft: Draft, card: Card, use: Use) -> list[str]:
    notes, vms = list[str](), judged(draft.facts, draft.with_card(card, use)).vms
    for wish, vm in vms.values():
        if wish.vmid in use.vms:
            notes += vm.met
    windows = [one for one in takers(draft.facts) if one.id in use.vms and one.is_windows]
    return notes + [
        f"VM {one.id} has Windows, in which homelab installs nothing; its driver, its display and xVga: docs/cards.md"
        for one in windows
    ]


def refusal(card: Card, use: Use, error: HomelabError, but: str = "") -> Mistake:
    """Why a card can't go there: a sentence that says it, then what is missed, the reason and what to type.

    :param but: what is possible, as the sentence's end.
    """
    whom = f"VM {use.vms[0]}" if use.use == "vm" and use.vms and not use.new else _WHOM[use.use]
    first = f"{card.key} can't go to {whom}: {error.found}{but}."
    lines = first, f"wanted: {error.wanted}", f"why:    {error.why}", f"next:   {to_type(error.next)}"
    return Mistake("\n    ".join(lines))
