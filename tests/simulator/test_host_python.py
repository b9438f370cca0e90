"""The host's Python: a program of the agent's has the modules of its archive, whichever are ready; and is a process of the host's as any other one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import processes
from lab.commands import CommandServer
from lab.host.command_server import FORKED_PYTHON
from remote_scripts import put_agent
from remote_scripts.tools import modules
from tests.conftest import PROJECT
from tests.lab.host_kit import Host
from tests.waiting import wait_until

LAYER = "remote_scripts.layers.initramfs"
#: Says where its modules are from, and what it finds of others.
SAYS = f"""\
import importlib.util, json, os, sys
from remote_scripts import agent, codes, installed
from {LAYER} import trial
import remote_scripts.layers
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("remote_scripts.") and hasattr(module, "apply")]
print(json.dumps({{
    "files": files, "texts": installed.TEXTS, "seen by others": trial.rollback_timer.installed.TEXTS, "codes": codes.OF_LAYERS,
    "parent": os.getppid(), "folder": remote_scripts.layers.__path__, "found": [name for name in ("yaml", "lab", "host", "homelab") if importlib.util.find_spec(name)],
}}))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host") / "lab", "rtx5090", running=True)


def archive(place: Path, **others: str) -> Path:
    """A program with the modules of one layer; ``others``: a module's text in place of its own, empty: without it."""
    texts = {name: modules.source(name) for name in modules.needed(modules.AGENT, LAYER)}
    texts |= {
        "remote_scripts.installed": "TEXTS = {'a': 'text'}\n",
        "remote_scripts.codes": "OF_LAYERS = {}\n",
        "__main__": SAYS,
    }
    texts |= {f"remote_scripts.{name.replace('__', '.')}": text for name, text in others.items()}
    place.write_bytes(modules.packed({name: text for name, text in texts.items() if text}))
    return place


def test_modules_that_are_ready_are_an_archives_own_where_all_of_them_are_as_there(host: Host, tmp_path: Path) -> None:
    file = archive(tmp_path / "program.pyz")
    said = json.loads(host.output(f"/usr/bin/python3 -I -S -B -X utf8 {file}"))
    assert said["files"] == [str(PROJECT / "remote_scripts/layers/initramfs.py")]
    assert said["texts"] == said["seen by others"] == {"a": "text"} and said["codes"] == {}
    assert said["folder"] == [f"{file}/remote_scripts/layers"] and said["found"] == []


def test_outside_of_tests_a_program_is_a_process_of_its_own_that_imports_its_modules(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive(tmp_path / "program.pyz")
    file.write_bytes(put_agent.compiled(file.read_bytes()))
    monkeypatch.delenv(FORKED_PYTHON)
    with CommandServer():
        shell, said = host.output(f"echo $$; /usr/bin/python3 -I -S -B -X utf8 {file}").splitlines()
    found = json.loads(said)
    assert found["parent"] == int(shell) and found["found"] == []
    assert found["files"] == [f"{file}/remote_scripts/layers/initramfs.pyc"]


def test_a_fork_that_waited_before_they_were_ready_runs_no_program(host: Host, tmp_path: Path) -> None:
    file = archive(tmp_path / "program.pyz")
    with CommandServer():
        host.output("update-initramfs -u")
        assert str(PROJECT) in json.loads(host.output(f"/usr/bin/python3 {file}"))["files"][0]


def test_an_archive_with_another_module_has_all_of_its_own(host: Host, tmp_path: Path) -> None:
    file = archive(tmp_path / "program.pyz", tools__words=f"{modules.source('remote_scripts.tools.words')}\n")
    assert json.loads(host.output(f"/usr/bin/python3 {file}"))["files"]
    changed = archive(tmp_path / "changed.pyz", boot__boot=f"{modules.source('remote_scripts.boot.boot')}\nNEW = 1\n")
    assert json.loads(host.output(f"/usr/bin/python3 {changed}"))["files"] == [
        f"{changed}/remote_scripts/layers/initramfs.py"
    ]


def test_a_module_that_an_archive_lacks_is_not_there(host: Host, tmp_path: Path) -> None:
    done = host.run(f"/usr/bin/python3 {archive(tmp_path / 'program.pyz', boot__boot='')}")
    assert done.returncode == 1 and "cannot import name 'boot'" in done.stderr, done.stderr


def test_what_a_killed_program_has_started_is_found_as_its_hosts(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(
        f"import os, time\nchild = os.fork()\nif child: open({str(tmp_path / 'child')!r}, 'w').write(f'{{child}}\\n')\ntime.sleep(600)\n"
    )
    child = tmp_path / "child"
    with subprocess.Popen(["bash", "-c", f"/usr/bin/python3 {file}; :"], env=host.machine.environment()) as process:
        wait_until(lambda: child.exists() and child.read_text().endswith("\n"))
        pid = int(child.read_text())
        below = processes.descendants(process.pid)
        assert pid in {one for one, _ in below}
        os.kill(process.pid, signal.SIGKILL)
    parent, _ = processes._all_processes()[pid]
    assert parent != process.pid and Path(f"/proc/{parent}").exists()
    os.kill(pid, signal.SIGKILL)
