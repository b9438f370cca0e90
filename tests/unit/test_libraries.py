"""Packages for Intel's and AMD's cards in containers: what is asked for, where there are none, and what is refused before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from homelab.container import libraries
from homelab.errors import HomelabError
from homelab.host import plan
from homelab.settings import Container
from remote_scripts.both.card_libraries import Choice
from tests.conftest import PROJECT
from tests.unit.hosts import conf, settings
from tests.unit.test_other_cards import GPUS, container, host


def choices(uses: str, makers: str) -> dict[str, Choice]:
    return {f"{one.id} {one.version}": one for one in libraries.choices(uses.split(), makers.split())}


def test_every_name_is_one_of_its_distribution() -> None:
    groups = yaml.safe_load((PROJECT / "lab/network/packages.yaml").read_text(encoding="utf-8"))["groups"]
    for row in libraries.rows():
        # What the lab's repositories have stands for the distributions' own (lab/network/packages.yaml).
        there = set(groups[f"cards-{'debian-' * (row.id == 'debian')}{row.version}"]["packages"])
        for uses in row.packages.values():
            for words in uses.values():
                assert all(there & set(word.split("|")) for word in words.split()), row


def test_each_maker_and_use_has_its_packages_or_a_reason() -> None:
    for maker in ("intel", "amd"):
        for use in ("video", "compute"):
            for name, one in choices(use, maker).items():
                assert bool(one.packages) != bool(one.lacking), (name, maker, use)


def test_what_two_cards_share_is_asked_for_once() -> None:
    assert choices("video", "intel amd")["ubuntu 24.04"].packages.count("vainfo") == 1


def refusals(one: Container, **changes: Any) -> list[HomelabError]:
    facts = host(**changes)
    return [*libraries.refusals("media", one, facts, plan.wanted(facts, settings(GPUS)).gpus)]


def test_a_container_of_another_kind_is_refused_with_what_to_install_there() -> None:
    guests = {"running": [], "configs": [conf("lxc", 901, "hostname: box\nostype: alpine")]}
    (error,) = refusals(container("uhd", libraries=["video"]), guests=guests)
    assert "container 901 is alpine" in error.found and "install its own VA-API drivers" in error.next
    assert not refusals(container("uhd"), guests=guests)
    assert not refusals(container("uhd", "big", libraries=["video"]))


def test_a_container_with_cards_of_nvidias_alone_is_refused() -> None:
    (error,) = refusals(container("big", libraries=["video"]))
    assert "no card of Intel's or AMD's" in error.found and "containers.media.nvidia" in error.next


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpuAssignment": "0", "libraries": ["video"]}, "libraries are for cards that gpus names"),
        ({"gpus": ["uhd"], "libraries": ["video"], "power": "stopped"}, "need a container that runs"),
        ({"gpus": ["uhd"], "libraries": ["graphics"]}, "'video' or 'compute'"),
    ],
)
def test_what_the_settings_dont_take(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Container.model_validate({"host": "pve", "ctid": 901, **settings})
