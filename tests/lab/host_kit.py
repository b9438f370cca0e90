"""A lab host without a daemon, for the tests of its inside: installed, booted, commands run in its environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import kept, network
from lab.host.boot import BootResult
from lab.machine import Machine
from lab.processes import end_left_behind
from lab.scenario import Scenario, load_scenario
from tests import forked_agent

GPU_SCRIPT = """\
#!/bin/sh
case "$1" in prereqs) exit 0 ;; esac
bus=$HOMELAB_SYSROOT/sys/bus/pci
for address in {addresses}; do
  echo vfio-pci >"$bus/devices/$address/driver_override"
done
modprobe vfio-pci
for address in {addresses}; do
  if [ -e "$bus/devices/$address/driver" ]; then
    driver=$(readlink "$bus/devices/$address/driver")
    [ "${{driver##*/}}" = vfio-pci ] || echo "$address" >"$bus/devices/$address/driver/unbind"
  fi
  echo "$address" >"$bus/drivers_probe"
done
echo "early: $(readlink "$bus/devices/{first}/driver")" >"$HOMELAB_SYSROOT/dev/kmsg"
"""


def rebound(address: str, driver: str) -> str:
    """What a person types to have a running host give a PCI function to another driver."""
    device = f"$HOMELAB_ROOT/sys/bus/pci/devices/{address}"
    return (
        f"modprobe {driver} && {{ [ ! -e {device}/driver ] || echo {address} >{device}/driver/unbind; }} && "
        f"echo {driver} >{device}/driver_override && echo {address} >$HOMELAB_ROOT/sys/bus/pci/drivers_probe && "
        f"echo '(null)' >{device}/driver_override"
    )


def run_layer(
    machine: Machine, verb: str, layer: str, wanted: Any, *, ctid: int = 0
) -> subprocess.CompletedProcess[str]:
    """A layer of the host's agent, in the host's environment."""
    return forked_agent.asked(machine.environment(), verb, layer, wanted, ctid=ctid)


def ran(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command of a simulated system, to its end, however that is."""
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def succeeded(script: str, done: subprocess.CompletedProcess[str]) -> str:
    """What a script that must succeed has printed."""
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


class Host:
    """One installed scenario, switched off; `booted()` for a running one.

    Args:
        running: switched on when it was installed, which is done once in a run: a boot takes three times as long as to write what it leaves.
    """

    def __init__(self, state: Path, scenario: str | Scenario, *, running: bool = False) -> None:
        resolved = load_scenario(scenario) if isinstance(scenario, str) else scenario
        self.machine = Machine(state)
        self.root = self.machine.state / "root"
        if running and kept.write_running(resolved, self.machine.state):
            network.write(self.machine.state)
            return
        Machine.install(state, resolved)
        if running:
            self.booted()
            kept.keep_running(resolved, self.machine.state)

    def booted(self) -> Host:
        """The same host, powered on."""
        result = self.machine.boot("start")
        assert result.comes_up, result.problem
        return self

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """A script in bash, in the host's environment."""
        return ran(["bash", "-c", script], self.machine.environment(), self.root / "root")

    def output(self, script: str) -> str:
        """What a script that must succeed prints."""
        return succeeded(script, self.run(script))

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """A file of the host."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        target.chmod(mode)

    def reboot(self) -> BootResult:
        """Down and up again. No process outlives that, whichever it is."""
        end_left_behind(self.machine.state)
        self.machine.shutdown()
        return self.machine.boot("reboot")

    def driver(self, address: str) -> str | None:
        """The driver that has a device now."""
        link = self.root / "sys/bus/pci/devices" / address / "driver"
        return link.readlink().name if link.is_symlink() else None

    def groups(self) -> dict[str, int]:
        """IOMMU group by device, from sysfs."""
        found = (self.root / "sys/kernel/iommu_groups").glob("*/devices/*")
        return {path.name: int(path.parent.parent.name) for path in found}

    def modules(self) -> list[str]:
        """Loaded modules, from /proc/modules."""
        return [line.split()[0] for line in (self.root / "proc/modules").read_text(encoding="utf-8").splitlines()]

    def cmdline(self) -> str:
        """The running kernel's command line."""
        return (self.root / "proc/cmdline").read_text(encoding="utf-8").strip()

    def programs(self) -> list[dict[str, Any]]:
        """The log of programs."""
        log = self.machine.state / "log/programs.jsonl"
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    def bind_early(self, *addresses: str) -> None:
        """Put an init-top script into /etc that gives functions to vfio-pci, with the modules it needs."""
        script = GPU_SCRIPT.format(addresses=" ".join(addresses), first=addresses[0])
        self.write("/etc/initramfs-tools/scripts/init-top/give-gpu", script, 0o755)
        hook = (
            '#!/bin/sh\ncase "$1" in prereqs) exit 0 ;; esac\n'
            '. "${HOMELAB_ROOT:-}/usr/share/initramfs-tools/hook-functions"\nmanual_add_modules vfio_iommu_type1 vfio_pci\n'
        )
        self.write("/etc/initramfs-tools/hooks/give-gpu", hook, 0o755)
