"""Shared by all tiers: where things are, what the tests may rely on."""

from __future__ import annotations

import ast
import gc
import itertools
import math
import os
import re
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import sampling
from tests.plain import PLAIN

if TYPE_CHECKING:
    from lab.engine import install

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"
_KEPT_BESIDE = "captures of real machines are kept beside the project"


def ours_below(folder: Path, suffix: str) -> Iterator[Path]:
    """The project's files below a folder. A virtual environment, as an example that was tried out has one, is hidden, and git ignores it."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if name.endswith(suffix))


#: Of tests/unit what `make test-fast` leaves out, by what it took.
SLOW = (
    "unit/test_settings_reach_resources.py::test_a_setting_that_changes_changes_what_a_resource_is_told",
    "unit/test_windows.py::",
)

#: Tiers and files whose tests need what only Linux has, and why. Elsewhere they aren't collected; the others run on Windows, too
#: (.github/workflows/windows.yml, tests/unit/test_windows.py).
NEEDS_LINUX = {
    "e2e/": "simulated hosts: namespaces, mounts, fcntl",
    "engine/": "the engine as lab/engine/install.py makes it, with simulated hosts",
    "lab/": "simulated hosts",
    "metal/": "QEMU with KVM, loop devices",
    "simulator/": "simulated hosts",
    "windows/": "Windows' programs under Wine, with simulated hosts",
    "unit/test_deploy.py": "starts a simulated host",
    "unit/test_stacks.py": "compares the stacks with the lab's scenarios",
    "unit/test_workflow_steps.py": "runs the workflows' steps in bash",
}
#: Single tests that need what Windows doesn't have; there they are skipped, with the reason.
NEEDS_UNIX = {
    "unit/test_doctor_stack.py::test_the_stack_is_the_one_that_pulumi_has_selected": "a script of sh stands in for Pulumi",
    "unit/test_init_run.py::test_a_key_of_a_user_is_put_into_the_users_home": "runs the host's command in bash",
    "unit/test_init_run.py::test_a_link_stays_one_and_who_may_read_the_file_stays": "symbolic links and modes of files",
    "unit/test_init_run.py::test_a_plugin_that_takes_too_long_is_waited_for_no_longer": "a script of sh stands in for Pulumi",
    "unit/test_init_run.py::test_a_preview_for_a_program_is_shown_on_standard_error": "a script of sh stands in for Pulumi",
    "unit/test_init_run.py::test_half_a_key_of_an_ended_run_is_in_nobodys_way": "modes of files",
    "unit/test_log_texts.py::test_the_hosts_grep_leaves_no_half_of_a_message": "the host's grep",
    "unit/test_pages.py::test_the_readmes_commands_in_their_order_end_outside_of_the_clone": "scripts of sh stand in for programs",
    "unit/test_pull_request.py::test_a_project_has_the_environment_that_it_is_used_from": "symbolic links",
}


def pytest_report_header() -> list[str]:
    """Which sample this run tries (tests/sampling.py), and where its files are."""
    tried = "samples: every one" if sampling.EVERY else f"samples: HOMELAB_SEED={sampling.SEED}"
    return [tried, f"temporary files: {tempfile.gettempdir()}"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Only on Linux: what NEEDS_LINUX lists."""
    if sys.platform == "linux" or not collection_path.is_relative_to(PROJECT / "tests"):
        return None
    name = collection_path.relative_to(PROJECT / "tests").as_posix() + ("/" if collection_path.is_dir() else "")
    return True if name in NEEDS_LINUX else None


def shared(*parts: str) -> Path:
    """Data about real machines and real services, read where it lies; the test is skipped where it isn't."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{Path('..', 'shared', *parts)} is not there: {_KEPT_BESIDE}", allow_module_level=True)
    return path


#: Files with tests of the engine, and about how many seconds of processor time each takes. Files that begin with the same kept host (`converged` in
#: tests/e2e/conftest.py) are side by side, for each process that has one of their tests makes that host.
WITH_ENGINE = {
    "e2e/test_nvidia_lxc.py": 33,
    "e2e/test_handover.py": 28,
    "e2e/test_gpu_lxc.py": 7,
    "e2e/test_voices.py": 8,
    "e2e/test_state_lost.py": 8,
    "e2e/test_gpu_vm.py": 13,
    "e2e/test_gaming_vm.py": 13,
    "e2e/test_own_program.py": 16,
    "e2e/test_nvidia_host.py": 30,
    "e2e/test_nvidia_failures.py": 12,
    "e2e/test_nvidia_vm.py": 17,
    "e2e/test_other_cards.py": 6,
    "e2e/test_make.py": 11,
    "e2e/test_cluster.py": 16,
    "e2e/test_init.py": 18,
    "e2e/test_new_container.py": 7,
    "e2e/test_by_hand.py": 4,
    "e2e/test_several_hosts.py": 9,
    "e2e/test_new_vm.py": 11,
    "e2e/test_kill.py": 11,
    "e2e/test_failures.py": 9,
    "e2e/test_converge.py": 7,
    "e2e/test_cards.py": 6,
    "e2e/test_drift.py": 8,
    "e2e/test_preview.py": 15,
    "e2e/test_released.py": 110,
    "e2e/test_two_versions.py": 60,
    "e2e/test_roads.py": 60,
}


def in_shares(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In the order in which `--dist worksteal` gives each worker a share as large as the others': its part of WITH_ENGINE comes first.

    A worker that has nothing to do any more takes from the end of what another one has left: what takes long and begins last, all would wait for.
    """
    files = {PROJECT / "tests" / name: number for number, name in enumerate(WITH_ENGINE)}
    ends = [end / sum(WITH_ENGINE.values()) for end in itertools.accumulate(WITH_ENGINE.values())]
    long = sorted((item for item in items if item.path in files), key=lambda item: files[item.path])
    short = iter([item for item in items if item.path not in files])
    found: list[pytest.Item] = []
    for number in range(workers):
        size = (len(items) - len(found)) // (workers - number)
        own = [item for item in long if math.ceil(ends[files[item.path]] * workers) == number + 1]
        found += [*own, *itertools.islice(short, max(size - len(own), 0))]
    return [*found, *short]


def not_drawn(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those that have the mark `one_of`, but for one of each kind, unless every sample is tried."""
    roads: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        for mark in item.iter_markers("one_of"):
            roads[mark.args[0]].append(item)
    return [item for kind, found in roads.items() for item in found if item not in sampling.sample(found, 1, kind)]


def pytest_configure(config: pytest.Config) -> None:
    """The mark of tests that are a sample."""
    config.addinivalue_line("markers", "one_of(kind): of the tests of that kind, one is drawn (tests/sampling.py)")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """`slow`: what `make test-fast` leaves out. On Windows also what NEEDS_UNIX lists. Of those that were asked for, samples are drawn (`one_of`), and each
    worker's share begins with what takes longest."""
    names = {path: path.relative_to(PROJECT / "tests").as_posix() for path in {item.path for item in items}}
    for item in items:
        name = names[item.path]
        needed = NEEDS_UNIX.get(f"{name}::{getattr(item, 'originalname', item.name)}")
        if needed and sys.platform == "win32":
            item.add_marker(pytest.mark.skip(reason=f"not on Windows: {needed}"))
        # Simulated systems that install packages.
        if re.match(
            "e2e/test_nvidia_|lab/test_(nvidia_(read|stack)|card_l)|simulator/test_(pack|driver_)", name
        ) and not os.access("/usr/bin/apt-get", os.X_OK):
            item.add_marker(pytest.mark.skip(reason="packages are installed by this machine's apt: it has none"))
        if not name.startswith("unit/") or f"{name}::{item.name}".startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    yield
    undrawn = not_drawn(items)
    asked = dict.fromkeys(sampling.of_shard([item for item in items if item not in undrawn]))
    if left := [item for item in items if item not in asked]:
        config.hook.pytest_deselected(items=left)
    items[:] = in_shares([*asked], getattr(config, "workerinput", {"workercount": 1})["workercount"])


def pytest_sessionstart() -> None:
    """Nobody looks for garbage where there is next to none.

    Modules and tests live until the end. With the usual 700 objects between two searches, these were a seventh of a worker's time.
    """
    gc.set_threshold(50_000, 10, 10)


_parse_once = ast.parse


def _parse(*arguments: Any, **options: Any) -> Any:
    """Python 3.11 counts the depth of all threads as one (SystemError: AST constructor recursion depth mismatch)."""
    try:
        return _parse_once(*arguments, **options)
    except SystemError:
        return _parse_once(*arguments, **options)


ast.parse = _parse


def pytest_collection_finish() -> None:
    """What was collected lives until the end: nobody looks through ten thousand tests for garbage again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """As the last lines before pytest's own: what was skipped for which reason; of which sample a test has failed."""
    for line in skipped_for(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)
    if terminalreporter.stats.keys() & {"failed", "error"} and not sampling.EVERY:
        terminalreporter.write_line(f"HOMELAB_SEED={sampling.SEED} draws the same samples again", red=True)


def skipped_for(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """A line for each reason: how many tests and whole files weren't run."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        # Which capture it is doesn't matter here.
        reason = re.sub(r"^.*: (?=captures of real machines)", "without ../shared: ", reason.removeprefix("Skipped: "))
        reasons[reason]["tests" if isinstance(report, pytest.TestReport) else "whole files"] += 1
    return [
        f"skipped: {' and '.join(f'{number} {kind}' for kind, number in kinds.items())}: {reason}"
        for reason, kinds in sorted(reasons.items())
    ]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`. A test with the engine or a host waits, for boots and other processes, twice as long as it computes, fast tests
    don't; memory (half a gigabyte a worker) sets the limit on large machines."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors if "not slow" in config.option.markexpr else min(3 * processors + 1, processors + 5)


@pytest.fixture(scope="session", autouse=True)
def as_sshd_starts_it() -> Iterator[None]:
    """What runs on hosts, and labs, have no signal ignored, whoever started the tests (nohup, say): a shell can't trap one that it was started without.

    A signal that has a handler here is as by default in what is started. To say so in each child (`preexec_fn`) takes a copy of the tables of
    all memory that this process has, for 2 to 25 ms.
    """
    usual = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM") if hasattr(signal, name)]
    ignored = [one for one in usual if signal.getsignal(one) is signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, lambda *_: None)
    yield
    for one in ignored:
        signal.signal(one, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def command_server() -> Iterator[None]:
    """For the lab's hosts without a daemon: their commands start in a tenth of the time."""
    if sys.platform != "linux":
        yield
        return
    from lab.commands import NO_SERVER, CommandServer

    if PLAIN:
        os.environ[NO_SERVER] = "yes"  # for those of labs' daemons, too
    with CommandServer():
        yield
    os.environ.pop(NO_SERVER, None)


@pytest.fixture(scope="session", autouse=True)
def kept_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The lab's stock hosts: each is installed once in a run, by whichever process needs it first."""
    if sys.platform != "linux":
        yield
        return
    from lab import kept

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'
    (folder / "kept-hosts").mkdir(exist_ok=True)
    os.environ[kept.FOLDER] = str(folder / "kept-hosts")
    yield
    del os.environ[kept.FOLDER]


@pytest.fixture(autouse=True)
def no_connection_outlives_its_test() -> Iterator[None]:
    """A process has one connection to each host until it ends; here each test is a process of its own."""
    yield
    if "homelab.remote.loop" in sys.modules:
        from tests import connections

        connections.end_all()


@pytest.fixture(scope="session")
def engine() -> install.Engine:
    from lab.engine import install

    return install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
