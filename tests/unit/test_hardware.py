"""homelab/hardware.py and `homelab report`: what an owner's report says, what it never holds, and docs/hardware.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab import contract, hardware
from homelab.cli import report
from homelab.cli.pulumi import Pulumi
from homelab.errors import HomelabError
from tests import hardware as reports
from tests.unit.hosts import KEY, desktop, device, settings
from tests.unit.test_contract import values
from tests.unit.test_doctor import reading

MAPPING = "rtx5090\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00\n"
GUESTS = {"running": [], "configs": [], "mappings": MAPPING, "reservations": ""}
NVIDIA: dict[str, Any] = {
    "driver": "580.105.08", "flavour": "open", "cuda": "12.8", "program": True, "unchecked": [],
    "gpus": [{"name": "NVIDIA GeForce RTX 5090", "uuid": "GPU-1c2d", "address": "00000000:01:00.0"}],
}  # fmt: skip


def bound(driver: str = "vfio-pci", **changes: Any) -> Any:
    functions = [
        device(f"0000:01:00.{number}", ids, code, 16, driver=driver)
        for number, (ids, code) in enumerate((("10de:2b85", "030000"), ("10de:22e8", "040300")))
    ]
    words = "quiet amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0"
    facts = {
        "devices": functions,
        "guests": GUESTS,
        "modules": ["vfio", "vfio_iommu_type1", "vfio_pci"],
        "cmdline": {"running": words, "configured": words, "others": "quiet", "generated": "quiet"},
    }
    machine: dict[str, Any] = {"machine": "AOOSTAR WTR MAX", "processor": "AMD Ryzen 7 8845HS w/ Radeon 780M Graphics"}
    return reading(facts=desktop(**facts | changes), **machine)


def outputs(**nvidia: Any) -> contract.Outputs:
    made = values()
    if nvidia:
        made["vms"]["sandbox"]["nvidia"] = nvidia
    return contract.consumed("homelab", made)


def criteria(found: hardware.HostReport) -> dict[str, tuple[bool | None, str]]:
    every = [*found.criteria, *(one for card in found.cards for one in card.criteria)]
    return {one.criterion: (one.met, one.evidence) for one in every}


def test_each_criterion_of_a_card_in_a_vm_with_its_evidence() -> None:
    made = hardware.of_host(bound(), "pve", settings(node="pve"), outputs(**NVIDIA))
    assert criteria(made) == {
        "the IOMMU is on": (True, "21 groups; on the command line: amd_iommu=on iommu=pt"),
        "the VFIO modules are loaded": (True, "loaded: vfio, vfio_iommu_type1, vfio_pci"),
        "each function is on vfio-pci, none on a driver of the host": (
            True, "function 0 [10de:2b85]: vfio-pci, function 1 [10de:22e8]: vfio-pci",
        ),
        "it is offered to VMs": (True, "a PCI mapping of Proxmox VE has it"),
        "a VM sees the card": (True, "nvidia-smi inside a VM lists it"),
        "NVIDIA's driver works in a VM": (True, "580.105.08, open modules: NVIDIA GeForce RTX 5090"),
        "a CUDA program ran in a VM": (True, "CUDA 12.8"),
    }  # fmt: skip
    assert (made.machine, made.cards[0].model, made.cards[0].id) == ("AOOSTAR WTR MAX", "RTX 5090", "10de:2b85")


@pytest.mark.parametrize(
    ("changes", "criterion"),
    [
        ({"iommu": {"tables": [], "groups": 0, "kernel_log": ""}}, "the IOMMU is on"),
        ({"modules": ["vfio"]}, "the VFIO modules are loaded"),
        ({"guests": GUESTS | {"mappings": MAPPING.replace("01:00", "02:00")}}, "it is offered to VMs"),
        ({"guests": GUESTS | {"mappings": MAPPING.replace("node=pve", "node=far")}}, "it is offered to VMs"),
        ({"driver": "nouveau"}, "each function is on vfio-pci, none on a driver of the host"),
        ({"devices": []}, "the card is there"),
    ],
)
def test_what_is_not_so_is_said(changes: dict[str, Any], criterion: str) -> None:
    assert criteria(hardware.of_host(bound(**changes), "pve", settings(node="pve"), outputs()))[criterion][0] is False


def test_what_nobody_looked_at_is_not_known() -> None:
    unknown = {
        made["a VM sees the card"] if "a VM sees the card" in made else made["a guest sees the card"]
        for made in (
            criteria(hardware.of_host(bound(), "pve", settings(node="pve"), seen)) for seen in (outputs(), None)
        )
    }
    assert {met for met, _ in unknown} == {None}


def test_text_of_a_host_that_could_hold_anything_is_left_out() -> None:
    odd = bound(kernel="6.17 192.168.0.202\n", pve="x" * 200)
    made = hardware.of_host(
        replace(odd, extra=replace(odd.extra, machine="a\x1b[0m", processor="p" * 500)),
        "pve", settings(node="pve"), outputs(**NVIDIA | {"driver": "<script>"}),
    )  # fmt: skip
    assert (made.kernel, made.proxmox, made.machine, made.processor) == ("", "", "", "")
    assert "script" not in str(made)


def test_the_command_writes_the_file_also_where_the_outputs_cant_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: homelab\n")
    host = {"address": "192.168.0.202", "ssh": {"hostKey": KEY, "agent": True}, "gpus": {}}
    settings_file = tmp_path / "Pulumi.homelab.yaml"
    settings_file.write_text(
        json.dumps({"config": {"homelab:hosts": {"pve": host | {"gpus": {"gpu": {"match": "10de:2b85"}}}}}})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Pulumi,
        "find",
        classmethod(lambda *_: (_ for _ in ()).throw(HomelabError(wanted="w", found="f", why="y", next="n"))),
    )

    def read(*_: object) -> Any:
        return bound()

    monkeypatch.setattr("homelab.remote.diagnosis.read", read)
    assert report.main(["--undo", "all as before"]) == 0
    shown = capsys.readouterr()
    assert "stays unknown in this report" in shown.err and "undo by `pulumi destroy`: all as before" in shown.out
    made = hardware.HardwareReport.model_validate_json((tmp_path / "homelab-report.json").read_text())
    assert made.hosts[0].cards[0].model == "RTX 5090" and made.undo == "all as before"


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
    made = hardware.of_host(bound(), "pve", settings(node="pve"), outputs(**NVIDIA))
    whole = hardware.HardwareReport(homelab="1.0.0", date="2026-12-01", undo="not tried", hosts=[made])
    page = reports.written("<!-- table: reports -->\n<!-- end -->\n", [whole])
    assert "| AOOSTAR WTR MAX | RTX 5090 [10de:2b85] | vm |" in page and "7 of 7" in page
