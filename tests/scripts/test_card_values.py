"""card_values.sh: how cards are reset and whether they may sleep, set and given back; and what read_host.sh says when it is changed."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder

CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
RULES = "/etc/udev/rules.d/90-homelab-cards.rules"
RESET = [f"{CARD} 10de:2b85 reset_method bus", f"{AUDIO} 10de:22e8 reset_method bus"]
AWAKE = [f"{CARD} 10de:2b85 d3cold_allowed 0", f"{CARD} 10de:2b85 power/control on"]


def function(folder: Folder, address: str, ids: str, code: str, **attributes: str) -> None:
    vendor, _, number = ids.partition(":")
    for name, text in {"vendor": f"0x{vendor}", "device": f"0x{number}", "class": code, **attributes}.items():
        folder.write(f"sys/bus/pci/devices/{address}/{name}", f"{text}\n")


@pytest.fixture
def host(folder: Folder) -> Folder:
    power = {"d3cold_allowed": "1", "power/control": "auto"}
    function(folder, CARD, "10de:2b85", "0x030000", reset_method="flr bus", **power)
    function(folder, AUDIO, "10de:22e8", "0x040300", **power)  # it can't be reset by itself
    return folder


def run(host: Folder, verb: str, *values: str) -> subprocess.CompletedProcess[str]:
    return host.run(verb, scripts.card_values(values))


def answer(host: Folder, verb: str, *values: str) -> Any:
    done = run(host, verb, *values)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def value(host: Folder, name: str, address: str = CARD) -> str:
    return host.read(f"sys/bus/pci/devices/{address}/{name}").strip()


def values_of(host: Folder) -> list[str]:
    return [value(host, name) for name in ("reset_method", "d3cold_allowed", "power/control")]


def meaning(host: Folder) -> dict[str, tuple[int, str]]:
    """The folder as a person sees it: a value in sysfs has its newline from the kernel."""
    return {path: (mode, text.rstrip("\n")) for path, (mode, text) in host.tree().items()}


def test_values_are_set_now_and_by_a_rule_and_given_back(host: Folder) -> None:
    before = meaning(host)
    assert answer(host, "apply", *RESET, *AWAKE) == {"changed": "yes"}
    assert values_of(host) == ["bus", "0", "on"]
    about = 'ACTION=="add|change|bind", SUBSYSTEM=="pci", KERNEL=="0000:01:00.0", ATTR{vendor}=="0x10de", ATTR{device}=="0x2b85"'
    assert host.read(RULES).splitlines()[1:] == [
        f'{about}, ATTR{{reset_method}}="bus"',
        f'{about}, ATTR{{d3cold_allowed}}="0"',
        f'{about}, ATTR{{power/control}}="on"',
    ]
    assert answer(host, "apply", *RESET, *AWAKE) == {"changed": "no"}
    assert answer(host, "revert", *RESET, *AWAKE) == {"changed": "yes"}
    after = meaning(host)
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} <= {
        "etc",
        "etc/udev",
        "etc/udev/rules.d",
    }
    assert answer(host, "revert", *RESET) == {"changed": "no"}


def test_a_value_that_isnt_wanted_any_more_is_given_back_and_the_others_stay(host: Folder) -> None:
    answer(host, "apply", *RESET, *AWAKE)
    answer(host, "apply", *AWAKE)
    assert values_of(host) == ["flr bus", "0", "on"] and "reset_method" not in host.read(RULES)


def test_another_reset_can_be_chosen_though_the_first_one_hides_it(host: Folder) -> None:
    answer(host, "apply", *RESET)
    answer(host, "apply", f"{CARD} 10de:2b85 reset_method flr")
    assert value(host, "reset_method") == "flr"
    answer(host, "revert")
    assert value(host, "reset_method") == "flr bus"


def test_after_a_reboot_it_is_still_known_what_a_card_had(host: Folder) -> None:
    answer(host, "apply", *AWAKE)
    answer(host, "apply", *AWAKE)  # the rule has set them again before
    answer(host, "revert")
    assert values_of(host) == ["flr bus", "1", "auto"]


def test_what_somebody_else_has_changed_since_isnt_given_back(host: Folder) -> None:
    answer(host, "apply", *RESET)
    host.write(f"sys/bus/pci/devices/{CARD}/reset_method", "pm\n")
    answer(host, "revert")
    assert value(host, "reset_method") == "pm"


@pytest.mark.parametrize("offered", ["flr", "", None])
def test_a_reset_that_the_kernel_doesnt_offer_is_refused_before_anything_is_written(
    host: Folder, offered: str | None
) -> None:
    path = host.root / f"sys/bus/pci/devices/{CARD}/reset_method"
    path.unlink() if offered is None else path.write_text(offered)
    before = host.tree()
    for verb in ("plan", "apply"):
        done = run(host, verb, *RESET, *AWAKE)
        assert done.returncode == 1 and "0000:01:00.0 reset by bus" in done.stdout
    assert {path: one for path, one in host.tree().items() if "lib/homelab" not in path} == {
        path: one for path, one in before.items() if "lib/homelab" not in path
    }


def test_a_value_that_the_kernel_doesnt_take_takes_the_others_back(host: Folder) -> None:
    path = host.root / f"sys/bus/pci/devices/{CARD}/power/control"
    path.unlink()
    path.symlink_to("/dev/null")  # takes whatever is written, and stays as it is
    done = run(host, "apply", *RESET, *AWAKE)
    assert done.returncode == 1 and "power/control to be on" in done.stdout
    assert value(host, "reset_method") == "flr bus" and not (host.root / RULES.lstrip("/")).exists()


def test_what_is_elsewhere_now_is_left_alone(host: Folder) -> None:
    answer(host, "apply", f"{CARD} 10de:2684 reset_method bus", "10000:e1:00.0 10de:2b85 d3cold_allowed 0")
    assert value(host, "reset_method") == "flr bus"
    assert host.read(RULES).count("ATTR{vendor}") == 2  # the rule compares the ids, too


def test_a_plan_changes_nothing_and_says_what_would_change(host: Folder) -> None:
    before = host.tree()
    found = {file["what"]: file["how"] for file in answer(host, "plan", *RESET, *AWAKE)["files"]}
    assert found == {
        RULES: "new",
        **{
            f"/sys/bus/pci/devices/{CARD}/{name}": "changed"
            for name in ("reset_method", "d3cold_allowed", "power/control")
        },
    }
    assert host.tree() == before
    answer(host, "apply", *RESET, *AWAKE)
    assert answer(host, "plan", *RESET, *AWAKE)["files"] == []
    assert [file["how"] for file in answer(host, "plan")["files"]] == ["removed"]


def test_a_reading_says_what_a_card_gets_back(host: Folder) -> None:
    def had() -> dict[str, Any]:
        text = 'printf "{\\"read\\":true"; card_states; printf "}"'
        states = json.loads(host.bash(text, parts=["read/card_states"]).stdout)["card_states"]
        return {address: state["had"] for address, state in states.items()}

    assert had() == {CARD: {}, AUDIO: {}}
    answer(host, "apply", *RESET, *AWAKE)
    assert had() == {CARD: {"reset_method": "flr bus", "d3cold_allowed": "1", "control": "auto"}, AUDIO: {}}
    # What somebody else has changed since isn't given back.
    host.write(f"sys/bus/pci/devices/{CARD}/reset_method", "flr\n")
    assert had()[CARD] == {"d3cold_allowed": "1", "control": "auto"}


def test_a_value_that_was_changed_is_drift_and_a_card_that_isnt_there_is_none(host: Folder) -> None:
    def lost() -> Any:
        text = 'printf "{"; lost_values; printf "}"'
        return host.bash(text, parts=["read/card_states"]).stdout

    answer(host, "apply", *RESET, *AWAKE)
    assert lost() == "{[]}"
    host.write(f"sys/bus/pci/devices/{CARD}/power/control", "auto\n")
    assert lost() == '{["power/control of 0000:01:00.0 is auto, not on"]}'
    for name in ("reset_method", "d3cold_allowed", "power/control"):
        (host.root / f"sys/bus/pci/devices/{CARD}/{name}").unlink()
    assert lost() == "{[]}"
