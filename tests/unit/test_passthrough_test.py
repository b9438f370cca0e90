"""The test of a card before a VM gets it: one act, never undone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_settings_reach_resources import changed, told

__all__ = ["told"]


# pulumi-command imports its deprecated resources too.
@pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")
def test_it_is_one_command_that_runs_again_for_other_functions_and_has_no_undo(
    told: Callable[[dict[str, Any]], Any],
) -> None:
    resources = told(changed({"hosts.pve.gpus.rtx5090.passthroughTest": True}))
    command = resources["command:remote:Command", "pve-rtx5090-test"]
    assert command["create"].endswith('"$agent" apply') and "delete" not in command
    assert command["triggers"] == [{"0000:01:00.0": "10de:2b85"}]
    request = json.loads(command["stdin"])
    assert request["input"]["functions"] == {"0000:01:00.0": "10de:2b85"}
    assert "code" not in request, "another version of the program is no reason to do it again"
