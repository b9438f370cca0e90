"""Packages for Intel's and AMD's cards in the lab's containers: of each distribution, verified by using the card, and taken back without a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab.container import libraries
from homelab.nvidia import judge
from remote_scripts.both.card_libraries import Wanted
from remote_scripts.both.container_verification import Wanted as ContainerVerification
from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import Context
from remote_scripts.notes.container_note import Cards
from tests import sampling
from tests.boot_layers import Asked
from tests.lab.host_kit import run_layer
from tests.lab.nvidia_kit import Container

# In the scenario: Debian 13 and Ubuntu 24.04, beside a processor's graphics of Intel's.
DEBIAN, UBUNTU = 210, 211
UHD = "0000:00:02.0"
VIDEO = {"i965-va-driver", "vainfo"}


def script(uses: str, makers: str = "intel", name: str = "containers.jellyfin") -> Asked:
    software = Software(context=Context(name, "lxc"), lock_seconds=1, download_seconds=60, install_seconds=60)
    choices = libraries.choices(uses.split(), makers.split())
    return Asked("card_libraries", Wanted(software=software, choices=choices))


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Debian 13; each test leaves it as it was."""
    return Container(tmp_path_factory.mktemp("debian"), "containers-pve8", DEBIAN)


@pytest.fixture(scope="module")
def ubuntu(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Ubuntu 24.04; each test leaves it as it was."""
    return Container(tmp_path_factory.mktemp("ubuntu"), "containers-pve8", UBUNTU)


@pytest.mark.parametrize(
    ("name", "uses", "makers", "expected"),
    sampling.sample(
        [
            ("debian", "video", "intel", {*VIDEO, "intel-media-va-driver"}),
            (
                "ubuntu",
                "video compute",
                "intel",
                {*VIDEO, "intel-media-va-driver-non-free", "intel-opencl-icd", "clinfo"},
            ),
            ("ubuntu", "video compute", "amd", {"mesa-va-drivers", "vainfo", "rocminfo"}),
            ("debian", "video", "amd intel", {*VIDEO, "intel-media-va-driver", "mesa-va-drivers"}),
        ],
        1,
        "libraries",
    ),
)
def test_they_come_once_and_go_without_a_trace(
    name: str, uses: str, makers: str, expected: set[str], request: pytest.FixtureRequest
) -> None:
    machine: Container = request.getfixturevalue(name)
    packages, tree = machine.packages(), machine.tree()
    text = script(uses, makers)
    assert machine.answer("apply", text)["changed"]
    answer = machine.answer("apply", text)
    assert (set(answer["packages"]), answer["changed"]) == (expected, False)
    assert expected <= set(machine.packages()) - set(packages)
    assert machine.answer("revert", text) == {"changed": True, "kept": []}
    assert machine.answer("revert", text) == {"changed": False, "kept": []}
    assert (machine.packages(), machine.tree()) == (packages, tree)


def test_what_somebody_has_installed_is_left_there(ubuntu: Container) -> None:
    ubuntu.output("apt-get -qq update && apt-get -qq install -y intel-media-va-driver vainfo")
    before = ubuntu.packages()
    text = script("video")
    # The free build is there: the other one would replace it.
    assert "intel-media-va-driver" in ubuntu.answer("apply", text)["packages"]
    ubuntu.answer("revert", text)
    assert ubuntu.packages() == before
    ubuntu.output("apt-get -qq purge -y intel-media-va-driver vainfo && apt-get -qq autoremove -y --purge")


def test_a_run_without_a_network_changes_nothing_and_the_next_ones_bring_back_rename_and_exchange_them(
    debian: Container,
) -> None:
    before, old, new = debian.packages(), script("video"), script("video", name="containers.media")
    debian.output("apt-get clean")
    debian.fault("apt-offline", str(DEBIAN))
    try:
        assert "Temporary failure resolving" in debian.refusal(old)
        assert debian.packages() == before
    finally:
        debian.fault("apt-offline", None)
    debian.answer("apply", old)
    # A refresh sees what was removed inside.
    assert not judge.steps(debian.read(), None, libraries=True)
    debian.output("apt-get -qq remove -y vainfo")
    assert judge.steps(debian.read(), None, libraries=True) == ["libraries: package vainfo is gone, it was 2.22.0-3"]
    # Pulumi makes what has a new name first, and deletes what had the old one then.
    debian.answer("apply", new)
    assert not judge.steps(debian.read(), None, libraries=True)
    assert debian.answer("revert", old) == {"changed": False, "kept": []}
    assert set(debian.packages()) >= VIDEO
    # With another use, those of before go.
    compute = script("compute", "amd", name="containers.media")
    debian.answer("apply", compute)
    added = set(debian.packages()) - set(before)
    assert {"rocminfo", "rocm-opencl-icd"} <= added and not VIDEO & added
    debian.answer("revert", compute)
    assert debian.packages() == before
    assert judge.steps(debian.read(), None, libraries=True) == ["libraries: there is no record of it"]


def test_a_release_of_which_no_names_are_known_is_left_as_it_is(debian: Container) -> None:
    release = debian.root / "etc/os-release"
    stock, before = release.read_text(), debian.packages()
    try:
        release.write_text('ID=ubuntu\nVERSION_ID="28.04"\n')
        said = debian.refusal(script("video"))
        assert "it is ubuntu 28.04" in said and "debian 12, debian 13, ubuntu 22.04" in said
        release.write_text(stock)
        assert "Debian 13 has no intel-opencl-icd" in debian.refusal(script("compute"))
    finally:
        release.write_text(stock)
    assert debian.packages() == before


def test_video_that_doesnt_work_on_the_card_ends_the_run(tmp_path: Path) -> None:
    machine = Container(tmp_path, "containers-pve8", DEBIAN)
    cards = Cards(cards=(f"{UHD}=render",))

    def verified() -> str:
        wanted = ContainerVerification(ctid=DEBIAN, cards=cards, uses=("video",))
        return run_layer(machine.host.machine, "apply", "container_verification", wanted).stdout

    nodes = (machine.host.root / f"sys/bus/pci/devices/{UHD}/drm").iterdir()
    render = next(node.name for node in nodes if node.name.startswith("renderD"))
    conf = machine.host.root / f"etc/pve/lxc/{DEBIAN}.conf"
    conf.write_text(f"dev0: /dev/dri/{render},mode=0666\n{conf.read_text()}")
    machine.host.output(f"pct stop {DEBIAN}; pct start {DEBIAN}")
    assert "vainfo fails (exit status 127)" in verified()
    machine.answer("apply", script("video"))
    (tried,) = json.loads(verified())["tried"]
    assert "vainfo works, Driver version: Intel iHD driver" in tried
    for driver in ("iHD", "i965"):
        (machine.root / f"usr/lib/x86_64-linux-gnu/dri/{driver}_drv_video.so").unlink()
    said = verified()
    assert said.startswith(f"wanted: video (VA-API) on each Intel and AMD card of container {DEBIAN}\n")
    assert (
        "vainfo fails (exit status 3): " in said
        and "vaInitialize failed with error code -1" in said
        and "newer drivers" in said
    )
