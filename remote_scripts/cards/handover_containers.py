"""The containers of a card that is handed over: shut down for the VM, and started again when the card is back."""

from __future__ import annotations

from remote_scripts.cards import card_users
from remote_scripts.cards.handed_over import RecordedCard, RefusedError
from remote_scripts.cards.handover_driver import CardDriver
from remote_scripts.guests import power, starts
from remote_scripts.guests.change import in_turn
from remote_scripts.guests.container import Container
from remote_scripts.notes import owed
from remote_scripts.pve import api, guest_tasks
from remote_scripts.pve.container_conf import ContainerConf
from remote_scripts.tools.boot_service import PYTHON
from remote_scripts.tools.errors import Failure

#: What brings lines of containers to the numbers that cards have now.
FOLLOWER = "/usr/local/sbin/homelab-card-nodes"


class CardContainers:
    """The containers that share a card with VMs."""

    def __init__(self, card: RecordedCard, driver: CardDriver) -> None:
        self._card, self._system = card, card.system
        self._driver = driver

    def _debts(self) -> list[owed.Debt]:
        return [debt for debt in owed.noted(self._system) if debt.card == self._card.name]

    def shut_down(self, ctid: str, conf: ContainerConf) -> None:
        """Within its own time (startup: down=), else a minute; then its power is cut.

        :raises RefusedError: it doesn't go off, or that it is to run again can't be noted.
        """
        card_users.need_no_other_hand(self._system, ctid, conf)
        self._card.say(f"shutting container {ctid} down, which has the card")
        try:
            with in_turn(Container, self._system, api.of(self._system), int(ctid)) as guest:
                power.shut_down(guest, card_users.startup(conf, "down", 60), "stop", "handover", self._card.name)
                runs = guest.runs()
        except Failure as failure:
            raise RefusedError(f"container {ctid} doesn't go off: {failure.found}") from failure
        if runs:
            raise RefusedError(f"container {ctid} doesn't go off: it was started meanwhile")

    def shutting_down(self) -> int | None:
        """A container whose shutdown is still at work; None: there is none.

        :raises Failure: that can't be told.
        """
        for debt in self._debts():
            tasks = guest_tasks.switching(api.of(self._system), debt.kind, debt.guest)
            if any("endtime" not in task for task in tasks):
                return debt.guest
        return None

    def restore(self) -> None:
        """The driver's settings as before, and its containers started, after their lines have followed the card's
        numbers. Who isn't started yet stays in the list.
        """
        self._card.record.owed = False
        self._driver.restore_persistence()
        if self._system.files.exists(FOLLOWER):  # also for those that were off
            follower = (*PYTHON.split(), str(self._system.files.at(FOLLOWER)), "follow_containers")
            if output := self._driver.run(*follower, seconds=300).output:
                self._card.say(output.replace("\n", "; "))
        answer = starts.start(self._system, self._debts(), back=[self._card.name])
        for line in [*(f"{name} runs again" for name in answer.started), *answer.off]:
            self._card.say(line)
