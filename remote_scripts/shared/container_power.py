"""A container switched off and on.

Where the HA manager has the container, pct asks it and ends at once: the container follows 10 to 20 seconds later, or
after the two minutes that a lock of a node that has nothing else to do takes. From then on it has the time that pct was
given, and HA ends it by force after that, whatever was asked for (PVE::HA::Resources::PVECT).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import guests, ha, kernel, pmxcfs
from remote_scripts.shared.container_conf import addresses
from remote_scripts.shared.container_notes import Notes, Ran, is_same, why_not_owed
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import DO_SECONDS
from remote_scripts.tools.system import System

HA_SECONDS = 180.0
_STATUS_SECONDS = 60.0
_PCT_SECONDS = 120.0
# As pct says it of a lock in the configuration (check_lock of PVE::AbstractConfig), or of its file.
_REFUSED = re.compile(r"is locked \(|can't lock file")
_FROZEN = "HA has frozen it, and switches it neither on nor off"
_ARM_HA = "see `ha-manager status`; if HA is disarmed: `ha-manager crm-command arm-ha`"


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """`timeout`: in seconds; `otherwise`: what becomes of one that still runs then."""

    timeout: int = 60
    otherwise: Literal["fail", "stop"] = "fail"


class Power:
    """One container's, within one run that has the host's lock."""

    def __init__(self, system: System, ctid: int, shutdown: Shutdown) -> None:
        self._system = system
        self._ctid = ctid
        self._shutdown = shutdown
        self._notes = Notes(system, ctid)
        #: What pct said last.
        self.message = ""
        # By what one that this run has shut down, to start it again, was told from another one then.
        self._mac_addresses: str | None = None

    def is_up(self) -> bool:
        """Whether it runs.

        :raises Failure: that isn't known.
        """
        power = guests.power_of(self._system, "pct", str(self._ctid), _STATUS_SECONDS)
        if power == "unknown":
            raise Failure(
                f"whether container {self._ctid} runs",
                f"pct status gave no answer within {_STATUS_SECONDS:g} s",
                "a container that hangs is neither on nor off",
                f"see `pct status {self._ctid}` and `ps` on the host; then run `pulumi up` again",
            )
        return power == "on"

    def shut_down(self) -> bool:
        """Whether it is off: within its time, and then as the settings say."""
        log, timeout = self._system.log, self._shutdown.timeout
        if ha.has_frozen(self._system, f"ct:{self._ctid}"):
            self.message = _FROZEN
            return False
        log.say(f"shutting container {self._ctid} down")
        # What counts is whether it is off.
        self._pct("shutdown", "--timeout", str(timeout), seconds=timeout + _PCT_SECONDS)
        self._await_ha("off", timeout + HA_SECONDS)
        if not self.is_up():
            return True
        if self._shutdown.otherwise != "stop":
            return False
        log.say(f"note: container {self._ctid} didn't go down within {timeout} s: it is stopped")
        if ran := self._notes.read().ran:
            self._note_ran(ran.known, off=False)
        self._pct("stop")
        self._await_ha("off", HA_SECONDS)
        return not self.is_up()

    def shutdown_failure(self, configuration: str, or_else: str) -> Failure:
        """What a run ends with that couldn't switch it off.

        :param configuration: what is so of that now.
        :param or_else: what may be done about one that takes its time.
        """
        asked = "it was asked to go off, and may do so later"
        next = f"see what keeps it (`pct exec {self._ctid} -- ps`), {or_else}, or set shutdown.otherwise: stop"
        if _REFUSED.search(self.message):
            asked = "something else works on it now (a backup, a snapshot), so that it was not asked to go off"
            next = f"wait until that is done; a lock that was left behind: `pct unlock {self._ctid}`"
        elif self.message == _FROZEN:
            asked = "HA would switch it off later, so that it was not asked to"
            next = _ARM_HA
        return Failure(
            f"container {self._ctid} off within {self._shutdown.timeout} s",
            f"it still runs: {self.message}",
            f"{asked}; its configuration {configuration}",
            f"{next}; then run `pulumi up` again",
        )

    def shut_down_to_start(self) -> bool:
        """The same of one that is started again next. It is noted: where that fails, or the run is cut short, the next
        one starts it.
        """
        conf = pmxcfs.content_of(self._system, f"{pmxcfs.PVE_LXC}/{self._ctid}.conf") or b""
        mac_addresses = addresses(conf.decode("utf-8", "replace"))
        self._note_ran(mac_addresses, off=False)
        if not self.shut_down():
            return False  # it may still go off, which the next run says
        self._mac_addresses = mac_addresses
        try:
            self._note_ran(mac_addresses, off=True)
        except OSError:
            self._system.log.say(
                f"note: that container {self._ctid} is off to be started again is not noted: the disk may be full"
            )
        return True

    def is_owed(self) -> bool:
        """Whether it was shut down to be started again, and isn't yet. What no longer counts is forgotten, by the rule
        for VMs (guest_tasks.py): a user who has switched it off since wants it off. Whether it is the same one is
        looked at anew, also where this run has shut it down: the id may be another one's by now.
        """
        ran = self._notes.read().ran
        if ran is None:
            return False
        if self.is_up():
            self._notes.change(ran=None)
            return False
        if self._mac_addresses is None:
            why = why_not_owed(self._system, self._ctid, ran)
        elif is_same(self._system, self._ctid, self._mac_addresses):
            why = ""
        else:
            why = "it is another one by now"
        if why:
            self._system.log.say(
                f"note: container {self._ctid} ran when an earlier run shut it down; {why}: whether it runs is left to "
                "you, and power in its settings"
            )
            self._notes.change(ran=None)
        return not why

    def start(self) -> None:
        """:raises Failure: it doesn't start."""
        if ha.has_frozen(self._system, f"ct:{self._ctid}"):
            raise Failure(
                f"container {self._ctid} started by HA",
                _FROZEN,
                "its services are down; HA would start it later, so that it was not asked to",
                f"{_ARM_HA}; then run `pulumi up` again",
            )
        self._system.log.say(f"starting container {self._ctid}")
        if self._pct("start") != 0:
            raise Failure(
                f"container {self._ctid} started",
                self.message,
                "it is off now",
                f"see `pct start {self._ctid} --debug`, correct the cause, then run `pulumi up` again",
            )
        if not self._await_ha("on", HA_SECONDS):
            raise Failure(
                f"container {self._ctid} started by HA",
                f"it is off after {HA_SECONDS:g} s",
                "its services are down, and HA may have given up starting it",
                "see `ha-manager status` on the host, correct the cause, then run `pulumi up` again",
            )

    def _pct(self, verb: str, *arguments: str, seconds: float = DO_SECONDS) -> int:
        done = self._system.run.do(
            "pct", verb, str(self._ctid), *arguments, seconds=seconds, doing=f"container {self._ctid}"
        )
        self.message = done.text
        return done.status

    def _note_ran(self, mac_addresses: str, *, off: bool) -> None:
        self._notes.change(ran=Ran(int(time.time()), kernel.boot_id(self._system), off, mac_addresses))

    def _await_ha(self, wanted: Literal["on", "off"], seconds: float) -> bool:
        """Until the HA manager has switched it, if it is the manager's to do so; whether it has."""
        if not ha.may_manage(self._system, f"ct:{self._ctid}"):
            return True
        for _ in self._system.work.tries(seconds, f"waiting for HA to switch container {self._ctid} {wanted}"):
            if guests.power_of(self._system, "pct", str(self._ctid), 0) == wanted:
                return True
        return False
