"""A container whose run was killed while it was given its cards: its probe, which the state has, gives them back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from homelab.container.work import ContainerProbeWork
from homelab.remote import ssh
from homelab.shapes import ShutdownInputs
from lab import Lab
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.terms import Terms
from remote_scripts.notes.container_note import Cards
from tests.lab.stack_kit import NODE, host_of, stack_of
from tests.unit.test_moved_containers import outputs, probe

CTID = 901


@pytest.mark.parametrize(("guest", "goes_away"), [("ai", False), ("another", False), ("ai", True)])
def test_a_container_that_a_killed_run_has_given_its_cards_has_them_no_more(
    tmp_path: Path, guest: str, goes_away: bool
) -> None:
    """But for one that another entry of the settings has by now, or that is removed next."""
    with Lab.start("phoenix", state=tmp_path / "lab") as lab:
        conf = lab.root / f"etc/pve/lxc/{CTID}.conf"
        before, host = conf.read_text(), host_of(lab)

        wanted = ContainerCards(ctid=CTID, cards=Cards(minors=(0,)), terms=Terms(owner=f"p/s/{guest}"))
        ssh.Session(host).ask("apply", "container_cards", wanted)
        with_cards = conf.read_text()
        assert with_cards != before
        shutdown = ShutdownInputs(timeout=10, otherwise="stop")
        inputs = replace(probe(NODE), goes_away=goes_away, shutdown=shutdown)
        ContainerProbeWork(stack_of(lab), "urn:pulumi:s::p::homelab:lxc:Probe::ai-probe").delete(inputs, outputs())
        stays = guest != "ai" or goes_away
        assert conf.read_text() == (with_cards if stays else before)
        assert (lab.root / f"etc/pve/homelab/lxc-{CTID}").exists() == stays
