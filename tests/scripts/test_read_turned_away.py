"""A reading: which VM was turned away because a run was at work; and the way out by hand of a turn that doesn't end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.boot_layers import read_host
from tests.scripts.conftest import Folder
from tests.scripts.test_handover import host as host  # with a card that VM 103 may take
from tests.scripts.test_handover import start
from tests.scripts.test_run_guard import HELD, answer
from tests.scripts.test_run_guard import run as holding


def test_who_was_turned_away_is_told_until_somebody_has_the_card(host: Folder) -> None:
    def seen() -> Any:
        return json.loads(host.run("read", read_host()).stdout)["turned_away"]

    assert seen() == {}
    with holding(host, "anna on desk, since 2026-01-02 03:04:05 +0000") as up:
        assert answer(up) == HELD
        assert start(host)[0] == 1
        first = seen()
        assert start(host)[0] == 1
    assert list(first) == ["big"] and first["big"].pop("at")[:3] == "202"
    assert first["big"] == {"vm": 103, "run": "anna on desk, since 2026-01-02 03:04:05 +0000"}
    assert list(seen()) == ["big"]
    assert start(host)[0] == 0
    assert seen() == {}


def test_the_way_out_by_hand_that_the_page_names_leaves_nothing_of_it(host: Folder) -> None:
    page = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
    block = page.partition("### A node goes on trying to end its turn")[2].partition("```sh\n")[2].partition("```")[0]
    program, units = "/var/lib/homelab/turn-end", "/etc/systemd/system/homelab-turn"
    for path in (program, "/var/lib/homelab/away", "/var/lib/homelab/turn", f"{units}.timer", f"{units}.service"):
        host.write(path, "")
    before = [path for path in host.root.rglob("*turn*") if path.is_file()]
    assert len(before) == 4 and "homelab-turn.timer" in block
    host.command("systemctl", 'echo "$*" >>"$ROOT/systemd"')
    done = host.bash(block.replace(" /", " $ROOT/"))
    assert done.returncode == 0, done.stderr
    assert not [path for path in before if path.exists()] and not (host.root / "var/lib/homelab/away").exists()
    assert "disable --now homelab-turn.timer" in host.read("/systemd")
