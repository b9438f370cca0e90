"""A VM through the API: changes its configuration, by its digest, and its power.

A change is written first, while the VM still runs: if Proxmox VE refuses it (locks, digests), nothing has been
stopped yet. Options that wait for the next start are applied by a shutdown and a start; if the VM doesn't shut down, or
doesn't start with them, the change is reverted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from homelab.errors import HomelabError, UnreachableError
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
from homelab.shapes import ShutdownInputs
from homelab.text import tell
from homelab.vm.config import Change, identity, strings
from remote_scripts.layers import vm_starts
from remote_scripts.shared.api import USER

# The reason of an error: a VM was started, and doesn't run.
NOT_RUNNING = "not running"
# Between two presses of the power button, in seconds: a guest that is still booting ignores it.
PRESS_SECONDS = 60
# How far the clock of a task and the uptime of its VM may be apart, in seconds.
CLOCK_SECONDS = 5
# How long to wait for a VM to run after a start whose task isn't known.
LOST_SECONDS = 30
# How long a VM with a card has to run until its start counts, in seconds: QEMU may end once the guest's firmware or
# driver reaches for the card, or the kernel is out of memory.
STEADY_SECONDS = 20
# How long to wait for a VM that the HA manager starts or stops: its task ends at once, and the VM follows 10 to 20
# seconds later (recorded), or after two minutes if an idle node has to get its HA lock first.
HA_SECONDS = 180

# How long HA may take to record a request to stop a VM; 10 seconds at most while it is active (recorded).
HA_TAKES_SECONDS = 30

# HA's states of a VM that it was asked to stop.
HA_STOPS = ("stopped", "request_stop", "disabled")

# QEMU's state (qmpstatus) of a VM that it has halted.
HALTED = "internal-error"

# From a VM's current configuration to the change that is to be written.
PowerTarget = Callable[[dict[str, str]], Change]


class Memory(Protocol):
    """A note that a VM ran and is to run again, which outlives a run that is killed."""

    def keep(self, identity: str, tasks: Sequence[str] = ()) -> None:
        """Writes the note, before a request to shut the VM down for a restart, and once more when it is answered.

        :param identity: tells the VM from another one with its id (vm.config.identity).
        :param tasks: the UPIDs of these requests so far: only by them one knows who has shut it down.
        :raises HomelabError: the note can't be written.
        """

    def recalls(self, identity: Callable[[], str]) -> bool:
        """Whether the VM is certainly to run again. A note that no longer applies is removed.

        :param identity: returns the VM's, as of `keep`.
        :raises HomelabError: the note can't be read.
        """

    def forget(self) -> None:
        """Removes the note, as the VM runs again or is to stay off."""


class Machine:
    """One VM.

    `name`: for messages, such as `sandbox`; `let_start`: called before a VM with a hookscript is started, which may
    wait for its shared card (guard.let_start); `memory`: whether it ran when an earlier run shut it down;
    `starts_on`: from a node and a time (in seconds since 1970) to what its host has of the VM's starts there since
    then, which may be other users' tasks; None: not known. `starts`: how often this object has started the VM;
    `start_log`: the log of the last of these starts; `before_start`: called before the VM is started for a change,
    while it is off.
    """

    def __init__(
        self,
        api: Api,
        vmid: int,
        name: str,
        let_start: Callable[[], None] = lambda: None,
        *,
        memory: Memory,
        starts_on: Callable[[str, int], vm_starts.Answer | None] = lambda _, __: None,
    ) -> None:
        self._api = api
        self._let_start, self._start_announced = let_start, False
        self._memory, self._is_in_memory = memory, False
        # The VM's identity, once this object has noted that it is to run again; its tasks that shut it down.
        self._noted_identity: str | None = None
        self._noted_tasks: list[str] = []
        self._starts_on = starts_on
        # When it was started last, in seconds since 1970, by the node's clock.
        self._start_time = 0
        # Whether this object has asked HA to start or to stop the VM, which then may be on another node at any moment;
        # whether another user had asked HA to stop it before.
        self._has_asked_ha, self._others_want_it_off = False, False
        # Of the last start for a change: the configuration before, the change, and whether the VM ran.
        self._last_start: tuple[dict[str, str], Change, bool] = {}, Change(), False
        self.vmid = vmid
        self.name = name
        self._path = f"nodes/{api.node}/qemu/{vmid}"
        self.label = f"VM {vmid} ({name})"
        self.starts = 0
        # Only there it shows whether the cards were reset (homelab/host/card_start.py).
        self.start_log: list[str] = []
        self.before_start: Callable[[], None] = lambda: None

    @property
    def node(self) -> str:
        """The name of the node that the VM is on."""
        return self._api.node

    def say(self, text: str) -> None:
        """Shows a line with the VM's name in Pulumi's display."""
        tell(f"{self.name}: {text}")

    # -- what it is ----------------------------------------------------------------------------------------------
    def config(self) -> dict[str, str]:
        """The VM's configuration, with the options that wait for the next start.

        :raises NotThereError: there is no such VM.
        :raises ApiError: it was refused, or not answered.
        """
        return strings(self._read())

    def _read(self) -> dict[str, Any]:
        config: dict[str, Any] = self._get("/config", f"to read the configuration of {self.label}")
        return config

    def _get(self, below: str, wanted: str, **parameters: Any) -> Any:
        """A GET below the VM's path; on another node if HA has moved the VM there since this object asked HA to start
        or stop it.
        """
        while True:
            try:
                return self._api.get(f"{self._path}{below}", wanted, **parameters)
            except ElsewhereError as error:
                if not self._has_asked_ha or not error.node:
                    raise
                self.say(f"HA has moved it from {self.node} to {error.node}: it counts there from now on")
                self._api = self._api.at(error.node)
                self._path = f"nodes/{error.node}/qemu/{self.vmid}"

    def running(self) -> bool:
        """Whether the VM runs.

        :raises ApiError: it was refused, or not answered.
        """
        return bool(self._status()["status"] == "running")

    def state(self) -> str:
        """`running`; `stopped`; or `internal-error`: QEMU has halted the VM, as it does when the kernel reports a
        card's error (hw/vfio/pci.c, vfio_err_notifier_handler).

        :raises ApiError: it was refused, or not answered.
        """
        status = self._status()
        halted = status.get("qmpstatus") == HALTED
        return HALTED if halted and status["status"] == "running" else str(status["status"])

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._get("/status/current", f"to see whether {self.label} runs")
        return status

    def _pending_keys(self, keys: list[str]) -> list[str]:
        """Those of the keys whose change waits for the next start."""
        options = self._get("/pending", f"to see what waits for the next start of {self.label}")
        return [
            option["key"]
            for option in options
            if option["key"] in keys and ("pending" in option or option.get("delete"))
        ]

    # -- changes -------------------------------------------------------------------------------------------------
    def was_left_off(self) -> bool:
        """Whether the VM is off and is to run again, as a run that was interrupted has shut it down.

        :raises HomelabError: as `running` and `Memory.recalls`.
        """
        return not self.running() and self._memory.recalls(self._identity)

    def _identity(self) -> str:
        return identity(self.config())

    def converge(self, target: PowerTarget, keys: list[str], shutdown: ShutdownInputs, power: str) -> bool:
        """Writes a change, restarts a running VM if the change needs it, and starts or stops the VM.

        With `keep`, a VM that is off stays off, unless its memory has a note: then a run that was interrupted, or this
        program's reboot of the host, has shut it down.

        :param target: from the current configuration to the change.
        :param keys: all options that may wait for the next start since an earlier, interrupted change.
        :param power: `keep`, `running` or `stopped`.
        :returns: whether the VM runs.
        :raises HomelabError: the VM is as it was before, unless the error says otherwise.
        """
        # In this order: a start of a run that was killed may end meanwhile.
        is_to_run_again = self._memory.recalls(self._identity)
        running = self.running()
        # A user who has asked HA to stop it wants it off; a run that was interrupted doesn't.
        self._others_want_it_off = running and not is_to_run_again and self._ha().get("state") in HA_STOPS
        before, change = self._write(target)
        if running and self._pending_keys(sorted({*keys, *change.keys})):
            start = power == "running" or (power == "keep" and not self._others_want_it_off)
            runs = self._restart(before, change, shutdown, start=start)
            if is_to_run_again and not start:
                self._memory.forget()
            return runs
        if is_to_run_again:  # it may have been on its way off, by the run that was interrupted
            running = self.running()
        if power == "stopped":
            if running:
                self.shut_down(shutdown)
            if is_to_run_again:
                self._memory.forget()
            return False
        if not running and (power == "running" or is_to_run_again):
            self._is_in_memory = is_to_run_again
            if is_to_run_again:
                self.say(
                    f"{self.label} ran when this program shut it down, and hasn't been started since: it is to run "
                    "again"
                )
            self._start_with_change(before, change, was_running=is_to_run_again)
            return True
        if is_to_run_again:
            self._have_ha_keep_it_on()
            self._memory.forget()
        return running

    def _write(self, target: PowerTarget) -> tuple[dict[str, str], Change]:
        """Writes a change with the digest; if the configuration was changed meanwhile, reads it again, once.

        :returns: the configuration before, and the change.
        """
        try:
            return self._write_once(target)
        except ChangedMeanwhileError:
            self.say(f"{self.label} was changed from elsewhere a moment ago; reading it again")
            return self._write_once(target)

    def _write_once(self, target: PowerTarget) -> tuple[dict[str, str], Change]:
        raw = self._read()
        before = strings(raw)
        change = target(before)
        if change:
            try:
                self._put(change, raw["digest"])
            except (ChangedMeanwhileError, UnansweredError):
                # If it was carried out and only the answer was lost, nothing is left to be written.
                if target(self.config()):
                    raise
            for key, value in change.values.items():
                self.say(f"{key} set anew" if key in SECRETS else f"{key}: {value}")
            for key in change.delete:
                self.say(f"{key} removed")
        return before, change

    def _put(self, change: Change, digest: str | None) -> None:
        parameters: dict[str, Any] = dict(change.values)
        if change.delete:
            parameters["delete"] = ",".join(change.delete)
        if digest is not None:
            parameters["digest"] = digest
        wanted = f"to change {', '.join(change.keys)} of {self.label}"
        self._api.put(f"{self._path}/config", wanted, **parameters)

    def _restart(self, before: dict[str, str], change: Change, shutdown: ShutdownInputs, *, start: bool) -> bool:
        """Shuts the VM down and, with `start`, starts it, unless somebody else has switched it off as well; reverts the
        change if that fails. Returns whether it runs.
        """
        before_it = self._stops(unended="")
        try:
            if start:
                self._announce_start(before)
                self._noted_identity = identity(before)
                self._memory.keep(self._noted_identity)
                self._is_in_memory = True
            self._shut_down(shutdown)
        except (UnansweredError, UnreachableError):
            raise  # whether it goes off, and at whose request, isn't known
        except HomelabError:
            if change:  # it runs on, as it was
                wanted = f"to take back what waits for {self.label}"
                self._api.put(f"{self._path}/config", wanted, repeatable=True, revert=",".join(change.keys))
                # `revert` also dropped changes of these options by another user that waited: they are written again.
                self._write(_reversal(before, change))
            self._have_ha_keep_it_on()
            if self.running():
                self._runs_again()
            raise
        others = self._stops(unended="OK") - before_it - {(upid, USER) for upid in self._noted_tasks}
        if start and others:
            user = min(user for _, user in others)
            self.say(f"{user} has switched {self.label} off meanwhile: it stays off, and has the change when it starts")
            self._runs_again()
            return False
        if start:
            self._start_with_change(before, change, was_running=True)
        return start

    def _stops(self, *, unended: str) -> set[tuple[str, str]]:
        """The tasks that have switched the VM off: their UPIDs, and whose they are. What HA does is root's task, after
        a request to it.

        :param unended: the status of those that haven't ended; OK: they count.
        """
        kinds = ("hastop",) if self._has_asked_ha else ("qmshutdown", "qmstop", "hastop")
        tasks = self._api.tasks(source="all", vmid=self.vmid)
        return {
            (task["upid"], task["user"])
            for task in tasks
            if task["type"] in kinds and task.get("status", unended) == "OK"
        }

    def _start_with_change(self, before: dict[str, str], change: Change, *, was_running: bool) -> None:
        """Starts the VM; if that fails because of the change, reverts it, and starts a VM that ran as it was before."""
        self._last_start = before, change, was_running
        try:
            self.before_start()
            self._announce_start(before)
            has_cards = any(key.startswith("hostpci") for key in ({*before} - {*change.delete}) | {*change.values})
            self.start(STEADY_SECONDS if has_cards else 0)
        except HomelabError as error:
            # While the VM is being started (it may wait for containers that use its card), its configuration is locked
            # and stays as it is.
            if isinstance(error, UnansweredError | UnreachableError | StillRunsError) or not change:
                raise
            raise self.taken_back(error) from error

    def _announce_start(self, config: dict[str, str]) -> None:
        """Calls `let_start` for a VM with a hookscript, once: while a run holds the host, its shared card is refused
        otherwise.
        """
        if "hookscript" in config and not self._start_announced:
            self._let_start()
            self._start_announced = True

    def taken_back(self, error: HomelabError) -> HomelabError:
        """The error of a VM that didn't start, or went off again, after its change is taken back, and one that ran
        before was started as it was. One that somebody has switched off or restarted since its start stays as it is."""
        before, change, start = self._last_start
        if not change:
            return error
        user: str | None = ""
        if getattr(error, "reason", "") == NOT_RUNNING:
            seen = self._starts_on(self.node, self._start_time)
            user = seen.stopped_by if seen else None
        if user:
            who = "HA, or root@pam itself," if self._has_asked_ha and user == "root@pam" else user
            return error.retold(
                found=f"{error.found}\n        {who} has switched it off or restarts it: it keeps the change, and this "
                "run starts it no more",
                why="whoever has switched a VM off wants it off",
                next=f"start it when it is off and is to run (`qm start {self.vmid}`)",
            )
        try:
            self._write(_reversal(before, change))
        except HomelabError as second_error:
            return error.retold(
                found=f"{error.found}\n        {self.label} is off, and it isn't known whether it has back what it had "
                f"(`qm config {self.vmid}`): {second_error.found}"
            )
        outcome = f"{self.label} has its old configuration back"
        try:
            if user is None:
                outcome, start = f"{outcome}, and stays off: whether somebody has switched it off isn't known", False
            elif self._pending_keys(sorted(change.keys)):
                outcome, start = f"{outcome} from its next start on: it was started with the change meanwhile", False
        except ApiError as second_error:
            outcome += (
                f"; whether it was started with the change meanwhile isn't known, so this run doesn't start it: "
                f"{second_error.found}"
            )
            start = False
        if start:
            try:
                self.start()
                outcome += ", and runs again without the change"
            except ApiError as second_error:
                outcome += f", and doesn't start without the change either: {second_error.reason}"
        return error.retold(found=f"{error.found}\n        {outcome}")

    # -- power ---------------------------------------------------------------------------------------------------
    def start(self, steady: float = 0) -> None:
        """Starts the VM and waits until it runs.

        :param steady: for how long it has to run, in seconds.
        :raises ApiError: the start was refused or failed, or the VM doesn't run in time, or goes off again.
        """
        wanted = f"{self.label} started"
        by_ha, start_time = self._is_under_ha(wanted), int(self._api.node_time)
        self._start_time = start_time
        hook_seconds = scripts.HANDOVER_SECONDS if self._start_announced else 0
        self._has_asked_ha |= by_ha
        self.say("starting, by HA" if by_ha else "starting")
        try:
            log = self._task("post", "/status/start", wanted, ("qmstart", "hastart"), seconds=hook_seconds)
        except ApiError as error:
            log = []
            # Another client was faster, or the answer was lost.
            if "already running" not in error.reason and not (
                isinstance(error, UnansweredError)
                and self._starts_to_run(LOST_SECONDS + (hook_seconds if error.sent else 0))
            ):
                raise
        self.starts += 1
        runs = self._starts_to_run(HA_SECONDS + hook_seconds if by_ha else LOST_SECONDS, by_ha=by_ha)
        if not runs or (steady and not self._lasts(steady)):
            self._is_under_ha(wanted)
            failed = self.not_running_error().retold(wanted=wanted)
            raise _left_off_by_ha_error(failed) if by_ha and not runs else failed
        self._runs_again()
        self.start_log = self._log_of_ha(start_time) if by_ha else log

    def not_running_error(self, state: str = "stopped") -> ApiError:
        """The error for a VM that was started, and doesn't run.

        :param state: as the method `state` returns it.
        """
        is_off = state == "stopped"
        return ApiError(
            wanted=f"{self.label} running after its start",
            found="its task succeeded, but it doesn't run"
            if is_off
            else f"it has been started, and QEMU has halted it ({state})",
            why="it went off again: QEMU ended, or the guest shut itself down"
            if is_off
            else "one of its cards reports an error",
            next=f"look at `journalctl -u {self.vmid}.scope` on the host and the VM's console, "
            + ("" if is_off else "and at the host's kernel log; stop it (it heeds no shutdown), ")
            + "then run `pulumi up` again",
            status=500,
            reason=NOT_RUNNING,
        )

    def _note_task(self, upid: str) -> None:
        """Notes that a task which shuts the VM down is this program's, where the VM is to run again."""
        if self._noted_identity is None:
            return
        self._noted_tasks.append(upid)
        try:
            self._memory.keep(self._noted_identity, self._noted_tasks)
        except HomelabError as error:  # this run starts it all the same
            self.say(f"note: couldn't note that this run shuts {self.label} down ({error.found})")

    def _runs_again(self) -> None:
        if self._is_in_memory:
            self._memory.forget()
            self._is_in_memory = False

    def _have_ha_keep_it_on(self) -> None:
        """Asks HA to start a VM that is to run on, if HA was asked to stop it, which it would still do later."""
        try:
            ha = self._ha()
            if not ha or ha.get("state") == GIVEN_UP or not (self._has_asked_ha or ha.get("state") == "stopped"):
                return
            if self._others_want_it_off:
                return
            # HA records a request to stop with a delay; a request to start before that would be overwritten.
            deadline = self._api.clock.now() + HA_TAKES_SECONDS
            while self._ha().get("state") != "stopped" and self._api.clock.now() < deadline:
                self._api.clock.sleep(1)
            self._task("post", "/status/start", f"HA told that {self.label} is to run on", ("hastart",))
        except ApiError as error:
            self.say(
                f"couldn't tell HA to keep it running ({error.found}): `ha-manager set vm:{self.vmid} --state started`"
            )

    def _log_of_ha(self, start_time: int) -> list[str]:
        """The log of the task by which HA has started the VM, since the log of the request has nothing about cards.

        :param start_time: of the request, in seconds since 1970, by the node's clock.
        """
        for task in self._api.tasks(
            source="all", vmid=self.vmid, typefilter="qmstart", since=start_time - CLOCK_SECONDS, limit=1
        ):
            return self._api.log_of_ended(str(task["upid"]), LOST_SECONDS)
        self.say(
            f"whether its cards were reset when HA started it on {self.node} isn't known: "
            f"`pvenode task list --vmid {self.vmid}` there shows that start"
        )
        return []

    def _task(
        self,
        verb: str,
        below: str,
        wanted: str,
        kinds: tuple[str, ...],
        seconds: float = 0,
        on_start: Callable[[str], None] | None = None,
        **parameters: Any,
    ) -> list[str]:
        """Has the node run a task for the VM and returns its log; arguments as of `Api.carry_out`.

        :param below: the path below the VM's.
        :param seconds: how long the task may wait, besides the time for its work.
        """
        limit = seconds + self._api.host.timeouts.api_task
        path = f"{self._path}{below}"
        return self._api.carry_out(verb, path, wanted, limit, self.say, kinds=kinds, on_start=on_start, **parameters)

    def _starts_to_run(self, seconds: int = LOST_SECONDS, *, by_ha: bool = False) -> bool:
        """Whether the VM runs within so many seconds, and before HA gives up. For a start whose task isn't known: the
        answer was lost, or the HA manager starts it.
        """
        return self._reaches_power(running=True, deadline=self._api.clock.now() + seconds, by_ha=by_ha)

    def _lasts(self, seconds: float) -> bool:
        """Whether the VM is on until it has run for so long; one that QEMU has halted is."""
        deadline = self._api.clock.now() + seconds
        while (status := self._status())["status"] == "running":
            is_over = int(status.get("uptime", 0)) >= seconds or self._api.clock.now() >= deadline
            if is_over or status.get("qmpstatus") == HALTED:
                return True
            self._api.clock.sleep(1)
        return False

    def _is_under_ha(self, wanted: str) -> bool:
        """Whether HA manages the VM, and starts and stops it.

        :param wanted: for the error.
        :raises ApiError: HA has given up on the VM, and doesn't start it until it is told that the cause is gone.
        """
        ha = self._ha()
        if ha.get("state") == GIVEN_UP:
            raise ApiError(
                wanted=wanted,
                found="HA has it in the state error",
                why="HA tried to start it and gave up; in this state HA doesn't start it, and nothing else may",
                next="see why (`journalctl -u pve-ha-lrm` on the host); then "
                f"`ha-manager set vm:{self.vmid} --state disabled`, and run `pulumi up` again",
                status=500,
                reason="in error state",
            )
        return bool(ha)

    def _ha(self) -> dict[str, Any]:
        """The HA manager's state of the VM; empty: HA doesn't manage it."""
        ha: dict[str, Any] = self._status().get("ha") or {}
        return ha if ha.get("managed") else {}

    def _reaches_power(self, *, running: bool, deadline: float, by_ha: bool = False) -> bool:
        while self.running() is not running:
            if self._api.clock.now() > deadline or (by_ha and self._ha().get("state") == GIVEN_UP):
                return False
            self._api.clock.sleep(1)
        return True

    def shut_down(self, shutdown: ShutdownInputs) -> None:
        """Shuts the VM down through its agent or ACPI, with further requests for a guest that is still booting.

        :raises HomelabError: it is still on, and `otherwise` is fail; if HA manages it, HA was asked to keep it on.
        """
        try:
            self._shut_down(shutdown)
        except (UnansweredError, UnreachableError):
            raise
        except HomelabError:
            self._have_ha_keep_it_on()
            raise

    def _shut_down(self, shutdown: ShutdownInputs) -> None:
        """Shuts the VM down as `shut_down`, but doesn't ask HA to keep it on after a failure."""
        wanted = f"{self.label} shut down within {shutdown.timeout} seconds"
        self.say("shutting down")
        clock = self._api.clock
        by_ha = bool(self._ha())
        self._has_asked_ha |= by_ha
        deadline = clock.now() + shutdown.timeout
        # HA ends a guest by force when the time of one request is over (PVE::HA::Resources::PVEVM): that request gets
        # all of it.
        request_seconds = shutdown.timeout if by_ha else PRESS_SECONDS
        while True:
            seconds_left = max(1, round(deadline - clock.now()))
            is_last = seconds_left <= request_seconds
            options: dict[str, Any] = {"timeout": min(seconds_left, request_seconds)}
            tasks = len(self._noted_tasks)
            if is_last and shutdown.otherwise == "stop":
                options["forceStop"] = 1
            try:
                kinds, noted = ("qmshutdown", "hastop"), self._note_task
                self._task("post", "/status/shutdown", wanted, kinds, seconds_left, noted, **options)
            except TaskFailedError as error:
                if not self.running():
                    return
                if is_last:
                    raise _still_on_error(self, shutdown, error) from error
            except UnansweredError as error:
                raise (error if len(self._noted_tasks) > tasks else _lost_error(self, error)) from error
            except ApiError:  # refused before an attempt, for a lock
                if not self.running():
                    return
                raise
            else:
                # HA's task ends at once; the guest's time begins when HA carries out the request.
                if not self._reaches_power(running=False, deadline=deadline + HA_SECONDS * by_ha):
                    raise _left_on_by_ha_error(self, wanted)
                return

    def destroy(self) -> None:
        """Removes the VM, with its disks, unless a task of a run that was killed has done so meanwhile.

        :raises ApiError: as `Api.carry_out`.
        """
        wanted = f"{self.label} removed"
        # A storage may overwrite the disks first (saferemove), for as long as writing them took.
        seconds = self._api.host.timeouts.create
        options: dict[str, Any] = {"purge": 1, "destroy-unreferenced-disks": 1}
        with suppress(NotThereError):
            self._task("delete", "", wanted, ("qmdestroy",), seconds, **options)

    def exists(self) -> bool:
        """Whether there is a VM of this id.

        :raises ApiError: it was refused, or not answered.
        """
        try:
            self._read()
        except NotThereError:
            return False
        return True


def _still_on_error(machine: Machine, shutdown: ShutdownInputs, error: ApiError) -> HomelabError:
    return error.retold(
        found=f"it is still on: {error.found}",
        why="the change needs a VM that is off; it runs on as it was",
        next=f"shut it down from inside, give it longer (vms.{machine.name}.shutdown.timeout, now {shutdown.timeout}), "
        "or let it be switched off then (shutdown.otherwise: stop)",
    )


def _lost_error(machine: Machine, error: UnansweredError) -> UnansweredError:
    return error.retold(
        next=f"look at {machine.label} on the host (`qm status {machine.vmid}`): where it is off and is to run, start "
        f"it (`qm start {machine.vmid}`), which this program doesn't, as its owner may have switched it off; then run "
        "`pulumi up` again",
    )


def _left_off_by_ha_error(error: ApiError) -> ApiError:
    return error.retold(
        found="HA was asked to, and has not started it",
        why="nothing else may start it; HA may still do so",
        next="see on the host what HA does (`ha-manager status`; where it is disarmed: `ha-manager crm-command "
        "arm-ha`), and what came of a start (`journalctl -u pve-ha-lrm`), then run `pulumi up` again",
    )


def _left_on_by_ha_error(machine: Machine, wanted: str) -> HomelabError:
    return HomelabError(
        wanted=wanted,
        found="HA was asked to, and has not switched it off",
        why="the change needs a VM that is off; it runs on as it was, unless HA still switches it off",
        next="see what keeps HA from it (`journalctl -u pve-ha-lrm` on the host), then run `pulumi up` again",
    )


def _reversal(before: Mapping[str, str], change: Change) -> PowerTarget:
    """A target that reverts a change: from the current configuration to the change back to `before`."""

    def reverting_change(config: dict[str, str]) -> Change:
        values = {key: before[key] for key in change.keys if key in before and config.get(key) != before[key]}
        return Change(values, [key for key in change.keys if key not in before and key in config])

    return reverting_change
