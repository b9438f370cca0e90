"""The dead man's switch: a timer that runs /var/lib/homelab/rollback some time after each boot, until it is disarmed.
Armed before the first write that a boot would read; disarmed by a confirmed boot, by the host that judges its own boot,
or when everything is given back.

In /var/lib/homelab:

- rollback: the program (files/rollback.sh), which asks the agent whether a boot is in order, and else needs nothing;
- armed: KEY VALUE lines: in which boot, until when an `up` waits for the next one, how this host was reached then;
- rolling-back: `armed`, renamed: taking it away first is what decides between a roll-back and a confirmation;
- rolled-back, judged: for people: which boot was undone and why, or that this host judged its boot itself, and stays.

/run/homelab/restarting, which no boot keeps: which boot is being undone, and why; until it has ended.
"""

from __future__ import annotations

import re
import time

from remote_scripts import installed
from remote_scripts.shared import boot, boot_service, cmdline, guests_to_start, notes, route
from remote_scripts.shared.boot_service import UNITS
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.words import missing_words
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

PROGRAM = f"{HOME}/rollback"
ARMED, ROLLING_BACK, ROLLED_BACK, JUDGED = (
    f"{HOME}/{name}" for name in ("armed", "rolling-back", "rolled-back", "judged")
)
_RESTARTING = "/run/homelab/restarting"
_SERVICE, _TIMER = f"{UNITS}/homelab-rollback.service", f"{UNITS}/homelab-rollback.timer"
_LINK = f"{UNITS}/timers.target.wants/homelab-rollback.timer"
_SYSTEMCTL_SECONDS = 60.0
_GRUB_ENVIRONMENT = "/boot/grub/grubenv"
_ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_OURS = re.compile(r'^export HOMELAB_WORDS="\$\{HOMELAB_WORDS:-\} (.*)"$', re.MULTILINE)
#: The layers whose files a boot reads.
LAYERS = ("iommu", "vfio")

_SERVICE_TEXT = """\
# Written by homelab: takes back a boot configuration that nobody confirmed. Gone once the boot is confirmed.
[Unit]
Description=homelab: give back the boot configuration from before, unless this boot is in order
ConditionPathExists=/var/lib/homelab/rollback
RequiresMountsFor=/var/lib/homelab
# Not stopped by a shutdown: it forces one that hangs.
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/sh /var/lib/homelab/rollback {after}
Restart=on-failure
RestartSec=10"""

_TIMER_TEXT = """\
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed
# Started first of all: a boot that ends in emergency mode, since a disk is gone, starts no other timer.
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
# From systemd's start on: an initramfs may wait for the passphrase of a disk for as long as it likes.
OnStartupSec={after}s
AccuracySec=1s

[Install]
WantedBy=timers.target"""


def note(system: System, path: str, key: str) -> str:
    """What a line of `armed` or `rolling-back` says; empty where there is none.

    :raises Failure: the note is there and can't be read.
    """
    return notes.pairs(boot.need_text(system, path)).get(key, "")


def rolled_back(system: System) -> str:
    """Which boot was undone, or is being undone, and why; empty where none was."""
    for path in (ROLLED_BACK, _RESTARTING):
        if text := system.files.text(path):
            return text
    if system.files.exists(ROLLING_BACK):  # cut off before it could tell
        return f"the boot after {note(system, ROLLING_BACK, 'boot')} was not confirmed"
    return ""


def is_rolling_back(system: System) -> bool:
    """Whether a roll-back has begun that still has to restart this host: one that could not be finished rests until the
    next boot.

    :raises Failure: as of `note`.
    """
    files = system.files
    return files.exists(_RESTARTING) or (files.exists(ROLLING_BACK) and note(system, ROLLING_BACK, "boot") != "resting")


def forget_earlier_roll_back(system: System) -> None:
    """That an earlier boot was undone is no news to what is wanted now. (What undoes this one is about to restart it.)

    :raises Failure: as of `note`.
    """
    if not is_rolling_back(system) and not system.files.text(ROLLED_BACK).startswith(f"boot {need_boot_id(system)} "):
        system.files.remove(ROLLED_BACK)


def is_armed(system: System) -> bool:
    """Whether it is."""
    return system.files.exists(ARMED)


def armed_since(system: System) -> str:
    """Since when, in seconds since 1970 with all their digits; empty: it isn't armed."""
    try:
        at = system.files.at(ARMED).stat().st_mtime_ns
    except FileNotFoundError:
        return ""
    return f"{at // 10**9}.{at % 10**9:09d}"


def await_boot(system: System, seconds: int) -> None:
    """For so long from now an `up` waits for the next boot.

    :raises OSError: it can't be noted.
    :raises Failure: as of `note`.
    """
    _await_boot(system, [f"until {int(time.time()) + seconds}"])


def await_no_boot(system: System) -> None:
    """No `up` waits for the next boot, whatever brings it; errors as of `await_boot`."""
    if is_armed(system):
        _await_boot(system, [])


def _await_boot(system: System, more: list[str]) -> None:
    lines = [line for line in boot.need_text(system, ARMED).splitlines() if not line.startswith("until ")] + more
    text = "".join(f"{line}\n" for line in lines)
    system.files.write(ARMED, text.encode("utf-8", "surrogateescape"), 0o600)


def is_undone(system: System) -> bool:
    """Whether this boot, or the one before, was undone, or is about to be."""
    return any(system.files.exists(path) for path in (ROLLING_BACK, ROLLED_BACK, _RESTARTING))


def is_armed_before(system: System) -> bool:
    """Whether it was armed in an earlier boot than this one.

    :raises Failure: as of `note`.
    """
    return is_armed(system) and note(system, ARMED, "boot") != need_boot_id(system)


def own_words(system: System) -> list[str]:
    """What we put on the command line of the next boot, as it is recorded.

    :raises Failure: it can't be read.
    """
    texts = [boot.need_text(system, path) for path in cmdline.records(system)]
    texts += [match[1] for path in cmdline.drop_ins(system) for match in _OURS.finditer(boot.need_text(system, path))]
    return [*dict.fromkeys(" ".join(texts).split())]


def is_another_boot(system: System) -> bool:
    """Whether this boot runs without what we configured (by the second entry, or from older entries): then it shows
    nothing of that.

    :raises Failure: as of `own_words`, or of what is configured.
    """
    words = own_words(system)
    if not words:
        return False
    configured = cmdline.configured(system, note(system, ARMED, "loader") or "grub")
    running = system.files.at("/proc/cmdline").read_text(encoding="utf-8", errors="surrogateescape")
    return any(not missing_words(word, configured) and missing_words(word, running) for word in words)


def arm(system: System, after: int, awaited: int = 0, loader: str = "") -> None:
    """What is armed in this boot stays as it is, unless a run waits for the next one.

    :param after: seconds from a boot's start until the switch checks it.
    :param awaited: for so many seconds from now an `up` waits for the next boot; 0: none does.
    :param loader: where it is known.
    :raises Failure: a roll-back is at work, or the boot loader isn't known.
    """
    files = system.files
    here = need_boot_id(system)
    if files.exists(_RESTARTING) or note(system, ROLLING_BACK, "boot") == here:
        raise Failure(
            "the next boot of this host configured",
            f"it is giving back its boot configuration now: {rolled_back(system)}",
            "it restarts when that is done, and would lose what is written meanwhile",
            "wait for its restart (`journalctl -u homelab-rollback` on the host shows it), then run "
            "`pulumi up --refresh`",
        )
    if not awaited and note(system, ARMED, "boot") == here:
        record = boot.need_text(system, ARMED).rstrip("\n")
    else:
        record = _record(system, here, awaited, loader)
    files.before_write = None
    files.need_folder(HOME)
    _write(system, PROGRAM, 0o700, installed.TEXTS["rollback"])
    _write(system, ARMED, 0o600, record)
    _write(system, _SERVICE, 0o644, _SERVICE_TEXT.format(after=after))
    _write(system, _TIMER, 0o644, _TIMER_TEXT.format(after=after))
    # Enabled, not started: it counts from the next boot. As `systemctl enable` does it, which needs nothing of a
    # running systemd either.
    if not files.at(_LINK).is_symlink():
        files.make_folder(_LINK.rpartition("/")[0])
        files.remember(_LINK)
        files.write_link(_TIMER, _LINK)
        if system.run.do("systemctl", "daemon-reload", seconds=_SYSTEMCTL_SECONDS).status != 0:
            system.log.say("systemctl daemon-reload failed: the units are read at boot anyway")
    # What became of earlier boots is no news any more, and the next one takes the default entry.
    for path in (ROLLING_BACK, ROLLED_BACK, JUDGED):
        files.remember(path)
        files.remove(path)
    _forget_second_entry(system)


def tell(system: System, path: str, sentence: str) -> None:
    """For the next `up`."""
    system.files.write(path, sentence.encode(), 0o600)


def disarm(system: System) -> None:
    """First what decides, then the rest: a cut in between leaves a program that only takes itself away, or one that
    nothing starts any more, which goes with the next run.
    """
    files = system.files
    files.remove(ARMED, ROLLING_BACK)
    boot_service.remove(system, "homelab-rollback", _LINK, _SERVICE, _TIMER, PROGRAM)
    _forget_second_entry(system)


def is_there(system: System) -> bool:
    """Whether anything of the switch is."""
    return any(system.files.exists(path) for path in (ARMED, ROLLING_BACK, PROGRAM, _TIMER))


def disarm_when_given_back(system: System) -> None:
    """After something was given back: the switch stays for as long as a boot would read a file of homelab's."""
    files = system.files
    guests_to_start.settle(system)
    if not (is_there(system) or files.exists(ROLLED_BACK) or files.exists(JUDGED)):
        return
    files.finish()  # settles the records
    if not is_all_given_back(system):
        return
    if is_there(system):
        disarm(system)
    files.remove(ROLLED_BACK, JUDGED)


def is_all_given_back(system: System) -> bool:
    """Whether no file of homelab's is left that a boot reads.

    :raises OSError: it can't be told.
    """
    files = system.files
    return (
        not any(files.of_layer(layer) for layer in LAYERS)
        and not cmdline.records(system)
        and not files.is_pending("boot")
        and not files.is_pending("initramfs")
    )


def _record(system: System, here: str, awaited: int, loader: str) -> str:
    lines = [f"boot {here}", f"loader {loader or boot.need_loader(system)}"]
    if awaited:
        lines.append(f"until {int(time.time()) + awaited}")
    return "\n".join((*lines, route.find(system).note))


def _write(system: System, path: str, mode: int, text: str) -> None:
    """As `put` of `files`, but it is `disarm` that takes it away."""
    files = system.files
    content = files.read(path, len(text.encode()) + 1)
    if content is not None and content.decode("utf-8", "surrogateescape").rstrip("\n") == text:
        return
    files.make_folder(path.rpartition("/")[0])
    files.remember(path)
    files.write(path, f"{text}\n".encode("utf-8", "surrogateescape"), mode)


def _forget_second_entry(system: System) -> None:
    """The default again: GRUB can't take its choice back by itself where it can't write (LVM, ZFS)."""
    commands: list[tuple[str, ...]] = []
    if re.search(rb"^next_entry=homelab-without-gpu-", system.files.read(_GRUB_ENVIRONMENT) or b"", re.MULTILINE):
        commands.append(("grub-editenv", "-", "unset", "next_entry"))
    if b"homelab-without-gpu-" in (system.files.read(_ONE_SHOT) or b"").replace(b"\0", b""):
        commands.append(("bootctl", "set-oneshot", ""))
    for command in commands:
        done = system.run.do(*command)
        if done.status != 0:
            system.log.say(f"the choice of the second boot entry could not be taken back: {done.text}")
