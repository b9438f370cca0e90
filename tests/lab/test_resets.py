"""How the lab's kernel resets a function, and what a VM's start says of one that it couldn't."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.scenario import Scenario, load_scenario
from remote_scripts.both.card_values import Value, Wanted
from tests.lab.host_kit import Host, run_layer

CARD = ("0000:01:00.0", "0000:01:00.1")
NOT_RESET = (
    "error writing '1' to '/sys/bus/pci/devices/{0}/reset': Inappropriate ioctl for device\n"
    "failed to reset PCI device '{0}', but trying to continue as not all devices need a reset\n"
)


def desktop(*resets: list[str] | None) -> Scenario:
    """The RTX 5090 of a desktop, its functions with these resets of their own; one that isn't named is not there."""
    scenario = load_scenario("rtx5090")
    bridge = next(one for one in scenario.pci if one.address == "0000:00:01.1")
    children = [one.model_copy(update={"resets": own}) for one, own in zip(bridge.children, resets, strict=False)]
    pci = [one if one is not bridge else one.model_copy(update={"children": children}) for one in scenario.pci]
    return scenario.model_copy(update={"pci": pci})


def methods(host: Host) -> list[str | None]:
    """Each function's reset_method; None: there is no such file."""
    files = [host.root / f"sys/bus/pci/devices/{function}/reset_method" for function in CARD]
    return [file.read_text().strip() if file.exists() else None for file in files]


def written(host: Host, function: str, value: str = "1") -> str:
    """What the shell says of a write to a function's reset; empty: nothing."""
    return host.run(f"echo {value} >$HOMELAB_ROOT/sys/bus/pci/devices/{function}/reset").stderr


# What each function lists, and what it answers: drivers/pci/probe.c (pci_device_add), drivers/pci/pci.c (pci_parent_bus_reset).
@pytest.mark.parametrize(
    ("resets", "listed", "refused"),
    [
        pytest.param(([], []), ["bus", None], {CARD[0]}, id="two functions, no FLR"),
        pytest.param((["flr"], ["flr"]), ["flr bus", "flr"], set(), id="two functions with FLR"),
        pytest.param((["flr"], []), ["flr bus", None], set(), id="FLR of the first alone"),
        pytest.param(([],), ["bus", None], set(), id="a single function, no FLR"),
        pytest.param((["pm"], ["pm"]), ["pm bus", "pm"], set(), id="power management"),
    ],
)
def test_a_function_lists_and_answers_a_reset_as_linux_does(
    tmp_path: Path, resets: tuple[list[str], ...], listed: list[str | None], refused: set[str]
) -> None:
    host = Host(tmp_path, desktop(*resets), running=True)
    assert methods(host) == listed
    for function in (function for function, ways in zip(CARD, listed, strict=True) if ways):
        assert ("Inappropriate ioctl for device" in written(host, function)) is (function in refused)
        assert "Invalid argument" in written(host, function, "2")


@pytest.mark.parametrize(
    ("resets", "value", "listed"),
    [
        pytest.param((["flr"], ["flr"]), "flr", "flr", id="one of its own"),
        pytest.param((["flr"], ["flr"]), "bus", None, id="the bus of two functions"),
        pytest.param((["flr"], ["flr"]), "flr bus", None, id="what it listed"),
        pytest.param((["flr"], ["flr"]), "default", "flr", id="what the kernel finds now"),
        pytest.param((["flr"],), "bus", "bus", id="the bus of a single function"),
        pytest.param((["flr"],), "hot", None, id="nonsense"),
    ],
)
def test_a_reset_is_chosen_from_those_that_linux_finds_now(
    tmp_path: Path, resets: tuple[list[str], ...], value: str, listed: str | None
) -> None:
    host = Host(tmp_path, desktop(*resets), running=True)
    for _ in range(2):
        done = host.run(f"printf %s '{value}' >$HOMELAB_ROOT/sys/bus/pci/devices/{CARD[0]}/reset_method")
        assert ("Invalid argument" in done.stderr) is (listed is None)
        assert methods(host)[0] == (listed or "flr bus")


def test_a_function_of_the_root_bus_has_no_bus_reset(tmp_path: Path) -> None:
    host = Host(tmp_path, "four-functions", running=True)
    assert (host.root / "sys/bus/pci/devices/0000:00:02.0/reset_method").read_text() == "flr\n"


def test_a_reset_that_was_chosen_goes_for_those_that_linux_finds_now(tmp_path: Path) -> None:
    host = Host(tmp_path, desktop(["flr", "pm"], ["flr"]), running=True)
    chosen = Value(address=CARD[0], id="10de:2b85", attribute="reset_method", value="pm")
    for values, listed in ((chosen,), "pm"), ((), "flr pm"):
        done = run_layer(host.machine, "apply", "card_values", Wanted(values=values))
        assert done.returncode == 0, done.stdout
        assert methods(host) == [listed, "flr"]


@pytest.mark.parametrize(
    ("resets", "fault", "said"),
    [
        pytest.param(([], []), None, [CARD[0]], id="two functions, no FLR"),
        pytest.param((["flr"], ["flr"]), None, [], id="FLR"),
        pytest.param((["flr"], ["flr"]), True, list(CARD), id="FLR that fails"),
        pytest.param(([],), True, [CARD[0]], id="a single function whose bus reset fails"),
    ],
)
def test_a_start_says_which_function_was_not_reset_and_goes_on(
    tmp_path: Path, resets: tuple[list[str], ...], fault: bool | None, said: list[str]
) -> None:
    host = Host(tmp_path, desktop(*resets), running=True)
    host.machine.set_fault("reset-fails", fault)
    started = host.run("qm stop 103; qm set 103 --hostpci0 0000:01:00,pcie=1; qm start 103; qm status 103")
    assert "".join(NOT_RESET.format(function) for function in said) in started.stderr
    assert started.stderr.count("failed to reset") == len(said) and "status: running" in started.stdout


def test_qemu_says_that_a_dead_card_does_not_wake_up(tmp_path: Path) -> None:
    host = Host(tmp_path, desktop(["flr"], ["flr"]), running=True)
    host.output("qm stop 103; qm set 103 --hostpci0 0000:01:00,pcie=1")
    host.machine.set_fault("card-dead", CARD[0])
    started = host.run("qm start 103; qm status 103")
    assert "kvm: vfio: Unable to power on device, stuck in D3" in started.stderr
    assert "status: running" in started.stdout
    assert f"vfio-pci {CARD[0]}: Unable to change power state from D3cold to D0" in host.output("dmesg")
