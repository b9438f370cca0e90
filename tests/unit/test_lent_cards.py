"""examples/gaming_vm: what another stack's outputs say is looked at before anything is made with its card."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from lent_cards import lent

from homelab.errors import HomelabError
from homelab.settings import Host, NewVm, Settings, Vm
from tests.conftest import PROJECT
from tests.unit.test_contract import Values, values

STACK = "organization/homelab/homelab"


def free() -> Values:
    """The card bound and mapped, and in no VM."""
    found = values()
    del found["hosts"]["pve"]["gpus"]["rtx5090"]["holder"]
    found["vms"]["sandbox"]["gpus"] = []
    return found


def vm(**changes: Any) -> Vm:
    return Vm.model_validate({"host": "pve", "vmid": 104, "gpus": ["rtx5090"], **changes})


def refused(found: Values, wanted: Vm | None = None, node: str = "pve") -> str:
    with pytest.raises(HomelabError) as error:
        lent(STACK, found, "gaming", wanted or vm(), node)
    return str(error.value)


def test_a_free_card_is_given_with_its_mapping_and_its_slot() -> None:
    found = lent(STACK, free(), "gaming", vm(), "pve")
    assert found["cards"] == {"rtx5090": {"mapping": "rtx5090", "slot": "0000:01:00"}}
    assert found["boot"]["id"] == "3381e9c6-41c1-4b83-8c78-774635b464fd"
    assert found["boot"]["stopped"] == []


def test_a_card_that_a_vm_of_that_stack_has_is_not_taken_and_the_recipe_named() -> None:
    message = refused(values())
    assert "vms.sandbox (VM 103, Sandbox, running) of organization/homelab/homelab has it" in message
    assert "take rtx5090 out of homelab:vms.sandbox.gpus" in message and '"Hand-over"' in message
    assert "Hand-over" in (PROJECT / "examples" / "gaming_vm" / "README.md").read_text(encoding="utf-8")


def test_a_holder_that_is_off_is_a_holder_too() -> None:
    found = values()
    found["vms"]["sandbox"]["state"] = "stopped"
    assert "stopped" in refused(found)


def test_a_vm_without_a_card_asks_nobody() -> None:
    assert lent(STACK, values(), "gaming", vm(gpus=[]), "pve")["cards"] == {}


def test_another_cards_holder_is_in_nobodys_way() -> None:
    found = values()
    gpus = found["hosts"]["pve"]["gpus"]
    gpus["second"] = {**free()["hosts"]["pve"]["gpus"]["rtx5090"], "slot": "0000:02:00", "mapping": "second"}
    assert list(lent(STACK, found, "gaming", vm(gpus=["second"]), "pve")["cards"]) == ["second"]


def test_a_card_that_isnt_there_and_one_that_isnt_for_vms_are_both_named() -> None:
    found = free()
    gpus = found["hosts"]["pve"]["gpus"]
    gpus["small"] = {**gpus["rtx5090"], "use": "lxc"}
    del gpus["small"]["mapping"], gpus["small"]["hostpci"]
    message = refused(found, vm(gpus=["big", "small"]))
    assert "no big; " in message and "small has use: lxc" in message
    assert "offers to VMs: rtx5090" in message


@pytest.mark.parametrize(("host", "node"), [("pve", "pve2"), ("elsewhere", "pve")])
def test_another_machine_is_not_looked_for_the_card(host: str, node: str) -> None:
    assert "has pve (node pve)" in refused(free(), vm(host=host), node)


def test_a_vm_that_the_other_stack_has_is_left_to_it() -> None:
    message = refused(free(), vm(vmid=103))
    assert "VM 103 of pve for vms.gaming alone" in message and "it is vms.sandbox" in message


def test_a_vm_of_that_id_on_another_node_is_another_one() -> None:
    found = free()
    found["vms"]["sandbox"]["node"] = "pve2"
    assert lent(STACK, found, "gaming", vm(vmid=103), "pve")["cards"]


def test_the_example_is_a_configuration_for_windows() -> None:
    config = yaml.safe_load((PROJECT / "examples" / "gaming_vm" / "Pulumi.gaming.yaml").read_text(encoding="utf-8"))[
        "config"
    ]
    settings = Settings.model_validate(
        {key.removeprefix("homelab:"): value for key, value in config.items() if key.startswith("homelab:")}
    )
    host, gaming = settings.hosts["pve"], settings.vms["gaming"]
    assert isinstance(host, Host) and isinstance(gaming.create, NewVm)
    new = gaming.create.configuration("gaming")
    assert [new[key] for key in ("machine", "bios", "cpu", "ostype")] == ["q35", "ovmf", "host", "win11"]
    assert "version=v2.0" in new["tpmstate0"] and "pre-enrolled-keys=1" in new["efidisk0"]
    assert [volume.startswith("local:iso/") for volume in gaming.volumes] == [True, True]
    assert [use.gpu for use in gaming.gpus] == ["rtx5090"]


def test_what_pulumi_installs_for_it_is_this_repository() -> None:
    folder = PROJECT / "examples" / "gaming_vm"
    lines = (folder / "requirements.txt").read_text().splitlines()
    (wanted,) = (line for line in lines if line and not line.startswith("#"))
    assert (folder / wanted).resolve() == PROJECT and (PROJECT / "pyproject.toml").is_file()
