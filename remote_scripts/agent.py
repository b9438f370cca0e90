"""Does one thing for one layer on this system: `read`, `plan`, `apply` or `revert`; or `hold`, which goes on after its
answer for as long as its client is there.

A request is one JSON object on standard input: `layer`, `input` (of the layer's `Wanted`), `seconds` (until this run is
killed; 0 or missing: never), `code` (a digest of the modules that the layer is made of; missing: any) and `ctid` (a
container of this system, in which the layer is to work; missing: on this system itself). What goes to standard output
is one line of JSON, or, with another exit status than 0, a message for a person in four parts; standard error has a log
for people.

HOMELAB_ROOT in the environment is before every path, so that a simulated host can be a folder; on a host it isn't set.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from remote_scripts.containers.container_system import is_gone, need_running
from remote_scripts.tools.client import Client
from remote_scripts.tools.done import NOT_FOUND
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import FormError, of_plain, to_plain
from remote_scripts.tools.run import end_all
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

VERBS = ("read", "plan", "apply", "revert")
# One that goes on after its answer, for as long as its client is there.
_HOLD = "hold"
# So long the last words of a step are waited for: what it has started may have its pipes still.
_LAST_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked; the module says what the parts are. `proxy`: for downloads; it may hold a password, and a request
    that has it is a secret as a whole. `generation`: nothing for the agent; a new one makes Pulumi ask again.
    """

    layer: str
    input: dict[str, Any]
    seconds: int = 0
    code: str = ""
    proxy: str = ""
    generation: int | str = 0
    ctid: int = 0


def main(arguments: list[str], codes: dict[str, str], text: bytes | None = None) -> int:
    """Does what standard input asks for, in a process group of its own, and returns the exit status.

    :param arguments: the verb.
    :param codes: the digest of each layer that this agent has.
    :param text: the request, where standard input has none, or goes on after it.
    """
    # A client that dies or cancels in the middle must not stop it between two files: a run goes on to its end. Handlers
    # of Python's aren't handed on to programs, as an ignored signal would be.
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        verb, request, module = _understood(arguments, sys.stdin.buffer.read() if text is None else text, codes)
    except Failure as failure:
        _print(_message(failure))
        return 1
    os.umask(0o022)
    root = Path(os.environ.get("HOMELAB_ROOT") or "/")
    if verb == _HOLD:
        for number in (signal.SIGHUP, signal.SIGTERM):  # a host that shuts down need not wait for it
            signal.signal(number, lambda given, _: sys.exit(128 + given))

    def work() -> int:
        system = System(root, limit=request.seconds, proxy=request.proxy)
        status, text = answered(system, verb, request, module)
        _print(text)
        return status

    return _limited(request.seconds, work) if request.seconds else work()


def answered(system: System, verb: str, request: Request, module: ModuleType) -> tuple[int, str]:
    """Does it on `system`, or in a container of it; returns the exit status, and the answer or the message."""
    host = system
    try:
        wanted = of_plain(module.Wanted, request.input, "input")
        if request.ctid:
            if verb == "revert" and is_gone(host, request.ctid):
                return 0, '{"reverted":"nothing"}'
            system = need_running(host, request.ctid)
        if verb == _HOLD:
            module.hold(system, wanted, Client())
            return 0, ""
        answer = getattr(module, verb)(system, wanted)
    except FormError as error:
        return 1, _message(_not_understood(str(error)))
    except Exception as error:
        failure = system.failure_of(error)
        return failure.status, _message(failure, system)
    plain = to_plain(answer, lambda text: as_text(text, sys.maxsize))
    return 0, json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def program(layer: str, arguments: Sequence[str]) -> int:
    """What a program does that a layer has put on this system (tools/boot_service.py); returns its exit status."""
    os.umask(0o022)
    system = System(Path(os.environ.get("HOMELAB_ROOT") or "/"))
    try:
        importlib.import_module(f"remote_scripts.layers.{layer}").program(system, arguments)
    except Exception as error:
        system.log.say(_message(system.failure_of(error), system))
        return 1
    return 0


def _understood(arguments: list[str], text: bytes, codes: dict[str, str]) -> tuple[str, Request, ModuleType]:
    if len(arguments) != 1 or arguments[0] not in (*VERBS, _HOLD):
        raise _not_understood(f"the arguments {arguments!r}")
    try:
        request = of_plain(Request, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _not_understood(str(error)) from error
    if request.layer not in codes:
        raise _not_understood(f"no layer {request.layer!r}")
    # What gives back is the latest there is: an older program has asked for it, in the same words.
    if request.code and request.code != codes[request.layer] and arguments[0] != "revert":
        raise Failure(
            f"the version of this program that has asked for {request.layer}",
            f"the one that lies on this system has {codes[request.layer]} there, not {request.code}",
            "the two may differ in what they do; nothing was changed",
            "run `pulumi up --refresh` with one version of this program, which puts its own there",
        )
    return arguments[0], request, importlib.import_module(f"remote_scripts.layers.{request.layer}")


def _not_understood(found: str) -> Failure:
    return Failure(
        "a request that this program's part on the host understands",
        found,
        "nothing was changed",
        "run `pulumi up --refresh`, which puts the same version of both parts there",
    )


def _message(failure: Failure, system: System | None = None) -> str:
    """What a person gets to read."""
    text = (system or System(Path("/"))).log.message(failure)
    if system and system.files.not_put_back:
        text += (
            f"\nleft:   {system.files.not_put_back} could not be put back; the next run goes on from what is noted in "
            "/var/lib/homelab"
        )
    return text


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # there may be no reader
        Client().tell(text)


def _limited(seconds: int, work: Callable[[], int]) -> int:
    """Runs `work` in a process of its own, which is killed after so many seconds: pulumi-command has no limit that it
    keeps while a command runs.

    A process that waits in the kernel for a dead disk doesn't end when it is killed. It isn't waited for; and it has
    pipes of this process in place of the client's, which would wait for the end of its own.
    """
    pipes = {number: os.pipe() for number in (1, 2)}
    child = os.fork()
    if child == 0:
        status = NOT_FOUND
        try:
            os.setpgid(0, 0)
            for number, pipe in pipes.items():
                os.dup2(pipe[1], number)
                for end in pipe:
                    os.close(end)
            status = work()
        finally:
            os._exit(status)
    relays = []
    for number, (reads, writes) in pipes.items():
        os.close(writes)
        relays.append(threading.Thread(target=_relay, args=(reads, number), daemon=True))
        relays[-1].start()
    is_overdue = not select.select([os.pidfd_open(child)], [], [], seconds)[0]
    if is_overdue:
        end_all(child)  # with what it has asked; what it has told to do something is watched by another process
    for relay in relays:
        relay.join(_LAST_SECONDS)
    if is_overdue:
        overdue = Failure(
            f"this step done within {seconds} s",
            "it has not ended; it was killed, and what it had started ends at its own time limit",
            "something on this system hangs: a disk, a share, a card, a script of a package. What is half done is "
            "noted there",
            "log in, see what hangs (`dmesg` may tell) and mend it; then run `pulumi up` again, which finishes the "
            "step. What takes longer by nature: timeouts.step",
        )
        _print(_message(overdue))
        return 1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


def _relay(source: int, target: int) -> None:
    """Hands on what is written to a pipe, until its end; it may have no reader."""
    while data := os.read(source, 65536):
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(target, data) :]
