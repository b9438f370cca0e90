"""shared/apt.py with this machine's own apt, in a folder, on repositories of a few lines."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_scripts.shared.apt import THE_SYSTEMS, aside
from remote_scripts.shared.packages import Packages
from remote_scripts.shared.software import Software
from remote_scripts.shared.symptoms import Context
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests.agent.kit import Host

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="this machine has no apt")

PINS = {"homelab-nvidia": "Package: libnvidia-*\nPin: version 570.*\nPin-Priority: 1001\n"}


def repository(folder: Path, packages: dict[str, str]) -> str:
    """A flat one; its address. `packages`: NAME VERSION -> what it depends on."""
    folder.mkdir(parents=True)
    rows = [
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nDepends: {needed}\nFilename: ./{name}.deb\nSize: 1\nSHA256: {'0' * 64}"
        for (name, version), needed in ((word.split(), needed) for word, needed in packages.items())
    ]
    (folder / "Packages").write_text("\n\n".join(rows) + "\n")
    return f"copy:{folder}"


class Machine:
    """A system in a folder, whose apt is this machine's own."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = Host(place).root
        for folder in (
            "var/lib/dpkg",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/log/apt",
            "run",
        ):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("sources.list.d", "preferences.d", "apt.conf.d"):
            (self.root / "etc/apt" / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "var/lib/dpkg/status").touch()
        own = repository(place / "distribution", {"dkms 1": "", "libnvidia-580 580.1-1": ""})
        (self.root / "etc/apt/sources.list.d/own.list").write_text(f"deb [trusted=yes] {own} ./\n")
        self.hook = place / "hook"
        for name in ("apt.conf.d/hooks", "apt.conf.d/zzz", "apt.conf"):
            (self.root / "etc/apt" / name).write_text(f'APT::Update::Post-Invoke {{ "touch {self.hook}"; }};\n')
        config = place / "apt.conf"
        config.write_text(
            f'Dir "{self.root}";\nDir::State::status "{self.root}/var/lib/dpkg/status";\n'
            'Dir::Bin::methods "/usr/lib/apt/methods";\n\nAPT::Sandbox::User "root";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(config))
        subprocess.run(["apt-get", "-q", "update"], check=True, capture_output=True)
        self.hook.unlink()
        self.packages = Packages(System(self.root), Software(context=Context(name="it")), "test")

    def tree(self) -> dict[str, tuple[int, int]]:
        """Each file below /etc and /var, with its times."""
        found = {
            path: path.lstat()
            for folder in ("etc", "var")
            for path in (self.root / folder).rglob("*")
            if "homelab" not in path.parts
        }
        return {str(path): (about.st_mtime_ns, about.st_ctime_ns) for path, about in found.items()}

    def look(self, line: str, there: Sequence[str] = ()) -> tuple[dict[str, list[str]], str]:
        """What a source has beside the system's own, and what would come with a package of it."""
        files = self.packages.system.files
        try:
            with aside(files, {"more.list": f"{line}\n"}, PINS, there) as self.packages.aside:
                self.packages.fetch_aside()
                return self.packages.offered("libnvidia-570", "libnvidia-580"), self.packages.simulated(
                    "install", "libnvidia-570"
                ).text
        finally:
            self.packages.aside = THE_SYSTEMS


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_it_sees_more_than_the_system_and_changes_nothing_of_it(machine: Machine, tmp_path: Path) -> None:
    more = repository(tmp_path / "more", {"libnvidia-570 570.2-1": "libnvidia-580", "libnvidia-580 570.9-1": ""})
    before = machine.tree()
    offered, coming = machine.look(f"deb [trusted=yes] {more} ./")
    assert offered == {"libnvidia-570": ["570.2-1"], "libnvidia-580": ["580.1-1", "570.9-1"]}
    # By its own pins.
    assert "Inst libnvidia-580 (570.9-1" in coming
    assert machine.tree() == before and not machine.hook.exists()
    assert not list((machine.root / "run/homelab").glob("apt-*"))
    assert machine.packages.offered("libnvidia-570") == {"libnvidia-570": []}


def test_lists_that_the_system_has_are_fetched_anew(machine: Machine, tmp_path: Path) -> None:
    own = (machine.root / "etc/apt/sources.list.d/own.list").read_text()
    shutil.rmtree(tmp_path / "distribution")
    repository(tmp_path / "distribution", {"libnvidia-570 570.3-1": ""})
    offered, _ = machine.look(own.strip(), there=["more.list"])
    assert offered == {"libnvidia-570": ["570.3-1"], "libnvidia-580": []}
    assert machine.packages.offered("libnvidia-570") == {"libnvidia-570": []}


@pytest.mark.skipif(not shutil.which("gpg"), reason="this machine has no gpg")
@pytest.mark.parametrize("signer", ["nvidia", "other"])
def test_of_the_keys_in_a_file_the_one_with_the_fingerprint_counts_alone(
    machine: Machine, tmp_path: Path, signer: str, request: pytest.FixtureRequest
) -> None:
    home = tempfile.mkdtemp(dir="/tmp")  # the path of its agent's socket is to be short
    request.addfinalizer(lambda: shutil.rmtree(home))
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]

    def said(*words: str, text: str = "") -> str:
        return subprocess.run([*gpg, *words], input=text, check=True, capture_output=True, text=True).stdout

    for name in ("nvidia", "other"):
        said("--quick-generate-key", name, "rsa2048")
    key = tmp_path / "keys.asc"
    key.write_text(said("--armor", "--export", "nvidia") + said("--armor", "--export", "other"))
    fingerprint = next(
        line for line in said("--with-colons", "--list-keys", "nvidia").split("\n") if line[:4] == "fpr:"
    )
    url = repository(tmp_path / "signed", {"libnvidia-570 570.2-1": ""})
    packages = (tmp_path / "signed/Packages").read_bytes()
    release = f"Date: Thu, 26 Nov 2026 00:00:00 UTC\nSHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    (tmp_path / "signed/InRelease").write_text(said("-u", signer, "--clearsign", text=release))
    line = f"deb [signed-by={key},{fingerprint.strip(':').rpartition(':')[2]}] {url} ./"
    if signer == "nvidia":
        assert machine.look(line)[0]["libnvidia-570"] == ["570.2-1"]
    else:
        with pytest.raises(Failure, match="is not signed"):
            machine.look(line)
