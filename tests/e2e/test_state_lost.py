"""Pulumi's state is gone: what lies on the host is enough to take over and to give back."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import SANDBOX, conf, given_back, with_card


def test_a_stack_without_its_state_takes_over_what_is_ours_and_gives_back_all_but_what_somebody_changed_since(
    converged: Callable[..., Stack],
) -> None:

    def lose_the_state(stack: Stack) -> None:
        """The folder with the state is gone; a new, empty stack has the same settings."""
        backend = stack.backend or stack.folder
        shutil.rmtree(backend / ".pulumi")
        stack.create()

    stack = converged("rtx5090", vms=SANDBOX)
    made, mark, boots = stack.lab.snapshot(), stack.lab.mark(), len(stack.lab.boots())
    lose_the_state(stack)
    stack.up()
    assert stack.lab.snapshot() == made
    assert (stack.power_calls(mark), len(stack.lab.boots())) == ([], boots)

    # Lost once more; what somebody has changed since is theirs.
    lose_the_state(stack)
    stack.lab.run("qm set 103 --balloon 4096; qm stop 103; qm start 103")
    stack.up()
    assert "balloon: 0" in conf(stack, 103)
    stack.destroy_as_left()
    assert (stack.machine.guests_on(), with_card(stack)) == ({103}, {})
    assert "balloon: 4096" in conf(stack, 103) and "hostpci" not in conf(stack, 103)
    stack.lab.run("qm set 103 --delete balloon; qm stop 103; qm start 103")
    given_back(stack, stack.stock)
