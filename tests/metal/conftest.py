"""The unmodified program on a real kernel: a Debian under QEMU, its cards stand-ins. `make test-metal` runs these, `make test` doesn't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.engine import install
from tests.engine_stack import Result
from tests.metal import image, prerequisites
from tests.metal.host import CARD, Hosts, MetalStack
from tests.metal.machine import first_boot

#: The card that is given away, told from the one like it by its address.
GPUS = {"gpu": {"match": "1234:1111", "address": CARD[0]}}


@dataclass(frozen=True)
class FirstUp:
    """The run from stock to bound that other tests go on from (snapshot `bound`), and what the host was before and after it."""

    files_before: list[str]
    drivers_before: dict[str, str]
    boots_before: int
    result: Result
    stack: MetalStack
    boots: int
    drivers: dict[str, str]
    kernel_log: str
    kept: Path


@pytest.fixture(scope="session")
def hosts(engine: install.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    prerequisites.check(image=False)
    with image.alone():
        found = Hosts(image.ensure(first_boot), engine, tmp_path_factory.mktemp("metal"))
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(scope="session")
def first_up(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> FirstUp:
    folder = tmp_path_factory.mktemp("first-up")
    machine = hosts.intel()
    stack = hosts.stack(machine, folder / "stack", GPUS)
    files, drivers, boots = stack.machine.files(), stack.machine.drivers(), stack.machine.boots()
    assert machine.run("ls /sys/kernel/iommu_groups") == ""  # or nothing would be shown by what follows
    result = stack.up()
    kept = folder / "kept"
    stack.kept_as(kept)
    found = FirstUp(
        files,
        drivers,
        boots,
        result,
        stack,
        stack.machine.boots(),
        stack.machine.drivers(),
        machine.run("dmesg"),
        kept,
    )
    machine.save("bound")
    return found


@pytest.fixture
def bound(hosts: Hosts, first_up: FirstUp, tmp_path: Path) -> MetalStack:
    """The host as the first `up` left it, and its stack."""
    return hosts.stack(hosts.intel("bound"), tmp_path / "stack", GPUS, first_up.kept)
