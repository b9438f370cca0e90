"""The host's agent as a fork of the test's process, which has its modules: a tenth of the time of a Python that starts and reads them from what is sent.

In a plain run (tests/plain.py) it is that Python. It is a process of its own otherwise, with the environment, streams and signals of one that a host starts. As a host starts it: tests/agent/test_start.py,
every run in tests/e2e, and what starts on a host of tests/lab by itself.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from homelab import symptoms
from homelab.remote import agent as asking
from homelab.remote import ssh
from lab import Lab
from lab.host import host_python
from remote_scripts import agent, tables
from tests import sent_along
from tests.plain import PLAIN
from tests.waiting import PATIENCE

Answered = subprocess.CompletedProcess[str]
#: By what the agent is to do, and the request.
Answers = dict[tuple[str, bytes], Answered]


@functools.cache
def _codes() -> dict[str, str]:
    return {layer: asking.code_of(layer) for layer in asking.layers()}


@functools.cache
def _symptoms() -> str:
    return symptoms.packed()


def asked(
    environment: Mapping[str, str],
    verb: str,
    layer: str,
    wanted: Any,
    *,
    folder: Path = Path("/"),
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """What the agent answers, and says, on a system.

    :param environment: of the system's commands.
    :param folder: in which it works.
    :param options: of `homelab.remote.agent.request`.
    """
    return answered(environment, verb, layer, asking.request(layer, wanted, **options).encode(), folder)


def in_place_of_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, *labs: Lab, known: Callable[[], Answers | None] = lambda: None
) -> None:
    """In a test: sessions with these labs are real, and what they ask the agent is answered by a fork.

    :param known: what keeps answers while nothing changes a host: asked the same again, the agent isn't. None: nothing does.
    """
    if PLAIN:
        return
    by_port, real = {lab.connection["port"]: lab for lab in labs}, ssh.Session._run

    def run(session: ssh.Session, command: str | None, verb: str, script: str, *more: Any, **options: Any) -> str:
        lab = by_port.get(session._host.ssh.port)
        if lab is None or command is not None:  # of a script of its own
            return real(session, command, verb, script, *more, **options)
        sent = json.loads(script)
        answers = ""
        for request in sent["requests"]:
            text, verb_sent = json.dumps(request).encode(), sent["verb"]
            kept = known() if verb_sent in ("read", "plan") else None
            done = None if kept is None else kept.get((verb_sent, text))
            if done is None:
                done = answered(lab.machine.environment(), verb_sent, request["layer"], text, Path("/"))
            if kept is not None:
                kept[verb_sent, text] = done
            for on_line in more[1:2]:
                for line in done.stderr.splitlines() if on_line else ():
                    on_line(line)
            answers += done.stdout
            if done.returncode:
                raise ssh._failed(verb, answers, done.stderr, done.returncode)
        return answers

    monkeypatch.setattr(ssh.Session, "_run", run)


def answered(environment: Mapping[str, str], verb: str, layer: str, text: bytes, folder: Path) -> Answered:
    """As of `asked`, to the text of a request."""
    if PLAIN:
        return _started(environment, verb, text, folder)
    importlib.import_module(f"remote_scripts.layers.{layer}")
    told = (_codes(), _symptoms())
    streams = [os.memfd_create(name) for name in ("output", "errors")]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(environment, folder, streams, verb, text, *told)
    ended = os.pidfd_open(pid)
    try:
        if not select.select([ended], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [os.pread(stream, os.fstat(stream).st_size, 0).decode() for stream in streams]
    finally:
        for descriptor in (ended, *streams):
            os.close(descriptor)
    return subprocess.CompletedProcess([layer, verb], status, *said)


def _started(environment: Mapping[str, str], verb: str, text: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a session asks a system that keeps no agent."""
    done = subprocess.run(
        ["bash", "-c", asking.command_in_memory("root")],
        input=sent_along.text(verb, text.decode()),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    done.stdout = sent_along.answer(done.stdout)
    return done


def _become(
    environment: Mapping[str, str],
    folder: Path,
    streams: list[int],
    verb: str,
    text: bytes,
    codes: dict[str, str],
    symptoms_as_text: str,
) -> NoReturn:
    # What the test's process has left is not this one's: a file of it, closed below, would fail when it is collected, in the middle of anything.
    gc.freeze()
    status = 1
    tables.SYMPTOMS = symptoms_as_text
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, stream in enumerate((nothing, *streams)):
            os.dup2(stream, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: PTH123, SIM115
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        host_python.on_the_host()
        status = agent.main([verb], codes, text)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status & 255)
