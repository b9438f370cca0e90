"""Intel's and AMD's cards on a whole host: what a reading says of their nodes, and of who has them."""

from __future__ import annotations

import json
from pathlib import Path

from homelab.host import facts
from remote_scripts.layers.diagnose import Wanted as Diagnose
from remote_scripts.shared.card_nodes import Cards
from tests.boot_layers import container_cards, read_host
from tests.lab.host_kit import run_layer
from tests.scripts.test_on_a_host import Host

AMD = "0000:0c:00.0"


def test_a_reading_says_which_nodes_each_card_has_and_who_has_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix")
    done = host.run("apply", container_cards(901, Cards(minors=(0,), cards=(f"{AMD}=render",))))
    assert done.returncode == 0, done.stdout + done.stderr
    found = facts.parse(json.loads(host.run("read", read_host()).stdout))
    assert {address: (one.card, one.render, one.kfd) for address, one in found.drm.items()} == {
        "0000:01:00.0": ("card0", "renderD128", False),
        "0000:02:00.0": ("card1", "renderD129", False),
        AMD: ("card2", "renderD130", True),
    }
    (one,) = found.containers
    assert (one.cards, one.drift) == (f"{AMD}=render", ["container 901 still has to be restarted"])
    assert "/dev/kfd " in run_layer(host.machine, "read", "diagnose", Diagnose()).stdout
    text = (host.root / "etc/pve/lxc/901.conf").read_text()
    # NVIDIA's own nodes in /dev/dri come by NVIDIA's functions.
    assert (
        "/dev/nvidia0,mode=0666\n" in text
        and "/dev/dri/renderD130,gid=104,mode=0660\n" in text
        and "renderD128" not in text
    )
