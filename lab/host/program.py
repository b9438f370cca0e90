"""What the simulated commands share: their start, their errors, reading options, asking the lab's daemon."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .state import HostState


class UsageError(Exception):
    """The command doesn't know what it was asked for: said on stderr, logged, exit status 2."""


class Failure(Exception):
    """The command fails as the real one would: text on stderr, its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def run(main: Callable[[HostState, str, list[str]], int], name: str, arguments: list[str]) -> int:
    """Run a command's main and turn its errors into what people see."""
    host = HostState.from_environment()
    try:
        status = main(host, name, arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        host.log_program(name, arguments, 2, f"not understood: {error}")
        return _say(f"{name}: {error}", 2)
    except Failure as error:
        return _say(str(error), error.status)
    except BrokenPipeError:
        # The reader went away (`lspci | head -1`): the real commands die of SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _say(text: str, status: int) -> int:
    if text:
        print(text, file=sys.stderr)
    return status


def logged(host: HostState, name: str, arguments: list[str], work: Callable[[], int]) -> int:
    """Do the work of a command that changes something, and log it with its exit status."""
    try:
        status = work()
    except Failure as error:
        host.log_program(name, arguments, error.status, str(error) or None)
        raise
    host.log_program(name, arguments, status)
    return status


class Options:
    """Options as getopt(1) splits them.

    Args:
        arguments: the command's arguments.
        short: option letters; `:` after one that takes a value, as for getopt.
        long: names without dashes; `=` at the end of one that takes a value.
        program: for messages.

    Raises:
        UsageError: an option that is in neither.
    """

    def __init__(self, arguments: list[str], short: str = "", long: tuple[str, ...] = ()) -> None:
        self.given: list[tuple[str, str]] = []
        self.rest: list[str] = []
        self._short, self._long = short, long
        queue = list(arguments)
        while queue:
            word = queue.pop(0)
            if word == "--":
                self.rest += queue
                break
            if word.startswith("--"):
                self._take_long(word[2:], queue)
            elif word.startswith("-") and word != "-":
                self._take_short(word[1:], queue)
            else:
                self.rest.append(word)

        self._names = {name for name, _ in self.given}

    def _take_long(self, word: str, queue: list[str]) -> None:
        name, equals, value = word.partition("=")
        if name in self._long and not equals:
            self.given.append((name, ""))
        elif f"{name}=" in self._long:
            if not equals:
                if not queue:
                    raise UsageError(f"option '--{name}' requires an argument")
                value = queue.pop(0)
            self.given.append((name, value))
        else:
            raise UsageError(f"unrecognized option '--{word}'")

    def _take_short(self, letters: str, queue: list[str]) -> None:
        while letters:
            letter, letters = letters[0], letters[1:]
            position = self._short.find(letter)
            if position < 0 or letter == ":":
                raise UsageError(f"invalid option -- '{letter}'")
            if self._short[position + 1 : position + 2] != ":":
                self.given.append((letter, ""))
                continue
            if not letters and not queue:
                raise UsageError(f"option requires an argument -- '{letter}'")
            self.given.append((letter, letters or queue.pop(0)))
            return

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def has(self, *names: str) -> bool:
        """Whether one of these options was given."""
        return not self._names.isdisjoint(names)

    def value(self, *names: str) -> str | None:
        """The last value given to one of these options."""
        values = [value for given, value in self.given if given in names]
        return values[-1] if values else None


def ask_daemon(host: HostState, do: str, **arguments: Any) -> dict[str, Any] | None:
    """Ask the lab's daemon over its control socket; None when no daemon runs (a tree used without one).

    A guest's machine.json names the lab that it is in: its request says which guest asks.

    Raises:
        Failure: the daemon refuses.
    """
    state = host.state
    if inside := host.machine.get("guest"):
        state, arguments = Path(inside["lab"]), {**arguments, "guest": inside["vmid"]}
    lab_file = state / "lab.json"
    if not lab_file.exists():
        return None
    path = json.loads(lab_file.read_text(encoding="utf-8")).get("control")
    if not path:
        return None
    import socket  # here, as few commands ask anything: see the package's docstring

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(60)
    try:
        connection.connect(path)
        connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
        answer = connection.makefile("rb").readline()
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        connection.close()
    data: dict[str, Any] = json.loads(answer)
    if not data.get("ok"):
        raise Failure(str(data.get("error")))
    return data
