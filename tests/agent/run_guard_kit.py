"""A run that holds a host, as a client starts it over SSH."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from homelab.remote import agent
from lab.host.state import of_root
from remote_scripts.both.run_guard import Wanted
from remote_scripts.tools import passes
from tests import sent_along
from tests.agent.kit import Host

HELD = '{"held":"yes"}\n'


@contextmanager
def guarded(
    host: Host, who: str, *, silence: float = 60, handing: float = 45, ending: float = 2
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the host, or says why it doesn't."""
    wanted = Wanted(who=who, silence=silence, patience=0.2, handing=handing, ending=ending)
    process = subprocess.Popen(
        ["bash", "-c", f"exec {agent.command_in_memory('root')}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**of_root(host.root), "PATH": os.environ["PATH"]},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(sent_along.text("hold", agent.request("run_guard", wanted)))
    process.stdin.flush()
    assert process.stdout.readline().encode() == agent.WANTS_AGENT
    with process:
        yield process
        process.kill()


def let_start(host: Host, who: str, vmid: int = 103) -> None:
    """The run lets a VM take its cards, as what starts the VM does (guests/power.py)."""
    system = host.system()
    system.work.need_folder()
    passes.note(system, str(vmid), who)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()
