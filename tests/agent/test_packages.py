"""Packages on a folder: what is installed and recorded where a system has packages of a second architecture, as it has for Steam and Wine; and what of apt's
answers isn't taken for "nothing"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from remote_scripts.shared.installed import installed, offered
from remote_scripts.shared.packages import Packages
from remote_scripts.shared.software import Software
from remote_scripts.shared.symptoms import Context
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import Done
from tests.agent.kit import Host

SOFTWARE = Software(context=Context(name="it"), lock_seconds=0)
LIBRARY = "libnvidia-gl-580"


class Apt:
    """A system of amd64 with packages of i386, too: with the library comes that of i386, which it recommends."""

    def __init__(self, host: Host) -> None:
        self.there = {("dpkg", "amd64"): "installed"}
        #: What changed something.
        self.calls: list[Sequence[str]] = []
        host.programs |= {
            "dpkg-query": lambda _a, _i: "".join(
                f"{name}\t{state}\t1\t{architecture}\n" for (name, architecture), state in self.there.items()
            ),
            "apt-get": self._apt,
            "apt-mark": lambda *_: "",
            "apt-cache": lambda *_: (
                f"Package: {LIBRARY}\nArchitecture: amd64\nVersion: 1\nSHA256: a\n\n"
                f"Package: {LIBRARY}\nArchitecture: i386\nVersion: 1\nSHA256: b\n"
            ),
        }

    def _apt(self, arguments: Sequence[str], _stdin: bytes) -> str:
        keys = [(LIBRARY, "amd64"), (LIBRARY, "i386")]
        verb = "Inst" if "install" in arguments else "Purg"
        if verb == "Purg":
            keys = [key for key in keys if (key[0] if key[1] == "amd64" else ":".join(key)) in arguments]
        lines = []
        for name, architecture in keys:
            shown = name if architecture == "amd64" else f"{name}:{architecture}"
            if (verb == "Inst") == ((name, architecture) not in self.there):
                lines.append(f"{shown} (1 x [{architecture}])" if verb == "Inst" else f"{shown} [1]")
        if "-s" not in arguments:
            self.calls.append(arguments)
            for key in keys:
                if verb == "Inst":
                    self.there[key] = "installed"
                else:
                    del self.there[key]
        return "".join(f"{verb} {line}\n" for line in lines)


def test_what_comes_of_a_second_architecture_is_recorded_and_goes_again(host: Host) -> None:
    apt = Apt(host)
    system = host.system()
    packages = Packages(system, SOFTWARE, "it")
    packages.install([LIBRARY], recommends=True)
    assert sorted(packages.records()) == [LIBRARY, f"{LIBRARY}:i386"]
    system = host.system()
    packages = Packages(system, SOFTWARE, "it")
    packages.remove()
    assert apt.there == {("dpkg", "amd64"): "installed"} and not packages.kept and system.files.changed
    for call in apt.calls:  # what a user has made of a file of configuration stays, and nothing is asked
        assert {"-y", "Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"} <= {*call}


def test_one_architectures_package_isnt_taken_for_anothers(host: Host) -> None:
    apt = Apt(host)
    apt.there |= {(LIBRARY, "amd64"): "installed", (LIBRARY, "i386"): "config-files", ("x", "all"): "installed"}
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
    Apt(host)
    host.programs[program] = lambda *_: done
    with pytest.raises(Failure, match="Malformed" if done.error else "no answer in time"):
        if program == "apt-mark":
            Packages(host.system(), SOFTWARE, "it").marked_manual()
        else:
            offered(host.system(), LIBRARY)


def test_a_package_that_no_repository_has_is_offered_in_no_version(host: Host) -> None:
    host.programs["apt-cache"] = lambda *_: Done(100, b"", b"E: No packages found\n")
    assert offered(host.system(), LIBRARY) == {LIBRARY: []}


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
    packages = Packages(host.system(), SOFTWARE, "it")
    if not is_remark:
        with pytest.raises(Failure):
            packages.update(NVIDIAS)
        return
    packages.update(NVIDIAS)
    # Nor is it why a package isn't known.
    unknown = Done(100, b"", said=b"E: Unable to locate package nvidia-open")
    with pytest.raises(Failure) as raised:
        packages.explain_install(unknown, "nvidia-open")
    assert "Unable to locate" in raised.value.found


@pytest.mark.parametrize(
    ("first", "why"), [("nv.c:12:5: error: too few", "it is older"), ("nv.c: warning", "it is needed")]
)
def test_why_a_build_fails_is_looked_for_far_above_the_end_of_its_log(
    host: Host, first: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a compiler works on several files at a time, others go on after the first error."""
    row = (
        '{"name": "old", "pattern": "error:", "where": "dkms", "wanted": "w", "source": "s", "evidence": "report", '
        '"causes": [{"why": "it is older", "next": "n"}]}'
    )
    monkeypatch.setattr("remote_scripts.tables.SYMPTOMS", f"[{row}]")
    log = [first, *(f"  CC [M]  nvidia/nv-{number}.o" for number in range(50))]
    host.programs["tail"] = lambda arguments, _: "\n".join(log[-int(arguments[1]) :]) + "\n"
    with pytest.raises(Failure) as raised:
        Packages(host.system(), SOFTWARE, "it").explain(
            "see /var/lib/dkms/nvidia/1/make.log", "a build", "it is needed"
        )
    assert raised.value.why == why
    assert raised.value.found.endswith("nv-49.o") and "nv-37.o" not in raised.value.found


def refused(host: Host, plan: str, failed: Done) -> Packages:
    """The packages of a system whose apt-get fails; x is and stays half configured."""

    def apt(arguments: Sequence[str], _stdin: bytes) -> Done | str:
        return plan if "-s" in arguments else failed

    host.programs |= {
        "dpkg-query": lambda *_: "dpkg\tinstalled\t1\tamd64\nx\thalf-configured\t1\tall\n",
        "dpkg": lambda *_: 1,
        "apt-get": apt,
        "apt-mark": lambda *_: "",
    }
    return Packages(host.system(), SOFTWARE, "it", may_remove=re.compile("x"))


def test_a_package_that_cannot_be_configured_is_not_taken_for_installed(host: Host) -> None:
    """It is there: apt announces nothing, and fails."""
    failed = Done(100, b"dpkg: error processing package x\n")
    packages = refused(host, "Conf x (1 x [all])\n", failed)
    with pytest.raises(Failure, match="processing package x"):
        packages.install(["x"])


def test_a_package_that_stays_is_not_taken_for_removed(host: Host) -> None:
    packages = refused(host, "Remv x [1]\n", Done(100, b"prerm failed\n"))
    with pytest.raises(Failure, match="prerm failed"):
        packages.make_way(["x"], "the driver's packages", "NVIDIA's installer")


def test_no_try_of_a_download_begins_once_its_time_is_up(host: Host) -> None:
    """It would take away what a slow line has brought, which the next run goes on with."""
    given: list[str] = []

    def curl(arguments: Sequence[str], _stdin: bytes) -> Done:
        given.extend(arguments)
        return Done(28, b"timed out\n")

    host.programs["curl"] = curl
    with pytest.raises(Failure):
        Packages(host.system(), SOFTWARE, "it").download("https://x/y.run", "/var/lib/homelab/downloads/y.run")
    times = {option: given[given.index(option) + 1] for option in ("--max-time", "--retry-max-time")}
    assert len({*times.values()}) == 1
