"""A container under HA: pct asks the manager and ends at once, and the container follows."""

from __future__ import annotations

import pytest

from tests.scripts.conftest import Folder

# What pct is asked, and what becomes of the container, so many sleeps later.
PCT = """
echo "$1" >>$ROOT/asked
case $1 in
  status) echo "status: $(cat $ROOT/is)" ;;
  start) echo running >$ROOT/is-to-be ;;
  stop) echo stopped >$ROOT/is-to-be ;;
  shutdown) [[ -e $ROOT/deaf ]] || echo stopped >$ROOT/is-to-be ;;
esac
"""
# Time goes by with each sleep alone, twenty seconds of bash's own clock: nothing here takes as long as it would on a host.
SLEEP = """
sleep() {
  echo . >>$ROOT/slept
  SECONDS=$((SECONDS + 20))
  [[ ! -e $ROOT/is-to-be || $(wc -l <$ROOT/slept) -lt 3 ]] || mv $ROOT/is-to-be $ROOT/is
}
"""


@pytest.fixture
def host(folder: Folder) -> Folder:
    folder.write("is", "running\n")
    folder.write("etc/pve/ha/resources.cfg", "ct: 901\n\tstate started\n\nvm: 103\n")
    folder.command("pct", PCT)
    return folder


def power(host: Folder, text: str, otherwise: str = "fail", timeout: int = 600) -> str:
    done = host.bash(
        f"{SLEEP}CTID=901 TIMEOUT={timeout} OTHERWISE={otherwise}\ntake_lock\n{text}\n",
        parts=("lock", "container/power"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_container_under_ha_is_waited_for(host: Folder) -> None:
    power(host, "shut_down")
    assert host.read("is") == "stopped\n"
    power(host, "start_up")
    assert host.read("is") == "running\n" and "shutdown" in host.read("asked")


def test_one_that_doesnt_hear_is_stopped_by_ha_too(host: Folder) -> None:
    host.write("deaf", "")
    power(host, "! shut_down", timeout=1)  # and runs on, where the settings say so
    assert len(host.read("slept").splitlines()) >= 9  # what HA may take for it was waited for
    power(host, "shut_down", otherwise="stop", timeout=0)
    assert host.read("is") == "stopped\n"


@pytest.mark.parametrize(
    "services", ["ct: 9010\n", "ct: 90\n", "vm: 901\n", "", "ct: 901\n\tstate ignored\n\nct: 902\n\tstate started\n"]
)
def test_any_other_container_isnt_waited_for(host: Folder, services: str) -> None:
    host.write("etc/pve/ha/resources.cfg", services)
    power(host, "await_ha off 600")
    assert not (host.root / "slept").exists()
