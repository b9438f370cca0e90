"""Hosts that name their cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homelab.init.proposal import cluster_settings
from tests.unit.hosts import desktop


@pytest.mark.parametrize(
    ("cluster", "there", "proposed"),
    [
        ("home", {}, {"cluster": "home"}),
        ("home", {"address": "192.0.2.1"}, {"cluster": "home"}),
        ("home", {"cluster": "mine"}, {}),
        ("", {}, {}),
        ("9", {}, {}),
    ],
    ids=[
        "a new host",
        "one that the file has",
        "one that has another name for it",
        "alone",
        "no name of these settings",
    ],
)
def test_init_proposes_the_cluster_of_a_node(cluster: str, there: dict[str, Any], proposed: dict[str, str]) -> None:
    facts = desktop()
    node = replace(facts, cluster=replace(facts.cluster, name=cluster))
    assert cluster_settings(there, node) == proposed
    assert node.cluster.described == (f", node of the cluster {cluster}" if cluster else "")
