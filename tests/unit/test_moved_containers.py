"""homelab/provider/container_probe.py: a container that another node has now, after its own node is gone or its id was used again."""

from __future__ import annotations

import asyncio
import json

import pytest

from homelab.errors import HomelabError
from homelab.provider import container_probe
from homelab.provider.container_probe import ContainerProbeWork, _require_same
from homelab.resources.base import Boot
from homelab.resources.container_probe import ContainerProbe
from homelab.vm import safety
from tests.unit.test_created_vms import API, SSH

A, B = "AA:BB:CC:00:00:01", "AA:BB:CC:00:00:02"
PVE2 = {"address": "192.0.2.2", "ssh": SSH, "api": API, "cluster": "home", "gpus": {"card": {"match": "10de:2b85"}}}


def probe(host: str) -> ContainerProbe.Inputs:
    return ContainerProbe.Inputs(
        host=host,
        node=host,
        container="ai",
        ctid=901,
        wanted={},
        gpus={},
        boot=Boot(id="b", stopped=[], at=0),
        instance="",
        cluster="home",
    )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(container_probe, "tell", lines.append)
    return lines


@pytest.mark.parametrize("ends", ["up", "destroy"])
def test_a_node_that_is_no_longer_in_the_settings_holds_up_nothing_and_what_is_lost_is_said(
    said: list[str], ends: str
) -> None:
    work = ContainerProbeWork({"hosts": json.dumps({"pve2": PVE2}), "allowPlainSecrets": "true"})
    if ends == "up":
        asyncio.run(work._follow(probe("pve2"), "pve1", "pve2"))
    else:
        work.delete(
            probe("pve1"),
            ContainerProbe.Outputs(minors=[], functions=[], guest_name="ai", resume=False, generation=0, stale=False),
        )
    assert len(said) == 1 and "pve1 is no longer in homelab:hosts" in said[0] and "container 901 is lost" in said[0]


@pytest.mark.parametrize(
    ("before", "now", "another"),
    [
        (A, A, False),
        (A, B, True),
        (f"{A} {B}", B, False),
        (A, "", False),
        ("", A, False),
        ("local-lvm:vm-901-disk-0", "ceph:vm-901-disk-0", False),
    ],
)
def test_a_container_is_another_one_where_none_of_its_network_cards_is_the_same(
    before: str, now: str, another: bool
) -> None:
    assert safety.is_another_container(before, now) is another
    if another:
        with pytest.raises(HomelabError) as raised:
            _require_same(probe("pve2"), before, now)
        assert "is another one" in raised.value.found and "nothing was changed" in raised.value.why
    else:
        _require_same(probe("pve2"), before, now)
