"""A container whose run was killed while it was given its cards: its probe, which the state has, gives them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homelab.provider.container_probe import ContainerProbeWork
from homelab.remote import ssh
from homelab.resources.container_probe import ContainerProbe
from homelab.shapes import BootSeen, ShutdownInputs
from lab import Lab
from remote_scripts.guests.change import Terms
from remote_scripts.layers.container_cards import Wanted as ContainerCards
from remote_scripts.shared.container_note import Cards
from tests.lab.test_proxmox_api import host_of

NODE, CTID = "pve", 901


def deleted(stack: dict[str, str], *, goes_away: bool) -> None:
    about: dict[str, Any] = {"settings": "", "power": "keep", "gpus": {}, "instance": "", "cluster": ""}
    inputs = ContainerProbe.Inputs(
        host=NODE, node=NODE, container="ai", ctid=CTID, boot=BootSeen(id="b", stopped=[], at=0),
        shutdown=ShutdownInputs(timeout=10, otherwise="stop"), goes_away=goes_away, **about,
    )  # fmt: skip
    made: dict[str, Any] = {"minors": [], "functions": [], "guest_name": "ai", "shared": {}}
    outputs = ContainerProbe.Outputs(rebooted_at=0, generation=0, stale=False, again=0, **made)
    ContainerProbeWork(stack, "urn:pulumi:s::p::homelab:lxc:Probe::ai-probe").delete(inputs, outputs)


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
        settings = host.model_dump(mode="json", by_alias=True)
        deleted({"hosts": json.dumps({NODE: settings})}, goes_away=goes_away)
        stays = guest != "ai" or goes_away
        assert conf.read_text() == (with_cards if stays else before)
        assert (lab.root / f"etc/pve/homelab/lxc-{CTID}").exists() == stays
