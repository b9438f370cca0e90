"""The layers nvidia_driver and driver_update on a folder: what is noted wherever an update is cut short, an apt that hangs or finds a lock, and packages that
are half configured. That the next run finishes or undoes it is in test_stops.py. What they do on systems with NVIDIA's packages is in tests/scripts/test_nvidia_driver.py and test_driver_update.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from remote_scripts.both import driver_update, nvidia_driver
from remote_scripts.shared.driver_update import VERSION_GIVEN_UP, noted
from remote_scripts.shared.software import Installer, Software
from remote_scripts.shared.symptoms import Context
from remote_scripts.tools.run import TIMED_OUT, Done
from tests.agent.driver_kit import (
    FAMILY,
    HEADERS,
    KERNELS,
    LIBRARY,
    MODULES,
    NEW,
    OLD,
    STRANGERS,
    TOOLS,
    Machine,
    after,
    lasting,
)
from tests.agent.kit import Host, Refused, cuts, left_by

Source = Literal["packages", "run"]
SOFTWARE = Software(context=Context(name="it"), lock_seconds=0)
#: Of the moments at which a run is cut short, by default.
SAMPLE = 25
GIVEN_UP = "var/lib/homelab/files/nvidia-driver/etc/apt/preferences.d/homelab-given-up"
LOCKED = Done(100, b"E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)\n")


@pytest.fixture
def machine(host: Host) -> Machine:
    """A stock one."""
    made = Machine(host)
    made.stock()
    return made


def wanted(version: str, source: Source = "packages") -> nvidia_driver.Wanted:
    sha256 = hashlib.sha256(f"{version}\n".encode()).hexdigest()
    run = Installer(version=version, url=f"https://x/NVIDIA-Linux-x86_64-{version}.run", sha256=sha256)
    return nvidia_driver.Wanted(
        target="host",
        driver=version,
        software=SOFTWARE,
        source=source,
        flavour="open",
        prerequisites=(HEADERS,),
        packages=tuple(f"{name}={version}-*" for name in FAMILY),
        run=run if source == "run" else None,
    )


def apply(host: Host, version: str, source: Source = "packages") -> Any:
    return host.ask("apply", "nvidia_driver", wanted(version, source))


def revert(host: Host) -> Any:
    return host.ask("revert", "nvidia_driver", wanted(OLD))


def end(host: Host, verb: str) -> Any:
    return host.ask(verb, "driver_update", driver_update.Wanted(target="host", software=SOFTWARE))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        act()
    return str(refused.value)


def with_old(machine: Machine, source: Source = "packages") -> dict[str, Any]:
    """What there was before the old driver, which has booted."""
    stock = lasting(machine.host)
    apply(machine.host, OLD, source)
    machine.boot()
    assert machine.works(OLD)
    return stock


def phase(host: Host) -> str:
    return noted(host.system()).phase


def cut_short(machine: Machine, act: Callable[[Host], object], name: str, place: Path) -> Iterator[tuple[str, Machine]]:
    """What is left at each moment at which the act may be cut short, of a sample."""
    for number, cut in enumerate(cuts(machine.host, act, most=SAMPLE, name=name)):
        yield (
            cut.how,
            after(left_by(cut, machine.host, place / str(number)), machine, booted=cut.how.startswith("power")),
        )


# -- there and back --------------------------------------------------------------------------------------------
def test_the_driver_comes_and_goes(machine: Machine) -> None:
    stock = lasting(machine.host)
    machine.host.write(VERSION_GIVEN_UP, f"{NEW}\n")
    answer = apply(machine.host, OLD)
    assert not machine.host.exists(VERSION_GIVEN_UP), "another try is judged by itself"
    assert answer == answer | {"version": OLD, "source": "packages", "reboot": "no", "changed": True}
    assert machine.works(OLD) and machine.loaded() == OLD
    assert not apply(machine.host, OLD)["changed"]
    assert revert(machine.host) == {"kept": [], "changed": True}
    assert lasting(machine.host) == stock and not revert(machine.host)["changed"]


# -- an update -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("new", ["packages", "run"])
@pytest.mark.parametrize("old", ["packages", "run"])
def test_wherever_an_update_is_cut_short_the_old_driver_works_or_it_is_noted_that_it_doesnt(
    machine: Machine, old: Source, new: Source, tmp_path: Path
) -> None:
    with_old(machine, old)
    for how, left in cut_short(machine, lambda one: apply(one, NEW, new), f"update {old} {new}", tmp_path):
        assert left.works(OLD) or phase(left.host) in ("trying", "tried"), how


@pytest.mark.parametrize("source", ["packages", "run"])
def test_wherever_a_way_back_is_cut_short_it_is_not_taken_for_an_update_that_waits(
    machine: Machine, source: Source, tmp_path: Path
) -> None:
    with_old(machine, source)
    assert apply(machine.host, NEW, source)["reboot"] == "yes" and phase(machine.host) == "tried"
    machine.faults.in_use = False
    machine.boot()
    assert machine.loaded() == NEW
    for how, left in cut_short(machine, lambda one: end(one, "revert"), f"back {source}", tmp_path):
        assert left.works(NEW) or phase(left.host) != "tried", how
    assert machine.works(OLD) and machine.loaded() == OLD and machine.host.read(VERSION_GIVEN_UP) == f"{NEW}\n"


def test_an_initramfs_that_was_not_made_is_said_and_made_by_the_next_run(machine: Machine) -> None:
    machine.faults.said["update-initramfs"] = Done(0, b"W: /boot is ro mounted.\n")
    said = refusal(lambda: apply(machine.host, OLD))
    assert "made no new /boot/initrd.img-" in said and "/boot is ro mounted" in said
    machine.faults.said.clear()
    machine.started.clear()
    apply(machine.host, OLD)
    assert "update-initramfs -u -k all" in machine.started


def test_a_way_back_that_unloads_a_module_loads_the_one_that_is_back(machine: Machine) -> None:
    """The one from before the last upgrade by hand was loaded, without which nothing has the cards."""
    with_old(machine)
    machine.load("580.105.08")
    machine.faults.in_use, machine.faults.no_build = False, {NEW}
    assert f"the driver {OLD} is back" in refusal(lambda: apply(machine.host, NEW))
    assert machine.works(OLD) and machine.loaded() == OLD


def test_of_modules_that_something_uses_none_is_unloaded(machine: Machine) -> None:
    """rmmod would take those that nothing uses, such as nvidia-uvm, and of another version they don't come back."""
    with_old(machine)
    apply(machine.host, NEW)
    machine.boot()
    machine.started.clear()
    assert f"{NEW} is still loaded and in use" in end(machine.host, "revert")["now"]
    assert not [program for program in machine.started if program.startswith("rmmod")]


def test_a_kernel_that_is_gone_by_then_keeps_no_driver_from_being_put_back(machine: Machine) -> None:
    """While an update waits for its boot, somebody removes an old kernel."""
    with_old(machine)
    assert apply(machine.host, NEW)["reboot"] == "yes"
    machine.faults.in_use = False
    machine.boot()
    (machine.host.root / f"boot/vmlinuz-{KERNELS[0]}").unlink()
    shutil.rmtree(machine.host.root / f"usr/lib/modules/{KERNELS[0]}")
    assert end(machine.host, "revert")["old"] == OLD and machine.loaded() == OLD
    assert machine.module(KERNELS[1]) == f"{OLD} open"


def test_what_was_kept_and_is_gone_is_said_and_the_wanted_driver_comes(machine: Machine) -> None:
    with_old(machine)
    machine.faults.said["dkms install"] = Done(10, b"no compiler\n")
    machine.faults.no_build.add(NEW)
    machine.faults.unconfigured.add(MODULES)
    refusal(lambda: apply(machine.host, NEW))
    assert phase(machine.host) == "back"
    for path in (machine.host.root / "var/lib/homelab/update").glob("*.deb"):
        path.unlink()
    machine.faults.said.clear()
    machine.faults.no_build.clear()
    machine.faults.unconfigured.clear()
    assert apply(machine.host, NEW)["version"] == NEW and machine.works(NEW)


# -- a name that leads elsewhere -------------------------------------------------------------------------------
LEADS = {
    "apt-get -s install --no-install-recommends --allow-downgrades": Done(
        0, f"Inst {TOOLS} (1)\nInst {LIBRARY} [1] ({OLD}-1 x [amd64])\n".encode()
    )
}


@pytest.mark.parametrize("is_update", [False, True])
def test_packages_that_lead_to_another_branch_are_refused_before_anything_changes(
    machine: Machine, is_update: bool
) -> None:
    if is_update:
        with_old(machine)
    before = lasting(machine.host)
    machine.started.clear()
    machine.faults.said |= LEADS
    text = refusal(lambda: apply(machine.host, NEW))
    assert f"found:  apt would bring {OLD} with them" in text and "nothing was changed" in text
    assert (lasting(machine.host), machine.started) == (before, [])


def test_where_it_may_be_the_installer_that_is_taken(machine: Machine) -> None:
    machine.faults.said |= LEADS
    asked = dataclasses.replace(wanted(NEW, "run"), source="either")
    assert machine.host.ask("apply", "nvidia_driver", asked)["source"] == "run" and machine.works(NEW)


def test_what_apt_cannot_install_is_refused_before_the_installers_driver_goes(machine: Machine) -> None:
    """Somebody has a package held."""
    with_old(machine, "run")
    before = lasting(machine.host)
    machine.faults.said["apt-get -s install"] = Done(100, b"E: Held packages were changed\n")
    text = refusal(lambda: apply(machine.host, NEW))
    assert "E: Held packages were changed" in text
    assert lasting(machine.host) == before and machine.works(OLD)


def test_an_update_that_was_cut_short_goes_back_where_its_driver_cant_be_had_any_more(
    machine: Machine, tmp_path: Path
) -> None:
    with_old(machine)
    cut = cut_short(machine, lambda host: apply(host, NEW), "cut short", tmp_path)
    left = next(left for _, left in cut if phase(left.host) == "trying")
    left.faults.said |= LEADS
    text = refusal(lambda: apply(left.host, NEW))
    left.faults.said.clear()
    left.boot()
    assert f"the driver {OLD} is back" in text and left.works(OLD)


# -- a first driver that doesn't build -------------------------------------------------------------------------
def test_a_first_driver_whose_modules_do_not_build_goes_again(machine: Machine) -> None:
    """dpkg would stay broken: a package whose configuration fails stops apt."""
    machine.faults.no_build.add(OLD)
    assert "What had come of the driver is gone again" in refusal(lambda: apply(machine.host, OLD))
    assert machine.versions() == {HEADERS: "1", STRANGERS: "1.0"} and {*machine.packages()} == {*machine.versions()}
    machine.faults.no_build.clear()
    apply(machine.host, OLD)
    machine.boot()
    assert machine.works(OLD)
    # One that was there stays, whatever a repair of it ends with.
    half_configured(machine, TOOLS)
    machine.faults.unconfigured.add(TOOLS)
    before = machine.versions()
    refusal(lambda: apply(machine.host, OLD))
    assert machine.versions() == before and machine.loaded() == OLD


# -- what fails ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("program", "done", "words"),
    [
        ("apt-get install", Done(TIMED_OUT, b"apt-get: given up after 3600 s\n"), "nvidia.timeouts.install"),
        ("apt-get install", LOCKED, "held by process 7 (apt)"),
        ("env -C", LOCKED, "held by process 7 (apt)"),
        ("env -C", Done(TIMED_OUT, b"given up\n"), "nothing was changed"),
        ("sync -f", Done(1, b"", b"sync: error syncing: Input/output error\n"), "nothing was changed"),
    ],
)
def test_what_apt_cannot_do_now_is_said_and_the_old_driver_stays(
    machine: Machine, program: str, done: Done, words: str
) -> None:
    with_old(machine)
    before = lasting(machine.host)
    machine.faults.said[program] = done
    if program.startswith("sync"):
        machine.host.programs["sync"] = lambda _arguments, _stdin: done
    text = refusal(lambda: apply(machine.host, NEW))
    assert words in text and machine.works(OLD) and machine.loaded() == OLD, text
    machine.faults.said.clear()
    machine.host.programs["sync"] = lambda _arguments, _stdin: 0
    if phase(machine.host):  # it was being installed
        assert phase(machine.host) == "back"
    else:
        assert {path for path, value in lasting(machine.host).items() if before.get(path) != value} <= {
            GIVEN_UP,
            GIVEN_UP.removeprefix("var/lib/homelab/files/nvidia-driver/"),
        }
    assert apply(machine.host, NEW)["version"] == NEW and machine.works(NEW)


# -- what is half configured -----------------------------------------------------------------------------------
def half_configured(machine: Machine, name: str) -> None:
    machine._set(name, "half-configured", machine.packages()[name].version)


def test_a_package_of_the_drivers_that_is_half_configured_is_repaired_first(machine: Machine) -> None:
    """And then it is what is wanted: nothing is kept, and nothing is replaced."""
    with_old(machine)
    half_configured(machine, TOOLS)
    machine.started.clear()
    assert apply(machine.host, OLD)["changed"] and machine.versions()[TOOLS] == f"{OLD}-1"
    assert machine.started[0] == "dpkg --configure -a --force-confdef --force-confold"
    assert not [one for one in machine.started if one.startswith("apt-get")]


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_strangers_package_that_is_half_configured_takes_no_way_back(machine: Machine, is_mended: bool) -> None:
    with_old(machine)
    half_configured(machine, STRANGERS)
    if not is_mended:
        machine.faults.unconfigured.add(STRANGERS)
    machine.faults.no_build.add(NEW)
    text = refusal(lambda: apply(machine.host, NEW))
    assert f"the driver {OLD} is back" in text and machine.works(OLD)
    assert (machine.packages()[STRANGERS].state == "installed") == is_mended


def test_a_driver_of_which_a_package_cannot_be_configured_is_none_to_go_back_to(machine: Machine) -> None:
    with_old(machine)
    half_configured(machine, MODULES)
    machine.faults.no_build |= {OLD, NEW}
    assert "is back" not in refusal(lambda: apply(machine.host, NEW))
    machine.faults.no_build.clear()
    assert apply(machine.host, NEW)["version"] == NEW and machine.works(NEW)


def test_an_install_that_failed_is_still_ours_when_it_is_done_again(
    machine: Machine,
) -> None:
    machine.faults.unconfigured.add(TOOLS)
    refusal(lambda: apply(machine.host, OLD))
    machine.faults.unconfigured.clear()
    answer = apply(machine.host, OLD)
    assert answer == answer | {"source": "packages", "packages": sorted((*FAMILY, HEADERS)), "changed": True}


def test_a_driver_that_was_being_installed_is_none_to_go_back_to(machine: Machine) -> None:
    machine.faults.unconfigured.add(TOOLS)
    refusal(lambda: apply(machine.host, OLD))
    assert "is back" not in refusal(lambda: apply(machine.host, OLD))
    machine.faults.unconfigured.clear()
    assert apply(machine.host, OLD)["version"] == OLD and machine.works(OLD)


def test_kernels_that_are_there_get_the_module(machine: Machine) -> None:
    with_old(machine)
    (machine.host.root / f"usr/lib/modules/{KERNELS[0]}/nvidia.ko").unlink()
    assert apply(machine.host, OLD)["changed"] and machine.works(OLD)


def test_a_strangers_package_that_cannot_be_configured_stands_in_no_ones_way(machine: Machine) -> None:
    half_configured(machine, STRANGERS)
    machine.faults.unconfigured.add(STRANGERS)
    assert apply(machine.host, OLD)["changed"] and machine.works(OLD)
