"""Who switches a guest while homelab changes it, drawn: its owner at any moment, a backup, HA, a restore; with kills, a clock that jumps, and a log that is
rotated. None is started against its owner, and none is left off but where a kill came between a shutdown and the note of its task; then it is named.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from remote_scripts.layers import start_guests
from remote_scripts.notes import owed
from remote_scripts.tools.errors import Failure
from tests import sampling
from tests.lab.killed_kit import KilledError
from tests.lab.transaction_kit import CHANGES, SHUT_DOWN, Containers, World, prepared, world

__all__ = ["prepared", "world"]

#: What somebody does, and whether it is to run after that; None: as before.
ACTS: dict[str, bool | None] = {
    "nothing": None,
    "stop": False,
    "shutdown": False,
    "start": True,
    "stop, start": True,
    "reboot": None,
    "start, stop": False,
    "poweroff inside": False,
    "bulk shutdown": None,
    "restore": False,
    "rollback": False,
    "migrated and back": None,
    "backup": None,
    "edit": None,
    "another guest": False,
    "under HA": None,
    "clock back": None,
    "clock ahead": None,
    "log lost": None,
}
TASKS = {"restore": "restore", "rollback": "rollback", "migrated and back": "igrate"}
DRAWS = 400 if sampling.EVERY else 40


@dataclass(frozen=True)
class Draw:
    """`ahead`: of the host's clock up to then; `slow`: how much longer each task takes, so that an act comes within it; `acts`: each at the change of the run
    after which it is done; the last may come after its end; `kill`: the change after which the run is killed; `lost`: a kill that comes at the shutdown comes
    behind it; `looks`: who looks at it then.
    """

    ahead: int
    slow: float
    acts: tuple[tuple[int, str], ...]
    kill: int
    lost: bool
    looks: tuple[str, ...]


#: Acts that come while homelab's shutdown is at work, in a third of the draws.
WITHIN = ("clock back", "clock ahead", "poweroff inside", "bulk shutdown")


def draw(random: random.Random) -> Draw:
    acts = sorted(
        (random.randrange(-1, CHANGES + 1), random.choice([*ACTS])) for _ in range(random.choice([0, 1, 1, 2]))
    )
    is_within = random.random() < 1 / 3
    return Draw(
        ahead=random.choice([0, 0, 7200, -7200]),
        slow=0.4 if is_within else random.choice([0, 0, 0.4]),
        acts=((SHUT_DOWN, random.choice(WITHIN)),) if is_within else tuple(acts),
        kill=random.choice([*range(CHANGES), 99, 99]),
        lost=random.random() < 0.2,
        looks=random.choice([("host",), ("up",), ("host", "up"), ("up", "host")]),
    )


class Play:
    """A draw, carried out."""

    def __init__(self, world: World, draw: Draw) -> None:
        self.world, self.draw = world, draw
        #: Whether its owner wants it to run; None: not known, as his act has failed.
        self.wanted: bool | None = True
        self.edits, self.is_named = 0, False
        self.left, self.is_log_lost = [*draw.acts], False

    def act(self, name: str) -> None:
        world, wants = self.world, ACTS[name]
        program, vmid = world.kind.program, world.vmid
        tasks = world.tasks()
        working = {task["type"] for task in tasks if "endtime" not in task}
        is_busy = bool(working)
        is_on, failed = world.runs(), False  # asked last: a task that runs may end before
        if name in ("restore", "rollback", "migrated and back", "another guest") and (is_on or is_busy):
            return  # Proxmox VE refuses that, or it waits for the guest's next start
        if name == "poweroff inside" and not is_on:
            return
        match name:
            case "stop" | "shutdown" | "start" | "reboot" | "stop, start" | "start, stop":
                for verb in name.split(", "):
                    failed = world.lab.run(f"{program} {verb} {vmid}", check=False).returncode != 0
            case "poweroff inside":
                world.power_off_inside()
                if working & {*world.kind.stops}:
                    wants = None  # it does what it is asked to
                failed = bool(working & {*world.kind.starts})  # whether that came before the start's end can't be told
            case "bulk shutdown":
                shutdowns = world.shut_all_down()
                # One that was off by then isn't among it.
                wants, failed = (False if shutdowns else None), "failed" in shutdowns
            case "restore" | "rollback" | "migrated and back":
                task = next(one for one in world.kind.replaces if one.endswith(TASKS[name]))
                world.switched_by(task, runs=False)
            case "backup":
                world.switched_by("vzdump", runs=is_on)
            case "edit":
                self.edits += 1
                failed = (
                    world.lab.run(f"{program} set {vmid} --description edit{self.edits}", check=False).returncode != 0
                )
                self.edits -= failed
            case "another guest":
                world.becomes_another()
            case "under HA":
                world.under_ha("stopped")
                # Nothing is owed to a guest that is off then; a start of homelab's that is under way comes to its end.
                if not is_on:
                    self.wanted = None if is_busy else False
            case "clock back":
                world.set_clock(-3600)
            case "clock ahead":
                world.set_clock(3600)
            case "log lost":
                self.is_log_lost = True
                for index in ("index", "index.1"):
                    (world.lab.root / "var/log/pve/tasks" / index).unlink(missing_ok=True)
        if wants is not None:
            self.wanted = None if failed else wants

    def at(self, number: int) -> None:
        while self.left and self.left[0][0] <= number:
            self.act(self.left.pop(0)[1])

    def run(self) -> None:
        """The run, its end, and who looks at the guest then."""
        world = self.world
        self.at(-1)
        world.is_lost, world.left, world.at = self.draw.lost, self.draw.kill, self.at
        world.lab.fault("task-seconds", self.draw.slow or None)
        with suppress(KilledError, Failure):
            world.give()
            assert self.draw.acts or self.draw.kill > CHANGES, "it had come to its end"
        world.left, world.at = 10**6, lambda _number: None
        world.wait_off()
        world.settle()
        self.at(10**6)
        for look in self.draw.looks:
            self.look(look)

    def look(self, who: str) -> None:
        world = self.world
        with suppress(Failure):
            if who == "host":
                start_guests.program(world.system())
            else:
                world.give()
        debt = world.debt()
        self.is_named |= bool(debt and debt.waits == owed.UNKNOWN)

    def judge(self, what: str, said: str, *, is_lost: bool = False) -> None:
        """Fails where the guest doesn't run and should, or the other way round.

        :param is_lost: the log may not tell who has switched it off; then that it stays off is said.
        """
        runs, is_told = self.world.runs(), self.is_named or owed.UNKNOWN in said
        if self.wanted is False:
            assert not runs, f"it was started against its owner: {what}\n{said}"
        if self.wanted is True:
            assert runs or (is_lost and is_told), f"it was left off: {what}\n{said}"


@pytest.fixture(scope="module", params=[World, Containers], ids=["VM", "container"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("number", range(DRAWS // 2))
@pytest.mark.usefixtures("eager_timer")
def test_none_is_started_against_its_owner_and_none_is_left_off(
    world: World, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(sampling.drawn(f"owed {world.kind.program} {number}"))
    if drawn.ahead:  # what its tasks say of the time before the clock was set
        world.shift_tasks(drawn.ahead)
    play = Play(world, drawn)
    play.run()
    said = capfd.readouterr().err
    play.judge(str(drawn), said, is_lost=play.is_log_lost or drawn.lost)
    if play.edits:
        assert f"edit{play.edits}" in world.conf(), f"an edit was lost: {drawn}"


#: What its owner does once homelab has noted who is to run after its restart of the host, and after that; and how the host's clock is set meanwhile. (By a
#: start of his own a guest is owed nothing any more.)
BEFORE = (*["nothing"] * 3, "stop", "shutdown", "poweroff inside", "bulk shutdown", "clock back", "clock ahead")
AFTER = ("nothing", "nothing", "start", "start, stop", "bulk shutdown")
RESTARTS = 100 if sampling.EVERY else 12


@pytest.mark.parametrize("number", range(RESTARTS // 2))
@pytest.mark.usefixtures("eager_timer")
def test_after_a_restart_of_the_host_it_runs_unless_its_owner_has_switched_it_off(
    world: World, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The host's clock may be set while it shuts its guests down; or its power is cut, of which there is no task."""
    random = sampling.drawn(f"restart {world.kind.program} {number}")
    before, after, step = random.choice(BEFORE), random.choice(AFTER), (0, 3600, -3600)[number % 3]
    is_cut = random.random() < 1 / 5
    play = Play(world, replace(draw(random), acts=()))
    world.lab.run(f"{world.kind.program} set {world.vmid} --onboot 0")
    owed.note_running(world.system())
    play.act(before)
    if is_cut and before in ("poweroff inside", "bulk shutdown"):
        play.wanted = None  # nothing tells that from what the cut has done
    world.lab.fault("power-cut", is_cut or None)
    world.lab.fault("stopall-clock", step or None)
    world.lab.reboot()
    world.ticket = world.mint()
    play.act(after)
    for look in play.draw.looks:
        play.look(look)
    what = f"{before}, {'power cut' if is_cut else 'restart'}, clock set by {step}, {after}, {play.draw.looks}"
    # A Bulk Shutdown after a power cut may as well be the host's own, by the log.
    play.judge(what, capfd.readouterr().err, is_lost=is_cut and after == "bulk shutdown")


#: Until a guest that doesn't follow its shutdown counts as one that stays on: for so long after the shutdown's end, too.
TIMEOUT = 3
#: What becomes of such a guest, and whether it is to run then. In time: within TIMEOUT of the end of homelab's shutdown.
DEAF = {
    "off in time": True,
    "off in time, seen later": True,
    "off later": False,
    "on": True,
    "off in time, started, off": False,
    "stop in time": False,
    "bulk shutdown in time": False,
}


@pytest.mark.parametrize("number", range((DRAWS if sampling.EVERY else 14) // 2))
@pytest.mark.usefixtures("eager_timer")
def test_a_deaf_guest_runs_again_if_it_goes_off_in_time_and_stays_off_later(
    world: World, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """It doesn't follow its shutdown, which fails; or whose run is killed before that. `is_seen_on`: the host's timer looks at it meanwhile."""
    random = sampling.drawn(f"deaf {world.kind.program} {number}")
    become = [*DEAF][number % len(DEAF)]
    is_killed, is_seen_on = random.random() < 1 / 3, random.random() < 1 / 2
    looks = random.choice([("host",), ("up",), ("host", "up"), ("up", "host")])
    play = Play(world, replace(draw(random), acts=()))
    world.lab.fault("guest-ignores-shutdown", world.vmid)
    world.left = SHUT_DOWN if is_killed else 10**6
    began = time.monotonic()
    with pytest.raises((Failure, KilledError)):
        world.give(shutdown=TIMEOUT)
    world.left = 10**6
    world.settle()
    ended = time.monotonic()
    assert world.runs()
    if is_seen_on:
        play.look("host")
    world.lab.fault("guest-ignores-shutdown", None)
    if become.endswith("later") or become == "on":
        if become == "off in time, seen later":
            world.power_off_inside()
        # It has as long again as its shutdown took. The log has whole seconds.
        time.sleep(max(0.0, ended + (ended - began) + 1.5 - time.monotonic()))
    if become in ("off later", "on"):
        play.look("host")
    match become:
        case "off in time" | "off later":
            world.power_off_inside()
        case "off in time, started, off":
            world.power_off_inside()
            world.command("start")
            world.power_off_inside()
        case "stop in time":
            world.command("stop")
        case "bulk shutdown in time":
            assert world.shut_all_down() == ["OK"]
    play.wanted = DEAF[become]
    for look in looks:
        play.look(look)
    what = f"{become}{', run killed' if is_killed else ''}{', seen on' if is_seen_on else ''}, {looks}"
    play.judge(what, capfd.readouterr().err)
