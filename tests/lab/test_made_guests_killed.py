"""A run that is killed after any change while it makes, changes or removes a guest: the next one goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from homelab.errors import HomelabError
from homelab.guest.mark import id_in_use
from homelab.guest.work import GuestWork
from homelab.remote.proxmox import api as api_module
from lab import Lab
from tests.lab.killed_kit import until_done
from tests.lab.stack_kit import ID, NODE, TEMPLATE, made_guest, put_template, stack_of
from tests.waiting import wait_until

T = TypeVar("T")
VM = made_guest("qemu", "c", {"name": "c", "memory": "512", "net0": "virtio,bridge=vmbr0"})
CONTAINER_CONFIG = {"hostname": "c", "memory": "512", "rootfs": "local-lvm:8", "ostemplate": f"local:vztmpl/{TEMPLATE}"}
CONTAINER = made_guest("lxc", "c", CONTAINER_CONFIG)


@pytest.mark.parametrize(("lock", "waits"), [({"lock": "create"}, True), ({"lock": "backup"}, False), ({}, False)])
def test_one_that_a_task_still_makes_is_waited_for(lock: dict[str, str], waits: bool) -> None:
    """Its description, by which it is known, comes with the task's end."""
    error = id_in_use(VM.kind, VM.vmid, VM.mark, lock)
    assert ("wait until the task on the node has ended" in error.next) is waits and "choose another vmid" in error.next


@pytest.mark.parametrize("kind", ["VM", "container"])
def test_a_run_that_is_killed_after_any_change_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        put_template(lab)
        work = GuestWork(stack_of(lab))
        inputs = VM if kind == "VM" else CONTAINER
        program, folder = ("qm", "qemu-server") if kind == "VM" else ("pct", "lxc")
        conf, tasks = lab.root / f"etc/pve/nodes/{NODE}/{folder}/{ID}.conf", lab.root / "var/log/pve/tasks/active"

        def all_of(act: Callable[[], T]) -> T:
            def once() -> T:
                # A task of the killed run comes to its end. Its lock is no sign of that: one that destroys has none at last.
                wait_until(lambda: not tasks.exists() or not tasks.read_text())
                return act()

            return until_done(monkeypatch, once)

        made = all_of(lambda: work.create(inputs))
        assert "memory: 512\n" in conf.read_text() and made.instance in conf.read_text()
        lab.run(f"{program} start {ID}")
        more = dataclasses.replace(inputs, config={**inputs.config, "memory": "1024"})
        changed = all_of(lambda: work.update(more, inputs, made))
        assert "memory: 1024\n" in conf.read_text()
        assert "status: running" in lab.run(f"{program} status {ID}").stdout
        all_of(lambda: work.delete(more, changed))
        assert not conf.exists() and not list((lab.root / "var/lib/homelab").rglob(f"*/{ID}"))


def test_a_removal_that_proxmox_ve_has_ended_half_way_is_gone_on_with(tmp_path: Path) -> None:
    """As where a node has lost its quorum just before: a job's lock stays for two minutes. A container's is its owner's to take away."""
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        put_template(lab)
        work, held = GuestWork(stack_of(lab)), lab.root / "etc/pve/priv/lock/file-replication_cfg"
        for inputs in (VM, CONTAINER):
            made = work.create(inputs)
            held.mkdir()
            with pytest.raises(HomelabError, match="got lock request timeout"):
                work.delete(inputs, made)
            held.rmdir()
            if inputs is CONTAINER:
                with pytest.raises(HomelabError, match=r"locked \(destroyed\)"):
                    work.delete(inputs, made)
                lab.run(f"pct unlock {ID}; pct destroy {ID}")
            work.delete(inputs, made)
            assert not list(lab.root.glob(f"etc/pve/nodes/*/*/{ID}.conf"))
