"""A lab host that runs, without Proxmox VE's API: layers run on it, it restarts, and all that a boot reads is compared."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from homelab.cards import remapping
from homelab.host import plan
from homelab.remote import agent
from homelab.settings import Host as HostSettings
from lab.host.boot import BootResult
from remote_scripts.both.confirm_boot import Wanted as ConfirmBoot
from tests.boot_layers import Asked, initramfs, iommu, vfio
from tests.lab.host_kit import Host, run_layer
from tests.lab.test_real_hosts import be_no_proxmox, read


class BootingHost(Host):
    """A running lab host; layers run in its environment."""

    def __init__(self, state: Path, scenario: str) -> None:
        super().__init__(state, scenario, running=True)
        be_no_proxmox(self.machine)

    def ask(self, verb: str, asked: Asked) -> subprocess.CompletedProcess[str]:
        """What a layer answers."""
        return run_layer(self.machine, verb, asked.layer, asked.wanted)

    def all(self, verb: str, *asked: Asked) -> None:
        """Layers that must succeed."""
        for one in asked:
            done = self.ask(verb, one)
            assert done.returncode == 0, done.stdout + done.stderr

    def restart(self, kind: str = "reboot") -> BootResult:
        """Down and up again."""
        self.machine.shutdown()
        result = self.machine.boot(kind)
        assert result.comes_up, result.problem
        be_no_proxmox(self.machine)
        return result

    def runs(self, words: str) -> None:
        """This boot has these words already: so they aren't tried first."""
        path = self.root / "proc/cmdline"
        path.write_text(f"{path.read_text().strip()} {words}\n")

    def put_agent(self) -> None:
        """As a stack's first resource does it."""
        command, environment = agent.command_to_put("root"), self.machine.environment()
        subprocess.run(["bash", "-c", command], input=agent.put("test"), env=environment, text=True, check=True)

    def confirm(self) -> dict[str, Any]:
        """As an `up` does it after the restart."""
        done = self.ask("apply", Asked("confirm_boot", ConfirmBoot()))
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def plan(self, wanted: HostSettings) -> plan.Wanted:
        """What is planned for these settings."""
        return plan.wanted(remapping.to_be(read(self.machine), wanted), wanted)

    def drivers(self) -> dict[str, str]:
        """PCI address -> driver."""
        devices = (self.root / "sys/bus/pci/devices").iterdir()
        return {one.name: link.readlink().name for one in devices if (link := one / "driver").is_symlink()}

    def files(self) -> dict[str, bytes]:
        """Everything that a boot reads, and our state."""
        folders = [self.root / "etc", self.root / "boot", self.root / "var/lib", self.machine.state / "esp"]
        return {
            path.relative_to(self.machine.state).as_posix(): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


def layers_of(want: plan.Wanted) -> list[Asked]:
    """What makes the boot of a host that is planned so, in its order."""
    return [iommu(want.iommu_words), initramfs(bool(want.vfio_words)), vfio(want.vfio_words)]
