"""A container whose cards can't be opened after all: the verification fails with the diagnosis in its message."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, PHOENIX, opens


def test_a_verification_that_fails_shows_the_diagnosis(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    # By somebody who wanted it read only: it is theirs, and left as it is.
    stack.lab.run("pct set 901 --dev0 /dev/nvidia0,deny-write=1")
    message = stack.up(ok=False).message
    assert "devices that can be opened in container 901" in message
    assert "no rule of the control group allows it" in message
    # The table, as `python -m homelab doctor container 901` shows it.
    row = next(line for line in message.splitlines() if line.strip().startswith("/dev/nvidia0 "))
    assert "195:0" in row and "Operation not permitted" in row
    assert "driver on the host: 580.105.08" in message

    stack.lab.run("pct set 901 --delete dev0; pct reboot 901")
    stack.up("--refresh")
    assert opens(stack, 901, "/dev/nvidia0")
