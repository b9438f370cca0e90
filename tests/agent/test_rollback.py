"""remote_scripts/files/rollback.sh, as the timer of a boot on trial runs it: in a real shell, with an agent that gives a verdict.

Which verdict: test_trial.py. What the restart leads to: tests/lab/test_boots.py, with each boot loader.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from homelab.remote import agent, scripts
from tests.agent.kit import Host, bash, command
from tests.waiting import PATIENCE

HOME = "/var/lib/homelab"
AGENT = agent.place("test")
TRIAL, TAKEN_BACK, ROLLED_BACK = f"{HOME}/trial", f"{HOME}/taken-back", f"{HOME}/rolled-back"
RESTARTING = "/run/homelab/restarting"
REBOOTS = ["reboot", "reboot --force", "reboot --force --force"]
RUN = 'exec sh "$HOMELAB_ROOT/var/lib/homelab/rollback" 20'
#: With some folders on a file system that has become read-only.
READ_ONLY = """\
set -eu
for place in etc var boot; do "$MOUNT" --bind "$HOMELAB_ROOT/$place" "$HOMELAB_ROOT/$place"; "$MOUNT" -o remount,ro,bind "$HOMELAB_ROOT/$place"; done
"""


def says(host: Host, verdict: str, first: str = "") -> None:
    """The agent on the host answers that."""
    text = f"import os\nroot = os.environ['HOMELAB_ROOT']\nopen(root + '/run/asked', 'a').write(input())\n{first}\nprint('\"{verdict}\"')\n"
    host.write(AGENT, text)


@pytest.fixture
def tried(host: Host) -> Host:
    """In a boot on trial that is to be given back."""
    host.write(TRIAL, "boot before\nloader grub\n")
    host.write(f"{HOME}/rollback", scripts.file("rollback.sh"))
    host.write("/proc/cmdline", "quiet homelab.trial\n")
    host.write("/proc/sys/kernel/random/boot_id", "here\n")
    for path in ("/dev/kmsg", "/proc/sysrq-trigger"):
        host.write(path, "")
    command(host, "systemctl", 'echo "$*" >>"$HOMELAB_ROOT/run/reboots"')
    says(host, "give back: it hung")
    return host


def elapse(host: Host, **environment: str) -> None:
    """What the timer runs. (A status that isn't 0 would start it again every 10 s.)"""
    done = bash(host, RUN, REBOOT_SECONDS="0", RETRY_SECONDS="0", **environment)
    assert done.returncode == 0, done.stderr


def elapse_read_only(host: Host) -> None:
    namespace = [shutil.which("unshare") or "unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = shutil.which("mount") or "mount"
    if subprocess.run([*namespace, mount, "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount anything in a namespace of their own")
    line = f"{' '.join(namespace)} bash -c {RUN!r}".replace(RUN, READ_ONLY + RUN)
    done = bash(host, line, REBOOT_SECONDS="0", RETRY_SECONDS="0", MOUNT=mount)
    assert done.returncode == 0, done.stderr


def reboots(host: Host) -> list[str]:
    return host.read("/run/reboots").splitlines() if host.exists("/run/reboots") else []


def next_boot(host: Host) -> None:
    """Of what had booted before."""
    host.write("/proc/cmdline", "quiet\n")
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    shutil.rmtree(host.root / "run")
    (host.root / "run").mkdir()


def test_a_boot_that_is_not_in_order_is_restarted_whatever_that_takes(tried: Host) -> None:
    elapse(tried)
    assert tried.read("/run/asked") == '{"layer":"boot_verdict","input":{"seconds":20}}'
    assert tried.read(ROLLED_BACK) == "boot here it hung" and tried.exists(TAKEN_BACK) and not tried.exists(TRIAL)
    # Where none of them ends the boot, the kernel does; who sits before the host is told.
    assert reboots(tried) == REBOOTS and tried.read("/proc/sysrq-trigger") == "b"
    assert "homelab: this host could not be restarted: switch it off and on by hand" in tried.read("/dev/kmsg")


def test_a_boot_that_is_in_order_is_left_alone(tried: Host) -> None:
    says(tried, "stay")
    before = tried.tree()
    elapse(tried)
    assert tried.tree() == before and not tried.exists(RESTARTING) and not reboots(tried)


def test_the_boot_in_which_it_was_armed_is_left_alone(tried: Host) -> None:
    tried.write(TRIAL, "loader grub\nboot here\n")
    before = tried.tree()
    elapse(tried)
    assert tried.tree() == before and not reboots(tried)


@pytest.mark.parametrize("what", ["none", "a broken one", "no Python", "one that hangs"])
def test_without_an_answer_of_the_agent_a_boot_is_given_back(tried: Host, what: str) -> None:
    """A restart needs nothing else; what is left is taken away once there is an agent."""
    if what == "none":
        (tried.root / AGENT[1:]).unlink()
    elif what == "a broken one":
        tried.write(AGENT, "half of")
    elif what == "no Python":
        command(tried, "timeout", 'case "$*" in *python3*) exit 127 ;; esac; exec /usr/bin/timeout "$@"')
    else:
        says(tried, "stay", f"import time; time.sleep({PATIENCE})")
    elapse(tried, STEP_SECONDS="0.5")
    told = "was not confirmed within 20 s of its start, and this program's agent doesn't say whether it is in order"
    assert tried.read(ROLLED_BACK) == f"boot here {told}" and reboots(tried) == REBOOTS
    for _ in range(2):
        next_boot(tried)
        elapse(tried, STEP_SECONDS="0.5")
        assert not reboots(tried), "there is nothing to restart for"


def test_an_agent_that_is_whole_is_asked_where_another_stacks_is_broken(tried: Host) -> None:
    says(tried, "stay")
    tried.write(agent.place("a-broken"), "half")
    elapse(tried)
    assert tried.exists("/run/asked") and not reboots(tried)


@pytest.mark.parametrize("how", ["fails", "hangs"])
@pytest.mark.parametrize("name", ["mv", "sync", "cp"])
def test_a_command_that_fails_or_hangs_does_not_stop_it(tried: Host, name: str, how: str) -> None:
    command(tried, name, "exit 1" if how == "fails" else f"exec sleep {PATIENCE}")
    elapse(tried, **({"STEP_SECONDS": "0.3"} if how == "hangs" else {}))
    assert reboots(tried) == REBOOTS


def test_a_host_that_can_write_nothing_is_restarted_once(tried: Host) -> None:
    """The default never changed: nothing need be written for it."""
    before = tried.lasting()
    elapse_read_only(tried)
    assert reboots(tried) == REBOOTS and tried.lasting() == before
    next_boot(tried)
    elapse_read_only(tried)
    assert not reboots(tried), "there is nothing to restart for"


@pytest.mark.parametrize("is_there", [True, False])
def test_an_old_boot_is_left_alone_whatever_the_agent_says(tried: Host, is_there: bool) -> None:
    """It isn't the trial, and healthy: its guests run. The agent takes away what is left."""
    next_boot(tried)
    if not is_there:
        (tried.root / AGENT[1:]).unlink()
    before = tried.lasting()
    elapse(tried)
    elapse_read_only(tried)
    assert tried.lasting() == before and tried.exists("/run/asked") is is_there and not reboots(tried)


@pytest.mark.parametrize("moment", ["restarting", "taken-back"])
def test_a_program_that_is_killed_before_its_restart_goes_on_with_it(tried: Host, moment: str) -> None:
    """Restart=on-failure starts it again after 10 s."""
    says(tried, "stay")
    tried.write(RESTARTING, "boot x was not confirmed")
    if moment == "taken-back":
        (tried.root / TRIAL[1:]).rename(tried.root / TAKEN_BACK[1:])
    elapse(tried)
    assert tried.read(ROLLED_BACK) == "boot x was not confirmed"
    assert reboots(tried) == REBOOTS and tried.exists(TAKEN_BACK)


def test_a_program_that_is_killed_after_a_confirmation_restarts_nothing(tried: Host) -> None:
    """The confirmation renamed the note first."""
    tried.write(RESTARTING, "boot x was not confirmed")
    (tried.root / TRIAL[1:]).rename(tried.root / f"{HOME[1:]}/confirmed")
    elapse(tried)
    assert not reboots(tried) and not tried.exists(RESTARTING) and not tried.exists(ROLLED_BACK)


def test_a_confirmed_boot_is_not_undone(tried: Host) -> None:
    """It is confirmed while the agent looks at it."""
    says(tried, "give back: it hung", f"os.rename(root + '{TRIAL}', root + '{HOME}/confirmed')")
    elapse(tried)
    assert not reboots(tried) and not tried.exists(RESTARTING) and not tried.exists(ROLLED_BACK)
