"""The lab reads configurations and mappings as Proxmox VE does, by the tables that the program is held to."""

from __future__ import annotations

from lab.api.guest_config import GuestConfig
from lab.api.mapping import full_address, read_mappings
from lab.api.options import parse_properties
from tests.agent.test_read_guests import FILE, MAPPINGS, VMS
from tests.rows import rows


def slots_of(values: dict[str, str]) -> set[str]:
    places = []
    for key, value in values.items():
        if key.startswith("hostpci"):
            option = parse_properties("pve-qm-hostpci", value)
            entries = read_mappings(FILE)[option["mapping"]].of_node("pve") if "mapping" in option else []
            places += [option.get("host", ""), *(entry["path"] for entry in entries)]
    return {full_address(part).partition(".")[0] for place in places for part in place.split(";") if part}


@rows("name", VMS)
def test_a_vm_has_the_cards_that_proxmox_ve_gives_it(name: str) -> None:
    config = GuestConfig.parse("qemu", VMS[name]["text"])
    assert slots_of(config.values) == {*VMS[name]["current"]}
    assert slots_of(config.merged()) == {*VMS[name]["next"]}


@rows("name", MAPPINGS)
def test_a_mapping_has_the_paths_that_proxmox_ve_finds(name: str) -> None:
    text, paths = MAPPINGS[name]["text"], MAPPINGS[name]["paths"]
    found = read_mappings(text)
    assert {id: [entry["path"] for entry in mapping.of_node("pve")] for id, mapping in found.items()} == paths


def test_raw_lines_that_wait_take_the_place_of_all_others() -> None:
    """PVE::LXC::Config, vmconfig_apply_pending (pve-container 6.1.10)."""
    config = GuestConfig.parse(
        "lxc", "lxc.idmap: u 0 1 1\n[pve:pending]\nmemory: 1024\nlxc.mount.entry: /dev/nvidia0 x\n"
    )
    assert config.text() == "lxc.idmap: u 0 1 1\n\n[pve:pending]\nmemory: 1024\nlxc.mount.entry: /dev/nvidia0 x\n"
    config.apply_pending()
    assert config.text() == "memory: 1024\nlxc.mount.entry: /dev/nvidia0 x\n"
    gone = GuestConfig.parse("lxc", "lxc.idmap: u 0 1 1\n[pve:pending]\ndelete: lxc\n")
    gone.apply_pending()
    assert gone.text() == ""


def test_what_a_container_has_of_a_boolean_is_a_number_and_of_no_value_what_is_there() -> None:
    """PVE::LXC::Config, check_type and parse_pct_config."""
    config = GuestConfig.parse("lxc", "unprivileged: yes\ntemplate: maybe\ndelete: dev0\n")
    assert config.values == {"unprivileged": "1", "template": "maybe"}
