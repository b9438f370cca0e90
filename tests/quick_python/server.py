"""Runs the program, its provider and `python -m homelab` as forks of one process that has made their imports: `python server.py LISTENER`.

Of the processor time of an engine's run that changes nothing, two fifths were these imports; of `homelab init` they are a half. The processes
are the real ones otherwise: the same files, run as `__main__`, with the environment, folder and streams that they are given.
The preview of tests/e2e/test_make.py, the gaming VM's project (test_gaming_vm.py), and what tests/lab and
tests/unit start run without it.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pkgutil
import runpy
import select
import socket
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
#: No gRPC channel and no thread may be there at a fork; importing makes none.
IMPORTED = (
    "asyncssh",
    "proxmoxer.backends.https",
    "grpc.aio",
    "grpc._channel",  # which the first channel imports
    "pulumi.runtime",
    "pulumi_command.remote",
    "homelab.stack",
    "homelab.contract",
)
#: And all modules of these.
PACKAGES = (
    "components",
    *(f"homelab.{name}" for name in ("doctor", "provider", "reading", "remote", "resources", "resources.work", "show")),
)


def load(name: str) -> None:
    """All modules of a package but its program."""
    for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
        if module.name != "__main__":
            # Which imports it now (homelab/later.py).
            importlib.import_module(f"{name}.{module.name}").__doc__  # noqa: B018


def warm() -> None:
    """What each of these processes makes for itself of this program's own files, and keeps as long as it runs: modules; scripts as they are sent;
    the tables of cards, kernels and packages; how what the engine says is read."""
    import pulumi_command.remote

    from homelab import symptoms
    from homelab.cards import unfit
    from homelab.container import libraries
    from homelab.facts import kernel_log
    from homelab.nvidia import compatibility
    from homelab.provider import registry  # which declares all resources
    from homelab.remote import agent
    from homelab.resources.base import declared
    from homelab.resources.work.base import adapter_of
    from remote_scripts.both.read_host import Wanted

    for name in (*PACKAGES, *(f"homelab.{subject}" for subject in registry.SUBJECTS)):
        load(name)
    pulumi_command.remote.Command  # noqa: B018  # a module of the SDK is read at its first attribute
    agent.put("warm")
    agent.asked("read", agent.request("read_host", Wanted()))
    agent.itself()
    for table in (unfit.rows, kernel_log.signs, kernel_log.start_signs, libraries.rows):
        table()
    compatibility.load()
    symptoms.symptoms()
    for resource in declared().values():
        adapter_of(resource.Inputs)  # type: ignore[arg-type]
        adapter_of(resource.Outputs)  # type: ignore[arg-type]


def warm_commands() -> None:
    """What `python -m homelab` imports besides."""
    load("homelab.cli")


def prepare(words: list[str]) -> None:
    """Not every run of pytest has a test that runs a command."""
    if words[:2] == ["-m", "homelab"]:
        warm_commands()


def run(words: list[str]) -> int:
    """Words as after `python`: `-m MODULE ARGUMENTS...` or `SCRIPT ARGUMENTS...`."""
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(words[0]))  # noqa: PTH120
        sys.argv[:] = words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            # A fork ends without what is to be done at an exit; a program that refuses says by that how it ends (homelab/stack.py).
            if end.code:
                atexit._run_exitfuncs()
            raise
    return 0


if __name__ == "__main__":
    sys.path[0] = str(PROJECT)
    listener = socket.socket(fileno=int(sys.argv[1]))
    # Not every run of pytest has a test that asks for something before stdin ends.
    if listener in select.select([listener, sys.stdin], [], [])[0]:
        from lab.host.command_server import Server

        for name in IMPORTED:
            importlib.import_module(name)
        warm()
        Server(listener, prepare, run).serve()
