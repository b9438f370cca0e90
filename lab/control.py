"""The control socket of a lab's daemon: its protocol, and the client's side of it.

JSON lines over the Unix socket that lab.json names as `control` (STATE/control.sock, where that path is short
enough): a request is an object with `do`, its answer `{"ok": true, ...}` or `{"ok": false, "error": "..."}`;
several may follow one another on a connection. The simulated programs speak it as well. Times in seconds. With
`guest`, a VM's id, the requests about power off and on again, timers and waiting mean that VM instead of the host.

    reboot                                   answered at once; the host goes down a moment later
    poweroff, power-on                       the same, for off and on
    guests                                   look anew which VMs run: somebody has started, stopped or changed one
    guest        id                          `connection`: how to reach that VM; its port is kept from then on
    timer-start  unit, command, seconds      run command that long from now; with `since_boot`: true, that
                                             long after the boot. Replaces one of that name
    timer-stop   unit                        `stopped`: whether there was one; what it started runs on
    pvedaemon                                `port`: where the host's 127.0.0.1:85 is; null: nobody listens there
    timers                                   `timers`: [{unit, command, left}]
    status                                   `phase`, `boots`, `commands` (how many run)
    wait         for, boots, text, seconds   answered when it is so: `for` is settled (no boot under way and,
                                             with `boots`, at least that many so far), idle (no command runs),
                                             disconnected (no SSH connection is open) or command (one that
                                             contains `text`, there or on stdin, runs), or answering (SSH does)
    fault        name, value                 set a fault; null clears it
    reset        [scenario]                  the stock host again, booted, logs empty; same port and keys
    save                                     keep the running host as it is, while nothing runs on it
    restore                                  it is so again, without a boot; sessions end
    stop                                     the daemon ends; the connection closes when it has
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Self

from lab.state import LabError, read_lab_file

# A request is answered when what it asks for is done; a reset writes a whole tree on a busy machine.
ANSWER_SECONDS = 300.0


class ControlConnection:
    """One connection to a lab's daemon."""

    def __init__(self, state: Path, timeout: float = ANSWER_SECONDS) -> None:
        """Connect.

        Args:
            state: the lab's folder.
            timeout: seconds to wait for an answer.

        Raises:
            LabError: nobody listens.
        """
        lab = read_lab_file(state)
        if lab is None:
            raise LabError(
                f"Unable to reach a lab in {state}: wanted its lab.json, found none. No lab was started "
                "there. Start one with `python -m lab start`."
            )
        self._state = state
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(lab.control)
        except OSError as error:
            self._socket.close()
            raise LabError(
                f"Unable to reach the lab in {state}: wanted its daemon at {lab.control}, found {error}. "
                "It isn't running. Start it with `python -m lab start`."
            ) from error
        self._file = self._socket.makefile("rb")

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            LabError: the daemon refused it, gave no answer in time, or went away.
        """
        try:
            self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = self._file.readline()
        except TimeoutError:
            raise LabError(
                f"No answer to `{do}` from the lab in {self._state} within {self._timeout:.0f} seconds. What "
                f"it waited for did not happen; {self._state}/log says what did (`python -m lab log`)."
            ) from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise LabError(
                f"No answer to `{do}` from the lab in {self._state}: the daemon went away. The end of "
                f"{self._state}/log/daemon.log says why; `python -m lab start` starts it again."
            )
        answer: dict[str, Any] = json.loads(line)
        if not answer.get("ok"):
            raise LabError(str(answer.get("error", f"`{do}` failed in the lab in {self._state}")))
        return answer

    def wait_closed(self) -> bool:
        """Wait until the daemon closes the connection by ending; return False at the time limit."""
        try:
            return self._file.read(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request(state: Path, do: str, timeout: float = ANSWER_SECONDS, **arguments: Any) -> dict[str, Any]:
    """Send one request to a lab's daemon and return the answer; see ControlConnection."""
    with ControlConnection(state, timeout) as connection:
        return connection.request(do, **arguments)
