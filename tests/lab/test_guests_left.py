"""What a `destroy` says of what stays: guests of the stack's making, copies of files that were edited by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab.host import work as host_probe
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from lab import Lab
from tests.lab.stack_kit import PROBED, stack_of


def test_a_guest_of_a_killed_run_and_files_that_were_edited_by_hand_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(host_probe, "tell", said.append)
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        lab.run("qm set 103 --description 'Created by Pulumi: homelab/lab/sandbox 0123456789abcdef'")
        lab.run("qm create 104 --name other --description 'Created by Pulumi: homelab/lab2/other 0123456789abcdef'")
        for path in ("a.0a1b2c3d", "b.0a1b2c3d"):
            lab.run(
                f'mkdir -p "$HOMELAB_ROOT/var/backups/homelab/etc"; echo edited > "$HOMELAB_ROOT/var/backups/homelab/etc/{path}"'
            )
        work = HostProbeWork(stack_of(lab), "urn:pulumi:lab::homelab::homelab:host:Probe::pve-probe")
        work.delete(HostProbe.Inputs(host="pve", settings=""), PROBED)
        kept = "/var/backups/homelab/etc/a.0a1b2c3d, /var/backups/homelab/etc/b.0a1b2c3d"
        assert said.pop(0).endswith(f"of any stack: files of this program's as they had been edited by hand: {kept}")
        assert (
            said.pop()
            == "`pulumi stack rm --preserve-config` removes the stack; without that, its settings file goes, too"
        )
        assert len(said) == 1 and said[0].startswith("pve: VM 103 (") and "a run was killed" in said[0]
        assert "104" not in said[0] and (lab.root / "etc/pve/qemu-server/103.conf").exists()
