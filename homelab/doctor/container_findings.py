"""Findings of a container's devices, from the host up to its libraries, in the order of their repair. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from homelab.doctor import configuration, host_nodes, starts
from homelab.doctor.case import Case
from homelab.doctor.devices import is_for_everybody
from homelab.doctor.reading import OK
from homelab.findings import Finding, Stage
from homelab.nvidia.judge import mismatch

NOT_PERMITTED = "Operation not permitted"
NO_DRIVER = "No such device or address"


def findings(case: Case) -> list[Finding]:
    """Every one, the host's first."""
    return [
        *case.log[0],
        *host_nodes.findings(case),
        *configuration.findings(case),
        *(starts.findings(case.reading, case.container.id, case.name) if case.container.running is False else ()),
        *_restart(case),
        *_inside(case),
        *_libraries(case),
    ]


# -- the restart -----------------------------------------------------------------------------------------------------
def _restart(case: Case) -> Iterator[Finding]:
    """What the configuration gives and the container, which runs with an older one, hasn't."""
    if not case.container.was_seen:
        return
    differences = []
    for row in case.given:
        if row.host is None or not row.entry or not row.entry.created or row.allowed is False:
            continue
        if row.seen is None:
            differences.append(f"{row.path} isn't inside")
        elif row.seen.node.numbers != row.host.numbers:
            differences.append(f"{row.path} is {row.seen.node.numbers} inside, {row.host.numbers} on the host")
        elif row.seen.root == NOT_PERMITTED and not row.entry.deny_write:
            differences.append(f"{row.path}: {NOT_PERMITTED}, although a rule allows it; does another line deny it?")
    if not differences:
        return
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
def _inside(case: Case) -> list[Finding]:
    if case.container.problem:
        return [
            Finding(
                f"to look into {case.name}",
                f"`pct exec`: {case.container.problem}",
                "whether its devices can be opened is only seen there",
                f"try `pct exec {case.container.id} -- true` on the host, and restart the container if it hangs",
                Stage.INSIDE,
            )
        ]
    seen = [(row, row.seen.root) for row in case.rows if row.seen and row.seen.root not in (OK, NOT_PERMITTED, "")]
    closed = {row.path: why for row, why in seen if why == NO_DRIVER or (row.entry and is_for_everybody(row.path))}
    if not closed:
        return []
    return [
        Finding(
            f"root of {case.name} to open {', '.join(closed)}",
            "; ".join(f"{path}: {why}" for path, why in closed.items()),
            f"“{NO_DRIVER}”: the card is on another driver, or has failed. “Permission denied”: in an unprivileged "
            "container the host's nodes belong to the user nobody, so their mode limits even root",
            "see `dmesg | grep -iE 'nvrm|amdgpu|i915|vfio'` on the host, or give the device by dev[n] with mode=0666",
        )
    ]


# -- libraries -------------------------------------------------------------------------------------------------------
def _libraries(case: Case) -> list[Finding]:
    judged, wrong, driver = case.cards.system, _differ(case), case.reading.driver
    if judged.findings or wrong is None or without_libraries(case):
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


_INSTALL = "with `nvidia: {}` for it under homelab:containers homelab installs them"


def _differ(case: Case) -> tuple[str, str] | None:
    """What is wrong with NVIDIA's libraries inside, beside the host's driver: what is found, and why it matters."""
    of_nvidia = case.reading.driver and case.container.was_seen and case.of_nvidia
    return mismatch(case.reading.driver, case.container.libraries) if of_nvidia else None


def without_libraries(case: Case) -> list[str]:
    """The note on a container of the settings in which its owner has homelab install nothing: one or none."""
    is_asked = case.cards.is_set and not case.cards.system.title and not case.container.libraries
    return [f"it has none of NVIDIA's libraries: {_INSTALL}"] if is_asked and _differ(case) else []
