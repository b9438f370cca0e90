"""homelab/settings/removed.py: who still has a setting that there was is told what to use instead."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.settings import parsing
from homelab.settings.removed import REMOVED

# A value for each place that hasn't its own in the table.
VALUE = "snapshot"


@pytest.mark.parametrize("key", REMOVED)
def test_a_setting_that_was_removed_is_refused_with_what_to_use(key: str) -> None:
    place, _, value = key.partition(": ")
    top, *parts = place.replace("*", "mine").split(".")
    inside: Any = value or VALUE
    for part in reversed(parts):
        inside = {part: inside}
    with pytest.raises(HomelabError) as raised:
        parsing.parse({top: json.dumps(inside)})
    assert f"homelab:{place.replace('*', 'mine')}: {REMOVED[key]}" in raised.value.found
