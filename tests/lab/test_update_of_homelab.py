"""An update of homelab, which does its steps again, beside a VM with NVIDIA's stack that is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab.remote import agent
from lab import Lab
from tests import forked_agent
from tests.lab.engine_kit import InProcess, Run
from tests.lab.stack_kit import host_settings, reached

pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")

# What an agent is made of.
_CACHES: tuple[Any, ...] = (
    agent._digest,
    agent.code_of,
    agent.version,
    agent.archive,
    agent._archive_text,
    forked_agent._codes,
)
OF_THE_VM = {"sandbox-agent", "sandbox-packages", "sandbox-reboot", "sandbox-verified"}


def names(run: Run) -> set[str]:
    assert run.error is None, run
    return {name for _, name in run.steps}


def test_a_vm_that_is_off_is_left_as_it_is_by_an_update_of_homelab_and_done_once_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        host = {**host_settings(lab), "gpus": {"rtx5090": dict[str, Any](match="10de:2b85")}}
        vm: dict[str, Any] = {
            "host": "pve",
            "vmid": 103,
            "gpus": ["rtx5090"],
            "nvidia": {},
            **reached(lab, 103),
            "address": "agent",
        }
        stack = InProcess(lab, tmp_path / "stack", {"hosts": {"pve": host}, "vms": {"sandbox": vm}})
        monkeypatch.chdir(stack.folder)
        forked_agent.in_place_of_what_is_sent(monkeypatch, lab)
        lab.wait_guest(103, 60)
        assert names(stack.up(refresh=False)) >= OF_THE_VM
        lab.run("qm shutdown 103")

        # Another setting of the host alone.
        host["gpus"]["rtx5090"]["keepAwake"] = True
        assert stack.preview().error is None
        changed = names(stack.up())
        assert "pve-values" in changed and not OF_THE_VM & changed
        # Its card comes back, and it stays off.
        lab.run("qm set 103 --delete hostpci0")
        mended = names(stack.up())
        assert "sandbox-cards" in mended and not OF_THE_VM & mended
        # A step of its own.
        vm["nvidia"]["driver"] = "570"
        for run in (stack.preview(), stack.up()):
            assert "vms.sandbox: a guest that runs" in run.refused and "power: running" in run.refused
        del vm["nvidia"]["driver"]

        # Each layer's modules are others.
        source = agent._source
        monkeypatch.setattr(agent, "_source", lambda name: source(name) + "#\n" * name.endswith(".tools.system"))
        for cache in _CACHES:
            cache.cache_clear()
        try:
            updated = stack.up(refresh=False)
            assert "pve-probe" in names(updated) and not OF_THE_VM & names(updated)
            assert any("VM 103 is off" in line for line in updated.told)
            lab.run("qm start 103")
            lab.wait_guest(103, 60)
            assert {"sandbox-system", "sandbox-packages"} <= names(stack.up(refresh=False))
            assert names(stack.up(refresh=False)) == set()
        finally:
            for cache in _CACHES:
                cache.cache_clear()
