"""A shared card that a VM takes whenever it starts, also with the host, drawn: with changes of a container, killed ones, restarts of the host, looks of the
host's timers, and what an owner does in between. No container is started while a VM has its card, and all run again once the card is back.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from lab import Lab, LabError
from lab.control import request
from remote_scripts.both.handover import Wanted as Handover
from remote_scripts.both.hookscript import Wanted as Hook
from remote_scripts.layers import start_guests
from remote_scripts.notes import owed
from remote_scripts.notes.card import Card
from remote_scripts.pve import api, guest_tasks
from remote_scripts.tools.errors import Failure
from tests import sampling
from tests.lab.host_kit import run_layer
from tests.lab.killed_kit import KilledError
from tests.lab.transaction_kit import CT, SHUT_DOWN, Containers, prepared, world
from tests.waiting import wait_until

__all__ = ["prepared", "world"]

VM, BY_HAND = 103, 950
BIG = Card(name="big", functions={"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}, vms=(VM,))
WEEKS = 3 * 7 * 86400
DRAWS = 60 if sampling.EVERY else 6
STEPS = 6


class Shared(Containers):
    """The lab's two containers have the card, one of them by homelab's lines; VM 103 takes it, and is off. None of them starts with the host by itself."""

    @classmethod
    def prepare(cls, lab: Lab) -> None:
        lab.run(
            f"pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets; qm stop {VM}; "
            f"pct set {CT} --onboot 0; pct set {BY_HAND} --onboot 0; qm set {VM} --onboot 0 --hostpci0 0000:01:00,driver=keep,pcie=1"
        )
        asked: list[tuple[str, Any]] = [("handover", Handover(cards=(BIG,))), ("hookscript", Hook(vmid=VM))]
        for layer, wanted in asked:
            done = run_layer(lab.machine, "apply", layer, wanted)
            assert done.returncode == 0, done.stdout + done.stderr
        lab.run("systemctl stop homelab-handover.timer")  # a draw says when it elapses


@pytest.fixture(scope="module")
def kind() -> type[Shared]:
    return Shared


class Road:
    """What happens, step by step; after each it is looked whether a container runs beside the VM, or was started there."""

    def __init__(self, world: Shared) -> None:
        self.world, self.lab = world, world.lab
        #: Whether its owner wants a container on; None: not known, as his act has failed.
        self.wanted: dict[int, bool | None] = {CT: True, BY_HAND: True}
        self.story = list[str]()
        self.changes = 0

    # -- what is so ------------------------------------------------------------------------------------------------------
    def runs(self, guest: int) -> bool:
        program = "qm" if guest == VM else "pct"
        return "running" in self.lab.run(f"{program} status {guest}", check=False).stdout

    def is_away(self) -> bool:
        """Whether the card has a record: it is with the VM, or on its way."""
        path = self.lab.root / "var/lib/homelab/handover/big.state"
        return path.exists() and json.loads(path.read_text())["state"] not in ("HELD", "HOST")

    def starts(self) -> set[str]:
        """The UPIDs of the containers' starts, but for the owner's own, which are another user's here."""
        node = api.NodeApi(self.world.system())
        tasks = [task for ctid in self.wanted for task in guest_tasks.switching(node, Shared.kind, ctid)]
        return {task["upid"] for task in tasks if task["type"] == "vzstart" and task["user"] == "root@pam"}

    # -- what is done ----------------------------------------------------------------------------------------------------
    def take(self, step: str) -> None:
        self.story.append(step)
        had_card, before = self.runs(VM) and self.is_away(), self.starts()
        getattr(self, step.replace(" ", "_"))()
        if not self.runs(VM):
            return
        beside = [ctid for ctid in self.wanted if self.runs(ctid)]
        assert not beside, f"containers {beside} run while the VM has their card: {self.told()}"
        if had_card and step not in ("vm_off", "vm_off_and_on", "restart_with_vm", "restart_without_vm"):
            assert self.starts() == before, f"a container was started while the VM had its card: {self.told()}"

    def told(self) -> str:
        log = self.lab.root / "var/lib/homelab/handover/log"
        return f"{', '.join(self.story)}\n{log.read_text() if log.exists() else ''}"

    def vm_on(self) -> None:
        self.lab.run(f"qm start {VM}", check=False)

    def vm_off(self) -> None:
        self.lab.run(f"qm stop {VM}", check=False)
        wait_until(lambda: not self.is_away())

    def vm_off_inside(self) -> None:
        def has_ended() -> bool:
            with suppress(LabError):  # it still boots
                request(self.lab.state, "poweroff", guest=VM)
            return not self.runs(VM)

        wait_until(has_ended)
        wait_until(lambda: not self.is_away())

    def vm_off_and_on(self) -> None:
        self.lab.run(f"qm stop {VM}; qm start {VM}", check=False)

    def change(self) -> None:
        self.changes += 1
        with suppress(Failure):  # which it is while the card is away
            self.world.give(other=self.changes % 2 == 0)

    def killed_change(self) -> None:
        self.changes += 1
        self.world.left = SHUT_DOWN
        with suppress(KilledError, Failure):
            self.world.give(other=self.changes % 2 == 0)
        self.world.left = 10**6
        self.world.settle()

    def killed_change_and_vm_on(self) -> None:
        self.killed_change()
        self.vm_on()

    def look(self) -> None:
        with suppress(Failure):
            start_guests.program(self.world.system())

    def timer(self) -> None:
        self.lab.run("systemctl start homelab-handover.service", check=False)

    def weeks(self) -> None:
        """As long as that, a VM may keep a card; what the timers do in that time, they do a few times here."""
        ahead = float(self.lab.machine.faults.get("clock-ahead") or 0)
        self.world.set_clock(int(ahead) + WEEKS)
        for _ in range(3):
            self.look()
            self.timer()

    def restart_with_vm(self) -> None:
        self._restart(onboot=1)

    def restart_without_vm(self) -> None:
        self._restart(onboot=0)

    def _restart(self, onboot: int) -> None:
        # What tidies up after the VM may have its lock yet.
        wait_until(lambda: self.lab.run(f"qm set {VM} --onboot {onboot}", check=False).returncode == 0)
        owed.note_running(self.world.system())
        self.lab.reboot()
        self.world.ticket = self.world.mint()
        self.look()

    def owner_stops_container(self) -> None:
        self._own(CT, "stop", wanted=False)

    def owner_starts_container(self) -> None:
        self._own(CT, "start", wanted=True)

    def owner_stops_the_other(self) -> None:
        self._own(BY_HAND, "stop", wanted=False)

    def owner_shuts_all_down(self) -> None:
        """And starts nothing again."""
        ran = [ctid for ctid in self.wanted if self.runs(ctid)]
        self.lab.run(f"pvesh create /nodes/{self.lab.api['node']}/stopall --timeout 1")
        wait_until(lambda: not self.is_away())
        self.wanted |= dict.fromkeys(ran, False)

    def _own(self, ctid: int, verb: str, *, wanted: bool) -> None:
        """A container that is off can't be stopped, in Proxmox VE's own words; nor can one be started whose card is away."""
        runs_beside = self.runs(VM) and verb == "start"
        if self.runs(ctid) is wanted or runs_beside:
            return
        path = f"/nodes/{self.lab.api['node']}/lxc/{ctid}/status/{verb}"
        upid = self.lab.ask_api("POST", path, "ops@pam")
        wait_until(
            lambda: self.lab.ask_api("GET", f"/nodes/{self.lab.api['node']}/tasks/{upid}/status")["status"] == "stopped"
        )
        self.wanted[ctid] = wanted if self.runs(ctid) is wanted else None

    def end(self) -> None:
        """The card is back for good; whoever is owed a start has it after a few looks."""
        self.vm_off()
        for _ in range(3):
            self.timer()
            self.look()
        off = [ctid for ctid, wanted in self.wanted.items() if wanted is True and not self.runs(ctid)]
        assert not off, f"containers {off} were left off: {self.told()}"
        on = [ctid for ctid, wanted in self.wanted.items() if wanted is False and self.runs(ctid)]
        assert not on, f"containers {on} were started against their owner: {self.told()}"


CHOICE = [
    *["vm on"] * 4,
    *["vm off", "vm off inside", "vm off and on", "restart with vm", "killed change and vm on"] * 2,
    "restart without vm",
    "change",
    "killed change",
    "look",
    "look",
    "timer",
    "weeks",
    "owner stops container",
    "owner starts container",
    "owner stops the other",
    "owner shuts all down",
]


@pytest.mark.parametrize("number", range(DRAWS))
@pytest.mark.usefixtures("eager_timer")
def test_no_container_is_started_while_a_vm_has_its_card_and_all_run_again_when_it_is_back(
    world: Shared, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert world.give()
    road, random = Road(world), sampling.drawn(f"a shared card {number}")
    for _ in range(STEPS):
        road.take(random.choice(CHOICE))
        road.take(random.choice(["look", "timer"]))
    road.end()
