"""A PCI mapping is the whole cluster's: nodes, stacks and people change it at the same time, and no entry is lost for that."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from homelab.cards.resource import CardMapping
from homelab.cards.work import CardMappingWork
from homelab.errors import GoneError, HomelabError
from homelab.remote.proxmox.api import Api
from lab import Lab
from tests import forked_agent
from tests.lab.killed_kit import KilledError, killed_after, until_done
from tests.lab.stack_kit import NODE, as_text, client, host_of
from tests.sampling import sample

PATH = "cluster/mapping/pci"
OTHERS = [f"node=pve{number},path=0000:01:00,id=10de:2b85" for number in (2, 3)]
GONE = "node=left-long-ago,path=0000:41:00,id=10de:2684"


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    yield shared_lab
    shared_lab.run("rm -rf $HOMELAB_ROOT/etc/pve/mapping/pci.cfg $HOMELAB_ROOT/var/lib/homelab/ledger")


def work(lab: Lab, **gpus: Any) -> CardMappingWork:
    about = as_text(host_of(lab)) | ({"gpus": gpus} if gpus else {})
    return CardMappingWork({"hosts": json.dumps({NODE: about})})


def entry_of(node: str = NODE, **more: Any) -> CardMapping.Inputs:
    entry = {"path": "0000:01:00", "id": "10de:2b85", "iommugroup": "14", "subsystem-id": "1043:89e3"}
    return CardMapping.Inputs(**{"host": NODE, "node": node, "gpu": "gpu", "mapping": "gpu", "entry": entry, **more})


def nodes(lab: Lab) -> list[str]:
    """The nodes whose entries the mapping has; none: it isn't there."""
    found = client(lab).get(PATH, "mappings")
    return [entry.partition("node=")[2].partition(",")[0] for mapping in found for entry in mapping["map"]]


def meanwhile(monkeypatch: pytest.MonkeyPatch, verb: str, *acts: Callable[[], object]) -> None:
    """What others do right before each request of that kind, one act each, while there are any."""
    left = list(acts)
    plain = getattr(Api, verb)

    def asked(self: Api, path: str, wanted: str, /, **parameters: Any) -> Any:
        if left and path.startswith(PATH):
            left.pop(0)()
        return plain(self, path, wanted, **parameters)

    monkeypatch.setattr(Api, verb, asked)


def add(lab: Lab, entry: str) -> Callable[[], None]:
    """Another stack's client, of an API of its own, in a process that nobody here watches."""

    def done() -> None:
        have = next(
            (one for one in json.loads(lab.run("pvesh get /cluster/mapping/pci --output-format json").stdout)), None
        )
        maps = " ".join(f"--map '{one}'" for one in [*(have["map"] if have else []), entry])
        lab.run(f"pvesh {'set /cluster/mapping/pci/gpu' if have else 'create /cluster/mapping/pci --id gpu'} {maps}")

    return done


def test_where_others_change_a_mapping_meanwhile_each_entry_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two other stacks complete it at once: the last one has lost the race twice."""
    add(lab, GONE)()
    meanwhile(monkeypatch, "put", *(add(lab, one) for one in OTHERS))
    work(lab).create(entry_of())
    assert nodes(lab) == ["left-long-ago", "pve2", "pve3", NODE]


def test_nodes_that_complete_it_at_the_same_time_all_do(lab: Lab) -> None:
    names = [f"pve{number}" for number in range(2, 8)]
    threads = [threading.Thread(target=work(lab).create, args=[entry_of(name)]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(nodes(lab)) == names


def test_a_mapping_that_is_deleted_meanwhile_is_made_anew_and_nothing_to_take_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted() -> None:
        lab.run("pvesh delete /cluster/mapping/pci/gpu")

    add(lab, GONE)()
    with monkeypatch.context() as once:
        meanwhile(once, "put", deleted)
        work(lab).create(entry_of())
    assert nodes(lab) == [NODE]
    add(lab, GONE)()
    with monkeypatch.context() as once:
        meanwhile(once, "put", deleted)
        work(lab).delete(entry_of(), CardMapping.Outputs(before=""))
    assert nodes(lab) == []
    work(lab).delete(entry_of(), CardMapping.Outputs(before=""))


def test_what_others_add_while_an_entry_is_taken_out_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    add(lab, GONE)()
    work(lab).create(entry_of())
    with monkeypatch.context() as once:
        meanwhile(once, "put", *(add(lab, one) for one in OTHERS))
        work(lab).delete(entry_of(), CardMapping.Outputs(before=""))
    assert nodes(lab) == ["left-long-ago", "pve2", "pve3"]


def noted(lab: Lab) -> bool:
    return (lab.root / f"var/lib/homelab/ledger/mapping/{NODE}/gpu").exists()


def test_a_refused_entry_is_not_noted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the owner's own entry would be taken for this program's later, and go with it."""
    add(lab, f"node={NODE},path=0000:41:00,id=10de:2684")()
    with pytest.raises(HomelabError, match="for another device of this node"):
        work(lab).create(entry_of())
    assert not noted(lab)
    lab.run("pvesh delete /cluster/mapping/pci/gpu")
    lab.fault("api-answers", "POST /cluster/mapping/pci=403 Permission check failed")
    with pytest.raises(HomelabError, match="403"):
        work(lab).create(entry_of())
    lab.fault("api-answers", None)
    assert not noted(lab)


def test_a_card_that_is_refused_another_ones_mapping_leaves_that_ones_note(lab: Lab) -> None:
    add(lab, f"node={NODE},path=0000:01:00,id=10de:0000,description=mine")()
    state = work(lab).create(entry_of())
    assert "description=mine" in state.before
    with pytest.raises(HomelabError, match="for another device of this node"):
        work(lab).create(entry_of(gpu="other", entry={**entry_of().entry, "path": "0000:41:00"}))
    assert work(lab).create(entry_of()) == state, "a state that was lost is known by its note"


def listed(lab: Lab) -> list[dict[str, Any]]:
    found = json.loads(lab.run("pvesh get /cluster/mapping/pci --output-format json").stdout)
    return [{key: value for key, value in mapping.items() if key != "digest"} for mapping in found]


@pytest.mark.parametrize("gone", ["entry", "mapping"])
def test_what_was_there_at_first_outlives_an_entry_that_is_taken_out(lab: Lab, gone: str) -> None:
    """By hand; a refresh finds it, the next `up` makes it anew, and a destroy gives back what was there before all that."""
    mine = [f"node={NODE},path=0000:01:00,id=10de:0000,description=mine"] if gone == "mapping" else []
    for entry in [OTHERS[0], *mine]:
        add(lab, entry)()
    stock, inputs = listed(lab), entry_of(live_migration=True)
    state = work(lab).create(inputs)
    lab.run("pvesh delete /cluster/mapping/pci/gpu")
    if gone == "entry":
        lab.run(f"pvesh create /cluster/mapping/pci --id gpu --map {OTHERS[0]} --live-migration-capable 1")
    with pytest.raises(GoneError):
        work(lab).read(inputs, state)
    assert work(lab).create(inputs) == state
    work(lab).delete(inputs, state)
    # The other node's entry of a whole mapping that is gone was not this program's.
    assert listed(lab) == ([{**stock[0], "map": mine}] if mine else stock)


BEFORE = {
    "no mapping": [],
    "another node's entry": [OTHERS[0]],
    "an entry by hand": [f"node={NODE},path=0000:01:00.0,id=10de:2b85"],
}


@pytest.mark.parametrize("before", sample(list(BEFORE), 1, "a mapping before a killed run"))
def test_a_run_that_is_killed_after_any_request_goes_on_and_gives_back_what_was_there_at_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Killed while it creates it, then while it updates it, for another entry and the flag, then while it takes it away."""

    def entries() -> list[str]:
        return [entry for mapping in client(lab).get(PATH, "mappings") for entry in mapping["map"]]

    for entry in BEFORE[before]:
        add(lab, entry)()
    stock, inputs = entries(), entry_of()
    state = until_done(monkeypatch, lambda: work(lab).create(inputs))
    moved = entry_of(entry={**inputs.entry, "id": "10de:2684"}, live_migration=True)
    state = until_done(monkeypatch, lambda: work(lab).update(moved, inputs, state))
    assert len(entries()) == max(1, len(stock) + ("another" in before)) and "id=10de:2684" in "".join(entries())
    until_done(monkeypatch, lambda: work(lab).delete(moved, state))
    assert entries() == stock and not (lab.root / f"var/lib/homelab/ledger/mapping/{NODE}/gpu").exists()
    if stock:
        assert "live-migration-capable" not in client(lab).get(f"{PATH}/gpu", "the mapping")


def test_an_entry_that_a_killed_update_has_moved_to_another_slot_goes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, moved = work(lab).create(entry_of()), entry_of(entry={**entry_of().entry, "path": "0000:02:00"})
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, 1)
        work(lab).update(moved, entry_of(), state)
    assert "path=0000:02:00" in client(lab).get(f"{PATH}/gpu", "the mapping")["map"][0]
    work(lab).delete(entry_of(), state)
    assert nodes(lab) == [] and not (lab.root / f"var/lib/homelab/ledger/mapping/{NODE}/gpu").exists()
