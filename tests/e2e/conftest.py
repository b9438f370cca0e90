"""The unmodified program, run by the real Pulumi engine, on the lab."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import install, stacks
from lab import Lab
from tests import quick_python
from tests.conftest import PROJECT
from tests.engine_stack import PATIENCE_SECONDS, EngineStack, Result, kill_tree, name_of

__all__ = [
    "PATIENCE_SECONDS",
    "Result",
    "Stack",
    "api_token",
    "gpus_of",
    "host_settings",
    "kill_tree",
    "make_stack",
    "name_of",
]

# What an `up` says before anything is changed (HostProbe); nothing where the host's settings are as they were. A `not needed, unless` is
# left to the test.
_SAID_OF_REBOOT = re.compile(r"pve: reboot: (one, because|by you|not needed)(?!, unless)")


def gpus_of(scenario: str | Path) -> dict[str, Any]:
    """The cards that the scenario's own stack names, as `make up SCENARIO=…` uses it."""
    gpus: dict[str, Any] = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())["gpus"]
    return gpus


def api_token(lab: Lab) -> dict[str, Any]:
    """How a lab's API is reached with its token."""
    api = lab.api
    return {
        "port": api["port"],
        "token": api["tokenId"],
        "tokenSecret": api["tokenSecret"],
        "caFile": api["caFile"],
    }


@dataclass(kw_only=True)
class Stack(EngineStack):
    """A stack on a lab of its own."""

    lab: Lab

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

    def reboot_without_passthrough(self) -> None:
        """The person at the boot menu chooses the second entry, once."""
        ours = sorted(path.stem for path in self.lab.state.glob("esp/*/loader/entries/homelab-without-gpu-*.conf"))
        self.lab.machine.next_entry = ours[-1] if ours else "Proxmox VE without GPU passthrough, GNU/Linux"
        self.lab.reboot()
        assert self.lab.machine.power() == "on"

    def drivers(self) -> dict[str, str]:
        """PCI address -> driver, as the host's sysfs has it."""
        found = {}
        for path in (self.lab.root / "sys/bus/pci/devices").iterdir():
            driver = path / "driver"
            found[path.name] = driver.readlink().name if driver.is_symlink() else ""
        return found


def make_stack(
    engine: install.Engine,
    folder: Path,
    scenario: str | Path,
    gpus: dict[str, Any] | None = None,
    vms: dict[str, Any] | None = None,
    containers: dict[str, Any] | None = None,
    **host: Any,
) -> Stack:
    """A lab with that scenario, and a stack `lab` for it that is not deployed yet; all of it in ``folder``."""
    lab = Lab.start(str(scenario), state=folder / "lab")
    (folder / "stack").mkdir()
    settings = {**host_settings(lab), "gpus": gpus_of(scenario) if gpus is None else gpus}
    if vms is not None or any("create" in one for one in (containers or {}).values()):
        settings |= {"api": api_token(lab), "node": lab.api["node"]}
    config: dict[str, Any] = {"homelab:hosts": {"pve": settings | host}, "homelab:plan": "auto"}
    if "api" in config["homelab:hosts"]["pve"]:
        config["homelab:allowPlainSecrets"] = True  # the lab's own, in a file of the test's
    if vms is not None:
        config["homelab:vms"] = {name: {"host": "pve"} | vm for name, vm in vms.items()}
    if containers is not None:
        config["homelab:containers"] = {name: {"host": "pve"} | one for name, one in containers.items()}
    stack = Stack(folder / "stack", engine, config, lab=lab)
    stack.write_config()
    stacks.create(engine.pulumi, "lab", stack.environment)
    return stack


def host_settings(lab: Lab) -> dict[str, Any]:
    """How a lab's host is reached."""
    ssh = lab.connection
    return {
        "address": ssh["host"],
        "ssh": {"port": ssh["port"], "hostKey": ssh["hostKey"], "privateKeyFile": ssh["privateKeyFile"]},
        "timeouts": {"connect": 10, "reboot": 60, "rollback": 60},
    }


@pytest.fixture(scope="session", autouse=True)
def quick_starts() -> Iterator[None]:
    """The engine's Python processes start without their imports."""
    with quick_python.server():
        yield


@pytest.fixture
def stack_on(tmp_path: Path, engine: install.Engine) -> Iterator[Callable[..., Stack]]:
    """`stack_on("rtx5090")`: as `make_stack`; its lab is stopped at the end."""
    started: list[Stack] = []

    def make(*arguments: Any, **keywords: Any) -> Stack:
        started.append(make_stack(engine, tmp_path, *arguments, **keywords))
        return started[-1]

    yield make
    for stack in started:
        stack.lab.stop()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, engine: install.Engine) -> Iterator[Callable[..., Stack]]:
    """`untouched("rtx5090")`: as `stack_on`, for tests in which everything is refused, and which show that nothing was changed.

    Those of a file that ask for the same one get the same one, with its settings as they were.
    """
    made: dict[str, tuple[Stack, dict[str, Any]]] = {}

    def make(*arguments: Any, **keywords: Any) -> Stack:
        key = repr((arguments, sorted(keywords.items())))
        if key not in made:
            stack = make_stack(engine, tmp_path_factory.mktemp("untouched"), *arguments, **keywords)
            made[key] = (stack, copy.deepcopy(stack.config))
        stack, config = made[key]
        stack.config = copy.deepcopy(config)
        return stack

    yield make
    for stack, _ in made.values():
        stack.lab.stop()
