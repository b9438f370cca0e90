"""A first `up` on a real kernel, beside a script of a dozen lines that does the same to the host and nothing else.

Both begin with the same snapshot of an emulated host (tests/metal), and end with the same files and drivers. The simulated hosts of the other parts make an initramfs and
restart in no time. Here both take what they take on a real kernel, so that this says what the program costs beside them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.engine import install
from tests.bench import measure
from tests.bench.errors import BenchError
from tests.bench.job import PATHS, words
from tests.bench.report import FLOOR, Measured
from tests.bench.subjects import Programs
from tests.metal import image, prerequisites
from tests.metal.host import CARD, TIMEOUTS, Hosts
from tests.metal.machine import Machine, first_boot

SCRIPT = Path(__file__).resolve().parent / "by_hand" / "from-stock-to-bound.sh"
GPUS = {"gpu": {"match": "1234:1111", "address": CARD[0]}}
PATIENCE_SECONDS = 1800.0


def measure_floor(folder: Path, engine: install.Engine, rounds: int) -> list[Measured]:
    """Each of `FLOOR`, by turns.

    :param folder: for the host's disk, the stacks, and the files that the script writes.
    :raises HomelabError: no host can be emulated here; it says what is missing, as `make test-metal` does.
    :raises BenchError: the script fails, or leaves another host than `up` does.
    """
    folder.mkdir()
    prerequisites.check(image=False)
    results = {name: Measured(name, title) for name, title in FLOOR.items()}
    with image.alone():
        hosts = Hosts(image.ensure(first_boot), engine, folder)
        try:
            for number in range(rounds):
                _round(hosts, engine, folder / f"round-{number}", results)
        finally:
            hosts.close()
    return list(results.values())


def _round(hosts: Hosts, engine: install.Engine, folder: Path, results: dict[str, Measured]) -> None:
    folder.mkdir()
    machine = hosts.intel()
    programs = Programs(engine, folder)
    programs.prepare_settings({"pve": {**machine.settings, "gpus": GPUS, "timeouts": TIMEOUTS}})
    _add(results["up"], programs.up().command, folder, programs.up().environment)
    left, files = _left(machine), _fetched(machine, folder / "files")
    check = _check(words(files), left[0])

    machine = hosts.intel()
    _add(results["script"], [str(SCRIPT), str(files), check, *machine.ssh()], folder, os.environ)
    if _left(machine) != left:
        raise BenchError(
            "the script leaves the host as `up` does",
            "other files or drivers",
            "only the same job can be compared",
            f"correct tests/bench/by_hand/{SCRIPT.name}",
        )


def _add(measured: Measured, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = measure.run(command, folder, environment, folder / f"{measured.name}.log", PATIENCE_SECONDS)
    if done.code:
        raise BenchError(
            f"{measured.title}: exit code 0",
            f"{done.code}; its last words: {done.output[-800:].strip()}",
            "a failed run can't be compared",
            "run `.venv/bin/python -m tests.bench --only floor --keep`: the logs stay in the folder that it names",
        )
    measured.seconds.append(done.seconds)


def _left(machine: Machine) -> tuple[dict[str, str], str]:
    """PCI address -> driver; and the job's files."""
    drivers = machine.run(
        'cd /sys/bus/pci/devices; for one in *; do echo "$one $(basename "$(readlink "$one/driver")")"; done'
    )
    paths = " ".join(PATHS)
    return dict(line.split(" ") for line in drivers.splitlines()), machine.run(f"sha256sum {paths}; stat -c %a {paths}")


def _fetched(machine: Machine, folder: Path) -> Path:
    """A folder with the job's files, under the paths that they have on the host."""
    folder.mkdir()
    packed = subprocess.run(
        [*machine.ssh(), f"tar -C / -c {' '.join(path[1:] for path in PATHS)}"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-C", str(folder), "-x"], input=packed.stdout, check=True)
    return folder


def _check(wanted: list[str], drivers: dict[str, str]) -> str:
    """A shell command that fails where a word or a binding is missing."""
    named = [f"grep -qw -- {shlex.quote(word)} /proc/cmdline" for word in wanted]
    bound = [one for one, driver in drivers.items() if driver == "vfio-pci"]
    return " && ".join([*named, *(f"[ -e /sys/bus/pci/drivers/vfio-pci/{one} ]" for one in bound)])
