"""What holds of a container's cards as one transaction on the host alone: its lines, which are text. (Of VMs, too: test_guest_transaction.py.)"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from remote_scripts.both.container_cards import Wanted
from remote_scripts.both.terms import Terms
from remote_scripts.guests import power
from remote_scripts.guests.guest import Guest
from remote_scripts.layers import container_cards
from remote_scripts.notes.container_note import Cards
from remote_scripts.tools import state
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.system import System
from tests import advice, sampling
from tests.lab.transaction_kit import CT, DEVICES, MOUNTS, Containers, prepared, world

__all__ = ["prepared", "world"]
NET1 = "net1: name=eth1,hwaddr=AA:00:00:00:00:02,type=veth"


@pytest.fixture(scope="module")
def kind() -> type[Containers]:
    return Containers


def test_a_configuration_that_is_being_replaced_is_no_missing_one(
    world: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is read somebody writes it: for a moment there is none, as pmxcfs renames."""
    before, conf = world.conf(), world.lab.root / f"etc/pve/lxc/{CT}.conf"
    real, reads, chosen = Files.need, 0, -1

    def need(files: Files, path: str, *limit: int) -> bytes | None:
        nonlocal reads
        reads += path.endswith(conf.name)
        if not path.endswith(conf.name) or reads - 1 != chosen:
            return real(files, path, *limit)
        away = conf.rename(conf.with_name("away"))
        threading.Timer(0.002, lambda: away.rename(conf)).start()
        try:
            return real(files, path, *limit)
        finally:
            while away.exists():
                pass

    monkeypatch.setattr(Files, "need", need)
    for number in range(20):
        world.ct()
        reads, chosen = 0, number
        world.destroy()
        assert (number, world.conf(), world.notes(), world.runs()) == (number, before, [], True)
        chosen = -1
        if reads <= number:
            return


def test_another_containers_change_waits_for_none_of_it_and_what_changes_the_host_does(
    world: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may take minutes to go off. A VM that takes a shared card changes the host."""
    done, refused = list[str](), list[str]()

    def meanwhile() -> None:
        other = System(world.lab.root, programs=world.programs())
        done.append(container_cards.apply(other, Wanted(ctid=950, cards=DEVICES, terms=Terms(owner="p/s/media"))).state)
        with pytest.raises(Failure, match="another run still holds /run/homelab/lock"):
            System(world.lab.root).changing(lambda: refused.append("nothing was refused"))

    monkeypatch.setattr(state, "LOCK_SECONDS", 0)
    world.then = ("POST", "status/shutdown", meanwhile)
    assert world.ct().state == "running"
    assert (done, refused) == (["running"], [])


def test_two_ways_at_once_go_together(world: Containers) -> None:
    """A node by mount entry that its owner gives, the others by devices."""
    world.written(world.conf() + "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n")
    before = world.conf()
    answer = world.ct()
    assert answer.devices["/dev/nvidia0"] == "mount" and answer.devices["/dev/nvidiactl"] == "dev"
    assert "lxc.cgroup2.devices.allow: c 195:0 rwm" in world.lines()
    world.destroy()
    assert world.conf() == before


def test_an_owners_copy_of_a_line_stays(world: Containers) -> None:
    world.ct(MOUNTS)
    rule = "lxc.cgroup2.devices.allow: c 195:0 rwm"
    world.written(world.conf() + f"{rule}\n")
    world.destroy()
    assert world.lines() == [rule]


def test_what_its_owner_has_changed_since_stays(world: Containers) -> None:
    before = world.conf()
    world.ct()
    world.written(
        world.conf().replace("dev0: /dev/nvidia0,mode=0666", "dev0: /dev/nvidia1").replace("cores: 8", "cores: 3")
    )
    world.destroy()
    assert world.conf() == before.replace("cores: 8\n", "cores: 3\ndev0: /dev/nvidia1\n") and world.notes() == []


def test_a_line_that_its_owner_has_given_another_number_is_his(world: Containers) -> None:
    """A free one; exchanged; another's."""
    before = world.conf()
    for numbers in sampling.sample([{0: 9}, {0: 1, 1: 0}, {0: 1}], 1, "another number"):
        world.ct()
        lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in world.lines()}
        now = {f"dev{new}": lines.pop(f"dev{old}") for old, new in numbers.items()}
        world.written(before + "".join(f"{key}: {value}\n" for key, value in {**lines, **now}.items()))
        assert bool(world.drift()) is (numbers == {0: 1})
        mark = world.lab.mark()
        world.ct()
        assert world.drift() == [] and bool(world.power(mark)) is (numbers == {0: 1})
        assert sorted(line.partition(": ")[2] for line in world.lines()) == sorted([*lines.values(), *now.values()])
        world.destroy()
        assert world.lines() == sorted(f"{key}: {value}" for key, value in now.items()) and world.notes() == []
        world.written(before)


def test_a_line_that_was_taken_out_comes_back_with_a_restart_and_is_named_before(world: Containers) -> None:
    world.ct()
    given, mark = world.conf(), world.lab.mark()
    world.written(given.replace("dev0: /dev/nvidia0,mode=0666\n", ""))
    assert world.drift() == ["dev0: not there -> /dev/nvidia0"]
    world.ct()
    assert world.conf() == given and world.power(mark) == ["shutdown", "start"] and world.drift() == []


def test_what_is_given_has_a_number_that_stands_nowhere(world: Containers) -> None:
    world.lab.run(f"pct snapshot {CT} before")
    world.written(world.conf() + "[pve:pending]\ndelete: dev0\n")
    before = world.conf()
    world.ct()
    world.destroy()
    assert before.partition("[pve:pending]")[0] in world.conf()


def test_what_its_next_start_carries_out_is_named(world: Containers) -> None:
    world.lab.run(f"pct set {CT} --tty 1")
    (waits,) = world.judged(DEVICES).remarks
    assert waits.endswith(": tty")
    world.ct()
    assert "\ntty: 1\n" in world.conf() and world.judged(MOUNTS).remarks == []
    world.destroy()
    assert "\ntty: 1\n" in world.conf() and world.lines() == []


def test_a_line_whose_deletion_waits_is_missed_and_comes_back(world: Containers) -> None:
    world.ct()
    world.lab.run(f"pct set {CT} --delete dev0")
    assert world.drift() == ["dev7: not there -> /dev/nvidia0"]
    world.ct()
    assert "dev7: /dev/nvidia0,mode=0666" in world.lines() and world.drift() == []
    world.destroy()
    assert world.lines() == []


def test_a_destroy_carries_out_a_deletion_that_waits(world: Containers) -> None:
    before = world.conf()
    world.ct()
    given = ",".join(line.partition(":")[0] for line in world.lines())
    world.lab.run(f"pct set {CT} --delete {given}")
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


def test_what_its_owner_gives_it_by_a_key_of_homelabs_and_waits_is_his(world: Containers) -> None:
    both, before = Cards(minors=(0, 1)), world.conf()
    for line in ("/dev/nvidia0,gid=44", "/dev/nvidia1"):
        world.ct()
        world.lab.run(f"pct set {CT} --dev0 {line}")
        world.ct(both)
        first, mark = world.lines(), world.lab.mark()
        assert f"dev0: {line}" in first
        assert [any(f"/dev/nvidia{minor}," in f"{one}," for one in first) for minor in (0, 1)] == [True, True]
        world.ct(both)
        assert (world.lines(), world.power(mark), world.drift()) == (first, [], [])
        world.destroy()
        assert world.lines() == [f"dev0: {line}"]
        world.written(before)


def test_one_that_is_off_stays_off_and_keeps_its_form(world: Containers) -> None:
    world.lab.run(f"pct stop {CT}")
    before, mark = world.own_form(), world.lab.mark()
    assert world.ct().state == "stopped" and world.conf().startswith(before.rstrip("\n"))
    world.destroy()
    assert (world.conf(), world.notes(), world.power(mark)) == (before, [], [])


def test_what_waits_for_the_start_of_one_that_is_off_goes_on_waiting(world: Containers) -> None:
    """A change of the text carries nothing out."""
    world.lab.run(f"pct stop {CT}")
    world.written(world.conf() + "[pve:pending]\ntty: 1\n")
    before = world.conf()
    assert world.ct().state == "stopped" and world.conf().endswith("[pve:pending]\ntty: 1\n")
    world.destroy()
    assert world.conf() == before


def test_one_that_is_booting_still_is_asked_again(world: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_PRESS_SECONDS", 1)
    world.lab.fault("guest-ignores-shutdown", CT)
    calls: list[int] = []

    def begun() -> None:
        calls.append(1)
        world.then = ("POST", "status/shutdown", lambda: world.lab.fault("guest-ignores-shutdown", None))

    world.then = ("POST", "status/shutdown", begun)
    assert world.ct(shutdown=30).state == "running"
    assert world.lines() and calls == [1]


def test_a_destroy_that_fails_is_done_by_the_next(world: Containers) -> None:
    before = world.own_form()
    faults = [("guest-ignores-shutdown", CT), ("task-fails", "vzstart=out of luck")]
    for fault, value in sampling.sample(faults, 1, "a destroy that fails"):
        world.ct()
        world.lab.fault(fault, value)
        with pytest.raises(Failure, match=f"container {CT}|out of luck"):
            world.destroy()
        world.lab.fault(fault, None)
        world.destroy()
        assert world.is_as(before), fault


def test_a_lock_that_comes_before_its_shutdown_is_named_and_the_next_run_goes_on(
    world: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a backup."""
    real, before = world.perl, world.conf()

    def perl(arguments: Sequence[str], stdin: bytes) -> Done:
        done = real(arguments, stdin)
        if stdin:
            world.written(world.conf() + "lock: backup\n")
        return done

    for act in (world.give, world.destroy):
        with monkeypatch.context() as locked:
            locked.setattr(world, "perl", perl)
            with pytest.raises(Failure, match=r"CT is locked \(backup\)") as failure:
                act()
        assert world.runs()
        unlock, _up = advice.advised(failure.value.next)
        world.lab.run(unlock)
        mark = world.lab.mark()
        act()
        assert world.power(mark) == ["shutdown", "start"] and bool(world.lines()) is (act == world.give)
    assert world.is_as(before)


def test_one_that_doesnt_start_has_back_what_it_had_and_runs(world: Containers) -> None:
    """What is left of a failed start is waited for, and it is started more than once."""
    real, calls, before, states = power.start, [0], world.own_form(), ["inactive"]

    def start(*arguments: Any, **options: Any) -> list[str]:
        assert states == ["inactive"]
        calls[0] += 1
        states.insert(0, "deactivating")
        world.lab.fault("task-fails", "vzstart=out of luck" if calls[0] < 3 else None)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(power, "start", start)
        patched.setattr(Containers, "unit", property(lambda _: states.pop(0) if len(states) > 1 else states[0]))
        with pytest.raises(Failure, match="out of luck"):
            world.ct()
    assert world.lines() == [] and world.notes() == [] and world.runs() and calls == [3]
    assert world.conf() == before
    world.ct()


def test_what_proxmox_ve_writes_over_in_its_end_is_written_again(world: Containers) -> None:
    world.vanishes = True
    mark = world.lab.mark()
    world.ct()
    assert "dev0: /dev/nvidia0,mode=0666" in world.lines() and world.power(mark) == ["shutdown", "start"]
    assert world.drift() == []


def test_one_whose_unit_hasnt_ended_is_waited_for(world: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ["deactivating", "active", "inactive"]
    monkeypatch.setattr(Containers, "unit", property(lambda _: states.pop(0) if len(states) > 1 else states[0]))
    world.lab.run(f"pct stop {CT}")
    world.ct()
    assert states == ["inactive"]


def test_what_would_keep_it_off_is_seen_before_it_goes_off(world: Containers) -> None:
    before, mark = world.conf(), world.lab.mark()
    lines = ["dev7: /dev/nowhere", "lxc.mount.entry: /nowhere mnt none bind", "mp7: /nowhere,mp=/mnt"]
    for line in sampling.sample(lines, 1, "what would keep it off"):
        world.written(f"{before}{line}\n")
        with pytest.raises(Failure, match="nowhere does not exist"):
            world.ct()
        assert (world.conf(), world.notes(), world.power(mark)) == (f"{before}{line}\n", [], [])


def test_a_mount_with_a_blank_in_its_name_stands_in_nobodys_way(world: Containers) -> None:
    (world.lab.root / "my films").mkdir(exist_ok=True)
    world.written(world.conf() + "lxc.mount.entry: /my\\040films films none bind,create=dir\n")
    world.ct()
    assert world.lines()


@pytest.mark.parametrize("other", sampling.sample([False, True], 1, "started since"))
def test_one_that_its_owner_has_started_since_has_what_it_was_given_and_isnt_restarted(
    world: Containers, other: bool
) -> None:
    """`other`: a run was killed since that had begun to give it something else."""
    world.killed_while_off()
    world.lab.run(f"pct start {CT}")
    if other:
        world.killed_after(2, lambda: world.ct(MOUNTS))
    mark = world.lab.mark()
    assert world.ct(MOUNTS if other else DEVICES).state == "running"
    assert world.power(mark) == ["shutdown", "start"] * other and world.drift() == []


def test_one_that_its_owner_shuts_down_meanwhile_stays_off(world: Containers) -> None:
    """Its last power task isn't homelab's by then."""

    def shut_down() -> None:
        world.wait_off()
        world.lab.run(f"pct start {CT}; pct shutdown {CT}")

    world.then = ("POST", "status/shutdown", shut_down)
    assert world.ct().state == "stopped"
    assert world.lines()


def test_one_that_is_shut_down_from_inside_as_its_start_ends_stays_off_with_the_change(
    world: Containers, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = Guest.status

    def status(guest: Guest) -> dict[str, Any]:
        if guest.begun and real(guest)["status"] == "running":
            world.power_off_inside()
        return real(guest)

    mark = world.lab.mark()
    monkeypatch.setattr(Guest, "status", status)
    assert world.ct().state == "stopped"
    assert world.power(mark) == ["shutdown", "start"] and world.lines() and world.debt() is None
    assert "stays as it is: it was started, and went off by itself" in capfd.readouterr().err


def test_one_that_gets_its_id_between_shutdown_and_start_is_left_alone(world: Containers) -> None:
    later = world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:02")
    world.written(world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"))

    def replaced() -> None:
        world.wait_off()
        world.written(later)

    mark, world.then = world.lab.mark(), ("POST", "status/shutdown", replaced)
    world.ct()
    assert (world.conf(), world.power(mark)) == (later, ["shutdown"])


def test_what_its_owner_has_set_after_a_kill_stays_where_the_next_run_fails(world: Containers) -> None:
    world.own_form()
    world.killed_after(2, world.ct)
    own = "dev0: /dev/nvidia0,gid=44"
    world.written(world.conf().replace("dev0: /dev/nvidia0,mode=0666", own))
    world.lab.fault("guest-ignores-shutdown", CT)
    for act in (world.destroy, world.ct):
        with pytest.raises(Failure, match="still on"):
            act()
        assert own in world.lines()


def test_a_lock_of_its_file_is_outlasted(world: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = world.perl, [2]

    def perl(arguments: Sequence[str], stdin: bytes) -> Done:
        if stdin and held[0]:
            held[0] -= 1
            return Done(255, b"", b"can't lock file '/run/lock/lxc/pve-config-901.lock' - got timeout\n")
        return real(arguments, stdin)

    monkeypatch.setattr(world, "perl", perl)
    world.ct()
    assert world.lines() and held == [0]


@pytest.mark.parametrize(
    ("power", "how"), sampling.sample([("running", "pct stop"), ("stopped", "pct start")], 1, "switched by its owner")
)
def test_a_destroy_switches_nothing_on_or_off_that_its_owner_has_switched(
    world: Containers, power: str, how: str
) -> None:
    """Its input is of the state: what the settings have said, and of a restart of the host long ago."""
    before = world.conf()
    world.ct(power=power)
    world.lab.run(f"{how} {CT}")
    runs = world.runs()
    world.destroy(power=power, rebooted_at=1)
    assert (world.conf(), world.runs()) == (before, runs)


def test_a_destroy_starts_no_other_container_of_the_id(world: Containers) -> None:
    world.ct(power="running")
    world.lab.run(f"pct stop {CT}")
    world.written(world.conf().replace("vm-901-disk-0", "vm-901-disk-1"))
    mark = world.lab.mark()
    world.destroy(power="running", rebooted_at=1)
    assert world.power(mark) == [] and world.notes() == []


def test_a_container_that_is_another_one_by_now_keeps_what_it_has(world: Containers) -> None:
    """The addresses of its cards tell, or its disk where it still has lines of homelab's."""
    first = world.conf()
    disk, card = "vm-901-disk-0", ("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01")
    another_disk, another_card = (disk, "vm-901-disk-1"), (card[1][10:], "hwaddr=AA:00:00:00:00:02")
    told = [
        (card, another_card, True),
        (card, another_disk, True),
        (card, ("onboot: 1", f"{NET1}\nonboot: 1"), True),
        (card, (card[1][9:], ""), True),  # it has none any more
    ]
    for was, now, is_same in [((disk, disk), another_disk, False), *sampling.sample(told, 2, "another container")]:
        world.written(first.replace(*was))
        world.ct()
        world.written(world.conf().replace(*now))
        before = world.conf()
        world.destroy()
        assert ((world.lines() == []), world.notes()) == (is_same, []) and (is_same or world.conf() == before), now
        world.written(first)


def test_a_later_container_with_a_disk_of_that_name_keeps_its_own_lines(
    world: Containers, capfd: pytest.CaptureFixture[str]
) -> None:
    later = world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:02") + "dev0: /dev/nvidia0,gid=44\n"
    world.written(world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"))
    world.ct()
    world.written(later)
    world.destroy()
    assert (world.conf(), world.notes()) == (later, [])
    assert "isn't the one that was given its cards: it stays as it is" in capfd.readouterr().err


def test_another_stacks_container_is_refused_with_whose_it_is(world: Containers) -> None:
    world.ct()
    given = world.conf()
    with pytest.raises(Failure, match=r"it has its cards from the stack p/s, as containers\.ct"):
        world.ct(Cards(minors=(1,)), owner="p/other/ct")
    world.destroy(owner="p/other/ct")
    assert world.conf() == given and world.drift() == []
    world.destroy()
    world.ct(owner="p/other/ct")
