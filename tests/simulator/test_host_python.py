"""The host's Python: a program of the agent's has the modules of its archive alone, and is a process of the host's as any other one."""

from __future__ import annotations

import json
from pathlib import Path

from remote_scripts import put_agent
from remote_scripts.tools import modules
from tests.lab.host_kit import Host

LAYER = "remote_scripts.layers.initramfs"
#: Says where its modules are from, and what it finds of others.
SAYS = f"""\
import importlib.util, json, os, sys
from remote_scripts import agent
from {LAYER} import trial
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("remote_scripts.") and hasattr(module, "apply")]
print(json.dumps({{
    "files": files, "parent": os.getppid(), "found": [name for name in ("yaml", "lab", "host", "homelab") if importlib.util.find_spec(name)],
}}))
"""


def archive(place: Path) -> Path:
    """A program with the modules of one layer."""
    texts = {name: modules.source(name) for name in modules.needed(modules.AGENT, LAYER)}
    texts |= {
        "remote_scripts.installed": "TEXTS = {'a': 'text'}\n",
        "remote_scripts.codes": "OF_LAYERS = {}\n",
        "__main__": SAYS,
    }
    place.write_bytes(modules.packed(texts))
    return place


def test_a_program_is_a_process_of_its_own_that_has_its_archives_modules_and_finds_no_others(
    host: Host, tmp_path: Path
) -> None:
    file = archive(tmp_path / "program.pyz")
    file.write_bytes(put_agent.compiled(file.read_bytes()))
    shell, said = host.output(f"echo $$; /usr/bin/python3 -I -S -B -X utf8 {file}").splitlines()
    found = json.loads(said)
    assert found["parent"] == int(shell) and found["found"] == []
    assert found["files"] == [f"{file}/remote_scripts/layers/initramfs.pyc"]
