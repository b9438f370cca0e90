"""apt/apt.py: what of apt's and dpkg's answers isn't taken for something else, with functions in their place; and packages of a second architecture, which a
system has for Steam and Wine, with this machine's own. What a layer does with it is in test_nvidia_packages.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.packages import installed
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from tests.agent import apt_kit
from tests.agent.apt_kit import SOFTWARE, Machine
from tests.agent.kit import Host

LIBRARY = "libnvidia-gl-580"


@apt_kit.needs_apt
def test_what_comes_of_a_second_architecture_is_recorded_and_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos = {name: apt_kit.Repo(tmp_path / "repos" / name) for name in ("distribution", "nvidia")}
    repos["distribution"].add("dpkg")
    repos["distribution"].add("gdm")
    repos["distribution"].add(LIBRARY, Multi_Arch="same", Recommends=f"{LIBRARY}:i386")
    repos["distribution"].add(LIBRARY, Multi_Arch="same", Architecture="i386")
    machine = Machine(tmp_path / "it", apt_kit.stocked(tmp_path, repos), repos, monkeypatch)
    before = machine.versions()
    apt = Apt(machine.system(), SOFTWARE, "it")
    apt.install([LIBRARY], recommends=True)
    assert sorted(apt.records()) == [LIBRARY, f"{LIBRARY}:i386"]
    apt = Apt(machine.system(), SOFTWARE, "it")
    assert apt.tidy([LIBRARY], recommends=True) == [f"{LIBRARY}:i386"]
    assert apt.tidy() == [] and machine.versions() == before


def test_one_architectures_package_isnt_taken_for_anothers(host: Host) -> None:
    ours = f"{LIBRARY}\tinstalled\t1\tamd64\n{LIBRARY}\tconfig-files\t1\ti386\n"
    host.programs["dpkg-query"] = lambda *_: f"dpkg\tinstalled\t1\tamd64\n{ours}x\tinstalled\t1\tall\n"
    found = installed(host.system())
    assert found.whole == {"dpkg": "1", LIBRARY: "1", "x": "1"} and found.left == {f"{LIBRARY}:i386"}


@pytest.mark.parametrize(
    ("program", "done"),
    [
        ("apt-mark", Done(100, b"", b"E: Malformed entry 1 in list file /etc/apt/sources.list.d/x.list\n")),
        ("apt-cache", Done(100, b"", b"E: Malformed entry 1 in list file /etc/apt/sources.list.d/x.list\n")),
        ("apt-cache", Done(124, b"")),
    ],
)
def test_apt_that_doesnt_answer_isnt_taken_for_no_package(host: Host, program: str, done: Done) -> None:
    host.programs[program] = lambda *_: done
    apt = Apt(host.system(), SOFTWARE, "it")
    with pytest.raises(Failure, match="Malformed" if done.error else "no answer in time"):
        if program == "apt-mark":
            apt.marked("manual")
        else:
            apt.offered(LIBRARY)


def test_a_package_that_no_repository_has_is_offered_in_no_version(host: Host) -> None:
    host.programs["apt-cache"] = lambda *_: Done(100, b"", b"E: No packages found\n")
    assert Apt(host.system(), SOFTWARE, "it").offered(LIBRARY) == {LIBRARY: []}


NVIDIAS = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64"
UNPAID = (
    "E: Failed to fetch https://enterprise.proxmox.com/debian/pve/dists/trixie/InRelease  401  Unauthorized\n"
    "E: The repository 'https://enterprise.proxmox.com/debian/pve trixie InRelease' is not signed.\n"
)


@pytest.mark.parametrize(
    ("line", "is_remark"),
    [
        # What a method says of a file that it has fetched (apt, acquire-worker.cc, 104 Warning).
        (f"W: {NVIDIAS}/InRelease: Key is stored in legacy trusted.gpg keyring (/etc/apt/trusted.gpg), see …", True),
        (f"Warning: {NVIDIAS}/InRelease: Policy will reject signature within a year, see --audit for details", True),
        (f"E: Failed to fetch {NVIDIAS}/Packages  File has unexpected size (1 != 2). Mirror sync in progress?", False),
        (f"W: OpenPGP signature verification failed: {NVIDIAS} InRelease: EXPKEYSIG A4B469963BF863CC", False),
    ],
)
def test_a_remark_of_apts_about_a_list_that_it_has_is_no_failure(host: Host, line: str, is_remark: bool) -> None:
    host.programs["apt-get"] = lambda *_: Done(100, f"{line}\n{UNPAID}".encode())
    (host.root / "run/homelab").mkdir(parents=True)
    apt = Apt(host.system(), SOFTWARE, "it")
    if not is_remark:
        with pytest.raises(Failure):
            apt.update(NVIDIAS)
        return
    apt.update(NVIDIAS)
    # Nor is it why a package isn't known.
    unknown = Done(100, b"", said=b"E: Unable to locate package nvidia-open")
    with pytest.raises(Failure) as raised:
        apt.explain_install(unknown, "nvidia-open")
    assert "Unable to locate" in raised.value.found


def test_what_apts_own_user_has_to_read_lies_apart_from_what_is_roots_alone(host: Host) -> None:
    host.programs |= dict.fromkeys(("apt-get", "apt-cache", "find"), lambda *_: "")
    with Apt(host.system(), SOFTWARE, "it").aside() as apt:
        apt.add_source("nvidia.list", "deb x", is_new=True)
        places = [host.root / "run", *(host.root / "run").rglob("*")]
        assert not [place for place in places if not place.stat().st_mode & 0o004] and len(places) > 8
    assert not host.exists("/run/homelab") and not [*(host.root / "run").iterdir()]


@pytest.mark.parametrize(
    ("first", "why"), [("nv.c:12:5: error: too few", "it is older"), ("nv.c: warning", "it is needed")]
)
def test_why_a_build_fails_is_looked_for_far_above_the_end_of_its_log(
    host: Host, first: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a compiler works on several files at a time, others go on after the first error."""
    row = {"name": "old", "pattern": "error:", "where": "dkms", "wanted": "w"}
    symptoms = json.dumps([row | {"causes": [{"why": "it is older", "next": "n"}]}])
    monkeypatch.setattr("remote_scripts.tables.SYMPTOMS", symptoms)
    log = [first, *(f"  CC [M]  nvidia/nv-{number}.o" for number in range(50))]
    host.programs["tail"] = lambda arguments, _: "\n".join(log[-int(arguments[1]) :]) + "\n"
    with pytest.raises(Failure) as raised:
        Apt(host.system(), SOFTWARE, "it").explain("see /var/lib/dkms/nvidia/1/make.log", "a build", "it is needed")
    assert raised.value.why == why
    assert raised.value.found.endswith("nv-49.o") and "nv-37.o" not in raised.value.found


def refused(host: Host, plan: str, failed: Done) -> Apt:
    """A system whose apt-get fails; x is and stays half configured."""

    def apt(arguments: Sequence[str], _stdin: bytes) -> Done | str:
        return plan if "-s" in arguments else failed

    host.programs |= {
        "dpkg-query": lambda *_: "dpkg\tinstalled\t1\tamd64\nx\thalf-configured\t1\tall\n",
        "dpkg": lambda *_: 1,
        "apt-get": apt,
        "apt-mark": lambda *_: "",
    }
    return Apt(host.system(), SOFTWARE, "it")


def test_a_package_that_cannot_be_configured_is_not_taken_for_installed(host: Host) -> None:
    """It is there: apt announces nothing, and fails."""
    failed = Done(100, b"dpkg: error processing package x\n")
    with pytest.raises(Failure, match="processing package x"):
        refused(host, "Conf x (1 x [all])\n", failed).install(["x"])


def test_a_package_that_stays_is_not_taken_for_removed(host: Host) -> None:
    host.write("/var/lib/homelab/packages/it", "x\t1\t-\n")
    with pytest.raises(Failure, match="prerm failed"):
        refused(host, "Remv x [1]\n", Done(100, b"prerm failed\n")).install(["x-"])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Done(124, b"", said=b"given up\n"), "nvidia.timeouts.install"),
        (
            Done(100, b"E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)\n"),
            "held by process 7 (apt)",
        ),
    ],
)
def test_what_apt_cannot_do_now_is_said(host: Host, said: Done, words: str) -> None:
    apt = refused(host, "Inst y (1 x [all])\n", said)
    with pytest.raises(Failure) as raised:
        apt.install(["y"])
    assert words in f"{raised.value.found} {raised.value.next}"
