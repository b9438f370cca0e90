"""The layer card_values: how cards are reset and whether they may sleep, set and given back."""

from __future__ import annotations

from typing import Any

import pytest

from remote_scripts.both.card_values import Attribute, Value, Wanted
from remote_scripts.tools.disk import Disk
from tests.agent.kit import Host, Refused, watched

CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
RULES = "/etc/udev/rules.d/90-homelab-cards.rules"


def value(address: str, ids: str, attribute: Attribute, content: str) -> Value:
    return Value(address=address, id=ids, attribute=attribute, value=content)


RESET = (value(CARD, "10de:2b85", "reset_method", "bus"), value(AUDIO, "10de:22e8", "reset_method", "bus"))
AWAKE = (value(CARD, "10de:2b85", "d3cold_allowed", "0"), value(CARD, "10de:2b85", "power/control", "on"))


@pytest.fixture(autouse=True)
def cards(host: Host) -> None:
    power = {"d3cold_allowed": "1", "power/control": "auto"}
    host.function(CARD, "0x030000", "10de:2b85", reset_method="flr bus", **power)
    host.function(AUDIO, "0x040300", "10de:22e8", **power)  # it can't be reset by itself


def ask(host: Host, verb: str, *values: Value) -> Any:
    return host.ask(verb, "card_values", Wanted(values=values))


def content(host: Host, name: str) -> str:
    return host.read(f"sys/bus/pci/devices/{CARD}/{name}").strip()


def values_of(host: Host) -> list[str]:
    return [content(host, name) for name in ("reset_method", "d3cold_allowed", "power/control")]


def test_values_are_set_now_and_by_a_rule_and_given_back(host: Host) -> None:
    before = host.lasting()
    assert ask(host, "apply", *RESET, *AWAKE) == {"changed": True}
    assert values_of(host) == ["bus", "0", "on"]
    about = 'ACTION=="add|change|bind", SUBSYSTEM=="pci", KERNEL=="0000:01:00.0", ATTR{vendor}=="0x10de", ATTR{device}=="0x2b85"'
    assert host.read(RULES).splitlines()[1:] == [
        f'{about}, ATTR{{reset_method}}="bus"',
        f'{about}, ATTR{{d3cold_allowed}}="0"',
        f'{about}, ATTR{{power/control}}="on"',
    ]
    assert ask(host, "apply", *RESET, *AWAKE) == {"changed": False}, "as after a boot, whose rule has set them again"
    assert ask(host, "revert", *RESET, *AWAKE) == {"changed": True}
    assert values_of(host) == ["flr bus", "1", "auto"] and host.lasting() == before
    assert ask(host, "revert", *RESET) == {"changed": False}


def test_a_value_that_isnt_wanted_any_more_is_given_back_and_the_others_stay(host: Host) -> None:
    ask(host, "apply", *RESET, *AWAKE)
    ask(host, "apply", *AWAKE)
    assert values_of(host) == ["flr bus", "0", "on"] and "reset_method" not in host.read(RULES)


def test_another_reset_can_be_chosen_though_the_first_one_hides_it(host: Host) -> None:
    ask(host, "apply", *RESET)
    host.write(f"sys/bus/pci/devices/{CARD}/reset_method", "bus\n")
    ask(host, "apply", value(CARD, "10de:2b85", "reset_method", "flr"))
    assert content(host, "reset_method") == "flr"
    ask(host, "revert")
    assert content(host, "reset_method") == "flr bus"


def test_what_a_card_had_is_noted_before_the_rule_is_there(host: Host) -> None:
    """By which a boot after a power cut sets it."""
    noted: list[list[str]] = []
    record = f"/var/lib/homelab/card-values/{CARD}=reset_method"

    def watch(call: str, path: str) -> None:
        if call == "rename" and path == f"{host.root}{RULES}":
            noted.append(host.read(record).splitlines())

    with watched(watch):
        ask(host, "apply", *RESET)
    assert noted == [["flr bus", "bus"]]


@pytest.mark.parametrize("offered", ["flr", "", None])
def test_a_reset_that_the_kernel_doesnt_offer_is_refused_before_anything_is_written(
    host: Host, offered: str | None
) -> None:
    path = host.root / f"sys/bus/pci/devices/{CARD}/reset_method"
    path.unlink() if offered is None else path.write_text(offered)
    before = host.tree()
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match="0000:01:00.0 reset by bus(?s:.*)by the kernel or a rule of yours"):
            ask(host, verb, *RESET, *AWAKE)
        assert host.tree() == before


def test_a_value_that_the_kernel_doesnt_take_takes_the_others_back(host: Host) -> None:
    path = host.root / f"sys/bus/pci/devices/{CARD}/power/control"
    path.unlink()
    path.symlink_to("/dev/null")  # takes whatever is written, and stays as it is
    before = host.lasting()
    with pytest.raises(Refused, match="power/control to be on"):
        ask(host, "apply", *RESET, *AWAKE)
    assert content(host, "reset_method") == "flr bus" and host.lasting() == before


@pytest.mark.parametrize("wanted", [AWAKE, AWAKE[1:]])
def test_a_run_that_fails_leaves_what_an_earlier_one_has_set(host: Host, wanted: tuple[Value, ...]) -> None:
    """The rule of that sets it again at the next boot: without its note it would be taken for the original."""
    ask(host, "apply", *AWAKE[:1])
    path = host.root / f"sys/bus/pci/devices/{CARD}/power/control"
    path.unlink()
    path.symlink_to("/dev/null")
    before = host.lasting()
    with pytest.raises(Refused, match="power/control to be on"):
        ask(host, "apply", *wanted)
    assert content(host, "d3cold_allowed") == "0" and host.lasting() == before


def test_what_is_elsewhere_now_is_left_alone(host: Host) -> None:
    another = value(CARD, "10de:2684", "reset_method", "bus")
    ask(host, "apply", another, value("10000:e1:00.0", "10de:2b85", "d3cold_allowed", "0"))
    assert content(host, "reset_method") == "flr bus"
    assert host.read(RULES).count("ATTR{vendor}") == 2  # the rule compares the ids, too


def test_a_plan_changes_nothing_and_says_what_would_change(host: Host) -> None:
    before = host.tree()
    found = {file["what"]: file["how"] for file in ask(host, "plan", *RESET, *AWAKE)["files"]}
    attributes = ("reset_method", "d3cold_allowed", "power/control")
    assert found == {RULES: "new", **{f"/sys/bus/pci/devices/{CARD}/{name}": "changed" for name in attributes}}
    assert host.tree() == before
    ask(host, "apply", *RESET, *AWAKE)
    assert ask(host, "plan", *RESET, *AWAKE)["files"] == []
    assert [file["how"] for file in ask(host, "plan")["files"]] == ["removed"]


def test_an_empty_note_gives_nothing_back_and_says_so(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    ask(host, "apply", *AWAKE)
    host.write(f"/var/lib/homelab/card-values/{CARD}=d3cold_allowed", "")
    ask(host, "revert")
    assert values_of(host) == ["flr bus", "0", "auto"] and "before isn't known" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_note_that_a_disk_doesnt_read_is_no_empty_one(host: Host, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    ask(host, "apply", *AWAKE)
    before, read = host.lasting(), Disk.read

    def fails(self: Disk, where: Any, limit: int) -> bytes | None:
        if where.name.endswith("=d3cold_allowed"):
            raise OSError(5, "Input/output error", str(where))
        return read(self, where, limit)

    monkeypatch.setattr(Disk, "read", fails)
    with pytest.raises(Refused, match="to read /var/lib/homelab/card-values"):
        ask(host, verb, *AWAKE)
    assert host.lasting() == before and values_of(host) == ["flr bus", "0", "on"]
