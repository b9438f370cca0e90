"""Each layer that changes something is stopped anywhere: the next run finishes it, or gives every byte back.

A layer is stopped before each of its writes, and before and after each program that it starts: killed; by a power cut that loses what wasn't flushed;
by a disk that is full from then on; by a program that fails. stops.yaml has an example of each layer, machines.py the hosts that they are tried on.
`make test` tries a sample (tests/sampling.py), `make test-nightly` every stop.
"""

from __future__ import annotations

import errno
import functools
import importlib
import itertools
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from remote_scripts import layers
from remote_scripts.layers import cluster_turn
from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from remote_scripts.tools.run import Stand
from tests import sampling
from tests.agent import card_kit, disk_kit, machines, machines_nvidia
from tests.agent.cluster_kit import Clock
from tests.agent.disk_kit import Tree
from tests.agent.kit import Cut, Refused, cuts, watched, with_files_as_devices
from tests.agent.machines import Machine

EXAMPLES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "stops.yaml").read_text())
MACHINES = {**machines.MACHINES, **machines_nvidia.MACHINES}
#: Stops of each kind that are tried of an act.
SAMPLE = 5
#: What they change, Proxmox VE's API changes: they are killed after each change where there is one (tests/lab/test_guest_transaction.py).
BY_THE_API = {"guest_cards", "free_card"}
# The calls that need room on a disk.
_GROWING = ("create", "write", "append", "mkdir", "symlink", "link", "point")


def that_change() -> dict[str, list[str]]:
    """The layers that change something -> their verbs that do. (What a layer's program does at a boot, and `hold`, their own tests stop.)"""
    names = [module.name for module in pkgutil.iter_modules(layers.__path__)]
    modules = {name: importlib.import_module(f"remote_scripts.layers.{name}") for name in names}
    verbs = {name: [verb for verb in ("apply", "revert") if hasattr(module, verb)] for name, module in modules.items()}
    return {name: has for name, has in verbs.items() if has and name not in BY_THE_API}


#: Imported here: what an import in a test compiles, the layer that imports it would have written itself (conftest.py).
CHANGING = that_change()


def test_each_layer_that_changes_something_has_an_example() -> None:
    asked = {(layer, verb) for name in EXAMPLES for verb, layer, _ in Example(name, Path()).acts.values()}
    assert {(layer, verb) for layer, verbs in CHANGING.items() for verb in verbs} == asked


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for, device nodes are files, and no connection of the tests' own is the run's."""
    Clock(monkeypatch)
    card_kit.without_waits(monkeypatch)
    monkeypatch.setattr(cluster_turn, "CLUSTER_SECONDS", 2)  # each second of which is a look
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    with_files_as_devices(monkeypatch, tmp_path)


@contextmanager
def programs(machine: Machine, around: Callable[[str, Stand], Stand]) -> Iterator[None]:
    """Each program of the host with this around it."""
    stands = machine.host.programs
    machine.host.programs = {name: around(name, stand) for name, stand in stands.items()}
    try:
        yield
    finally:
        machine.host.programs = stands


def before_and_after(machine: Machine) -> AbstractContextManager[None]:
    """Each program is a moment at which a run may end, before it and after it."""

    def around(name: str, stand: Stand) -> Stand:
        def run(arguments: Sequence[str], stdin: bytes) -> Any:
            disk.WATCH[-1]("program", f"{machine.host.root}/{name}")
            answer = stand(arguments, stdin)
            disk.WATCH[-1]("program", f"{machine.host.root}/{name}")
            return answer

        return run

    return programs(machine, around)


@contextmanager
def failing_program(machine: Machine, first: int) -> Iterator[list[str]]:
    """The program of this number fails, when it has done its work or instead; those that were started."""
    started: list[str] = []

    def around(name: str, stand: Stand) -> Stand:
        def run(arguments: Sequence[str], stdin: bytes) -> Any:
            started.append(f"{name} {' '.join(arguments)}")
            fails = len(started) == first + 1
            answer = None if fails and first % 2 else stand(arguments, stdin)
            return Done(1, b"", b"it failed\n") if fails else answer

        return run

    with programs(machine, around):
        yield started


def _file_system(path: str) -> str:
    """Of a host: an ESP where it is mounted, /run, or the one of all else."""
    return (re.match(r"/run/(homelab/esp-[^/]+/)?", path) or [""])[0]


@contextmanager
def full_disk(machine: Machine, first: int) -> Iterator[list[str]]:
    """The file system of the write of this number has no room from then on; the writes."""
    writes, root = list[str](), str(machine.host.root)
    full: set[str] = set()
    others = disk.WATCH[-1]

    def watch(call: str, path: str) -> None:
        others(call, path)
        inside = path.removeprefix(root)
        # What is written over a file's bytes needs no room.
        if call in _GROWING and not inside.startswith("/sys/") and not (call == "write" and Path(path).stat().st_size):
            writes.append(f"{call} {inside}")
            if len(writes) == first + 1:
                full.add(_file_system(inside))
            if _file_system(inside) in full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with watched(watch):
        yield writes


def of_others(tree: Tree) -> Tree:
    """Files, and values in /sys, that aren't homelab's notes."""
    return {
        path: about for path, about in tree.items() if about[1] is not None and not path.startswith("var/lib/homelab/")
    }


Fault = Callable[[Machine, int], AbstractContextManager[list[str]]]


class Example:
    """A layer with what is wanted of it, which is tried on many hosts.

    :param name: in stops.yaml.
    :param place: a folder of the test's.
    """

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.data = name, EXAMPLES[name]
        layer, wanted = self.data.get("layer", name), self.data.get("wanted", {})
        #: Verb, layer and what is wanted.
        self.acts = {verb: (verb, layer, wanted) for verb in CHANGING[layer]}
        if "acts" in self.data:
            self.acts = {act: tuple(request) for act, request in self.data["acts"].items()}
        self._ends = itertools.count()
        self._places = (place / str(number) for number in itertools.count())

    def host(self) -> Machine:
        """A host before the layer's first run."""
        machine = MACHINES[self.data.get("host", "folder")](next(self._places), self.data)
        for verb, layer, wanted in self.data.get("before", ()):
            machine.host.ask(verb, layer, wanted)
        return machine

    def run(self, machine: Machine, act: str) -> None:
        with pytest.raises(Refused) if self.data.get("refused") else nullcontext():
            machine.host.ask(*self.acts[act])

    def lasting(self, machine: Machine) -> Tree:
        """What is there once that has followed which follows each time."""
        for request in self.data.get("then", ()):
            machine.host.ask(*request)
        return machine.lasting()

    def copy(self, machine: Machine, cut: Cut | None = None) -> Machine:
        """The host as a cut has left it; by default as it is now."""
        now = Cut("", disk_kit.tree(machine.host.root), machine.host.tree("sys"))
        return machine.after(cut or now, next(self._places))

    def stops(self, machine: Machine, act: Callable[[], None], most: int, name: str, **about: bool) -> list[Cut]:
        """What is left of the act wherever it is killed, or the power is cut; of a sample at so many places. It is done on the host itself.

        :param about: as of `cuts`.
        """
        with before_and_after(machine):
            about["in_cluster"] = machine.in_cluster
            return cuts(machine.host, lambda _: act(), most=most, name=name, **about)

    def cut_short(self, machine: Machine, act: str) -> Iterator[tuple[str, Machine]]:
        """What the act leaves, which comes to its end on the host itself."""
        stops = self.stops(machine, lambda: self.run(machine, act), SAMPLE, f"{self.name} {act}")
        assert stops, f"{act} makes no write, and starts no program"
        for cut in stops:
            yield f"{act}, {cut.how}", self.copy(machine, cut)

    def with_faults(self, machine: Machine, act: str) -> Iterator[tuple[str, Machine]]:
        """What the act leaves on a full disk, and when a program fails; also where it is stopped while it puts back what it has changed."""
        for fault in (full_disk, failing_program):
            with fault(counted := self.copy(machine), sys.maxsize) as moments:
                self.run(counted, act)
            spared = tuple(self.data.get("works", ()))
            numbers = [number for number, moment in enumerate(moments) if not (spared and moment.startswith(spared))]
            for number in sampling.sample(numbers, SAMPLE, f"{self.name} {act} {fault.__name__}"):
                left, name = self.copy(machine), f"{self.name} {act} {fault.__name__} {number}"
                failing = functools.partial(self.fail, left, act, fault, number)
                # Of a write that failed there is no telling what a power cut leaves.
                stops = self.stops(left, failing, 1, name, ends=False, power_cuts=fault is not full_disk)
                how = f"{act}, {fault.__name__} at {moments[number]}"
                yield how, left
                if stops:
                    cut = sampling.drawn(name).choice(stops)
                    yield f"{how}, {cut.how}", self.copy(left, cut)

    def fail(self, machine: Machine, act: str, fault: Fault, number: int) -> None:
        """Where the example says so, a run that is refused has put back every file that it had changed."""
        before = of_others(machine.lasting())
        try:
            with fault(machine, number) as moments:
                self.run(machine, act)
            assert len(moments) > number, f"{act} comes to its end before {fault.__name__} at {number}"
        except Refused:
            is_back = not self.data.get("puts_back") or of_others(machine.lasting()) == before
            assert is_back, f"{act} puts not all back after {fault.__name__} at {moments[number]}"

    def ends(self, left: Machine, trees: Mapping[str, Tree], how: str) -> None:
        """Each act, as the next one, leads to its tree; of a sample one act."""
        for act, tree in sampling.sample([*trees.items()], 1, f"{self.name} {next(self._ends)}"):
            machine = self.copy(left)
            self.run(machine, act)
            if machine.starts_what_stays_off():  # of which the next run reads more
                self.run(machine, act)
            assert self.lasting(machine) == tree, f"HOMELAB_SEED={sampling.SEED} {act} after {how}"
            machine.remove()
        left.remove()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_layer_that_is_stopped_anywhere_is_finished_or_undone_by_the_next_run(name: str, tmp_path: Path) -> None:
    example = Example(name, tmp_path)
    machine = example.host()
    stock = machine.lasting()
    trees = {"revert": stock} if {"apply", "revert"} <= example.acts.keys() else {}
    for act in example.acts:
        before, stops = example.copy(machine), [*example.cut_short(machine, act)]
        tree = example.lasting(example.copy(machine))
        assert trees.setdefault(act, tree) == tree, f"{act} doesn't give back every byte"
        for how, left in [*stops, *example.with_faults(before, act)]:
            example.ends(left, trees, how)
