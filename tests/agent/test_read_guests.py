"""What VMs' configurations and the file of mappings say, as Proxmox VE takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from homelab import tables
from homelab.facts.guests import Guests
from remote_scripts.cards.card_users import names_card
from remote_scripts.cards.handed_over import SharedCard
from remote_scripts.notes.card import Card
from tests.agent.kit import Host
from tests.agent.reading_kit import least, read
from tests.rows import check_rows, rows

_TESTS = Path(__file__).parents[1]
VMS: dict[str, dict[str, Any]] = tables.read(_TESTS / "vm_configurations.yaml")
MAPPINGS: dict[str, dict[str, Any]] = tables.read(_TESTS / "mapping_files.yaml")
SLOTS = {slot for row in VMS.values() for when in ("current", "next") for slot in row[when]}
FILE = """first
\tmap id=10de:2b85,node=pve,path=0000:01:00

second
\tmap id=10de:1e04,node=pve,path=0000:02:00.0
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Each configuration is a VM's, from 100 on."""
    host = least(tmp_path_factory.mktemp("host"))
    host.write("etc/pve/mapping/pci.cfg", FILE)
    host.write("etc/pve/nodes/pve/x", "")
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    for vmid, row in enumerate(VMS.values(), 100):
        host.write(f"etc/pve/qemu-server/{vmid}.conf", row["text"])
    return host


@pytest.fixture(scope="module")
def guests(host: Host) -> Guests:
    return read(host).guests


@pytest.mark.parametrize(("when", "running"), [("current", True), ("next", False)])
def test_a_vm_has_at_least_the_cards_that_proxmox_ve_gives_it(guests: Guests, when: str, running: bool) -> None:
    def check(vmid: int, name: str) -> None:
        row = VMS[name]
        alone = dataclasses.replace(guests, running=frozenset([vmid] if running else []))
        users = {slot: [user for user in alone.users_of(slot, "pve") if user.vmid == vmid] for slot in SLOTS}
        slots = {slot for slot, user in users.items() if user and user[0].running == running}
        assert {*row[when]} <= slots <= {*row[when], *row.get("more", [])}, slots

    check_rows(check, enumerate(VMS, 100))


def test_the_hook_sees_each_card_that_a_vm_has(host: Host) -> None:
    system = host.system()

    def check(vmid: int, name: str) -> None:
        for slot in VMS[name]["current"]:
            card = Card(name="card", functions={f"{slot}.0": "10de:2b85"})
            assert names_card(SharedCard(system, card), str(vmid)), slot

    check_rows(check, enumerate(VMS, 100))


@rows("name", MAPPINGS)
def test_a_mapping_has_the_paths_that_proxmox_ve_finds(name: str) -> None:
    text, paths = MAPPINGS[name]["text"], MAPPINGS[name]["paths"]
    entries = Guests(frozenset(), "", [], text, "").mapping_entries
    found = {id: [one["path"] for one in lines if one.get("node") == "pve"] for id, lines in entries.items()}
    assert found == paths
