"""A layer that writes, started as a host starts it and killed by the kernel at every system call that changes its files: the next run finishes it.

The sweeps of the other tests stop before each call of remote_scripts/tools/disk.py. This one needs no such place: it shows that there is no other.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.remote import agent
from remote_scripts.tools import boot_service
from tests.agent import test_start
from tests.agent.kit import Host, bash
from tests.agent.test_start import AWAKE, OWNER, awake
from tests.sampling import sample

RULES = "/etc/udev/rules.d/90-homelab-cards.rules"
CALLS = ("write", "fsync", "fchmod", "rename", "unlink", "mkdir", "rmdir", "ftruncate")


def _can_kill() -> bool:
    if shutil.which("strace") is None:
        return False
    traced = ["strace", "-qq", "-o", os.devnull, "-e", "inject=write:signal=SIGKILL:when=1", "echo"]
    return subprocess.run(traced, capture_output=True).returncode == -signal.SIGKILL


pytestmark = pytest.mark.skipif(not _can_kill(), reason="strace isn't here, or may not trace")


@pytest.fixture
def put(host: Host) -> Host:
    """A host that has the agent, a card, and a rule of somebody else's."""
    host.function("0000:01:00.0", "0x030000", "10de:2b85", d3cold_allowed="1\n")
    host.write(RULES, "# theirs\n", 0o600)
    test_start.put(host)
    return host


def _traced(host: Host, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    # No limit, and so one process: what it starts changes no file.
    command = f"exec strace -qq {shlex.join(options)} {boot_service.PYTHON} {shlex.quote(str(host.root))}{agent.place(OWNER)} {verb}"
    return bash(host, command, agent.request("card_values", AWAKE))


def _copy(before: Host, place: Path) -> Host:
    one = Host(place)
    shutil.copytree(before.root, one.root, symlinks=True, dirs_exist_ok=True)
    return one


def _killed(before: Host, verb: str, place: Path) -> Iterator[tuple[str, Host]]:
    """Copies of the host, on each of which the agent was killed at another system call, a sample of them; in words at which."""
    options = ("-o", str(place / "calls"), "-e", f"trace={','.join(CALLS)}", "-e", "signal=none")
    done = _traced(_copy(before, place / "whole"), verb, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    called: Counter[str] = Counter()
    moments = []
    for line in (place / "calls").read_text().splitlines():
        call = line.partition("(")[0]
        called[call] += 1
        moments.append((call, called[call]))
    assert len(moments) > 30
    for call, number in sample(moments, 5, f"strace {verb}"):
        one = _copy(before, place / f"{call}-{number}")
        done = _traced(one, verb, "-o", os.devnull, "-e", f"inject={call}:signal=SIGKILL:when={number}")
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        yield f"{verb} killed at {call} {number}", one


def test_an_apply_that_is_killed_anywhere_is_finished_by_the_next_and_taken_back_by_a_revert(
    put: Host, tmp_path: Path
) -> None:
    before = put.lasting()
    done = _copy(put, tmp_path / "done")
    done.ask("apply", "card_values", AWAKE)
    wanted = done.lasting()
    for how, one in _killed(put, "apply", tmp_path):
        one.ask("apply", "card_values", AWAKE)
        assert (one.lasting(), awake(one)) == (wanted, "0"), how
        one.ask("revert", "card_values", AWAKE)
        assert (one.lasting(), awake(one)) == (before, "1"), how


def test_a_revert_that_is_killed_anywhere_is_finished_by_the_next(put: Host, tmp_path: Path) -> None:
    before = put.lasting()
    put.ask("apply", "card_values", AWAKE)
    for how, one in _killed(put, "revert", tmp_path):
        one.ask("revert", "card_values", AWAKE)
        assert one.lasting() == before, how
