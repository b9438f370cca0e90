"""Why a guest's last start failed, as its task's log says. Pure."""

from __future__ import annotations

from homelab.doctor.reading import Reading
from homelab.facts import kernel_log
from homelab.findings import Finding, Stage

# Lines of the log that are quoted.
_QUOTED = 6


def findings(reading: Reading, number: int, name: str) -> list[Finding]:
    """The finding on a guest that is off since a start that failed: one or none.

    :param number: its id.
    :param name: for messages, such as `VM 103 (sandbox)`.
    """
    log = reading.extra.failed_starts.get(str(number))
    if not log:
        return []
    causes = kernel_log.of_start(log, number)
    return [
        Finding(
            f"{name} started",
            f"its last start failed: {kernel_log.excerpt(log, _QUOTED)}",
            "; ".join(cause.why for cause in causes) or "the task's log says what Proxmox VE, QEMU or lxc refused",
            "; ".join(cause.next for cause in causes) or "correct what the log names, and start it again",
            Stage.CONFIGURATION,
        )
    ]
