"""The containers of a card that is handed over: shut down for the VM, and started again when the card is back."""

from __future__ import annotations

from remote_scripts.cards import card_users
from remote_scripts.cards.handed_over import RecordedCard, RefusedError
from remote_scripts.cards.handover_driver import CardDriver
from remote_scripts.notes import guest_note
from remote_scripts.pve import guests
from remote_scripts.pve.container_conf import ContainerConf
from remote_scripts.tools.boot_service import PYTHON

#: What brings lines of containers to the numbers that cards have now.
FOLLOWER = "/usr/local/sbin/homelab-card-nodes"


class CardContainers:
    """The containers that share a card with VMs."""

    def __init__(self, card: RecordedCard, driver: CardDriver) -> None:
        self._card, self._system = card, card.system
        self._driver = driver

    def _is_another(self, ctid: str, conf: ContainerConf) -> bool:
        """Was its id given to another container since?"""
        earlier = self._card.record.known.get(ctid)
        return earlier is not None and guest_note.is_another(guest_note.Note(identity=earlier), conf.options)

    # Shut down.

    def shut_down(self, ctid: str) -> None:
        """Within its own time (startup: down=), else a minute; then its power is cut. It may be off, or gone: one that
        an earlier handover could not start again.

        :raises RefusedError: it doesn't go off.
        """
        conf = card_users.container(self._system, ctid)
        if conf is None or self._is_another(ctid, conf):
            return
        if guests.power_of(self._system, "pct", ctid) in ("off", "gone"):
            return
        card_users.need_no_other_hand(self._system, ctid, conf)
        seconds = card_users.startup(conf, "down", 60)
        self._card.say(f"shutting container {ctid} down, which has the card")
        # A child of this process that outlived it would shut down a container that was seen to run.
        words = ("pct", "shutdown", ctid, "--timeout", str(seconds), "--forceStop", "1")
        shutdown = self._driver.run_unit(seconds + 120, f"stop-{ctid}", *words)
        if guests.power_of(self._system, "pct", ctid) != "off":
            raise RefusedError(f"container {ctid} doesn't go off: {shutdown.output or 'no answer'}")

    def shutting_down(self) -> str:
        """A container of the record whose shutdown is still at work, or empty."""
        return next((ctid for ctid in self._card.record.containers if self._driver.is_active(f"stop-{ctid}")), "")

    # Started again.

    def restore(self) -> str:
        """The driver's settings as before, and the containers of the record started, after their lines have followed
        the card's numbers. Why one is still owed a start, or empty.
        """
        record = self._card.record
        record.owed = False
        self._driver.restore_persistence()
        if self._system.files.exists(FOLLOWER):  # also for those that were off
            follower = (*PYTHON.split(), str(self._system.files.at(FOLLOWER)), "follow_containers")
            if output := self._driver.run(*follower, seconds=300).output:
                self._card.say(output.replace("\n", "; "))
        reasons = {ctid: self._start(ctid) for ctid in reversed(record.containers)}
        record.containers = tuple(ctid for ctid in record.containers if reasons[ctid])
        return "; ".join(filter(None, reasons.values()))

    def _start(self, ctid: str) -> str:
        """Why a container is still owed a start; empty: it runs, or nothing is owed to it."""
        try:
            conf = card_users.container(self._system, ctid)
        except RefusedError as error:
            return f"{error}: it stays off"
        if conf is None and not guests.is_gone(self._system, "pct", ctid):
            return f"it isn't known whether container {ctid} is there"
        if conf is None or self._is_another(ctid, conf):
            self._card.say(f"container {ctid}, which was shut down, isn't on this host any more")
            return ""
        if guests.power_of(self._system, "pct", ctid) == "on":
            return ""
        if locked := conf.options.get("lock"):
            return (
                f"container {ctid} is off and locked ({locked}): it is started when that has ended (if nothing of it "
                f"is at work, that lock was left behind: `pct unlock {ctid}`)"
            )
        self._card.say(f"starting container {ctid} again")
        # In a scope of its own: what a start leaves running is the container's, such as dhclient of a `host-managed`
        # network card (PVE::LXC::manage_dhclient), and would end with this program's service.
        start = self._driver.run("systemd-run", "-q", "--scope", "--collect", "pct", "start", ctid, seconds=180)
        power = guests.power_of(self._system, "pct", ctid)
        if power == "unknown":
            return f"whether container {ctid} has started isn't known (`pct status {ctid}`)"
        return "" if power in ("on", "gone") else f"container {ctid} has not started: {start.output or 'no answer'}"

    def forget_running(self) -> None:
        """Of those that are owed a start: what their owner has started, and maybe stops again, is the owner's."""
        containers = self._card.record.containers
        off = tuple(ctid for ctid in containers if guests.power_of(self._system, "pct", ctid, 0) != "on")
        if off != containers:
            self._card.save(containers=off)
