"""Every scenario installs and boots, always the same way; mistakes in one are named."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import kept
from lab.machine import Machine
from lab.scenario import ScenarioError, load_scenario, scenario_from, scenario_names
from tests.lab.host_kit import Host


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_boots_and_shows_its_devices(tmp_path: Path, name: str) -> None:
    scenario = load_scenario(name)
    host = Host(tmp_path, scenario, running=True)
    assert host.output("uname -r").strip() == max(
        scenario.kernels, key=lambda k: [int(p) for p in k.split("-")[0].split(".")] + [k]
    )
    slots = [line.split()[0] for line in host.output("lspci -D").splitlines()]
    assert slots == sorted(function.address for function in scenario.functions())
    assert host.output("hostname").strip() == scenario.node
    display = [f.address for f in scenario.functions() if f.boot_vga]
    shown = [
        p.parent.name
        for p in (host.root / "sys/bus/pci/devices").glob("*/boot_vga")
        if p.read_text(encoding="utf-8") == "1\n"
    ]
    assert shown == display
    assert host.programs() == [], "nothing that ran at boot was refused"


@pytest.mark.parametrize("name", ["rtx5090", "intel-zfs", "zfs-grub-shim", "phoenix", "containers-pve8"])
def test_installing_twice_gives_the_same_bytes_as_one_that_was_kept(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    trees = []
    for folder, kept_in in (("one", ""), ("another/place", tmp_path / "kept"), ("kept-one", tmp_path / "kept")):
        monkeypatch.setenv(kept.FOLDER, str(kept_in))
        Machine.install(tmp_path / folder, load_scenario(name))
        trees.append(fingerprint(tmp_path / folder))
    assert trees[0] == trees[1] == trees[2]
    assert any(path.startswith("root/boot/initrd.img") for path in trees[0])
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_kept_host_belongs_to_its_scenario_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    Machine.install(tmp_path / "one", load_scenario("rtx5090"))
    other = scenario_from(raw("rtx5090") | {"faults": {"never-comes-back": True}}, "test", "test")
    assert Machine.install(tmp_path / "other", other).faults == {"never-comes-back": True}
    assert Machine.install(tmp_path / "other", load_scenario("rtx5090")).faults == {}


def fingerprint(state: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything."""
    found = {}
    for path in sorted(state.rglob("*")):
        name = str(path.relative_to(state))
        if path.is_symlink():
            found[name] = (0, str(path.readlink()).replace(str(state), ""))
        elif path.is_dir() or path.is_socket():
            found[name] = (path.stat().st_mode, "")
        else:
            # Where it lies is no part; apt's cache, a map of its lists, has that and times in it.
            is_cache = "var/cache/apt" in name
            content = b"" if is_cache else path.read_bytes().replace(str(state).encode(), b"")
            found[name] = (path.stat().st_mode, hashlib.sha256(content).hexdigest())
    return found


@pytest.mark.parametrize("name", ["rtx5090", "phoenix"])
def test_a_running_host_that_was_kept_is_as_the_one_that_was_booted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    hosts = [Host(tmp_path / folder, name, running=True) for folder in ("one", "another/place")]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    trees = []
    for host in hosts:
        tree = fingerprint(host.machine.state)
        # When it was booted, and where its containers are.
        for changed in ("kernel.json", *(path for path in tree if path.startswith("guests/"))):
            tree[changed] = (0, "")
        trees.append(tree)
    assert trees[0] == trees[1]
    say = "lspci -Dnnk; qm list; dmesg; for n in $(ls $HOMELAB_ROOT/etc/pve/lxc | cut -d . -f 1); do pct status $n; pct exec $n -- stat -c %n:%t:%T:%a /dev/null; done"
    assert hosts[0].output(say) == hosts[1].output(say)
    assert subprocess.run(["grep", "-rqs", f"{tmp_path}/one", hosts[1].machine.state]).returncode == 1
    links = [str(path.readlink()) for path in hosts[1].machine.state.rglob("*") if path.is_symlink()]
    assert [link for link in links if link.startswith(f"{tmp_path}/one")] == []


def test_a_stock_host_is_up_to_date_with_its_own_tools(tmp_path: Path) -> None:
    """Running every boot tool on a stock host changes not one byte, so that what an undo leaves can be compared."""
    for name in ("rtx5090", "intel-zfs", "zfs-grub-shim"):
        host = Host(tmp_path / name, name, running=True)
        watched = ("root/etc", "root/boot", "esp")
        before = {k: v for k, v in fingerprint(tmp_path / name).items() if k.startswith(watched)}
        host.output("update-initramfs -u -k all && update-grub && { proxmox-boot-tool refresh || [ $? = 2 ]; }")
        after = {k: v for k, v in fingerprint(tmp_path / name).items() if k.startswith(watched)}
        assert after == before


def test_a_scenario_can_be_reinstalled_over_a_used_host(tmp_path: Path) -> None:
    host = Host(tmp_path, "rtx5090", running=True)
    before = fingerprint(tmp_path)["root/etc/default/grub"]
    host.write("/etc/default/grub", "broken")
    host.machine.set_fault("update-grub", "fail")
    again = Machine.install(tmp_path, load_scenario("rtx5090"))
    assert fingerprint(tmp_path)["root/etc/default/grub"] == before
    assert again.faults == {}
    assert again.power() == "off"


def test_faults_of_a_scenario_do_not_spoil_its_installation(tmp_path: Path) -> None:
    data = raw("rtx5090") | {"faults": {"update-initramfs": "fail", "update-grub": "fail"}}
    host = Host(tmp_path, scenario_from(data, "test", "test"), running=True)
    assert host.run("update-grub").returncode == 1


def test_hosts_bound_by_hand_have_it_at_work(tmp_path: Path) -> None:
    host = Host(tmp_path / "whole", "bound-by-hand", running=True)
    assert {host.driver("0000:01:00.0"), host.driver("0000:01:00.1")} == {"vfio-pci"}
    half = Host(tmp_path / "half", "half-bound", running=True)
    assert (half.driver("0000:01:00.0"), half.driver("0000:01:00.1")) == ("vfio-pci", "snd_hda_intel")


def raw(name: str) -> dict[str, Any]:
    """A scenario's YAML as plain data."""
    path = Path(__file__).parents[2] / "lab/scenarios" / f"{name}.yaml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernls": []}, "kernls: Extra inputs are not permitted"),
        ({"kernels": ["6.17"]}, "kernels.0"),
        ({"cpu": {"vendor": "VIA", "model": "x"}}, "cpu.vendor"),
        ({"pve": "7.4"}, "pve: Input should be '8.4' or '9.1'; found '7.4'"),
        ({"boot": {"loader": "systemd-boot"}}, "systemd-boot needs firmware mode uefi and at least one of esps"),
        ({"pci": []}, "no disk has `use: root`"),
        ({"files": {"etc/x": "y"}}, "files"),
        ({"guests": [{"id": 5, "kind": "vm", "name": "x", "conf": ""}]}, "guests.0.id"),
    ],
)
def test_a_mistake_in_a_scenario_names_file_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw("rtx5090") | change), encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_an_address_twice_or_a_parent_that_is_missing_is_refused() -> None:
    data = raw("rtx5090")
    twice = data | {"pci": [*data["pci"], data["pci"][0]]}
    with pytest.raises(ScenarioError, match="is there twice"):
        scenario_from(twice, "test", "test")
    orphan = {"address": "33:00.0", "vendor": "10de", "device": "2b85", "class": "0300", "parent": "0000:44:00.0"}
    with pytest.raises(ScenarioError, match="its parent 0000:44:00.0 is no device"):
        scenario_from(data | {"pci": [*data["pci"], orphan]}, "test", "test")


def test_an_unknown_scenario_is_answered_with_those_there_are() -> None:
    with pytest.raises(ScenarioError, match="rtx5090"):
        load_scenario("rtx6090")


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(ScenarioError, match="not valid YAML"):
        load_scenario(str(path))
