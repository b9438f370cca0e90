"""The doctor's report of a container: its devices from the host to the inside, its driver and libraries. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from homelab.container.plan import as_given, judge_container
from homelab.doctor.comparison import compared
from homelab.doctor.configuration import unused_rules
from homelab.doctor.container_findings import findings, restart_step, without_libraries
from homelab.doctor.devices import COLUMNS, Case, WantedCards, cards_in, of_settings
from homelab.doctor.reading import Reading, not_here
from homelab.doctor.report import Report, Table, in_order
from homelab.errors import HomelabError
from homelab.findings import Finding, Stage, Turn, cured
from homelab.judged.tree import Tree
from remote_scripts.pve.guest_kinds import CONTAINER


def diagnose(
    reading: Reading,
    ctid: int,
    *,
    like: int | None = None,
    cards: WantedCards | None = None,
    tree: Tree | None = None,
) -> Report:
    """What is wrong with a container's cards.

    :param reading: one that looked into `ctid` and `like`.
    :param like: id of a container that works, to be compared with.
    :param cards: those that it is to have; by default the settings say, else its configuration, or the other
        container's.
    :param tree: of the same reading.
    :raises HomelabError: there is no such container on this host.
    """
    model = _case(reading, like) if like is not None else None
    case = replace(_case(reading, ctid, cards or (of_settings(tree, ctid) if tree else None), model), tree=tree)
    # Whatever it lacks of a card that a VM has in turn, it has again with the card.
    own_findings = cured(_sunk(case) if case.cards.away else findings(case), tree.refusals if tree else ())
    tables = [Table("devices", COLUMNS, [row.cells(case.container.was_seen) for row in case.rows])]
    notes, compared_with = _notes(case), None
    if model is not None:
        compared_with, of_comparison = compared(case, model)
        tables += of_comparison
        notes += compared_with["differences"]
        if not compared_with["devices"] and not compared_with["differences"]:
            notes.append(f"nothing that counts differs from {model.name}")
        if model_findings := findings(model):
            notes.append(
                f"{model.name} isn't well itself ({len(model_findings)} findings): "
                f"`homelab doctor container {model.container.id}`"
            )
    return Report(
        "container",
        f"{case.name} ({case.container.name}) on {reading.node}",
        _head(case),
        tables,
        own_findings,
        notes,
        _steps(case, own_findings),
        {**_data(case), "like": compared_with},
    )


def _case(reading: Reading, ctid: int, cards: WantedCards | None = None, model: Case | None = None) -> Case:
    """A container with the given cards; else those of its configuration, else those of the other one's, else all."""
    container, note = reading.container(ctid), reading.facts.container_note(ctid)
    if container is None and cards is not None and cards.judged.findings:
        raise HomelabError(**cards.judged.findings[0].parts())
    if container is None:
        raise not_here(reading.facts, CONTAINER, ctid)
    if cards is not None:
        return Case(reading, container, cards)
    if numbers := cards_in(container.parsed):
        chosen = WantedCards(numbers, "its configuration")
    elif model is not None and (numbers := cards_in(model.conf)):
        chosen = WantedCards(numbers, model.name)
    else:
        chosen = WantedCards(list(reading.cards), "no configuration: all of the host's are shown", guessed=True)
    if note.given.cards is not None:  # by settings that aren't here
        given = as_given(note.owner.rpartition("/")[2], ctid, reading.facts)
        chosen = replace(chosen, judged=judge_container(given, reading.facts))
    return Case(reading, container, chosen)


def _head(case: Case) -> list[str]:
    container, conf, driver = case.container, case.conf, case.reading.driver
    state = [
        {True: "running", False: "off", None: "not known whether it runs"}[container.running],
        "unprivileged" if conf.unprivileged else "privileged",
        *([f"locked ({conf.options['lock']})"] if "lock" in conf.options else []),
    ]
    versions = case.library_versions
    libraries = ", ".join(versions) or ("none" if container.was_seen else "not known")
    numbers = ", ".join(
        f"{number} ({case.reading.cards.get(number, 'not on the host')})" for number in case.cards.numbers
    )
    return [
        ", ".join(state),
        f"driver on the host: {driver or 'none'}; libraries in the container: {libraries}; "
        f"equal: {'not known' if case.equal is None else 'yes' if case.equal else 'no'}",
        f"cards that it is to have: {numbers or 'none'}, says {case.cards.by}",
    ]


def _sunk(case: Case) -> list[Finding]:
    return [
        Finding(
            f"{case.name} with its shared card, or the card with a VM that gives it back",
            state,
            "the card can't come back before you have mended that; until then the container goes without it",
            "`homelab doctor host` says what helps",
        )
        for state in case.cards.sunk
    ]


def _notes(case: Case) -> list[str]:
    container, conf = case.container, case.conf
    notes = [] if case.cards.away else [*case.cards.judged.remarks]
    notes += [
        f"{state}; when that VM is shut down, the host has the card again, and starts what it had shut down for it. "
        "Until then its devices aren't judged"
        for state in case.cards.away
        if state not in case.cards.sunk
    ]
    if container.running is False:
        notes.append("it is off: what it has inside is seen once it runs")
    if container.running is None:
        notes.append(
            f"`pct status {container.id}` gave no answer on the host: whether it runs isn't known, nor what it has "
            "inside"
        )
    for section, lines in conf.elsewhere.items():
        notes.append(f"{len(lines)} device line(s) in the snapshot section [{section}] have no effect")
    if pending := [entry.line for entry in conf.entries if entry.pending]:
        notes.append(f"pending until its next start: {'; '.join(pending)}")
    notes += [f"a rule for a major that no device of the host has: {rule.line}" for rule in unused_rules(case)]
    return [*notes, *without_libraries(case), *case.log[1]]


def _steps(case: Case, findings: list[Finding]) -> list[str]:
    """The findings' next steps in order, with the restart that a change of nodes or configuration takes."""
    before = [finding for finding in findings if finding.stage < Stage.RESTART]
    after = [finding for finding in findings if finding.stage > Stage.RESTART]
    restart = [finding.next for finding in findings if finding.stage == Stage.RESTART]
    # `pulumi up` restarts it by itself; what the host's log has, or stands against `up`, is mended by no restart of it.
    others = [*case.of_driver, *case.log[0], *case.cards.judged.findings]
    own = [finding for finding in before if finding.turn is Turn.PERSON and finding not in others]
    if case.container.running and own:
        restart = [restart_step(case)]
    return [*dict.fromkeys([*in_order(before), *restart, *in_order(after)])]


def _data(case: Case) -> dict[str, Any]:
    container, conf = case.container, case.conf
    return {
        "node": case.reading.node,
        "id": container.id,
        "name": container.name,
        "running": container.running,
        "unprivileged": conf.unprivileged,
        "lock": conf.options.get("lock"),
        "driver": case.reading.driver or None,
        "libraries": case.libraries,
        "equal": case.equal,
        "cards": {"numbers": case.cards.numbers, "by": case.cards.by},
        "devices": [row.data for row in case.rows],
    }
