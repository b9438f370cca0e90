"""An update of NVIDIA's driver that waited for a boot: what the verification makes of it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.nvidia.settings import Nvidia
from homelab.nvidia.work import NvidiaVerificationWork

FAILED = HomelabError(wanted="cards", found="none", why="nothing uses them", next="look at dmesg")


def ended(status: int, answer: str, errors: list[HomelabError]) -> tuple[list[str], list[HomelabError]]:
    """The verbs that are run on a system on which nvidia-smi has that status, and what is said then."""
    verbs = []

    class Work(NvidiaVerificationWork):
        def __init__(self) -> None:
            pass

        def asking(self, inputs: Any, seconds: float = 0) -> Any:
            def ask(verb: str, layer: str, wanted: Any, *, proxy: str) -> Any:
                assert layer == "driver_update" and seconds > Nvidia().timeouts.install
                verbs.append(verb)
                return json.loads(answer)

            return ask

    inputs: Any = SimpleNamespace(target="host", system_name="hosts.pve")
    return verbs, Work()._end_update(inputs, Nvidia(), errors, works=status == 0)


@pytest.mark.parametrize("errors", [[], [FAILED]])
def test_a_new_driver_that_answers_stays_whatever_else_is_wrong(errors: list[HomelabError]) -> None:
    assert ended(0, '{"old":"","now":""}', errors) == (["apply"], errors)


def test_a_new_driver_that_does_not_answer_makes_way_and_the_error_says_so() -> None:
    verbs, (error,) = ended(9, '{"old":"580.159.03","now":"its libraries; nvidia-smi answers"}', [FAILED])
    assert verbs == ["revert"]
    assert (error.wanted, error.found) == ("cards", "none") and error.why.endswith("the update is given up")
    assert error.next == (
        "the driver 580.159.03 is back: its libraries; nvidia-smi answers. Set nvidia.driver to it; or for another try: look at "
        "dmesg, then run `pulumi up --refresh`"
    )


def test_where_there_is_no_way_back_the_error_stays_as_it_is() -> None:
    assert ended(9, '{"old":"","now":""}', [FAILED]) == (["revert"], [FAILED])
