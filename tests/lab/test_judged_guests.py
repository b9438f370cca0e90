"""Guests that are to be made, judged before: every mistake is named in one preview, and nothing is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab.judged.tree import Settings
from homelab.reading import planning
from homelab.remote import ssh
from homelab.settings import Container, Vm
from lab import Lab
from tests.lab.stack_kit import TEMPLATE, host_of, put_template


def test_the_hosts_own_code_names_all_mistakes_of_all_new_guests_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        put_template(lab)
        host, stock, mark = host_of(lab), lab.snapshot(), lab.mark()
        options = {"scsi0": "fast:32", "net0": "virtio,bridge=vmbr9", "scsi1": "local:8", "efidisk0": "nowhere:1"}
        options |= {"cores": "eight", "bios": "uefi", "name": "my vm", "scsi2": "local:8,cachee=none"}
        options |= {"net1": "virtio,bridge=vmbr0,tag=5000", "args": "-device x"}
        vm = Vm.model_validate({"host": "pve", "vmid": 300, "create": options})
        new = {
            "ostemplate": f"local:vztmpl/{TEMPLATE}",
            "rootfs": "fast:8",
            "net0": "name=eth0,bridge=vmbr9",
            "net1": "bridge=vmbr0",
        }
        container = Container.model_validate({"host": "pve", "ctid": 301, "gpuAssignment": "none", "create": new})
        message = "\n".join(map(str, planning.planned(Settings("pve", host, {"dev": vm}, {"ai": container})).refusals))
        for mistake in (
            "dev, made as its settings say", "efidisk0: storage 'nowhere' does not exist", "net0: bridge 'vmbr9' does not exist",
            "scsi0: storage 'fast' does not exist", "cores: type check ('integer') failed - got 'eight'",
            "bios: value 'uefi' does not have a value in the enumeration 'seabios, ovmf'",
            "name: invalid format - value does not look like a valid DNS name", "scsi2.cachee: property is not defined in schema",
            "net1.tag: value must have a maximum value of 4094", "net1.name: property is missing and it is not optional", "vms.dev.create without args", "ai, made as its settings say", "rootfs: storage 'fast' does not exist",
        ):  # fmt: skip
            assert mistake in message, message
        assert lab.snapshot() == stock and not [call for call in lab.api_calls(mark) if call["method"] != "GET"]

        good = {"scsi0": "local-lvm:32", "net0": "virtio,bridge=vmbr0", "sata0": "none,media=cdrom"}
        vm = Vm.model_validate({"host": "pve", "vmid": 300, "create": good})
        assert planning.planned(Settings("pve", host, {"dev": vm})).unread == []
        asked = ssh.Session.ask

        def without_modules(session: ssh.Session, verb: Any, layer: str, *rest: Any, **options: Any) -> dict[str, Any]:
            if layer == "judge_guests":
                return {"mistakes": {}, "unjudged": "Can't locate PVE"}
            return asked(session, verb, layer, *rest, **options)

        monkeypatch.setattr(ssh.Session, "ask", without_modules)
        (said,) = planning.planned(Settings("pve", host, {"dev": vm})).unread
        assert said.startswith(
            "Proxmox VE's own code couldn't be asked about new guests: Can't locate PVE; their making"
        )
