"""read_host.sh: which VM was turned away because a run was at work, what HA goes by, and what waits for a VM's next start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.conftest import Folder
from tests.scripts.test_handover import host as host  # with a card that VM 103 may take
from tests.scripts.test_handover import start
from tests.scripts.test_run_guard import HELD, answer
from tests.scripts.test_run_guard import run as holding


def read(host: Folder, key: str, part: str, function: str) -> Any:
    done = host.bash(f"GUESTS=yes; printf '{{\"x\":1'; {function}; printf '}}\\n'", parts=(part,))
    return json.loads(done.stdout).get(key)


def test_who_was_turned_away_is_told_until_somebody_has_the_card(host: Folder) -> None:
    def seen() -> Any:
        return read(host, "turned_away", "read/ours", "turned_away")

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


def test_of_several_cards_each_has_its_own_and_half_of_one_is_none(host: Folder) -> None:
    noted = 'vm={}\nat=2026-01-01 10:00:00\nrun=b: "c=d"\n'
    for name, text in {"small": noted.format(104), "other": noted.format(""), "big": noted.format(103)}.items():
        host.write(f"/var/lib/homelab/handover/{name}.turned_away", text)
    about = {"at": "2026-01-01 10:00:00", "run": 'b: "c=d"'}
    assert read(host, "turned_away", "read/ours", "turned_away") == {
        "big": {"vm": 103, **about},
        "small": {"vm": 104, **about},
    }


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


@pytest.mark.parametrize("services", ["", "vm: 103\n\tstate started"])
def test_what_ha_goes_by_is_read_where_it_has_a_service(host: Folder, services: str) -> None:
    host.write("/etc/pve/ha/resources.cfg", services)
    host.write("/etc/pve/ha/rules.cfg", "node-affinity: a\n\tnodes pve\n")
    host.write("/etc/pve/ha/manager_status", '{"service_status":{}}')
    found = read(host, "ha", "read/guests", "ha_files")
    assert found == (
        {
            "resources": services,
            "groups": "",
            "rules": "node-affinity: a\n\tnodes pve",
            "status": '{"service_status":{}}',
        }
        if services
        else None
    )


@pytest.mark.parametrize("section", ["[PENDING]", "[pending] "])
def test_a_card_that_a_vm_gets_at_its_next_start_is_told_and_a_snapshots_is_not(host: Folder, section: str) -> None:
    text = f"hostpci0: 01:00\nargs: -x\n\n[before]\nhostpci2: 03:00\n\n{section}\ndelete: balloon\nhostpci1: 02:00\n\n[after]\nhostpci3: 04:00\n"
    host.write("/etc/pve/qemu-server/103.conf", text)
    host.write("/etc/pve/qemu-server/104.conf", f"name: idle\n\n{section}\ndelete: hostpci0\n")
    host.write("/etc/pve/qemu-server/105.conf", f"args: -x\n{section}\nhostpci0: 01:00\n")
    told = {one["id"]: one["lines"] for one in read(host, "guests", "read/guests", "guests")["configs"]}
    assert told[103].splitlines() == ["hostpci0: 01:00", "[PENDING]", "delete: balloon", "hostpci1: 02:00"]
    assert (told[104], told[105]) == ("name: idle\n[PENDING]\ndelete: hostpci0", "[PENDING]\nhostpci0: 01:00")


def test_guests_that_are_not_listed_are_not_said_to_be_off(host: Folder) -> None:
    host.command("pct", "echo 901 running ai")
    assert read(host, "guests", "read/guests", "guests")["unlisted"] == []
    host.command("qm", "exit 255")
    told = read(host, "guests", "read/guests", "guests")
    assert (told["unlisted"], 901 in told["running"]) == (["vm"], True)
    host.command("pct", "exit 2")
    told = read(host, "guests", "read/guests", "guests")
    assert (told["unlisted"], told["running"]) == (["vm", "lxc"], [])
