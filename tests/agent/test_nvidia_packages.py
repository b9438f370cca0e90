"""The layer nvidia_packages with this machine's own apt and dpkg, in a folder, on repositories of tiny packages (apt_kit.py)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from remote_scripts.both import nvidia_index as index
from remote_scripts.both.apt import AptFile
from remote_scripts.both.nvidia_packages import Answer, Said, Wanted
from remote_scripts.both.symptoms import Context
from remote_scripts.layers import nvidia_index, nvidia_packages
from remote_scripts.nvidia import replaced
from remote_scripts.nvidia.driver import LAYER
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from tests import sampling
from tests.agent import apt_kit
from tests.agent.apt_kit import BY_RUN, KERNELS, LATER, NEW, OLD, SOFTWARE, Machine, Repo

pytestmark = apt_kit.needs_apt
T = TypeVar("T")


@pytest.fixture(scope="session")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repo]:
    return apt_kit.repositories(tmp_path_factory.mktemp("repos"))


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, repos: dict[str, Repo]) -> Path:
    return apt_kit.stocked(tmp_path_factory.mktemp("apt"), repos)


@pytest.fixture
def machine(tmp_path: Path, stock: Path, repos: dict[str, Repo], monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, stock, repos, monkeypatch)


@pytest.fixture(scope="session")
def with_old(tmp_path_factory: pytest.TempPathFactory, stock: Path, repos: dict[str, Repo]) -> Path:
    """A host on which the layer has installed the old driver, and which has booted with it."""
    with pytest.MonkeyPatch.context() as patch:
        made = Machine(tmp_path_factory.mktemp("old"), stock, repos, patch)
        apply(made, made.wanted(OLD, "host"))
        made.boot()
    return made.root


@pytest.fixture
def old(tmp_path: Path, with_old: Path, repos: dict[str, Repo], monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, with_old, repos, monkeypatch)


def read(machine: Machine, wanted: Wanted) -> Said:
    return nvidia_packages.read(machine.system(), wanted)


def apply(machine: Machine, wanted: Wanted) -> Answer:
    return nvidia_packages.apply(machine.system(), wanted)


def revert(machine: Machine, wanted: Wanted) -> tuple[str, ...]:
    return nvidia_packages.revert(machine.system(), wanted).kept


def refusal(machine: Machine, wanted: Wanted) -> Failure:
    with pytest.raises(Failure) as failed:
        apply(machine, wanted)
    return failed.value


# -- there and back ----------------------------------------------------------------------------------------------
def test_a_preview_says_what_would_come_and_touches_nothing(machine: Machine) -> None:
    before = machine.lasting()
    said = read(machine, machine.wanted(cuda="12.8"))
    assert (said.chosen, said.version, said.was, said.way_back, said.removes) == (0, NEW, "", None, ())
    assert {f"libnvidia-compute-580={NEW}-0ubuntu1", "cuda-nvcc-12-8=12.8.1-1"} <= {*said.comes} and said.needs > 0
    assert machine.lasting() == before and not (machine.root / "hook").exists()
    assert not list((machine.root / "run").iterdir())


def test_the_stack_comes_once_and_goes_without_a_trace(machine: Machine) -> None:
    before, content = machine.versions(), machine.content()
    wanted = machine.wanted(cuda="12.8", target="host")
    answer = apply(machine, wanted)
    assert (answer.version, answer.source, answer.reboot, answer.cuda) == (NEW, "packages", "no", "12.8"), answer
    assert machine.modules() == {f"{NEW} open"} and machine.loaded == NEW
    assert not apply(machine, wanted).changed
    assert revert(machine, wanted) == ()
    assert machine.versions() == before and machine.content() == content


def test_what_was_there_keeps_its_version_and_its_mark_and_nothing_else_goes(machine: Machine) -> None:
    machine.apt("install", "build-essential", "needs-dkms")
    before = machine.marks()
    wanted = machine.wanted(cuda="12.8")
    apply(machine, wanted)
    assert "dkms" in machine.marks()["auto"]
    # Another release of CUDA: what isn't wanted any more goes with what came for it.
    apply(machine, machine.wanted(cuda="12.9"))
    assert "cuda-nvcc-12-9" in machine.versions() and "cuda-nvcc-12-8" not in machine.versions()
    assert revert(machine, wanted) == () and machine.marks() == before


def test_what_others_need_by_then_stays_and_is_named(machine: Machine) -> None:
    wanted = machine.wanted()
    apply(machine, wanted)
    machine.apt("install", "needs-dkms")
    assert revert(machine, wanted) == ("dkms",)
    assert {*machine.versions()} == {"dpkg", "gdm", "dkms", "needs-dkms"}


def test_what_its_owner_has_asked_for_since_stays(machine: Machine) -> None:
    wanted = machine.wanted(cuda="12.8")
    apply(machine, wanted)
    machine.apt("install", "cuda-nvcc-12-8")  # "set to manually installed"
    # What needed it goes, at an apply and with all else; and so with what the layer had asked for itself before.
    apply(machine, machine.wanted(cuda="12.9"))
    apply(machine, machine.wanted(beside=("cuda-nvcc-12-9",)))
    assert {"cuda-nvcc-12-8", "cuda-nvcc-12-9"} <= {*machine.versions()}
    assert revert(machine, wanted) == () and {*machine.versions()} == {"dpkg", "gdm", "cuda-nvcc-12-8"}


def test_nvidias_repository_is_asked_for_a_guest_that_is_not_there_yet(machine: Machine) -> None:
    names = ("cuda-toolkit-12-8", "cuda-toolkit-12-7", "libnccl2=*+cuda13.*", "libnccl2=*+cuda12.*", "docker.io")
    before = machine.lasting()
    wanted = index.Wanted(software=SOFTWARE, repositories=(machine.repository("nvidia"),), names=names)
    offered = "there is cuda-toolkit-11-8, cuda-toolkit-12-8, cuda-toolkit-12-9"
    answer = nvidia_index.read(machine.system(), wanted)
    # What the host's own repositories have doesn't count.
    assert answer.against == (f"cuda-toolkit-12-7 isn't offered; {offered}", "docker.io isn't offered")
    assert machine.lasting() == before


def test_an_engine_that_is_there_by_other_packages_is_left_as_it_is(machine: Machine) -> None:
    (machine.root / "usr/bin/dockerd").write_text("docker-ce's")
    wanted = machine.wanted(beside=("docker.io", "nvidia-container-toolkit"))
    assert not any(word.startswith("docker.io=") for word in read(machine, wanted).comes)
    apply(machine, wanted)
    assert "docker.io" not in machine.versions() and "nvidia-container-toolkit" in machine.versions()


def test_an_engine_comes_with_what_it_recommends_and_stays_until_all_goes_and_its_data_stays_then(
    machine: Machine,
) -> None:
    wanted = machine.wanted(beside=("docker.io", "nvidia-container-toolkit=1.20.0-*"))
    assert apply(machine, wanted).toolkit == "1.20.0-1" and "docker-parts" in machine.versions()
    assert "hidden-needs" not in machine.versions()
    apply(machine, machine.wanted())
    assert "docker.io" in machine.versions() and "nvidia-container-toolkit" not in machine.versions()
    revert(machine, wanted)
    assert "docker-parts" not in machine.versions() and not (machine.root / "usr/bin/dockerd").exists()
    assert (machine.root / "var/lib/docker/volume").read_text() == "mine\n"


def test_headers_of_a_newer_kernel_may_bring_that_and_nothing_else_may(machine: Machine) -> None:
    wanted = machine.wanted(headers=("dkms", "linux-headers-debian"))
    assert read(machine, wanted).chosen == 0
    said = read(machine, machine.wanted(beside=("linux-image-newer",)))
    assert said.chosen is None and "linux-image-newer" in said.against[0]


def test_under_another_name_of_the_settings_it_is_the_other_ones(machine: Machine) -> None:
    apply(machine, machine.wanted())
    other = replace(machine.wanted(), software=replace(SOFTWARE, context=Context(name="other")))
    before = machine.versions()
    assert revert(machine, other) == () and machine.versions() == before


# -- which driver ------------------------------------------------------------------------------------------------
def test_a_name_that_leads_to_another_branch_is_refused_before_anything_changes(machine: Machine) -> None:
    wanted = machine.wanted("570")
    said = read(machine, wanted)
    assert said.chosen is None and f"apt would bring {NEW}" in said.against[0] and said.offered == ("570.211.01",)
    before = machine.versions()
    assert f"apt would bring {NEW}" in refusal(machine, wanted).found and machine.versions() == before


def test_a_branch_stays_at_the_release_that_is_there_while_packages_come_beside_it(machine: Machine) -> None:
    apply(machine, machine.wanted(OLD))
    said = read(machine, machine.wanted(video=True))
    assert (said.version, said.way_back, said.removes) == (OLD, None, ()) and "libnvidia-encode-580" in said.comes[0]
    assert apply(machine, machine.wanted(video=True)).version == OLD
    assert machine.versions()["libnvidia-encode-580"] == f"{OLD}-0ubuntu1"
    # The branch is pinned, so that its next release comes by the owner's own upgrade; another branch doesn't.
    machine.apt("dist-upgrade")
    assert machine.versions()["libnvidia-encode-580"] == f"{NEW}-0ubuntu1"


def test_what_would_go_for_it_is_told_and_refused(machine: Machine) -> None:
    machine.apt("install", "hates-nvidia")
    before = machine.versions()
    assert read(machine, machine.wanted()).removes == ("hates-nvidia",)
    assert "hates-nvidia would be removed" in refusal(machine, machine.wanted()).found and machine.versions() == before


def test_a_package_that_is_held_is_named_in_apts_words(machine: Machine) -> None:
    machine.add_source("nvidia")
    machine.apt("install", *(f"{name}-580={OLD}-0ubuntu1" for name in ("libnvidia-compute", "nvidia-utils")))
    subprocess.run(["apt-mark", "hold", "nvidia-utils-580"], check=True, capture_output=True)
    said = read(machine, machine.wanted(NEW))
    assert said.chosen is None and "eld packages" in said.against[0], said


def test_cuda_that_brings_another_driver_or_none_is_refused_in_a_preview(machine: Machine) -> None:
    said = read(machine, machine.wanted(beside=("cuda-toolkit-11-8",)))
    assert said.chosen is None and said.against
    wanted = machine.wanted(beside=("cuda-toolkit-13-7",), video=True)
    said = read(machine, replace(wanted, tries=(*wanted.tries, *machine.wanted().tries)))
    offered = "there is cuda-toolkit-11-8, cuda-toolkit-12-8, cuda-toolkit-12-9"
    assert said.chosen is None and said.against == (f"cuda-toolkit-13-7 isn't offered; {offered}",)


def test_a_pattern_takes_the_newest_that_fits_and_what_is_there_stays(machine: Machine) -> None:
    wanted = machine.wanted(beside=("libnccl2=*+cuda12.*",))
    apply(machine, wanted)
    assert machine.versions()["libnccl2"] == "2.27.3-1+cuda12.9"


# -- a driver that is there ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("flavour", ["open", "proprietary"])
def test_a_driver_that_is_there_and_fits_is_left_and_no_server_is_asked(machine: Machine, flavour: str) -> None:
    machine.add_source("nvidia")
    modules = f"nvidia-dkms-580{'-open' * (flavour == 'open')}"
    machine.apt("install", modules, "libnvidia-compute-580", "nvidia-utils-580")
    (machine.root / "etc/apt/sources.list.d/theirs.list").unlink()
    before, marks = machine.versions(), machine.marks()
    tries = (*machine.wanted().tries, *machine.wanted(flavour="proprietary").tries)
    wanted = machine.wanted(repositories=(), tries=tries)
    dead = replace(machine.repository("nvidia"), line="deb [trusted=yes] copy:/nowhere ./", key_url="copy:/nowhere/key")
    wanted = replace(wanted, repositories=(dead,))
    assert (read(machine, wanted).chosen, read(machine, wanted).version) == (int(flavour != "open"), NEW)
    answer = apply(machine, wanted)
    assert (answer.source, answer.version, answer.packages) == ("found", NEW, ())
    assert not (machine.root / "etc/apt/sources.list.d/homelab-nvidia.list").exists()
    assert revert(machine, wanted) == () and machine.versions() == before and machine.marks() == marks


def test_an_owners_other_driver_is_replaced_and_named_when_ours_goes(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.add_source("nvidia")
    names = ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580")
    machine.apt("install", *names)
    wanted = machine.wanted("595")
    assert read(machine, wanted).way_back and apply(machine, wanted).version == LATER
    assert revert(machine, wanted) == () and not {*names} & {*machine.versions()}
    assert f"note: nvidia-utils-580 was {NEW}-0ubuntu1 before this program came, and is gone" in capfd.readouterr().err
    assert not (machine.root / "var/lib/homelab").exists()


def test_cuda_that_somebody_installed_without_packages_stays(machine: Machine) -> None:
    nvcc = machine.root / apt_kit.CUDA.format("12.8")
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    nvcc.chmod(0o755)
    wanted = machine.wanted(cuda="12.8")
    assert apply(machine, wanted).cuda == "12.8" and "cuda-nvcc-12-8" not in machine.versions()
    assert revert(machine, wanted) == () and nvcc.exists()


def test_headers_that_somebody_built_are_enough_and_a_kernel_without_any_is_named(machine: Machine) -> None:
    (machine.root / "boot/vmlinuz-6.17.1-mine").touch()
    (machine.root / "usr/lib/modules/6.17.1-mine").mkdir()
    headers = ("dkms", "linux-headers-6.17.1-mine", f"linux-headers-{KERNELS[0]}")
    said = read(machine, machine.wanted(target="host", headers=headers))
    assert said.lacking == ("6.17.1-mine",) and said.chosen == 0
    assert "6.17.1-mine" in refusal(machine, machine.wanted(target="host", headers=headers)).found
    (machine.root / "usr/lib/modules/6.17.1-mine/build").mkdir()
    assert apply(machine, machine.wanted(target="host", headers=headers)).version == NEW


# -- containers ----------------------------------------------------------------------------------------------------
def test_a_container_gets_its_hosts_version_and_no_modules(machine: Machine) -> None:
    driver = machine.root / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True)
    driver.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {OLD}  x\n")
    assert apply(machine, machine.wanted(OLD, "lxc")).reboot == "no-module" and "dkms" not in machine.versions()
    # The host has another one now.
    driver.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {NEW}  x\n")
    assert apply(machine, machine.wanted(NEW, "lxc")).version == NEW
    said = read(machine, machine.wanted("580.99.99", "lxc"))
    assert said.chosen is None and {OLD, NEW} <= {*said.offered}


# -- an update -----------------------------------------------------------------------------------------------------


def without_cache(machine: Machine) -> None:
    """As an owner empties it."""
    for path in (machine.root / "var/cache/apt/archives").glob("*.deb"):
        path.unlink()


def test_an_update_that_fails_before_a_boot_is_taken_back_by_its_packages_names(old: Machine) -> None:
    versions, marks, modules = old.versions(), old.marks(), old.modules()
    said = read(old, old.wanted("595", "host"))
    assert said.way_back and (said.was, said.version) == (OLD, LATER)
    failures = [f"postinst-{LATER}", f"build-{LATER}-{KERNELS[0]}", f"load-{LATER}"]
    for failure in sampling.sample(failures, 2, "an update fails"):
        old.fail(failure)
        without_cache(old)
        if failure.startswith("load"):
            (old.root / "proc/driver/nvidia/version").unlink()
        failed = refusal(old, old.wanted("595", "host"))
        assert f"The driver {OLD} is back" in failed.next, failed
        assert (old.versions(), old.marks(), old.modules()) == (versions, marks, modules), failure
        assert old.loaded == ("" if failure.startswith("load") else OLD)
    # An owner's own upgrade doesn't bring in what has failed.
    old.apt("dist-upgrade")
    assert old.versions() == versions
    old.fail()
    assert apply(old, old.wanted("595", "host")).version == LATER


def test_an_update_leaves_nothing_of_the_one_before(old: Machine) -> None:
    assert f"nvidia-firmware-{OLD}" in old.versions()
    wanted = old.wanted("595", "host")
    assert apply(old, wanted).reboot == "yes"
    assert not [version for version in old.versions().values() if OLD in version]
    assert not (old.root / "var/lib/homelab/update").exists()
    old.boot()
    assert old.loaded == LATER and not apply(old, wanted).changed
    assert revert(old, wanted) == () and {*old.versions()} == {"dpkg", "gdm"}


def test_an_update_that_does_not_work_after_its_boot_goes_back_by_the_version_that_it_names(old: Machine) -> None:
    versions, marks = old.versions(), old.marks()
    answer = apply(old, old.wanted("595", "host"))
    assert (answer.version, answer.before) == (LATER, OLD)
    old.boot()
    without_cache(old)
    assert apply(old, old.wanted(answer.before, "host")).reboot == "yes"
    old.boot()
    assert works(old, OLD) and old.loaded == OLD and (old.versions(), old.marks()) == (versions, marks)
    old.apt("dist-upgrade")
    assert old.versions() == versions and apply(old, old.wanted(OLD, "host")).before == ""


def test_a_driver_that_no_repository_has_any_more_has_no_way_back_and_is_updated_all_the_same(
    old: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    nvidia = old.repos["nvidia"]
    rows, text = list(nvidia._rows), (nvidia.folder / "Packages").read_text()
    nvidia.without(f"{OLD}-0ubuntu1")
    try:
        assert read(old, old.wanted("595", "host")).way_back is False
        old.fail(f"postinst-{LATER}")
        assert "is back" not in refusal(old, old.wanted("595", "host")).next
        assert f"{OLD} can't be put back if {LATER} fails: no repository has it" in capfd.readouterr().err
        old.fail()
        answer = apply(old, old.wanted("595", "host"))
        assert (answer.version, answer.before) == (LATER, "")
    finally:
        nvidia._rows = rows
        (nvidia.folder / "Packages").write_text(text)


def test_a_way_back_has_the_time_of_an_installation(old: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed may have taken all that the step has."""
    old.fail(f"postinst-{LATER}")
    system, given = old.system(), list[float]()
    monkeypatch.setattr(system.work, "extend", given.append)
    with pytest.raises(Failure, match="is back"):
        nvidia_packages.apply(system, old.wanted("595", "host"))
    assert given[0] == SOFTWARE.install_seconds


def test_a_way_back_that_fails_is_said_and_the_next_run_goes_on(old: Machine) -> None:
    old.fail(f"build-{LATER}-{KERNELS[0]}", f"postinst-{OLD}")
    failed = refusal(old, old.wanted("595", "host"))
    assert LATER in failed.wanted and "What was there before can't be put back: to install" in failed.next
    old.fail(f"build-{LATER}-{KERNELS[0]}")
    assert f"The driver {OLD} is back" in refusal(old, old.wanted("595", "host")).next and works(old, OLD)


def test_an_update_that_waits_for_its_boot_is_left_though_the_one_before_would_do(old: Machine) -> None:
    assert apply(old, old.wanted("595", "host")).reboot == "yes"
    tries = (*old.wanted("580", "host").tries, *old.wanted("595", "host").tries)
    again = apply(old, replace(old.wanted("595", "host"), tries=tries))
    assert (again.version, again.reboot, again.changed) == (LATER, "yes", False)
    # Wanted again before that boot, the one before comes back.
    assert apply(old, old.wanted(OLD, "host")).reboot == "no" and works(old, OLD)


@pytest.mark.parametrize("phase", ["trying", "back", "tried"])
@pytest.mark.parametrize("works_now", [True, False])
def test_an_update_that_version_2_0_0_left_half_way_is_ended(old: Machine, phase: str, *, works_now: bool) -> None:
    """It kept the files of the packages, and waited with the end for a boot."""
    family = [name for name in old.versions() if "nvidia" in name]
    packages = [{"name": name, "version": old.versions()[name], "mark": "manual"} for name in family]
    wanted = old.wanted("595", "host")
    if phase == "tried":
        apply(old, wanted)
    kept: dict[str, Any] = {"phase": phase, "driver": {"version": OLD, "flavour": "open"}, "kernels": list(KERNELS)}
    more = {"packages": packages, "left": None, "loaded": OLD, "worked": True, "new": "", "wanted": []}
    folder = old.root / "var/lib/homelab/update"
    folder.mkdir()
    (folder / "kept").write_text(json.dumps(kept | more))
    (folder / "nvidia-utils-580.deb").touch()
    (old.root / "var/lib/homelab/given-up").write_text(f"{LATER}\n")
    if works_now or phase == "tried":
        assert apply(old, wanted).version == LATER and works(old, LATER)
    else:
        old.fail(f"postinst-{LATER}")
        assert f"The driver {OLD} is back" in refusal(old, wanted).next and works(old, OLD)
    assert not folder.exists() and not (old.root / "var/lib/homelab/given-up").exists()


def test_flavours_replace_each_other(old: Machine) -> None:
    said = read(old, old.wanted(OLD, "host", flavour="proprietary"))
    assert said.way_back and said.version == said.was == OLD
    assert apply(old, old.wanted(OLD, "host", flavour="proprietary")).reboot == "yes"
    assert old.modules() == {f"{OLD} proprietary"}


def test_a_first_driver_that_doesnt_build_leaves_nothing(machine: Machine) -> None:
    before = machine.versions()
    for failure in sampling.sample([f"postinst-{NEW}", f"build-{NEW}-{KERNELS[0]}"], 1, "a first driver fails"):
        machine.fail(failure)
        assert "is gone again" in refusal(machine, machine.wanted(cuda="12.8", target="host")).next
        assert machine.versions() == before and not machine.system().files.of_layer(LAYER)
    machine.fail()
    assert apply(machine, machine.wanted(target="host")).version == NEW


# -- what fails ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def away(path: Path) -> Iterator[None]:
    """A server, or a file of it."""
    path.rename(path.with_name(f"{path.name}.away"))
    try:
        yield
    finally:
        path.with_name(f"{path.name}.away").rename(path)


def test_kernels_that_are_there_get_the_module(old: Machine) -> None:
    (old.root / f"usr/lib/modules/{KERNELS[0]}/nvidia").unlink()
    before = old.versions()
    assert apply(old, old.wanted(OLD, "host")).changed and works(old, OLD) and old.versions() == before


def test_an_initramfs_that_was_not_made_is_said_and_made_by_the_next_run(machine: Machine) -> None:
    machine.fail("initramfs")
    assert "made no new /boot/initrd.img-" in refusal(machine, machine.wanted(target="host")).found
    machine.fail()
    apply(machine, machine.wanted(target="host"))
    assert (machine.root / f"boot/initrd.img-{KERNELS[0]}").read_text()


def test_a_strangers_package_that_is_half_configured_stands_in_no_ones_way(machine: Machine) -> None:
    machine.fail("stranger")
    subprocess.run(["apt-get", "-qy", "install", "stranger"], check=False, capture_output=True)
    apply(machine, machine.wanted(OLD))
    machine.fail("stranger", f"postinst-{LATER}")
    assert f"The driver {OLD} is back" in refusal(machine, machine.wanted("595")).next
    assert machine.versions()["stranger"] == "half-configured"
    machine.fail(f"postinst-{LATER}")
    assert f"The driver {OLD} is back" in refusal(machine, machine.wanted("595")).next
    assert machine.versions()["stranger"] == "1.0"


def test_the_drivers_own_that_is_half_configured_is_repaired_first(old: Machine) -> None:
    """And is none to go back to while it is."""
    status = old.root / "var/lib/dpkg/status"
    head, _, tail = status.read_text().partition("Package: nvidia-dkms-580-open\n")
    status.write_text(f"{head}Package: nvidia-dkms-580-open\n{tail.replace('ok installed', 'ok half-configured', 1)}")
    old.fail(f"postinst-{OLD}")
    assert "is back" not in refusal(old, old.wanted("595", "host", repositories=())).next
    old.fail()
    asked = old.wanted(OLD, "host")
    with away(old.repos["nvidia"].folder):
        assert apply(old, asked).version == OLD
    assert old.versions()["nvidia-dkms-580-open"] == f"{OLD}-0ubuntu1"


def test_what_was_being_unpacked_when_an_update_was_cut_short_goes_with_it(old: Machine) -> None:
    """dpkg removes such a package only where it is told to (dpkg(1), remove-reinstreq)."""
    before = old.versions()
    apply(old, old.wanted("595", "host"))
    status = old.root / "var/lib/dpkg/status"
    head, _, tail = status.read_text().partition("Package: libnvidia-compute\n")
    tail = tail.replace("install ok installed", "install reinstreq half-installed", 1)
    status.write_text(f"{head}Package: libnvidia-compute\n{tail}")
    apply(old, old.wanted(OLD, "host"))
    assert works(old, OLD) and old.versions() == before


def test_a_module_that_doesnt_load_is_said_and_what_came_stays(machine: Machine) -> None:
    machine.fail(f"load-{NEW}")
    assert "No such device" in refusal(machine, machine.wanted()).found
    assert machine.versions()["nvidia-utils-580"] == f"{NEW}-0ubuntu1"


# -- NVIDIA's installer --------------------------------------------------------------------------------------------
def test_what_no_repository_has_comes_by_nvidias_installer_and_goes_again(machine: Machine) -> None:
    before, content = machine.versions(), machine.content()
    wanted = machine.wanted("470", flavour="proprietary")
    wanted = replace(wanted, tries=(*wanted.tries, machine.by_run()))
    said = read(machine, wanted)
    assert (said.chosen, said.version) == (1, BY_RUN) and "Unable to locate package" in said.against[0]
    answer = apply(machine, wanted)
    assert (answer.source, answer.version, answer.reboot) == ("run", BY_RUN, "no")
    assert not apply(machine, wanted).changed
    assert revert(machine, wanted) == ()
    assert machine.versions() == before and machine.content() == content


def test_packages_and_the_installer_replace_each_other(machine: Machine) -> None:
    packages = machine.wanted(OLD, flavour="proprietary")
    apply(machine, packages)
    run = replace(packages, tries=(machine.by_run(),))
    assert read(machine, run).way_back
    assert apply(machine, run).source == "run" and not [name for name in machine.versions() if "nvidia" in name]
    machine.boot()
    assert read(machine, packages).way_back is False
    assert apply(machine, packages).source == "packages"
    machine.boot()
    assert machine.loaded == OLD and not (machine.root / "usr/bin/nvidia-uninstall").exists()
    assert revert(machine, packages) == () and {*machine.versions()} == {"dpkg", "gdm"}


def test_an_installer_that_fails_brings_the_packages_back(machine: Machine) -> None:
    packages = machine.wanted(OLD, flavour="proprietary")
    apply(machine, packages)
    before = machine.versions()
    machine.fail(f"run-{BY_RUN}")
    failed = refusal(machine, replace(packages, tries=(machine.by_run(),)))
    assert f"The driver {OLD} is back" in failed.next and machine.loaded == OLD
    assert {name: before.get(name) for name in machine.versions()} == machine.versions() | {"build-essential": None}
    assert not (machine.root / "usr/bin/nvidia-uninstall").exists()


def test_an_installer_with_another_checksum_isnt_run_and_the_old_driver_stays(old: Machine) -> None:
    way = old.by_run()
    assert way.run is not None
    before = old.versions()
    wanted = replace(old.wanted(OLD, "host"), tries=(replace(way, run=replace(way.run, sha256="0" * 64)),))
    assert "Hash Sum mismatch" in refusal(old, wanted).found
    assert not (old.root / "var/lib/homelab/downloads").exists()
    assert {name: old.versions().get(name) for name in before} == before


def test_an_installer_that_is_not_there_is_named_by_its_address(machine: Machine) -> None:
    way = machine.by_run()
    assert way.run is not None
    gone = "copy:/nowhere/gone.run"
    text = str(refusal(machine, replace(machine.wanted(), tries=(replace(way, run=replace(way.run, url=gone)),))))
    assert gone in text and "Failed to stat" in text


def test_video_comes_where_it_is_asked_for_and_goes_unless_somebody_has_installed_it(machine: Machine) -> None:
    name, plain, video = "libnvidia-encode-580", machine.wanted(), machine.wanted(video=True)
    apply(machine, plain)
    assert name not in machine.versions()
    added = apply(machine, video)
    assert (added.changed, added.reboot) == (True, "no") and name in machine.versions()
    assert not apply(machine, video).changed
    machine.apt("remove", name)
    assert apply(machine, video).changed and name in machine.versions()
    assert apply(machine, plain).changed and name not in machine.versions()
    machine.apt("install", name)
    apply(machine, plain)
    assert name in machine.versions()


def test_a_package_that_its_owner_has_removed_comes_back_and_takes_no_other_along(machine: Machine) -> None:
    video = machine.wanted(video=True, libraries=())
    (way,) = video.tries
    both = replace(way, packages=(*way.packages, "libnvidia-decode-580"), capabilities=("compute", "video"))
    alone = replace(way, packages=machine.wanted().tries[0].packages, capabilities=("compute",))
    # NVIDIA's own names come first, which this repository doesn't have (homelab/nvidia/plan.py).
    first = [
        replace(each, packages=tuple(name.replace("-580", "") for name in each.packages)) for each in (both, alone)
    ]
    unset = replace(video, tries=(first[0], both, first[1], alone))
    assert apply(machine, unset).capabilities == ("compute", "video")
    before = machine.versions()
    machine.apt("remove", "libnvidia-encode-580")
    assert read(machine, unset).chosen == 1
    assert apply(machine, unset).capabilities == ("compute", "video") and machine.versions() == before
    # All of it, too; but not what no repository has.
    machine.apt("purge", "libnvidia-encode-580", "libnvidia-decode-580")
    assert apply(machine, unset).capabilities == ("compute", "video") and machine.versions() == before


def test_a_container_takes_the_installer_without_modules(machine: Machine) -> None:
    wanted = replace(machine.wanted(BY_RUN, "lxc"), tries=(machine.by_run(driver=BY_RUN, target="lxc"),))
    answer = apply(machine, wanted)
    assert (answer.version, answer.source, answer.reboot, machine.modules()) == (BY_RUN, "run", "no-module", {""})
    assert revert(machine, wanted) == () and {*machine.versions()} == {"dpkg", "gdm"}


# -- killed --------------------------------------------------------------------------------------------------------
Act = Callable[[], object]


def forked(act: Act, look: Callable[[int], object]) -> tuple[int, int]:
    """The act in a child, whose id is returned, with what it tells. `look` is called there before each of the act's calls that change something, with its
    number; at the end the child tells how many there were, and waits to be killed."""
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        return child, ready
    own, calls = os.getpid(), itertools.count()

    def count(*_: object) -> None:
        if os.getpid() == own:
            look(next(calls)) and os.write(told, b"now\n")

    disk.WATCH.append(count)
    sys.addaudithook(lambda event, _: count() if event in ("subprocess.Popen", "os.fork") else None)
    with contextlib.suppress(BaseException):
        act()
    os.write(told, f"{next(calls)}\n".encode())
    while True:
        signal.pause()


def calls_of(machine: Machine, act: Act) -> int:
    """How many calls the act makes where nobody kills it. The machine is as it was then."""
    kept = machine.root.with_name("kept")
    subprocess.run(["cp", "-a", machine.root, kept], check=True)
    child, ready = forked(act, lambda _: False)
    with os.fdopen(ready) as told:
        calls = int(told.readline())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shutil.rmtree(machine.root)
    kept.rename(machine.root)
    return calls


def kill(machine: Machine, act: Act, moment: int) -> None:
    """The act, and all that it has started, in the middle of what comes after one of its calls, before the next one.

    :param moment: one of MOMENTS, from the act's first call to its last.
    """
    point = (calls_of(machine, act) - 1) * moment // len(MOMENTS)

    def look(number: int) -> bool:
        while number > point:
            signal.pause()
        return number == point

    child, ready = forked(act, look)
    with os.fdopen(ready) as told:
        assert told.readline() == "now\n"
        time.sleep(point % 7 * 0.03)
        machine.kill(child)
        assert told.read() == "", "the act had come to its end"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def works(machine: Machine, version: str) -> bool:
    libraries = (machine.root / apt_kit.LIBRARIES / "libnvidia-ml.so.1").resolve()
    return libraries.name.endswith(version) and machine.modules() == {f"{version} open"}


#: How many a run is killed at, evenly over its calls.
MOMENTS = range(80)


def moments(ways: Sequence[T], name: str) -> list[tuple[T, int]]:
    """One of these ways, killed at one of these moments; with every sample each way at each moment."""
    return sampling.sample([*itertools.product(ways, MOMENTS)], 1, name)


@pytest.mark.parametrize(("goes_on", "moment"), moments([True, False], "first"))
def test_a_first_run_that_is_killed_is_finished_or_undone(machine: Machine, moment: int, goes_on: bool) -> None:
    versions, wanted = machine.versions(), machine.wanted(cuda="12.8", target="host")
    kill(machine, lambda: apply(machine, wanted), moment)
    if goes_on:
        assert apply(machine, wanted).source == "packages" and works(machine, NEW)
    assert revert(machine, wanted) == () and machine.versions() == versions


@pytest.mark.parametrize(("then", "moment"), moments(["again", "back", "fails"], "update"))
def test_an_update_that_is_killed_is_finished_or_taken_back(old: Machine, moment: int, then: str) -> None:
    versions, wanted = old.versions(), old.wanted("595", "host")
    kill(old, lambda: apply(old, wanted), moment)
    is_noted = bool(replaced.noted(old.system().files))
    assert works(old, OLD) or works(old, LATER) or is_noted
    if then == "again":
        assert apply(old, wanted).reboot == "yes" and works(old, LATER)
    elif then == "fails" and is_noted:
        old.fail(f"build-{LATER}-{KERNELS[0]}")
        for kernel in KERNELS:
            (old.root / f"usr/lib/modules/{kernel}/nvidia").unlink(missing_ok=True)
        assert f"The driver {OLD} is back" in refusal(old, wanted).next and works(old, OLD)
    else:
        apply(old, old.wanted(OLD, "host"))
        assert works(old, OLD) and old.versions() == versions
    assert not replaced.noted(old.system().files)


@pytest.mark.parametrize("moment", sampling.sample(MOMENTS, 1, "back"))
def test_a_way_back_that_is_killed_is_finished_by_the_next_run(old: Machine, moment: int) -> None:
    old.fail(f"postinst-{LATER}")
    kill(old, lambda: apply(old, old.wanted("595", "host")), moment)
    assert f"The driver {OLD} is back" in refusal(old, old.wanted("595", "host")).next
    assert works(old, OLD) and old.loaded == OLD


@pytest.mark.parametrize(("kind", "moment"), moments(["machine", "old"], "installer"))
def test_an_installer_that_is_killed_is_finished_or_undone(
    moment: int, kind: str, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue(kind)
    wanted = replace(where.wanted(OLD, "host"), tries=(where.by_run(),))
    kill(where, lambda: apply(where, wanted), moment)
    assert apply(where, wanted).source == "run" and where.modules() == {f"{BY_RUN} proprietary"}
    assert revert(where, wanted) == () and {*where.versions()} == {"dpkg", "gdm"}


@pytest.mark.parametrize("moment", sampling.sample(MOMENTS, 1, "revert"))
def test_a_revert_that_is_killed_is_finished_by_the_next(old: Machine, moment: int) -> None:
    wanted = old.wanted(OLD, "host")
    kill(old, lambda: revert(old, wanted), moment)
    assert revert(old, wanted) == () and {*old.versions()} == {"dpkg", "gdm"}
    assert not (old.root / "var/lib/homelab").exists()


# -- repositories --------------------------------------------------------------------------------------------------
def test_an_owners_own_entry_is_used_and_no_second_one_is_written(machine: Machine) -> None:
    machine.add_source("nvidia")
    wanted = machine.wanted(OLD)
    before = machine.lasting()
    assert read(machine, wanted).version == OLD and machine.lasting() == before
    apply(machine, wanted)
    names = {path.name for path in (machine.root / "etc/apt/sources.list.d").iterdir()}
    assert names == {"distribution.list", "theirs.list", "homelab-toolkit.list"}
    # Ours goes where an owner has made one of his own since, and comes back once that is gone.
    (machine.root / "etc/apt/sources.list.d/theirs.list").unlink()
    apply(machine, wanted)
    assert (machine.root / "etc/apt/sources.list.d/homelab-nvidia.list").exists()


def test_files_of_apts_come_as_they_are_wanted_and_go_again(machine: Machine) -> None:
    file = AptFile(path="/etc/apt/apt.conf.d/52homelab-nvidia", content='Unattended-Upgrade::X "y";')
    apply(machine, machine.wanted(OLD, files=(file,)))
    assert (machine.root / file.path[1:]).read_text() == f"{file.content}\n"
    pins = machine.root / "etc/apt/preferences.d/homelab-nvidia"
    assert pins.read_text().split("\n")[1] == f"Pin: version {OLD}*"
    apply(machine, machine.wanted("580", repositories=(machine.repository("nvidia"),)))
    assert pins.read_text().split("\n")[1] == "Pin: version 580.*"
    assert not (machine.root / file.path[1:]).exists()
    assert not (machine.root / "etc/apt/sources.list.d/homelab-toolkit.list").exists()


def test_a_preview_sees_the_pins_that_are_wanted(machine: Machine) -> None:
    text = "Package: libnccl2\nPin: version *\nPin-Priority: -1\n"
    pin = AptFile(path="/etc/apt/preferences.d/homelab-x", content=text)
    assert read(machine, machine.wanted(beside=("libnccl2",), files=(pin,))).chosen is None


def test_a_server_that_is_away_is_named(machine: Machine) -> None:
    before = machine.versions()
    dead = replace(machine.repository("nvidia"), line="deb [trusted=yes] copy:/nowhere ./")
    wanted = machine.wanted(repositories=(dead,))
    with pytest.raises(Failure, match="/nowhere"):
        read(machine, wanted)
    assert "/nowhere" in str(refusal(machine, wanted)) and machine.versions() == before
    assert not (machine.root / "etc/apt/sources.list.d/homelab-nvidia.list").exists()


@pytest.mark.skipif(not shutil.which("gpg"), reason="this machine has no gpg")
@pytest.mark.parametrize("signer", ["nvidia", "other"])
def test_of_the_keys_in_a_file_the_one_with_the_fingerprint_counts_alone(
    machine: Machine, signer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    nvidia = Repo(tmp_path / "signed")
    nvidia.driver(f"{OLD}-0ubuntu1")
    fingerprint = apt_kit.sign(nvidia, signer, request)
    repository = replace(
        machine.repository("nvidia"),
        key_url=f"copy:{nvidia.folder}/key",
        line=f"deb [signed-by=/usr/share/keyrings/homelab-nvidia.asc,{fingerprint}] copy:{nvidia.folder} ./",
    )
    wanted = machine.wanted(repositories=(repository,))
    if signer == "nvidia":
        assert read(machine, wanted).version == OLD
    else:
        with pytest.raises(Failure, match="is not signed"):
            read(machine, wanted)
