"""What is wrong on the host for a container: its driver, its cards, its nodes. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from homelab.container import plan as container_plan
from homelab.doctor.case import Case
from homelab.doctor.devices import names
from homelab.findings import UP, Finding
from homelab.host import plan


def findings(case: Case) -> list[Finding]:
    """What the host lacks for a container, as far as nothing is planned for it."""
    if not case.of_nvidia:
        return []
    if case.cards.judged.findings:
        return [*_stale_nodes(case)]
    if not case.reading.driver:
        return [_no_driver(case)]
    return [*_missing_cards(case), *_missing_nodes(case), *_stale_nodes(case)]


def _no_driver(case: Case) -> Finding:
    cards = [device for device in case.reading.facts.display_devices if device.is_nvidia]
    trouble = case.reading.facts.nvidia.trouble
    cause, step = trouble if any(trouble) else ("no /proc/driver/nvidia/version", "load NVIDIA's driver on the host")
    if not cards:
        step = "see whether the card is in `lspci -nn`; if not, look at its power and its slot"
    elif all(device.driver == "vfio-pci" for device in cards):
        step = (
            "leave a card to the host: `use: lxc` in the settings for one of them, `pulumi up`; or take it out of "
            "the VM that has it"
        )
    elif case.cards.driver_comes:
        step = UP
    return Finding(
        "NVIDIA's driver loaded on the host",
        f"{cause}; {_of_driver(case)}",
        f"containers have no driver of their own: {case.name} uses the host's",
        step,
    )


def _of_driver(case: Case) -> str:
    """The cards that the driver has, and who has the others."""
    return container_plan.cards(case.reading.facts, plan.Wanted("", "", {}, []), {}).text


def _missing_cards(case: Case) -> Iterator[Finding]:
    """Cards that the container is to have and the driver doesn't."""
    missing = sorted(case.unknown)
    if not missing:
        return
    yield Finding(
        f"{', '.join(f'/dev/nvidia{number}' for number in missing)} on the host, for {case.name} ({case.cards.by})",
        _of_driver(case),
        "the numbers are the driver's own, in its order; a card on vfio-pci has none",
        "give the container a card that the host has, or give that card back to the host",
    )


def _missing_nodes(case: Case) -> Iterator[Finding]:
    """Nodes of what the driver has, which nothing has made."""
    missing = [row for row in case.expected if row.host is None and row in case.of_nvidia]
    if not missing:
        return
    yield Finding(
        f"{names(missing)} on the host",
        "the driver is loaded, and nothing has made all of its nodes",
        "nodes of NVIDIA's driver are made by programs, after each boot; what isn't on the host can't be in a "
        "container, and a dev[n] entry for it keeps the container from starting",
        "`nvidia-smi && nvidia-modprobe -u -c 0`",
    )


def _stale_nodes(case: Case) -> Iterator[Finding]:
    """Nodes of an earlier boot's numbers."""
    majors = case.reading.majors
    stale = []
    for row in case.rows:
        driver = "nvidia-caps" if "/nvidia-caps/" in row.path else "nvidia-uvm" if "-uvm" in row.path else ""
        if row.host and row.source == row.path and driver in majors and row.host.major != majors[driver]:
            stale.append((row.path, row.host.major, majors[driver]))
    if not stale:
        return
    yield Finding(
        "nodes on the host with the majors that the driver has now",
        "; ".join(f"{path} has {node_major}, /proc/devices says {major}" for path, node_major, major in stale),
        "the kernel gives the driver new numbers when it is loaded; an old node leads to nothing, or to another driver",
        f"`rm {shlex.join(path for path, _, _ in stale)}`, then `nvidia-modprobe -u -c 0`",
    )
