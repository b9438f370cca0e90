"""What holds of a VM's cards as one transaction on the host alone: its options, by Proxmox VE's API. (Of containers, too: test_guest_transaction.py.)"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.remote import ssh
from homelab.vm import plan
from homelab.vm.cards import VmCard, Wish
from lab.control import request
from remote_scripts.both.free_card import Wanted as FreeCard
from remote_scripts.both.guest_cards import Wanted
from remote_scripts.guests import guest as guest_module
from remote_scripts.guests import power, requests
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import GuestApi
from remote_scripts.layers import free_card, guest_cards
from remote_scripts.notes.guest_note import Note
from remote_scripts.pve import api, guest_kinds, guest_tasks, pmxcfs
from remote_scripts.tools import passes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests import sampling
from tests.lab.stack_kit import host_of
from tests.lab.transaction_kit import CARD, LINES, NODE, OURS, OWN, SHUT_DOWN, SLOT, VM, World, prepared, world

__all__ = ["prepared", "world"]


@pytest.fixture(scope="module")
def kind() -> type[World]:
    return World


def note(world: World) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads((world.lab.root / f"etc/pve/homelab/qemu-{VM}").read_text())
    return noted


def test_a_reading_of_the_host_knows_what_is_homelabs(world: World) -> None:
    """So a preview decides by the same as a run."""
    world.up(OWN)
    facts = ssh.read(host_of(world.lab), guests=True)
    seen, answer = plan.seen_of(facts, VM), world.read()
    assert {key: answer.base[key] for key in LINES} == LINES
    assert seen.base.items() <= answer.base.items() and seen.config.items() <= answer.config.items()
    assert facts.given_by_homelab(SLOT, VM)
    wish = Wish("sandbox", VM, [OWN])
    assert plan.judge_vm(seen, wish, facts).change == {}
    world.lab.run(f"qm set {VM} --delete hostpci2 --cores 3")  # it runs: both wait
    facts = ssh.read(host_of(world.lab), guests=True)
    answer, config = world.read(), facts.guests.config(VM)
    by_run = plan.judge_vm(plan.SeenVm(answer.config, answer.base, answer.originals), wish, facts)
    assert by_run.change == plan.judge_vm(plan.seen_of(facts, VM), wish, facts).change != {}
    assert config and {"hostpci2", "cores"} <= config.waiting.keys()


def test_a_line_of_any_words_comes_back_byte_for_byte(world: World) -> None:
    line = f'{SLOT},pcie=1,romfile=it\'s "$(reboot)" `x` $HOME größer €.rom,sub-vendor-id=0x1043'
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2")
    path = world.lab.root / f"etc/pve/qemu-server/{VM}.conf"
    path.write_text(path.read_text().replace("\nmachine:", f"\nhostpci0: {line}\nmachine:", 1))
    before = world.conf()
    world.up(OWN)
    assert world.in_force() == [f"hostpci0: {line.replace(SLOT, 'mapping=rtx5090')}"]
    world.destroy()
    assert world.conf() == before


def test_a_guest_that_wont_go_off_keeps_what_its_owner_had_waiting(world: World) -> None:
    world.lab.run(f"qm set {VM} --hostpci2 {SLOT}.0,pcie=1,romfile=new.rom --delete hostpci0")
    before = world.conf()
    assert "[PENDING]" in before
    world.lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(Failure, match=f"VM {VM}"):
        world.up(OWN)
    assert world.conf() == before


def test_a_start_that_fails_has_its_lines_back(world: World) -> None:
    world.lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(Failure, match="out of luck"):
        world.up(OWN)
    assert world.in_force() == [f"{key}: {value}" for key, value in LINES.items()]


@pytest.mark.parametrize("is_done", sampling.sample([True, False], 1, "an error"))
def test_what_ends_with_an_error_is_read_back(world: World, is_done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it may be done all the same, or a part."""
    before, real, failing = world.conf(), world.exchange, [True]

    def exchange(system: System, text: bytes) -> bytes:
        if not text.startswith(b"PUT") or not failing:
            return real(system, text)
        failing.clear()
        if is_done:
            real(system, text)
        else:
            world.lab.run(f"qm set {VM} --delete hostpci0")
        return b"HTTP/1.1 500 out of luck\r\n\r\n"

    monkeypatch.setattr(api, "exchange", exchange)
    if not is_done:
        with pytest.raises(Failure, match="out of luck"):
            world.up(OWN)
        assert (world.conf(), world.notes()) == (before, []) and world.runs()
    world.up(OWN)
    assert world.in_force() == [OURS] and failing == []


def test_what_is_asked_for_by_another_configuration_changes_nothing(world: World) -> None:
    before = world.conf()
    wanted = Wanted(vmid=VM, options={"hostpci0": None}, digest="of another one")
    assert not guest_cards.apply(world.system(), wanted).done
    assert (world.conf(), world.notes()) == (before, [])


def test_what_its_owner_has_changed_since_stays_and_is_told(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.up(OWN)
    changed = "mapping=rtx5090,pcie=1,romfile=better.rom"
    world.lab.run(f"qm stop {VM}; qm set {VM} --hostpci2 {changed}")
    world.destroy()
    assert f"hostpci2: {changed}" in world.in_force()
    before = f"and stays so (before this program it was {LINES['hostpci2']})"
    assert f"note: hostpci2 is {changed}, {before}" in capfd.readouterr().err


def test_a_snapshot_that_is_returned_to_is_taken_over_anew_and_comes_back(world: World) -> None:
    world.up(OWN)
    world.lab.run(f"qm stop {VM}; qm rollback {VM} before")
    returned = world.in_force()
    world.up(OWN)
    assert [line for line in world.in_force() if SLOT in line] == []
    world.destroy()
    assert world.in_force() == returned != []


def test_a_card_leaves_after_an_update_that_was_taken_back(world: World) -> None:
    world.up(OWN)
    world.lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(Failure):
        world.up(VmCard(**{**CARD, "rombar": False}))
    world.lab.fault("guest-ignores-shutdown", None)
    world.up()
    assert world.in_force() == [f"{key}: {line}" for key, line in LINES.items()] and world.notes() == []


def test_what_wasnt_given_back_after_all_and_is_wanted_again_stays(world: World) -> None:
    before = world.conf()
    world.up(OWN, display="none")
    world.lab.fault("guest-ignores-shutdown", VM)
    with pytest.raises(Failure, match=f"VM {VM}"):
        world.up()
    world.lab.fault("guest-ignores-shutdown", None)
    mark = world.lab.mark()
    world.up(OWN, display="none")
    assert world.in_force() == [OURS] and "\nvga: none\n" in world.conf() and world.power(mark) == []
    world.destroy()
    assert (world.conf(), world.notes()) == (before, [])


def test_a_value_that_a_run_has_replaced_is_its_owners_from_then_on(world: World) -> None:
    world.up(OWN)
    world.up(VmCard(**{**CARD, "rombar": False}))
    world.lab.run(f"qm stop {VM}; qm set {VM} --{OURS.replace(': ', ' ')}")
    world.destroy()
    assert world.in_force() == [OURS]


def test_what_gets_in_the_way_is_outlasted(world: World) -> None:
    for fault, times in (("config-lock", 2), ("foreign-change", 1)):
        world.lab.fault(fault, times)
        assert any(world.up(OWN).done for _ in range(3)) and world.in_force() == [OURS], fault
        world.destroy()


SECOND: dict[str, Any] = {"gpu": "second", "mapping": "second", "slot": "0000:41:00"}


def test_a_card_that_moves_is_taken_out_of_its_vm_first(world: World) -> None:
    """Both run; the one that loses its card is given back all of it, its display too."""
    world.lab.run(
        f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}; qm set 104 --delete hostpci0; qm start 104"
    )
    plain, before, other = VmCard(**{**CARD, "take_over": False}), world.conf(), world.conf(104)
    world.up(plain, display="none")
    mark = world.lab.mark()
    assert world.free("rtx5090", SLOT, vm104=("rtx5090",))
    world.up(plain, vmid=104, owner="p/s/gaming")
    assert world.conf() == before and world.runs() and "hostpci0: mapping=rtx5090,pcie=1" in world.conf(104)
    assert world.power(mark) == ["shutdown", "start"] * 2 and world.notes() == ["qemu-104"]
    world.destroy()
    world.destroy(104, "p/s/gaming")
    assert (world.conf(), world.conf(104), world.notes()) == (before, other, [])


def test_a_card_that_its_owner_gave_by_hand_is_taken_from_nobody(world: World) -> None:
    """Without this program the VM has it again: whoever is to have it is refused, and no VM is restarted for nothing."""
    for by_hand in (True, False):
        if not by_hand:
            world.destroy()
            world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2")
        world.up(OWN)
        facts = ssh.read(host_of(world.lab), guests=True)
        assert plan.seen_of(facts, 104, ("rtx5090", SLOT), "p/s").losers == ([] if by_hand else [VM])


@pytest.mark.parametrize("switch", sampling.sample(["shutdown", "start"], 1, "switched"))
def test_while_a_vm_that_loses_a_card_is_switched_the_host_is_held_by_none_and_the_others_turn_is_free(
    world: World, switch: str
) -> None:
    """Its hookscript takes the host's lock; and that VM may just take a card from this one."""
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}; qm set 104 --delete hostpci0")
    plain, seen = VmCard(**{**CARD, "take_over": False}), list[bool]()
    world.up(plain)

    def look() -> None:
        work = world.system().work
        for name in ("lock", "guest-104", f"guest-{VM}"):
            with work.holding(name, 0) as is_free:
                seen.append(is_free)

    world.then = ("POST", f"{VM}/status/{switch}", look)
    world.free("rtx5090", SLOT, vm104=("rtx5090",))
    assert seen == [True, True, False]


def test_killed_after_any_change_a_card_leaves_its_vm_for_another_or_for_none(world: World) -> None:
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm start {VM}; qm set 104 --delete hostpci0")
    plain, before, other = VmCard(**{**CARD, "take_over": False}), world.conf(), world.conf(104)
    world.up(plain, display="none")
    assert world.until_done(lambda: world.free("rtx5090", SLOT, vm104=("rtx5090",))) >= SHUT_DOWN - 1
    assert world.conf() == before and world.runs() and world.notes() == []
    world.until_done(lambda: world.up(plain, vmid=104, owner="p/s/gaming"))
    assert "hostpci0: mapping=rtx5090,pcie=1" in world.conf(104) and world.notes() == ["qemu-104"]
    assert world.until_done(lambda: world.free(plain.mapping, plain.slot))
    assert (world.conf(), world.conf(104), world.notes()) == (before, other, [])


def test_of_two_cards_one_moves(world: World) -> None:
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2; qm stop 104; qm set 104 --delete hostpci0")
    plain, second = VmCard(**{**CARD, "take_over": False}), VmCard(**SECOND, by_address=True)
    world.up(plain, second)
    world.free("rtx5090", SLOT, vm103=("second",), vm104=("rtx5090",))
    assert world.in_force() == ["hostpci1: host=0000:41:00,pcie=1"]


def test_what_another_stack_has_given_is_left_alone(world: World) -> None:
    world.up(OWN)
    given = world.conf()
    assert not free_card.apply(world.system(), FreeCard(stack="p/other", card=("rtx5090", SLOT), keeps={})).changed
    assert world.conf() == given


def test_what_is_refused_has_changed_nothing(world: World) -> None:
    """Without a yes; one that is paused; what Proxmox VE refuses in its own words, such as a seventeenth device."""
    others = range(16)
    for commands, card, why in (
        ("true", VmCard(**{**CARD, "take_over": False}), "takeOver: true"),
        (f"qm suspend {VM}", OWN, "paused"),
        (
            f"qm resume {VM}; qm set {VM} " + " ".join(f"--hostpci{one} 0000:{one + 0x40:02x}:00" for one in others),
            OWN,
            r"hostpci16.*property is not defined in schema",
        ),
    ):
        world.lab.run(commands)
        before, mark = world.conf(), world.lab.mark()
        with pytest.raises((Failure, HomelabError), match=why):
            world.up(card)
        assert (world.conf(), world.notes()) == (before, [])
        assert why == "paused" or world.power(mark) == [], "it has cost nothing"


@pytest.mark.parametrize("how", ["of itself", "by its owner"])
def test_one_that_goes_off_again_has_back_what_it_had_unless_somebody_wants_it_off(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, has_run = Guest.status, threading.Event()

    def status(guest: Guest) -> dict[str, Any]:
        if guest.begun and not has_run.is_set():
            has_run.set()
            if how == "by its owner":
                world.lab.run(f"qm stop {VM}")
            else:
                world.lab.wait_guest(VM)
                request(world.lab.state, "poweroff", guest=VM)
                while real(guest)["status"] == "running":
                    pass
        return real(guest)

    monkeypatch.setattr(power, "STEADY_SECONDS", 5)
    monkeypatch.setattr(Guest, "status", status)
    before = world.conf()
    if how == "by its owner":
        assert not world.up(OWN).runs
        assert world.in_force() == [OURS] and "root@pam has switched it off" in capfd.readouterr().err
    else:
        with pytest.raises(Failure, match=f"VM {VM}"):
            world.up(OWN)
        assert world.conf() == before and world.runs()


def test_a_vm_that_is_another_one_by_now_keeps_what_it_has(world: World) -> None:
    world.up(OWN)
    world.lab.run(f"qm stop {VM}; qm set {VM} --smbios1 uuid=11111111-2222-3333-4444-555555555555")
    before = world.conf()
    world.destroy()
    assert world.conf() == before and world.notes() == []


def test_without_room_for_the_note_it_is_as_before_or_as_wanted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is written twice; a disk that is full after that stops nothing."""
    before, real = world.conf(), pmxcfs.replace
    for number in range(3):
        calls = itertools.count()

        def replace(*arguments: Any, number: int = number, calls: Iterator[int] = calls) -> None:
            if next(calls) >= number:
                raise OSError(28, "no space left on device")
            real(*arguments)

        with monkeypatch.context() as full:
            full.setattr(pmxcfs, "replace", replace)
            with pytest.raises(Failure, match="no space") if number < 2 else contextlib.nullcontext():
                world.up(OWN)
        assert world.runs() and (world.conf() == before or world.in_force() == [OURS])
        world.up(OWN)
        world.destroy()
        assert world.is_as(before), number


# -- who has switched it off -----------------------------------------------------------------------------------------
def test_a_second_killed_run_still_knows_that_the_vm_ran(world: World) -> None:
    world.killed_while_off()
    for number in range(2):
        world.killed_after(number, lambda: world.up(OWN, display="none"))
        assert world.debt()
    assert world.up(OWN, display="none").runs


def test_a_shutdown_that_failed_before_a_kill_is_asked_for_again(world: World) -> None:
    """The guest was booting still."""
    world.lab.fault("guest-ignores-shutdown", VM)
    world.killed_after(SHUT_DOWN, lambda: world.up(OWN))
    world.read()  # which waits until that has failed
    world.lab.fault("guest-ignores-shutdown", None)
    assert world.up(OWN).runs and world.in_force() == [OURS]


def test_a_shutdown_that_a_killed_run_didnt_come_to_note_may_be_its_owners(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.is_lost = True
    world.killed_after(SHUT_DOWN - 1, lambda: world.up(OWN))
    world.wait_off()
    assert not world.up(OWN).runs and not world.runs()
    assert "stays off: Proxmox VE's log doesn't tell whether homelab or somebody else" in capfd.readouterr().err


def test_its_tasks_are_in_the_order_of_their_begin_and_none_is_left_out(world: World) -> None:
    """Proxmox VE has them by their end, and fifty of them at most; the kernel's clock alone tells the order, whatever the host's clock said."""
    asked: dict[str, object] = {}
    begun = [(1700000000, 20), (1700000001, 5), (1700000000, 30)]

    class Node(api.NodeApi):
        def get(self, path: str, **parameters: object) -> Any:
            assert path == "/tasks"
            asked.update(parameters)
            tasks = [{"upid": f"{at} {number}", "starttime": at, "pstart": number} for at, number in begun]
            return [{**task, "type": "qmstart"} for task in tasks]

    found = GuestApi(world.system(), Node(world.system()), guest_kinds.VM, VM).tasks()
    assert [task["upid"] for task in found] == ["1700000000 30", "1700000000 20", "1700000001 5"]
    assert asked == {"vmid": VM, "source": "all", "limit": guest_tasks.MOST}


def test_one_that_the_settings_have_off_after_a_killed_run_stays_off(world: World) -> None:
    world.killed_while_off()
    for wanted in ("stopped", "keep"):
        assert not world.up(OWN, power=wanted).runs


def test_another_vm_of_the_id_of_one_that_a_killed_run_has_left_off_isnt_started(world: World) -> None:
    world.killed_while_off()
    world.lab.run(f"qm set {VM} --smbios1 uuid=11111111-2222-3333-4444-555555555555")
    assert not world.up(OWN).runs


def test_one_that_goes_off_by_itself_after_a_run_that_was_killed_before_its_shutdown_stays_off(world: World) -> None:
    world.killed_after(SHUT_DOWN - 1, lambda: world.up(OWN))
    assert world.debt() and world.runs()
    world.lab.wait_guest(VM)
    request(world.lab.state, "poweroff", guest=VM)
    world.wait_off()
    assert not world.up(OWN).runs and not world.runs()


@pytest.mark.parametrize("when", sampling.sample(["before", "after"], 1, "started by its owner"))
def test_one_that_its_owner_starts_while_its_options_are_set_runs_with_them(
    world: World, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        world.lab.run(f"qm start {VM}")

    world.lab.run(f"qm stop {VM}")
    if when == "before":
        note_of = Guest.note_of

        def noted(guest: Guest, *words: Any) -> Note:
            start()
            return note_of(guest, *words)

        monkeypatch.setattr(Guest, "note_of", noted)
    else:
        world.then = ("PUT", "/config", start)
    assert world.up(OWN).runs and world.runs()
    assert world.in_force() == [OURS] and "[PENDING]" not in world.conf()


def test_a_start_that_failed_since_is_nobodys_wish(world: World) -> None:
    world.killed_while_off()
    world.lab.fault("task-fails", "qmstart=out of luck")
    world.lab.run(f"qm start {VM}", check=False)
    world.lab.fault("task-fails", None)
    assert world.up(OWN).runs


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_asked_again_right_before_each_start(world: World, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the start that takes a failed change back."""
    real, calls, before = power.start, [0], world.conf()

    def start(*arguments: Any, **options: Any) -> list[str]:
        calls[0] += 1
        if calls[0] == 1 + fails:
            world.lab.fault("task-fails", None)
            world.lab.run(f"qm start {VM} && qm stop {VM}")
        return real(*arguments, **options)

    monkeypatch.setattr(power, "start", start)
    if fails:
        world.lab.fault("task-fails", "qmstart=out of luck")
        with pytest.raises(Failure, match="stays off"):
            world.up(OWN)
        assert [line for line in world.in_force() if "mapping" in line] == [] and world.notes() == []
    else:
        assert not world.up(OWN).runs
        assert world.in_force() == [OURS]
    assert not world.runs() and before


def test_one_that_is_stopped_in_the_midst_of_its_shutdown_stays_off(world: World) -> None:
    world.lab.fault("guest-ignores-shutdown", VM)
    overrule: dict[str, Any] = {"overrule-shutdown": 1}
    world.then = (
        "POST",
        "status/shutdown",
        lambda: world.lab.ask_api("POST", f"/nodes/{NODE}/qemu/{VM}/status/stop", **overrule),
    )
    mark = world.lab.mark()
    assert not world.up(OWN, shutdown=30).runs
    assert "start" not in world.power(mark)


def test_a_shutdown_that_is_ended_itself_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a restart of pvedaemon: the VM runs still, and nobody has switched it off."""
    monkeypatch.setattr(power, "_PRESS_SECONDS", 5)
    world.lab.fault("guest-ignores-shutdown", VM)

    def end() -> None:
        task = world.lab.ask_api("GET", f"/nodes/{NODE}/tasks", source="active")[0]
        world.lab.ask_api("DELETE", f"/nodes/{NODE}/tasks/{task['upid']}")
        world.lab.fault("guest-ignores-shutdown", None)

    world.then, mark = ("POST", "status/shutdown", end), world.lab.mark()
    assert world.up(OWN, shutdown=30).runs and world.in_force() == [OURS]
    assert world.power(mark) == ["shutdown", "shutdown", "start"]


def test_after_a_killed_run_and_a_restart_of_the_host_it_is_to_run(world: World) -> None:
    world.killed_after(SHUT_DOWN - 1, lambda: world.up(OWN))
    world.goes_down_with_its_host(by_owner=False)
    assert world.up(OWN).runs and world.in_force() == [OURS]


def test_after_a_restart_of_the_host_its_owners_shutdown_of_one_that_is_off_counts(world: World) -> None:
    """Proxmox VE calls that a task that ended well."""
    world.goes_down_with_its_host(by_owner=False)
    world.lab.run(f"qm shutdown {VM}")
    assert not world.up(OWN).runs and world.in_force() == [OURS]


# -- what stands in the way ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seconds", [1, 60])
def test_a_cluster_file_system_that_ends_while_the_vm_is_off_is_waited_for(
    world: World, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while; then what is first said is that the VM is off. The next run starts it."""
    before, away, conf = world.conf(), contextlib.ExitStack(), world.lab.root / f"etc/pve/qemu-server/{VM}.conf"

    def back() -> None:
        away.close()
        world.lab.run("systemctl start pve-cluster")

    def end() -> None:
        world.wait_off()
        world.lab.run("systemctl stop pve-cluster")
        away.enter_context(world.without_pmxcfs())
        timer.start()

    timer = threading.Timer(seconds, back)
    monkeypatch.setattr(requests, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(power, "_PATIENCE_SECONDS", 5)
    world.then = ("POST", "status/shutdown", end)
    if seconds == 1:
        assert world.up(OWN).runs and world.in_force() == [OURS]
    else:
        with pytest.raises(Failure) as failed:
            world.up(OWN)
        assert failed.value.found.startswith(f"VM {VM} is off now") and not conf.exists()
        timer.cancel()
        back()
        assert world.up(OWN).runs
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


def test_somebody_elses_change_that_waits_in_a_vm_that_is_off_comes_with_ours(world: World) -> None:
    world.lab.run(f"qm set {VM} --cores 7 --cipassword one")
    world.lab.wait_guest(VM)
    request(world.lab.state, "poweroff", guest=VM)
    world.lab.run(f"while qm status {VM} | grep -q running; do sleep 0.1; done")
    assert "[PENDING]" in world.conf()
    world.up(OWN)
    assert world.in_force() == [OURS] and "cores: 7" in world.conf() and "[PENDING]" not in world.conf()


def test_a_guest_that_is_off_while_qemu_isnt_ended_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "_END_SECONDS", 0)
    monkeypatch.setattr(Guest, "status", lambda _guest: {"status": "running", "qmpstatus": "shutdown"})
    with pytest.raises(Failure, match="QEMU isn't ended"):
        world.read()


def test_a_run_makes_one_ticket_and_another_where_that_isnt_taken(world: World) -> None:
    good, world.minted = world.ticket, 0
    seen = world.read()
    assert world.minted == 1
    world.spent = ["PVE:root@pam:00000000::c3BlbnQ="]
    assert world.read() == seen and world.ticket == good and world.minted == 3


def test_a_vm_of_another_node_is_that_nodes(world: World) -> None:
    world.up(OWN)
    nodes = world.lab.root / "etc/pve/nodes"
    (nodes / "pve2/qemu-server").mkdir(parents=True)
    (nodes / f"{NODE}/qemu-server/{VM}.conf").rename(nodes / f"pve2/qemu-server/{VM}.conf")
    seen = world.read()
    assert (seen.node, seen.is_here, seen.config) == ("pve2", False, {})
    world.destroy()
    assert world.notes() == [f"qemu-{VM}"]


def test_an_option_of_0_that_its_owner_takes_out_comes_back(world: World) -> None:
    """Proxmox VE shows it still while its end waits for the next start."""
    world.set(balloon="0")
    world.lab.run(f"qm set {VM} --delete balloon")
    assert "\nballoon: 0\n" in world.conf() and "delete: balloon" in world.conf()
    assert "balloon" not in world.read().config
    world.set(balloon="0")
    assert "\nballoon: 0\n" in world.conf() and "delete:" not in world.conf()


# -- a card that goes, before another VM or its passthrough test needs it --------------------------------------------
def with_two_cards(world: World) -> tuple[str, VmCard, VmCard]:
    """The VM runs with both by their mappings; and what it was before."""
    entry = "node=pve,path=0000:06:00.0,id=1022:43fc,iommugroup=17,subsystem-id=0000:0000"
    world.lab.run(
        f"qm stop {VM}; qm set {VM} --delete hostpci0,hostpci2 --balloon 1024; "
        f"pvesh create /cluster/mapping/pci --id second --map {entry}; qm set 104 --delete hostpci0"
    )
    before = world.conf()
    cards = VmCard(**{**CARD, "take_over": False}), VmCard("second", "second", "0000:06:00")
    world.up(*cards)
    world.lab.run(f"qm start {VM}")
    return before, *cards


def test_a_vm_that_loses_both_cards_is_restarted_once_and_has_back_what_changed_for_them(world: World) -> None:
    before, first, second = with_two_cards(world)
    mark = world.lab.mark()
    assert world.free(first.mapping, first.slot, vm103=())
    assert not world.free(second.mapping, second.slot, vm103=())
    assert world.power(mark) == ["shutdown", "start"] and world.runs()
    assert (world.conf(), world.notes()) == (before, [])


def test_a_vm_that_keeps_a_card_keeps_what_that_needs(world: World) -> None:
    _, first, second = with_two_cards(world)
    mark = world.lab.mark()
    assert not world.free(second.mapping, second.slot, vm103=(first.mapping, second.mapping))
    assert world.free(first.mapping, first.slot, vm103=(second.mapping,))
    assert world.power(mark) == ["shutdown", "start"] and "balloon: 0" in world.conf()
    assert world.in_force() == [f"hostpci1: mapping={second.mapping},pcie=1"]


def test_a_vm_that_has_left_the_settings_after_a_killed_run_is_given_back_all_of_it(world: World) -> None:
    before = world.conf()
    world.killed_after(SHUT_DOWN + 1, lambda: world.up(OWN))
    assert world.notes() == ["qemu-103"]
    assert world.free(OWN.mapping, OWN.slot)
    assert (world.conf(), world.notes(), world.runs()) == (before, [], True)


@pytest.mark.parametrize("keeps", sampling.sample([True, False], 1, "its owner's own line"))
def test_a_vm_with_its_card_by_its_owners_own_line_is_given_back_all_after_a_killed_run(
    world: World, keeps: bool
) -> None:
    """Its note has the card nowhere: the line is as homelab's would be."""
    line = f"mapping={CARD['mapping']},pcie=1"
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci2 --hostpci0 {line} --balloon 1024; qm start {VM}")
    before = world.conf()
    world.killed_after(SHUT_DOWN, lambda: world.up(VmCard(**{**CARD, "take_over": False})))
    assert world.notes() == ["qemu-103"] and "hostpci0" not in note(world)["values"]
    assert world.free(CARD["mapping"], SLOT, vm103=("another",) if keeps else ()) is not keeps
    if not keeps:
        assert (world.conf(), world.notes(), world.runs()) == (before, [], True)


def test_a_vm_of_the_settings_keeps_a_card_that_its_owner_gave_it(world: World) -> None:
    """It has homelab's display and no card of homelab's: another VM's card is none of its business."""
    world.lab.run(f"qm stop {VM}; qm set {VM} --delete hostpci2 --hostpci0 mapping={CARD['mapping']}; qm start {VM}")
    world.up(display="none")
    before, mark = world.conf(), world.lab.mark()
    assert not world.free(CARD["mapping"], SLOT, VM, **{f"vm{VM}": ()})
    assert (world.conf(), world.power(mark), world.notes()) == (before, [], [f"qemu-{VM}"])


def test_a_vm_goes_off_as_its_own_settings_say_where_it_loses_a_card(world: World) -> None:
    _, first, second = with_two_cards(world)
    world.up(first, second, otherwise="stop")
    world.lab.fault("guest-ignores-shutdown", VM)
    assert world.free(first.mapping, first.slot, vm103=(second.mapping,))
    assert world.runs() and len(world.in_force()) == 1


# -- a VM that this program has made ---------------------------------------------------------------------------------
def test_what_is_set_in_a_made_vm_becomes_its_own_and_its_cards_stay(world: World) -> None:
    world.up(OWN)
    mark = world.lab.mark()
    assert world.set(cores="6", description="mine", cpu=None).started
    assert world.power(mark) == ["shutdown", "start"] and world.in_force() == [OURS]
    assert not world.set(cores="6").started
    world.destroy()
    text = world.conf().partition("\n[")[0]
    assert "cores: 6\n" in text and "#mine\n" in text and "cpu:" not in text
    assert world.in_force() == [f"{key}: {value}" for key, value in LINES.items()] and world.notes() == []


def test_what_a_made_vm_doesnt_start_with_is_taken_back(world: World) -> None:
    world.up(OWN)
    before = world.conf()
    world.lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(Failure, match="out of luck"):
        world.set(cores="6")
    assert world.conf() == before
    world.lab.fault("task-fails", None)
    world.set(cores="6")
    assert world.runs() and "cores: 6\n" in world.conf()


def test_killed_after_any_change_a_made_vm_is_as_wanted_after_the_next_run(world: World) -> None:
    world.up(OWN)
    assert world.until_done(lambda: world.set(cores="6")) >= SHUT_DOWN - 1
    assert world.runs() and "cores: 6\n" in world.conf() and world.in_force() == [OURS]
    assert "cores" not in note(world)["values"]


# -- a VM whose hookscript hands it its card -------------------------------------------------------------------------
def with_hookscript(world: World) -> None:
    world.lab.run("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    world.lab.run(
        "mkdir -p $HOMELAB_ROOT/var/lib/vz/snippets; cat >$HOMELAB_ROOT/var/lib/vz/snippets/a.sh; chmod +x $HOMELAB_ROOT/var/lib/vz/snippets/a.sh",
        stdin="#!/bin/sh\n",
    )
    world.lab.run(f"qm set {VM} --hookscript local:snippets/a.sh")


def test_each_start_of_a_vm_with_a_hookscript_has_its_pass_before_anything_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(passes, "note", lambda _system, vmid, _who: ran.append(vmid == str(VM) and world.runs()))
    world.up(OWN)
    assert ran == [], "without a hookscript nobody asks"
    with_hookscript(world)
    world.up(OWN, display="none")
    assert ran == [True]
    world.up(OWN, display="none", power="stopped")
    assert ran == [True], "a VM that is only shut down may not take it"
    world.up(OWN, display="none", power="running")
    assert ran == [True, False]


@pytest.mark.parametrize("runs", sampling.sample([True, False], 1, "without its pass"))
def test_without_its_pass_a_vm_is_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with_hookscript(world)
    monkeypatch.setattr(passes, "note", full)
    world.lab.run("true" if runs else f"qm stop {VM}")
    before = world.conf()
    with pytest.raises(OSError, match="No space left"):
        world.up(OWN, power="running")
    assert (world.conf(), world.runs()) == (before, runs)
