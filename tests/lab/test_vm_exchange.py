"""Two running VMs exchange their cards in one `up`, at the same time, as Pulumi updates both."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from homelab.vm.cards import VmCard
from lab import Lab
from tests.lab.transaction_kit import World


def test_two_vms_exchange_their_cards(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab.start("two-identical", state=tmp_path / "lab") as lab:
        slots = ["0000:1d:00", "0000:1e:00"]
        lab.run("qm stop 103", check=False)
        for vmid in (103, 104):
            lab.run(f"qm destroy {vmid}", check=False)
            lab.run(f"qm create {vmid} --name vm{vmid} --machine q35 --memory 2048 && qm start {vmid}")
        world = World(lab, monkeypatch)
        first, second = (VmCard(f"c{n}", f"c{n}", slot, by_address=True) for n, slot in enumerate(slots))
        before = [world.conf(103), world.conf(104)]
        world.up(first, vmid=103, owner="p/s/a", shutdown=10)
        world.up(second, vmid=104, owner="p/s/b", shutdown=10)
        errors: list[Exception] = []

        def up(card: VmCard, vmid: int, owner: str) -> None:
            try:
                world.free(card.mapping, card.slot, vm103=(second.mapping,), vm104=(first.mapping,))
                for _ in range(3):
                    if world.up(card, vmid=vmid, owner=owner, shutdown=10).done:
                        return
                errors.append(AssertionError("changed three times"))
            except Exception as error:
                errors.append(error)

        mark = lab.mark()
        turns = ((second, 103, "p/s/a"), (first, 104, "p/s/b"))
        threads = [threading.Thread(target=up, args=arguments) for arguments in turns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert f"host={second.slot}" in world.conf(103) and f"host={first.slot}" in world.conf(104)
        assert world.power(mark).count("start") <= 4
        world.destroy(103, "p/s/a")
        world.destroy(104, "p/s/b")
        after = [world.conf(vmid).replace("boot:  ", "boot: ") for vmid in (103, 104)]  # the lab's own, without disks
        assert after == before and world.notes() == []
