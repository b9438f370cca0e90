"""A host's program that fails, or answers garbage, at any of its calls in a handover: everybody has everything as before, or the VM has the card; and what was left
half-way comes to its end with the next service, without a reboot.

By default a sample of these calls is tried, another one with another seed (tests/sampling.py); HOMELAB_EVERY_CUT=1 tries every one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import sampling
from tests.scripts import handover_kit
from tests.scripts.conftest import Folder
from tests.scripts.handover_kit import Left, at_home, two_users, with_the_vm
from tests.scripts.test_handover import AUDIO, made, program, run, state
from tests.scripts.test_handover_kills import ONLY, vm_locked

SAMPLE = 3
#: A host's programs.
PROGRAMS = ("nvidia-smi", "pct", "qm", "systemctl", "systemd-run", "modprobe")
#: What the call that is meant does: instead, or besides.
FAULTS = {
    "fails": "exit 1",
    "says nothing": "exec >/dev/null 2>&1",
    "answers garbage": r"printf 'status: 7\n\001=%%\n[x\n'",
}
#: Counts its calls, and does at one of them what a file says. Files of its own lie beside the host's.
_COUNTED = """\
calls=${{ROOT%/root}}/calls
printf x >>"$calls/{name}"
if [[ -e $calls/fault ]]; then
  read -r name number <"$calls/fault"
  read -r so_far <"$calls/{name}" || :
  if [[ $name == {name} && ${{#so_far}} == "$number" ]]; then
    source "$calls/instead"
  fi
fi
"""


def counted(host: Folder) -> Path:
    """Puts itself before each of these commands; the folder of what it counts."""
    calls = host.root.parent / "calls"
    calls.mkdir()
    for name in PROGRAMS:
        text = (host.commands / name).read_text().removeprefix("#!/bin/bash\n")
        host.command(name, _COUNTED.format(name=name) + text)
    return calls


def moments(calls: Path) -> list[tuple[str, int, str]]:
    """Each call that was counted, with each fault; counted anew from here."""
    found = []
    for file in sorted(calls.iterdir()):
        found += [(file.name, number + 1, fault) for number in range(file.stat().st_size) for fault in FAULTS]
        file.unlink()
    return found


def with_fault(host: Folder, calls: Path, moment: tuple[str, int, str], *words: str) -> tuple[int, str]:
    name, number, fault = moment
    for file in calls.iterdir():
        file.unlink()
    (calls / "fault").write_text(f"{name} {number}\n")
    (calls / "instead").write_text(FAULTS[fault])
    done = host.bash(program(*words), parts=())
    (calls / "fault").unlink()
    return done.returncode, done.stdout + done.stderr


@ONLY
@pytest.mark.parametrize("way", ["start", "service"])
def test_a_command_that_goes_wrong_loses_nobody_anything(folder: Folder, tmp_path: Path, only: bool, way: str) -> None:
    host = handover_kit.with_a_kernel(made(folder), only=only)
    calls = counted(host)
    kept = Left(0, "", "", tmp_path / "before")
    if way == "start":
        shutil.copytree(host.root, kept.folder, symlinks=True)
    with vm_locked(host):
        run(host, "hook", "103", "pre-start")
    assert with_the_vm(host)
    every = moments(calls)
    if way == "service":
        shutil.copytree(host.root, kept.folder, symlinks=True)
        run(host, "reconcile")
        every = moments(calls)
    assert len(every) > 30
    wrong = []
    for moment in sampling.sample(every, SAMPLE, f"faults {way} {only}"):
        kept.back(host)
        if way == "start":
            with vm_locked(host):
                status, said = with_fault(host, calls, moment, "hook", "103", "pre-start")
            if status == 0 and not with_the_vm(host):
                wrong.append((moment, "the VM starts without its card", said))
        else:
            _, said = with_fault(host, calls, moment, "reconcile")
        if two_users(host):
            wrong.append((moment, "it has two users", said))
        for _ in range(2):
            run(host, "reconcile")
        if not at_home(host, only=only) or state(host) not in ("", "HELD"):
            wrong.append((moment, f"{state(host)}: not everybody has everything again", said))
    assert wrong == [], f"HOMELAB_SEED={sampling.SEED}"


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (
            'mkdir -p "$p/task" "$p/fd"; ln -sfn .. "$p/task/40960"; : >"$p/maps"; echo mpd >"$p/comm"; '
            'ln -sfn /dev/null "$p/fd/3"; echo 0::/system.slice/mpd.service >"$p/cgroup"',
            "in use by mpd (PID 40960 of mpd.service)",
        ),
        ("echo stat --cached >$ROOT/fails", "who has its sound open can't be told"),
    ],
)
def test_sound_that_somebody_has_open_when_the_modules_are_gone_is_not_unbound(
    folder: Folder, happens: str, said: str
) -> None:
    """Its numbers are here those of /dev/null, which can be opened."""
    host = handover_kit.with_a_kernel(made(folder), only=True)
    handover_kit.with_a_stat_that_can_fail(host)
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/dev", "1:3\n")
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/uevent", "DEVNAME=snd/controlC1\n")
    (host.root / "dev/snd").mkdir()
    (host.root / "dev/snd/controlC1").symlink_to("/dev/null")
    command = (host.commands / "systemd-run").read_text().split("\n", 1)[1]
    host.command("systemd-run", f'p=$ROOT/proc/40960\n[[ "$*" != *"rmmod nvidia" ]] || {{ {happens}; }}\n{command}')
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert at_home(host, only=True) and "step_unbind big" not in host.read("/asked")
