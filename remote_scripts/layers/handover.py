"""Hands a host's cards from its containers to VMs and back: by a program, by a hookscript that VMs name, and by a
service and a timer that finish what was left half-way.

Changes /usr/local/sbin/homelab-handover and /etc/homelab-handover.json (the cards); homelab-handover.service and
.timer, which are enabled; snippets/homelab-handover.sh of a storage of this host, and where none takes snippets, what
the storage local takes (/etc/pve/storage.cfg). `revert` takes these away, with /var/lib/homelab/handover, and the
option hookscript of VMs that still name it. Refused while a VM has a card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from remote_scripts.both.handover import Wanted
from remote_scripts.cards import card_users, handover_steps
from remote_scripts.cards.card_handover import CardHandover
from remote_scripts.cards.card_users import WorkInsideError
from remote_scripts.cards.handed_over import RecordedCard, RefusedError, SharedCard
from remote_scripts.cards.handover_driver import program as command
from remote_scripts.notes import handover
from remote_scripts.notes.card import Card
from remote_scripts.pve import guest_conf, hookscripts
from remote_scripts.tools import boot_service
from remote_scripts.tools.boot_service import PYTHON
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Changed
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.restart import is_going_down
from remote_scripts.tools.system import System, changes, plans

_LAYER = "handover"
#: How long a start waits for a card that is on its way, or whose containers are being started again, in seconds:
#: several containers may take their time.
START_SECONDS = 1200.0
#: How long it waits before that for work of homelab's inside the card's containers.
INSIDE_SECONDS = 300.0
_SYSTEMCTL_SECONDS = 60.0
# Nothing is to be done, as in nearly every minute: no card has a record, and each VM of this node that is to have the
# hookscript has one among its own options, which stand above its first section.
_IS_IDLE = r"""{ cd "$HOMELAB_ROOT/var/lib/homelab" || return; \
  for record in handover/*.state; do [ ! -e "$record" ] || return; done; \
  for vmid in $(ls handover-hooks 2>/dev/null); do \
    conf=$HOMELAB_ROOT/etc/pve/qemu-server/$vmid.conf; [ -e "$conf" ] || continue; \
    case $(grep -m1 -E "^([[]|hookscript: *[^ ])" "$conf") in hookscript:*) ;; *) return 1 ;; esac; \
  done; }"""
SERVICE = boot_service.Service(
    name="homelab-handover",
    layer=_LAYER,
    module=_LAYER,
    without="a handover that is cut short would stay half-way",
    unit=f"""\
[Unit]
Description=Cards that VMs and containers have in turn: what was left half-way comes to an end (homelab)
RequiresMountsFor=/var/lib/homelab
After=systemd-modules-load.service systemd-udevd.service pve-cluster.service homelab-nvidia-nodes.service
Before=pve-guests.service

[Service]
Type=oneshot
TimeoutStartSec=1800
# Once a minute, it isn't worth a line that nothing was to be done.
SyslogLevel=notice
LogLevelMax=notice
ExecStart=-/bin/sh -c 'is_idle() {_IS_IDLE}; \
  is_idle || {PYTHON} "$HOMELAB_ROOT{handover.PROGRAM}" reconcile'
""",
    timer="""\
[Unit]
Description=Cards that VMs and containers have in turn (homelab)

[Timer]
OnBootSec=2min
OnUnitInactiveSec=1min
# By default systemd waits for up to a minute more, to start it along with others.
AccuracySec=1s
""",
)

# Without the program it isn't known whether the card is free, and its driver may wait for ever.
_HOOK_TEXT = f"""\
#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy): hands a card from this host's containers to a VM that
# starts, and back. Where Python is broken no VM starts by it, and each ends as ever.
case $2 in pre-start | post-stop) ;; *) exit 0 ;; esac
{PYTHON} "${{HOMELAB_ROOT:-}}{handover.PROGRAM}" hook "$1" "$2" || [ "$2" != pre-start ] || {{
  echo "homelab: VM $1 stays off: {handover.PROGRAM} has not handed it its card"; exit 1; }}
"""


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change.

    :raises Failure: no storage takes hookscripts.
    """
    if wanted.cards:
        _write(system, wanted.cards)
        return
    for vmid in hookscripts.here(system):
        system.files.plan_file("removed", f"VM {vmid}'s option hookscript")
    _drop_files(system)


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Installs it, or takes it away where no card is handed over any more.

    :raises Failure: a card is away, no storage takes hookscripts, or systemd doesn't take the units.
    """
    return _install(system, wanted.cards) if wanted.cards else _take_away(system)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes it away, whatever `wanted` says.

    :raises Failure: a card is away, or a VM keeps the hookscript.
    """
    return _take_away(system)


# -- what is installed ---------------------------------------------------------------------------------------------


def _write(system: System, cards: Sequence[Card]) -> None:
    files = system.files
    storage = hookscripts.need_storage(system)
    files.put(_LAYER, handover.CARDS, 0o644, f"{json.dumps(to_plain(cards), indent=1)}\n".encode())
    boot_service.serve(system, SERVICE, needed=True)
    files.put(_LAYER, storage.script, 0o755, _HOOK_TEXT.encode())
    hookscripts.switch_on(system)


def _install(system: System, cards: Sequence[Card]) -> Changed:
    handover.need_rest(system)
    _write(system, cards)
    _forget(system, {card.name for card in cards})
    if system.run.do("systemctl", "start", "homelab-handover.timer", seconds=_SYSTEMCTL_SECONDS).status != 0:
        system.log.say("note: homelab-handover.timer has not started: it does at the next boot")
    return Changed(system.files.changed)


def _take_away(system: System) -> Changed:
    handover.need_rest(system)
    files = system.files
    for vmid in hookscripts.here(system):
        hookscripts.set_hook(system, vmid, None)
    if any(map(files.exists, SERVICE.links.values())):
        system.run.do("systemctl", "stop", "homelab-handover.timer", seconds=_SYSTEMCTL_SECONDS)
    _drop_files(system)
    _forget(system, set())
    files.remove(*(f"{handover.FOLDER}/{name}" for name in files.names(handover.FOLDER)))
    return Changed(files.changed)


def _drop_files(system: System) -> None:
    """The hookscript last, wherever it was written: a VM that names one which isn't there doesn't start."""
    boot_service.serve(system, SERVICE, needed=False)
    done = (SERVICE.program, *SERVICE.links.values())  # in a plan they are there still
    others = (path for path in system.files.of_layer(_LAYER) if path not in done)
    for path in sorted(others, key=lambda path: path.endswith(f"/{hookscripts.FILE}")):
        system.files.drop(_LAYER, path)
    hookscripts.switch_off(system)


def _forget(system: System, names: set[str]) -> None:
    """Removes the records of cards that aren't handed over any more, which the installed program would never finish.

    :param names: of those that are.
    """
    gone = [name for name in handover.recorded_names(system) if name not in names]
    system.files.remove(*(handover.note_of(name).path for name in gone))


# -- what it does --------------------------------------------------------------------------------------------------


def program(system: System, arguments: Sequence[str]) -> None:
    """`hook VMID PHASE`, by the hookscript; `reconcile`, by the service; or a step of a card, in a unit of its own.

    :raises Failure: a VM doesn't get its card, or a step hasn't worked.
    """
    cards = handover.cards(system)
    match list(arguments):
        case ["hook", vmid, phase] if re.fullmatch(r"[1-9]\d*", vmid):
            if phase == "pre-start":
                _begin(system, cards, vmid)
            elif phase == "post-stop":
                _come_back(system, cards, vmid)
        case ["reconcile"]:
            _reconcile(system, cards)
        case [step, name] if step in handover_steps.STEPS:
            for card in cards:
                if card.name == name:
                    handover_steps.STEPS[step](SharedCard(system, card))
        case _:
            raise handover.not_as_installed(" ".join(arguments))


def _begin(system: System, cards: Sequence[Card], vmid: str) -> None:
    # A user may have taken a card out of it.
    named = [card for card in cards if card_users.names_card(SharedCard(system, card), vmid)]
    for card in named:
        # Such as a VM that was restored or cloned from one that has it, and has brought the hookscript along. Proxmox
        # VE would take the card from its driver without a look.
        if int(vmid) not in card.vms:
            others = ", ".join(map(str, card.vms)) or "none"
            raise Failure(
                f"VM {vmid} without a card that it isn't to have",
                f"VM {vmid} names gpus.{card.name}, and the settings give that card to VM {others}",
                "a card that is still in use makes NVIDIA's driver wait for ever, so it is taken only when nothing "
                "uses it",
                "name the card under the VM in the settings, or take it out of it",
            )
    if not named:
        return
    # Before the wait for the host, which a run may have for long; and once more with it.
    handovers = [CardHandover(system, card) for card in named]
    for card_handover in handovers:
        card_handover.need_startable(vmid)
    _await_work_inside(system, vmid, [card_handover.card for card_handover in handovers])
    _get_host_for_start(system, vmid)
    with system.work.holding(handover.HANDING, 10) as is_held:
        if not is_held:
            raise handovers[0].refusal(vmid, "/run/homelab/handing can't be locked", "start the VM again")
        _take_all(system, vmid, named)


def _await_work_inside(system: System, vmid: str, cards: Sequence[RecordedCard]) -> None:
    """Waits while homelab works inside a container that would be shut down: a step that goes on after its run was cut
    off, or the start would have been refused for that run. What still works there after `INSIDE_SECONDS` refuses the
    start, once this host's lock is held.

    :raises Failure: see `Work.go_on`.
    """
    for wait in system.work.tries(INSIDE_SECONDS):
        try:
            for card in cards:
                card_users.running_with(card)
        except WorkInsideError as error:
            wait.what = f"VM {vmid} waits: {error}"
        except RefusedError:
            return  # `take` says so
        else:
            return


def _take_all(system: System, vmid: str, cards: Sequence[Card]) -> None:
    taken: list[CardHandover] = []
    for card in cards:
        card_handover = CardHandover(system, card)
        try:
            card_handover.take(vmid)
        except Failure:
            for earlier in reversed(taken):  # as they come back from a VM that has ended
                if earlier.card.record.state == "VM":  # else it was on vfio-pci already, by other configuration
                    earlier.return_card(f"VM {vmid} didn't get all of its cards")
            raise
        taken.append(card_handover)


def _get_host(system: System, seconds: float) -> str:
    """Takes the lock that every handover and every change of this host takes. Why not, or empty."""
    system.work.lock_seconds = seconds
    try:
        system.work.take_lock()
    except Failure as failure:
        return failure.found
    return ""


def _get_host_for_start(system: System, vmid: str) -> None:
    """Another handover comes to its end first. Whatever else has the host for that long is a run that was cut off."""
    if why := _get_host(system, START_SECONDS):
        raise Failure(
            f"this host free for the start of VM {vmid}",
            f"another card on its way, or something else of homelab's, has had it for too long ({why})",
            "two at once would undo each other's changes; nothing was changed",
            f"see what {handover.STORY} says last; start VM {vmid} again when that has ended",
        )


def _come_back(system: System, cards: Sequence[Card], vmid: str) -> None:
    """The VM has ended. Proxmox VE waits for its hookscript: the way back is a unit's."""
    configured = [card for card in cards if int(vmid) in card.vms]
    if not configured or is_going_down(system) or system.files.exists(f"/run/qemu-server/{vmid}.reboot"):
        return
    # A backup in stop mode starts it again at once. Otherwise the timer sees that it is off when the lock is gone.
    if guest_conf.option_of_vm(system, vmid, "lock") == "backup":
        return
    if not _get_host(system, 8):
        for card in configured:
            recorded = RecordedCard(system, card)
            if (recorded.record.state, recorded.record.vm) == ("VM", vmid):
                recorded.save(state="RETURNING", why="")
                recorded.say(f"VM {vmid} has ended")
        system.work.release()
    # Where it can't be started, the timer does the same within two minutes.
    unit = ("systemd-run", "-q", "--collect", "--no-block", "-p", "RuntimeMaxSec=1800")
    system.run.ask(*unit, *command("reconcile"), seconds=10)


def _reconcile(system: System, cards: Sequence[Card]) -> None:
    """What was left half-way is brought to an end. As a start does: not between two steps of a run, but for what that
    run has started itself; and a run that begins waits for this.
    """
    if is_going_down(system) or _get_host(system, 60):
        return
    with system.work.holding(handover.HANDING, 10) as is_held:
        # Containers that have several cards of a VM are noted with the one that it took first: that one is the last.
        for card in reversed(cards) if is_held else ():
            _reconcile_card(system, card)


def _reconcile_card(system: System, card: Card) -> None:
    try:
        card_handover = CardHandover(system, card)
        recorded = card_handover.card
        if handover.run_at_work(system, recorded.record.vm or "-") is not None:
            return
        card_handover.retry()
        card_handover.finish()
        for vmid in map(str, card.vms):
            if card_users.names_card(recorded, vmid) and (message := hookscripts.restore_hook(system, vmid)):
                recorded.say(message)
    except (Failure, RefusedError, OSError) as error:
        reason = f"{error.wanted}: {error.found}" if isinstance(error, Failure) else error
        system.log.say(f"{card.name}: left as it is: {reason}")
        handover.story_line(system, card.name, f"left as it is: {reason}")
