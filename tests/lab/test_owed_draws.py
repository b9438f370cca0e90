"""Who switches a guest while homelab changes it, drawn: its owner at any moment, a backup, HA, a restore; with kills, a clock that jumps, and a log that is
rotated. None is started against its owner, and none is left off but where a kill came between a shutdown and the note of its task; then it is named.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from remote_scripts.layers import start_guests
from remote_scripts.notes import owed
from remote_scripts.pve import api, guest_tasks
from remote_scripts.tools.errors import Failure
from tests import sampling
from tests.lab.killed_kit import KilledError
from tests.lab.transaction_kit import CHANGES, Containers, World, prepared, world

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
    """`ahead`: of the host's clock up to then; `acts`: each at the change of the run after which it is done; the last may come after its end; `kill`: the
    change after which the run is killed; `lost`: a kill that comes at the shutdown comes behind it; `looks`: who looks at it then.
    """

    ahead: int
    acts: tuple[tuple[int, str], ...]
    kill: int
    lost: bool
    looks: tuple[str, ...]


def draw(random: random.Random) -> Draw:
    acts = sorted(
        (random.randrange(-1, CHANGES + 1), random.choice([*ACTS])) for _ in range(random.choice([0, 1, 1, 2]))
    )
    return Draw(
        ahead=random.choice([0, 0, 7200, -7200]),
        acts=tuple(acts),
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
        tasks = guest_tasks.switching(api.NodeApi(world.system()), world.kind, vmid)
        is_busy = any("endtime" not in task for task in tasks)
        is_on, failed = world.runs(), False  # asked last: a task that runs may end before
        if name in ("restore", "rollback", "migrated and back", "another guest") and (is_on or is_busy):
            return  # Proxmox VE refuses that, or it waits for the guest's next start
        if name == "poweroff inside" and (not is_on or is_busy):
            return  # what a guest does by itself while homelab shuts it down, no log tells
        match name:
            case "stop" | "shutdown" | "start" | "reboot" | "stop, start" | "start, stop":
                for verb in name.split(", "):
                    failed = world.lab.run(f"{program} {verb} {vmid}", check=False).returncode != 0
            case "poweroff inside":
                world.power_off_inside()
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


@pytest.fixture(scope="module", params=[World, Containers], ids=["VM", "container"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("number", range(DRAWS // 2))
def test_none_is_started_against_its_owner_and_none_is_left_off(
    world: World, number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_guests, "_GRACE_SECONDS", 0)
    monkeypatch.setattr(start_guests, "_is_boot_decided", lambda _system: True)
    drawn = draw(sampling.drawn(f"owed {world.kind.program} {number}"))
    if drawn.ahead:  # what its tasks say of the time before the clock was set
        world.shift_tasks(drawn.ahead)
    play = Play(world, drawn)
    play.run()
    runs, said = world.runs(), capfd.readouterr().err
    if play.wanted is False:
        assert not runs, f"it was started against its owner: {drawn}\n{said}"
    if play.wanted is True and not runs:
        is_told = play.is_named or owed.UNKNOWN in said
        assert is_told and (play.is_log_lost or drawn.lost), f"it was left off: {drawn}\n{said}"
    if play.edits:
        assert f"edit{play.edits}" in world.conf(), f"an edit was lost: {drawn}"
