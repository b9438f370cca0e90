"""homelab/later.py: what a run without a change does not need, it does not import."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from homelab.later import later
from tests.conftest import PROJECT

# What takes long to import, each for the work that it is for.
HEAVY = {"asyncssh", "proxmoxer", "requests", "homelab.facts.host", "homelab.nvidia.compatibility"}


def imported(program: str) -> set[str]:
    """The modules that a program has imported; one that is still to be imported is none."""
    ask = f"{program}\nimport sys\nprint(*(n for n, m in sys.modules.items() if type(m).__name__ != '_Later'))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_program_that_declares_resources_imports_nothing_that_reads_a_host() -> None:
    names = "card_nodes gpu_cards gpu_lxc gpu_vm host_reboot iommu_host nvidia_guest_stack vfio_binding"
    program = "".join(f"import components.{name}\n" for name in names.split()) + "import homelab.stack"
    found = imported(program)
    assert "homelab.settings" in found and not HEAVY & found


def test_the_provider_imports_nothing_that_works_until_there_is_work() -> None:
    found = imported("import homelab.provider.serve")
    assert "homelab.vm.resource" in found
    assert not (HEAVY | {"pydantic", "homelab.settings", "homelab.resources.work.base"}) & found


def test_the_provider_needs_the_messages_of_pulumis_sdk_alone_whatever_its_work() -> None:
    program = (
        "import contextlib, importlib, runpy, sys\n"
        "with contextlib.suppress(StopIteration): runpy.run_module('homelab.provider')\n"  # nobody has said where the engine is
        "from homelab.provider.registry import SUBJECTS\n"
        "for subject in SUBJECTS: importlib.import_module(f'homelab.{subject}.work')\n"
        "while late := [m for m in sys.modules.values() if type(m).__name__ == '_Later']: [hasattr(m, 'any') for m in late]"
    )
    found = imported(program)
    of_sdk = {name for name in found if name.partition(".")[0] in ("pulumi", "pulumi_command")}
    more = {name for name in of_sdk if not name.startswith("pulumi.runtime.proto.")}
    assert "homelab.reading.planning" in found
    assert more == {"pulumi", "pulumi.runtime", "pulumi.runtime._grpc_settings", "pulumi.runtime.proto"}


def test_a_refresh_of_a_host_imports_what_it_reads_and_nothing_that_plans_or_asks_the_api() -> None:
    found = imported("import homelab.provider.serve, homelab.host.work")
    assert {"asyncssh", "homelab.facts.host"} <= found
    assert not {"proxmoxer", "requests", "homelab.reading.planning", "homelab.nvidia.compatibility"} & found


def test_what_a_run_has_imported_is_not_looked_through_for_garbage() -> None:
    program = (
        "import contextlib, gc, homelab.stack\n"
        "with contextlib.suppress(Exception): homelab.stack.load()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    assert {"True"} == imported(program) & {"True", "False"}
    provider = (
        "import gc, runpy, homelab.provider.serve as serve\n"
        "serve.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "runpy.run_module('homelab.provider.__main__')"
    )
    assert {"True"} == imported(provider) & {"True", "False"}


def test_a_program_waits_for_the_engine_to_hear_what_a_person_is_told_alone() -> None:
    program = (
        "import contextlib, pulumi, homelab.stack\n"
        "from types import SimpleNamespace as Engine\n"
        "pulumi.runtime.settings.SETTINGS.engine = Engine(Log=lambda request: print(request.message))\n"
        "with contextlib.suppress(Exception): homelab.stack.load()\n"
        "pulumi.log.debug('of-the-sdk'); pulumi.log.info('of-homelab')"
    )
    assert {"of-homelab"} == imported(program) & {"of-the-sdk", "of-homelab"}


def test_no_garbage_is_looked_for_until_the_program_has_imported_all() -> None:
    program = (
        "import gc, runpy, sys, homelab.stack as stack\n"
        "stack.load = lambda: sys.exit(gc.isenabled() and 'garbage was looked for')\n"
        "try: runpy.run_path('__main__.py')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )
    assert "components.gpu_vm" in imported(program)


def test_a_login_before_a_step_imports_nothing_that_reads_a_host() -> None:
    found = imported("import homelab.resources.command as command; command._logins.reach")
    assert "asyncssh" in found
    assert not {"homelab.facts.host", "homelab.cards.resolving", "remote_scripts.layers.read_host"} & found


def test_a_late_module_is_an_attribute_of_its_package() -> None:
    imported(
        "from homelab.later import later; import homelab.remote; assert later('homelab.remote.ssh') is homelab.remote.ssh"
    )


def test_a_module_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match="no module homelab.nothing"):
        later("homelab.nothing")


def test_several_threads_that_use_a_late_module_at_once_find_its_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.2)\nVALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, start = later("slow_module"), threading.Barrier(4)

    def value() -> int:
        start.wait()
        found: int = module.VALUE
        return found

    with ThreadPoolExecutor(4) as threads:
        assert [one.result() for one in [threads.submit(value) for _ in range(4)]] == [7] * 4
    assert type(module) is ModuleType


def test_a_late_module_and_an_import_at_the_same_time_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread imports what a late module needs, which itself needs another late module; the other thread loads the first."""
    (tmp_path / "late_base.py").write_text("VALUE = 7\n")
    (tmp_path / "needed_by_both.py").write_text(
        "import time\ntime.sleep(0.5)\nfrom late_base import VALUE as FOUND\nVALUE = FOUND\n"
    )
    (tmp_path / "late_top.py").write_text("from needed_by_both import VALUE as FOUND\nVALUE = FOUND\n")
    program = (
        "import importlib, os, threading, time\n"
        "from homelab.later import later\n"
        "later('late_base')\n"
        "top = later('late_top')\n"
        "importing = threading.Thread(target=importlib.import_module, args=['needed_by_both'], daemon=True)\n"
        "loading = threading.Thread(target=lambda: top.VALUE, daemon=True)\n"
        "importing.start()\n"
        "time.sleep(0.2)\n"
        "loading.start()\n"
        "importing.join(10)\n"
        "loading.join(10)\n"
        "print(importing.is_alive() or loading.is_alive(), flush=True)\n"
        "os._exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{tmp_path}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout == "False\n", done.stderr


def test_models_can_be_defined_in_the_providers_process() -> None:
    """What reads a model's docstrings asks every module for its file: one that is imported by that may not need the model itself."""
    imported("import homelab.provider.serve, homelab.settings")
