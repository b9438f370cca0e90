"""What a handover costs: from `qm start` to the card on vfio-pci, and from `qm stop` until its container runs again, on a lab's host, over SSH, as users
have it; and what a host pays for it in an hour in which nothing happens.

The peer is the bare floor: a hookscript of a dozen lines that shuts the container down, unbinds, binds, and back, and looks at nothing: neither at who has
the card open nor whether it is alive, notes nothing, and gives nothing a time limit. Both are called by the same `qm`, in turn.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from homelab.remote import agent
from lab import Lab
from remote_scripts.both.handover import Wanted
from remote_scripts.notes.card import Card
from tests.bench import programs
from tests.bench.errors import BenchError
from tests.bench.report import Measured

SCENARIO = "phoenix"
VM, CONTAINER = 103, 950
CARD = {"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}
SNIPPETS = "var/lib/vz/snippets"
BARE = f"""\
#!/bin/bash
# Nothing is looked at, noted or bounded.
bus=$HOMELAB_ROOT/sys/bus/pci
case $2 in
  pre-start)
    pct shutdown {CONTAINER} --timeout 60 --forceStop 1
    for one in {" ".join(CARD)}; do
      echo vfio-pci >$bus/devices/$one/driver_override
      echo $one >$bus/devices/$one/driver/unbind
      echo $one >$bus/drivers/vfio-pci/bind
    done
    ;;
  post-stop)
    for one in {" ".join(CARD)}; do
      echo >$bus/devices/$one/driver_override
      echo $one >$bus/devices/$one/driver/unbind
      echo $one >$bus/drivers_probe
    done
    pct start {CONTAINER}
    ;;
esac
"""
#: How long it is waited for a card to be back, in seconds.
PATIENCE_SECONDS = 300.0


def measure_handover(folder: Path, rounds: int) -> list[Measured]:
    """Both ways of both hookscripts, in turn.

    :param folder: for the lab's host.
    :raises BenchError: one of them doesn't do it.
    """
    results = {
        name: Measured(name, title)
        for name, title in (
            ("bareTake", "bare hookscript: qm start to the card on vfio-pci"),
            ("take", "handover: qm start to the card on vfio-pci"),
            ("bareReturn", "bare hookscript: qm stop to the container running again"),
            ("return", "handover: qm stop to the container running again"),
            ("program", "of all these, what one simulated program costs (`systemctl is-active`)"),
            ("idle", "an hour without a start: sixty visits of the timer, each with one simulated program"),
        )
    }
    with Lab.start(SCENARIO, state=folder) as lab:
        _prepare(lab)

        def measured(name: str, do: Callable[[], object]) -> None:
            with programs.processor_time(lab, folder) as used:
                begun = time.monotonic()
                do()
                results[name].seconds.append(time.monotonic() - begun)
                lab.wait_idle()
                time.sleep(1)  # what the simulated host does a while after a VM's start
                results[name].host_cpu.append(used())

        for _ in range(rounds + 1):
            for names, script in ((("bareTake", "bareReturn"), "bare.sh"), (("take", "return"), "homelab-handover.sh")):
                lab.run(f"qm set {VM} --hookscript local:snippets/{script}")
                measured(names[0], lambda: _ssh(lab, f"qm start {VM}"))
                _require(_driver(lab) == "vfio-pci" and not _runs(lab), lab, f"{script}: the card on vfio-pci")
                measured(names[1], lambda: _stop(lab))
                _require(_driver(lab) == "nvidia", lab, f"{script}: the card with its driver")
            measured("program", lambda: _ssh(lab, "systemctl is-active cron.service"))
            measured("idle", lambda: _ssh(lab, "for _ in $(seq 60); do systemctl start homelab-handover.service; done"))
    for one in results.values():
        del one.seconds[0], one.host_cpu[0]  # the first warms up
    return list(results.values())


def _ssh(lab: Lab, command: str) -> None:
    """A command of a user's: what it starts is the lab's, whose processor time is measured."""
    way, options = lab.connection, ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    words = ["ssh", "-p", str(way["port"]), "-i", way["privateKeyFile"], *(f"-o{option}" for option in options)]
    subprocess.run([*words, f"root@{way['host']}", command], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _prepare(lab: Lab) -> None:
    lab.run("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    lab.run(f"qm stop {VM}")
    asked = agent.request("handover", Wanted(cards=(Card(name="big", functions=CARD, vms=(VM,)),)))
    lab.run(agent.command_to_put("root"), stdin=agent.put("bench"))
    lab.run(agent.command("apply", "root", "bench"), stdin=asked)
    lab.run("systemctl stop homelab-handover.timer")
    lab.run(f"qm set {VM} --onboot 0 --hostpci0 0000:01:00,driver=keep,pcie=1")
    script = lab.root / SNIPPETS / "bare.sh"
    script.write_text(BARE, encoding="utf-8")
    script.chmod(0o755)
    lab.run("modprobe vfio-pci")


def _driver(lab: Lab) -> str:
    link = lab.root / "sys/bus/pci/devices" / next(iter(CARD)) / "driver"
    return link.readlink().name if link.is_symlink() else ""


def _runs(lab: Lab) -> bool:
    return lab.run(f"pct status {CONTAINER}").stdout == "status: running\n"


def _stop(lab: Lab) -> None:
    _ssh(lab, f"qm stop {VM}")
    deadline = time.monotonic() + PATIENCE_SECONDS
    state = lab.root / "var/lib/homelab/handover/big.state"
    while state.exists() or not _runs(lab):
        _require(time.monotonic() < deadline, lab, f"the card back within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.02)


def _require(right: bool, lab: Lab, wanted: str) -> None:
    if right:
        return
    story = lab.root / "var/lib/homelab/handover/log"
    raise BenchError(
        wanted,
        f"driver {_driver(lab) or 'none'}; {story.read_text(encoding='utf-8')[-800:] if story.exists() else 'no story'}",
        "only what does the same can be compared",
        "see tests/bench/handover.py",
    )
