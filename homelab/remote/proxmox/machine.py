"""A VM through the API: its configuration changed under its digest, its power with care.

A change is written first, while the VM still runs: what Proxmox VE refuses (rights, locks, digests) it refuses then,
before anything is stopped. What waits for the next start is brought into force by a shutdown and a start; if the VM
won't go off, or not start with it, the change is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from homelab.errors import HomelabError
from homelab.host.ha import GIVEN_UP
from homelab.remote import scripts
from homelab.remote.proxmox.api import SECRETS, Api
from homelab.remote.proxmox.errors import (
    ApiError,
    ChangedMeanwhileError,
    ElsewhereError,
    NotThereError,
    StillRunsError,
    TaskFailedError,
    UnansweredError,
)
from homelab.text import tell
from homelab.vm.config import Change, identity, is_roots_alone, strings

# A guest that is still booting ignores the power button: it is pressed again, this often.
PRESS_SECONDS = 60
# How far the clock of a task and the uptime of its VM may be apart, in seconds.
CLOCK_SECONDS = 5
# How long to look for the effect of a start that no task can be waited for.
LOST_SECONDS = 30
# The same where the HA manager starts or stops it: its task ends at once, and the VM follows 10 to 20 seconds later
# (recorded), or after the two minutes that a lock of a node that has nothing else to do takes.
HA_SECONDS = 180

# For how long HA may take to write down that it was asked to stop a VM; 10 seconds at most where it is at work
# (recorded).
HA_TAKES_SECONDS = 30

# HA's states of a VM that it was asked to stop.
HA_STOPS = ("stopped", "request_stop", "disabled")

# QEMU's state (qmpstatus) of a VM that it has halted.
HALTED = "internal-error"

# From a VM's present configuration to what is to be written.
PowerTarget = Callable[[dict[str, str]], Change]


@dataclass(frozen=True)
class Policy:
    """How to shut down: within `timeout` seconds, then `otherwise`: fail or stop."""

    timeout: int
    otherwise: str


class Memory(Protocol):
    """What outlives a run that is killed: that a VM ran, and is to run again."""

    def keep(self, identity: str) -> None:
        """Notes that it runs, before each request to shut it down to run again.

        :param identity: tells it from another VM (vm.config.identity).
        :raises HomelabError: it can't be noted.
        """

    def recalls(self, identity: Callable[[], str]) -> bool:
        """Is it to run again, as far as that is certain? What no longer counts is forgotten.

        :raises HomelabError: it can't be asked for.
        """

    def forget(self) -> None:
        """It runs again, or isn't to."""


class NoMemory:
    """Of a VM that nobody has shut down."""

    def keep(self, identity: str) -> None:
        """See Memory."""

    def recalls(self, identity: Callable[[], str]) -> bool:
        """See Memory."""
        return False

    def forget(self) -> None:
        """See Memory."""


class Machine:
    """One VM.

    `name`: for messages, such as `sandbox`; `let_start`: called before a VM with a hookscript is started, which may be
    the one that hands it its card (homelab/remote/guard.py); `memory`: whether it ran when an earlier run shut it down;
    `log_of_start`: the log of its last start on a node since a time (in seconds since 1970), as the host has it; for a
    start of HA's, which is another user's task. None: nobody can say.
    """

    def __init__(
        self,
        api: Api,
        vmid: int,
        name: str,
        let_start: Callable[[], None] = lambda: None,
        *,
        memory: Memory | None = None,
        log_of_start: Callable[[str, int], list[str] | None] = lambda _, __: None,
    ) -> None:
        self._api = api
        self._let_start, self._announced = let_start, False
        self._memory, self._remembered = memory or NoMemory(), False
        # By what it is told from another VM, once this has noted that it is to run again.
        self._noted: str | None = None
        self._log_of_start = log_of_start
        # Has this asked HA to start or to stop it? Then it may be on another node at any moment. Had somebody else
        # asked HA to stop it before?
        self._asked_ha, self._others_stop_it = False, False
        self.vmid = vmid
        self.name = name
        self._path = f"nodes/{api.node}/qemu/{vmid}"
        self.label = f"VM {vmid} ({name})"
        # How often it was started by this, and what the last of these starts said: what became of its cards is told
        # there alone (homelab/host/card_start.py).
        self.starts = 0
        self.start_log: list[str] = []
        # Called before it is started for a change, while it is off.
        self.before_start: Callable[[], None] = lambda: None

    @property
    def node(self) -> str:
        """Where it is."""
        return self._api.node

    def say(self, text: str) -> None:
        """Shows a line in Pulumi's display."""
        tell(f"{self.name}: {text}")

    # -- what it is ----------------------------------------------------------------------------------------------
    def config(self) -> dict[str, str]:
        """Its configuration, with what waits for the next start.

        :raises NotThereError: there is no such VM.
        :raises ApiError: the API doesn't say.
        """
        return strings(self._read())

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get("/config", f"to read the configuration of {self.label}")
        return found

    def _get(self, below: str, wanted: str, **parameters: Any) -> Any:
        """A GET below its path; where HA has moved it since this asked HA for something, on the node that it is on
        now."""
        while True:
            try:
                return self._api.get(f"{self._path}{below}", wanted, **parameters)
            except ElsewhereError as error:
                if not self._asked_ha or not error.node:
                    raise
                self.say(f"HA has moved it from {self.node} to {error.node}: it counts there from now on")
                self._api = self._api.at(error.node)
                self._path = f"nodes/{error.node}/qemu/{self.vmid}"

    def running(self) -> bool:
        """Does it run?

        :raises ApiError: the API doesn't say.
        """
        return bool(self._status()["status"] == "running")

    def state(self) -> str:
        """`running`; `stopped`; or `internal-error`: QEMU has halted it, as it does when the kernel tells of an error
        of a card (hw/vfio/pci.c, vfio_err_notifier_handler).

        :raises ApiError: the API doesn't say.
        """
        status = self._status()
        halted = status.get("qmpstatus") == HALTED
        return HALTED if halted and status["status"] == "running" else str(status["status"])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get("/status/current", f"to see whether {self.label} runs")
        return found

    def _waiting(self, keys: list[str]) -> list[str]:
        """Those keys whose change waits for the next start."""
        found = self._get("/pending", f"to see what waits for the next start of {self.label}")
        return [one["key"] for one in found if one["key"] in keys and ("pending" in one or one.get("delete"))]

    # -- changes -------------------------------------------------------------------------------------------------
    def was_left_off(self) -> bool:
        """Is it off, and to run again, because a run that was interrupted has shut it down?

        :raises HomelabError: as `running` and `Memory.recalls`.
        """
        return not self.running() and self._memory.recalls(self._identity)

    def _identity(self) -> str:
        return identity(self.config())

    def converge(self, target: PowerTarget, keys: list[str], policy: Policy, power: str) -> bool:
        """Writes what is to be written, brings it into force, and sees to the power.

        One that is off stays off with `keep`, unless a run that was interrupted, or this program's reboot, has shut it
        down: its memory says so.

        :param keys: all that may be waiting from an earlier, interrupted change.
        :param power: `keep`, `running` or `stopped`.
        :returns: whether the VM runs.
        :raises HomelabError: it is as it was then, unless the text says otherwise.
        """
        running = self.running()
        ran = self._memory.recalls(self._identity)
        # Whoever has asked HA to stop it wants it off; unless that was a run that was interrupted.
        self._others_stop_it = running and not ran and self._ha().get("state") in HA_STOPS
        before, change = self._write(target)
        if running and self._waiting(sorted({*keys, *change.keys})):
            start = power == "running" or (power == "keep" and not self._others_stop_it)
            self._restart(before, change, policy, start=start)
            if ran and not start:
                self._memory.forget()
            return start
        if power == "stopped":
            if running:
                self.shut_down(policy)
            if ran:
                self._memory.forget()
            return False
        if not running and (power == "running" or ran):
            self._remembered = ran
            if ran:
                self.say(
                    f"{self.label} ran when this program shut it down, and hasn't been started since: it is to run "
                    "again"
                )
            self._start_with(before, change, was_running=ran)
            return True
        if ran:
            self._have_ha_keep_it()
            self._memory.forget()
        return running

    def _write(self, target: PowerTarget) -> tuple[dict[str, str], Change]:
        """Writes under the digest. If the configuration is changed meanwhile, it is read again, once."""
        try:
            return self._write_once(target)
        except ChangedMeanwhileError:
            self.say(f"{self.label} was changed from elsewhere a moment ago; reading it again")
            return self._write_once(target)

    def _write_once(self, target: PowerTarget) -> tuple[dict[str, str], Change]:
        read = self._read()
        before = strings(read)
        change = target(before)
        if change:
            try:
                self._put(change, before, read["digest"])
            except (ChangedMeanwhileError, UnansweredError):
                # It may have been carried out, and only the answer was lost: then nothing is left to be written.
                if target(self.config()):
                    raise
            for key, value in change.values.items():
                self.say(f"{key} set anew" if key in SECRETS else f"{key}: {value}")
            for key in change.delete:
                self.say(f"{key} removed")
        return before, change

    def _put(self, change: Change, before: Mapping[str, str], digest: str | None) -> None:
        parameters: dict[str, Any] = dict(change.values)
        if change.delete:
            parameters["delete"] = ",".join(change.delete)
        if digest is not None:
            parameters["digest"] = digest
        wanted = f"to change {', '.join(change.keys)} of {self.label}"
        self._api.put(f"{self._path}/config", wanted, as_root=self._takes_root(change, before), **parameters)

    def _takes_root(self, change: Change, before: Mapping[str, str]) -> bool:
        """Is it root's alone to make this change, or to take it back? That goes by the values in force, too, not only
        by those that wait.

        :param before: the configuration, with what waits.
        """
        devices = [key for key in change.keys if key.startswith("hostpci")]
        if not devices or self._api.is_roots:
            return False
        wanted = f"to read what {self.label} has"
        in_force = strings(self._get("/config", wanted, current=1))
        return any(
            is_roots_alone(one[key]) for one in (in_force, before, change.values) for key in devices if key in one
        )

    def _restart(self, before: dict[str, str], change: Change, policy: Policy, *, start: bool) -> None:
        try:
            if start:
                self._announce_start(before)
                self._noted = identity(before)
                self._memory.keep(self._noted)
                self._remembered = True
            self._shut_down(policy)
        except HomelabError:
            if change:  # it runs on, as it was
                self._api.put(
                    f"{self._path}/config",
                    f"to take back what waits for {self.label}",
                    repeatable=True,
                    as_root=self._takes_root(change, before),
                    revert=",".join(change.keys),
                )
                # That drops all that waited for these keys, also what somebody else had left waiting.
                self._write(_as_before(before, change))
            self._have_ha_keep_it()
            if self.running():
                self._runs_again()
            raise
        if start:
            self._start_with(before, change, was_running=True)

    def _start_with(self, before: dict[str, str], change: Change, *, was_running: bool) -> None:
        """Starts it; if that fails because of the change, it is taken back, and a VM that ran runs again as before."""
        try:
            self.before_start()
            self._announce_start(before)
            self.start()
        except HomelabError as error:
            # While its start is under way, it may wait for containers that use its card, its configuration is locked,
            # and what it begins with stays.
            if change and not isinstance(error, UnansweredError | StillRunsError):
                self._take_back(before, change, start=was_running, error=error)
            raise

    def _announce_start(self, config: dict[str, str]) -> None:
        """While a run holds the host, a VM takes a shared card only if that run has said that it starts it."""
        if "hookscript" in config and not self._announced:
            self._let_start()
            self._announced = True

    def _take_back(self, before: dict[str, str], change: Change, *, start: bool, error: HomelabError) -> None:
        try:
            self._write(_as_before(before, change))
            outcome = f"{self.label} has its old configuration back"
        except ApiError as second:
            outcome, start = f"{self.label} is off, and couldn't be given back what it had: {second.found}", False
        if start:
            try:
                self.start()
                outcome += ", and runs again without the change"
            except ApiError as second:
                outcome += f", and doesn't start without the change either: {second.reason}"
        raise error.retold(found=f"{error.found}\n        {outcome}") from error

    # -- power ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts it and waits till it runs.

        :raises ApiError: it was refused, failed, or doesn't run by then.
        """
        wanted = f"{self.label} started"
        by_ha, began = self._require_ha_can(wanted), int(self._api.node_time)
        hook = scripts.HANDOVER_SECONDS if self._announced else 0
        self._asked_ha |= by_ha
        self.say("starting, by HA" if by_ha else "starting")
        try:
            log = self._task("post", "/status/start", wanted, ("qmstart", "hastart"), seconds=hook)
        except ApiError as error:
            log = []
            # Another client was faster, or the answer was lost.
            if "already running" not in error.reason and not (
                isinstance(error, UnansweredError) and self._comes_up(LOST_SECONDS + (hook if error.sent else 0))
            ):
                raise
        self.starts += 1
        if not self._comes_up(HA_SECONDS + hook if by_ha else LOST_SECONDS, by_ha=by_ha):
            self._require_ha_can(wanted)
            raise self.off_again().retold(wanted=wanted)
        self._runs_again()
        self.start_log = self._log_of_ha(began) if by_ha else log

    def off_again(self, state: str = "stopped") -> ApiError:
        """The error for one that was started, and doesn't run.

        :param state: as of `state`.
        """
        off = state == "stopped"
        return ApiError(
            wanted=f"{self.label} running after its start",
            found="its task succeeded, but it doesn't run"
            if off
            else f"it has been started, and QEMU has halted it ({state})",
            why="it went off at once: QEMU or the guest ended by itself"
            if off
            else "a card that it has tells of an error",
            next=f"look at `journalctl -u {self.vmid}.scope` on the host and the VM's console, "
            + ("" if off else "and at the host's kernel log; stop it (it heeds no shutdown), ")
            + "then run `pulumi up` again",
            status=500,
            reason="not running",
        )

    def _note_again(self) -> None:
        """Before the next request to shut it down: where people have the same user, only what follows a note at once is
        this program's."""
        if self._noted is None:
            return
        try:
            self._memory.keep(self._noted)
        except HomelabError as error:  # the earlier note still counts where the user is a token
            self.say(f"note: that {self.label} is to run again couldn't be noted anew ({error.found})")

    def _runs_again(self) -> None:
        if self._remembered:
            self._memory.forget()
            self._remembered = False

    def _have_ha_keep_it(self) -> None:
        """A VM that is to run on, and that HA was asked to stop, is asked to be started again: HA would stop it when it
        comes to that."""
        try:
            ha = self._ha()
            if not ha or ha.get("state") == GIVEN_UP or not (self._asked_ha or ha.get("state") == "stopped"):
                return
            if self._others_stop_it:
                return
            # A request to stop is written down when HA comes to it: one to start that is made before would be
            # overtaken.
            deadline = self._api.clock.now() + HA_TAKES_SECONDS
            while self._ha().get("state") != "stopped" and self._api.clock.now() < deadline:
                self._api.clock.sleep(1)
            self._task("post", "/status/start", f"HA told that {self.label} is to run on", ("hastart",))
        except ApiError as error:
            self.say(
                f"HA couldn't be told that it is to run on ({error.found}): "
                f"`ha-manager set vm:{self.vmid} --state started`"
            )

    def _log_of_ha(self, began: int) -> list[str]:
        """The log of the task by which HA has started it: that of the request says nothing of a card."""
        for task in self._api.tasks(
            source="all", vmid=self.vmid, typefilter="qmstart", since=began - CLOCK_SECONDS, limit=1
        ):
            return self._api.log_of_ended(str(task["upid"]), LOST_SECONDS)
        found = self._log_of_start(self.node, began - CLOCK_SECONDS)
        if found is None:
            self.say(
                f"whether its cards were reset when HA started it on {self.node} isn't known: "
                f"`pvenode task list --vmid {self.vmid}` there shows that start"
            )
        return found or []

    def _task(
        self, verb: str, below: str, wanted: str, kinds: tuple[str, ...], seconds: float = 0, **parameters: Any
    ) -> list[str]:
        """Has the node do something for which it starts a task.

        :param seconds: what the task waits for besides working.
        """
        limit = seconds + self._api.host.timeouts.api_task
        return self._api.carry_out(verb, f"{self._path}{below}", wanted, limit, self.say, kinds=kinds, **parameters)

    def _comes_up(self, seconds: int = LOST_SECONDS, *, by_ha: bool = False) -> bool:
        """Does it run, within a while, and while HA hasn't given up? There may be no task to wait for: the answer was
        lost, or the HA manager does it."""
        return self._becomes(running=True, deadline=self._api.clock.now() + seconds, by_ha=by_ha)

    def _require_ha_can(self, wanted: str) -> bool:
        """Is it under HA, which then starts and stops it?

        :raises ApiError: HA has given up on it, and starts nothing until it is told that the cause is gone.
        """
        ha = self._ha()
        if ha.get("state") == GIVEN_UP:
            raise ApiError(
                wanted=wanted,
                found="HA has it in the state error",
                why="HA has tried to start it and given up; it starts nothing in this state, and nobody else may",
                next="see why (`journalctl -u pve-ha-lrm` on the host); then "
                f"`ha-manager set vm:{self.vmid} --state disabled`, and run `pulumi up` again",
                status=500,
                reason="in error state",
            )
        return bool(ha)

    def _ha(self) -> dict[str, Any]:
        """What the HA manager makes of it; empty: it isn't one of its services."""
        found: dict[str, Any] = self._status().get("ha") or {}
        return found if found.get("managed") else {}

    def _becomes(self, *, running: bool, deadline: float, by_ha: bool = False) -> bool:
        while self.running() is not running:
            if self._api.clock.now() > deadline or (by_ha and self._ha().get("state") == GIVEN_UP):
                return False
            self._api.clock.sleep(1)
        return True

    def shut_down(self, policy: Policy) -> None:
        """Shuts it down through its agent or ACPI; pressed again for a guest that is still booting.

        :raises HomelabError: it is still on, and `otherwise` is fail; HA, if it has it, is told to let it run on.
        """
        try:
            self._shut_down(policy)
        except HomelabError:
            self._have_ha_keep_it()
            raise

    def _shut_down(self, policy: Policy) -> None:
        """The same, and what HA is told is left to the caller."""
        wanted = f"{self.label} shut down within {policy.timeout} seconds"
        self.say("shutting down")
        clock = self._api.clock
        by_ha = bool(self._ha())
        self._asked_ha |= by_ha
        deadline = clock.now() + policy.timeout
        # HA ends a guest by force when the time of one request is over (PVE::HA::Resources::PVEVM): that request gets
        # all of it.
        at_once = policy.timeout if by_ha else PRESS_SECONDS
        while True:
            left = max(1, round(deadline - clock.now()))
            last = left <= at_once
            force = {"forceStop": 1} if last and policy.otherwise == "stop" else {}
            options = {"timeout": min(left, at_once), **force}
            try:
                self._task("post", "/status/shutdown", wanted, ("qmshutdown", "hastop"), left, **options)
            except TaskFailedError as error:
                if not self.running():
                    return
                if last:
                    raise _still_on(self, policy, error) from error
                self._note_again()
            except ApiError:  # it wasn't even tried: a right, a lock
                if not self.running():
                    return
                raise
            else:
                # HA's task ends at once; the guest's time begins when HA comes to it.
                if not self._becomes(running=False, deadline=deadline + HA_SECONDS * by_ha):
                    raise _left_on_by_ha(self, wanted)
                return

    def destroy(self) -> None:
        """Removes it, with its disks.

        :raises ApiError: as `Api.carry_out`.
        """
        wanted = f"{self.label} removed"
        # A storage may overwrite the disks first (saferemove), for as long as writing them took.
        seconds = self._api.host.timeouts.create
        self._task("delete", "", wanted, ("qmdestroy",), seconds, purge=1, **{"destroy-unreferenced-disks": 1})

    def exists(self) -> bool:
        """Is there such a VM?

        :raises ApiError: the API doesn't say.
        """
        try:
            self._read()
        except NotThereError:
            return False
        return True


def _still_on(machine: Machine, policy: Policy, error: ApiError) -> HomelabError:
    return error.retold(
        found=f"it is still on: {error.found}",
        why="the change needs a VM that is off; it runs on as it was",
        next=f"shut it down from inside, give it longer (vms.{machine.name}.shutdown.timeout, now "
        f"{policy.timeout}), or let it be switched "
        f"off then (shutdown.otherwise: stop)",
    )


def _left_on_by_ha(machine: Machine, wanted: str) -> HomelabError:
    return HomelabError(
        wanted=wanted,
        found="HA was asked to, and has not switched it off",
        why="the change needs a VM that is off; it runs on as it was, unless HA still switches it off",
        next="see what keeps HA from it (`journalctl -u pve-ha-lrm` on the host), then run `pulumi up` again",
    )


def _as_before(before: Mapping[str, str], change: Change) -> PowerTarget:
    """What takes a change back."""

    def as_before(config: dict[str, str]) -> Change:
        values = {key: before[key] for key in change.keys if key in before and config.get(key) != before[key]}
        return Change(values, [key for key in change.keys if key not in before and key in config])

    return as_before
