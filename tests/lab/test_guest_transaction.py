"""What holds of a VM's cards as of a container's: byte for byte given back, whatever happens in between."""

from __future__ import annotations

from typing import Any

import pytest

from remote_scripts.guests import change
from remote_scripts.guests.guest import Guest
from remote_scripts.layers import start_guests
from remote_scripts.tools.errors import Failure
from tests import sampling
from tests.lab.transaction_kit import CHANGES, SHUT_DOWN, Containers, World, prepared, world

__all__ = ["prepared", "world"]


@pytest.fixture(scope="module", params=[World, Containers], ids=["VM", "container"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_all_of_it_comes_back_byte_for_byte(world: World) -> None:
    before, mark = world.own_form(), world.lab.mark()
    assert world.give() and world.is_given() and world.power(mark) == ["shutdown", "start"]
    assert world.done == CHANGES
    assert before.partition("\n[")[2] == world.conf().partition("\n[")[2], "a snapshot's"
    mark = world.lab.mark()
    assert world.give() and world.is_given() and world.power(mark) == []
    world.destroy()
    assert world.is_as(before)


def test_killed_after_any_change_it_goes_on_until_all_of_it_is_given_back(world: World) -> None:
    before = world.own_form()
    assert world.until_done(world.give) >= SHUT_DOWN - 1
    given = world.conf()
    assert world.is_given() and world.runs()
    assert world.until_done(lambda: world.give(other=True)) >= SHUT_DOWN - 1
    assert world.conf() != given and world.is_given() and world.runs()
    assert world.until_done(world.destroy) >= SHUT_DOWN - 1
    assert world.is_as(before)


@pytest.mark.usefixtures("eager_timer")
def test_the_host_gives_a_guest_that_a_killed_run_has_left_off_back_what_it_had_and_starts_it(world: World) -> None:
    """Its timer's program, alone."""
    world.give(other=True)
    given = world.conf()
    world.killed_after(SHUT_DOWN, world.give)
    world.wait_off()
    assert world.conf() != given and not world.runs()
    start_guests.program(world.system())
    assert world.runs() and sorted(world.conf().splitlines()) == sorted(given.splitlines()) and world.debt() is None
    assert world.give() and world.is_given()


def test_a_destroy_right_after_a_killed_run_gives_everything_back(world: World) -> None:
    """Of one that gives it something, and of one that gives it something else: before that is set, and after."""
    before = world.own_form()
    for number in (0, *sampling.sample(range(1, CHANGES), 1, f"a first run {world.kind.program}")):
        mark = world.lab.mark()
        world.killed_after(number, world.give)
        world.destroy()
        assert world.is_as(before), number
        assert number or world.power(mark) == [], "nothing was set yet"
    for number in sampling.sample(range(CHANGES), 1, f"a second run {world.kind.program}"):
        world.give()
        world.killed_after(number, lambda: world.give(other=True))
        world.destroy()
        assert world.is_as(before), number


def test_one_that_wont_go_off_keeps_what_it_had(world: World) -> None:
    before = world.own_form()
    world.lab.fault("guest-ignores-shutdown", world.vmid)
    with pytest.raises(Failure, match=r"it is still on[\s\S]*has what it had before") as failure:
        world.give()
    said = failure.value.next
    assert said.endswith("; if it goes off within 1 s, this host starts it again; start it if it goes off later")
    assert "from inside" not in said and world.is_as(before)
    assert world.give(otherwise="stop") and world.is_given()


def test_where_nothing_was_set_nothing_is_said_to_be_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a part of it, where the guest can't be looked at after that."""
    world.give()
    world.lab.fault("guest-ignores-shutdown", world.vmid)
    with pytest.raises(Failure, match="it is still on") as failure:
        world.give(power="stopped")
    assert "has back" not in failure.value.found and world.is_given()

    def fail(_guest: Guest) -> None:
        raise Failure("", "it hangs", "", "")

    monkeypatch.setattr(change, "_set_back", fail)
    with pytest.raises(Failure, match=f"{world.kind.label} {world.vmid} has isn't known .it hangs.: run") as failure:
        world.give(power="stopped")
    assert "a part of it" not in failure.value.found


@pytest.mark.usefixtures("eager_timer")
def test_one_that_goes_off_late_is_started_again_by_its_host(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Its shutdown has failed: for as long again it may still heed it."""
    world.lab.fault("guest-ignores-shutdown", world.vmid)
    with pytest.raises(Failure, match="it is still on"):
        world.give(shutdown=15)
    start_guests.program(world.system())
    assert world.runs() and world.debt()
    assert "was asked to shut down at" in capfd.readouterr().err
    world.power_off_inside()
    start_guests.program(world.system())
    assert world.runs() and not world.debt()


def test_a_failure_after_a_killed_run_gives_back_what_was_there_before_both(world: World) -> None:
    before = world.own_form()
    world.killed_after(1, world.give)
    assert world.conf() != before
    world.lab.fault("guest-ignores-shutdown", world.vmid)
    with pytest.raises(Failure, match="has what it had before"):
        world.give(other=True)
    assert world.conf() == before and world.runs()
    world.destroy()
    assert world.is_as(before)


def test_a_lost_answer_is_found_again(world: World) -> None:
    for lost in world.losable:
        mark, world.lost = world.lab.mark(), lost
        assert world.give() and world.is_given() and world.power(mark) == ["shutdown", "start"], lost
        world.destroy()


def test_a_clock_that_ran_ahead_when_it_was_last_switched_leaves_none_off(world: World) -> None:
    """As at a boot with its RTC in local time, until NTP sets it."""
    world.command("stop", "start")
    world.shift_tasks(7200)
    assert world.give() and world.is_given()


def test_whoever_has_switched_it_off_since_has_it_off(world: World) -> None:
    """Also by a shutdown of a VM that is off already: of a container Proxmox VE refuses that."""
    before = world.conf()
    for how in world.switches_off:
        world.killed_while_off()
        world.command(*how)
        assert not world.give() and not world.runs(), how
        world.command("start")
        assert world.is_given(), how
        world.destroy()
        assert world.is_as(before), how


@pytest.mark.parametrize("by_owner", [False, True])
def test_after_a_restart_of_the_host_it_is_to_run_unless_its_owner_says_otherwise(world: World, by_owner: bool) -> None:
    world.goes_down_with_its_host(by_owner=by_owner)
    assert world.give() is not by_owner
    assert world.is_given()


def test_without_its_file_system_nothing_is_believed(world: World) -> None:
    world.give()
    given, notes = world.conf(), world.notes()
    for act in (world.give, world.destroy):
        with world.without_pmxcfs(), pytest.raises(Failure, match="/etc/pve "):
            act()
        assert (world.conf(), world.notes()) == (given, notes) != ("", [])


def test_where_nothing_is_to_change_nothing_is_written(world: World) -> None:
    for act in (world.give, world.destroy):
        act()
        world.left = 0
        act()
        world.left = 10**6


def test_one_under_ha_is_refused(world: World) -> None:
    name, before = f"{world.kind.ha}:{world.vmid}", world.conf()
    world.under_ha()
    with pytest.raises(Failure, match=f"ha-manager set {name} --state ignored"):
        world.give()
    assert (world.conf(), world.notes()) == (before, [])


def test_another_resources_guest_stays_as_it_is(world: World) -> None:
    """As under a former name in the settings: what has the new one is made first."""
    before = world.conf()
    world.give()
    given = world.conf()
    world.give(owner="p/s/renamed")
    world.destroy()
    assert world.conf() == given and world.notes()
    world.destroy(owner="p/s/renamed")
    assert world.is_as(before)
