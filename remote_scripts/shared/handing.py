"""One card that is handed over: how it goes to a VM that starts, and comes back, and how what was left half-way is
brought to an end. Nothing here touches the card by itself: a write that waits in the kernel for ever is a unit's
(shared/handover_steps.py).

A run may be killed, or lose its power, at any call. What a step does is noted before it is done, a step looks at what a
function has now, and so each can be done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from remote_scripts.shared import card_users, container_conf, guest_conf, guests, ha, handover, nvidia, shared_card
from remote_scripts.shared.boot_service import PYTHON
from remote_scripts.shared.card import Card
from remote_scripts.shared.card_users import RefusedError, User
from remote_scripts.shared.handover import Noted
from remote_scripts.shared.handover_steps import STEPS
from remote_scripts.shared.holders import UnseenError, holders
from remote_scripts.shared.kernel import boot_id
from remote_scripts.shared.pci import DEVICES, driver_of
from remote_scripts.shared.restart import is_going_down
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import TIMED_OUT
from remote_scripts.tools.system import System

#: What brings lines of containers to the numbers that cards have now.
FOLLOWER = "/usr/local/sbin/homelab-card-nodes"
#: How long containers that didn't start are tried again, from when nothing has kept them locked.
OWED_SECONDS = 1800
_GIVEN_UP = "nothing more is tried after half an hour"
#: For what waits for a step of somebody who was killed.
STEP_SECONDS = 60.0
_LOOK_SECONDS = 1.0

#: What came of a step. waits: in the kernel; unsaid: systemd hasn't said it in time.
Came = Literal["done", "failed", "waits", "unsaid"]


def program(*words: str) -> tuple[str, ...]:
    """What starts the program."""
    return (*PYTHON.split(), handover.PROGRAM, *words)


def refusal(name: str, vmid: str, found: str, next: str) -> Failure:
    """What a VM's start ends with."""
    return Failure(
        f"gpus.{name} for VM {vmid}, which starts",
        found,
        "a card that is still in use makes NVIDIA's driver wait for ever, so it is taken only when nothing uses it",
        next,
    )


def _pairs(known: Mapping[str, str]) -> str:
    return " ".join(f"{one}={addresses}" for one, addresses in known.items())


class Handover:
    """A card, and what is noted of it. The lock is taken by whoever changes something.

    :raises Failure: what is noted can't be read.
    """

    def __init__(self, system: System, card: Card) -> None:
        self.system, self.card = system, card
        self.noted = handover.noted(system, card.name)
        #: There is a step of which nobody knows whether it is still at work.
        self.unsure = False
        #: Whether a container waits for another card of the same VM, which comes back as well.
        self.waits = False
        #: Why a VM that has it keeps it.
        self._kept = ""
        self._said = ""

    # What is asked and said.

    def say(self, text: str) -> None:
        """For the task's log or the journal, and for the story."""
        self.system.log.say(f"{self.card.name}: {text}")
        handover.story_line(self.system, self.card.name, text)

    def note(self, **changes: str) -> bool:
        """Whether the state, with these changes, is on the disk; in memory it is in any case."""
        try:
            handover.note(self.system, self.card.name, self.noted, **changes)
        except OSError:
            return False
        return True

    def _need_noted(self, **changes: str) -> None:
        if not self.note(**changes):
            raise RefusedError("its state can't be noted on the disk")

    def _drop(self) -> None:
        self.system.files.remove(handover.state_file(self.card.name))
        self.noted = Noted()

    def _sink(self, state: handover.State, why: str) -> None:
        """Where it stays."""
        self.say(f"{state}: {why}")
        if not self.note(state=state, why=why):
            self.say("that can't be noted on the disk")

    def _stuck(self, step: str) -> None:
        self._sink(
            "STUCK",
            f"{step} has not come to an end: the driver waits in the kernel, and as a rule only a reboot of the host "
            "ends that. Nothing is tried while it waits",
        )

    def _do(self, *words: str, seconds: float = 30.0) -> bool:
        """Whether a program has done its work; `_said` is the end of what it says."""
        done = self.system.run.ask(*words, seconds=seconds)
        self._said = self.system.log.clean(done.output + done.error, 2000).strip()
        if done.status == TIMED_OUT:
            self._said = self._said or "no answer in time"
        return done.status == 0

    def _smi(self, *words: str, seconds: float = 30.0) -> bool:
        return self._do("nvidia-smi", *words, seconds=seconds)

    def _driver(self) -> str:
        return driver_of(self.system, self.card.gpu)

    def _numbers(self) -> str:
        return shared_card.numbers(self.system, self.card)

    # Units.

    def _unit(self, step: str) -> str:
        return f"homelab-handover-{self.card.name}-{step}"

    def _in_unit(self, seconds: float, step: str, *command: str) -> Came:
        """A step of this card, or a command, in a unit of systemd's, which is nobody's child here: one write that waits
        in the kernel for ever holds nobody.
        """
        command = command or program(step, self.card.name)
        words = ("systemd-run", "-q", "--wait", "--collect", "--pipe", f"--unit={self._unit(step)}", *command)
        done = self.system.run.ask(*words, seconds=seconds)
        self._said = self.system.log.clean(done.output + done.error, 2000).strip()
        if done.status != TIMED_OUT:
            return "done" if done.status == 0 else "failed"
        self._said = "systemd has not said in time what came of it"
        active = handover.is_active(self.system, f"{self._unit(step)}.service")
        self.unsure = self.unsure or active is None
        return "waits" if active else "unsaid"

    def _is_busy(self) -> bool | None:
        """Whether a step is at work, or waits in the kernel: whoever touches the card meanwhile waits, too."""
        return handover.is_active(self.system, *(f"{self._unit(step)}.service" for step in STEPS))

    def _await_step(self) -> None:
        """A step of somebody who was killed may be about to end: for a minute at most."""
        until = time.monotonic() + STEP_SECONDS
        while self._is_busy() and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    # Going to a VM.

    def _is_to_be_taken(self, vmid: str) -> bool:
        """Whether the VM names the card, and hasn't it yet."""
        has_it = self.noted.vm == vmid and self.noted.state in ("VM", "RETURNING")
        return not has_it and card_users.names_card(self.system, self.card, vmid)

    def need_no_run(self, vmid: str) -> None:
        """:raises Failure: a run is at work on this host, and the card is yet to be taken for the VM."""
        who = handover.run_at_work(self.system, vmid)
        if who is None or not self._is_to_be_taken(vmid):
            return
        self.say(f"VM {vmid} doesn't get it: an up or a destroy of this host is at work ({who})")
        # For whoever reads the host, until a VM has got the card. It leaves no state: everything is as it was.
        text = f"vm={vmid}\nat={time.strftime('%F %T')}\nrun={who}\n"
        try:
            self.system.files.need_folder(self.system.files.at(handover.FOLDER))
            self.system.files.write(self._turned_away, text.encode(), 0o600)
        except OSError:
            self.say("that can't be noted on the disk")
        raise Failure(
            f"gpus.{self.card.name} for VM {vmid}, which starts",
            f"an up or a destroy of this host is at work: {who or 'which one is not known'}",
            "its steps need the card where it is, and would end half-way without it; nothing was changed",
            "start the VM again when that has ended",
        )

    @property
    def _turned_away(self) -> str:
        return f"{handover.FOLDER}/{self.card.name}.turned_away"

    def need_no_backup(self, vmid: str) -> None:
        """:raises Failure: a backup of the VM, which was off, starts it, and it hasn't the card yet. It doesn't get it,
        so that nobody waits for that.
        """
        try:
            lock = guest_conf.option_of_vm(self.system, vmid, "lock")
        except OSError as error:
            found = f"the configuration of VM {vmid} can't be read ({error.strerror})"
            raise self._tell(vmid, found, "see why, then start the VM again") from error
        if lock != "backup" or not self._is_to_be_taken(vmid):
            return
        # By other configuration, there is nothing to hand over.
        if self.noted.state in ("HOST", "HELD") and shared_card.is_on_vfio(self.system, self.card):
            return
        found = card_users.backup_refusal(vmid)
        raise refusal(self.card.name, vmid, found, "nothing was changed; back the VM up while it runs")

    def take(self, vmid: str) -> None:
        """The card goes to a VM that starts.

        :raises Failure: it didn't work: everybody has it as before, or it is in one of the sinks.
        """
        if self._keeps(vmid):
            return
        self.settle()
        noted = self.noted
        if noted.state == "VM":
            raise self._tell(vmid, f"VM {noted.vm} has it since {noted.at}", "shut that VM down first")
        if noted.state not in ("HOST", "HELD"):
            raise self._tell(vmid, f"{noted.state}: {noted.why}", "homelab doctor explains it")
        # Bound at boot by other configuration, such as before `up` has made another use of it.
        if shared_card.is_on_vfio(self.system, self.card):
            self.say(f"VM {vmid} starts, and the card is on vfio-pci already, not by this program: it stays there")
            return
        # Once more: a run may have begun since the first look.
        self.need_no_run(vmid)
        try:
            users = card_users.need_possible(self.system, self.card, vmid)
        except RefusedError as error:
            self._sink("HELD", f"VM {vmid} didn't get it: {error}")
            raise self._tell(vmid, str(error), "nothing was changed; mend that, and start the VM again") from error
        try:
            self._drain(vmid, users)
            self._need_nobody()
            self._detach(vmid)
        except RefusedError as error:
            if self.noted.state == "STUCK":
                next = "reboot the host when it suits you; its containers stay off until then"
                raise self._tell(vmid, self.noted.why, next) from error
            self.give_back(f"VM {vmid} didn't get it: {error}")
            next = (
                f"what was stopped is started again ({handover.STORY}); end what has the card, and start the VM again"
            )
            raise self._tell(vmid, str(error), next) from error

    def _tell(self, vmid: str, found: str, next: str) -> Failure:
        return refusal(self.card.name, vmid, found, next)

    def _keeps(self, vmid: str) -> bool:
        """The VM that had it last starts again (`qm reboot`, or before the way back has begun): it is all there
        already.
        """
        noted = self.noted
        if noted.state not in ("VM", "RETURNING") or noted.vm != vmid or noted.boot != boot_id(self.system):
            return False
        power = guests.power_of(self.system, "qm", vmid)
        if power == "unknown" and noted.state == "VM":
            raise self._tell(vmid, f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)", "start the VM again")
        if power in ("on", "unknown"):
            return False
        is_there = shared_card.is_on_vfio(self.system, self.card) and shared_card.is_alive(self.system, self.card)
        if is_there and self._note_taken():
            self.say(f"VM {vmid} keeps it")
            return True
        # This start holds the VM's lock, by which `settle` would take it for one that goes on.
        noted.state = "RETURNING"
        return False

    def _note_taken(self) -> bool:
        if not self.note(state="VM", why=""):
            return False
        self.system.files.remove(self._turned_away)
        return True

    def _drain(self, vmid: str, users: Sequence[User]) -> None:
        now = self._numbers()
        ids = [one.ctid for one in users]
        # Those that are to be started after an earlier handover, by the numbers of then.
        owed = []
        if self.noted.state == "HELD":
            owed = [one for one in self.noted.containers.split() if one not in ids and not self._is_gone(one)]
        persistence = (
            self._said
            if self._smi("-i", self.card.gpu, "--query-gpu=persistence_mode", "--format=csv,noheader")
            else ""
        )
        daemon = shared_card.is_only(self.system, self.card) and handover.is_active(self.system, nvidia.DAEMON)
        known = {one: addresses for one, addresses in self._known.items() if one in owed}
        known |= {one.ctid: one.known for one in users}
        self._need_noted(
            state="DRAINING",
            vm=vmid,
            why="",
            containers=" ".join([*dict.fromkeys(owed), *ids]),
            given_up="",
            numbers=self.noted.numbers if owed else now,
            taken=now,
            modules="",
            d3cold="",
            persistence="".join(persistence.split()),
            units=nvidia.DAEMON if daemon else "",
            known=_pairs(known),
        )
        shut = f"; containers {' '.join(ids)} are shut down for it" if ids else ""
        self.say(f"VM {vmid} starts and gets it{shut}")
        for ctid in self.noted.containers.split():
            self._stop(ctid)
        if self.noted.persistence == "Enabled" and not self._smi("-i", self.card.gpu, "-pm", "0"):
            raise RefusedError(f"its persistence mode stays on: {self._said}")
        if daemon and not self._do("systemctl", "stop", nvidia.DAEMON, seconds=60):
            raise RefusedError(f"{nvidia.DAEMON} doesn't stop: {self._said}")
        # A barrier against those who come between the look and the unbinding, where the card knows it.
        if not self._smi("drain", "-p", self.card.gpu, "-m", "1"):
            self.say(f"it can't be drained, and goes without that: {self._said}")

    def _need_nobody(self) -> None:
        card_users.need_nobody(card_users.having(self.system, self.card))

    def _detach(self, vmid: str) -> None:
        only = shared_card.is_only(self.system, self.card)
        modules = [one for one in nvidia.MODULES if only and self.system.files.exists(f"/sys/module/{one}")]
        # Before a module goes: of the numbers that it frees, vfio would have taken one (its own are given out as it is
        # loaded), and the driver come back with others.
        if not self._do("modprobe", "vfio-pci", seconds=60):
            raise RefusedError(f"vfio-pci can't be loaded: {self._said}")
        files = self.system.files
        deep = [one for one in self.card.functions if files.line(f"{DEVICES}/{one}/d3cold_allowed") == "1"]
        self._need_noted(state="DETACHED", modules=" ".join(modules), d3cold=" ".join(deep))
        self._step(20, "step_claim", "claiming it", "its functions take no driver_override: {}")
        for module in modules:
            # It says "in use" at once, where unbinding would wait.
            words = f"the module {module}, which goes with its only card, is in use: {{}}"
            self._step(30, "step_unbind", f"unloading {module}", words, "rmmod", module)
        # Once more: somebody may have come since the first look.
        if only:
            self._need_silence()
        else:
            self._need_nobody()
        self._step(30, "step_unbind", "unbinding it", "a function of it can't be unbound: {}")
        self._in_unit(60, "step_bind")
        if not shared_card.all_on_vfio(self.system, self.card):
            now = (f"{one} {driver_of(self.system, one)}" for one in self.card.functions)
            raise RefusedError(f"not every function has come to vfio-pci: {'; '.join(now)}")
        if not self._note_taken():
            raise RefusedError("its state can't be noted on the disk")
        self.say(f"VM {vmid} has it")

    def _step(self, seconds: float, step: str, doing: str, words: str, *command: str) -> None:
        came = self._in_unit(seconds, step, *command)
        if came != "done":
            if came == "waits":
                self._stuck(doing)
            raise RefusedError(words.format(self._said or "no text"))

    def _need_silence(self) -> None:
        """Of a card whose driver is gone: nobody has its sound open."""
        control, numbers = shared_card.sound_numbers(self.system, self.card)
        if not control:
            return
        try:
            found = holders(self.system, control, numbers, shared_card.mapped_as(self.system, self.card))
        except UnseenError as error:
            raise RefusedError(f"it isn't known who has its sound open: {error}") from error
        card_users.need_nobody(found)

    # Containers.

    def _is_gone(self, ctid: str) -> bool:
        """Was it destroyed, or moved to another node?"""
        return guests.is_gone(self.system, "pct", ctid)

    def _is_another(self, one: User) -> bool:
        """Was its id given to another container since?"""
        return not container_conf.is_same(self._known.get(one.ctid, one.known), one.known)

    @property
    def _known(self) -> dict[str, str]:
        """A container's id -> the addresses of its network cards."""
        return dict(pair.partition("=")[::2] for pair in self.noted.known.split())

    def _with(self, one: User) -> dict[str, str]:
        """What is to be noted where this container, too, is to be started again."""
        ids = dict.fromkeys([*self.noted.containers.split(), one.ctid])
        return {"containers": " ".join(ids), "known": _pairs({**self._known, one.ctid: one.known})}

    def _stop(self, ctid: str) -> None:
        """Within its own time (startup: down=), else a minute; then its power is cut. It may be off, or gone: one that
        an earlier handover could not start again.

        :raises RefusedError: it doesn't go off.
        """
        one = card_users.user(self.system, ctid)
        if one is None or self._is_another(one) or card_users.power_of(self.system, ctid) in ("off", "gone"):
            return
        # Proxmox VE would refuse it, with a failed task each time.
        if locked := one.conf.options.get("lock"):
            raise RefusedError(f"container {ctid} doesn't go off: it is locked ({locked})")
        if ha.may_manage(self.system, f"ct:{ctid}"):
            raise RefusedError(f"container {ctid} doesn't go off: it is under HA by now, which would start it again")
        down = one.startup("down")
        seconds = 60 if down is None else down
        self.say(f"shutting container {ctid} down, which has the card")
        # By a child of ours that went on after us, a container would go off that was seen to run.
        words = ("pct", "shutdown", ctid, "--timeout", str(seconds), "--forceStop", "1")
        self._in_unit(seconds + 120, f"stop-{ctid}", *words)
        said = self._said
        if card_users.power_of(self.system, ctid) != "off":
            raise RefusedError(f"container {ctid} doesn't go off: {said or 'no answer'}")

    def _start_users(self) -> str:
        """The same ones, the other way round: those that are still to be started are noted then. Why one is not."""
        reasons: list[str] = []
        off: list[str] = []
        for ctid in reversed(self.noted.containers.split()):
            if ctid in self.noted.given_up.split():
                off.insert(0, ctid)
                continue
            reason = self._start(ctid)
            if reason:
                off.insert(0, ctid)
                reasons.append(reason)
        self.noted.containers = " ".join(off)
        return "; ".join(reasons)

    def _start(self, ctid: str) -> str:
        """Why a container is still owed a start; empty: it runs, or nothing is owed to it."""
        try:
            one = card_users.user(self.system, ctid)
        except RefusedError as error:
            return f"{error}: it stays off"
        if one is None:
            return "" if self._is_gone(ctid) else f"it isn't known whether container {ctid} is there"
        if self._is_another(one):
            self.say(f"container {ctid} is another one than the one that was shut down: it is left as it is")
            return ""
        if card_users.power_of(self.system, ctid) == "on":
            return ""
        if locked := one.conf.options.get("lock"):
            return (
                f"container {ctid} is off and locked ({locked}): it is started when that has ended (if nothing of it "
                f"is at work, that lock was left behind: `pct unlock {ctid}`)"
            )
        if not self._is_about_it(one):
            return (
                f"its nodes have other numbers than before ({self.noted.numbers} -> {self._numbers()}), and container "
                f"{ctid} has lines with the earlier ones, which this program hasn't written: it stays off. Correct "
                "them, then start it"
            )
        if why := self._also_away(one):
            return why
        self.say(f"starting container {ctid} again")
        self._do("pct", "start", ctid, seconds=180)
        said = self._said
        power = card_users.power_of(self.system, ctid)
        if power == "unknown":
            return f"whether container {ctid} has started isn't known (`pct status {ctid}`)"
        return "" if power in ("on", "gone") else f"container {ctid} has not started: {said or 'no answer'}"

    def _others(self) -> Iterator[tuple[str, Noted | None]]:
        """What is noted of each other card; None: that can't be read, which keeps this one from nothing of its own."""
        for file in self.system.files.names(handover.FOLDER):
            name, _, kind = file.rpartition(".")
            if kind == "state" and not file.startswith(".") and name != self.card.name:
                try:
                    yield name, handover.noted(self.system, name)
                except Failure:
                    yield name, None

    def _also_away(self, one: User) -> str:
        """Why a container waits for another card of its own, which the same VM had, and has still by what is noted;
        empty: it doesn't.
        """
        for name, other in self._others():
            if other is None:
                return (
                    f"it isn't known where gpus.{name} is, which container {one.ctid} may have as well: the container "
                    "stays off"
                )
            (minor, *_), names = shared_card.parts(other.taken or other.numbers)
            address = next((card.gpu for card in handover.cards(self.system) if card.name == name), "")
            is_away = other.state in ("VM", "RETURNING") and other.boot == boot_id(self.system)
            if is_away and other.vm == self.noted.vm and one.has(minor, names, address):
                self.waits = True
                return f"container {one.ctid} has gpus.{name} as well, which comes back next: it is started after that"
        return ""

    def _have_moved(self) -> bool:
        """Has the card others than when it was taken, or than before an earlier handover?"""
        now = self._numbers()
        return any(shared_card.have_moved(was, now) for was in (self.noted.numbers, self.noted.taken))

    def _is_about_it(self, one: User) -> bool:
        """Are its lines about this card, by the numbers that it has now? Ours follow; those that somebody else has
        written don't: of these it counts whether one means what has moved.
        """
        if not self._have_moved():
            return True
        if self.system.files.read(f"/var/lib/homelab/containers/{one.ctid}/nodes"):
            minor, names = shared_card.minor_of(self.system, self.card), shared_card.drm_names(self.system, self.card)
            return one.has(minor, names, self.card.gpu)
        return not any(self._means_what_moved(one, was) for was in (self.noted.numbers, self.noted.taken))

    def _means_what_moved(self, one: User, numbers: str) -> bool:
        """Does it name a node as one of the card's was called, or does a rule let in the driver's earlier major and
        none the one of now? (A dev[n] option has no numbers: they are looked up as the container starts.)
        """
        (was, names), (now, names_now) = shared_card.parts(numbers), shared_card.parts(self._numbers())
        if was[0] and now[0] and was[0] != now[0] and one.gives(f"/dev/nvidia{was[0]}"):
            return True
        if any(shared_card.is_renamed(name, names_now) and one.gives(f"/dev/dri/{name}") for name in names):
            return True

        def lets_in(major: str) -> bool:
            return one.conf.rule_for(int(major), 0, "rw") is not None

        pairs = [(was[index], now[index]) for index in (1, 2) if was[index] and now[index] and was[index] != now[index]]
        return any(lets_in(before) and not lets_in(after) for before, after in pairs)

    def look_after_containers(self) -> None:
        """Of those that somebody has started while a VM has the card: it is said once that they run without it. One
        whose rules let in what is another driver's by now is shut down, and is started when the card is back.
        """
        noted = self.noted
        if noted.state != "VM":
            return
        driver_majors = shared_card.parts(noted.taken or noted.numbers)[0][1:]
        minor, names = self._earlier_nodes()
        known = shared_card.drivers_by_major(self.system)
        others = [one for one in driver_majors if one and not known.get(one, "nvidia").startswith("nvidia")]
        said: list[str] = []
        for one in card_users.all_users(self.system):
            if not one.has(minor, names, self.card.gpu) or self._is_off_by_cgroup(one.ctid):
                continue
            if card_users.power_of(self.system, one.ctid) != "on":
                continue
            number = next((number for number in others if one.conf.rule_for(int(number), 0, "rw")), "")
            if number:
                self._need_noted(**self._with(one))
                self.say(
                    f"container {one.ctid} was started while VM {noted.vm} has the card, and may open what is "
                    f"{known[number]}'s by now (major {number}): it is shut down, and started when the card is back"
                )
                self._stop(one.ctid)
            else:
                said.append(
                    f"container {one.ctid} was started while VM {noted.vm} has the card: it runs without it, also when "
                    "the card is back, until it is started again"
                )
        said += [self._kept] if "qm unlock" in self._kept or "still has it" in self._kept else []
        self._say_once("; ".join(said))

    def _is_off_by_cgroup(self, ctid: str) -> bool:
        """Known without a program's start, where Proxmox VE has its containers' control groups."""
        groups = "/sys/fs/cgroup/lxc"
        return self.system.files.exists(groups) and not self.system.files.exists(f"{groups}/{ctid}")

    def _say_once(self, why: str) -> None:
        if why != self.noted.why:
            if why:
                self.say(why)
            self.note(why=why)

    # Coming back.

    def give_back(self, why: str = "") -> bool:
        """The card comes back to the host, from wherever it was left, and its containers are started again.

        :param why: a VM didn't get it.
        :returns: whether it is back; else the state says what it is.
        """
        if is_going_down(self.system):
            return False
        if self.unsure:
            self.say(
                "it isn't known whether its last step is still at work: once it is, that step is brought to an end"
            )
            return False
        for ctid in self.noted.containers.split():
            if handover.is_active(self.system, f"{self._unit(f'stop-{ctid}')}.service") is not False:
                self.say(f"container {ctid} is still going off: it is started after that")
                return False
        if self._is_home():
            return self._load_driver() and self._serve_again(why)
        alive = shared_card.is_alive(self.system, self.card)
        if alive is None:
            self.say("it isn't known now whether it answers: it stays where it is until that can be read")
            return False
        if not alive:
            self._sink(
                "DEAD",
                f"its configuration space doesn't read as it should after VM {self.noted.vm}: no driver is let near "
                "it, and its containers stay off",
            )
            return False
        if not self._has_left_vfio():
            return False
        if not self.note(state="RETURNING", why=why):
            self.say("its state can't be noted: the disk is full")
        came = self._in_unit(60, "step_release")
        if came == "waits":
            self._stuck("taking it from vfio-pci")
            return False
        left = next((one for one in self.card.functions if driver_of(self.system, one) == "vfio-pci"), "")
        if came != "done" or left:
            said = self._said if came != "done" else f"{left} is still there"
            self.say(f"it can't be taken from vfio-pci yet: {said}")
            return False
        if not self._load_driver():
            return False
        came = self._to_driver()
        if came == "waits":
            self._stuck("giving it to NVIDIA's driver")
            return False
        if came == "unsaid" and (self.unsure or self._driver() != "nvidia"):
            self.say(self._said)
            return False
        return self._serve_again(why)

    def _is_home(self) -> bool:
        """Is every function with a driver of the host's, or with none as before?"""
        if self._driver() != "nvidia":
            return False
        if any(driver_of(self.system, one) == "vfio-pci" for one in self.card.functions):
            return False
        if self.noted.state != "DRAINING":
            self._in_unit(60, "step_attach")
        return True

    def _has_left_vfio(self) -> bool:
        """QEMU must have let go: to take a device from vfio-pci while it has it waits for its end."""
        nodes = shared_card.group_nodes(self.system, self.card)
        if not nodes:
            return True
        paths = [str(self.system.files.at(node)) for node in nodes]
        numbers = self.system.run.ask("stat", "-L", "-c", "%t:%T", *paths).text.split()
        try:
            if len(numbers) < len(nodes):
                raise UnseenError(f"the numbers of {' '.join(nodes)} can't be read")
            found = holders(self.system, nodes[0], set(numbers), shared_card.mapped_as(self.system, self.card))
        except UnseenError as error:
            self.say(f"it stays where it is for now: {error}")
            return False
        if found:
            why = f"it stays where it is for now: {' '.join(found)} still has it"
            if self.noted.state == "VM":
                self._kept = why  # maybe for days: it is said once
            else:
                self.say(why)
        return not found

    def _load_driver(self) -> bool:
        """With all modules that were unloaded for it, or for another card that is away still. False: it waits in the
        kernel, or can't be told to.
        """
        unloaded = set(self.noted.modules.split())
        for _, other in self._others():
            if other and other.boot == boot_id(self.system):
                unloaded |= set(other.modules.split())
        if not all(self._load(one) for one in reversed(nvidia.MODULES) if one in unloaded):
            return False
        return self.system.files.exists(f"{nvidia.PROC}/version") or self._load("nvidia")

    def _load(self, module: str) -> bool:
        """One that can't be loaded is said, and no reason to end."""
        done = self.system.run.ask("modprobe", module, seconds=120)
        if done.status == TIMED_OUT and self._is_loading():
            self._stuck(f"loading {module}")
            return False
        if done.status != 0:
            said = self.system.log.clean(done.output + done.error, 2000).strip()
            self.say(f"{module} could not be loaded: {said or 'no answer in time'}")
        return done.status != TIMED_OUT

    def _is_loading(self) -> bool:
        """Does somebody load a module, or wait for that in the kernel?"""
        processes = (one for one in self.system.files.names("/proc") if one.isdecimal())
        return any(self.system.files.line(f"/proc/{one}/comm") == "modprobe" for one in processes)

    def _to_driver(self) -> Came:
        """Once more where the step was cut short, such as by a kill: the card would stay without a driver."""
        came = self._in_unit(90, "step_attach")
        if came in ("waits", "unsaid") or (came == "done" and self._driver() == "nvidia"):
            return came
        return self._in_unit(90, "step_attach")

    def _is_served(self) -> bool:
        """Has the driver got the card, and does it answer for it?"""
        if self._driver() != "nvidia" or not self._let_clients_in():
            return False
        return self._smi("-i", self.card.gpu, "--query-gpu=pci.bus_id", "--format=csv,noheader", seconds=60)

    def _let_clients_in(self) -> bool:
        """Again, where the card was drained. (One that can't be drained answers with an error, too.)"""
        if self._smi("drain", "-p", self.card.gpu, "-m", "0"):
            return True
        self._smi("drain", "-q", "-p", self.card.gpu)
        return "not draining" in self._said or "draining" not in self._said

    def _serve_again(self, why: str) -> bool:
        """The card is with its driver: it is proved, and everybody has it as before."""
        self._let_clients_in()  # asked again below
        if self._in_unit(60, "step_nodes") == "waits":
            self._stuck("making its nodes")
            return False
        self._said, self.noted.owed = "", "yes"
        if not self._is_served():
            found = (
                f"NVIDIA's driver doesn't get along with it (driver: {self._driver()}; nvidia-smi: "
                f"{self._said or 'no answer'}); its containers stay off"
            )
            if shared_card.is_alive(self.system, self.card) is False:
                self._sink("DEAD", found)
            else:
                self._sink("HELD", f"{why}; {found} until it answers".removeprefix("; "))
            return False
        why = "; ".join(filter(None, (why, self._everybody_again())))
        if why:
            self._sink("HELD", why)
        else:
            self.say("it is with the host again")
            self._drop()
        return True

    def _everybody_again(self) -> str:
        """The driver's settings and the containers as before. Why a container is still owed a start, or empty."""
        self.noted.owed = ""
        self._restore_persistence()
        if self._have_moved():
            self._stop_those_with_the_earlier()
            if self.system.files.exists(FOLLOWER):
                self._do(*PYTHON.split(), str(self.system.files.at(FOLLOWER)), "follow_containers", seconds=300)
                if self._said:
                    self.say(self._said.replace("\n", "; "))
            self.say(f"its nodes have other numbers than before: {self.noted.numbers} -> {self._numbers()}")
        return self._start_users()

    def _stop_those_with_the_earlier(self) -> None:
        """A container that was started while the card was away knows it by the numbers of before, which may be another
        card's or another driver's now.
        """
        minor, names = self._earlier_nodes()
        for one in card_users.all_users(self.system):
            if not one.has(minor, names, self.card.gpu) or card_users.power_of(self.system, one.ctid) != "on":
                continue
            self.note(**self._with(one))
            try:
                self._stop(one.ctid)
            except RefusedError as error:
                self.say(f"{error}; it knows the card by its earlier numbers until it is started again")

    def _earlier_nodes(self) -> tuple[str, list[str]]:
        """N of /dev/nvidiaN and the names in /dev/dri that it had, without those that are another card's by now."""
        numbers, names = shared_card.parts(self.noted.taken or self.noted.numbers)
        minors, taken = shared_card.of_others(self.system, self.card)
        return "" if numbers[0] in minors else numbers[0], [name for name in names if name not in taken]

    def _restore_persistence(self) -> None:
        if self.noted.units and not self._do("systemctl", "start", self.noted.units, seconds=60):
            self.say(f"{self.noted.units} has not started again: {self._said}")
        if self.noted.persistence == "Enabled":
            words = ("-i", self.card.gpu, "-pm", "1")
            if not self._smi(*words) and not self._smi(*words):
                self.say(f"its persistence mode could not be switched on again: {self._said}")

    # What was left half-way.

    def settle(self) -> None:
        """Brings to an end what was left half-way: after a hook or a service that was killed, a start that failed (for
        which Proxmox VE calls nobody), a reboot of the host. What is at rest, and a VM that runs, stays.
        """
        noted = self.noted
        if noted.state != "HOST" and noted.boot != boot_id(self.system):
            self._settle_after_boot()
            return
        if noted.state in ("HOST", "HELD", "DEAD"):
            return
        # A VM that runs has its card for days.
        if noted.state == "VM":
            self._kept = card_users.why_not_over(self.system, self.card, noted)
            if self._kept:
                return
        if noted.state == "STUCK":
            if self._is_loading():
                return
        elif self._is_busy():
            self._await_step()
        busy = self._is_busy()
        if busy is not False:
            # A write that waits in the kernel may have been begun by whoever was killed. Where systemd doesn't say
            # whether there is one, it is asked again later.
            if busy and noted.state != "STUCK" and noted.age >= 120:
                self._stuck("a step on its way")
            return
        if noted.state in ("DRAINING", "DETACHED"):
            self.give_back(f"the way to VM {noted.vm} was cut short")
        elif noted.state == "STUCK":
            self.give_back("what waited in the kernel has come to an end")
        else:
            self.give_back("" if noted.state == "VM" else noted.why)

    def _settle_after_boot(self) -> None:
        """The drivers have taken everything anew, and onboot decides which containers run. A dead card that is still
        there and doesn't answer stays what it was, as of then: it is no longer away from a driver that has been loaded
        since. One that was taken out, or is another now, is nobody's concern.
        """
        if not boot_id(self.system):
            raise RefusedError("which boot of the host this is can't be read")
        if (
            self.noted.state == "DEAD"
            and shared_card.is_that_card(self.system, self.card)
            and not shared_card.is_alive(self.system, self.card)
        ):
            return
        self.say(f"the host has been started since (it was {self.noted.state}): the card is with it")
        self._drop()

    def start_owed(self) -> None:
        """Containers that didn't start for a reason that passes, such as a storage that isn't there yet, and what came
        to nothing with a driver that didn't answer yet: tried again, for a while. What is locked, such as by a backup,
        has as long as it takes.
        """
        self._forget_started()
        noted = self.noted
        given_up = noted.given_up.split()
        owed = [one for one in noted.containers.split() if one not in given_up]
        is_card_owed = noted.owed and _GIVEN_UP not in noted.why
        if noted.state != "HELD" or not (owed or is_card_owed) or noted.boot != boot_id(self.system):
            return
        if is_going_down(self.system):
            return
        locked = [] if noted.owed else [one for one in owed if self._is_locked(one)]
        if owed and len(locked) == len(owed):
            self.note(since="now")
            return
        if noted.age >= OWED_SECONDS:
            self._give_up([one for one in owed if one not in locked])
            return
        if not self._is_bound_again():
            return
        # Its modules may have come with other numbers.
        is_new = noted.owed or shared_card.have_moved(noted.numbers, self._numbers())
        if is_new and self._driver() == "nvidia" and self._in_unit(60, "step_nodes") == "waits":
            self._stuck("making its nodes")
            return
        if not self._is_served():
            return
        why = self._everybody_again()
        if not why and not given_up:
            self.say("it is with the host again, and its containers run")
            self._drop()
        else:
            if why not in noted.why:
                self.say(why)
            self.note(why="; ".join(filter(None, (why, self._end_of(given_up) if given_up else ""))))

    def _give_up(self, ctids: Sequence[str]) -> None:
        """These aren't tried any more; those that are locked still are."""
        ending = self._end_of(ctids)
        self.say(f"{self.noted.why}: {ending}")
        self.note(
            why=f"{self.noted.why}: {ending}",
            given_up=" ".join([*self.noted.given_up.split(), *ctids]),
            since="now",
        )

    def _forget_started(self) -> None:
        """Of those that aren't tried any more, the ones that somebody has started since."""
        noted, given_up = self.noted, self.noted.given_up.split()
        if noted.state != "HELD" or noted.boot != boot_id(self.system):
            return
        off = [one for one in given_up if self._is_off_by_cgroup(one) or self._may_be_off(one)]
        left = [one for one in noted.containers.split() if one not in given_up or one in off]
        if not left and given_up and not noted.owed:
            self.say("it is with the host, and its containers run")
            self._drop()
        elif off != given_up:
            why = f"{' '.join(off)} didn't start: {self._end_of(off)}" if off else noted.why
            self.note(containers=" ".join(left), given_up=" ".join(off), why=why)

    def _may_be_off(self, ctid: str) -> bool:
        return guests.power_of(self.system, "pct", ctid, 0) in ("off", "unknown")

    def _end_of(self, ctids: Sequence[str]) -> str:
        """What is said of those that aren't tried any more."""
        starts = ", ".join(f"`pct start {one}`" for one in ctids)
        return f"{_GIVEN_UP}; once that is mended, {starts}" if starts else _GIVEN_UP

    def _is_locked(self, ctid: str) -> bool:
        try:
            one = card_users.user(self.system, ctid)
        except RefusedError:
            return False
        return one is not None and "lock" in one.conf.options

    def _is_bound_again(self) -> bool:
        """A card that came back and that no driver took is given to its driver once more. False: that waits in the
        kernel. One that somebody has given to another driver since is that person's.
        """
        if not self.noted.owed or self._driver() or not shared_card.is_that_card(self.system, self.card):
            return True
        if not shared_card.is_alive(self.system, self.card):
            return True
        if self._is_busy() is not False or not self._load_driver():
            return False
        if self._to_driver() == "waits":
            self._stuck("giving it to NVIDIA's driver")
            return False
        return True
