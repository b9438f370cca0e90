"""A container's cards as one transaction on the host: byte for byte given back, whatever happens in between.

As in test_vm_transaction.py; its lines are written as text by Perl, with the lab's few calls of Proxmox VE's modules.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from homelab.container.plan import ContainerWish, as_given, judge_container
from homelab.findings import JudgedGuest
from homelab.remote import ssh
from lab import Lab
from lab.host.guest_programs import modules
from lab.host.host_python import nodes_below
from remote_scripts.both.container_cards import Answer, Wanted
from remote_scripts.both.terms import Terms
from remote_scripts.guests import power
from remote_scripts.layers import container_cards
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import api
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.system import System
from tests.lab.test_proxmox_api import host_of
from tests.lab.test_vm_transaction import World

CT, OWNER = 901, "p/s/ct"
NET1 = "net1: name=eth1,hwaddr=AA:00:00:00:00:02,type=veth"
DEVICES = Cards(minors=(0,))
MOUNTS = Cards(method="mount-entry", minors=(0,))
# The changes of a run until the container goes off: note, text, note, shutdown.
SHUT_DOWN = 3


class Containers(World):
    """A lab. `vanishes`: what is written next is gone again once the container is off."""

    unit = "inactive"
    vanishes = False

    def perl(self, arguments: Sequence[str], stdin: bytes) -> Done:
        if arguments[: len(api.MINT) - 1] == api.MINT[1:]:
            return Done(0, self.ticket.encode())
        environment = {**os.environ, **modules(self.lab.root / "etc/pve", quorate=True)}
        before = self.conf()
        done = subprocess.run(["perl", *arguments], input=stdin, capture_output=True, env=environment, check=False)
        if done.returncode == 0:
            if self.vanishes:
                self.vanishes = False
                self.then = ("POST", "status/shutdown", lambda: self.written(before))
            self.count()
        return Done(done.returncode, done.stdout, done.stderr)

    def written(self, text: str) -> None:
        (self.lab.root / f"etc/pve/lxc/{CT}.conf").write_text(text)

    def system(self) -> System:
        programs: dict[str, Any] = {"sync": lambda *_: 0, "perl": self.perl, "systemctl": lambda *_: self.unit}
        programs["pct"] = self.pct
        return System(self.lab.root, programs=programs)

    def pct(self, arguments: Sequence[str], _stdin: bytes) -> Done:
        done = self.lab.run(f"pct {' '.join(arguments[:2])}", check=False)
        return Done(done.returncode, done.stdout.encode(), done.stderr.encode())

    def ct(self, cards: Cards = DEVICES, owner: str = OWNER, **more: Any) -> Answer:
        terms = Terms(owner=owner, **{"shutdown": 1, **more})
        return container_cards.apply(self.system(), Wanted(ctid=CT, cards=cards, terms=terms))

    def destroy(self, vmid: int = CT, owner: str = OWNER, **more: Any) -> None:
        wanted = Wanted(ctid=vmid, terms=Terms(owner=owner, shutdown=1, **more))
        container_cards.revert(self.system(), wanted)

    def judged(self, cards: Cards | None = None) -> JudgedGuest:
        """:param cards: that it is to have; None: what it was given."""
        facts = ssh.read(host_of(self.lab), guests=True)
        return judge_container(ContainerWish("ai", CT, cards) if cards else as_given("ai", CT, facts), facts)

    def drift(self) -> list[str]:
        return self.judged().steps

    def conf(self, vmid: int = CT) -> str:
        return (self.lab.root / f"etc/pve/lxc/{vmid}.conf").read_text()

    def lines(self) -> list[str]:
        head = self.conf().partition("\n[")[0].splitlines()
        return [line for line in head if re.match(r"dev\d|lxc\.", line)]

    def runs(self) -> bool:
        return "running" in self.lab.run(f"pct status {CT}").stdout

    def wait_off(self) -> None:
        self.lab.run(f"while pct status {CT} | grep -q running && [ $((n+=1)) -lt 30 ]; do sleep 0.1; done")


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("phoenix", state=tmp_path_factory.mktemp("ct") / "lab") as started:
        yield started


@pytest.fixture
def world(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containers]:
    done = shared_lab.run(f"pct start {CT}; pct status {CT}", check=False)
    assert "running" in done.stdout, done.stderr
    stat, _ = nodes_below(f"{shared_lab.root}/")
    monkeypatch.setattr(os, "stat", stat)
    yield Containers(shared_lab, monkeypatch)
    shared_lab.reset()


def own_form(world: Containers) -> str:
    """Its configuration in a form that Proxmox VE doesn't write."""
    first, _, rest = world.conf().partition("\n")
    world.written(f"{rest}\n# a comment of its owner's\n{first}\nmp9: /,mp=/host\n")
    return world.conf()


def test_all_of_it_comes_back_byte_for_byte(world: Containers) -> None:
    before, mark = own_form(world), world.lab.mark()
    answer = world.ct()
    assert world.lines()[0] == "dev0: /dev/nvidia0,mode=0666" and world.power(mark) == ["shutdown", "start"]
    assert (answer.state, answer.devices["/dev/nvidia0"]) == ("running", "dev")
    assert not world.conf().startswith(before[:20])  # it went off, and Proxmox VE wrote it
    mark = world.lab.mark()
    assert world.ct() == answer and world.power(mark) == []
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


@pytest.mark.parametrize("cards", [DEVICES, MOUNTS], ids=["device", "mount-entry"])
def test_killed_after_any_change_it_goes_on_until_all_of_it_is_given_back(world: Containers, cards: Cards) -> None:
    before = own_form(world)
    print("up:", world.until_done(lambda: world.ct(cards)))
    given = world.lines()
    assert any("/dev/nvidia0" in line for line in given) and world.runs()
    other = MOUNTS if cards is DEVICES else DEVICES
    print("the other way:", world.until_done(lambda: world.ct(other)))
    assert world.lines() != given and any("/dev/nvidia0" in line for line in world.lines()) and world.runs()
    print("destroy:", world.until_done(world.destroy))
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


@pytest.mark.parametrize("number", range(6))
def test_a_destroy_right_after_a_killed_run_gives_everything_back(world: Containers, number: int) -> None:
    before = own_form(world)
    world.killed_after(number, lambda: world.ct(MOUNTS))
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


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


def test_two_ways_at_once_go_together(world: Containers) -> None:
    """A node by mount entry that its owner gives, the others by devices."""
    world.written(world.conf() + "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n")
    before = world.conf()
    answer = world.ct()
    assert answer.devices["/dev/nvidia0"] == "mount" and answer.devices["/dev/nvidiactl"] == "dev"
    assert "lxc.cgroup2.devices.allow: c 195:0 rwm" in world.lines()
    world.destroy()
    assert world.conf() == before


def test_a_line_of_its_owners_stays(world: Containers) -> None:
    world.written(world.conf() + "dev3: /dev/nvidiactl\nlxc.cgroup2.devices.allow: c 195:0 rwm\n")
    before = world.conf()
    world.ct(MOUNTS)
    assert world.lines().count("lxc.cgroup2.devices.allow: c 195:0 rwm") == 1
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


@pytest.mark.parametrize("numbers", [{0: 9}, {0: 1, 1: 0}, {0: 1}], ids=["a free one", "exchanged", "another's"])
def test_a_line_that_its_owner_has_given_another_number_is_his(world: Containers, numbers: dict[int, int]) -> None:
    before = world.conf()
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
    assert waits.endswith("what others have left waiting for its next start: tty")
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


@pytest.mark.parametrize("line", ["/dev/nvidia0,gid=44", "/dev/nvidia1"])
def test_what_its_owner_gives_it_by_a_key_of_homelabs_and_waits_is_his(world: Containers, line: str) -> None:
    world.ct()
    world.lab.run(f"pct set {CT} --dev0 {line}")
    both = Cards(minors=(0, 1))
    world.ct(both)
    first, mark = world.lines(), world.lab.mark()
    assert f"dev0: {line}" in first
    assert [any(f"/dev/nvidia{minor}," in f"{one}," for one in first) for minor in (0, 1)] == [True, True]
    world.ct(both)
    assert (world.lines(), world.power(mark), world.drift()) == (first, [], [])
    world.destroy()
    assert world.lines() == [f"dev0: {line}"]


def test_one_that_is_off_stays_off_and_keeps_its_form(world: Containers) -> None:
    world.lab.run(f"pct stop {CT}")
    before, mark = own_form(world), world.lab.mark()
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


def test_one_that_wont_go_off_keeps_what_it_had(world: Containers) -> None:
    before = own_form(world)
    world.lab.fault("guest-ignores-shutdown", CT)
    with pytest.raises(Failure, match=r"it is still on[\s\S]*has back what it had[\s\S]*start it if it goes off later"):
        world.ct()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()
    assert world.ct(otherwise="stop").state == "running" and world.lines()


@pytest.mark.parametrize("fault", [("guest-ignores-shutdown", CT), ("task-fails", "vzstart=out of luck")])
def test_a_destroy_that_fails_is_done_by_the_next(world: Containers, fault: tuple[str, Any]) -> None:
    before = own_form(world)
    world.ct()
    world.lab.fault(*fault)
    with pytest.raises(Failure, match="it is still on|out of luck"):
        world.destroy()
    world.lab.fault(fault[0], None)
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


@pytest.mark.parametrize("verb", ["ct", "destroy"])
def test_a_lock_that_comes_before_its_shutdown_is_named_and_the_next_run_goes_on(
    world: Containers, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a backup."""
    real, before = world.perl, world.conf()
    if verb == "destroy":
        world.ct()

    def perl(arguments: Sequence[str], stdin: bytes) -> Done:
        done = real(arguments, stdin)
        if stdin:
            world.written(world.conf() + "lock: backup\n")
        return done

    with monkeypatch.context() as locked:
        locked.setattr(world, "perl", perl)
        with pytest.raises(Failure, match=r"it is still on: .*CT is locked \(backup\)"):
            getattr(world, verb)()
    assert world.runs()
    world.written(world.conf().replace("lock: backup\n", ""))
    mark = world.lab.mark()
    getattr(world, verb)()
    assert world.power(mark) == ["shutdown", "start"] and bool(world.lines()) is (verb == "ct")
    world.destroy()
    assert (world.conf(), world.notes()) == (before, []) and world.runs()


def test_a_failure_after_a_killed_run_gives_back_what_was_there_before_both(world: Containers) -> None:
    before = own_form(world)
    world.killed_after(1, world.ct)
    assert world.lines()
    world.lab.fault("guest-ignores-shutdown", CT)
    with pytest.raises(Failure, match="has back what it had"):
        world.ct(MOUNTS)
    assert world.conf() == before and world.runs()
    world.destroy()
    assert (world.conf(), world.notes()) == (before, [])


def test_one_that_doesnt_start_has_back_what_it_had_and_runs(world: Containers) -> None:
    """What is left of a failed start is waited for, and it is started more than once."""
    real, calls, before, states = power.start, [0], own_form(world), ["inactive"]

    def start(*arguments: Any, **options: Any) -> list[str]:
        assert states == ["inactive"]
        calls[0] += 1
        states.insert(0, "deactivating")
        world.lab.fault("task-fails", "vzstart=out of luck" if calls[0] < 3 else None)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(power, "start", start)
        patched.setattr(Containers, "unit", property(lambda _: states.pop(0) if len(states) > 1 else states[0]))
        with pytest.raises(Failure, match="has back what it had, and runs"):
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


@pytest.mark.parametrize(
    "line", ["dev7: /dev/nowhere", "lxc.mount.entry: /nowhere mnt none bind", "mp7: /nowhere,mp=/mnt"]
)
def test_what_would_keep_it_off_is_seen_before_it_goes_off(world: Containers, line: str) -> None:
    world.written(world.conf() + f"{line}\n")
    before, mark = world.conf(), world.lab.mark()
    with pytest.raises(Failure, match="nowhere does not exist"):
        world.ct()
    assert (world.conf(), world.notes(), world.power(mark)) == (before, [], [])


def test_a_mount_with_a_blank_in_its_name_stands_in_nobodys_way(world: Containers) -> None:
    (world.lab.root / "my films").mkdir(exist_ok=True)
    world.written(world.conf() + "lxc.mount.entry: /my\\040films films none bind,create=dir\n")
    world.ct()
    assert world.lines()


def test_a_card_that_isnt_there_is_refused_before_anything(world: Containers) -> None:
    before, mark = world.conf(), world.lab.mark()
    with pytest.raises(Failure, match="/dev/nvidia9"):
        world.ct(Cards(minors=(9,)))
    assert (world.conf(), world.notes(), world.power(mark)) == (before, [], [])


@pytest.mark.parametrize("lost", ["status/shutdown", "status/start"])
def test_a_lost_answer_is_found_again(world: Containers, lost: str) -> None:
    mark, world.lost = world.lab.mark(), lost
    assert world.ct().state == "running"
    assert world.lines() and world.power(mark) == ["shutdown", "start"]


def killed_while_off(world: Containers) -> None:
    """A run is killed between its shutdown and its start."""
    world.killed_after(SHUT_DOWN, world.ct)
    world.wait_off()
    assert not world.runs()


@pytest.mark.parametrize("how", ["pct start {} && pct stop", "pct start {} && pct shutdown"])
def test_whoever_has_switched_it_off_since_has_it_off(world: Containers, how: str) -> None:
    killed_while_off(world)
    world.lab.run(f"{how.format(CT)} {CT}")
    assert world.ct().state == "stopped"
    assert world.lines() and world.drift() == []


def test_a_run_that_was_killed_starts_it_again(world: Containers) -> None:
    killed_while_off(world)
    assert world.ct().state == "running"


@pytest.mark.parametrize("other", [False, True])
def test_one_that_its_owner_has_started_since_has_what_it_was_given_and_isnt_restarted(
    world: Containers, other: bool
) -> None:
    """`other`: a run was killed since that had begun to give it something else."""
    killed_while_off(world)
    world.lab.run(f"pct start {CT}")
    if other:
        world.killed_after(2, lambda: world.ct(MOUNTS))
    mark = world.lab.mark()
    assert world.ct(MOUNTS if other else DEVICES).state == "running"
    assert world.power(mark) == ["shutdown", "start"] * other and world.drift() == []


@pytest.mark.parametrize(("by_owner", "state"), [(False, "running"), (True, "stopped")])
def test_after_a_restart_of_the_host_it_is_to_run_unless_its_owner_says_otherwise(
    world: Containers, by_owner: bool, state: str
) -> None:
    world.goes_down_with_its_host(CONTAINER, CT, by_owner=by_owner)
    assert world.ct().state == state
    assert world.lines()


def test_one_that_its_owner_shuts_down_meanwhile_stays_off(world: Containers) -> None:
    """Its last power task isn't homelab's by then."""

    def shut_down() -> None:
        world.wait_off()
        world.lab.run(f"pct start {CT}; pct shutdown {CT}")

    world.then = ("POST", "status/shutdown", shut_down)
    assert world.ct().state == "stopped"
    assert world.lines()


def test_one_that_gets_its_id_between_shutdown_and_start_is_left_alone(world: Containers) -> None:
    later = world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:02")
    world.written(world.conf().replace("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"))

    def replaced() -> None:
        world.wait_off()
        world.written(later)

    mark, world.then = world.lab.mark(), ("POST", "status/shutdown", replaced)
    world.ct()
    assert (world.conf(), world.power(mark)) == (later, ["shutdown"])


def test_a_container_under_ha_is_refused(world: Containers) -> None:
    world.lab.run(f"ha-manager add ct:{CT}")
    before = world.conf()
    with pytest.raises(Failure, match=f"ha-manager set ct:{CT} --state ignored"):
        world.ct()
    assert (world.conf(), world.notes()) == (before, [])


def test_one_that_is_locked_is_refused_and_unchanged(world: Containers) -> None:
    world.written(world.conf() + "lock: backup\n")
    before, mark = world.conf(), world.lab.mark()
    with pytest.raises(Failure, match=rf"CT is locked \(backup\)(.|\n)*`pct unlock {CT}`"):
        world.ct()
    assert (world.conf(), world.notes(), world.power(mark)) == (before, [], []) and world.runs()


def test_what_its_owner_has_set_after_a_kill_stays_where_the_next_run_fails(world: Containers) -> None:
    own_form(world)
    world.killed_after(2, world.ct)
    own = "dev0: /dev/nvidia0,gid=44"
    world.written(world.conf().replace("dev0: /dev/nvidia0,mode=0666", own))
    world.lab.fault("guest-ignores-shutdown", CT)
    for act in (world.destroy, world.ct):
        with pytest.raises(Failure, match="still on"):
            act()
        assert own in world.lines()


def test_a_kill_before_the_text_costs_no_restart_at_its_end(world: Containers) -> None:
    before = own_form(world)
    world.killed_after(0, world.ct)
    mark = world.lab.mark()
    world.destroy()
    assert (world.conf(), world.power(mark), world.notes()) == (before, [], [])


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


@pytest.mark.parametrize("verb", ["ct", "destroy"])
def test_what_somebody_changes_in_the_midst_is_kept(world: Containers, verb: str) -> None:
    if verb == "destroy":
        world.ct()
    real, times = world.perl, [2]

    def perl(arguments: Sequence[str], stdin: bytes) -> Done:
        if stdin and times[0]:
            times[0] -= 1
            world.written(world.conf() + f"# changed {times[0]}\n")
        return real(arguments, stdin)

    world.perl = perl  # type: ignore[method-assign]
    getattr(world, verb)()
    assert world.conf().count("# changed") + world.conf().count("#changed") + world.conf().count("# changed") >= 2
    assert bool(world.lines()) is (verb == "ct")


@pytest.mark.parametrize(("power", "how"), [("running", "pct stop"), ("stopped", "pct start")])
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


@pytest.mark.parametrize(
    ("was", "now", "is_same"),
    [
        (("vm-901-disk-0", "vm-901-disk-0"), ("vm-901-disk-0", "vm-901-disk-1"), False),
        (
            ("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"),
            ("hwaddr=AA:00:00:00:00:01", "hwaddr=AA:00:00:00:00:02"),
            True,
        ),
        (("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"), ("vm-901-disk-0", "vm-901-disk-1"), True),
        (("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"), ("onboot: 1", f"{NET1}\nonboot: 1"), True),
        (("type=veth", "type=veth,hwaddr=AA:00:00:00:00:01"), (",hwaddr=AA:00:00:00:00:01", ""), True),
    ],
    ids=["another disk", "another card", "another disk and the same card", "a card more", "none any more"],
)
def test_a_container_that_is_another_one_by_now_keeps_what_it_has(
    world: Containers, was: tuple[str, str], now: tuple[str, str], is_same: bool
) -> None:
    """The addresses of its cards tell, or its disk where it still has lines of homelab's."""
    world.written(world.conf().replace(*was))
    world.ct()
    world.written(world.conf().replace(*now))
    before = world.conf()
    world.destroy()
    assert (world.lines() == []) is is_same and (is_same or world.conf() == before) and world.notes() == []


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


def test_another_resources_container_stays_as_it_is(world: Containers) -> None:
    world.ct()
    given = world.conf()
    world.ct(owner="p/s/renamed")
    world.destroy()
    assert world.conf() == given and world.notes() == [f"lxc-{CT}"]


def test_another_stacks_container_is_refused_with_whose_it_is(world: Containers) -> None:
    world.ct()
    given = world.conf()
    with pytest.raises(Failure, match=r"it has its cards from the stack p/s, as containers\.ct"):
        world.ct(Cards(minors=(1,)), owner="p/other/ct")
    world.destroy(owner="p/other/ct")
    assert world.conf() == given and world.drift() == []
    world.destroy()
    world.ct(owner="p/other/ct")


@pytest.mark.parametrize("act", ["ct", "destroy"])
def test_without_its_file_system_nothing_is_believed(world: Containers, act: str) -> None:
    world.ct()
    given = world.conf()
    with world.without_pmxcfs(), pytest.raises(Failure, match="/etc/pve isn't there"):
        getattr(world, act)()
    assert world.conf() == given and world.notes() == [f"lxc-{CT}"]


def test_where_nothing_is_to_change_nothing_is_written(world: Containers) -> None:
    world.ct()
    world.left = 0
    world.ct()
    world.left = 10**6
    world.destroy()
    world.left = 0
    world.destroy()


def test_a_container_of_another_node_is_that_nodes(world: Containers) -> None:
    world.ct()
    nodes = world.lab.root / "etc/pve/nodes"
    (nodes / "pve2/lxc").mkdir(parents=True)
    (nodes / f"phoenix/lxc/{CT}.conf").rename(nodes / f"pve2/lxc/{CT}.conf")
    with pytest.raises(Failure, match="on the node pve2"):
        world.ct()
    wanted = Wanted(ctid=CT, terms=Terms(owner=OWNER))
    left = container_cards.revert(world.system(), wanted)
    assert (left.node, left.is_here, left.owner) == ("pve2", False, OWNER)
    assert world.notes() == [f"lxc-{CT}"]
