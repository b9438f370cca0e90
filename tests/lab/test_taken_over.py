"""A card that a VM has by its owner's own lines: replaced with its options kept, and given back byte for byte, whatever happens in between.

What becomes of which line: tests/unit/test_vm_config.py. From `init` to `destroy`: tests/e2e/test_by_hand.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider import vm_cards
from homelab.provider.card_mapping import CardMappingWork
from homelab.provider.gpu_lease import GpuLeaseWork
from homelab.provider.vm_cards import VmCardsWork
from homelab.remote import ssh
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox.machine import Machine
from homelab.resources.card_mapping import CardMapping
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.vm_cards import VmCards
from homelab.shapes import BootSeen, ShutdownInputs
from lab import Lab
from tests import forked_agent
from tests.lab.killed_kit import KilledError, killed_after, until_done
from tests.lab.test_proxmox_api import client, host_of, map_card
from tests.sampling import paired, sample
from tests.waiting import wait_until

NODE, VM, SLOT = "pve", 103, "0000:01:00"
CARD: dict[str, Any] = {"gpu": "rtx5090", "mapping": "rtx5090", "slot": SLOT, "take_over": True}
LINES = {"hostpci0": f"{SLOT}.1,pcie=1", "hostpci2": f"{SLOT}.0,pcie=1,x-vga=1,romfile=5090.rom"}
OURS = "hostpci2: mapping=rtx5090,pcie=1,x-vga=1,romfile=5090.rom"
ENTRY = {"path": SLOT, "id": "10de:2b85", "iommugroup": "14", "subsystem-id": "1043:89e3"}
SHUTDOWN = ShutdownInputs(timeout=1, otherwise="fail")


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("taken-over") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """VM 103 runs with the card, by a line for each function, and has a snapshot with other ones. VM 104, which is off, has it by hand as well."""
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    map_card(shared_lab)
    lines = " ".join(f"--{key} {value}" for key, value in LINES.items())
    done = shared_lab.run(
        f"qm stop {VM}; qm set {VM} --hostpci0 {SLOT}; qm snapshot {VM} before; qm set {VM} {lines}; qm start {VM}; "
        f"qm create 104 --name gaming --machine q35 --memory 2048 --hostpci0 {SLOT},pcie=1; qm status {VM}"
    )
    assert "running" in done.stdout, done.stderr
    yield shared_lab
    shared_lab.reset()


class Run:
    """The resources of one stack, as the engine drives them; the state is kept in between, unless it is lost."""

    def __init__(self, lab: Lab, **card: Any) -> None:
        host = host_of(lab).model_dump(mode="json", by_alias=True)
        vms = {"sandbox": {"host": NODE, "vmid": VM, "gpus": [{"gpu": "rtx5090", "takeOver": True}]}}
        self.stack = {"hosts": json.dumps({NODE: host}), "vms": json.dumps(vms)}
        self.about: dict[str, Any] = {"host": NODE, "node": NODE, "vm": "sandbox", "vmid": VM, "power": "keep"}
        self.about["shutdown"] = SHUTDOWN
        self.inputs = VmCards.Inputs(
            **self.about, cards=[{**CARD, **card}], display="keep", shared_onboot=False, instance="", goes_away=False, boot=BootSeen(id="b", stopped=[], at=0)
        )  # fmt: skip
        self.lease = GpuLease.Inputs(
            host=NODE, node=NODE, mapping="rtx5090", slot=SLOT, vm="sandbox", vmid=VM, shutdown=SHUTDOWN
        )
        self.leased = GpuLease.Outputs(by_hand=False)
        self.noted: VmCards.Outputs | None = None
        self.urn = ""

    def up(self) -> None:
        if self.noted is None:
            self.leased = GpuLeaseWork(self.stack).create(self.lease)
        work = VmCardsWork(self.stack, self.urn)
        try:
            self.noted = (
                work.create(self.inputs) if self.noted is None else work.update(self.inputs, self.inputs, self.noted)
            )
        except HomelabError as error:
            self.noted = error.outputs or self.noted
            raise

    def destroy(self) -> None:
        assert self.noted is not None
        VmCardsWork(self.stack).delete(self.inputs, self.noted)
        GpuLeaseWork(self.stack).delete(self.lease, self.leased)


def conf(lab: Lab, vmid: int = VM) -> str:
    return (lab.root / f"etc/pve/qemu-server/{vmid}.conf").read_text()


def in_force(lab: Lab) -> list[str]:
    return [line for line in conf(lab).partition("\n[")[0].splitlines() if line.startswith("hostpci")]


def notes(lab: Lab) -> list[str]:
    folder = lab.root / "var/lib/homelab/ledger/vm"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def mappings(lab: Lab) -> list[str]:
    return [mapping["id"] for mapping in client(lab).get("cluster/mapping/pci", "mappings")]


def runs_with_card(lab: Lab) -> bool:
    reserved = (lab.root / "run/qemu-server/pci-id-reservations").read_text()
    return all(f"{SLOT}.{number} {VM} " in reserved for number in (0, 1))


def power(lab: Lab, mark: Any) -> list[str]:
    calls = [call for call in lab.api_calls(mark) if call["method"] == "POST" and "/status/" in call["path"]]
    return [call["path"].rpartition("/")[2] for call in calls]


def test_all_of_it_comes_back(lab: Lab) -> None:
    before, others, run, mark = conf(lab), conf(lab, 104), Run(lab), lab.mark()
    run.up()
    assert in_force(lab) == [OURS] and runs_with_card(lab) and power(lab, mark) == ["shutdown", "start"]
    assert before.partition("\n[before]")[2] == conf(lab).partition("\n[before]")[2] != ""
    mark = lab.mark()
    run.up()
    assert in_force(lab) == [OURS] and power(lab, mark) == []
    run.destroy()
    assert (conf(lab), conf(lab, 104), notes(lab)) == (before, others, [])
    assert runs_with_card(lab)


def test_without_a_yes_nothing_is_changed(lab: Lab) -> None:
    before, mark = conf(lab), lab.mark()
    with pytest.raises(HomelabError, match="takeOver: true"):
        Run(lab, take_over=False).up()
    assert (conf(lab), notes(lab), power(lab, mark)) == (before, [], [])


def test_a_rom_of_the_settings_and_an_address_are_set(lab: Lab) -> None:
    lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2")
    before, run = conf(lab), Run(lab, take_over=False, by_address=True, romfile="5090.rom")
    run.up()
    assert in_force(lab) == [f"hostpci0: host={SLOT},pcie=1,romfile=5090.rom"]
    run.destroy()
    assert (conf(lab), notes(lab)) == (before, [])


def test_a_line_of_any_words_comes_back_byte_for_byte(lab: Lab) -> None:
    """PVE::QemuServer::PCI: a romfile is all but `,` and `;`. PVE::JSONSchema, get_options: what is said at a shell is read by the locale."""
    line = f'{SLOT},pcie=1,romfile=it\'s "$(reboot)" `x` $HOME größer €.rom,sub-vendor-id=0x1043'
    lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2")
    path = lab.root / f"etc/pve/qemu-server/{VM}.conf"
    path.write_text(path.read_text().replace("\nmachine:", f"\nhostpci0: {line}\nmachine:", 1))
    before, run = conf(lab), Run(lab)
    run.up()
    assert in_force(lab) == [f"hostpci0: {line.replace(SLOT, 'mapping=rtx5090')}"]
    run.destroy()
    assert conf(lab) == before


KILLED: dict[str, tuple[type[Any], str]] = {
    "before it is noted": (ssh.Session, "_run"),
    "between the note and the change": (VmCardsWork, "bring_into_force"),
    "before the change": (Machine, "_put"),
    "before the shutdown": (Machine, "_restart"),
    "before the start": (Machine, "start"),
}


@pytest.mark.parametrize("when", sample(list(KILLED), 1, "a killed run whose state is lost"))
def test_a_run_that_is_killed_and_whose_state_is_lost_loses_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """With its state: the next test."""
    before, run = conf(lab), Run(lab)
    owner, name = KILLED[when]

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(owner, name, killed)
        run.up()
    run = Run(lab)
    run.up()
    assert in_force(lab) == [OURS] and runs_with_card(lab)
    run.destroy()
    assert (conf(lab), notes(lab)) == (before, []) and runs_with_card(lab)


def test_a_run_that_is_killed_after_any_change_goes_on_until_all_of_it_is_given_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it gives the VM its card, while it takes its display as well, and while it gives both back."""
    before, run = conf(lab), Run(lab)
    until_done(monkeypatch, run.up)
    assert in_force(lab) == [OURS] and runs_with_card(lab)
    run.inputs = dataclasses.replace(run.inputs, display="none")
    until_done(monkeypatch, run.up)
    assert "\nvga: none\n" in conf(lab) and in_force(lab) == [OURS] and runs_with_card(lab)
    until_done(monkeypatch, run.destroy)
    assert (conf(lab), notes(lab)) == (before, []) and runs_with_card(lab)


def test_a_run_that_is_killed_before_it_notes_its_shutdown_of_a_vm_leaves_it_off(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its owner may have shut it down in the same moment, and starts it."""
    before, run = conf(lab), Run(lab)

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as once, pytest.raises(KilledError):
        once.setattr(Machine, "_note_task", killed)
        run.up()
    wait_until(lambda: "stopped" in lab.run(f"qm status {VM}").stdout)
    run.up()
    assert "root@pam has switched it off since, and it isn't certain that this program did" in capsys.readouterr().out
    assert "stopped" in lab.run(f"qm status {VM}").stdout
    lab.run(f"qm start {VM}")
    assert in_force(lab) == [OURS] and runs_with_card(lab)
    run.destroy()
    assert (conf(lab), notes(lab)) == (before, []) and runs_with_card(lab)


# Of giving a VM its card, by what the run has changed by then: noted, written, noted that it runs, shut down, started.
CHANGES = 5


@pytest.mark.parametrize(
    ("while_it", "number"),
    sample(
        [(one, number) for one in ("creates", "updates") for number in range(CHANGES)], 1, "changes before a destroy"
    ),
)
def test_a_destroy_right_after_a_killed_run_gives_everything_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, while_it: str, number: int
) -> None:
    """The state doesn't know what that run has done: a VmCards that it has goes by the host's notes as well; for one that it hasn't, the card's mapping does."""
    run = Run(lab)
    mapping = CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="rtx5090", entry=ENTRY)
    mapped, before = CardMappingWork(run.stack).create(mapping), conf(lab)
    if while_it == "updates":
        run.up()
        run.inputs = dataclasses.replace(run.inputs, display="none")
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, number)
        run.up()
    if run.noted is not None:
        run.destroy()
    else:
        GpuLeaseWork(run.stack).delete(run.lease, run.leased)
    CardMappingWork(run.stack).delete(mapping, mapped)
    assert (conf(lab), notes(lab)) == (before, []) and runs_with_card(lab)


@pytest.mark.parametrize("number", sample(range(1, CHANGES), 1, "changes of a VM that had its card"))
def test_a_vm_that_had_its_card_gets_back_what_changed_for_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its hostpci option is as wanted, so it isn't recorded; the display is. The run is killed, and a destroy follows."""
    lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm set {VM} --hostpci0 mapping=rtx5090,pcie=1")
    lab.run(f"qm start {VM}")
    run = Run(lab, take_over=False)
    run.inputs = dataclasses.replace(run.inputs, display="none")
    mapping = CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="rtx5090", entry=ENTRY)
    mapped, before = CardMappingWork(run.stack).create(mapping), conf(lab)
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, number)
        run.up()
    assert run.noted is None
    GpuLeaseWork(run.stack).delete(run.lease, run.leased)
    CardMappingWork(run.stack).delete(mapping, mapped)
    assert (conf(lab), notes(lab)) == (before, [])


@pytest.mark.parametrize(
    ("card", "number"), paired(["given", "taken over", "shared"], range(CHANGES), "changes before a VM leaves")
)
def test_a_vm_that_leaves_after_a_killed_run_is_noted_no_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, card: str, number: int
) -> None:
    """No state has its VmCards; the lease of its card gives back all of it."""
    if card != "taken over":
        lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}")
    before, run = conf(lab), Run(lab, take_over=card == "taken over")
    if card == "shared":
        hosts = json.loads(run.stack["hosts"])
        hosts[NODE]["gpus"] = {"rtx5090": {"match": "10de:2b85", "use": "shared"}}
        hosts[NODE]["nvidia"] = {}
        run.stack["hosts"] = json.dumps(hosts)
    run.inputs = dataclasses.replace(run.inputs, display="none")
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, number)
        run.up()
    GpuLeaseWork({**run.stack, "vms": "{}"}).delete(run.lease, run.leased)
    assert (conf(lab), notes(lab)) == (before, [])


def keyed_anew(run: Run) -> None:
    """The settings: gpus.rtx5090 has become gpus.card, with the same mapping."""
    hosts, vms = json.loads(run.stack["hosts"]), json.loads(run.stack["vms"])
    hosts[NODE]["gpus"] = {"card": {"match": "10de:2b85", "mapping": "rtx5090"}}
    vms["sandbox"]["gpus"][0]["gpu"] = "card"
    run.stack = {**run.stack, "hosts": json.dumps(hosts), "vms": json.dumps(vms)}


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_card_with_another_key_and_the_same_mapping_stays(lab: Lab, by_hand: bool) -> None:
    """The engine makes what has the new key, changes the VM's cards, and deletes what has the old one after that."""
    if not by_hand:
        lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}")
    before, run = conf(lab), Run(lab, take_over=by_hand)
    old = CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="rtx5090", entry=ENTRY)
    mapped = CardMappingWork(run.stack).create(old)
    run.up()
    given, lease, leased, mark = in_force(lab), run.lease, run.leased, lab.mark()
    keyed_anew(run)
    new, had = dataclasses.replace(old, gpu="card"), run.inputs
    mapped_anew = CardMappingWork(run.stack).create(new)
    run.leased = GpuLeaseWork(run.stack).create(run.lease)
    run.inputs = dataclasses.replace(had, cards=[{**had.cards[0], "gpu": "card"}])
    assert run.noted is not None
    run.noted = VmCardsWork(run.stack).update(run.inputs, had, run.noted)
    GpuLeaseWork(run.stack).delete(lease, leased)
    CardMappingWork(run.stack).delete(old, mapped)
    assert in_force(lab) == given and runs_with_card(lab) and power(lab, mark) == [] and notes(lab) == [str(VM)]
    assert mappings(lab) == ["rtx5090"]
    run.destroy()
    CardMappingWork(run.stack).delete(new, mapped_anew)
    assert (conf(lab), notes(lab), mapped_anew) == (before, [], mapped)


@pytest.mark.parametrize("number", sample([0, 1], 1, "changes before a destroy of a mapping"))
def test_a_destroy_gives_back_a_mapping_that_a_killed_run_has_taken_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    lab.run("pvesh delete /cluster/mapping/pci/rtx5090")
    run = Run(lab)
    old = CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="rtx5090", entry=ENTRY)
    mapped = CardMappingWork(run.stack).create(old)
    keyed_anew(run)
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, number)
        CardMappingWork(run.stack).create(dataclasses.replace(old, gpu="card", live_migration=True))
    CardMappingWork(run.stack).delete(old, mapped)
    ledger_of_host = ssh.read(host_of(lab)).ledger
    CardMappingWork(run.stack).remove_unfinished(NODE, NODE, ledger_of_host)
    assert mappings(lab) == [] and ssh.read(host_of(lab)).ledger == {}


@pytest.mark.parametrize("killed", [False, True])
def test_another_stack_leaves_the_card_of_a_vm_of_this_one(lab: Lab, killed: bool) -> None:
    """It offers the same card of the same host, has no VM, and is destroyed, the mapping known to its state or not."""
    one, other = (f"urn:pulumi:{stack}::homelab::homelab:x::pve" for stack in ("one", "other"))
    run, mapping = Run(lab), CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="rtx5090", entry=ENTRY)
    run.urn = one
    CardMappingWork(run.stack, one).create(mapping)
    run.up()
    given, mark = in_force(lab), lab.mark()
    settings = {**run.stack, "vms": "{}"}
    made = CardMappingWork(settings, other).create(mapping)
    if killed:
        notes_of_host = ssh.read(host_of(lab)).ledger
        CardMappingWork(settings, other).remove_unfinished(NODE, NODE, notes_of_host)
    else:
        CardMappingWork(settings, other).delete(mapping, made)
        GpuLeaseWork(settings, other).delete(run.lease, GpuLease.Outputs(by_hand=True))
    assert in_force(lab) == given and notes(lab) == [str(VM)] and power(lab, mark) == []
    assert mappings(lab) == ["rtx5090"]


def test_a_run_that_fails_leaves_what_was_there_in_the_state(lab: Lab) -> None:
    run = Run(lab)
    lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(HomelabError):
        run.up()
    assert run.noted is not None and run.noted.drift and run.noted.state == ""
    assert run.noted.record["hostpci2"]["before"] == LINES["hostpci2"]
    assert VmCardsWork(run.stack).read(run.inputs, run.noted).drift, "a refresh asks for it again"


def test_a_state_that_is_lost_is_taken_over_again_with_what_was_there_at_first(lab: Lab) -> None:
    before = conf(lab)
    Run(lab).up()
    again, mark = Run(lab), lab.mark()
    again.up()
    assert in_force(lab) == [OURS] and power(lab, mark) == []
    again.destroy()
    assert (conf(lab), notes(lab)) == (before, []), "its lease leaves it, too: its owner had given the card"


def test_a_guest_that_wont_go_off_keeps_its_lines(lab: Lab) -> None:
    before = conf(lab)
    lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(HomelabError, match="it is still on"):
        Run(lab).up()
    assert conf(lab) == before


def failed_update(lab: Lab, run: Run) -> None:
    """The VM doesn't shut down for its new lines, and keeps those that it had from this program."""
    before = in_force(lab)
    lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(HomelabError, match="it is still on"):
        run.up()
    lab.fault("guest-ignores-shutdown", None)
    assert in_force(lab) == before


@pytest.mark.parametrize(("times", "ledger_lost"), paired([1, 2], [False, True], "updates that were taken back"))
def test_a_destroy_after_an_update_that_was_taken_back_gives_all_back(lab: Lab, times: int, ledger_lost: bool) -> None:
    before, run = conf(lab), Run(lab)
    run.up()
    for number in range(times):
        run.inputs = dataclasses.replace(run.inputs, cards=[{**CARD, "rombar": False, "x_vga": number == 1}])
        failed_update(lab, run)
    if ledger_lost:
        shutil.rmtree(lab.root / "var/lib/homelab/ledger")
    run.destroy()
    assert (conf(lab), notes(lab)) == (before, [])


def test_what_was_given_back_is_its_owners_from_then_on(lab: Lab) -> None:
    run = Run(lab)
    run.inputs = dataclasses.replace(run.inputs, display="none")
    run.up()
    run.inputs = dataclasses.replace(run.inputs, display="keep")
    run.up()
    assert run.noted is not None and run.noted.restore == {} and "vga: " not in conf(lab).partition("\n[")[0]
    assert '"vga"' not in (lab.root / f"var/lib/homelab/ledger/vm/{VM}").read_text()
    lab.run(f"qm stop {VM}; qm set {VM} --vga none; qm start {VM}")
    run.inputs = dataclasses.replace(run.inputs, cards=[])
    run.up()
    assert notes(lab) == [] and "\nvga: none" in conf(lab).partition("\n[")[0]
    run.destroy()
    assert "\nvga: none" in conf(lab).partition("\n[")[0]


def test_a_card_leaves_after_an_update_that_was_taken_back(lab: Lab) -> None:
    run = Run(lab)
    run.up()
    run.inputs = dataclasses.replace(run.inputs, cards=[{**CARD, "rombar": False}])
    failed_update(lab, run)
    run.inputs = dataclasses.replace(run.inputs, cards=[])
    run.up()
    assert in_force(lab) == [f"{key}: {line}" for key, line in LINES.items()]


def test_what_wasnt_given_back_after_all_and_is_wanted_again_stays(lab: Lab) -> None:
    before, run = conf(lab), Run(lab)
    wanted = run.inputs = dataclasses.replace(run.inputs, display="none")
    run.up()
    run.inputs = dataclasses.replace(run.inputs, cards=[], display="keep")
    failed_update(lab, run)
    run.inputs = wanted
    run.up()
    assert in_force(lab) == [OURS] and "\nvga: none" in conf(lab).partition("\n[")[0]
    run.destroy()
    assert (conf(lab), notes(lab)) == (before, [])


def test_a_value_that_a_run_has_replaced_is_its_owners_from_then_on(lab: Lab) -> None:
    run = Run(lab)
    run.up()
    run.inputs = dataclasses.replace(run.inputs, cards=[{**CARD, "rombar": False}])
    failed_update(lab, run)
    run.up()
    assert "rombar=0" in in_force(lab)[0] and run.noted is not None
    assert not any("was" in entry for entry in run.noted.record.values())
    assert '"was"' not in (lab.root / f"var/lib/homelab/ledger/vm/{VM}").read_text()
    lab.run(f"qm stop {VM}; qm set {VM} --{OURS.replace(': ', ' ')}")
    run.destroy()
    assert OURS in in_force(lab)


def test_a_vm_keeps_no_mapping_that_goes_after_an_update_that_was_taken_back(lab: Lab) -> None:
    lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}")
    entry = {"path": SLOT, "id": "10de:2b85", "iommugroup": "14", "subsystem-id": "1043:89e3"}
    run = Run(lab, take_over=False)
    CardMappingWork(run.stack).create(
        CardMapping.Inputs(host=NODE, node=NODE, gpu="rtx5090", mapping="new", entry=entry)
    )
    run.up()
    run.inputs = dataclasses.replace(run.inputs, cards=[{**CARD, "mapping": "new", "take_over": False}])
    failed_update(lab, run)
    assert run.noted is not None
    VmCardsWork(run.stack).delete(run.inputs, run.noted)
    assert in_force(lab) == []


def test_a_start_that_fails_has_its_lines_back(lab: Lab) -> None:
    lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(HomelabError, match="has its old configuration back"):
        Run(lab).up()
    assert in_force(lab) == [f"{key}: {value}" for key, value in LINES.items()]


@pytest.mark.parametrize(("fault", "times"), [("config-lock", 2), ("foreign-change", 1)])
def test_what_gets_in_the_way_is_outlasted(lab: Lab, fault: str, times: int) -> None:
    lab.fault(fault, times)
    Run(lab).up()
    assert in_force(lab) == [OURS]


def test_what_is_refused_is_said_in_proxmox_ves_words(lab: Lab) -> None:
    before, run = conf(lab), Run(lab)
    run.inputs = dataclasses.replace(run.inputs, cards=[{**CARD, "mapping": "no mapping's id"}])
    with pytest.raises(HomelabError) as error:
        run.up()
    assert "400" in error.value.found and "mapping" in error.value.found
    assert conf(lab) == before


def test_what_its_owner_has_changed_since_stays_and_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = Run(lab), list[str]()
    run.up()
    changed = "mapping=rtx5090,pcie=1,romfile=better.rom"
    lab.run(f"qm stop {VM}; qm set {VM} --hostpci2 {changed}")
    monkeypatch.setattr(vm_cards, "tell", said.append)
    assert VmCardsWork(run.stack).read(run.inputs, run.noted).drift  # type: ignore[arg-type]
    run.destroy()
    assert f"hostpci2: {changed}" in in_force(lab)
    assert any(changed in line and LINES["hostpci2"] in line for line in said), said


def test_a_line_that_its_owner_has_set_since_comes_back_after_a_card_of_ours(lab: Lab) -> None:
    """The lease has given the card, and takes away only that."""
    lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2")
    run = Run(lab)
    run.up()
    lab.run(f"qm set {VM} --hostpci0 {SLOT},pcie=1,romfile=own.rom")
    before = conf(lab)
    run.up()
    assert in_force(lab) == ["hostpci0: mapping=rtx5090,pcie=1,romfile=own.rom"]
    run.destroy()
    assert in_force(lab) == [line for line in before.splitlines() if line.startswith("hostpci0")][:1]


def test_a_snapshot_that_is_returned_to_is_taken_over_anew_and_comes_back(lab: Lab) -> None:
    run = Run(lab)
    run.up()
    lab.run(f"qm stop {VM}; qm rollback {VM} before")
    returned = in_force(lab)
    run.up()
    assert [line for line in in_force(lab) if SLOT in line] == []
    run.destroy()
    assert in_force(lab) == returned != []


def test_a_guest_that_wont_go_off_keeps_what_its_owner_had_waiting(lab: Lab) -> None:
    """PVE::API2::Qemu: `revert` drops what waits, whoever wrote it."""
    lab.run(f"qm set {VM} --hostpci2 {SLOT}.0,pcie=1,romfile=new.rom --delete hostpci0")
    before = conf(lab)
    assert "[PENDING]" in before
    lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(HomelabError, match="it is still on"):
        Run(lab).up()
    assert conf(lab) == before
