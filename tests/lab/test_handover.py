"""A card that containers and a VM have in turn, on a lab's host: Proxmox VE's own start and stop, and what a host does when one goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.scenario import load_scenario, scenario_from
from remote_scripts.both.handover import Wanted
from remote_scripts.both.hookscript import Wanted as Hook
from remote_scripts.containers.container_text import edited
from remote_scripts.notes.card import Card
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.record import Record, State
from remote_scripts.pve.container_conf import conf_text, options_of
from remote_scripts.tools.plain import to_plain
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.lab.host_kit import Host, run_layer
from tests.waiting import wait_until

CARD, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
BIG = Card(name="big", functions={CARD: "10de:2b85", AUDIO: "10de:22e8"}, vms=(103,))
TWIN = ({"device": "2b85", "subsystem": "1043:89e3"}, {"device": "22e8", "subsystem": "1043:89e3"})
OLLAMA = {"pid": 4711, "comm": "ollama", "container": 950, "card": CARD}
PVE = {"8": ("8.4", "8.4.6"), "9": ("9.1", "9.1.13")}


def made(
    path: Path,
    pve: str = "9",
    version: str = "580.105.08",
    *,
    only: bool = False,
    twin: bool = False,
) -> Host:
    """A host whose VM 103 is off and takes the card from container 950; another card of the driver, unless `only`; of the same model, with `twin`."""
    data = load_scenario("phoenix").model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    data["nvidia"] = {**data["nvidia"], "version": version}
    if pve == "8":
        data |= {"pve": PVE["8"][0], "kernels": ["6.8.12-4-pve"]}
    data["qemu-server"] = PVE[pve][1]
    if only:
        data["pci"] = [one for one in data["pci"] if not one["address"].endswith("00:01.2")]
    for one in data["pci"] if twin else ():
        for card, first in zip(one.get("children", ()), TWIN, strict=False):
            if one["address"].endswith("00:01.2"):
                card.update(first)
    for one in data["guests"]:
        if one["id"] == 103:
            one["onboot"] = False
    host = Host(path, scenario_from(data, "changed", "phoenix"), running=True)
    host.output("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    install(host, (BIG,), 103)
    keep = "driver=keep," if pve == "9" else ""
    host.output(f"qm set 103 --onboot 0 --hostpci0 0000:01:00,{keep}pcie=1")
    return host


def install(host: Host, cards: Sequence[Card], *vmids: int) -> None:
    """What `up` brings: the handover of these cards, and the hookscript of these VMs."""
    asked = [("handover", Wanted(cards=tuple(cards))), *(("hookscript", Hook(vmid=vmid)) for vmid in vmids)]
    for layer, wanted in asked:
        done = run_layer(host.machine, "apply", layer, wanted)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def host_as_made(kept_systems: KeptSystems) -> Callable[..., Host]:
    """`host_as_made("9", "580.105.08", OLLAMA)`: a host as of `made`, which is made once for all tests that begin with the same one."""

    def take(
        pve: str = "9", version: str = "580.105.08", *users: dict[str, Any], only: bool = False, twin: bool = False
    ) -> Host:
        key = ("handover", pve, version, only, twin)
        host = kept_systems.take(key, lambda path: made(path, pve, version, only=only, twin=twin))
        host.machine.set_fault("card-users", list(users))
        return host

    return take


def drivers(host: Host) -> list[str | None]:
    return [host.driver(one) for one in (CARD, AUDIO, OTHER)]


def state(host: Host) -> str:
    """What is noted of the card."""
    path = host.root / "var/lib/homelab/handover/big.state"
    return str(json.loads(path.read_text())["state"]) if path.exists() else "HOST"


def story(host: Host) -> str:
    file = host.root / "var/lib/homelab/handover/log"
    return file.read_text() if file.exists() else ""


def runs(host: Host, ctid: int = 950) -> bool:
    return host.output(f"pct status {ctid}") == "status: running\n"


@pytest.mark.parametrize(("pve", "only"), [("8", True), ("9", False)])
def test_a_start_takes_the_card_and_a_stop_gives_it_back(
    host_as_made: Callable[..., Host], pve: str, only: bool
) -> None:
    host = host_as_made(pve, "580.105.08", OLLAMA, only=only)
    there = None if only else "nvidia"
    assert runs(host) and drivers(host)[:2] == ["nvidia", "snd_hda_intel"]
    done = host.run("qm start 103")
    assert done.returncode == 0, done.stdout + done.stderr + story(host)
    assert drivers(host) == ["vfio-pci", "vfio-pci", there] and state(host) == "VM" and not runs(host)
    host.output("qm stop 103")
    wait_until(lambda: state(host) == "HOST")
    assert drivers(host) == ["nvidia", "snd_hda_intel", there] and runs(host), story(host)
    assert host.run(f"nvidia-smi -i {CARD}").returncode == 0


def refused(host: Host) -> str:
    """What a start says that must fail, and leave everything as it was."""
    before, ran = drivers(host), runs(host)
    done = host.run("qm start 103")
    assert done.returncode != 0 and host.output("qm status 103") == "status: stopped\n"
    assert drivers(host) == before and runs(host) == ran and state(host) == "HELD", story(host)
    assert host.output(f"nvidia-smi drain -q -p {CARD}").endswith("not draining.\n")
    overrides = [path.read_text().strip() for path in host.root.glob("sys/bus/pci/devices/*/driver_override")]
    assert {*overrides} <= {"", "(null)"}
    return done.stdout + done.stderr


def test_who_has_the_card_is_named_and_everything_is_as_before(host_as_made: Callable[..., Host]) -> None:
    """But for whoever has another card, and nobody is shut down for it."""
    host = host_as_made()
    unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
    host.write("/etc/systemd/system/dcgm.service", unit)
    host.output("systemctl start dcgm.service")
    users: tuple[dict[str, Any], ...] = (
        {"pid": 4712, "comm": "ollama", "unit": "dcgm.service"},
        {"pid": 4713, "comm": "nvtop", "opens": ["card"]},
        {"pid": 4714, "comm": "Xorg", "opens": ["modeset"]},
        {"pid": 4715, "comm": "left", "mapped": True},
    )
    for user in users:
        host.machine.set_fault("card-users", [OLLAMA, {**user, "card": CARD}])
        who = f"{user['comm']} (PID {user['pid']} of {user.get('unit', user['comm'] + '.service')})"
        assert f"in use by {who}" in refused(host)
    assert "container 950" not in story(host)
    host.machine.set_fault("card-users", [{"pid": 4712, "comm": "train", "card": OTHER}])
    assert host.run("qm start 103").returncode == 0


def test_the_only_cards_driver_that_is_in_use_says_so_at_once(host_as_made: Callable[..., Host]) -> None:
    host = host_as_made(
        "8",
        "580.105.08",
        {"pid": 4712, "comm": "secret", "card": CARD, "opens": ["card"], "hidden": True},
        only=True,
    )
    host.machine.set_fault("nvidia-unbind-forever", None)
    assert host.run("qm start 103").returncode == 0, (
        "what the kernel holds itself doesn't count there, and ends with the module"
    )


def test_a_card_that_a_reset_has_killed_is_not_given_to_the_driver(host_as_made: Callable[..., Host]) -> None:
    host = host_as_made()
    host.machine.set_fault("reset-kills", "01:00.0")
    host.output("qm start 103; qm stop 103")
    wait_until(lambda: state(host) == "DEAD")
    assert host.driver(CARD) == "vfio-pci" and not runs(host)
    again = host.run("qm start 103")
    assert again.returncode != 0 and "DEAD" in again.stdout + again.stderr


# -- Proxmox VE's own ways -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pve", sampling.sample(list(PVE), 1, "a reboot"))
def test_a_reboot_of_the_vm_keeps_the_card(host_as_made: Callable[..., Host], pve: str) -> None:
    host = host_as_made(pve)
    host.output("qm start 103; sleep 0.4; qm reboot 103")
    assert state(host) == "VM" and drivers(host)[:2] == ["vfio-pci", "vfio-pci"] and not runs(host)
    assert "VM 103 keeps it" in story(host) and "with the host again" not in story(host)


def test_a_start_that_fails_behind_the_hook_is_undone_by_the_timers_service(host_as_made: Callable[..., Host]) -> None:
    host = host_as_made()
    host.output("qm set 103 --hostpci1 0000:77:00,pcie=1")
    assert host.run("qm start 103").returncode != 0
    assert state(host) == "VM" and not runs(host), "Proxmox VE calls nobody"
    host.output("systemctl start homelab-handover.service")
    assert state(host) == "HOST" and runs(host) and drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"]


def test_a_host_that_reboots_with_the_card_away_has_it_again(host_as_made: Callable[..., Host]) -> None:
    host = host_as_made()
    host.output("qm start 103")
    host.reboot()
    assert state(host) == "HOST" and runs(host) and drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"]
    host.output("qm set 103 --onboot 1 --startup order=9; pct set 950 --startup order=1")
    host.reboot()
    assert state(host) == "VM" and not runs(host) and host.output("qm status 103") == "status: running\n"


STATES: tuple[State, ...] = ("DRAINING", "DETACHED", "VM", "RETURNING", "HELD", "STUCK", "DEAD")


def noted(host: Host, name: State) -> None:
    """The card in a state, as far as a host has it when it goes down: noted, and on vfio-pci where it is by then."""
    if name not in ("DRAINING", "HELD", "STUCK"):
        host.output("qm start 103")
    else:
        host.output("pct stop 950")
    boot = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    record = Record(state=name, vm="103", boot=boot, persistence="Enabled")
    host.write("/var/lib/homelab/handover/big.state", json.dumps(to_plain(record)))


@pytest.mark.parametrize("pve", sampling.sample(list(PVE), 1, "boots"))
def test_a_boot_from_any_state_ends_with_the_guests_as_onboot_has_them(
    host_as_made: Callable[..., Host], pve: str
) -> None:
    host = host_as_made(pve, "580.105.08", OLLAMA)
    host.output("pct set 950 --onboot 1 --startup order=1; qm set 103 --startup order=9")
    for number, name in enumerate(sampling.sample(STATES, 1, f"boots {pve}")):
        for onboot in (0, 1):
            noted(host, name)
            host.output(f"qm set 103 --onboot {onboot}")
            host.machine.set_fault("power-cut", True if number % 2 else None)
            host.reboot()
            where = (
                ("VM", ["vfio-pci", "vfio-pci", "nvidia"])
                if onboot
                else ("HOST", ["nvidia", "snd_hda_intel", "nvidia"])
            )
            assert (state(host), drivers(host)) == where, f"{sampling.SEED} {name} {onboot}"
            assert runs(host) is not bool(onboot) and (host.output("qm status 103") == "status: running\n") is bool(
                onboot
            ), name
            if onboot:
                host.output("qm stop 103")
                wait_until(lambda: state(host) == "HOST")
                assert runs(host), name


@pytest.mark.parametrize("pve", sampling.sample(list(PVE), 1, "two cards"))
def test_of_two_cards_of_one_model_the_shared_one_alone_is_handed_over(
    host_as_made: Callable[..., Host], pve: str
) -> None:
    """One that the VM has for itself: test_several_takers.py."""
    host = host_as_made(pve, twin=True)
    assert "10de:2b85" in host.output("lspci -Dnn -s 0000:02:00.0")
    host.output("qm start 103")
    assert drivers(host) == ["vfio-pci", "vfio-pci", "nvidia"], "the other one is the host's"
    host.output("qm stop 103")
    wait_until(lambda: state(host) == "HOST")
    assert drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"]


SMALL = Card(name="small", functions={OTHER: "10de:2684", "0000:02:00.1": "10de:22ba"}, vms=(104,))


def give(host: Host, ctid: int) -> None:
    """What a run gives a container for the other card, and notes of it: it would ask the API, which isn't at work here."""
    nodes = ("/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")
    options = {f"dev{number}": f"{node},mode=0666" for number, node in enumerate(nodes)}
    path, noted = host.root / f"etc/pve/lxc/{ctid}.conf", host.root / f"etc/pve/homelab/lxc-{ctid}"
    text = path.read_text()
    begun = ContainerNote().of_change(options_of(conf_text(text)), {}, options, options, "p/s/ct")
    note = replace(begun.after_change(options), given=Given(cards=Cards(minors=(1,), functions=(OTHER,)), nodes=nodes))
    path.write_text(edited(text, options))
    noted.parent.mkdir()
    noted.write_text(json.dumps(to_plain(note)))


def test_two_cards_that_are_away_at_once_come_back_in_another_order(host_as_made: Callable[..., Host]) -> None:
    """The second is the driver's only one then. What comes back first gets the lowest number: lines of ours follow."""

    def with_two_shared(host: Host) -> None:
        """Another card is shared, too: VM 104 takes it, and container 901 has it by lines of ours. What 950 has by hand is off."""
        host.output(
            "pvesh create /nodes/phoenix/qemu --vmid 104 --name second --memory 512 --machine q35 --bios ovmf; pct stop 950"
        )
        done = run_layer(host.machine, "apply", "card_nodes", {"needed": True})
        assert done.returncode == 0, done.stdout + done.stderr
        give(host, 901)
        install(host, (BIG, SMALL), 104)
        host.output("qm set 104 --hostpci0 0000:02:00,driver=keep,pcie=1; pct stop 901; pct start 901")

    host = host_as_made()
    with_two_shared(host)
    host.output("qm start 103; qm start 104")
    assert host.driver(CARD) == host.driver(OTHER) == "vfio-pci" and not runs(host, 901), story(host)
    assert not (host.root / "sys/module/nvidia").exists()
    host.output("qm stop 104")
    # While its configuration is replaced, pct finds none.
    wait_until(lambda: host.run("pct status 901").stdout == "status: running\n")
    host.output("systemctl start homelab-handover.service")
    assert "/dev/nvidia0," in host.output("pct config 901") and "/dev/nvidia1," not in host.output("pct config 901")
    assert host.driver(OTHER) == "nvidia" and state(host) == "VM", story(host)
    host.output("qm stop 103; systemctl start homelab-handover.service")
    assert state(host) == "HOST" and drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"], story(host)
    assert runs(host, 901) and not list((host.root / "var/lib/homelab/handover").glob("*.state"))
