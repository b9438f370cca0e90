"""The unmodified program, run by the real Pulumi engine, on the lab."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab import settings
from homelab.errors import HomelabError, raise_all
from homelab.judged.tree import Settings
from homelab.reading import planning
from lab import Lab
from lab.client import SnapshotEntry
from lab.engine import install
from tests import connections
from tests.conftest import PROJECT
from tests.e2e.person import ENTER, PROGRAM, Person
from tests.e2e.roads import remove_guests
from tests.engine_stack import HostStack, Result
from tests.host import Host, LabHost
from tests.lab.stack_kit import gpus_of, host_settings

# What an `up` says before anything is changed (HostProbe); nothing where the host's settings are as they were.
_SAID_OF_REBOOT = re.compile(r"pve: reboot: (one, because|by you|not needed)")


@dataclass(kw_only=True)
class Stack(HostStack):
    """A stack on a lab of its own.

    ``stock``: the host before the first `up`, and ``first``: that run, of a stack that was taken after it (`converged`).
    """

    machine: Host = field(init=False)
    lab: Lab
    stock: dict[str, SnapshotEntry] = field(default_factory=dict)
    first: Result | None = None

    def __post_init__(self) -> None:
        self.machine = LabHost(self.lab)

    def up(self, *arguments: str, ok: bool = True) -> Result:
        """As of the engine's stack; what it said of a reboot beforehand is held against the boots that the host has made."""
        known = len(self.lab.boots())
        result = super().up(*arguments, ok=ok)
        made = [boot["reason"] for boot in self.lab.boots()[known:]]
        said = set(_SAID_OF_REBOOT.findall(result.output))
        assert len(said) <= 1, said
        if said == {"one, because"} and ok:
            assert made == ["reboot"], result.output
        elif said & {"not needed", "by you"}:
            assert "reboot" not in made, result.output
        return result

    def power_calls(self, mark: Any = None) -> list[str]:
        """`103 shutdown`, `103 start` and their like, in the order in which they were asked for."""
        asked = [call["path"].split("/") for call in self.lab.api_calls(mark) if call["method"] == "POST"]
        return [f"{path[-3]} {path[-1]}" for path in asked if "status" in path]


def stack_of(
    lab: Lab,
    engine: install.Engine,
    folder: Path,
    scenario: str | Path,
    gpus: dict[str, Any] | None = None,
    vms: dict[str, Any] | None = None,
    containers: dict[str, Any] | None = None,
    **host: Any,
) -> Stack:
    """A stack `lab` that is not deployed yet, in ``folder``, for a lab with that scenario."""
    (folder / "stack").mkdir()
    settings = {**host_settings(lab), "gpus": gpus_of(scenario) if gpus is None else gpus}
    config: dict[str, Any] = {"homelab:hosts": {"pve": settings | host}, "homelab:plan": "auto"}
    if vms is not None:
        config["homelab:vms"] = {name: {"host": "pve"} | vm for name, vm in vms.items()}
    if containers is not None:
        config["homelab:containers"] = {name: {"host": "pve"} | one for name, one in containers.items()}
    stack = Stack(folder / "stack", engine, config, lab=lab)
    stack.create()
    return stack


def refusal(stack: Stack) -> str:
    """As what a preview, and an `up` before it changes anything, refuse it, without the engine: 0.4 s instead of 1. How the engine shows a
    refusal: tests/e2e/test_failures.py, test_preview.py."""
    vms = {name: settings.Vm.model_validate(one) for name, one in stack.config.get("homelab:vms", {}).items()}
    containers = {
        name: settings.Container.model_validate(one) for name, one in stack.config.get("homelab:containers", {}).items()
    }
    try:
        wanted = Settings("pve", settings.Host.model_validate(stack.host), vms, containers)
        with pytest.raises(HomelabError) as refused:
            raise_all(planning.planned(wanted, timeout=5, is_changed=True).refusals)
        return str(refused.value)
    finally:
        connections.end_all()  # as a process that has done this


def out_of_reach(lab: Lab) -> None:
    """The host restarts, and its network doesn't come. What was saved can be brought back, unlike that of a lab that was stopped."""
    lab.fault("no-network-when", "BOOT_IMAGE")
    lab.reboot(wait=False)
    lab.wait_settled()


class Labs:
    """Labs that the tests of a process have one after the other: for each test, the host is as it was when it was saved."""

    #: That many run at the same time: each takes 60 MB.
    MOST = 5

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._kept: dict[str, tuple[Path, Lab]] = {}
        #: Those that the running test has.
        self.taken: set[str] = set()

    def take(self, key: str, make: Callable[[Path], Lab]) -> tuple[Path, Lab]:
        """A lab and its folder, in which ``make`` has made it, and perhaps a stack (`stack`), of which it left a copy (`kept`)."""
        folder, lab = self._kept.pop(key, (None, None))
        if folder is not None and lab is not None and lab.running:
            lab.restore()
            for path in folder.iterdir():
                if path.name not in ("lab", "kept"):
                    shutil.rmtree(path)
            if (folder / "kept").exists():
                shutil.copytree(folder / "kept", folder / "stack", symlinks=True)
        else:  # the first, or a test has stopped it
            folder = self._new_folder()
            lab = make(folder)
            lab.wait_idle()
            lab.save()
        self._kept[key] = folder, lab
        self.taken.add(key)
        others = [one for one in self._kept if one not in self.taken]
        # Stock ones first: a host after its first `up` takes ten times as long to make.
        others.sort(key=lambda one: (self._kept[one][0] / "kept").exists())
        for one in others[: max(0, len(self._kept) - self.MOST)]:
            self._end(*self._kept.pop(one))
        return folder, lab

    def close(self) -> None:
        for folder, lab in self._kept.values():
            self._end(folder, lab)

    @staticmethod
    def _end(folder: Path, lab: Lab) -> None:
        lab.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labs]:
    kept = Labs(lambda: tmp_path_factory.mktemp("kept"))
    yield kept
    kept.close()


@pytest.fixture(autouse=True)
def labs_of_this_test(labs: Labs) -> None:
    """Labs of the tests before are nobody's any more."""
    labs.taken.clear()


@pytest.fixture
def stack_on(tmp_path: Path, engine: install.Engine, labs: Labs) -> Iterator[Callable[..., Stack]]:
    """`stack_on("rtx5090")`: a stack that is not deployed yet, for a stock host of that scenario; one in a test."""
    own: list[Lab] = []

    def make(scenario: str | Path, *arguments: Any, **keywords: Any) -> Stack:
        if isinstance(scenario, Path):  # one that the test has written
            own.append(Lab.start(str(scenario), state=tmp_path / "lab"))
            return stack_of(own[-1], engine, tmp_path, scenario, *arguments, **keywords)
        _, lab = labs.take(scenario, lambda folder: Lab.start(scenario, state=folder / "lab"))
        return stack_of(lab, engine, tmp_path, scenario, *arguments, **keywords)

    yield make
    for lab in own:
        lab.stop()


@pytest.fixture
def on(
    request: pytest.FixtureRequest, tmp_path: Path, engine: install.Engine, labs: Labs
) -> Iterator[Callable[[str], HostStack]]:
    """`on("rtx5090")`: a stack of a host without guests, which no settings give anything yet: the node that this run is for (tests/node), or else a lab
    with that scenario."""
    tier, made = request.config.pluginmanager.get_plugin("node"), list[HostStack]()

    def make(scenario: str) -> HostStack:
        (tmp_path / "stack").mkdir()
        if tier is None:
            _, lab = labs.take(scenario, lambda folder: Lab.start(scenario, state=folder / "lab"))
            stack: HostStack = Stack(tmp_path / "stack", engine, lab=lab)
            settings = stack.machine.settings
            remove_guests(stack.machine)
        else:
            stack = HostStack(tmp_path / "stack", engine, machine=tier.host, patience=tier.patience)
            settings = tier.settings
            remove_guests(stack.machine, "90??")
        stack.config = {"homelab:hosts": {"pve": settings}, "homelab:plan": "auto"}
        stack.create()
        made.append(stack)
        return stack

    yield make
    for stack in made if tier is not None else []:  # what a road that has failed leaves would be in the next one's way
        if stack.urns():
            stack.run("cancel", "--yes")
            stack.run("destroy", "--yes", "--skip-preview")


@pytest.fixture
def by_init(tmp_path: Path, engine: install.Engine, labs: Labs) -> Callable[..., Stack]:
    """`by_init("rtx5090", ("rtx5090: ", ENTER), …)`: as `stack_on`, with the settings that `homelab init` wrote, of nothing but the host's address
    and the password, for a person at a terminal."""

    def make(scenario: str, *conversation: tuple[str, str], options: Sequence[str] = (), first: str = "") -> Stack:
        """``conversation``: what is asked of the cards, with the keys that answer it; ``first``: what is done on the host before."""
        _, lab = labs.take(scenario, lambda folder: Lab.start(scenario, state=folder / "lab"))
        if first:
            lab.run(first)
        (tmp_path / "stack").mkdir()
        stack = Stack(tmp_path / "stack", engine, lab=lab)
        stack.create()
        for name in PROGRAM:
            (stack.folder / name).symlink_to(PROJECT / name)
        stack.home = stack.folder.parent / "home"
        person = Person(stack.folder, stack.home, engine, lab, stack.environment)
        person.init([*conversation, ("Go on?", f"y{ENTER}")], "--stack", "lab", *options)
        stack.config = yaml.safe_load((stack.folder / "Pulumi.lab.yaml").read_text())["config"]
        return stack

    return make


#: A stack after its first `up`, by what it was made of.
deployed: dict[str, Stack] = {}


@pytest.fixture
def converged(engine: install.Engine, labs: Labs) -> Callable[..., Stack]:
    """`converged("rtx5090")`: as `stack_on`, after a first `up`, which is made once for all tests that begin with the same one."""

    def take(*arguments: Any, **keywords: Any) -> Stack:
        key = repr((arguments, sorted(keywords.items())))

        def make(folder: Path) -> Lab:
            stack = stack_of(Lab.start(arguments[0], state=folder / "lab"), engine, folder, *arguments, **keywords)
            stock = stack.lab.snapshot()
            first = stack.up()
            shutil.copytree(stack.folder, folder / "kept", symlinks=True)
            deployed[key] = replace(stack, stock=stock, first=first)
            return stack.lab

        folder, _ = labs.take(key, make)
        config = yaml.safe_load((folder / "kept" / "Pulumi.lab.yaml").read_text())["config"]
        return replace(deployed[key], config=config)

    return take
