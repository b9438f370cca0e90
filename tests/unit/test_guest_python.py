"""homelab/remote/guest_python.py: what is asked of a VM's apt, and what is noted before it begins, by texts that a real bash runs in a folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from homelab.errors import HomelabError
from homelab.remote import guest_python, ssh
from homelab.settings.nvidia import Nvidia
from tests.waiting import PATIENCE

RECORD = "var/lib/homelab/packages/nvidia-repository"
# As apt 2.6 says it.
NEW = """\
Reading package lists...
Inst libpython3-stdlib (3.11.2-1+b1 Debian:12.11/stable [amd64])
Inst python3 (3.11.2-1+b1 Debian:12.11/stable [amd64])
Conf libpython3-stdlib (3.11.2-1+b1 Debian:12.11/stable [amd64])
Conf python3 (3.11.2-1+b1 Debian:12.11/stable [amd64])
"""
OF_NEW = "libpython3-stdlib\t3.11.2-1+b1\t-\tauto\npython3\t3.11.2-1+b1\t-\tauto\n"
OTHERS = "Inst libexpat1 [2.5.0-1] (2.5.0-1+deb12u1 Debian:12.11/stable [amd64]) []\nInst media-types [10.0.0] (10.1.0 Debian:12.11/stable [all])\n"


class Guest:
    """A VM: a folder, with an apt-get that says this when it is asked what it would do."""

    def __init__(self, folder: Path, announced: str = NEW) -> None:
        self.root, self.programs, self.calls = folder / "root", folder / "bin", folder / "calls"
        self.root.mkdir()
        self.programs.mkdir()
        (folder / "announced").write_text(announced)
        # It notes what it is asked, its proxy, and whether the record is there by then.
        self.program(
            "apt-get",
            f"""echo "$* proxy=$http_proxy record=$(cat "$ROOT"/{RECORD} 2>/dev/null | wc -l)" >>{self.calls}
            case " $* " in *" -s "*) cat {folder}/announced ;; *" update "*) exit 100 ;; esac""",
        )
        self.program("apt-mark", "echo media-types")

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.programs / name).chmod(0o755)

    def run(self, verb: str, text: str, seconds: float = 0) -> str:
        done = subprocess.run(
            ["bash", "-s", "--", verb],
            input=text,
            env={"PATH": f"{self.programs}:{os.environ['PATH']}", "ROOT": str(self.root)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, **settings: Any) -> None:
        nvidia = Nvidia.model_validate(settings)
        guest_python.install(cast(ssh.Session, self), "vms.box", nvidia)

    @property
    def record(self) -> str:
        return (self.root / RECORD).read_text()

    def asked(self) -> list[str]:
        """What apt-get was asked, without its options."""
        return self.calls.read_text().splitlines()


def test_what_apt_brings_is_noted_as_the_layers_own_before_it_comes(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.install()
    assert guest.record == OF_NEW and (guest.root / RECORD).stat().st_mode & 0o777 == 0o600
    assert not [*(guest.root / RECORD).parent.glob(".*")]
    update, simulated, installed = guest.asked()
    assert " update " in update and " -s " in simulated and " -y " in installed  # a list that can't be had is no matter
    assert simulated.endswith("record=0") and installed.endswith(
        "--no-install-recommends install python3 proxy= record=2"
    )


def test_a_record_that_is_there_keeps_what_was_before(tmp_path: Path) -> None:
    guest = Guest(tmp_path, NEW + OTHERS)
    path = guest.root / RECORD
    path.parent.mkdir(parents=True)
    path.write_text("gnupg\t2\t-\tauto\nlibexpat1\t2.5.0-1\t2.4\tmanual\npython3\t-\t-\tauto\n")
    guest.install()
    assert guest.record == (
        "gnupg\t2\t-\tauto\nlibexpat1\t2.5.0-1+deb12u1\t2.4\tmanual\nlibpython3-stdlib\t3.11.2-1+b1\t-\tauto\n"
        "media-types\t10.1.0\t10.0.0\tmanual\npython3\t3.11.2-1+b1\t-\tauto\n"
    )


def test_a_proxy_is_in_the_environment_and_on_no_command_line(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    texts: list[str] = []
    run = guest.run

    def heard(verb: str, text: str, seconds: float = 0) -> str:
        texts.append(f"{verb} {text}")
        return run(verb, text, seconds)

    guest.run = heard  # type: ignore[method-assign]
    guest.install(proxy="http://ann:it%27s-$ecret@192.0.2.1:3128")
    assert all("proxy=http://ann:it%27s-$ecret@192.0.2.1:3128 record" in line for line in guest.asked())
    lines = [line for text in texts for line in text.splitlines() if "ecret" in line]
    assert lines and all(line.startswith("export ") or " export " in line for line in lines)


@pytest.mark.parametrize(
    ("announced", "apt", "found"),
    [
        (f"{NEW}Remv theirs [1]\nPurg other [2]\n", "", "other theirs would be removed"),
        ("", "echo 'E: Unable to locate package python3'; exit 100", "exit status 100: E: Unable to locate package"),
        ("", "exit 127", "exit status 127"),
    ],
    ids=["it would remove", "it knows none", "there is no apt"],
)
def test_what_apt_can_not_do_is_said_and_nothing_is_noted(tmp_path: Path, announced: str, apt: str, found: str) -> None:
    guest = Guest(tmp_path, announced)
    if apt:
        guest.program("apt-get", apt)
    with pytest.raises(HomelabError, match=found) as error:
        guest.install()
    assert error.value.wanted.startswith("vms.box: python3") and not (guest.root / RECORD).exists()


def test_anothers_lock_is_waited_for_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_python, "_LOOK_SECONDS", 0.01)
    guest = Guest(tmp_path)
    says = "echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)'; exit 100"
    free = (guest.programs / "apt-get").read_text()
    guest.program("apt-get", f"if [ ! -e {tmp_path}/met ]; then touch {tmp_path}/met; {says}; fi\n{free}")
    guest.install()
    assert guest.record == OF_NEW and len(guest.asked()) == 3
    guest.program("apt-get", says)
    with pytest.raises(HomelabError, match="Could not get lock"):
        guest.install(timeouts={"lock": 1})
