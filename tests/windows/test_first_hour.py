"""From an address and a password to a bound card, and back, on a Windows PC: what is asserted is the host's state and the engine's event log."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from tests.waiting import PATIENCE
from tests.windows.pc import Pc

pytestmark = [pytest.mark.windows, pytest.mark.timeout(10 * PATIENCE)]

CARD, MAPPING = "0000:01:00.0", "etc/pve/mapping/pci.cfg"
# Wine brings no CTRL_BREAK to another process group (GenerateConsoleCtrlEvent: "Invalid handle"). So the engine waits five seconds for its first
# plugin's end, has none left for the others of its five, and says this of them at the end of a run. Everything is done by then.
_OF_WINE = re.compile(r"Detected that .+pulumi-resource-(command\.exe|homelab\.cmd) exited prematurely")


class Run:
    """One run of the CLI under Wine, without what it says because of Wine."""

    def __init__(self, output: str, events: Path) -> None:
        self.output = output
        logged = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
        said = [one["diagnosticEvent"] for one in logged if "diagnosticEvent" in one]
        self.errors = [
            one["message"] for one in said if one["severity"] == "error" and not _OF_WINE.search(one["message"])
        ]
        self.ends = [one["summaryEvent"] for one in logged if "summaryEvent" in one]
        steps: list[dict[str, Any]] = [one["resOutputsEvent"]["metadata"] for one in logged if "resOutputsEvent" in one]
        self.changed = {
            step["urn"].rpartition("::")[2] for step in steps if step["op"] not in ("same", "read", "refresh")
        }


def driver(lab: Lab) -> str:
    return (lab.root / "sys/bus/pci/devices" / CARD / "driver").readlink().name


def test_init_preview_up_refresh_show_doctor_destroy(windows_pc: Pc, tmp_path: Path) -> None:
    """In a folder with blanks and umlauts, a checkout with Windows' line ends, and settings that PowerShell 5.1 has written as UTF-16 with `>`
    are read by `show`; output goes to a pipe, so in Windows' code page."""
    folder = tmp_path / "Jürgens Häuser" / "homelab"
    windows_pc.clone(folder)
    (folder / "state").mkdir()
    (home,) = (one for one in windows_pc.home.iterdir() if one.name != "Public")  # Wine names it as this machine's user
    shutil.rmtree(home / ".ssh", ignore_errors=True)
    own = {
        "PULUMI_BACKEND_URL": f"file://Z:{folder.as_posix()}/state?metadata=skip",
        "PULUMI_CONFIG_PASSPHRASE": "correct horse",
        "PULUMI_DEBUG_COMMANDS": "true",
    }

    def pulumi(verb: str, *options: str) -> Run:
        log = folder / f"{verb}{len(list(folder.glob('*.jsonl')))}.jsonl"
        yes = [] if verb == "preview" else ["--yes", "--skip-preview"]
        where = ["--stack", "homelab", "--non-interactive", "--event-log", log.name]
        done = windows_pc.run(folder, "pulumi.exe", verb, *yes, *options, *where, **own)
        assert log.exists(), done.stdout
        return Run(done.stdout, log)

    def homelab(*words: str, **more: str) -> str:
        done = windows_pc.run(folder, windows_pc.python, "-m", "homelab", *words, **own, **more)
        assert done.returncode == 0, done.stdout
        return done.stdout

    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        ssh, api = lab.connection, lab.api
        # The password comes in once; from then on a key in %USERPROFILE%\.ssh logs in.
        shown = homelab(
            *("init", ssh["host"], "--port", str(ssh["port"]), "--api-port", str(api["port"])),
            *("--host-key", ssh["hostKey"], "--card", "rtx5090=vm:103", "--yes", "--no-preview"),
            HOMELAB_PASSWORD=api["password"],
        )
        assert "homelab is set up." in shown and api["password"] not in shown
        assert (home / ".ssh" / "homelab_ed25519").exists()

        stock = lab.snapshot()
        previewed = pulumi("preview")
        assert previewed.errors == [] and "reboot: one, because" in previewed.output
        assert lab.snapshot() == stock and driver(lab) == "nouveau"

        first = pulumi("up")
        assert first.errors == [] and "pve-booted" in first.changed, first.output
        assert driver(lab) == "vfio-pci"
        assert [boot["reason"] for boot in lab.boots()] == ["start", "reboot"]
        assert "hostpci0: mapping=rtx5090,pcie=1" in lab.run("qm config 103").stdout

        again = pulumi("up", "--refresh")
        assert again.errors == [] and again.changed == set(), again.output

        settings = (folder / "Pulumi.homelab.yaml").read_text(encoding="utf-8")
        (folder / "utf-16.yaml").write_text(settings, encoding="utf-16")
        assert "VM 103 (Sandbox)" in homelab("show", "--config-file", "utf-16.yaml")
        homelab("doctor")

        gone = pulumi("destroy")
        assert gone.errors == [] and "pve-booted" in gone.changed, gone.output
        left = lab.snapshot()
        # Proxmox VE leaves the list of mappings behind, empty.
        assert (lab.root / MAPPING).read_text(encoding="utf-8") == "" and left.pop(MAPPING)
        assert left == stock
