"""Intel's and AMD's cards on a whole host: what a reading says of their nodes, and of who has them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from homelab.host import facts
from remote_scripts.layers.diagnose import Wanted as Diagnose
from remote_scripts.shared.card_nodes import Cards
from tests.boot_layers import container_gpus, read_host
from tests.lab.host_kit import run_layer
from tests.scripts.conftest import Folder, quoted
from tests.scripts.test_on_a_host import Host

AMD = "0000:0c:00.0"


@pytest.mark.parametrize(
    ("command", "status", "answer"),
    [
        ("printf 'a\\nb\\n\\n'", 0, "a\nb"),
        ("printf 'a\\0b'; exit 3", 3, "ab"),
        ("cat", 0, "what it reads"),
        ("yes", 0, "y\n" * 1000),
        ("sleep 30 & echo soon", 0, "soon"),
        ("echo said; trap '' PIPE TERM; sleep 30", 137, "said"),
        ("true", 0, ""),
    ],
)
def test_the_answer_of_what_runs_in_a_guest_has_an_end(folder: Folder, command: str, status: int, answer: str) -> None:
    text = f"status=0; answer_of 1 2000 sh -c {quoted(command)} <<<'what it reads' 2>/dev/null || status=$?\n"
    folder.as_sent, started = True, time.monotonic()
    done = folder.bash(text + 'printf "%s:%s:" "$status" "$ANSWER"')
    assert done.stdout == f"{status}:{answer.rstrip()}:"
    assert time.monotonic() - started < 20


def test_a_reading_says_which_nodes_each_card_has_and_who_has_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix")
    done = host.run("apply", container_gpus(901, Cards(minors=(0,), cards=(f"{AMD}=render",))))
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
