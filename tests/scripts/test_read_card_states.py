"""read_host.sh: what a card gets back, and values of cards that were changed since."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripts.conftest import Folder

CARD = "0000:01:00.0"
HAD = {"reset_method": "flr bus", "d3cold_allowed": "1", "power/control": "auto"}
OURS = {"reset_method": "bus", "d3cold_allowed": "0", "power/control": "on"}


@pytest.fixture
def host(folder: Folder) -> Folder:
    """As the layer card_values leaves it."""
    folder.write(f"sys/bus/pci/devices/{CARD}/class", "0x030000\n")
    for name, ours in OURS.items():
        folder.write(f"sys/bus/pci/devices/{CARD}/{name}", f"{ours}\n")
        folder.write(f"var/lib/homelab/card-values/{CARD}={name.replace('/', ':')}", f"{HAD[name]}\n{ours}\n")
    return folder


def test_a_reading_says_what_a_card_gets_back(host: Folder) -> None:
    def had() -> Any:
        text = 'printf "{\\"read\\":true"; card_states; printf "}"'
        return json.loads(host.bash(text, parts=["read/card_states"]).stdout)["card_states"][CARD]["had"]

    assert had() == {name.rpartition("/")[2]: value for name, value in HAD.items()}
    # What somebody else has changed since isn't given back.
    host.write(f"sys/bus/pci/devices/{CARD}/reset_method", "flr\n")
    assert had() == {"d3cold_allowed": "1", "control": "auto"}


def test_a_value_that_was_changed_is_drift_and_a_card_that_isnt_there_is_none(host: Folder) -> None:
    def lost() -> Any:
        return host.bash('printf "{"; lost_values; printf "}"', parts=["read/card_states"]).stdout

    assert lost() == "{[]}"
    host.write(f"sys/bus/pci/devices/{CARD}/power/control", "auto\n")
    assert lost() == '{["power/control of 0000:01:00.0 is auto, not on"]}'
    for name in OURS:
        (host.root / f"sys/bus/pci/devices/{CARD}/{name}").unlink()
    assert lost() == "{[]}"
