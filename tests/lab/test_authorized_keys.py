"""The key that `homelab init` puts into root's authorized_keys: on Proxmox VE a link to a file that all nodes of a cluster share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.remote import first_contact
from lab import Lab
from lab.cluster import LabCluster
from tests.lab.stack_kit import PROBED, as_text, host_of

OTHER_PC = f"ssh-ed25519 AAAA{'B' * 64} homelab"


@pytest.fixture(scope="module", params=["one node", "a cluster of three"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lab]]:
    folder = tmp_path_factory.mktemp("keys") / "lab"
    if request.param == "one node":
        with Lab.start("rtx5090", state=folder) as lab:
            yield [lab]
    else:
        with LabCluster.start("three", folder) as cluster:
            yield [*cluster.nodes.values()]


def link(lab: Lab) -> Path:
    return lab.root / "root/.ssh/authorized_keys"


def lines(lab: Lab) -> list[str]:
    """Of a link that is there."""
    assert link(lab).is_symlink()
    return link(lab).read_text().splitlines()


def printed_by_destroy(lab: Lab, key: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The command by which the key goes; empty: none is given."""
    host = as_text(host_of(lab, privateKeyFile=str(key)))
    texts = {"hosts": json.dumps({lab.status()["node"]: host})}
    HostProbeWork(texts).delete(HostProbe.Inputs(host=lab.status()["node"], settings=""), PROBED)
    return capsys.readouterr().out.partition(" removes it ")[2].partition("`")[2].partition("`")[0]


def test_the_command_that_destroy_prints_takes_the_key_away_for_good(
    nodes: list[Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the key that the settings name alone, which another PC's isn't; also where pve-cluster starts anew."""
    first, last, key = nodes[0], nodes[-1], tmp_path / "homelab_ed25519"
    before = lines(first)
    first.run(f"echo '{OTHER_PC}' >>~/.ssh/authorized_keys")
    first_contact.made(key)
    assert printed_by_destroy(first, Path(first.connection["privateKeyFile"]), capsys) == ""
    first_contact.authorize(host_of(first), key)
    [ours] = set(lines(last)) - {*before, OTHER_PC}
    assert ours == f"{first_contact.made(key)} homelab"
    last.run(printed_by_destroy(last, key, capsys))
    for lab in nodes:
        lab.run("pvecm updatecerts")
        assert lines(lab) == [*before, OTHER_PC]
    first.run(f"sed -i '/{'B' * 64}/d' $HOMELAB_ROOT/etc/pve/priv/authorized_keys")


def test_a_key_is_put_where_a_link_that_leads_nowhere_points_to(nodes: list[Lab], tmp_path: Path) -> None:
    keys = nodes[0].root / "etc/pve/priv/authorized_keys"
    before = keys.read_text()
    keys.unlink()
    first_contact.authorize(host_of(nodes[0]), tmp_path / "key")
    assert [lines(lab) for lab in nodes] == [[f"{first_contact.made(tmp_path / 'key')} homelab"]] * len(nodes)
    keys.write_text(before)
