"""layers/nvidia_verification.py on a host that is a folder. What it says on whole systems: tests/lab/test_nvidia_stack.py."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from remote_scripts.both.nvidia_verification import Wanted
from remote_scripts.layers import nvidia_verification
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.system import System
from tests.agent.kit import Host, failing


def test_why_a_program_could_not_be_tried_is_said(host: Host) -> None:
    """The disk is full."""
    wanted = Wanted(nvcc="/usr/bin/nvcc", program="int main;", seconds=60)
    with failing(errno.ENOSPC, "create", at="program.cu"):
        tried = host.ask("apply", "nvidia_verification", wanted)
    assert tried["program"]["status"] == 1 and "No space left on device" in tried["program"]["output"]


def test_an_ordinary_user_doesnt_get_the_proxys_password(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of his own programs he sees the environment."""
    system = System(host.root, proxy="http://me:hunter2@proxy.lan:3128", programs=host.programs)
    seen: list[tuple[str, bool]] = []

    def ask(*arguments: str, environment: dict[str, str] | None = None, **about: Any) -> Done:
        given = {**system.run.environment, **(environment or {})}
        seen.append((arguments[0], any("hunter2" in value for value in given.values())))
        return Done(0, b"")

    monkeypatch.setattr(system.run, "ask", ask)
    nvidia_verification.apply(system, Wanted(uvm=True, engine="podman", image="x", seconds=60))
    assert {known for program, known in seen if program == "setpriv"} == {False}
    assert {known for program, known in seen if program == "podman"} == {True}, "which fetches the image"


@pytest.mark.parametrize(
    ("said", "goes"),
    [
        (Done(1, b"[]\n", b"Error response from daemon: No such image: x\n"), True),
        (Done(1, b"[]\n", b"Error: inspecting object: x: image not known\n"), True),
        (Done(0, b"[{}]\n"), False),
        (Done(1, b"", b"Cannot connect to the Docker daemon at unix:///run/docker.sock\n"), False),
        (Done(TIMED_OUT, b""), False),
    ],
)
def test_an_image_goes_again_only_where_it_is_known_that_it_was_fetched(host: Host, said: Done, goes: bool) -> None:
    asked: list[str] = []

    def podman(arguments: Sequence[str], _stdin: bytes) -> Done:
        asked.append(arguments[0])
        return said if arguments[0] == "image" else Done(0, b"")

    host.programs["podman"] = podman
    host.ask("apply", "nvidia_verification", Wanted(engine="podman", image="x", seconds=60))
    assert ("rmi" in asked) is goes
