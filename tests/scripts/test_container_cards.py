"""Intel's and AMD's cards on a whole host: what a reading says of their nodes, and of who has them."""

from __future__ import annotations

import json
from pathlib import Path

from homelab.container.plan import as_given, judge_container
from homelab.facts import host as facts
from homelab.vm.plan import UNFINISHED
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.guest_note import identity
from remote_scripts.pve.container_conf import conf_text, options_of
from remote_scripts.tools.plain import to_plain
from tests.boot_layers import read_host
from tests.scripts.test_on_a_host import Host

AMD = "0000:0c:00.0"


def test_a_reading_says_which_nodes_each_card_has_and_who_has_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix")
    text = (host.root / "etc/pve/lxc/901.conf").read_text(encoding="utf-8")
    note = ContainerNote(
        identity=identity(options_of(conf_text(text))),
        given=Given(cards=Cards(minors=(0,), cards=(f"{AMD}=render",))),
        shut_down_after="",
    )
    path = host.root / "etc/pve/homelab/lxc-901"
    path.parent.mkdir()
    path.write_text(json.dumps(to_plain(note)))
    found = facts.parse(json.loads(host.run("read", read_host()).stdout))
    assert {address: (one.card, one.render, one.kfd) for address, one in found.drm.items()} == {
        "0000:01:00.0": ("card0", "renderD128", False),
        "0000:02:00.0": ("card1", "renderD129", False),
        AMD: ("card2", "renderD130", True),
    }
    steps = judge_container(as_given("ai", 901, found), found).steps
    # NVIDIA's own nodes in /dev/dri come by NVIDIA's functions.
    assert found.container_note(901) == note and "renderD128" not in " ".join(steps)
    assert "dev0: not there -> /dev/nvidia0" in steps
    assert any("-> /dev/dri/renderD130" in line for line in steps)
    assert steps[-1] == UNFINISHED and "/dev/kfd" in found.nodes
