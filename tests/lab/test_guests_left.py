"""What a `destroy` says of guests of the stack's making that are still there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab.provider import host_probe
from homelab.provider.host_probe import HostProbeWork
from homelab.resources.host_probe import HostProbe
from lab import Lab
from tests.lab.test_proxmox_api import host_of


def test_a_guest_that_a_killed_run_has_made_and_no_state_knows_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(host_probe, "tell", said.append)
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        lab.run("qm set 103 --description 'Created by Pulumi: homelab/lab/sandbox 0123456789abcdef'")
        lab.run("qm create 104 --name other --description 'Created by Pulumi: homelab/lab2/other 0123456789abcdef'")
        host = host_of(lab).model_dump(mode="json", by_alias=True)
        host["api"]["tokenSecret"] = lab.api["tokenSecret"]
        stack = {"hosts": json.dumps({"pve": host}), "allowPlainSecrets": "true"}
        work = HostProbeWork(stack, "urn:pulumi:lab::homelab::homelab:host:Probe::pve-probe")
        nothing = HostProbe.Outputs(
            iommu_words="", vfio_words="", functions={}, by_hand=[], gpus={}, generation={}, stale=False
        )
        work.delete(HostProbe.Inputs(host="pve", settings=""), nothing)
        assert len(said) == 1 and said[0].startswith("pve: VM 103 (") and "a run was killed" in said[0]
        assert "104" not in said[0] and (lab.root / "etc/pve/qemu-server/103.conf").exists()
