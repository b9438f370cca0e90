"""Waits for a host that reboots, and confirms its boot."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from homelab.errors import HomelabError, NotConfirmedError, UnreachableError
from homelab.remote.logins import RETRY_SECONDS
from homelab.remote.ssh import Session
from homelab.settings import Host
from homelab.text import tell_meanwhile
from remote_scripts.both import confirm_boot

if TYPE_CHECKING:
    from homelab.facts import host as facts

# How long one reading may take at least, of the time until an unconfirmed boot is undone.
SHORT_SECONDS = 15
# For so long a boot is confirmed: another run is waited for, then grub-mkconfig takes 15 s and more for each menu.
CONFIRM_SECONDS = 300.0
# Between two lines for the user that the host is waited for.
TELL_SECONDS = 5.0
# How long an open connection is watched for its end, by which a host's shutdown shows, before the boot id is asked for
# again: a host whose power is cut ends no connection.
GOING_DOWN_SECONDS = 5.0
# Between two attempts after the host refused: sshd (from OpenSSH 9.8 on) locks out for a while a client that it refuses
# more often.
REFUSED_SECONDS = 6.0


def confirm(host: Host, old_boot_id: str | None, say: Callable[[str], None]) -> facts.HostFacts:
    """Confirms the running boot, unless the host has rolled itself back, and reads the host in that boot.

    A host that is rolling back is waited for until it has restarted. Then `rolled_back` of the reading is set, and
    nothing was confirmed.

    :param old_boot_id: the boot before a reboot that was begun, and that is waited for; None: no reboot was begun.
    :param say: shows a line to the user.
    :raises UnreachableError: it can't be reached.
    :raises HomelabError: as of `wait_for_boot`.
    """
    reading = None
    if old_boot_id is None:
        session = Session(host)
        session.connect()
        with suppress(UnreachableError):  # it may be going down from its trial just now
            reading = _Confirmation(say).read(session, None, 0)
    if reading is None:
        reading = wait_for_boot(host, old_boot_id, say)
    while reading.rolling_back:
        say(f"it ends its boot on trial ({reading.rolled_back}), and restarts: waiting for that")
        try:
            reading = wait_for_boot(host, reading.boot_id, say)
        except HomelabError as error:
            say(f"it has not restarted: {error.found}")
            return reading
    return reading


def wait_for_boot(host: Host, old_boot_id: str | None, say: Callable[[str], None]) -> facts.HostFacts:
    """Waits for a boot with another id than `old_boot_id`, confirms it, and returns the first reading of it.

    Waits `timeouts.reboot` seconds, then as long again as the end of an unconfirmed trial and its restart may take.

    :param old_boot_id: None: any boot will do.
    :param say: shows a line to the user.
    :raises UnreachableError: the host didn't come back in all that time.
    :raises HomelabError: in all that time it refused the login, showed another host key, or couldn't be read; or the
        agent says why the boot can't be confirmed.
    """
    started = time.monotonic()
    confirmation = _Confirmation(say)
    patience = host.timeouts.reboot
    # One reading that hangs, on a host that has just come up, must not take all the time in which it is waited for.
    seconds = min(host.timeouts.api, max(SHORT_SECONDS, host.timeouts.rollback / 3))
    last_told = started
    last_problem = "it went down and nothing answers"
    last_refusal: HomelabError | None = None
    while True:
        try:
            session = Session(host)
            session.connect(anew=True)  # the earlier connection may be to the old boot, and not show it
            # A host that goes down isn't read, but asked for its boot id only; if it has none, the confirmation's
            # answer has it.
            if session.boot_id(seconds) != old_boot_id or old_boot_id is None:
                reading = confirmation.read(session, old_boot_id, seconds)
                if reading is not None:
                    return reading
            session.ended(GOING_DOWN_SECONDS)
            last_problem, last_refusal = "it answers, but has not rebooted", None
        except UnreachableError as error:
            last_problem, last_refusal = error.found, None
        except NotConfirmedError:
            raise
        except HomelabError as error:
            # The host is on its way down or up. Root's keys lie in /etc/pve, which may not be there yet. An initramfs
            # that asks for a disk's passphrase over SSH has its own host key. The shutdown may have ended a command of
            # the script.
            if last_refusal is None:
                say(f"{host.address} answers, but can't be read yet: {error.found}")
            last_problem, last_refusal = error.found, error
        if time.monotonic() - last_told >= TELL_SECONDS:
            last_told = time.monotonic()
            # The limit within what a terminal of 100 columns shows of it.
            tell_meanwhile(f"restarts: {last_told - started:.0f} s, at most {patience}; see its console meanwhile")
        if time.monotonic() - started > patience:
            if patience == host.timeouts.boot or confirmation.boot:
                waited = time.monotonic() - started
                raise last_refusal or _never_back(host, last_problem, waited, confirmation.boot)
            patience = host.timeouts.boot
            say(
                f"{host.address} is not back after {host.timeouts.reboot} s ({last_problem}): look at its screen or "
                f"its remote console. If it only lacks its network, it ends this boot {host.timeouts.rollback} s after "
                f"its start and reboots by itself into what it had before: waiting for that until {patience} s"
            )
        time.sleep(RETRY_SECONDS if last_refusal is None else REFUSED_SECONDS)


class _Confirmation:
    """Confirms a host's boot, then reads the host: in this order, as the trial's time goes on while a host is
    read.

    `boot`: the id of the confirmed boot; empty: none yet.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.boot = ""
        self._say = say

    def read(self, session: Session, old_boot_id: str | None, seconds: float) -> facts.HostFacts | None:
        """Confirms the boot and returns a reading; None: the host runs the old boot, or restarted between the
        confirmation and the reading, or is about to.

        :param old_boot_id: a boot that isn't to be confirmed.
        :param seconds: for the reading.
        :raises HomelabError: as `Session.run`.
        """
        wanted = confirm_boot.Wanted(unless=old_boot_id or "")
        answer = session.ask("apply", "confirm_boot", wanted, CONFIRM_SECONDS)
        if answer["boot"] == old_boot_id:
            return None
        if answer["judged"]:
            self._say(answer["judged"])
            session.ask("apply", "confirm_boot", dataclasses.replace(wanted, told=answer["judged"]), CONFIRM_SECONDS)
        self.boot = answer["confirmed"]
        reading = session.read(kernel_log=True, seconds=seconds)
        if reading.rolled_back or reading.rolling_back or reading.boot_id == self.boot:
            return reading
        return None


def _never_back(host: Host, last_problem: str, waited: float, confirmed: str) -> UnreachableError:
    return UnreachableError(
        wanted=f"{host.address} back after its reboot",
        found=f"after {waited:.0f} s: {last_problem}",
        why=f"boot {confirmed} is confirmed, and the host doesn't take it back; something in it hangs"
        if confirmed
        else "its kernel may hang. If its boot was on trial, the host's default is what it had before",
        next="log in, and see what hangs (`lspci`, `dmesg`, a disk); then run `pulumi up` again"
        if confirmed
        else "look at its screen or its remote console, then switch it off and on: it starts with its default; "
        "when it is back, run `pulumi up --refresh`",
    )
