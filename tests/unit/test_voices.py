"""The voices about one state, held to each other: preview, refresh, doctor and show. States are drawn: what the settings want, and what somebody,
a kernel or an interrupted run has made of the host since the last `up`.

With the engine, on simulated hosts: tests/e2e/test_voices.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from homelab import earlier
from homelab.cards.mapping import judge_mapping
from homelab.cli import doctor, show, stack_options
from homelab.container.work import _drift
from homelab.doctor.whole import Whole
from homelab.facts.host import HostFacts
from homelab.findings import Finding, Turn
from homelab.host import plan
from homelab.host.judge import judge_host
from homelab.host.stack_folder import owner
from homelab.judged import text
from homelab.judged.tree import Settings
from homelab.reading import diagnosis, planning
from homelab.remote import ssh
from homelab.remote.proxmox import probe as api
from homelab.settings import parse
from homelab.settings.stack_file import StackFile
from homelab.show.tree import TreeNode
from homelab.vm import preview
from homelab.vm.plan import judge_vm, seen_of
from remote_scripts.notes.container_note import Cards
from tests import sampling
from tests.unit.hosts import KEY, container_note, desktop, device, device_nodes, vm_note
from tests.unit.test_doctor import DEVICE_LINES, inside, reading
from tests.unit.test_moved_containers import probe

State = dict[str, Any]
CARD, SOUND, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:03:00.0"
SMALL = device(OTHER, "10de:2684", "030000", 18, driver="nvidia", parent="0000:00:01.1")
GIVEN, ENTRY = "hostpci0: mapping=big,pcie=1", "path=0000:01:00,subsystem-id=1043:88e2"
NODES = {"nvidia0": "c3 0 666", "nvidia1": "c3 1 666", "nvidiactl": "c3 ff 666", "nvidia-uvm": "1fc 0 666"}
WORDS = ("running", "configured", "generated")
# A host after an `up`, with its VM off and its container on. `read`: what else is unusual about the reading.
USUAL: State = {"use": "vm", "words": WORDS, "file": "ok", "driver": "", "read": {}, "901 runs": True}
USUAL |= {
    "VM": GIVEN,
    "VM's note": {},
    "VM's power": "keep",
    "103 runs": False,
    "lost hooks": [],
    "VM 104's owner": "",
    "104 runs": False,
}
USUAL |= {"container": DEVICE_LINES, "container's note": {}, "container's power": "keep"}
USUAL |= {"entry": f"id=10de:2b85,iommugroup=16,node=pve,{ENTRY}"}
UNDER_HA = {"cluster": {"node": "pve", "ha": {"resources": "vm: 103\n\tstate started\n"}}}
HOST, MAPPING, VM, CONTAINER = "hosts.pve", "gpus.big", "vms.sandbox", "containers.phoenix"


def settings_of(state: State) -> dict[str, Any]:
    """As in the stack's file."""
    gpus = {"big": {"match": "10de:2b85", "use": state["use"]}, "small": {"address": "0000:03:00", "use": "lxc"}}
    one = {"address": "192.168.0.202", "node": "pve", "ssh": {"hostKey": KEY, "agent": True}, "gpus": gpus}
    sandbox = {"host": "pve", "vmid": 103, "gpus": ["big"], "power": state["VM's power"]}
    phoenix = {"host": "pve", "ctid": 901, "gpus": [card_of(state)], "power": state["container's power"]}
    return {
        "hosts": {"pve": one | ({"nvidia": {}} if state["use"] == "shared" else {})},
        "vms": {"sandbox": sandbox} if state["use"] in ("vm", "shared") else {},
        "containers": {"phoenix": phoenix},
    }


def card_of(state: State) -> str:
    """The container's."""
    return "big" if state["use"] in ("lxc", "shared") else "small"


def seen(state: State, had: plan.Wanted) -> HostFacts:
    """The host.

    :param had: what was planned for the last `up`.
    """
    words = {name: f"quiet {had.words if name in state['words'] else ''}" for name in WORDS}
    bound = dict.fromkeys(had.functions, "vfio-pci" if "running" in state["words"] else "nouveau")
    # Proxmox VE binds what a VM that starts has; of a shared card it is noted.
    takes = state["103 runs"] and "hostpci0" in state["VM"]
    driver = "vfio-pci" if takes else state["driver"]
    away = {"away": "gpus.big is with VM 103", "cards": {"big": {"state": "VM", "vm": "103", "boot": "1"}}}
    drivers = {CARD: "nvidia" if card_of(state) == "big" else "nouveau"} | bound
    drivers |= dict.fromkeys((CARD, SOUND), driver) if driver else {}
    lacks = [f"{had.words} is not on the running kernel's command line"] * (had.words not in words["running"])
    lacks += [f"{name} is on {drivers[name]}, not on vfio-pci" for name in bound if drivers[name] != "vfio-pci"]
    files = {"iommu": "/etc/default/grub.d/zz-homelab-iommu.cfg", "vfio": "/etc/scripts/init-top/homelab-vfio"}
    layers = [layer for layer in files if state["file"] and getattr(had, f"{layer}_words")]
    managed = [{"layer": layer, "path": files[layer], "state": state["file"]} for layer in layers]
    if is_in_turn := state["use"] == "shared":
        managed.append({"layer": "handover", "path": "/usr/local/sbin/homelab-handover", "state": "ok"})
    base, other = "bios: ovmf\nmachine: q35\nname: Sandbox\nsmbios1: uuid=1\n", f"machine: q35\nname: Other\n{GIVEN}"
    configs = [("vm", 103, base + state["VM"]), ("lxc", 901, f"hostname: phoenix\n{state['container']}")]
    ledger = dict[str, str]()
    if state["VM's note"] is not None:
        ledger |= vm_note(103, base + GIVEN, "hostpci0", **state["VM's note"])
    if state["container's note"] is not None:
        cards = Cards(minors=(0,), functions=(CARD if card_of(state) == "big" else OTHER,))
        nodes = [line.partition(": ")[2] for line in DEVICE_LINES.splitlines()]
        ledger |= container_note(901, cards, *nodes, **state["container's note"])
    if state["VM 104's owner"]:
        configs.append(("vm", 104, other))
        ledger |= vm_note(104, other, "hostpci0", owner=state["VM 104's owner"])
    guests = {
        "running": [number for number in (103, 104, 901) if state[f"{number} runs"]],
        "configs": [{"kind": kind, "id": number, "lines": lines} for kind, number, lines in configs],
        "mappings": state["entry"] and f"big\n\tmap {state['entry']}\n",
        "reservations": "",
    }
    usual = {
        "cmdline": {**words, "others": "quiet"},
        "boot_lacks": lacks,
        "managed": managed,
        "modules": ["vfio", "vfio_iommu_type1", "vfio_pci", "nvidia", "nvidia_uvm"],
        "nvidia": {"trouble": ["", ""]},
        "nvidia_minors": {CARD: 0, OTHER: 1} if drivers[CARD] == "nvidia" else {OTHER: 0},
        "cluster": {"node": "pve"},
        "agents": {owner("p/s", "pve"): earlier.AGENTS},
        "handover": {
            "enabled": is_in_turn,
            "lost_hooks": state["lost hooks"],
            **(away if takes and is_in_turn else {}),
        },
        "nodes": device_nodes(NODES),
        "ledger": ledger,
        "guests": guests,
    }
    facts = desktop(SMALL, **usual | state["read"])
    return replace(facts, devices=[replace(one, driver=drivers.get(one.address, one.driver)) for one in facts.devices])


@dataclass(frozen=True)
class Heard:
    """What the voices say of a state. `plan`: the preview's text; `refused`: by it; `drift`: a refresh's, by what it is of; `tree`: show's lines."""

    plan: str
    refused: set[str]
    drift: dict[str, list[str]]
    doctor: Whole
    tree: list[TreeNode]


def heard(state: State, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """All of them, of a host that isn't asked."""
    values, known = settings_of(state), parse(settings_of(state))
    one, vms, containers = known.hosts["pve"], known.vms, known.containers
    had = plan.wanted(desktop(SMALL), one)
    read = reading(state["container"], inside(NODES) if state["901 runs"] else None, facts=seen(state, had))
    facts, reboot = read.facts, {"reboot": "no", "boot_id": "1"}
    monkeypatch.setattr(stack_options, "read", lambda _: StackFile(Path("p", "Pulumi.s.yaml"), values))
    monkeypatch.setattr(stack_options, "noted", lambda *_: "p/s")
    monkeypatch.setattr(diagnosis, "read", lambda *_: read)
    monkeypatch.setattr(ssh.Session, "read", lambda *_, **__: facts)
    monkeypatch.setattr(ssh.Session, "plan", lambda _, layers: [*[{"files": []}] * (len(layers) - 1), reboot])
    monkeypatch.setattr(planning, "_with_systems", lambda _, tree, __: (tree, {}))
    monkeypatch.setattr(planning, "_with_stacks", lambda _, tree, __: tree)
    monkeypatch.setattr(api, "check", lambda *_: [])
    tree = planning.planned(Settings("pve", one, vms, containers, "p/s"), facts=facts)
    errors = tree.refusals
    of_host = judge_host(facts, one, had=had, stack="p/s", agent=earlier.AGENTS).drift
    drift = {HOST: [line for of_layer in of_host.values() for line in of_layer]}
    drift[MAPPING] = judge_mapping(facts, one, "big", CARD.partition(".")[0]).steps if vms else []
    gpus = {gpu: plan.card_plan(facts, one, gpu, card["slot"]) for gpu, card in had.gpus.items()}
    for name, of_vm in vms.items():
        wish = preview.wish_of(name, of_vm, one, gpus)
        drift[VM] = judge_vm(seen_of(facts, 103, wish.takes(one.hands_over), "p/s"), wish, facts, "p/s").steps
    inputs = replace(probe("pve"), power=containers["phoenix"].wanted_power)
    drift[CONTAINER] = [] if facts.handover.away else _drift(facts, inputs, "p/s")
    asked = argparse.Namespace(host=None, identity=None)
    nodes = [node for root in show.trees(asked) for node in root.walk()]
    refused = {finding.found for finding in Finding.of(*errors)}
    return Heard("" if errors else text.of_plan(tree), refused, drift, doctor.everything(asked), nodes)


def test_the_voices_say_the_same_of_drawn_states(monkeypatch: pytest.MonkeyPatch) -> None:
    guests = {VM: "VM 103", CONTAINER: "container 901"}
    mounts = "".join(
        f"lxc.cgroup2.devices.allow: c {major}:* rwm\nlxc.mount.entry: /dev/{node} dev/{node} none bind,create=file\n"
        for node, major in (("nvidia0", 195), ("nvidiactl", 195), ("nvidia-uvm", 508))
    )
    left = DEVICE_LINES.partition("\n")[2]

    ct_under_ha = {"cluster": {"node": "pve", "ha": {"resources": "ct: 901\n\tstate started\n"}}}
    plain = {"tables": ["IVRS"], "groups": 21, "kernel_log": "", "interrupts": "plain"}
    # What is drawn -> its kinds, each with what is unusual in it.
    kinds: dict[str, dict[str, State]] = {
        "cards": {
            "in turn": {"use": "shared"},
            "without its hook": {"use": "shared", "lost hooks": ["103"]},
            "with the VM": {"use": "shared", "103 runs": True, "901 runs": False},
            "for containers": {"use": "lxc", "VM": "", "VM's note": None},
            "for the host": {"use": "host", "VM": "", "VM's note": None},
        },
        "boot": {
            "without its words": {"words": ("configured", "generated")},
            "words lost": {"words": ("running", "generated")},
            "menu without words": {"words": ("running", "configured")},
            "undone": {"words": ("configured", "generated"), "read": {"rolled_back": "the boot of 12:00 was undone"}},
            "no menu": {"read": {"pending": ["boot"]}},
            "no initramfs": {"read": {"pending": ["initramfs"]}},
            "not noted": {"read": {"boot_lacks": None}},
            "no IOMMU": {"read": {"iommu": plain | {"groups": 0}}},
        },
        "files": {
            "changed": {"file": "changed"},
            "missing": {"file": "missing"},
            "never written": {"file": "", "words": (), "read": {"boot_lacks": None}},
        },
        "agent": {"gone": {"read": {"agents": {owner("p/s", "pve"): ""}}}},
        "driver": {"another": {"driver": "nouveau"}},
        "log": {
            "of the card": {"read": {"kernel_log": f"[ 9.1] vfio-pci {CARD}: not ready 65535ms after FLR; giving up"}},
            "of the host": {"read": {"kernel_log": "[ 0.1] AMD-Vi: Disabling interrupt remapping", "iommu": plain}},
        },
        "mapping": {
            "gone": {"entry": ""},
            "changed": {"entry": f"id=10de:2b85,iommugroup=9,node=pve,{ENTRY}"},
            "of another node": {"entry": f"id=10de:2b85,iommugroup=9,node=far,{ENTRY}"},
            "of another device": {"entry": "id=144d:a80c,iommugroup=17,node=pve,path=0000:02:00"},
        },
        "VM": {
            "never given": {"VM": "", "VM's note": None},
            "taken out": {"VM": ""},
            "edited": {"VM": f"{GIVEN},x-vga=1"},
            "by address": {"VM": "hostpci0: 0000:01:00,pcie=1", "VM's note": None},
            "a mapping that is gone": {"VM": f"{GIVEN}\nhostpci1: mapping=old"},
            "locked": {"VM": "lock: backup"},
            "others' change waits": {"VM": "[PENDING]\nmemory: 4096", "VM's note": None},
            "under way": {"VM's note": {"before": {"hostpci0": None}}},
            "another stack's": {"VM's note": {"owner": "p/other/a"}},
            "another VM": {"VM's note": {"identity": "2"}},
            "under HA": {"VM": "", "read": UNDER_HA},
            "on": {"103 runs": True},
            "on, to be off": {"103 runs": True, "VM's power": "stopped"},
            "off, to be on": {"VM's power": "running"},
        },
        "VM 104": {
            "has it": {"VM 104's owner": "p/other/a"},
            "runs with it": {"VM 104's owner": "p/other/a", "104 runs": True},
            "of this stack": {"VM 104's owner": "p/s/other", "104 runs": True},
        },
        "container": {
            "never given": {"container": "", "container's note": None},
            "by its owner": {"container": mounts, "container's note": None},
            "a line lost": {"container": left},
            "locked": {"container": f"{left}lock: backup\n"},
            "under way": {"container's note": {"before": {"dev0": None}}},
            "another stack's": {"container's note": {"owner": "p/other/a"}},
            "under HA": {"container": left, "read": ct_under_ha},
            "off": {"901 runs": False},
            "off, to be on": {"901 runs": False, "container's power": "running"},
            "on, to be off": {"container's power": "stopped"},
        },
    }

    # What differs so far, by rule: a kind -> why.
    closed = dict.fromkeys(
        ["log: of the host", "mapping: of another device"], "a gate is closed: nothing else is planned"
    )
    new = dict.fromkeys(["container: never given", "container: by its owner"], "nothing was given that a refresh finds")
    taken = ["driver: another", *(f"VM 104: {kind}" for kind in kinds["VM 104"])]
    given = dict.fromkeys(taken, "a refresh goes by what a container was given")
    left_out: dict[str, dict[str, str]] = {
        "a refresh's step is the doctor's": closed | new | given,
        "a refresh's step is the preview's": new,
        "the doctor's step is a refresh's": new | given,
        "refusals are the doctor's": closed,
    }

    def contradictions(told: Heard) -> Iterator[tuple[str, str, str]]:
        """Each with its rule, and what it is about."""
        of_turn = {turn: [one for one in told.doctor.findings if one.turn is turn] for turn in Turn}
        up = [f"{one.wanted}: {one.found}" for one in of_turn[Turn.UP]]
        drift = [line for lines in told.drift.values() for line in lines]
        for about, lines in told.drift.items():
            if missed := [line for line in lines if not any(line in one for one in up)]:
                yield "a refresh's step is the doctor's", about, f"refresh: {missed}; doctor, up: {up or 'nothing'}"
        if unknown := [one for one in up if not any(line in one for line in drift)]:
            yield "the doctor's step is a refresh's", "all", f"doctor, up: {unknown}; refresh: {drift or 'nothing'}"
        refused = {one.found for one in of_turn[Turn.REFUSED]}
        # That a VM has a card is nothing wrong: the doctor says it in the cures alone.
        if refused != told.refused and not any(one.startswith("gpus.big is with") for one in told.refused):
            yield (
                "refusals are the doctor's",
                "all",
                f"preview: {told.refused or 'nothing'}; doctor: {refused or 'nothing'}",
            )
        for one in of_turn[Turn.PERSON]:
            about = one.wanted.partition(": ")[0]
            if one.next.startswith("`pulumi up"):
                yield "what `up` cures is its turn", about, f"doctor, a person: {one.found} -> {one.next}"
            if about != CONTAINER and not told.refused and one.found not in told.plan:
                yield "what a person meets is the preview's", about, f"doctor: {one.found}; preview: nothing of it"
        cures = [step for step in told.doctor.values()["next"] if step.startswith("`pulumi up")]
        if cures and told.refused:
            yield "no cure is refused", "all", f"preview: {told.refused}; doctor, next: {cures}"
        if len(cures) > 1:
            yield "one `up` cures all", "all", f"doctor, next: {cures}"
        refusals = " ".join(node.text for node in told.tree if node.text.startswith("`pulumi up` refuses: "))
        if unsaid := [one for one in told.refused if one not in refusals]:
            yield "show says what is refused", "all", f"preview: {unsaid}; show: {refusals or 'nothing'}"
        blocks = re.split(r"\n(?=  \S)", told.plan)
        for part, guest in guests.items():
            signs = {one.mark for one in told.tree if one.kind == "guest" and one.text.startswith(guest)} - {"stays"}
            if told.refused:
                if signs:
                    yield "what is refused has no sign", part, f"show: {signs}; preview: {told.refused}"
                continue
            block, lines = (
                next((text for text in blocks if text.startswith(f"  {guest} ")), ""),
                told.drift.get(part, []),
            )
            is_changed = any(said in block for said in (*preview.POWER.values(), "what is noted of it is renewed"))
            if not is_changed and any(line not in block for line in lines):
                yield "a refresh's step is the preview's", part, f"refresh: {lines}; preview: {block}"
            if lines and "no change" in block:
                yield "the preview's head says what its steps do", part, f"preview: {block}"
            steps = {"new": "not there -> ", "gone": ".* -> not there"}
            expected = {mark for mark, step in steps.items() if re.search(rf"hostpci\d+: {step}", block)}
            if part == VM and told.drift[MAPPING]:
                continue  # the mapping is a step of its own, with which the card comes
            if (part == VM and signs & {"new", "gone"} != expected) or (signs and not is_changed):
                yield "signs are steps", part, f"show: {signs or 'none'}; preview: {block or 'nothing'}"

    rng, names = sampling.drawn("voices"), [(name, kind) for name, of_name in kinds.items() for kind in of_name]
    found: dict[str, str] = {}
    for name, kind in names * (40 if sampling.EVERY else 1):
        drawn = {one: rng.choice([*kinds[one]]) for one in rng.sample([*kinds], rng.randrange(4))} | {name: kind}
        state = dict(USUAL)
        for one in sorted(drawn):
            state |= kinds[one][drawn[one]] | {"read": state["read"] | kinds[one][drawn[one]].get("read", {})}
        where = {f"{one}: {drawn[one]}" for one in drawn}
        for rule, about, said in contradictions(heard(state, monkeypatch)):
            if not left_out.get(rule, {}).keys() & where:
                found.setdefault(f"{rule}, {about}, of {'; '.join(sorted(where))}", said)
    assert not found, "\n".join(
        f"{what}\n    {found[what]}" for what in sorted(found, key=lambda what: (what.count(";"), what))
    )


@pytest.mark.parametrize(
    ("unusual", "found", "step"),
    [
        ({"VM's note": {"before": {"hostpci0": None}}}, "the last run didn't finish with it", "`pulumi up --refresh`"),
        ({"VM's note": {"identity": "2"}}, "VM 103 isn't the VM that was given its cards", "`pulumi up --refresh`"),
        ({"VM's power": "running"}, "power: stopped -> running", "`pulumi up --refresh`"),
        ({"VM's power": "stopped", "103 runs": True}, "power: running -> stopped", "`pulumi up --refresh`"),
        (
            {"VM": "", "VM's note": None, "VM 104's owner": "p/s/other", "104 runs": True},
            "hostpci0: not there -> mapping=big,pcie=1",
            "`pulumi up --refresh`",
        ),
        (
            {"VM": "", "VM's note": None, "VM 104's owner": "p/other/a", "104 runs": True},
            "VM 104 (Other) runs with it",
            "shut VM 104 (Other) down",
        ),
        ({"VM": "", "read": UNDER_HA}, "HA manages it (started)", "`ha-manager set vm:103 --state ignored`"),
    ],
)
def test_a_vm_is_told_with_what_cures_it(
    unusual: State, found: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = heard(USUAL | unusual, monkeypatch).doctor
    assert any(found in one.found for one in told.findings)
    (cure,) = told.values()["next"]
    assert cure.startswith(step)


@pytest.mark.parametrize("unusual", [{}, {"VM 104's owner": "p/other/a", "104 runs": True}, {"read": UNDER_HA}])
def test_of_a_vm_that_stays_as_it_is_nothing_is_wrong(unusual: State, monkeypatch: pytest.MonkeyPatch) -> None:
    told = heard(USUAL | unusual, monkeypatch)
    assert told.doctor.well and told.refused == set()


@pytest.mark.parametrize(
    ("unusual", "gone", "is_refused"),
    [
        ({"VM": f"{GIVEN}\nhostpci1: mapping=old"}, "there is no mapping old for this node (mappings: big)", False),
        (
            {"VM": f"{GIVEN}\nhostpci1: mapping=old", "VM's power": "running"},
            "there is no mapping old for this node (mappings: big)",
            True,
        ),
        ({"VM": f"{GIVEN}\nhostpci1: 0000:09:00,pcie=1"}, "there is no 0000:09:00", False),
    ],
)
def test_an_owners_option_that_stops_a_start_is_told_with_both_cures(
    unusual: State, gone: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = heard(USUAL | unusual, monkeypatch)
    assert any(gone in text for text in told.refused) is is_refused
    doctors = " ".join(one.found + one.next for one in told.doctor.findings)
    for said in (doctors,) if is_refused else (doctors, told.plan):
        assert gone in said
        assert (
            "make the mapping again (Datacenter -> Resource Mappings)" in said
            and "`qm set 103 --delete hostpci1`" in said
        )
