"""The containers of a card that is handed over: shut down for the VM, and started again when the card is back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from remote_scripts.shared import card_users, guest_note, guests, ha, handover
from remote_scripts.shared.boot_service import PYTHON
from remote_scripts.shared.card_record import NodeNumbers, is_another
from remote_scripts.shared.card_users import Container
from remote_scripts.shared.container_drift import noted
from remote_scripts.shared.handover import RecordedCard, RefusedError
from remote_scripts.shared.handover_driver import CardDriver
from remote_scripts.shared.kernel import boot_id
from remote_scripts.shared.shared_card import drivers_by_major
from remote_scripts.tools.errors import Failure

#: What brings lines of containers to the numbers that cards have now.
FOLLOWER = "/usr/local/sbin/homelab-card-nodes"
#: Why no more starts are tried.
GIVEN_UP = "nothing more is tried after half an hour"


class CardContainers:
    """The containers that share a card with VMs. `is_other_card_awaited`: whether a container waits for another card of
    the same VM, which comes back as well.
    """

    def __init__(self, card: RecordedCard, driver: CardDriver) -> None:
        self._card, self._system = card, card.system
        self._driver = driver
        self.is_other_card_awaited = False

    def _is_another(self, container: Container) -> bool:
        """Was its id given to another container since?"""
        earlier = self._card.record.known.get(container.ctid)
        return earlier is not None and guest_note.is_another(guest_note.Note(identity=earlier), container.conf.options)

    def fields(self, owed: Sequence[str], users: Sequence[Container]) -> dict[str, object]:
        """The fields of a record by which containers are started again.

        :param owed: ids of those that the record has already.
        :param users: those that are shut down now.
        """
        known = {ctid: identity for ctid, identity in self._card.record.known.items() if ctid in owed}
        known |= {user.ctid: guest_note.identity(user.conf.options) for user in users}
        return {
            "containers": tuple(dict.fromkeys([*owed, *(user.ctid for user in users)])),
            "known": known,
        }

    def _with(self, container: Container) -> dict[str, object]:
        return self.fields(self._card.record.containers, [container])

    # Shut down.

    def shut_down(self, ctid: str) -> None:
        """Within its own time (startup: down=), else a minute; then its power is cut. It may be off, or gone: one that
        an earlier handover could not start again.

        :raises RefusedError: it doesn't go off.
        """
        container = card_users.container(self._system, ctid)
        if container is None or self._is_another(container):
            return
        if guests.power_of(self._system, "pct", ctid) in ("off", "gone"):
            return
        # Proxmox VE would refuse it, with a failed task each time.
        if locked := container.conf.options.get("lock"):
            raise RefusedError(f"container {ctid} doesn't go off: it is locked ({locked})")
        if ha.may_manage(self._system, f"ct:{ctid}"):
            raise RefusedError(f"container {ctid} doesn't go off: it is under HA by now, which would start it again")
        down = container.startup("down")
        seconds = 60 if down is None else down
        self._card.say(f"shutting container {ctid} down, which has the card")
        # A child of this process that outlived it would shut down a container that was seen to run.
        words = ("pct", "shutdown", ctid, "--timeout", str(seconds), "--forceStop", "1")
        shutdown = self._driver.run_unit(seconds + 120, f"stop-{ctid}", *words)
        if guests.power_of(self._system, "pct", ctid) != "off":
            raise RefusedError(f"container {ctid} doesn't go off: {shutdown.output or 'no answer'}")

    def shutting_down(self) -> str:
        """A container of the record whose shutdown is still at work, or empty."""
        for ctid in self._card.record.containers:
            if self._driver.is_active(f"stop-{ctid}") is not False:
                return ctid
        return ""

    # Started again.

    def restore(self) -> str:
        """The driver's settings as before, and the containers of the record started, after their lines have followed
        the card's numbers. Why one is still owed a start, or empty.
        """
        record = self._card.record
        record.owed = False
        self._driver.restore_persistence()
        if self._have_numbers_moved():
            self._stop_those_with_earlier_numbers()
            if self._system.files.exists(FOLLOWER):
                follower = (*PYTHON.split(), str(self._system.files.at(FOLLOWER)), "follow_containers")
                if output := self._driver.run(*follower, seconds=300).output:
                    self._card.say(output.replace("\n", "; "))
            self._card.say(f"its nodes have other numbers than before: {record.numbers} -> {self._card.numbers}")
        reasons: list[str] = []
        off: list[str] = []
        for ctid in reversed(record.containers):
            reason = "" if ctid in record.given_up else self._start(ctid)
            reasons += [reason] if reason else []
            if reason or ctid in record.given_up:
                off.insert(0, ctid)
        record.containers = tuple(off)
        return "; ".join(reasons)

    def _start(self, ctid: str) -> str:
        """Why a container is still owed a start; empty: it runs, or nothing is owed to it."""
        try:
            container = card_users.container(self._system, ctid)
        except RefusedError as error:
            return f"{error}: it stays off"
        if container is None:
            if not guests.is_gone(self._system, "pct", ctid):
                return f"it isn't known whether container {ctid} is there"
            self._card.say(f"container {ctid}, which was shut down, isn't on this host any more: it is left as it is")
            return ""
        if self._is_another(container):
            self._card.say(f"container {ctid} is another one than the one that was shut down: it is left as it is")
            return ""
        if guests.power_of(self._system, "pct", ctid) == "on":
            return ""
        if locked := container.conf.options.get("lock"):
            return (
                f"container {ctid} is off and locked ({locked}): it is started when that has ended (if nothing of it "
                f"is at work, that lock was left behind: `pct unlock {ctid}`)"
            )
        if not self._has_current_numbers(container):
            return (
                f"its nodes have other numbers than before ({self._card.record.numbers} -> "
                f"{self._card.numbers}), and container {ctid} has lines with the earlier ones, which this "
                "program hasn't written: it stays off. Correct them, then start it"
            )
        if why := self._other_card_away(container):
            return why
        self._card.say(f"starting container {ctid} again")
        # In a scope of its own: what a start leaves running is the container's, such as dhclient of a `host-managed`
        # network card (PVE::LXC::manage_dhclient), and would end with this program's service.
        start = self._driver.run("systemd-run", "-q", "--scope", "--collect", "pct", "start", ctid, seconds=180)
        power = guests.power_of(self._system, "pct", ctid)
        if power == "unknown":
            return f"whether container {ctid} has started isn't known (`pct status {ctid}`)"
        return "" if power in ("on", "gone") else f"container {ctid} has not started: {start.output or 'no answer'}"

    def _other_card_away(self, container: Container) -> str:
        """Why a container waits for another card of its own, which the same VM had, and has still by its record;
        empty: it doesn't.
        """
        for name, other in self._card.records_of_others():
            if other is None:
                return (
                    f"it isn't known where gpus.{name} is, which container {container.ctid} may have as well: the "
                    "container stays off"
                )
            numbers = other.last_numbers
            address = next((card.gpu for card in handover.cards(self._system) if card.name == name), "")
            is_away = other.state in ("VM", "RETURNING") and other.boot == boot_id(self._system)
            if is_away and other.vm == self._card.record.vm and container.has(numbers.minor, numbers.names, address):
                self.is_other_card_awaited = True
                return (
                    f"container {container.ctid} has gpus.{name} as well, which comes back next: it is started after "
                    "that"
                )
        return ""

    # Numbers of device nodes.

    def _have_numbers_moved(self) -> bool:
        """Has the card others than when it was taken, or than before an earlier handover?"""
        record, current = self._card.record, self._card.numbers
        return any(earlier.have_moved(current) for earlier in (record.numbers, record.taken) if earlier)

    def _has_current_numbers(self, container: Container) -> bool:
        """Do its lines mean this card, by the numbers that it has now? Lines that homelab wrote follow the card; of
        lines by others it counts whether one means what has moved.
        """
        if not self._have_numbers_moved():
            return True
        with suppress(Failure):
            if noted(self._system, int(container.ctid)).given.nodes:
                return container.has(self._card.minor, self._card.drm_names, self._card.gpu)
        record = self._card.record
        numbers = filter(None, (record.numbers, record.taken))
        return not any(self._means_moved_node(container, earlier) for earlier in numbers)

    def _means_moved_node(self, container: Container, earlier: NodeNumbers) -> bool:
        """Does it name a node as one of the card's was called, or does a rule let in the driver's earlier major and
        none the current one? (A dev[n] option has no numbers: they are looked up as the container starts.)
        """
        current = self._card.numbers
        if is_another(earlier.minor, current.minor) and container.gives(f"/dev/nvidia{earlier.minor}"):
            return True
        if any(container.gives(f"/dev/dri/{name}") for name in earlier.renamed(current)):
            return True

        def lets_in(major: str) -> bool:
            return container.conf.rule_for(int(major), 0, "rw") is not None

        majors = zip(earlier.majors, current.majors, strict=True)
        return any(is_another(before, after) and lets_in(before) and not lets_in(after) for before, after in majors)

    def _running_with_earlier_nodes(self) -> Iterator[Container]:
        """Containers that run, and have the nodes that the card had, without those that are another card's by now."""
        numbers, (minors, names_of_others) = self._card.record.last_numbers, self._card.of_others()
        minor = "" if numbers.minor in minors else numbers.minor
        names = [name for name in numbers.names if name not in names_of_others]
        for container in card_users.containers(self._system):
            if not container.has(minor, names, self._card.gpu) or self._has_no_cgroup(container.ctid):
                continue
            if guests.power_of(self._system, "pct", container.ctid) == "on":
                yield container

    def _stop_those_with_earlier_numbers(self) -> None:
        """A container that was started while the card was away knows it by the numbers of before, which may be another
        card's or another driver's now.
        """
        for container in self._running_with_earlier_nodes():
            try:
                self._card.need_saved(**self._with(container))
                self.shut_down(container.ctid)
            except RefusedError as error:
                known = f"container {container.ctid} knows the card by its earlier numbers until it is started again"
                self._card.say(f"{error}; {known}")

    # Started by others.

    def check_started(self, why_kept: str) -> None:
        """Containers that were started while a VM has the card: it is said once that they run without it. One whose
        rules let in what is another driver's by now is shut down, and is started when the card is back.

        :param why_kept: what is to be said of the VM, which keeps the card.
        """
        record = self._card.record
        if record.state != "VM":
            return
        drivers = drivers_by_major(self._system)
        majors = record.last_numbers.majors
        foreign = [major for major in majors if major and not drivers.get(major, "nvidia").startswith("nvidia")]
        reasons: list[str] = []
        for container in self._running_with_earlier_nodes():
            started = f"container {container.ctid} was started while VM {record.vm} has the card"
            major = next((major for major in foreign if container.conf.rule_for(int(major), 0, "rw")), "")
            if major:
                self._card.need_saved(**self._with(container))
                self._card.say(
                    f"{started}, and may open what is {drivers[major]}'s by now (major {major}): it is shut down, and "
                    "started when the card is back"
                )
                self.shut_down(container.ctid)
            else:
                reasons.append(f"{started}: it runs without it, also when the card is back, until it is started again")
        reasons += [why_kept] if why_kept else []
        why = "; ".join(reasons)
        if why != record.why:
            if why:
                self._card.say(why)
            self._card.save(why=why)

    def _has_no_cgroup(self, ctid: str) -> bool:
        """Whether it is off for certain, without a program's start."""
        groups = "/sys/fs/cgroup/lxc"
        return self._system.files.exists(groups) and not self._system.files.exists(f"{groups}/{ctid}")

    # Starts that failed.

    def is_locked(self, ctid: str) -> bool:
        """Whether Proxmox VE has a container locked, such as for a backup."""
        try:
            container = card_users.container(self._system, ctid)
        except RefusedError:
            return False
        return container is not None and "lock" in container.conf.options

    def give_up(self, ctids: Sequence[str]) -> None:
        """Their start isn't tried any more."""
        record = self._card.record
        why = f"{record.why}: {self.how_to_start(ctids)}"
        self._card.say(why)
        self._card.save(why=why, given_up=(*record.given_up, *ctids), since="now")

    def forget_started(self) -> None:
        """Forgets those that were given up, and that a user has started since."""
        record, given_up = self._card.record, self._card.record.given_up
        if record.state != "HELD" or record.boot != boot_id(self._system):
            return
        off = tuple(
            ctid
            for ctid in given_up
            if self._has_no_cgroup(ctid) or guests.power_of(self._system, "pct", ctid, 0) in ("off", "unknown")
        )
        left = tuple(ctid for ctid in record.containers if ctid not in given_up or ctid in off)
        if not left and given_up and not record.owed:
            self._card.say("it is with the host, and its containers run")
            self._card.remove()
        elif off != given_up:
            why = f"{' '.join(off)} didn't start: {self.how_to_start(off)}" if off else record.why
            self._card.save(containers=left, given_up=off, why=why)

    def how_to_start(self, ctids: Sequence[str]) -> str:
        """How a user starts those that were given up."""
        starts = ", ".join(f"`pct start {ctid}`" for ctid in ctids)
        return f"{GIVEN_UP}; once that is mended, {starts}" if starts else GIVEN_UP
