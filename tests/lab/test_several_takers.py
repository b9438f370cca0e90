"""Several VMs, several cards: a card that VMs alone have in turn, one that two of them want, and a VM of whose cards one is shared."""

from __future__ import annotations

from collections.abc import Callable

from remote_scripts.notes.card import Card
from tests.lab.host_kit import Host
from tests.lab.test_handover import BIG, OTHER, SMALL, drivers, host_as_made, install, runs, state, story
from tests.waiting import wait_until

__all__ = ["host_as_made"]


def shared(host: Host, big: tuple[int, ...], small: tuple[int, ...] = ()) -> None:
    """What `up` leaves where these VMs may take the cards; VM 104 is made, and container 950 is off."""
    host.output(
        "pvesh create /nodes/phoenix/qemu --vmid 104 --name second --memory 512 --machine q35 --bios ovmf; pct stop 950"
    )
    cards = [Card(name="big", functions=BIG.functions, vms=big)]
    cards += [Card(name="small", functions=SMALL.functions, vms=small)] if small else []
    install(host, cards, 104)


def test_a_card_that_vms_alone_share_goes_to_the_one_that_starts(host_as_made: Callable[..., Host]) -> None:
    """No container has it; what a lease moves in `up`, starting the other one does here, with nothing of `up`."""
    host = host_as_made()
    shared(host, (103, 104))
    host.output("qm set 104 --hostpci0 0000:01:00,driver=keep,pcie=1")
    host.output("qm start 103")
    said = host.run("qm start 104")
    assert said.returncode != 0 and "VM 103" in said.stdout + said.stderr
    assert host.output("qm status 103") == "status: running\n" and state(host) == "VM"
    host.output("qm stop 103; qm start 104")
    assert state(host) == "VM" and drivers(host)[:2] == ["vfio-pci", "vfio-pci"], story(host)
    assert "VM 104 has it" in story(host) and host.output("qm status 104") == "status: running\n"
    host.output("qm stop 104")
    wait_until(lambda: state(host) == "HOST")
    assert drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"] and not runs(host), "it was off before"


def test_a_vm_that_gets_only_one_of_its_cards_gets_none(host_as_made: Callable[..., Host]) -> None:
    host = host_as_made()
    shared(host, (103,), (103, 104))
    host.output(
        "qm set 104 --hostpci0 0000:02:00,driver=keep,pcie=1; qm set 103 --hostpci1 0000:02:00,driver=keep,pcie=1"
    )
    host.output("qm start 104")
    assert drivers(host) == ["nvidia", "snd_hda_intel", "vfio-pci"]
    said = host.run("qm start 103")
    assert said.returncode != 0 and "gpus.small" in said.stdout + said.stderr
    assert "VM 104 has it since" in said.stdout + said.stderr
    assert drivers(host) == ["nvidia", "snd_hda_intel", "vfio-pci"], story(host)
    assert state(host) == "HELD"
    host.output("qm stop 104")
    wait_until(lambda: host.driver(OTHER) == "nvidia")
    host.output("systemctl start homelab-handover.service; qm start 103")
    assert drivers(host) == ["vfio-pci"] * 3, story(host)


def test_a_vm_of_whose_cards_one_is_shared_keeps_the_other(host_as_made: Callable[..., Host]) -> None:
    """The other one, of the same model, is the VM's alone: bound before, and neither taken nor given back; nor is it in the way of the shared one's return."""
    host = host_as_made(twin=True)
    bus = "$HOMELAB_ROOT/sys/bus/pci"
    for one in (OTHER, "0000:02:00.1"):
        host.output(
            f"echo vfio-pci >{bus}/devices/{one}/driver_override; echo {one} >{bus}/devices/{one}/driver/unbind; echo {one} >{bus}/drivers_probe"
        )
    host.output("qm set 103 --hostpci1 0000:02:00,pcie=1; qm start 103")
    assert drivers(host) == ["vfio-pci"] * 3 and state(host) == "VM" and not runs(host)
    host.output("qm stop 103")
    wait_until(lambda: state(host) == "HOST")
    assert drivers(host) == ["nvidia", "snd_hda_intel", "vfio-pci"] and runs(host), story(host)
