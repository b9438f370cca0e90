"""How long a VM is off when it gets a card, loses it, or one is moved from another VM to it, beside its own shutdown and start.

A VM is off while the host has no /run/qemu-server/VMID.pid. The simulated guest shuts down and starts in fractions of a second: what is beyond that is what this
program, Proxmox VE's API and the order of the steps add, and that is the same for a real guest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from lab.deploy import PROJECT, STACK, Deployment
from tests.bench import measure
from tests.bench.errors import BenchError
from tests.bench.report import Measured

SCENARIO = "rtx5090"
ONE, OTHER = 103, 104
LOOK_SECONDS = 0.01
TITLES = {
    "own": "`qm shutdown`, `qm start`",
    "attached": "`up`: it gets a card",
    "moved": "`up`: it gets the card that another VM had",
    "giver": "`up`: that other VM, which keeps running",
    "taken": "`up`: its card is taken away",
}


def measure_downtime(folder: Path, rounds: int) -> list[Measured]:
    """Each of `TITLES`, by turns.

    :param folder: for the lab's host and the stack.
    :raises BenchError: an `up` fails, or a VM isn't restarted exactly once.
    """
    folder.mkdir()
    results = {name: Measured(name, title) for name, title in TITLES.items()}
    with Lab.start(SCENARIO, state=folder / "lab") as lab:
        stack = Stack(lab, folder / "lab")
        lab.run(f"qm create {OTHER} --name other --memory 2048 --machine q35; qm start {OTHER}")
        stack.up()
        for number in range(rounds + 1):
            for name, seconds in _round(stack, lab):
                if number:  # the first warms up
                    results[name].seconds.append(seconds)
        stack.run("destroy")
    return list(results.values())


class Stack:
    """The stack of the lab's host, with the VMs that are to have the card."""

    def __init__(self, lab: Lab, state: Path) -> None:
        self._deployment = Deployment(SCENARIO, state)
        self._deployment.prepare()
        self._log = state / "up.log"

    def up(self, *vmids: int) -> None:
        """The card is for these VMs."""
        file = self._deployment.config_file
        written: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        vms = {f"vm{vmid}": {"host": "pve", "vmid": vmid, "gpus": ["rtx5090"]} for vmid in vmids}
        written["config"]["homelab:vms"] = vms
        file.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
        self.run("up")

    def run(self, verb: str) -> None:
        """One command of Pulumi's.

        :raises BenchError: it fails.
        """
        mine = self._deployment
        where = ("--stack", STACK, "--cwd", str(PROJECT), "--config-file", str(mine.config_file))
        command = (str(mine.engine.pulumi), verb, "--yes", "--skip-preview", "--non-interactive", *where)
        done = measure.run(command, mine.state, mine.environment, self._log)
        if done.code != 0:
            raise BenchError(
                f"`pulumi {verb}` on the scenario {SCENARIO}: exit code 0",
                f"{done.code}; its last words: {done.output[-800:].strip()}",
                "how long a VM is off is measured while it works",
                f"see `make up SCENARIO={SCENARIO}`",
            )


def _round(stack: Stack, lab: Lab) -> list[tuple[str, float]]:
    """Each once; the card is nobody's before and after."""

    def own() -> None:
        lab.run(f"qm shutdown {ONE} --timeout 60 && qm start {ONE}")

    found = [("own", _off(lab, own, ONE)[ONE])]
    found.append(("attached", _off(lab, lambda: stack.up(ONE), ONE)[ONE]))
    moved = _off(lab, lambda: stack.up(OTHER), ONE, OTHER)
    found += [("giver", moved[ONE]), ("moved", moved[OTHER])]
    found.append(("taken", _off(lab, stack.up, OTHER)[OTHER]))
    return found


def _off(lab: Lab, do: Callable[[], None], *vmids: int) -> dict[int, float]:
    """For how many seconds each VM is off while something is done.

    :raises BenchError: one isn't shut down and started exactly once.
    """
    watchers = [_Watcher(lab.root / f"run/qemu-server/{vmid}.pid") for vmid in vmids]
    for one in watchers:
        one.start()
    try:
        do()
    finally:
        for one in watchers:
            one.end()
    for vmid, one in zip(vmids, watchers, strict=True):
        if len(one.times) != 1 or one.is_off:
            raise BenchError(
                f"VM {vmid} to be shut down and started once",
                f"{len(one.times)} times{', and it is off now' if one.is_off else ''}",
                "only then it says how long the work took",
                "run `.venv/bin/python -m tests.bench --only downtime --keep`: the logs stay in the folder that it names",
            )
    return {vmid: one.times[0] for vmid, one in zip(vmids, watchers, strict=True)}


class _Watcher(threading.Thread):
    """`times`: seconds of each time that the file was away and came back; `is_off`: it is away at the end."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.is_off = False
        self._file = file
        self._end = threading.Event()

    def run(self) -> None:
        since = 0.0
        while not self._end.wait(LOOK_SECONDS):
            if self._file.exists() == self.is_off:
                if self.is_off:
                    self.times.append(time.monotonic() - since)
                since, self.is_off = time.monotonic(), not self.is_off

    def end(self) -> None:
        self._end.set()
        self.join()
