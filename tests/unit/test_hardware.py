"""homelab/hardware.py and `homelab report`: what an owner's report says, what it never holds, and the table of reports in docs/tiers.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from homelab import hardware
from homelab.cli import report
from homelab.cli.command_line import main
from homelab.doctor.reading import Reading
from homelab.doctor.whole import Part, Whole
from homelab.errors import HomelabError
from tests import hardware as reports
from tests.unit.hosts import KEY, desktop, driven, settings
from tests.unit.test_doctor import diagnose_host, reading

MACHINE = {"machine": "AOOSTAR WTR MAX", "processor": "AMD Ryzen 7 8845HS w/ Radeon 780M Graphics"}


def bound(**changes: Any) -> Reading:
    extra = {key: changes.pop(key, text) for key, text in MACHINE.items()}
    return reading(facts=desktop(devices=driven("vfio-pci"), **changes), **extra)


def told(seen: Reading) -> Whole:
    """The doctor's report of a host, and of a VM that can't be read."""
    lost = HomelabError(wanted="VM 103 (gaming) on pve", found="192.168.0.202", why="w", next="n")
    return Whole("mine", [Part("hosts.pve", diagnose_host(seen, settings(node="pve"))), Part("vms.gaming", error=lost)])


def test_machine_cards_and_versions_are_passed_on_without_names_and_addresses() -> None:
    host, vm = hardware.passed_on(told(bound()).values())
    assert {key: host[key] for key in ("kind", "well", "kernel", "pve", "iommu", *MACHINE)} == {
        **MACHINE, "kind": "host", "well": False, "kernel": desktop().kernel, "pve": desktop().pve, "iommu": {"groups": 21},
    }  # fmt: skip
    (card,) = host["cards"]
    assert (card["model"], card["use"]) == ("RTX 5090", "vm")
    assert [(one["id"], one["driver"], one["group"]) for one in card["functions"]] == [
        ("10de:2b85", "vfio-pci", 16),
        ("10de:22e8", "vfio-pci", 16),
    ]
    assert host["findings"] and {tuple(finding) for finding in host["findings"]} == {("stage", "turn")}
    assert vm == {"kind": None, "well": False, "findings": None}
    text = json.dumps([host, vm])
    assert not re.search(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]{4}:[0-9a-f]{2}:|\bpve[^\"]|gaming|mine", text), text


def test_text_of_a_host_that_could_hold_anything_is_left_out() -> None:
    odd = bound(kernel="6.17 192.168.0.202\n", pve="x" * 200, machine="a\x1b[0m", processor="p" * 500)
    host, _ = hardware.passed_on(told(odd).values())
    assert [host[key] for key in ("kernel", "pve", "machine", "processor")] == [""] * 4


def test_the_command_writes_the_file_unless_a_host_cant_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: homelab\n")
    host = {"address": "192.168.0.202", "ssh": {"hostKey": KEY, "agent": True}, "gpus": {"gpu": {"match": "10de:2b85"}}}
    (tmp_path / "Pulumi.homelab.yaml").write_text(json.dumps({"config": {"homelab:hosts": {"pve": host}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("homelab.reading.diagnosis.read", lambda *_: bound())
    assert report.main(["--undo", "all as before"]) == 0
    made = json.loads((tmp_path / "homelab-report.json").read_text())
    assert made["undo"] == "all as before" and made["parts"][0]["cards"][0]["model"] == "RTX 5090"
    assert json.dumps(made, indent=2) in capsys.readouterr().out

    def away(*_: object) -> None:
        raise HomelabError(wanted="an SSH connection", found="off", why="w", next="n")

    monkeypatch.setattr("homelab.reading.diagnosis.read", away)
    assert main(["report"]) == 2 and "an SSH connection" in capsys.readouterr().err


def test_the_page_is_made_of_the_reports_and_says_that_there_are_none() -> None:
    page = reports.DOCUMENT.read_text(encoding="utf-8")
    assert reports.written(page, reports.load()) == page
    assert ("None yet." in page) is not bool(reports.load())


def test_no_report_holds_an_address() -> None:
    for path in reports.FOLDER.glob("*.json"):
        assert not re.search(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]{4}:[0-9a-f]{2}:|GPU-", path.read_text(encoding="utf-8")), (
            path
        )


def test_a_reports_row() -> None:
    file = {"homelab": "2.0.0", "date": "2026-12-01", "undo": "not tried"}
    whole = {**file, "parts": hardware.passed_on(told(bound()).values())}
    page = reports.written("<!-- table: reports -->\n<!-- end -->\n", [whole])
    assert "| AOOSTAR WTR MAX | RTX 5090 [10de:2b85] | vm |" in page and "| vfio-pci | 0 of 2 |" in page
