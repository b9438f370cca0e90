"""Keeps the start of a VM by hand and a run of this program (`pulumi up`, `pulumi destroy`) apart. A run's steps need
the cards where they are: a card that is taken between two steps would end the run half-way. So no handover begins while
a run holds the host (layers/run_guard.py), except for a VM that the run itself is about to start. And a run waits for a
handover that has begun.

A pass is a line VMID WHO in /run/homelab/passes. It counts only while the run of that name holds the host: a run that
comes back after a cut connection has its passes again, and no other run has them. The file goes with the boot.
"""

from __future__ import annotations

from remote_scripts.tools.system import System

_PASSES = "/run/homelab/passes"


def has(system: System, vmid: str, who: str) -> bool:
    """Whether the run lets a VM through."""
    return f"{vmid} {who}" in system.files.text(_PASSES).splitlines()


def of(system: System, who: str) -> list[str]:
    """The VMs that a run has let through so far."""
    lines = (line.partition(" ") for line in system.files.text(_PASSES).splitlines())
    return [vmid for vmid, _, whose in lines if whose == who]


def note(system: System, vmid: str, who: str) -> None:
    """Lets a VM through.

    :raises OSError: it can't be noted.
    """
    system.work.write("passes", f"{vmid} {who}\n", at_end=True)
