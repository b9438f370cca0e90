"""What the Proxmox VE API costs: as many requests as a first `up` with a card for a VM makes, with the login before them, on a lab's host.

The peer is proxmoxer's own way over SSH (its backend ssh_paramiko): `pvesh` on the host for each request, over one connection. Both are asked through
proxmoxer's `ProxmoxResource`, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from proxmoxer import ProxmoxAPI
from proxmoxer.core import ProxmoxResource

from homelab.remote.proxmox.connection import Connection
from homelab.settings import Host
from lab import Lab
from tests import connections
from tests.bench.report import API, Measured

SCENARIO = "rtx5090"
VM = 103
#: Of a first `up`, by the log of the lab's API.
READS, CHANGES = 23, 4


def measure_api(folder: Path, rounds: int) -> list[Measured]:
    """Each of `API`, by turns.

    :param folder: for the lab's host.
    :raises HomelabError: the host can't be reached, or makes no ticket.
    """
    results = {name: Measured(name, title) for name, title in API.items()}
    with Lab.start(SCENARIO, state=folder) as lab:
        ways = {"api": lambda: _by_homelab(lab), "pvesh": lambda: _by_proxmoxer(lab)}
        for number in range(rounds + 1):
            for name, way in ways.items():
                connections.end_all()
                seconds = _timed(way)
                if number:  # the first warms up
                    results[name].seconds.append(seconds)
    return list(results.values())


def _by_homelab(lab: Lab) -> ProxmoxResource:
    way = {name: lab.connection[name] for name in ("port", "hostKey", "privateKeyFile")}
    return Connection(Host.model_validate({"address": lab.connection["host"], "ssh": way})).resource


def _by_proxmoxer(lab: Lab) -> ProxmoxResource:
    way = {"port": lab.connection["port"], "private_key_file": lab.connection["privateKeyFile"]}
    return ProxmoxAPI(lab.connection["host"], user="root", backend="ssh_paramiko", **way)


def _timed(way: Callable[[], ProxmoxResource]) -> float:
    begun = time.monotonic()
    config = way()(f"nodes/pve/qemu/{VM}/config")
    for _ in range(READS):
        config.get()
    for number in range(CHANGES):
        config.put(description=f"change {number}")
    return time.monotonic() - begun
