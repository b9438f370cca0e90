"""Recorded states of a node, brought about in a lab that needs no daemon, and the exchanges sent through them.

The API is asked in this very process, its tasks are carried out at once and without their waits, and so are the commands
of a node's shell: what is compared here is what is answered, not how it comes (test_api_transcripts.py has that).
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.api.auth import ROOT, ticket
from lab.api.responses import Api, Request
from lab.api.tasks import Work
from lab.host import guest_programs
from lab.host.program import Failure, UsageError
from lab.host.state import HostState
from tests.conftest import shared
from tests.lab.host_kit import Host
from tests.simulator.api_replay import Client, Replay, Reply, recorded

_LIST = Path(__file__).with_name("api_not_held.txt")
_ROW = re.compile(r"(\w+) ([\d, -]+) ([a-z][a-z ]+): \S.*")
_SHELL = ("qm", "pct", "pvesh")


def not_held() -> dict[tuple[str, int], str]:
    """(transcript, line) -> its treatment in api_not_held.txt.

    Raises:
        ValueError: a row that can't be read, or a line that is named twice.
    """
    found: dict[tuple[str, int], str] = {}
    for row in _LIST.read_text(encoding="utf-8").splitlines():
        if not row.strip() or row.startswith("#"):
            continue
        match = _ROW.fullmatch(row)
        if match is None:
            raise ValueError(f"{_LIST.name}: wanted `transcript lines treatment: why`, found {row!r}")
        for number in _numbers(match[2]):
            if (match[1], number) in found:
                raise ValueError(f"{_LIST.name}: {match[1]} {number} is there twice")
            found[match[1], number] = match[3]
    return found


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        yield from range(int(first), int(last or first) + 1)


def path_of(name: str) -> Path:
    """A transcript."""
    return shared("pve_api", "transcripts", f"{name}.jsonl")


class Node(Client):
    """A recording's node in this process: its API as `Client` asks it, its shell, its files.

    Args:
        host: the lab's host, booted.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = HostState(host.machine.state)
        super().__init__("", ticket(self.state, ROOT))
        self.state.log.mkdir(exist_ok=True)
        self._api = Api(self.state.state, self._carry_out)

    @staticmethod
    def _carry_out(_: HostState, work: Work) -> None:
        for _seconds in work:
            pass  # nobody waits

    def send(self, method: str, path: str, params: dict[str, Any] | None = None) -> Reply:
        """One request, as if it had come to pvedaemon."""
        cookie = self._cookie["Cookie"].removeprefix("PVEAuthCookie=")
        given = {
            k: [str(v) for v in (value if isinstance(value, list) else [value])] for k, value in (params or {}).items()
        }
        response = self._api.respond(Request(method, path.rstrip("/"), given, cookie))
        kind = None if response.body is None else "application/json;charset=UTF-8"
        return Reply(response.status, response.reason, kind, "" if response.body is None else response.body)

    # -- state -------------------------------------------------------------------------------------------
    def fault(self, name: str, value: Any = True) -> None:
        """Set a fault; None clears it."""
        self.host.machine.set_fault(name, value)

    def vm(self, vmid: int, *, running: bool = False, **options: Any) -> None:
        """Make a VM as the recording's were made, and start it if it is to run."""
        settings = {"name": f"v{vmid}", "memory": 512, "machine": "q35", "ostype": "l26", **options}
        settings = {name: value for name, value in settings.items() if value is not None}
        self.done("POST", "/nodes/pve1/qemu", vmid=vmid, **settings)
        if running:
            self.power(vmid, "start")

    def power(self, vmid: int, verb: str) -> None:
        """Start or stop a VM."""
        self.done("POST", f"/nodes/pve1/qemu/{vmid}/status/{verb}")

    def done(self, method: str, path: str, /, **params: Any) -> None:
        """What root@pam does between two exchanges; a task must end well."""
        answer = self.data(method, path, **params)
        if isinstance(answer, str) and answer.startswith("UPID:"):
            status = self.data("GET", f"/nodes/pve1/tasks/{answer}/status")["exitstatus"]
            assert status == "OK", f"{method} {path} {params}: {status}"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the node."""
        self.state.write(path, text, mode)

    def remove(self, path: str) -> None:
        """A file of the node goes."""
        self.state.rooted(path).unlink()

    # -- the shell ---------------------------------------------------------------------------------------
    def shell(self, command: str) -> tuple[str, int]:
        """A command at the node's shell: what it prints, errors included, and its exit status."""
        words = shlex.split(command)
        if words and words[0] in _SHELL and not {"|", ";", ">"} & set(words):
            return self._program(words[0], words[1:])
        done = self.host.run(command.replace("/etc/pve", "$HOMELAB_ROOT/etc/pve"))
        return done.stderr + done.stdout, done.returncode

    def _program(self, name: str, arguments: list[str]) -> tuple[str, int]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                status = guest_programs.main(HostState(self.state.state), name, arguments)
            except UsageError as error:
                print(f"{name}: {error}")
                status = 2
            except Failure as error:
                print(error)
                status = error.status
        return printed.getvalue(), status


@dataclass
class Outcome:
    """What a replay found: differences by line, lines compared, and lines of the list that don't differ at all."""

    differences: dict[int, list[str]] = field(default_factory=dict)
    compared: int = 0
    same_though_listed: list[int] = field(default_factory=list)

    def check(self) -> None:
        """
        Raises:
            AssertionError: with all differences.
        """
        lines = [f"{number}: {text}" for number, texts in self.differences.items() for text in texts]
        assert not lines, f"{len(self.differences)} of {self.compared} differ:\n" + "\n".join(lines)
        assert not self.same_though_listed, f"these can be compared: {self.same_though_listed}"
        assert self.compared > 0


def replay(node: Node, name: str, before: dict[int, Callable[[], object]]) -> Outcome:
    """Send a transcript's exchanges.

    Args:
        before: by line, what the recording's makers did between two lines without writing it down.
    """
    listed, found, one = not_held(), Outcome(), Replay(node)
    for number, line in recorded(path_of(name)):
        if number in before:
            before[number]()
        treatment = listed.get((name, number), "")
        if treatment == "skipped" or not (line.get("path") or line.get("shell")):
            continue
        differences = _compare_shell(node, one, line) if "shell" in line else one.compare(line, treatment)
        if treatment != "sent":
            found.compared += 1
            if differences:
                found.differences[number] = differences
        elif not differences:
            found.same_though_listed.append(number)
    return found


def _compare_shell(node: Node, one: Replay, line: dict[str, Any]) -> list[str]:
    """A command's exit status, and its lines in any order: which of its two streams came first wasn't recorded."""
    command, first, _ = line["shell"].partition("; tail")
    printed, status = node.shell(command)
    if "rc" not in line:  # a file's text, whose lines have their order
        return one.compare_text(line["out"].partition("\0")[0] if first else line["out"], printed)
    found = (
        []
        if _class(status) == _class(line["rc"])
        else [f"{line['shell']}: exit status {status}, recorded {line['rc']}"]
    )
    if differs := one.compare_json(line["out"], printed):
        return [*found, *(f"{line['shell']}: {text}" for text in differs)]
    if differs == []:
        return found
    wanted, got = one.lines(line["out"]), one.lines(printed)
    return found if wanted == got else [*found, f"{line['shell']}: printed {got}, recorded {wanted}"]


def _class(status: int) -> int:
    """Other exit statuses than these are left-over error numbers on a real node: not 0 is all that they say."""
    return status if status in (0, 1) else 255
