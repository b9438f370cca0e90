"""Findings of a container's devices, from the host up to its libraries, in the order of their repair. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from homelab.container import plan as container_plan
from homelab.doctor import configuration, logs
from homelab.doctor.devices import Case, is_for_everybody, names
from homelab.doctor.reading import OK
from homelab.findings import Finding, Stage
from homelab.nvidia import plan as nvidia_plan
from homelab.nvidia.judge import mismatch
from homelab.nvidia.request import Request
from homelab.settings import Nvidia

NOT_PERMITTED = "Operation not permitted"
NO_DRIVER = "No such device or address"


def findings(case: Case) -> list[Finding]:
    """Every one, the host's first."""
    return [
        *case.of_driver,
        *case.log[0],
        *_of_host(case),
        *configuration.findings(case),
        *(logs.of_start(case.reading, case.container.id, case.name) if case.container.running is False else ()),
        *_restart(case),
        *_inside(case),
        *_libraries(case),
    ]


# -- the host --------------------------------------------------------------------------------------------------------
def _of_host(case: Case) -> list[Finding]:
    """What the host lacks for a container. What a container of the settings lacks of it, its plan says."""
    if not case.of_nvidia:
        return []
    if case.cards.is_set or case.cards.judged.findings:
        return [*_stale_nodes(case)]
    if not case.reading.driver:
        return [_no_driver(case)]
    return [*_missing_cards(case), *_missing_nodes(case), *_stale_nodes(case)]


def _no_driver(case: Case) -> Finding:
    cards = [device for device in case.reading.facts.display_devices if device.is_nvidia]
    trouble = case.reading.facts.nvidia.trouble
    ids = tuple(device.id for device in cards)
    cause, step = trouble if any(trouble) else ("no /proc/driver/nvidia/version", "load NVIDIA's driver on the host")
    if not cards:
        step = "see whether the card is in `lspci -nn`; if not, look at its power and its slot"
    elif all(device.driver == "vfio-pci" for device in cards):
        step = (
            "leave a card to the host: `use: lxc` in the settings for one of them, `pulumi up`; or take it out of "
            "the VM that has it"
        )
    elif refused := nvidia_plan.refused(Request.of("host", Nvidia(), cards=ids, running=case.reading.facts.kernel)):
        step = refused[0].next
    return Finding(
        "NVIDIA's driver loaded on the host",
        f"{cause}; {_of_driver(case)}",
        f"containers have no driver of their own: {case.name} uses the host's",
        step,
    )


def _of_driver(case: Case) -> str:
    """The cards that the driver has, and who has the others."""
    return container_plan.cards(case.reading.facts, {}, {}).text


def _missing_cards(case: Case) -> Iterator[Finding]:
    """Cards that the container is to have and the driver doesn't."""
    if case.unknown:
        yield Finding(
            f"{', '.join(f'/dev/nvidia{number}' for number in sorted(case.unknown))} on the host, for {case.name} "
            f"({case.cards.by})",
            _of_driver(case),
            "the numbers are the driver's own, in its order; a card on vfio-pci has none",
            "give the container a card that the host has, or give that card back to the host",
        )


def _missing_nodes(case: Case) -> Iterator[Finding]:
    """Nodes of what the driver has, which nothing has made."""
    missing = [row for row in case.expected if row.host is None and row in case.of_nvidia]
    if missing:
        yield Finding(
            f"{names(missing)} on the host",
            "the driver is loaded, and nothing has made all of its nodes",
            "nodes of NVIDIA's driver are made by programs, after each boot; what isn't on the host can't be in a "
            "container, and a dev[n] entry for it keeps the container from starting",
            "`nvidia-smi && nvidia-modprobe -u -c 0`",
        )


def _stale_nodes(case: Case) -> Iterator[Finding]:
    """Nodes of an earlier boot's numbers."""
    majors, stale = case.reading.majors, dict[str, str]()
    for row in case.rows:
        driver = "nvidia-caps" if "/nvidia-caps/" in row.path else "nvidia-uvm" if "-uvm" in row.path else ""
        if row.host and row.source == row.path and driver in majors and row.host.major != majors[driver]:
            stale[row.path] = f"{row.path} has {row.host.major}, /proc/devices says {majors[driver]}"
    if stale:
        yield Finding(
            "nodes on the host with the majors that the driver has now",
            "; ".join(stale.values()),
            "the kernel gives the driver new numbers when it is loaded; an old node leads to nothing, or to another "
            "driver",
            f"`rm {shlex.join(stale)}`, then `nvidia-modprobe -u -c 0`",
        )


# -- the restart -----------------------------------------------------------------------------------------------------
def _restart(case: Case) -> Iterator[Finding]:
    """What the configuration gives and the container, which runs with an older one, hasn't."""
    differences = []
    for row, entry in case.given if case.container.was_seen else []:
        if row.host is None or not entry.created or row.allowed is False:
            continue
        if row.seen is None:
            differences.append(f"{row.path} isn't inside")
        elif row.seen.node.numbers != row.host.numbers:
            differences.append(f"{row.path} is {row.seen.node.numbers} inside, {row.host.numbers} on the host")
        elif row.seen.root == NOT_PERMITTED and not entry.deny_write:
            differences.append(f"{row.path}: {NOT_PERMITTED}, although a rule allows it; does another line deny it?")
    if differences:
        yield Finding(
            f"{case.name} running with its configuration",
            "; ".join(differences),
            "it gets devices and rules from its configuration when it starts, and it has run since before they were "
            "changed",
            restart_step(case),
            Stage.RESTART,
        )


def restart_step(case: Case) -> str:
    """The command that gives a running container its configuration."""
    return f"restart it: `pct reboot {case.container.id}`"


# -- inside ----------------------------------------------------------------------------------------------------------
def _inside(case: Case) -> Iterator[Finding]:
    if case.container.problem:
        yield Finding(
            f"to look into {case.name}",
            f"`pct exec`: {case.container.problem}",
            "whether its devices can be opened is only seen there",
            f"try `pct exec {case.container.id} -- true` on the host, and restart the container if it hangs",
            Stage.INSIDE,
        )
        return
    seen = [(row, row.seen.root) for row in case.rows if row.seen and row.seen.root not in (OK, NOT_PERMITTED, "")]
    closed = {row.path: why for row, why in seen if why == NO_DRIVER or (row.entry and is_for_everybody(row.path))}
    if closed:
        yield Finding(
            f"root of {case.name} to open {', '.join(closed)}",
            "; ".join(f"{path}: {why}" for path, why in closed.items()),
            f"“{NO_DRIVER}”: the card is on another driver, or has failed. “Permission denied”: in an unprivileged "
            "container the host's nodes belong to the user nobody, so their mode limits even root",
            "see `dmesg | grep -iE 'nvrm|amdgpu|i915|vfio'` on the host, or give the device by dev[n] with mode=0666",
        )


# -- libraries -------------------------------------------------------------------------------------------------------
_INSTALL = "with `nvidia: {}` for it under homelab:containers homelab installs them"


def _libraries(case: Case) -> list[Finding]:
    judged, wrong, driver = case.cards.system, _differ(case), case.reading.driver
    if judged.findings or wrong is None or case.of_driver or without_libraries(case):
        return judged.findings
    return [
        Finding(
            f"NVIDIA's libraries of version {driver} in {case.name}, as the driver on the host",
            *wrong,
            "remove those of another version inside, which this program didn't install"
            if case.reading.facts.systems.get(str(case.container.id))
            else f"{_INSTALL}, of exactly {driver}; or install the libraries inside by hand, once its devices are "
            f"there: `sh NVIDIA-Linux-x86_64-{driver}.run --no-kernel-modules`",
            Stage.INSIDE,
        )
    ]


def _differ(case: Case) -> tuple[str, str] | None:
    """What is wrong with NVIDIA's libraries inside, beside the host's driver: what is found, and why it matters."""
    of_nvidia = case.reading.driver and case.container.was_seen and case.of_nvidia
    return mismatch(case.reading.driver, case.libraries) if of_nvidia else None


def without_libraries(case: Case) -> list[str]:
    """The note on a container of the settings in which its owner has homelab install nothing: one or none."""
    is_asked = case.cards.is_set and not case.cards.system.title and not case.container.libraries
    return [f"it has none of NVIDIA's libraries: {_INSTALL}"] if is_asked and _differ(case) else []
