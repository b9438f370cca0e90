"""homelab/guest/work.py: a created VM that has moved or was taken over is not removed with its former entry."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.facts.guests import ledger_entry
from homelab.guest.work import marked_anew
from homelab.remote import ledger
from homelab.resources.work.base import StackTexts
from tests.rows import rows

SSH = {"hostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFILL+IN+WITH+ssh+keyscan+t+ed25519+ADDRESS0", "agent": True}


def texts(vms: dict[str, Any], about: dict[str, Any]) -> StackTexts:
    gpus = {"card": {"match": "10de:2b85"}}
    hosts = {
        name: {"address": f"192.0.2.{number}", "ssh": SSH, "gpus": gpus, **about.get(name, {})}
        for number, name in enumerate(("pve1", "pve2"), 1)
    }
    return StackTexts({"hosts": json.dumps(hosts), "vms": json.dumps(vms), "allowPlainSecrets": "true"})


@rows(
    ("clusters", "entry", "found"),
    [
        ({}, "pve1", ["a"]),
        ({}, "pve2", []),
        ({"pve1": "home", "pve2": "home"}, "pve2", ["a"]),
        ({"pve1": "home", "pve2": "other"}, "pve2", []),
        ({"pve1": "home"}, "pve2", []),
    ],
)
def test_an_entry_that_adopts_a_vm_counts_in_all_of_its_cluster(
    clusters: dict[str, str], entry: str, found: list[str]
) -> None:
    """VM 103 was made on pve1."""
    vms = {"a": {"host": entry, "vmid": 103, "gpus": ["card"]}}
    stack = texts(vms, {host: {"cluster": name} for host, name in clusters.items()})
    assert [*stack.entries_of("vms", 103, "pve1")] == found
    assert not stack.entries_of("vms", 104, "pve1")


@pytest.mark.parametrize("had", ["", " 0123456789abcdef"])
def test_a_guest_taken_over_keeps_what_the_user_has_written(had: str) -> None:
    text = marked_anew(
        "made by p/s/a", "f" * 16, {"description": f"made by p/s/ab 1\nmine: \\1\nmade by p/s/a{had} - keep\n"}
    )
    assert text == f"made by p/s/ab 1\nmine: \\1\nmade by p/s/a {'f' * 16} - keep"


@rows(("noted", "holder"), [(None, ""), ({}, ""), ({"gpu": "a"}, ""), ({"gpu": "b"}, "b"), ({"guest": "b"}, "")])
def test_a_note_is_kept_by_another_entry_that_it_names(noted: dict[str, Any] | None, holder: str) -> None:
    assert ledger.held_by(noted, "a") == holder


@pytest.mark.parametrize(
    ("urn", "stack"),
    [("urn:pulumi:prod::homelab::homelab:index:VmCards::sandbox", "homelab/prod"), ("", ""), ("urn:pulumi:prod", "")],
)
def test_the_stack_of_a_resource_is_in_its_urn(urn: str, stack: str) -> None:
    assert ledger.stack_of(urn) == stack


@rows(
    ("text", "counts"),
    [
        ('{"gpu": "a", "path": "0000:01:00", "before": null, "had_flag": false}', True),
        ('{"gpu": "a", "path": "0000:01:00", "before": 1, "had_flag": false}', False),
        ('{"gpu": "a", "path": "0000:01:00", "before": null}', False),
        ('["gpu", "path", "before", "had_flag"]', False),
        ("{", False),
        ("", False),
    ],
)
def test_a_note_that_lacks_something_counts_as_none(text: str, counts: bool) -> None:
    assert (ledger_entry({"mapping/pve/a": text}, "mapping/pve/a") is not None) is counts
    assert ledger_entry({"mapping/pve/a": text}, "mapping/pve/b") is None
