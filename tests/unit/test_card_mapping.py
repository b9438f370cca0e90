"""A card's entry in a mapping: it alone comes and goes, and what others have there stays."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.cards import work as card_mapping
from homelab.cards.mapping import FLAG
from homelab.cards.resource import CardMapping
from homelab.cards.work import CardMappingWork
from homelab.errors import ApiError, ChangedMeanwhileError, GoneError, HomelabError, NotThereError, UnansweredError
from homelab.facts.guests import GuestConfig
from homelab.host import plan
from homelab.host.judge import JudgedHost
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.remote import ledger, ssh
from remote_scripts.both.free_card import Wanted as FreeCard
from remote_scripts.notes.guest_note import Note
from remote_scripts.tools.plain import to_plain
from tests.rows import rows
from tests.unit.hosts import KEY, desktop, settings, tree
from tests.unit.test_created_vms import texts
from tests.unit.test_new_guests import error_of

INPUTS = CardMapping.Inputs(
    host="pve1", node="pve1", gpu="card", mapping="card", entry={"path": "0000:01:00", "id": "10de:2b85"}
)
LIVE = dataclasses.replace(INPUTS, live_migration=True)
OURS = "id=10de:2b85,node=pve1,path=0000:01:00"
OLD = OURS.replace("2b85", "2684")
MORE = f"{OURS},subsystem-id=1043:88e2"
OTHER = "id=10de:2b85,node=pve2,path=0000:01:00"
HERE = "id=8086:1521,node=pve1,path=0000:07:00"
ADDED, PRIOR = CardMapping.Outputs(before=""), CardMapping.Outputs(before=OLD)
MAPPING = dict[str, Any]


class Api:
    """The cluster's mapping `card`; None: there is none."""

    def __init__(self, mapping: MAPPING | None) -> None:
        self.mapping = mapping

    def get(self, _path: str, _wanted: str) -> MAPPING:
        if self.mapping is None:
            raise error_of(NotThereError)
        return {**self.mapping, "digest": "d"}

    def post(self, _path: str, _wanted: str, *, id: str, **values: Any) -> None:
        assert (self.mapping, id) == (None, "card")
        self.mapping = values

    def put(self, _path: str, _wanted: str, *, digest: str, delete: str = "", **values: Any) -> None:
        assert digest == "d" and self.mapping is not None
        kept = {key: value for key, value in self.mapping.items() if key not in delete.split(",")}
        self.mapping = {**kept, **values}

    def delete(self, _path: str, _wanted: str) -> None:
        self.mapping = None


def of(*entries: str, **more: Any) -> MAPPING:
    return {"map": [*entries], **more}


FLAGGED: MAPPING = {FLAG: 1}


@rows(
    ("mapping", "inputs", "outputs", "needing", "left"),
    [
        (of(OURS), INPUTS, ADDED, set(), None),
        (of(OURS), INPUTS, PRIOR, set(), of(OLD)),
        (of(OLD), INPUTS, PRIOR, set(), of(OLD)),
        (of(OTHER, OURS), INPUTS, ADDED, set(), of(OTHER)),
        (of(OURS, OTHER), INPUTS, PRIOR, set(), of(OLD, OTHER)),
        (of(OTHER), INPUTS, ADDED, set(), of(OTHER)),
        (of(HERE, OTHER), INPUTS, ADDED, set(), of(HERE, OTHER)),
        (None, INPUTS, ADDED, set(), None),
        (of(OTHER, OURS, description="mine"), INPUTS, ADDED, set(), of(OTHER, description="mine")),
        (of(OTHER, OURS, **FLAGGED), LIVE, ADDED, set(), of(OTHER)),
        (of(OTHER, OURS, **FLAGGED), LIVE, ADDED, {"pve2"}, of(OTHER, **FLAGGED)),
        (of(OTHER, OURS, **FLAGGED), LIVE, ADDED, {"pve3"}, of(OTHER)),
        (of(OTHER, OURS, **FLAGGED), INPUTS, ADDED, set(), of(OTHER, **FLAGGED)),
        (of(OTHER, OURS, **FLAGGED), LIVE, dataclasses.replace(ADDED, had_flag=True), set(), of(OTHER, **FLAGGED)),
        (of(OTHER, OURS), LIVE, ADDED, set(), of(OTHER)),
    ],
)
def test_it_goes_alone(mapping: Any, inputs: Any, outputs: Any, needing: set[str], left: Any) -> None:
    api: Any = Api(mapping)
    card_mapping._remove(api, inputs, outputs, needing)
    assert api.mapping == left


def test_one_that_a_killed_update_has_moved_goes_from_where_it_is_noted() -> None:
    api: Any = Api(of(OTHER, OURS.replace("01:00", "05:00")))
    card_mapping._remove(api, INPUTS, ADDED, set(), ["0000:05:00"])
    assert api.mapping == of(OTHER)


@rows(
    ("mapping", "inputs", "old_path", "after"),
    [
        (None, INPUTS, "", of(OURS)),
        (None, LIVE, "", of(OURS, **FLAGGED)),
        (of(OTHER), INPUTS, "", of(OTHER, OURS)),
        (of(OLD, OTHER), INPUTS, "", of(OURS, OTHER)),
        (of(OTHER), LIVE, "", of(OTHER, OURS, **FLAGGED)),
        (of(OTHER, **FLAGGED), INPUTS, "", of(OTHER, OURS, **FLAGGED)),
        (of(OURS), LIVE, "", of(OURS, **FLAGGED)),
        (of(OURS), INPUTS, "", of(OURS)),
        (of(f"{OURS},description=mine"), INPUTS, "", of(f"{OURS},description=mine")),
        (of(OURS.replace("01:00", "01:00.0")), INPUTS, "", of(OURS.replace("01:00", "01:00.0"))),
        (of(HERE, OTHER), INPUTS, "0000:07:00", of(OURS, OTHER)),
        (of(HERE, OTHER), INPUTS, "", "another device of this node"),
        (of(HERE, OURS), INPUTS, "", "another device of this node"),
        (of(HERE, OURS), INPUTS, "0000:01:00", "another device of this node"),
        (of(HERE, OTHER), INPUTS, "0000:01:00", of(OURS, OTHER)),  # somebody has edited its own
    ],
)
def test_it_comes_beside_those_of_other_nodes(mapping: Any, inputs: Any, old_path: str, after: Any) -> None:
    api: Any = Api(mapping)
    if isinstance(after, str):
        with pytest.raises(HomelabError, match=after):
            card_mapping._write(api, inputs, old_path)
        after = mapping
    else:
        card_mapping._write(api, inputs, old_path)
    assert api.mapping == after


@pytest.mark.parametrize(
    ("mapping", "inputs", "drift"),
    [
        (of(OTHER, OURS), INPUTS, []),
        (of(OLD), INPUTS, [f"the PCI mapping card: {OLD} -> {OURS}"]),
        (of(OURS), LIVE, [f"the PCI mapping card is not for live migration any more ({FLAG})"]),
        (of(OURS, **FLAGGED), LIVE, []),
        (of(OURS, **FLAGGED), INPUTS, []),
        (of(OTHER, HERE), INPUTS, [f"the PCI mapping card: {HERE} -> {OURS}"]),
        (of(MORE), INPUTS, [f"the PCI mapping card: {MORE} -> {OURS}"]),
        (of(HERE, HERE.replace("07:00", "08:00")), INPUTS, None),
        (of(OTHER), INPUTS, None),
        (None, INPUTS, None),
    ],
)
def test_a_refresh_tells_another_entry_and_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, mapping: Any, inputs: Any, drift: list[str] | None
) -> None:
    work, api = CardMappingWork(texts({}, {}).texts), Api(mapping)
    monkeypatch.setattr(work, "api", lambda _: api)
    if drift is None:
        with pytest.raises(GoneError):
            work.read(inputs, ADDED)
    else:
        assert work.read(inputs, ADDED).drift == drift


MOVED = dataclasses.replace(INPUTS, entry={**INPUTS.entry, "path": "0000:05:00"})
MOVED_OURS = OURS.replace("01:00", "05:00")
LATER = of(OTHER, MOVED_OURS)


@pytest.mark.parametrize(
    ("mapping", "inputs", "had", "noted", "after"),
    [
        (of(OTHER, OURS), INPUTS, INPUTS, [], of(OTHER, OURS)),
        (of(OTHER, OLD), INPUTS, INPUTS, [], of(OTHER, OURS)),
        (of(OTHER, OURS), MOVED, INPUTS, [of(OTHER, OURS), LATER], LATER),
        (None, MOVED, INPUTS, [None, of(MOVED_OURS)], of(MOVED_OURS)),
        (of(HERE, OURS), MOVED, INPUTS, [], "another device of this node"),
        (of(OURS, HERE.replace("07:00", "05:00")), MOVED, INPUTS, [], "another device of this node"),
        (of(OTHER, OURS, **FLAGGED), INPUTS, LIVE, [], of(OTHER, OURS)),
        (of(OTHER, OURS, **FLAGGED), LIVE, LIVE, [], of(OTHER, OURS, **FLAGGED)),
    ],
)
def test_an_entry_that_moves_to_another_slot_is_noted_in_both_before_it_does_and_in_one_afterwards(
    monkeypatch: pytest.MonkeyPatch, mapping: Any, inputs: Any, had: Any, noted: list[Any], after: Any
) -> None:
    work, api, seen = CardMappingWork(texts({}, {}).texts), Api(mapping), list[Any]()

    def take_note(_host: Any, _inputs: Any, about: dict[str, Any], old_path: str = "") -> None:
        assert about == {"before": OLD, "had_flag": False} and old_path == ("" if seen else "0000:01:00")
        seen.append(api.mapping)

    monkeypatch.setattr(work, "api", lambda _: api)
    monkeypatch.setattr(card_mapping, "_note_mapping", take_note)
    if isinstance(after, str):
        with pytest.raises(HomelabError, match=after):
            work.update(inputs, had, PRIOR)
        after = mapping
    else:
        assert work.update(inputs, had, dataclasses.replace(PRIOR, drift=[OLD])) == PRIOR
    assert (seen, api.mapping) == (noted, after)


@pytest.mark.parametrize(
    ("had", "outputs", "of_pve2", "flagged"),
    [
        (LIVE, ADDED, "another", False),
        (LIVE, dataclasses.replace(ADDED, had_flag=True), "another", True),
        (INPUTS, ADDED, "another", True),
        (LIVE, ADDED, "card", True),
    ],
)
def test_the_flag_goes_that_came_for_its_sake_unless_another_node_of_the_settings_needs_it(
    monkeypatch: pytest.MonkeyPatch, had: Any, outputs: Any, of_pve2: str, flagged: bool
) -> None:
    live = {"match": "10de:2b85", "liveMigration": True, "mapping": of_pve2}
    hosts: dict[str, Any] = {"pve1": {"cluster": "home"}, "pve2": {"cluster": "home", "gpus": {"other": live}}}
    work, api = CardMappingWork(texts({}, hosts).texts), Api(of(OTHER, OURS, **FLAGGED))
    monkeypatch.setattr(work, "api", lambda _: api)
    work.update(INPUTS, had, outputs)
    assert api.mapping == of(OTHER, OURS, **(FLAGGED if flagged else {}))


def noted_of(owner: str, mapping: str = "card") -> str:
    return json.dumps(
        to_plain(Note(identity="u", owner=owner, values={"hostpci0": (f"mapping={mapping}",)}, shutdown=7))
    )


NOTES = {"qemu-104": noted_of("q/s/b", "other"), "qemu-105": "what is this?", "lxc-106": "{}"}


CLONE = GuestConfig("vm", 105, "hostpci1: mapping=card,pcie=1\n")
ANOTHER = [GuestConfig("vm", 106, "hostpci0: mapping=other\n"), GuestConfig("lxc", 107, "hostpci0: mapping=card\n")]


def facts_of(notes: dict[str, str], *configs: GuestConfig) -> Any:
    return SimpleNamespace(ledger=notes, guests=SimpleNamespace(configs=[*configs]))


@pytest.mark.parametrize(
    ("stack", "configs", "outputs", "stays"),
    [
        ("q/s", [GuestConfig("vm", 103, "hostpci0: mapping=card\n")], ADDED, "VM 103 has it from the stack q/s"),
        ("q/s", [], ADDED, ""),  # it is on another node, with that one's entry, or gone
        ("p/s", ANOTHER, ADDED, ""),
        ("p/s", [GuestConfig("vm", 103, "hostpci0: mapping=card\n")], ADDED, ""),
        ("p/s", [*ANOTHER, CLONE], ADDED, "VM 105 has it, and not from this program"),
        ("p/s", [CLONE], PRIOR, ""),
    ],
)
def test_a_card_that_a_vm_has_and_not_from_this_stack_stays(
    stack: str, configs: list[GuestConfig], outputs: CardMapping.Outputs, stays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = CardMappingWork(
        texts({}, {"pve1": {"gpus": {"card": GPU}}}).texts, "urn:pulumi:s::p::homelab:card:Mapping::a"
    )
    notes = {**NOTES, "qemu-103": noted_of(f"{stack}/a"), "mapping/pve1/card": json.dumps({**NOTED, "before": None})}
    facts, done = facts_of(notes, *configs), list[str]()
    assert work._user(INPUTS, outputs, facts) == stays
    monkeypatch.setattr(ssh, "read", lambda _: facts)
    monkeypatch.setattr(work, "_delete", lambda *_: done.append("deleted"))
    work.delete(INPUTS, outputs)
    assert done == ([] if stays else ["deleted"])


GPU = {"match": "10de:2b85"}
NOTED = {"before": OLD, "had_flag": True, "gpu": "card", "path": "0000:05:00"}
SAME, LIVE_SAME = {**GPU, "mapping": "card"}, {**GPU, "mapping": "card", "liveMigration": True}


@pytest.mark.parametrize(
    ("holder", "gpus", "done"),
    [
        ("card", {"card": GPU}, ["deleted"]),
        ("new", {"new": SAME}, ["flag"]),
        ("new", {"new": LIVE_SAME}, []),
        ("new", {"new": GPU}, ["deleted"]),
        ("new", {"card": GPU}, ["deleted"]),
        (None, {"new": SAME}, ["deleted"]),
    ],
)
def test_an_entry_stays_that_is_another_keys_by_now(
    monkeypatch: pytest.MonkeyPatch, holder: str | None, gpus: dict[str, Any], done: list[str]
) -> None:
    work, calls = CardMappingWork(texts({}, {"pve1": {"gpus": gpus}}).texts), list[str]()

    facts = facts_of({"mapping/pve1/card": json.dumps({**NOTED, "gpu": holder})} if holder else {})
    monkeypatch.setattr(ssh, "read", lambda _: facts)
    monkeypatch.setattr(work, "_delete", lambda *_: calls.append("deleted"))
    monkeypatch.setattr(work, "_take_flag_back", lambda *_: calls.append("flag"))
    work.delete(INPUTS, ADDED)
    assert calls == done


@pytest.mark.parametrize(
    ("note", "stack", "outputs"),
    [
        (None, "p/s", []),
        ({**NOTED, "gpu": "new"}, "p/s", []),
        (NOTED, "p/s", [dataclasses.replace(PRIOR, had_flag=True)]),
        ({**NOTED, "before": None, "had_flag": False}, "p/s", [ADDED]),
        (NOTED, "q/s", []),
    ],
)
def test_what_a_killed_run_has_begun_is_given_back_unless_another_stacks_vm_has_it(
    monkeypatch: pytest.MonkeyPatch, note: Any, stack: str, outputs: list[Any]
) -> None:
    gpus = texts({}, {"pve1": {"gpus": {"card": GPU}}}).texts
    work, calls = CardMappingWork(gpus, "urn:pulumi:s::p::homelab:card:Mapping::a"), list[Any]()
    monkeypatch.setattr(work, "_delete", lambda inputs, outputs, _: calls.append((inputs.entry["path"], outputs)))
    notes = {"qemu-103": noted_of(f"{stack}/a"), **({"mapping/pve1/card": json.dumps(note)} if note else {})}
    work.remove_unfinished("pve1", "pve1", facts_of(notes, GuestConfig("vm", 103, "hostpci0: mapping=card\n")))
    assert calls == [("0000:05:00", given) for given in outputs]


@pytest.mark.parametrize(
    ("now", "vms", "keeps", "staying"),
    [
        ("card", {}, {}, ()),
        ("card", {"a": {"host": "pve1", "vmid": 103, "gpus": ["card"]}}, {"103": ()}, ()),
        ("card", {"b": {"host": "pve1", "vmid": 104, "gpus": ["other"]}}, {"104": ("another",)}, ("104",)),
        ("card", {"b": {"host": "pve1", "vmid": 104, "display": "none"}}, {"104": ()}, ("104",)),
        ("new", {"a": {"host": "pve1", "vmid": 103, "gpus": ["card"]}}, {"103": ("new",)}, ()),
        ("card", {}, None, ()),
    ],
)
def test_vms_are_given_back_what_they_had_before_the_entry_goes(
    monkeypatch: pytest.MonkeyPatch,
    now: str,
    vms: dict[str, Any],
    keeps: dict[str, Any] | None,
    staying: tuple[str, ...],
) -> None:
    """By the card's address, too, unless it has another mapping by now, whose VMs may have it by that. A VM of the
    settings that isn't to have the card may have it by its owner's own line.
    """
    gpus = {"card": {**GPU, "mapping": now}, "other": {"match": "10de:2684", "mapping": "another"}}
    stack = texts(vms, {"pve1": {"gpus": gpus}}).texts
    work, calls = CardMappingWork(stack, "urn:pulumi:s::p::homelab:card:Mapping::a"), list[Any]()
    api = Api(of(OTHER, OURS.replace("01:00", "05:00")))

    def forget(_session: Any, name: str) -> None:
        assert (name, api.mapping) == ("mapping/pve1/card", of(OTHER))

    class Session:
        def __init__(self, _host: Any) -> None:
            pass

        def ask(self, verb: str, layer: str, wanted: FreeCard, *_: Any, **__: Any) -> None:
            assert api.mapping == of(OTHER, OURS.replace("01:00", "05:00"))
            calls.append((verb, layer, wanted.stack, wanted.card, wanted.keeps, wanted.staying))

    monkeypatch.setattr(work, "api", lambda _: api)
    monkeypatch.setattr(ledger, "forget", forget)
    monkeypatch.setattr(ssh, "Session", Session)
    notes = {**NOTES, "qemu-103": noted_of("q/s/a" if keeps is None else "p/s/a", "other")}
    work._delete(INPUTS, ADDED, {**notes, "mapping/pve1/card": json.dumps(NOTED)})
    card = ("card", "0000:01:00") if now == "card" else ("card",)
    assert calls == ([] if keeps is None else [("apply", "free_card", "p/s", card, keeps, staying)])
    assert api.mapping == of(OTHER)


NEW: dict[str, Any] = {"before": None, "had_flag": False}
HELD: dict[str, Any] = {"before": HERE, "had_flag": True}


@pytest.mark.parametrize(
    ("earlier", "about", "noted"),
    [
        (None, NEW, NEW),
        (None, HELD, HELD),
        ({**NOTED, "path": "0000:01:00.0"}, NEW, {"before": OLD, "had_flag": True}),
        (NOTED, NEW, NEW),  # of another card, and this one has no entry
        (NOTED, HELD, {"before": OLD, "had_flag": True}),
    ],
)
def test_what_was_there_at_first_stays_noted(
    monkeypatch: pytest.MonkeyPatch, earlier: Any, about: dict[str, Any], noted: dict[str, Any]
) -> None:
    notes = {"mapping/pve1/card": earlier}

    def take_note(_: Any, name: str, note: Any) -> None:
        notes[name] = note

    monkeypatch.setattr(ssh, "Session", lambda _: None)
    monkeypatch.setattr(ledger, "noted", lambda _, name: notes[name])
    monkeypatch.setattr(ledger, "note", take_note)
    host: Any = None
    for old_path, path in ("0000:05:00", "0000:01:00;0000:05:00"), ("", "0000:01:00"):
        found = card_mapping._note_mapping(host, INPUTS, about, old_path)
        assert found == notes["mapping/pve1/card"] == {**noted, "gpu": "card", "path": path}


@rows(
    ("entries", "note", "is_refused"),
    [
        ([], None, False),
        ([OTHER], None, False),
        ([OTHER, OLD], None, False),
        ([HERE], None, True),
        ([OURS, HERE], None, True),
        ([MOVED_OURS, OTHER], None, True),
        ([MOVED_OURS, OTHER], NOTED, False),  # the card was moved to another slot
        ([MOVED_OURS, OTHER], {**NOTED, "path": "0000:01:00;0000:05:00"}, False),  # by a run that was killed
        ([MOVED_OURS, OTHER], {**NOTED, "gpu": "other"}, True),
        ([HERE, OTHER], NOTED, False),  # edited by hand
        ([HERE, OURS], NOTED, True),
    ],
)
def test_a_mapping_of_another_device_is_refused_with_the_host_as_its_own_work_refuses_it(
    entries: list[str], note: dict[str, Any] | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is changed: a refresh has the host planned anew for it."""
    host = settings({"card": GPU}, node="pve1")
    ledger_of = {"mapping/pve1/card": json.dumps(note)} if note else {}
    guests = {"running": [], "mappings": "\n".join(["card", *(f"\tmap {entry}" for entry in entries)])}
    had = plan.wanted(desktop(), host)
    words = dict.fromkeys(("running", "configured", "generated"), had.words) | {"others": ""}
    facts = desktop(guests=guests, ledger=ledger_of, cmdline=words)
    of_plan = tree(facts, host).mappings["card"].refusals
    assert bool(of_plan) is is_refused

    work = CardMappingWork(texts({}, {"pve1": {"gpus": {"card": GPU}}}).texts)
    api = Api(of(*entries) if entries else None)
    monkeypatch.setattr(work, "api", lambda _: api)
    monkeypatch.setattr(ssh, "Session", lambda _: None)
    monkeypatch.setattr(ledger, "noted", lambda *_: note)
    monkeypatch.setattr(ledger, "note", lambda *_: None)
    try:
        work.create(INPUTS)
    except HomelabError as error:
        assert [str(error)] == [*map(str, of_plan)]
    else:
        assert not is_refused

    monkeypatch.setattr(HostProbeWork, "facts_of_refresh", lambda *_: facts)
    monkeypatch.setattr(HostProbeWork, "host", lambda *_: host)
    of_stack = json.dumps(
        {"pve1": {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}, "gpus": {"card": GPU}}}
    )
    before = HostProbe.Outputs(**dataclasses.asdict(had), generation={}, stale=False)
    monkeypatch.setattr("homelab.host.work.judge_host", lambda *_, **__: JudgedHost(title="", want=had, drift={}))
    assert (
        HostProbeWork({"hosts": of_stack}).read(HostProbe.Inputs(host="pve1", settings=""), before).stale is is_refused
    )


def api_error(reason: str = "") -> ApiError:
    return ApiError(wanted="w", found="f", why="w", next="n", status=500, reason=reason)


CHANGED, GONE, SILENT = (error_of(kind) for kind in (ChangedMeanwhileError, NotThereError, UnansweredError))


@pytest.mark.parametrize(
    ("errors", "is_done"),
    [
        ([], True),
        ([CHANGED, GONE], True),
        ([api_error("mapping already defined"), SILENT], True),
        ([api_error("no right")], False),
        ([CHANGED] * card_mapping.TRIES, False),
        ([api_error("already defined")] * card_mapping.TRIES, False),
    ],
)
def test_a_lost_race_is_run_again_and_nothing_else_is(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], is_done: bool
) -> None:
    left = [*errors]
    api: Any = Api(None)
    monkeypatch.setattr(card_mapping, "PAUSE_SECONDS", 0.0)

    def post(_path: str, _wanted: str, *, id: str, **values: Any) -> None:
        if left:
            raise left.pop(0)
        api.mapping = values

    monkeypatch.setattr(api, "post", post)
    if is_done:
        card_mapping._write(api, INPUTS, "")
    else:
        with pytest.raises(ApiError):
            card_mapping._write(api, INPUTS, "")
    assert (left, api.mapping) == ([], of(OURS) if is_done else None)
