"""What only a reboot brings, by the cases that the reboot itself has; and of what was noted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_scripts.shared import lacking
from remote_scripts.tools.run import Done
from tests.agent.kit import Host
from tests.agent.reading_kit import says
from tests.scripts.conftest import Folder
from tests.scripts.test_lacking import CASES, Case, make


def made(host: Host, case: Case, place: Path) -> None:
    """The case's host; GRUB's words are the others'."""
    (host.root / "etc/default").mkdir()
    make(Folder(host.root, place), case)
    words = case.others.replace("\\", "")
    host.programs |= {"dpkg": says(""), "bash": says(f"{words}\n")}

    def modinfo(_arguments: Sequence[str], _stdin: bytes) -> Done:
        text = f"version:        {case.modules}\nlicense:        Dual MIT/GPL\n" if case.modules else ""
        return Done(0 if text else 1, text.encode())

    host.programs["modinfo"] = modinfo


def boot_of(case: Case) -> lacking.Boot:
    return lacking.Boot(
        words=tuple(case.words.split()), functions=case.functions, driver=case.driver, flavour=case.flavour
    )


@pytest.mark.parametrize("name", CASES)
def test_what_only_a_reboot_brings_is_said(host: Host, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "commands").mkdir()
    made(host, case, tmp_path / "commands")
    found = lacking.lacking(host.system(), boot_of(case), "grub")
    assert (tuple(found.reasons), tuple(found.perhaps)) == (case.reasons, case.perhaps)
    assert found.of_boot == len([reason for reason in case.reasons if "NVIDIA's" not in reason])


def test_what_was_noted_is_read_back(host: Host) -> None:
    assert lacking.noted(host.system()) is None
    host.write(lacking.WANTED, "iommu=pt a=b\n0000:01:00.0\n580.95.05\nopen\nc=d\n")
    words, functions = ("iommu=pt", "a=b"), ("0000:01:00.0",)
    expected = lacking.Boot(words=words, functions=functions, driver="580.95.05", flavour="open")
    assert lacking.noted(host.system()) == expected
    assert lacking.noted_words(host.system()) == ["iommu=pt", "a=b", "c=d"]
