"""What logs say: the kernel's about cards, and a task's about why a guest's last start failed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from homelab.doctor.reading import Reading
from homelab.facts import kernel_log
from homelab.findings import Finding, Stage
from homelab.host.judge import troubles
from remote_scripts.both.symptoms import Context

# Lines of a task's log that are quoted.
_QUOTED = 6
#: Said of a text that no row of the tables has.
UNKNOWN = "this program doesn't recognise it"


def of_kernel(reading: Reading, slots: Mapping[str, str], *, for_vms: bool = True) -> tuple[list[Finding], list[str]]:
    """What the kernel says of cards: findings; and remarks on what harms nothing.

    :param slots: of the cards, by their names for messages.
    :param for_vms: as of `troubles`.
    """
    found = troubles(reading.facts, slots, "", for_vms=for_vms)
    harms = Finding.of(*(one.error for one in found if not one.harmless))
    return harms, [one.remark for one in found if one.harmless]


def of_start(reading: Reading, number: int, name: str) -> Iterator[Finding]:
    """The finding on a guest that is off since a start that failed: one or none.

    :param number: its id.
    :param name: for messages, such as `VM 103 (sandbox)`.
    """
    log = reading.extra.failed_starts.get(str(number))
    if not log:
        return
    context = Context(name, "lxc" if reading.container(number) else "vm", host_driver=reading.driver or None)
    causes = [one.error for one in kernel_log.of_text(log, context, number) if not one.harmless]
    shown = kernel_log.excerpt(log, _QUOTED) if causes else last_lines(log)
    yield Finding(
        f"{name} started",
        f"its last start failed: {shown}",
        "; ".join(cause.why for cause in causes)
        or f"{UNKNOWN}: the task's log says what Proxmox VE, QEMU or lxc refused",
        "; ".join(cause.next for cause in causes) or "correct what the log names, and start it again",
        Stage.CONFIGURATION,
    )


def last_lines(log: str) -> str:
    """The end of a log, in one line."""
    return kernel_log.excerpt("\n".join(log.strip().splitlines()[-_QUOTED:]), _QUOTED)


def explained(text: str, context: Context) -> str:
    """What this program recognises in any program's output: an error for each cause; empty: nothing."""
    found = kernel_log.of_text(text, context)
    return "\n\n".join(one.remark if one.harmless else str(one.error) for one in found)
