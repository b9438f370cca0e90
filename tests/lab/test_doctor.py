"""``homelab doctor`` against the lab, over SSH as against a real host: what it says, its exit status, and that it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.cli import show
from homelab.cli.command_line import main
from homelab.remote import agent
from lab import Lab
from remote_scripts.both.handover import Wanted as Handover
from remote_scripts.both.hookscript import Wanted as Hook
from tests import forked_agent, sampling, sent_along
from tests.lab.host_kit import rebound
from tests.lab.stack_kit import host_settings
from tests.lab.test_handover import BIG, OLLAMA

SECRET = "not-to-be-shown"
BINDS = ["nvidia0", "nvidiactl", "nvidia-uvm"]


class Doctor:
    """A lab, and the command run on it with a stack's file that leads there."""

    def __init__(self, lab: Lab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.lab, self._folder, self._capsys = lab, folder, capsys
        self.gpus: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        self.changed = False

    def change(self, command: str) -> None:
        """Something happens on the host."""
        self.changed = True
        done = self.lab.run(command)
        assert done.returncode == 0, done.stdout + done.stderr

    def to_vfio(self, slot: str) -> None:
        """A card with two functions is given to vfio-pci."""
        self.changed = True
        for number in (0, 1):
            self.lab.run(rebound(f"{slot}.{number}", "vfio-pci"))

    def config(self) -> Path:
        host = host_settings(self.lab) | {"gpus": self.gpus}
        file = self._folder / "Pulumi.lab.yaml"
        file.write_text(yaml.safe_dump({"config": {"homelab:hosts": {"pve": host}, **self.more}}))
        return file

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error; the host is as it was before."""
        before = self.lab.snapshot("etc", "var/lib", "var/log", "dev", "run")
        status = main(["doctor", *words, "--config-file", str(self.config())])
        shown = self._capsys.readouterr()
        assert self.lab.snapshot("etc", "var/lib", "var/log", "dev", "run") == before
        assert SECRET not in shown.out + shown.err
        return status, shown.out, shown.err

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*words, "--json")[1])
        return found

    def refused(self, *words: str) -> str:
        status, out, error = self.run(*words)
        assert (status, out) == (2, "") and error.startswith("wanted: ")
        return error

    def append(self, ctid: int, *lines: str, restart: bool = True) -> None:
        """Lines at the end of a container's configuration, which has no section."""
        text = "".join(f"{line}\\n" for line in lines)
        again = f" && pct reboot {ctid}" if restart else ""
        self.change(f"printf '{text}' >>$HOMELAB_ROOT/etc/pve/lxc/{ctid}.conf{again}")


@pytest.fixture
def doctor(
    labs: Callable[[str], Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Doctor]]:
    used: list[Doctor] = []

    def on(scenario: str) -> Doctor:
        used.append(Doctor(labs(scenario), tmp_path, capsys))
        forked_agent.in_place_of_what_is_sent(monkeypatch, used[-1].lab)
        return used[-1]

    yield on
    for one in used:
        if one.changed:
            one.lab.reset()


def bind(name: str) -> str:
    return f"lxc.mount.entry: /dev/{name} dev/{name} none bind,optional,create=file"


def devices(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {device["path"]: device for device in report["devices"]}


def test_a_host_whose_api_gives_no_answer_is_read_all_the_same(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change("systemctl stop pvedaemon")
    status, text, _ = phoenix.run()
    phoenix.change("systemctl start pvedaemon")
    assert status == 1 and "Proxmox VE's API on the host gives no answer: Connection refused" in text
    assert "host phoenix" in text


# -- containers --------------------------------------------------------------------------------------------------------
def test_the_broken_container_beside_the_working_one(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    status, text, _ = phoenix.run("container", "901", "--like", "950")
    assert status == 1
    assert "container 901 (ai-lab) on phoenix" in text
    assert "lines that container 950 has and container 901 lacks" in text
    assert "lxc.cgroup2.devices.allow: c 480:* rwm" in text
    steps = text.rpartition("what to do, in this order")[2]
    assert steps.index("pct set 901 --dev0 /dev/nvidia0,mode=0666") < steps.index("pct reboot 901")
    assert steps.index("pct reboot 901") < steps.index("exactly 580.105.08")
    report = phoenix.json("container", "901", "--like", "950")
    assert report["cards"] == {"numbers": [0, 1], "by": "container 950"}
    assert len(report["like"]["lines"]) == 11 and report["like"]["onlyHere"] == []
    assert report["equal"] is False and report["libraries"] == {}
    nvidia0 = devices(report)["/dev/nvidia0"]
    assert nvidia0["host"] == {"path": "/dev/nvidia0", "major": 195, "minor": 0, "mode": "0666"}
    assert (nvidia0["needed"], nvidia0["conf"], nvidia0["allowed"], nvidia0["inside"]) == (True, None, None, None)
    libraries = "NVIDIA's libraries: none; in container 950 580.105.08"
    assert libraries in report["like"]["differences"]
    phoenix.change("pct stop 901")
    assert libraries not in phoenix.json("container", "901", "--like", "950")["like"]["differences"], (
        "nobody has looked"
    )


def test_what_it_says_to_do_makes_the_container_well(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    steps = phoenix.json("container", "901", "--gpus", "0,1")["next"]
    commands = [step.rpartition(": ")[2].strip("`") for step in steps[:2]]
    assert [command.split()[:2] for command in commands] == [["pct", "set"], ["pct", "reboot"]]
    phoenix.change(" && ".join(commands))
    left = phoenix.json("container", "901", "--gpus", "0,1")
    assert [one["wanted"].partition(" of version")[0] for one in left["findings"]] == ["NVIDIA's libraries"]
    assert {one["inside"]["user"] for one in left["devices"] if one["needed"]} == {"ok"}


def test_the_working_container_is_well(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    status, text, _ = phoenix.run("container", "950")
    assert (status, "nothing is wrong" in text) == (0, True)
    report = phoenix.json("container", "950")
    assert (report["well"], report["equal"], report["findings"], report["next"]) == (True, True, [], [])
    uvm = devices(report)["/dev/nvidia-uvm"]
    assert uvm["conf"]["method"] == "mount-entry" and uvm["rule"] == "c 480:* rwm" and uvm["allowed"] is True
    assert uvm["inside"] == {"major": 480, "minor": 0, "mode": "0666", "root": "ok", "user": "ok"}


def test_a_guest_is_named_as_its_owner_calls_it(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.more = {"homelab:containers": {"models": {"host": "pve", "ctid": 901, "gpuAssignment": "0"}}}
    by_id = phoenix.json("container", "901", "--like", "950")
    assert phoenix.json("container", "models", "--like", "ct:media") == by_id
    assert phoenix.json("vm", "sandbox") == phoenix.json("vm", "vm:103")
    for system in sampling.sample(("901", "ct:models", "containers.models"), 1, "names"):
        assert "this program has run no long command there" in phoenix.run("log", system)[1]


def test_majors_of_another_kernel_are_named_with_the_rule_that_is_missing(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change("sed -i 's/c 480:/c 508:/' $HOMELAB_ROOT/etc/pve/lxc/950.conf && pct reboot 950")
    report = phoenix.json("container", "950")
    (finding,) = report["findings"]
    assert finding["wanted"] == "device rules for 480:* (/dev/nvidia-uvm, /dev/nvidia-uvm-tools)"
    assert "no device of the host has the major 508" in finding["found"]
    assert "lxc.cgroup2.devices.allow: c 480:* rwm" in finding["next"]
    assert devices(report)["/dev/nvidia-uvm"]["inside"]["root"] == "Operation not permitted"
    assert devices(report)["/dev/nvidia0"]["inside"]["root"] == "ok"


def test_a_device_whose_rule_another_line_takes_back_is_asked_about(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change(
        "echo 'lxc.cgroup2.devices.deny: c 195:* rwm' >>$HOMELAB_ROOT/etc/pve/lxc/950.conf && pct reboot 950"
    )
    found = phoenix.json("container", "950")["findings"][0]["found"]
    assert "Operation not permitted, although a rule allows it; does another line deny it?" in found


def test_rules_of_version_1_do_nothing(doctor: Callable[[str], Doctor]) -> None:
    pve8 = doctor("containers-pve8")
    rules = ["lxc.cgroup.devices.allow: c 195:* rwm", "lxc.cgroup.devices.allow: c 466:* rwm"]
    pve8.append(211, *rules, *(bind(name) for name in BINDS))
    report = pve8.json("container", "211")
    assert report["findings"][0]["found"] == "; ".join(rules)
    assert report["findings"][1]["next"].endswith(
        "".join(f"\nlxc.cgroup2.devices.allow: c {n}:* rwm" for n in (195, 466))
    )
    assert {devices(report)[f"/dev/{name}"]["inside"]["root"] for name in BINDS} == {"Operation not permitted"}


def test_a_host_whose_libraries_were_updated_beside_its_loaded_module(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    assert not any("libraries" in one["wanted"] for one in phoenix.json("host")["findings"])
    library = "libnvidia-ml.so.590.48.01"
    phoenix.change(
        f"cd $HOMELAB_ROOT/usr/lib/x86_64-linux-gnu && touch {library} && ln -sf {library} libnvidia-ml.so.1"
    )
    (one,) = [one for one in phoenix.json("host")["findings"] if "libraries" in one["wanted"]]
    assert one["found"] == "libnvidia-ml.so.1: 590.48.01" and one["next"].startswith("reboot the host")
    assert phoenix.json("container", "950")["well"], "its own are the loaded driver's"


def test_a_library_of_another_patch_level(doctor: Callable[[str], Doctor]) -> None:
    report = doctor("containers-pve8").json("container", "212", "--gpus", "none")
    assert (report["driver"], set(report["libraries"].values())) == ("550.163.01", {"550.144.03"})
    assert report["equal"] is False and report["well"] is True
    report = doctor("containers-pve8").json("container", "212", "--gpus", "1")
    assert report["findings"][-1]["found"].endswith(".so.1: 550.144.03")
    assert "/dev/nvidia0" not in devices(report)


def test_minors_that_are_not_in_pci_order(doctor: Callable[[str], Doctor]) -> None:
    pve8 = doctor("containers-pve8")
    pve8.gpus = {"rtx3060": {"match": "10de:2504", "use": "lxc"}}
    pve8.more = {"homelab:containers": {"one": {"host": "pve", "ctid": 211, "gpus": ["rtx3060"]}}}
    status, text, _ = pve8.run("container", "211")
    assert status == 1 and "cards that it is to have: 0 (0000:04:00.0)" in text


def test_entries_that_wait_for_a_restart(doctor: Callable[[str], Doctor]) -> None:
    pve8 = doctor("containers-pve8")
    pve8.change(
        "pct set 211 -dev0 /dev/nvidia0,mode=0666 -dev1 /dev/nvidiactl,mode=0666 -dev2 /dev/nvidia-uvm,mode=0666"
    )
    report = pve8.json("container", "211")
    assert [one["stage"] for one in report["findings"]] == ["restart", "inside"]
    assert report["next"][0] == "restart it: `pct reboot 211`"
    assert devices(report)["/dev/nvidia0"]["conf"]["pending"] is True


def test_a_node_of_the_usual_mode_is_closed_to_ordinary_users(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.append(901, "dev0: /dev/nvidia0,uid=0", "dev1: /dev/nvidiactl,mode=0666", "dev2: /dev/nvidia-uvm,gid=44")
    report = phoenix.json("container", "901")
    assert report["findings"][0]["wanted"] == "/dev/nvidia0 open to ordinary users in container 901"
    assert report["findings"][0]["next"] == "`pct set 901 --dev0 /dev/nvidia0,uid=0,mode=0666`"
    inside = devices(report)["/dev/nvidia0"]["inside"]
    assert (inside["root"], inside["user"]) == ("ok", "Permission denied")


def test_nodes_that_nothing_has_made_and_what_makes_them(doctor: Callable[[str], Doctor]) -> None:
    mixed = doctor("mixed")
    report = mixed.json("container", "201", "--gpus", "1")
    first = report["findings"][0]
    assert first["wanted"] == "/dev/nvidia1, /dev/nvidiactl, /dev/nvidia-uvm on the host"
    mixed.change(first["next"].strip("`"))
    report = mixed.json("container", "201", "--gpus", "1")
    assert report["findings"][0]["wanted"] == "container 201 given /dev/nvidia1, /dev/nvidiactl, /dev/nvidia-uvm"


def test_a_stopped_container_is_judged_by_what_can_be_seen(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change("pct stop 950")
    report = phoenix.json("container", "950")
    assert (report["well"], report["running"], report["equal"]) == (True, False, None)
    assert all(device["inside"] is None for device in report["devices"])
    assert "what it has inside is seen once it runs" in report["notes"][0]


def test_lines_in_a_snapshot_and_a_lock(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.append(901, "lock: backup", "", "[before]", bind("nvidia0"), restart=False)
    report = phoenix.json("container", "901")
    assert report["lock"] == "backup" and "pct unlock 901" in report["next"][0]
    assert any("in the snapshot section [before] have no effect" in note for note in report["notes"])
    assert devices(report)["/dev/nvidia0"]["conf"] is None


def test_a_card_that_is_on_vfio_pci(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.to_vfio("0000:02:00")
    phoenix.change("qm stop 103; qm set 103 --hostpci0 0000:02:00")
    report = phoenix.json("container", "950")
    assert report["findings"][0]["wanted"].startswith("/dev/nvidia1 on the host")
    assert "at 0000:02:00 is bound to vfio-pci for VM 103 (Sandbox)" in report["findings"][0]["found"]
    assert devices(report)["/dev/nvidia1"]["inside"]["root"] == "No such device or address"


def test_secrets_of_a_configuration_stay_on_the_host(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.append(
        901,
        f"lxc.environment: TOKEN={SECRET}",
        f"lxc.mount.entry: //nas/x mnt/x cifs username=a,password={SECRET},create=dir 0 0",
        f"#{SECRET}",
        restart=False,
    )
    status, text, _ = phoenix.run("container", "901", "--like", "950")
    assert status == 1 and SECRET not in text


@pytest.mark.parametrize(
    ("words", "found"),
    sampling.sample(
        [
            (["container", "999"], "no guest of the cluster has this id"),
            (["container", "103"], "it is a virtual machine"),
            (["container", "901", "--like", "103"], "it is a virtual machine"),
            (["vm", "901"], "it is a container"),
            (["vm", "104"], "no guest of the cluster has this id"),
            (["vm", "ollama"], "no guest of the cluster has this id or name"),
        ],
        3,
        "ids",
    ),
)
def test_an_id_of_something_else_is_said(doctor: Callable[[str], Doctor], words: list[str], found: str) -> None:
    assert f"found:  {found}" in doctor("phoenix").refused(*words)


def test_an_address_alone_does_in_a_folder_without_settings(
    doctor: Callable[[str], Doctor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = doctor("phoenix").lab.connection
    place = f"{connection['host']}:{connection['port']}"
    words = ["--like", "950", "--host", place]
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text(Path(connection["privateKeyFile"]).read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "container", "901", *words]) == 2
    assert f"found:  {connection['host']} shows the host key SHA256:" in capsys.readouterr().err
    known = f"[{connection['host']}]:{connection['port']} {connection['hostKey']}\n"
    (tmp_path / ".ssh/known_hosts").write_text(known)
    (tmp_path / ".ssh/id_ed25519").rename(tmp_path / "key")
    assert main(["doctor", "container", "901", *words]) == 2
    assert "doesn't accept any of your SSH keys yet" in capsys.readouterr().err
    assert main(["doctor", "container", "901", *words, "--json", "--identity", str(tmp_path / "key")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["cards"]["by"] == "container 950" and len(report["like"]["lines"]) == 11
    (tmp_path / "key").rename(tmp_path / ".ssh/id_ed25519")
    assert main(["doctor", "container", "950", "--host", place]) == 0
    assert main(["doctor", "vm", "103", "--host", place]) == 0 and main(["doctor", "host", "--host", place]) == 0
    assert not any(tmp_path.glob("Pulumi*"))


# -- VMs ---------------------------------------------------------------------------------------------------------------
MAPPING = "--id gpu --map node=phoenix,path=0000:02:00,id=10de:2684,iommugroup=15,subsystem-id=1458:40bf"


def with_mapping(doctor: Doctor) -> None:
    doctor.to_vfio("0000:02:00")
    doctor.change(f"pvesh create /cluster/mapping/pci {MAPPING}")
    doctor.change("qm stop 103; qm set 103 --hostpci0 mapping=gpu,pcie=1")


def test_a_vm_that_runs_with_its_card(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    with_mapping(phoenix)
    phoenix.change("qm start 103")
    report = phoenix.json("vm", "103")
    assert (report["well"], report["running"], report["findings"]) == (True, True, [])
    assert report["hostpci"] == [{"option": "hostpci0", "value": "mapping=gpu,pcie=1", "slots": ["0000:02:00"]}]
    (card,) = report["cards"]
    assert {one["driver"] for one in card["functions"]} == {"vfio-pci"} and card["mappings"] == ["gpu"]
    assert card["vms"] == [{"id": 103, "name": "Sandbox", "running": True}] and card["groupMembers"] == []


def test_a_mapping_that_is_not_what_is_in_the_slot(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    with_mapping(phoenix)
    phoenix.change(
        "sed -i 's/id=10de:2684/id=10de:2685/; s/iommugroup=15/iommugroup=3/' $HOMELAB_ROOT/etc/pve/mapping/pci.cfg"
    )
    found = phoenix.json("vm", "103")["findings"][0]["found"]
    assert "id of 0000:02:00.0: 10de:2684, the mapping says 10de:2685" in found
    assert "iommugroup of 0000:02:00.0: 15, the mapping says 3" in found


def test_a_vm_beside_others_that_have_its_card(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    with_mapping(phoenix)
    phoenix.change("qm create 104 --name Other --machine q35 --memory 1024 --hostpci0 mapping=gpu,pcie=1; qm start 104")
    report = phoenix.json("vm", "103")
    wanted = {one["wanted"]: one["found"] for one in report["findings"]}
    assert (
        wanted["hostpci0 (RTX 4090 [10de:2684] at 0000:02:00) free for VM 103 (Sandbox)"]
        == "VM 104 (Other) runs with it"
    )


def test_a_card_of_a_vm_that_containers_use(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change("qm stop 103; qm set 103 --hostpci0 0000:02:00,pcie=1")
    finding = phoenix.json("vm", "103")["findings"][0]
    assert finding["wanted"] == "gpus.<name> (RTX 4090 [10de:2684] at 0000:02:00) free to be taken from the host"
    assert finding["found"] == "containers that use it: 950"


def test_a_vm_is_told_whether_it_would_get_its_shared_card_now(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.lab.fault("card-users", [OLLAMA])
    phoenix.change("qm stop 103; pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    for layer, wanted in (("handover", Handover(cards=(BIG,))), ("hookscript", Hook(vmid=103))):
        phoenix.lab.run(agent.command_in_memory("root"), stdin=sent_along.text("apply", agent.request(layer, wanted)))
    phoenix.change("qm set 103 --onboot 0 --hostpci0 0000:01:00,driver=keep,pcie=1")
    assert "if it started now: it would get gpus.big; shut down for it: container 950" in phoenix.run("vm", "103")[1]
    phoenix.lab.fault("card-users", [{"pid": 4712, "comm": "Xorg", "card": "0000:01:00.0", "opens": ["modeset"]}])
    notes = phoenix.json("vm", "103")["notes"]
    assert any("would not get gpus.big: in use by Xorg (PID 4712" in note for note in notes), notes


def test_a_vm_without_a_card(doctor: Callable[[str], Doctor]) -> None:
    status, text, _ = doctor("phoenix").run("vm", "103")
    assert status == 0 and "no hostpci option: it has no card" in text


def test_an_option_that_waits_for_the_vms_next_start_is_told(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.change("qm set 103 --hostpci0 0000:02:00,pcie=1")
    status, text, _ = phoenix.run("vm", "103")
    assert "pending until it is off and starts again: hostpci0: 0000:02:00,pcie=1" in text


# -- hosts -------------------------------------------------------------------------------------------------------------
def test_a_host_that_was_never_configured(doctor: Callable[[str], Doctor]) -> None:
    mixed = doctor("mixed")
    mixed.gpus = {
        "vm": {"match": "10de:2204", "address": "1d:00"},
        "containers": {"match": "10de:2204", "address": "1e:00", "use": "lxc"},
    }
    report = mixed.json("host")
    of_host, of_mapping = report["findings"]
    assert "homelab.vfio=0000:1d:00.0=10de:2204,0000:1d:00.1=10de:1aef is not on the" in of_host["found"]
    assert "the PCI mapping vm" in of_mapping["wanted"] and of_host["turn"] == of_mapping["turn"] == "up"
    assert report["next"] == ["`pulumi up --refresh`, whose preview shows what it does"]
    assert [card["slot"] for card in report["cards"]] == ["0000:1d:00", "0000:1e:00"]
    assert report["iommu"]["groups"] > 0 and report["driver"] == "580.105.08"
    status, text, _ = mixed.run("host")
    assert status == 1 and "/dev/nvidia1 is RTX 3090 [10de:2204] at 0000:1e:00.0" in " ".join(text.split())


def test_one_card_with_the_driver_and_one_on_vfio_pci_is_no_trouble(doctor: Callable[[str], Doctor]) -> None:
    """The driver says at its start that another one has the VM's card, which is what was wanted."""
    mixed = doctor("mixed")
    mixed.gpus = {"containers": {"match": "10de:2204", "address": "1e:00", "use": "lxc"}}
    mixed.change("modprobe vfio-pci && modprobe -r nvidia-uvm nvidia-drm nvidia-modeset nvidia; true")
    mixed.to_vfio("0000:1d:00")
    mixed.change("modprobe nvidia")
    assert "NVRM: obtained ownership of the NVIDIA device(s)." in mixed.lab.run("dmesg").stdout
    report = mixed.json("host")
    assert [card["functions"][0]["driver"] for card in report["cards"]] == ["vfio-pci", "nvidia"]
    assert not [one for one in report["findings"] if "driver" in one["wanted"]]


def test_a_host_that_needs_nothing_lacks_only_what_the_first_up_notes(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.gpus = {"big": {"match": "10de:2b85", "use": "lxc"}}
    connection = yaml.safe_load(phoenix.config().read_text())["config"]["homelab:hosts"]["pve"]
    connection["iommu"] = {"enable": False, "passthrough": False}
    phoenix.more = {"homelab:hosts": {"pve": connection}}
    (finding,) = phoenix.json("host")["findings"]
    no_note, no_agent = finding["found"].split("; ")
    assert no_note.startswith("the host has no note of") and no_agent.startswith("this program's agent is missing")


def test_a_gate_that_is_closed_is_a_finding(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.gpus = {"small": {"match": "10de:2684"}}
    finding = phoenix.json("host")["findings"][0]
    assert finding["found"] == "containers that use it: 950"
    assert "gpus.small.allowContainers" in finding["next"]


def test_a_host_that_does_not_answer(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    config = phoenix.config()
    config.write_text(config.read_text().replace(f"port: {phoenix.lab.connection['port']}", "port: 1"))
    assert main(["doctor", "host", "--config-file", str(config)]) == 2


# -- beside the doctor ---------------------------------------------------------------------------------------------
def test_show_draws_who_has_which_card_now_and_with_the_next_up(
    doctor: Callable[[str], Doctor], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    phoenix = doctor("phoenix")
    phoenix.gpus = {"rtx5090": {"match": "10de:2b85", "use": "lxc"}, "rtx4090": {"match": "10de:2684", "use": "lxc"}}
    phoenix.more = {"homelab:containers": {"phoenix": {"host": "pve", "ctid": 901, "gpuAssignment": "0"}}}
    where = ["--config-file", str(phoenix.config())]
    assert show.main(where) == 0
    lines = [line.strip("│├└─ ") for line in capsys.readouterr().out.splitlines()]
    first = lines.index("~ RTX 5090 [10de:2b85] at 0000:01:00, nvidia")
    assert lines[first + 1 : first + 3] == ["+ container 901 (ai-lab)", "container 950 (vast-worker)"] or lines[
        first + 1
    ].startswith("+ container 901")
    assert "RTX 4090 [10de:2684] at 0000:02:00, nvidia" in lines


def test_the_log_is_of_a_system_of_the_settings(doctor: Callable[[str], Doctor]) -> None:
    phoenix = doctor("phoenix")
    phoenix.more = {"homelab:containers": {"phoenix": {"host": "pve", "ctid": 901, "gpuAssignment": "0"}}}
    assert "this program has run no long command there" in phoenix.run("log", "hosts.pve")[1]
    status, _, error = phoenix.run("log", "vms.none")
    assert status == 2 and "hosts.pve, containers.phoenix" in error


def test_one_command_looks_at_all_that_the_settings_name_and_says_what_is_wrong_first(
    doctor: Callable[[str], Doctor],
) -> None:
    phoenix = doctor("phoenix")
    phoenix.gpus = {"rtx5090": {"match": "10de:2b85", "use": "lxc"}, "rtx4090": {"match": "10de:2684", "use": "lxc"}}
    phoenix.more = {
        "homelab:containers": {
            "broken": {"host": "pve", "ctid": 901, "gpuAssignment": "0"},
            "works": {"host": "pve", "ctid": 950, "gpuAssignment": "0,1"},
            "gone": {"host": "pve", "ctid": 999, "gpuAssignment": "0"},
        }
    }
    status, text, _ = phoenix.run()
    assert status == 1 and "found:  no such container on the host" in text  # 999
    assert (
        text.index("have problems")
        < text.index("what is wrong")
        < text.index("what to do")
        < text.index("where in the settings")
    )
    assert "containers.broken: " in text and "!! containers.gone" in " ".join(text.split())
    found = phoenix.json("stack")
    assert (found["version"], found["kind"], found["well"]) == (1, "stack", False)
    kinds = {one["place"]: one.get("kind") for one in found["reports"]}
    assert kinds == {
        "hosts.pve": "host",
        "containers.broken": "container",
        "containers.works": "container",
        "containers.gone": None,
    }
    del phoenix.more["homelab:containers"]["gone"]
    status, text, _ = phoenix.run("stack")
    assert status == 1 and "NVIDIA's drivers as this program knows them" not in text
    phoenix.more["homelab:containers"]["works"]["nvidia"] = {}
    assert "NVIDIA's drivers as this program knows them" in phoenix.run("stack")[1]
