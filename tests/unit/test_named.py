"""homelab/host/named.py: the guests that a person names, in every command."""

from __future__ import annotations

from homelab.facts.guests import GuestConfig
from homelab.host.named import Named, meant
from tests.rows import rows

HERE = [
    GuestConfig(kind="vm", id=103, lines="name: Sandbox\n"),
    GuestConfig(kind="vm", id=104, lines="name: my-vm\n"),
    GuestConfig(kind="lxc", id=901, lines="hostname: ai-lab\n"),
    GuestConfig(kind="lxc", id=902, lines="hostname: sandbox\n"),
]
OWN = [Named("vm", 103, "games"), Named("lxc", 901, "my-vm")]


@rows(
    ("text", "ids"),
    [
        ("103", [103]),
        ("vm 103", [103]),
        ("vm:103", [103]),
        ("VM Sandbox", [103]),
        ("ct:901, container sandbox", [901, 902]),
        ("games", [103]),  # by the settings' name
        ("my-vm", [901]),  # which counts before Proxmox VE's
        ("my-vm 103", [901, 103]),
        ("sandbox", []),  # a VM and a container have it
        ("ct:103", []),
        ("103, nobody", []),
        ("", []),
    ],
)
def test_a_guest_is_known_by_its_id_its_names_and_its_kind(text: str, ids: list[int]) -> None:
    assert [one.id for one in meant(text, OWN, HERE)] == ids
