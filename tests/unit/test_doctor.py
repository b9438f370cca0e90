"""What `homelab doctor` makes of a reading: captures of real machines, and hosts that are described here."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from homelab.doctor import host as host_doctor
from homelab.doctor import vm as vm_doctor
from homelab.doctor.container import diagnose
from homelab.doctor.devices import WantedCards
from homelab.doctor.reading import Extra, Reading
from homelab.doctor.report import Report, Table, in_order
from homelab.errors import HomelabError
from homelab.facts.guests import GuestConfig
from homelab.findings import Finding, Stage, Turn, cured
from homelab.host import plan
from homelab.judged.tree import judged_systems
from homelab.nvidia import preview
from homelab.nvidia.work import NvidiaSystemWork, lasting
from homelab.settings import Container, Host, Nvidia, Vm
from remote_scripts.tools.plain import of_plain
from tests.conftest import shared
from tests.rows import rows
from tests.unit.hosts import KEY, NODES, SYSTEM, conf, desktop, device, device_nodes, gpu, seen, settings, tree, vm_note

DEVICES = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n226 drm\n508 nvidia-uvm\n511 nvidia-caps\n\nBlock devices:\n259 blkext\n"
DEVICE_LINES = "".join(
    f"dev{n}: /dev/{name},mode=0666\n" for n, name in enumerate(("nvidia0", "nvidiactl", "nvidia-uvm"))
)
LIBRARY = "library /usr/lib/libcuda.so.1 /usr/lib/libcuda.so.580.105.08\n"


def inside(nodes: dict[str, str], root: str = "ok", user: str = "ok") -> str:
    """What inspect_inside.sh prints in a container with these nodes and the right libraries."""
    found = ((f"/dev/{name}", f"{numbers} 65534 65534 character special file") for name, numbers in nodes.items())
    words = [f"node {path} {numbers}\nroot {path} {root}\nuser {path} {user}" for path, numbers in found]
    return "\n".join([*words, LIBRARY])


def looked_into(ctid: int, conf: str, seen: str | None = None, problem: str = "") -> dict[str, Any]:
    return {"id": ctid, "conf": conf, "running": seen is not None, "inside": seen or "", "problem": problem}


def reading(conf: str = "", seen: str | None = None, *, nodes: dict[str, str] | None = None, **changes: Any) -> Reading:
    """A desktop whose RTX 5090 is NVIDIA's driver's, with container 901; ``seen`` None: it is off."""
    drm = {"0000:01:00.0": {"render": "renderD128"}}
    usual = desktop(nvidia_minors={"0000:01:00.0": 0}, modules=["nvidia", "nvidia_uvm"], drm=drm)
    facts = changes.pop("facts", usual)
    own = [] if facts.guests.config(901) else [GuestConfig("lxc", 901, conf)]
    places = "pve/lxc/901.conf\npve/qemu-server/103.conf\nfar/lxc/300.conf"
    facts = replace(
        facts,
        cluster=replace(facts.cluster, node="pve", places=places),
        nodes=device_nodes(nodes) if nodes is not None else facts.nodes or device_nodes(NODES),
        guests=replace(facts.guests, configs=[*facts.guests.configs, *own]),
        nvidia=replace(facts.nvidia, version=changes.pop("driver", "580.105.08")),
        systems=dict.fromkeys(("host", "901"), changes.pop("installed", None)),
    )
    changes["containers"] = [looked_into(901, conf, seen), *changes.get("containers", [])]
    extra = {"char_devices": DEVICES, "failed_starts": {}, "machine": "", "processor": "", **changes}
    return Reading(facts=facts, extra=of_plain(Extra, extra))


def diagnose_host(seen: Reading, host: Host, vms: dict[str, Vm] | None = None, stack: str = "") -> Report:
    return host_doctor.diagnose(seen, tree(seen.facts, host, vms, stack=stack))


def diagnose_vm(seen: Reading, host: Host | None = None, vms: dict[str, Vm] | None = None) -> Report:
    return vm_doctor.diagnose(seen, 103, tree(seen.facts, host or settings({}), vms))


LXC = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}})


def diagnose_container(seen: Reading, host: Host = LXC, **of_settings: Any) -> Report:
    """Container 901 as the settings have it."""
    one = Container.model_validate({"host": "pve", "ctid": 901, "gpus": ["rtx5090"], **of_settings})
    return diagnose(seen, 901, tree=tree(seen.facts, host, {}, {"ai": one}))


def found(report: Report) -> dict[str, str]:
    return {one.wanted: one.found for one in report.findings}


# -- containers --------------------------------------------------------------------------------------------------------
def test_a_container_with_all_that_it_needs_is_well() -> None:
    report = diagnose(reading(DEVICE_LINES, inside(NODES)), 901)
    assert (report.findings, report.next, report.well) == ([], [], True)


def test_of_a_card_that_no_driver_can_serve_no_driver_and_no_node_is_advised() -> None:
    kepler = device("0000:01:00.0", "10de:0ff3", "030000", 1, driver="nouveau")
    facts = desktop(devices=[kepler], nvidia={"trouble": ["no module nvidia", "install NVIDIA's driver on the host"]})
    (finding,) = diagnose(reading(facts=facts, driver="", nodes={}, seen=inside({})), 901).findings
    assert finding.next.startswith("give the card to a VM (use: vm) whose system has that branch")


def capture(name: str) -> tuple[str, dict[str, str]]:
    """A published configuration, and the nodes of its host, from a listing."""
    folder = shared("real_hosts", name)
    listing = (folder / "dev_nvidia.txt").read_text(encoding="utf-8")
    found_nodes = re.findall(r"^c([rw-]{9}) 1 root \w+ +(\d+), +(\d+) .* (\S+)$", listing, re.M)
    nodes = {}
    for mode, major, minor, path in found_nodes:
        below = {"n": "", "c": "dri/"}[path.removeprefix("/dev/")[0]]
        name_of = "nvidia-caps/" + path if path.startswith("nvidia-cap") else below + path.removeprefix("/dev/")
        bits = sum(1 << 8 - place for place, letter in enumerate(mode) if letter != "-")
        nodes[name_of] = f"{int(major):x} {int(minor):x} {bits:o}"
    return (folder / "lxc_conf.txt").read_text(encoding="utf-8"), nodes


@rows(
    ("line", "conf", "told"),
    [
        ("[9.1] NVRM: RmInitAdapter failed! (0x22:0x56:894)", DEVICE_LINES, True),
        ("[9.1] vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up", DEVICE_LINES, True),
        ("[9.1] vfio-pci 0000:03:00.0: not ready 65535ms after FLR; giving up", DEVICE_LINES, False),
        ("[9.1] vfio-pci 0000:0b:00.0: not ready 65535ms after FLR; giving up", DEVICE_LINES, False),
        ("[9.1] amdgpu 0000:0b:00.0: not ready 65535ms after resume; giving up", "dev0: /dev/dri/renderD129\n", True),
        # It may be the card of the number that none has now.
        ("[9.1] vfio-pci 0000:03:00.0: not ready 65535ms after FLR; giving up", "dev0: /dev/nvidia1\n", True),
        ("[9.1] DMAR-IR: Not enabling interrupt remapping", DEVICE_LINES, False),
    ],
)
def test_a_container_is_told_what_the_hosts_log_has_of_its_cards(line: str, conf: str, told: bool) -> None:
    drm = {"0000:01:00.0": {"render": "renderD128"}, "0000:0b:00.0": {"render": "renderD129"}}
    facts = desktop(*gpu("0000:03:00", 18), nvidia_minors={"0000:01:00.0": 0}, drm=drm, kernel_log=line)
    report = diagnose(reading(conf, inside(NODES), facts=facts), 901)
    assert any(one.found.endswith(f": {line}") for one in report.findings) is told
    if conf is DEVICE_LINES:
        assert len(report.next) == told, "a restart of the container mends no card"


def test_a_published_configuration_with_majors_that_nothing_has() -> None:
    conf, nodes = capture("pve-lxc-wrong-majors")
    devices = "Character devices:\n195 nvidia\n226 drm\n508 nvidia-uvm\n511 nvidia-caps\n"
    report = diagnose(reading(conf, nodes=nodes, char_devices=devices), 901)
    assert report.findings == []  # what is too much harms nothing
    assert [note.rpartition(": ")[2] for note in report.notes if "no device of the host" in note] == [
        "c 60:* rwm",
        "c 254:* rwm",
        "c 255:* rwm",
    ]


def test_a_published_configuration_that_gives_another_device_than_its_name() -> None:
    conf, nodes = capture("pve-lxc-rtx3060")
    devices = "Character devices:\n195 nvidia\n234 nvidia-uvm\n238 nvidia-caps\n"
    (finding,) = diagnose(reading(conf, nodes=nodes, char_devices=devices), 901).findings
    assert finding.found.startswith("/dev/nvidia-caps/nvidia-cap1 is the host's /dev/nvidia-uvm-tools; ")


def test_the_same_after_a_kernel_that_gives_other_majors() -> None:
    conf, nodes = capture("pve-lxc-rtx3060")
    nodes = {name: numbers.replace("ea ", "1fc ").replace("ee ", "1ff ") for name, numbers in nodes.items()}
    report = diagnose(reading(conf, nodes=nodes), 901)
    (wanted,) = (one for one in found(report) if one.startswith("device rules"))
    assert "508:* (/dev/nvidia-uvm, /dev/nvidia-uvm-tools" in wanted
    assert "the major 234, 238" in found(report)[wanted]


def test_what_opens_without_a_rule_is_no_finding() -> None:
    binds = "".join(
        f"lxc.mount.entry: /dev/{n} dev/{n} none bind,create=file\n" for n in ("nvidia0", "nvidiactl", "nvidia-uvm")
    )
    report = diagnose(reading(binds, inside(NODES)), 901)
    assert report.well and report.tables[0].rows[0][3:7] == ["none", "no", "195:0 0666", "ok"]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({k: v for k, v in NODES.items() if k != "nvidia0"}, "/dev/nvidia0 isn't inside"),
        ({**NODES, "nvidia-uvm": "1e0 0 666"}, "/dev/nvidia-uvm is 480:0 inside, 508:0 on the host"),
    ],
)
def test_a_container_that_runs_with_an_older_configuration_is_restarted(seen: dict[str, str], said: str) -> None:
    (finding,) = diagnose(reading(DEVICE_LINES, inside(seen)), 901).findings
    assert (finding.stage, finding.found, finding.next) == (Stage.RESTART, said, "restart it: `pct reboot 901`")


def test_a_rule_that_is_not_in_force_yet_asks_for_a_restart() -> None:
    report = diagnose(reading(DEVICE_LINES, inside(NODES, "Operation not permitted", "Operation not permitted")), 901)
    assert "/dev/nvidia0: Operation not permitted, although a rule allows it" in report.findings[0].found


SANDBOX = {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["gpu"]})}


@pytest.mark.parametrize("reason", ["No such device or address", "Permission denied"])
def test_a_device_that_root_cant_open_inside_is_told_with_the_reason(reason: str) -> None:
    seen = inside(NODES).replace("root /dev/nvidia0 ok", f"root /dev/nvidia0 {reason}")
    (finding,) = diagnose(reading(DEVICE_LINES, seen), 901).findings
    assert (finding.wanted, finding.found) == ("root of container 901 to open /dev/nvidia0", f"/dev/nvidia0: {reason}")


def test_a_change_comes_before_the_restart_and_that_before_the_libraries() -> None:
    report = diagnose(reading("", inside({}).replace(LIBRARY, "")), 901)
    assert [step.split(":")[0].split()[0].strip("`") for step in report.next] == ["pct", "restart", "with"]


def test_no_restart_is_asked_of_a_container_that_is_off() -> None:
    assert not any("reboot" in step for step in diagnose(reading(""), 901).next)


def test_numbers_of_device_options_that_are_taken_are_left_alone() -> None:
    (finding, *_) = diagnose(reading("dev0: /dev/net/tun\ndev2: /dev/nvidia0,mode=0666\n"), 901).findings
    assert "--dev1 /dev/nvidiactl,mode=0666 --dev3 /dev/nvidia-uvm,mode=0666" in finding.next


def test_a_container_with_raw_lines_is_offered_raw_lines() -> None:
    report = diagnose(reading("lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\n"), 901)
    assert "lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file" in report.next[0]
    assert report.next[0].endswith("lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 508:* rwm")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,optional", "mount entries below /dev with create=file"),
        ("lxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind,create=file", "device lines that lxc and Proxmox VE"),
        ("dev9: /dev/dri/renderD200,mode=0666", "the devices that the configuration names"),
    ],
)  # fmt: skip
def test_lines_that_do_not_do_what_they_say(line: str, wanted: str) -> None:
    report = diagnose(reading(f"{DEVICE_LINES}{line}\n"), 901)
    assert any(one.startswith(wanted) for one in found(report)), found(report)


def test_a_lock_is_nothing_to_a_container_that_nobody_changes() -> None:
    report = diagnose(reading(f"{DEVICE_LINES}lock: snapshot-delete\n", inside(NODES)), 901)
    assert report.well and "locked (snapshot-delete)" in report.head[0]
    changed = diagnose(reading("lock: snapshot-delete\n"), 901)
    assert "pct unlock 901" in changed.next[0] and changed.next[1].startswith("`pct set 901 ")


def test_a_missing_device_that_may_be_missing_is_none() -> None:
    line = "lxc.mount.entry: /dev/dri/renderD200 dev/dri/renderD200 none bind,optional,create=file\n"
    assert diagnose(reading(DEVICE_LINES + line), 901).well


@pytest.mark.parametrize("option", ["mode=0660", "mode=0600,gid=44"])
def test_a_mode_that_shuts_ordinary_users_out(option: str) -> None:
    report = diagnose(reading(DEVICE_LINES.replace("mode=0666", option, 1)), 901)
    assert list(found(report)) == ["/dev/nvidia0 open to ordinary users in container 901"]


@pytest.mark.parametrize("option", ["gid=44", "mode=0660,gid=44", "uid=1000"])
def test_a_device_that_is_given_to_somebody_on_purpose_is_open(option: str) -> None:
    assert diagnose(reading(DEVICE_LINES.replace("mode=0666", option, 1)), 901).well


def test_a_read_only_device_is_no_old_configuration() -> None:
    conf = DEVICE_LINES.replace("mode=0666", "mode=0666,deny-write=1", 1)
    seen = inside(NODES).replace("root /dev/nvidia0 ok", "root /dev/nvidia0 Operation not permitted")
    (finding,) = diagnose(reading(conf, seen), 901).findings
    assert finding.wanted == "/dev/nvidia0 open for writing, too"
    assert finding.next == "`pct set 901 --dev0 /dev/nvidia0,mode=0666`"


def test_a_device_that_is_closed_and_read_only_is_opened_by_one_command() -> None:
    """dev[n] makes a node of mode 0660 unless it says another."""
    report = diagnose(reading(DEVICE_LINES.replace("mode=0666", "deny-write=1", 1)), 901)
    assert len(report.findings) == 2 and set(report.next) == {"`pct set 901 --dev0 /dev/nvidia0,mode=0666`"}


def test_without_a_driver_its_cause_is_told_once() -> None:
    bound = desktop(devices=[one | {"driver": "vfio-pci"} for one in gpu()])
    report = diagnose(reading(DEVICE_LINES, nodes={}, driver="", facts=bound, char_devices=""), 901)
    (finding,) = report.findings
    has = "the driver has none; RTX 5090 [10de:2b85] at 0000:01:00 is bound to vfio-pci"
    assert finding.found == f"no /proc/driver/nvidia/version; {has}"
    assert "use: lxc" in finding.next
    unloaded = desktop(nvidia={"trouble": ["the driver is installed and not loaded", "`modprobe nvidia`"]})
    for facts, step in (
        (unloaded, "`modprobe nvidia`"),  # as the preview says it
        (desktop(), "load NVIDIA's driver on the host"),  # why not could not be read
    ):
        cards = WantedCards([0], "x")
        off = diagnose(reading(DEVICE_LINES, nodes={}, driver="", facts=facts, char_devices=""), 901, cards=cards)
        (finding,) = off.findings
        assert finding.found.endswith("at 0000:01:00 is on nouveau") and finding.next == step


def test_a_node_of_an_earlier_boot() -> None:
    report = diagnose(reading(DEVICE_LINES, nodes={**NODES, "nvidia-uvm": "1e0 0 666"}), 901)
    assert "/dev/nvidia-uvm has 480, /proc/devices says 508" in report.findings[0].found


def test_a_card_that_the_host_lacks_is_not_asked_of_the_configuration() -> None:
    report = diagnose(reading(DEVICE_LINES), 901, cards=WantedCards([0, 7], "--gpus"))
    (finding,) = report.findings
    assert finding.wanted.startswith("/dev/nvidia7 on the host")
    assert finding.found == "the driver has 0 (RTX 5090 [10de:2b85] at 0000:01:00)"


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        (LIBRARY.replace("580.105.08", "580.95.05"), "/usr/lib/libcuda.so.1: 580.95.05"),
        (LIBRARY + LIBRARY.replace("usr/lib/", "usr/local/lib/").replace("580.105.08", "575.51.03"), "/usr/lib/libcuda.so.1: 580.105.08; /usr/local/lib/libcuda.so.1: 575.51.03"),
        ("library /usr/lib/libcuda.so.1 /opt/libcuda.so\n", "/usr/lib/libcuda.so.1: of no version"),
        ("", "none (no libnvidia-ml.so.1, no libcuda.so.1)"),
    ],
)  # fmt: skip
def test_libraries_that_are_not_the_drivers(libraries: str, said: str) -> None:
    (finding,) = diagnose(reading(DEVICE_LINES, inside(NODES).replace(LIBRARY, libraries)), 901).findings
    assert (finding.found, finding.stage) == (said, Stage.INSIDE)
    assert "`nvidia: {}`" in finding.next
    assert "`sh NVIDIA-Linux-x86_64-580.105.08.run --no-kernel-modules`" in finding.next


def test_a_container_that_can_not_be_looked_into() -> None:
    broken = looked_into(902, DEVICE_LINES, "x", "exit status 124: x")
    (finding,) = diagnose(reading(containers=[broken]), 902).findings
    assert finding.found == "`pct exec`: exit status 124: x"


def test_a_container_that_is_to_have_no_card_needs_nothing() -> None:
    report = diagnose(reading("", inside({}).replace(LIBRARY, "")), 901, cards=WantedCards([], "--gpus"))
    assert report.well and report.tables[0].rows == []


def test_two_containers_with_other_spellings_of_the_same_lines_are_equal() -> None:
    model = looked_into(950, DEVICE_LINES.replace("dev0: ", "dev7: path="))
    like = diagnose(reading(DEVICE_LINES, containers=[model]), 901, like=950).data["like"]
    assert [like[key] for key in ("lines", "onlyHere", "devices")] == [[], [], []]


OWNERS = "".join(
    f"lxc.cgroup2.devices.allow: c {major}:* rwm\nlxc.mount.entry: /dev/{name} dev/{name} none bind,create=file\n"
    for name, major in (("nvidia0", 195), ("nvidiactl", 195), ("nvidia-uvm", 508))
)


@rows(
    ("conf", "model", "devices"),
    [
        (DEVICE_LINES, OWNERS, []),
        (OWNERS, DEVICE_LINES, []),
        (f"{DEVICE_LINES}dev9: /dev/net/tun\n", f"{OWNERS}lxc.cgroup2.devices.allow: c 10:200 rwm\n", []),
        (OWNERS.replace("508", "509"), DEVICE_LINES, ["/dev/nvidia-uvm"]),
        (DEVICE_LINES.replace("mode=0666", "mode=0660", 1), OWNERS, ["/dev/nvidia0"]),
        (DEVICE_LINES.replace("dev0: /dev/nvidia0", "dev0: /dev/nvidia7"), OWNERS, ["/dev/nvidia0"]),
        (OWNERS.replace("/dev/nvidia0 dev", "/dev/nvidiactl dev"), DEVICE_LINES, ["/dev/nvidia0"]),
    ],
)
def test_what_counts_of_two_containers_is_which_nodes_they_open(conf: str, model: str, devices: list[str]) -> None:
    """By whatever lines: of a device that differs, and of no other, each is shown."""
    report = diagnose(reading(conf, containers=[looked_into(950, model)]), 901, like=950)
    like = report.data["like"]
    assert [one["path"] for one in like["devices"] if "nvidia7" not in one["path"]] == devices
    assert ("nothing that counts differs from container 950" in report.notes) is (not devices)
    assert bool(like["lines"]) is bool(devices)
    assert all(
        any(path.partition("/dev/")[2] in line or "devices.allow" in line for path in devices) for line in like["lines"]
    )


def test_a_model_that_is_not_well_itself_is_no_model() -> None:
    model = looked_into(950, "dev0: /dev/nvidia0\n")
    report = diagnose(reading(DEVICE_LINES, containers=[model]), 901, like=950)
    assert any(note.startswith("container 950 isn't well itself") for note in report.notes)


@pytest.mark.parametrize(
    ("ctid", "said"), [(103, "it is a virtual machine"), (300, "it is on the node far"), (7, "no guest of the cluster")]
)
def test_what_is_no_container_of_this_host_is_refused(ctid: int, said: str) -> None:
    with pytest.raises(HomelabError) as raised:
        diagnose(reading(), ctid)
    assert raised.value.found.startswith(said)


# -- VMs and hosts -----------------------------------------------------------------------------------------------------
ENTRY = "node=pve,path=0000:01:00,id=10de:2b85,subsystem-id=1043:88e2,iommugroup=16"


def with_vm(entry: str = ENTRY, hostpci: str = "mapping=gpu,pcie=1", **changes: Any) -> Reading:
    vm = conf("vm", 103, f"bios: ovmf\nhostpci0: {hostpci}\nmachine: q35\nname: Sandbox\n")
    guests = {"running": [], "configs": [vm], "mappings": f"gpu\n\tmap {entry}\n"}
    return reading(facts=desktop(guests=guests, **changes))


def test_a_vm_whose_mapping_is_what_is_in_the_slot_is_well() -> None:
    assert diagnose_vm(with_vm()).well


@pytest.mark.parametrize(("hostpci", "said"), [("mapping=gpu", False), ("01:00.0;01:00.1", True), ("01:00.0", False)])
def test_a_function_that_a_running_vm_doesnt_have_may_be_on_the_hosts_driver(hostpci: str, said: bool) -> None:
    vm, drivers = with_vm(ENTRY.replace("01:00,", "01:00.0,"), hostpci), {"0000:01:00.0": "vfio-pci"}
    devices = [replace(one, driver=drivers.get(one.address, one.driver)) for one in vm.facts.devices]
    facts = replace(vm.facts, devices=devices, guests=replace(vm.facts.guests, running=frozenset([103])))
    findings = diagnose_vm(replace(vm, facts=facts)).findings
    assert any(one.found == "0000:01:00.1 is on snd_hda_intel" for one in findings) is said


@pytest.mark.parametrize(
    ("layer", "program"), [("nodes", "homelab-nvidia-nodes"), ("cards", "homelab-card-nodes"), ("values", "rules")]
)
def test_what_is_gone_of_any_layer_is_a_finding_of_the_host(layer: str, program: str) -> None:
    files = [{"layer": layer, "path": f"/usr/local/sbin/{program}", "state": "missing"}]
    for host in (settings({}), settings()):  # also where the words for a VM's card aren't there yet
        text = " ".join(diagnose_host(reading(facts=desktop(managed=files)), host).text().split())
        assert f"/usr/local/sbin/{program} is gone" in text


def test_a_host_that_was_never_configured_is_told_what_comes() -> None:
    (finding,) = [
        one for one in diagnose_host(reading(), settings()).findings if one.turn is Turn.UP and "host" in one.wanted
    ]
    assert "amd_iommu=on iommu=pt is not on the configured kernel command line" in finding.found
    assert "the initramfs script for vfio-pci is not there" in finding.found


def test_a_shared_card_is_not_to_be_taken_out_of_its_containers() -> None:
    shared = settings({"big": {"match": "10de:2b85", "use": "shared"}}, nvidia={"driver": "580"})
    handover = {"layer": "handover", "path": "/usr/local/sbin/homelab-handover", "state": "ok"}
    lost = {"enabled": True, "lost_hooks": ["103"]}
    seen = with_vm(managed=[handover], handover=lost, nvidia_minors={"0000:01:00.0": 0})
    configs = [*seen.facts.guests.configs, GuestConfig("lxc", 901, DEVICE_LINES)]
    facts = replace(seen.facts, guests=replace(seen.facts.guests, configs=configs))
    report = diagnose_vm(replace(seen, facts=facts), shared)
    assert not any("containers that use it" in one.found for one in report.findings)
    assert report.next[0].startswith("`pulumi up --refresh`")
    assert any("VM 103 has lost the hookscript" in one.found for one in report.findings)
    for seen_otherwise, of_settings in (
        (seen, settings({})),
        (replace(seen, facts=replace(facts, managed=[])), shared),
    ):
        otherwise = diagnose_vm(seen_otherwise, of_settings)
        assert sum("VM 103 has lost the hookscript" in one.found for one in otherwise.findings) == 1


def test_without_an_iommu_a_vm_is_told_what_its_host_is() -> None:
    seen, of_settings = with_vm(), settings(iommu={"enable": True})
    no_groups = replace(seen, facts=replace(seen.facts, iommu=replace(seen.facts.iommu, groups=0)))
    (alone,) = [one for one in diagnose_vm(no_groups).findings if "IOMMU" in one.wanted]
    assert alone.found == "none; the kernel says: nothing about an IOMMU"
    assert "`homelab doctor host` says why" in alone.next
    (of_host,) = [one for one in diagnose_host(no_groups, of_settings).findings if "the host" in one.wanted]
    assert of_host.turn is Turn.UP and of_host in diagnose_vm(no_groups, of_settings).findings


@rows(
    ("old", "new", "said"),
    [
        ("id=10de:2b85", "id=10de:2684", "id of 0000:01:00.0: 10de:2b85, the mapping says 10de:2684"),
        ("iommugroup=16", "iommugroup=9", "iommugroup of 0000:01:00.0: 16, the mapping says 9"),
        (",subsystem-id=1043:88e2", "", "subsystem-id of 0000:01:00.0: 1043:88e2, the mapping says nothing"),
        ("path=0000:01:00", "path=0000:09:00", "hostpci0: mapping=gpu,pcie=1: there is no 0000:09:00"),
        (
            "node=pve",
            "node=other",
            "hostpci0: mapping=gpu,pcie=1: there is no mapping gpu for this node (mappings: gpu)",
        ),
    ],
)
def test_a_mapping_that_proxmox_would_refuse(old: str, new: str, said: str) -> None:
    assert said in [one.found for one in diagnose_vm(with_vm(ENTRY.replace(old, new))).findings]


def test_a_mapping_and_an_address_that_do_not_exist() -> None:
    for hostpci, gone in (("mapping=x", "mapping x for this node (mappings: gpu)"), ("09:00,pcie=1", "0000:09:00")):
        (finding,) = diagnose_vm(with_vm(hostpci=hostpci)).findings
        assert finding.found == f"hostpci0: {hostpci}: there is no {gone}"
        assert "Resource Mappings" in finding.next and "`qm set 103 --delete hostpci0`" in finding.next


LINES = "bios: ovmf\nmachine: q35\nname: Sandbox\nhostpci0: mapping=gpu,pcie=1"
TAKEN_OUT = LINES.replace("\nhostpci0: mapping=gpu,pcie=1", "")


MAPPED = settings({"gpu": {"match": "10de:2b85"}}, node="pve")


def of_settings(
    lines: str,
    ledger: dict[str, str],
    host: Host = MAPPED,
    *,
    other: str = "",
    runs: Collection[int] = (),
    ha: str = "",
    **vm: Any,
) -> Report:
    """VM 103 as the settings have it. ``other``: lines of VM 104; ``ha``: of HA's resources."""
    seen = with_vm(ledger=ledger, cluster={"ha": {"resources": ha}})
    configs = [GuestConfig("vm", 103, lines), *([GuestConfig("vm", 104, other)] if other else [])]
    guests = replace(seen.facts.guests, configs=configs, running=frozenset(runs))
    wanted = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["gpu"], **vm})
    seen = replace(seen, facts=replace(seen.facts, guests=guests))
    return vm_doctor.diagnose(seen, 103, tree(seen.facts, host, {"sandbox": wanted}, stack="p/s"))


NOTED, CUT_SHORT = vm_note(103, LINES, "hostpci0"), vm_note(103, LINES, "hostpci0", before={"hostpci0": None})
UP, OTHER = "`pulumi up --refresh`", "machine: q35\nname: Other\nhostpci0: mapping=gpu,pcie=1"
IN_USE: dict[str, Any] = {"lines": TAKEN_OUT, "ledger": {}, "other": OTHER, "runs": [104]}
GONE = "there is no mapping old for this node (mappings: gpu)"


@rows(
    ("about", "found", "step"),
    [
        ({"ledger": CUT_SHORT}, "the last run didn't finish with it", UP),
        ({"ledger": vm_note(103, LINES, "hostpci0", identity="2")}, "VM 103 isn't the VM that was given its cards", UP),
        ({"power": "running"}, "power: stopped -> running", UP),
        ({"power": "stopped", "runs": [103]}, "power: running -> stopped", UP),
        (IN_USE | {"ledger": vm_note(104, OTHER, "hostpci0")}, "hostpci0: not there -> mapping=gpu,pcie=1", UP),
        (IN_USE, "VM 104 (Other) runs with it", "shut VM 104 (Other) down"),
        (
            {"lines": TAKEN_OUT, "ledger": {}, "ha": "vm: 103\n\tstate started\n"},
            "HA manages it (started)",
            "`ha-manager set vm:103 --state ignored`",
        ),
        ({"lines": f"{LINES}\nhostpci1: mapping=old"}, GONE, "make the mapping again"),
        ({"lines": f"{LINES}\nhostpci1: mapping=old", "power": "running"}, GONE, "make the mapping again"),
    ],
)
def test_a_vm_is_told_with_what_cures_it(about: dict[str, Any], found: str, step: str) -> None:
    told = of_settings(**{"lines": LINES, "ledger": NOTED, **about})
    (finding, *_) = [one for one in told.findings if found in one.found]
    (cure,) = [one for one in told.next if "shut it down and start it" not in one]
    assert cure.startswith(step) and finding.next == cure


@rows("about", [{"other": OTHER, "runs": [104]}, {"ha": "vm: 103\n\tstate started\n"}])
def test_of_a_vm_that_stays_as_it_is_nothing_is_wrong(about: dict[str, Any]) -> None:
    assert of_settings(LINES, NOTED, **about).well


@rows(
    ("lines", "ledger", "differs"),
    [
        (LINES, NOTED, ""),
        (LINES, {}, ""),  # its owner has given it the same
        (f"{LINES}\nlock: backup", NOTED, ""),  # nobody changes it
        (TAKEN_OUT, NOTED, "hostpci0: not there -> mapping=gpu,pcie=1"),
        (f"{LINES}\n[PENDING]\ndelete: hostpci0", NOTED, "hostpci0: not there -> mapping=gpu,pcie=1"),
        (TAKEN_OUT, {}, "hostpci0: not there -> mapping=gpu,pcie=1"),  # it was never given
        (LINES.replace(",pcie=1", ""), NOTED, "hostpci0: mapping=gpu -> mapping=gpu,pcie=1"),
        # No longer wanted.
        (f"{LINES}\nvga: none", vm_note(103, f"{LINES}\nvga: none", "vga", "hostpci0"), "vga: none -> not there"),
    ],
)
def test_a_vm_that_has_not_what_the_settings_say_is_told(lines: str, ledger: dict[str, str], differs: str) -> None:
    report = of_settings(lines, ledger)
    assert [one.found for one in report.findings] == [differs] * bool(differs)
    assert all("`pulumi up --refresh`" in step for step in report.next)


def test_a_run_that_was_cut_short_within_a_vm_is_told() -> None:
    seen = with_vm(ledger=CUT_SHORT)
    (finding,) = diagnose_vm(seen).findings
    assert finding.found == "the last run didn't finish with it" and "`pulumi up --refresh`" in finding.next


def test_what_up_would_refuse_is_told_with_what_differs() -> None:
    report = of_settings(LINES.replace("mapping=gpu,pcie=1", "01:00,pcie=1"), {})
    assert [one.found for one in report.findings] == [
        "hostpci0: 01:00,pcie=1, set by hand",
        "hostpci0: 01:00,pcie=1 -> mapping=gpu,pcie=1",
    ]
    locked = of_settings(f"{TAKEN_OUT}\nlock: backup", {})
    assert [one.found for one in locked.findings] == [
        "it is locked (backup)",
        "hostpci0: not there -> mapping=gpu,pcie=1",
    ]


def test_a_vm_that_has_its_cards_from_another_stack_is_refused() -> None:
    for lines in (LINES, LINES.replace(",pcie=1", "")):
        (refused, differs) = of_settings(lines, vm_note(103, lines, "hostpci0", owner="p/other/box")).findings
        assert (refused.found, refused.turn) == ("it has its cards from the stack p/other, as vms.box", Turn.REFUSED)
        assert "another stack has given it its cards" in differs.found and differs.next == refused.next


def test_of_a_card_that_isnt_found_a_vm_is_told_what_its_host_is() -> None:
    gone = settings({"gpu": {"match": "10de:1234"}}, node="pve")
    of_another = with_vm(ENTRY.replace("id=10de:2b85", "id=10de:1234"))  # another card is in the slot by now
    refused, differs = diagnose_host(with_vm(), gone).findings
    assert diagnose_vm(of_another, gone, SANDBOX).findings == [refused, differs]
    assert refused.turn is Turn.REFUSED and refused.next.startswith("correct `match` or `address`")
    assert "gpus.gpu isn't found" in differs.found and differs.next == refused.next


@rows(
    ("entry", "step"),
    [
        (ENTRY, ""),
        (ENTRY.replace("id=10de:2b85", "id=10de:2684"), "id=10de:2684"),
        (ENTRY.replace("node=pve", "node=other"), "the PCI mapping gpu: not there -> "),
    ],
)
def test_a_mapping_of_the_settings_that_up_puts_right_is_told_of_its_host_and_of_its_vm(entry: str, step: str) -> None:
    for report in (diagnose_host(with_vm(entry), MAPPED, SANDBOX), diagnose_vm(with_vm(entry), MAPPED, SANDBOX)):
        told = [one for one in report.findings if "the PCI mapping gpu" in one.wanted]
        assert [(one.turn, step in one.found) for one in told] == [(Turn.UP, True)] * bool(step)


def test_what_becomes_of_a_guest_that_has_left_the_settings_is_told_of_its_host() -> None:
    for of_stack, told in (("p/s", ["hostpci0: mapping=gpu,pcie=1 -> not there"]), ("p/other", []), ("", [])):
        findings = diagnose_host(with_vm(ledger=NOTED), settings({}), stack=of_stack).findings
        assert [one.found for one in findings if one.wanted == "VM 103 (Sandbox) as it was before"] == told
        assert all(one.turn is Turn.UP for one in findings)


def test_a_vm_that_no_settings_have_is_told_nothing_of_up() -> None:
    lines = "name: Other\nmachine: q35\nhostpci0: 01:00,pcie=1"
    guests = {"running": [104], "configs": [conf("vm", vmid, lines) for vmid in (103, 104)]}
    (finding,) = diagnose_vm(reading(facts=desktop(guests=guests))).findings
    assert finding.found == "VM 104 (Other) runs with it" and finding.next.endswith("then start VM 103")


@pytest.mark.parametrize("gpus", [{}, {"apu": {"address": "01:00", "allowConsole": True}}])
def test_what_is_known_against_giving_a_card_is_told_of_the_vm_that_has_it(gpus: dict[str, Any]) -> None:
    apu = device("0000:01:00.0", "1002:1900", "030000", 16, driver="vfio-pci", boot_vga=1)
    guests = {"running": [], "configs": [conf("vm", 103, "hostpci0: 01:00,pcie=1\n")]}
    seen = reading(facts=desktop(devices=[apu], guests=guests))
    notes = "\n".join(diagnose_vm(seen, settings(gpus)).notes)
    assert "can freeze the whole host" in notes
    assert "is the host's only screen, which stays dark from this start on" in notes


def test_a_vm_that_runs_has_its_card_until_it_is_off() -> None:
    vm = conf("vm", 103, "hostpci0: 01:00\n[PENDING]\ndelete: hostpci0\n")
    for running, options in (([103], ["hostpci0"]), ([], [])):
        guests = {"running": running, "configs": [vm]}
        report = diagnose_vm(reading(facts=desktop(guests=guests)))
        assert [one["option"] for one in report.data["hostpci"]] == options


def test_a_vm_of_which_nobody_knows_whether_it_runs() -> None:
    seen = with_vm()
    guests = replace(seen.facts.guests, unlisted="Connection refused")
    report = diagnose_vm(reading(facts=replace(seen.facts, guests=guests)))
    assert any("whether it runs isn't known" in note for note in report.notes)


def test_a_group_that_holds_more_than_the_card() -> None:
    more = device("0000:03:00.0", "144d:a80c", "010802", 16, driver="nvme", behind="nvme0n1")
    guests = {"running": [], "configs": [conf("vm", 103, "hostpci0: 01:00\n")]}
    named = settings({"gpu": {"address": "01:00"}})
    for host, turn in ((settings({}), Turn.PERSON), (named, Turn.REFUSED)):  # `up` refuses it of its own cards
        findings = diagnose_vm(reading(facts=desktop(more, guests=guests)), host).findings
        assert {one.turn for one in findings if "0000:03:00.0 NVMe disk" in one.found} == {turn}


def test_a_host_beside_its_settings() -> None:
    text = diagnose_host(reading(), settings()).text()
    assert "0000:01:00.0  10de:2b85  nouveau" in text and "`pulumi up`" in text
    assert diagnose_host(reading(), settings()).data["gpus"] == [{"name": "rtx5090", "use": "vm", "slot": "0000:01:00"}]


@pytest.mark.parametrize(
    ("trouble", "stack", "more", "said", "step"),
    [
        # What the preview refuses a container says it: which cause, and what helps.
        (["no module nvidia", "`dkms autoinstall`"], None, {}, "no module nvidia", "`dkms autoinstall`"),
        (
            ["", ""],
            None,
            {},
            "the driver has none; RTX 5090 [10de:2b85] at 0000:01:00 is on nouveau",
            "see `nvidia-smi",
        ),
        # What the settings install comes with `up`.
        (["no module nvidia", "x"], {"driver": "580"}, {}, "dev0: not there -> /dev/nvidia0", "`pulumi up --refresh`"),
        # A plan that is refused installs nothing.
        (["", ""], {}, {"gone": {"match": "10de:1234"}}, "dev0: not there -> /dev/nvidia0", "correct `match` or `add"),
    ],
)
def test_a_containers_card_that_the_driver_has_not_got(
    trouble: list[str], stack: dict[str, str] | None, more: dict[str, Any], said: str, step: str
) -> None:
    lxc = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}, **more}, nvidia=stack)
    report = diagnose_container(reading(facts=desktop(nvidia={"trouble": trouble})), lxc)
    assert said in report.findings[0].found and [one.startswith(step) for one in report.next] == [True]


# -- what is installed beside what is loaded ---------------------------------------------------------------------------
BARE = seen()
STACK = {"driver": "580", "containerToolkit": "docker"}


@pytest.mark.parametrize(
    ("steps", "drift", "lines"),
    [
        ("packages toolkit", (), []),
        # One that was cut short, by this program or by somebody else.
        (
            "packages toolkit",
            *[("packages: the libraries are 580.1, they were 590.1", "boot: 580.1 is loaded")] * 2,
        ),
        ("packages toolkit", *[("packages: an update was cut short",)] * 2),
        (
            "packages",
            ("packages: x is gone",),
            ("packages: x is gone", "toolkit: there is no record of it"),
        ),
        # What isn't wanted there.
        ("packages toolkit", ("libraries: package y is gone",), ()),
    ],
)
def test_refresh_preview_and_doctor_say_the_same_of_what_is_installed(
    steps: str,
    drift: tuple[str, ...],
    lines: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = tuple((layer, differs) for layer, _, differs in (line.partition(": ") for line in drift))
    system = replace(BARE, steps=tuple(steps.split()), drift=pairs)
    seen = reading(installed=system)
    lxc, facts = LXC.model_copy(update={"nvidia": Nvidia.model_validate(STACK)}), seen.facts
    told = [one.found for one in diagnose_host(seen, lxc).findings if one.turn is Turn.UP]
    assert told == ["; ".join(lines)] * bool(lines)
    of_host = preview.of_host("pve", lxc, facts, plan.wanted(facts, lxc), system)
    assert of_host is not None
    assert [line.strip() for line in of_host.text.splitlines()[1:]] == [*lines]
    monkeypatch.setattr(NvidiaSystemWork, "facts_of_refresh", lambda *_: facts)
    monkeypatch.setattr(NvidiaSystemWork, "wanted_stack", lambda *_: lxc.nvidia)
    resource = NvidiaSystemWork.resource
    about = SYSTEM | {"nvidia": {"container_toolkit": "docker"}}
    inputs = resource.Inputs(**about, target="host", system_name="hosts.pve", address="")
    before = resource.Outputs(facts=lasting(system, "host"), generation={}, stale=False)
    after = NvidiaSystemWork({}).read(inputs, before)
    assert capsys.readouterr().out.splitlines() == [f"hosts.pve: drift: {line}" for line in lines]
    again = {layer for layer, times in after.generation.items() if times}
    assert again - {"boot"} == {line.partition(":")[0] for line in lines} - {"boot"}


def test_where_the_preview_refuses_the_stack_its_next_step_is_the_cure() -> None:
    lxc = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}}, nvidia={"driver": "565"})
    seen = reading(installed=replace(BARE, drift=(("packages", "an update was cut short"),)))
    judged = tree(seen.facts, lxc)
    of_host = preview.of_host("pve", lxc, seen.facts, judged.want, BARE)
    assert of_host is not None
    refusing = replace(judged, systems=judged_systems(judged.wanted, seen.facts, [of_host]))
    refused, differs = host_doctor.diagnose(seen, refusing).findings
    assert (refused.turn, differs.turn) == (Turn.REFUSED, Turn.UP) and "branch 570 or later" in refused.wanted
    assert differs.next == refused.next and "pulumi up" not in refused.next


@pytest.mark.parametrize(("libraries", "wrong"), [("580.105.08", False), ("", False), ("590.48.01", True)])
def test_of_a_hosts_own_driver_module_and_libraries_are_compared(libraries: str, wrong: bool) -> None:
    report = diagnose_host(reading(installed=replace(BARE, libraries=libraries)), settings({}))
    assert [one.found for one in report.findings] == ["libnvidia-ml.so.1: 590.48.01"] * wrong
    assert not wrong or ("580.105.08" in report.findings[0].wanted and report.next[0].startswith("reboot the host"))


def test_a_container_is_told_that_its_hosts_driver_waits_for_a_reboot() -> None:
    """Its libraries are of the host's new ones, which are at work once the host has rebooted."""
    new = inside(NODES).replace("580.105.08", "590.48.01")
    (finding,) = diagnose(reading(DEVICE_LINES, new, installed=replace(BARE, libraries="590.48.01")), 901).findings
    assert (finding.found, finding.stage) == ("libnvidia-ml.so.1: 590.48.01", Stage.HOST)
    assert finding.next.startswith("reboot the host")


def test_libraries_that_are_mounted_from_the_host_are_of_its_version() -> None:
    of_host = "library /usr/lib/libcuda.so.1 /usr/lib/libcuda.so.1\n"
    line = "lxc.mount.entry: /usr/lib/libcuda.so.1 usr/lib/libcuda.so.1 none bind,create=file\n"
    for lines, is_well in ((DEVICE_LINES + line, True), (DEVICE_LINES, False)):
        report = diagnose(reading(lines, inside(NODES).replace(LIBRARY, of_host)), 901)
        assert report.well is is_well and ("equal: yes" in report.text()) is is_well


def test_a_system_that_can_not_be_read_is_a_finding_of_its_own() -> None:
    error = HomelabError(wanted="what is installed", found="dpkg-query: error", why="w", next="mend it")
    seen, wanted = reading(DEVICE_LINES, inside(NODES), installed=error), LXC.model_copy(update={"nvidia": Nvidia()})
    of_host = [diagnose_host(seen, host) for host in (settings({}), wanted)]
    for report in (*of_host, diagnose_container(seen, nvidia={})):
        assert [(one.found, one.turn) for one in report.findings] == [("dpkg-query: error", Turn.PERSON)]


@pytest.mark.parametrize("drift", ["packages: the libraries are 580.95.05, they were 580.105.08", ""])
def test_a_container_of_the_settings_is_told_what_a_refresh_tells(drift: str) -> None:
    torn = inside(NODES).replace(LIBRARY, LIBRARY.replace("580.105.08", "580.95.05"))
    differs = (("packages", drift.removeprefix("packages: ")),)
    installed = replace(BARE, steps=("packages",), drift=differs * bool(drift))
    (finding,) = diagnose_container(reading(DEVICE_LINES, torn, installed=installed), nvidia={}).findings
    assert finding.turn is (Turn.UP if drift else Turn.PERSON)
    if drift:
        assert finding.found == drift and finding.next.startswith("`pulumi up --refresh`")
    else:  # somebody else's are found first
        assert finding.found == "/usr/lib/libcuda.so.1: 580.95.05" and finding.next.startswith("remove those")


def test_that_homelab_installs_no_libraries_in_a_container_of_the_settings_is_a_note() -> None:
    without, torn = (inside(NODES).replace(LIBRARY, other) for other in ("", LIBRARY.replace("105", "95")))
    report = diagnose_container(reading(DEVICE_LINES, without))
    assert report.well and any("it has none of NVIDIA's libraries: with `nvidia: {}`" in note for note in report.notes)
    # Those of another version are a finding, and none in a container that the settings don't have.
    for other in (diagnose_container(reading(DEVICE_LINES, torn)), diagnose(reading(DEVICE_LINES, without), 901)):
        (finding,) = other.findings
        assert finding.wanted.startswith("NVIDIA's libraries of version 580.105.08") and "`nvidia: {}`" in finding.next


def test_what_is_installed_in_a_vm_is_judged_with_it() -> None:
    vm, cut_short = with_vm(), ("packages", "an update was cut short")
    login = {"address": "192.0.2.9", "ssh": {"hostKey": KEY, "agent": True}}
    wanted = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["gpu"], "nvidia": {}, **login})
    for drift in ((), (cut_short,)):
        systems = {"103": replace(BARE, steps=("packages",), drift=drift)}
        seen = replace(vm, facts=replace(vm.facts, systems=systems))
        report = diagnose_vm(seen, MAPPED, {"sandbox": wanted})
        told = [(one.found, one.stage, one.turn) for one in report.findings]
        assert told == [(": ".join(cut_short), Stage.INSIDE, Turn.UP)] * bool(drift)


# -- reports -----------------------------------------------------------------------------------------------------------
def test_next_steps_come_by_stage_and_once() -> None:
    findings = [
        Finding("", "", "", step, stage)
        for step, stage in (("c", Stage.INSIDE), ("a", Stage.HOST), ("a", Stage.RESTART))
    ]
    assert in_order(findings) == ["a", "c"]


def test_a_table_is_aligned_and_an_empty_cell_is_a_dash() -> None:
    text = Table("t", ["a", "long name"], [["x" * 5, ""], ["y", "z"]]).text()
    assert text.splitlines() == ["t", "  a      long name", "  xxxxx  -", "  y      z"]


def test_a_table_that_is_too_wide_has_a_sentence_for_each_row() -> None:
    rows = [["/dev/nvidia0", "195:0 0666", ""], ["/dev/nvidiactl", "no", "no"]]
    table = Table("t", ["device", "on the host", "inside"], rows)
    assert table.text(37) == table.text() != table.text(36)
    assert table.text(36).splitlines() == [
        "t",
        "  /dev/nvidia0; on the host 195:0",
        "      0666",
        "  /dev/nvidiactl; on the host no;",
        "      inside no",
    ]


def test_the_verdict_comes_before_the_tables_and_what_is_beside_it_after_them() -> None:
    report = Report("host", "the host", ["head"], [Table("t", ["a"], [["1"]])], [Finding("w", "f", "y", "n")], ["note"])
    order = ["the host", "what is wrong", "what to do, in this order", "t\n  a", "to know"]
    places = [report.text().index(part) for part in order]
    assert places == sorted(places)
    well = Report("host", "the host", [], [Table("t", ["a"], [["1"]])], [])
    assert well.text().startswith("the host\n\nnothing is wrong\n\nt\n")


def test_commands_and_configuration_lines_are_not_broken() -> None:
    command = "`pct set 901 " + "--dev0 /dev/nvidia0,mode=0666 " * 9 + "`"
    report = Report("host", "x", [], [], [Finding("w " * 120, "f", "y", command)])
    for width in (132, 80):
        assert command in report.text(width)
        assert width - 20 < max(map(len, report.text(width).splitlines()[2:5])) <= width


def test_the_json_has_what_the_text_has() -> None:
    value = diagnose(reading(DEVICE_LINES, inside(NODES)), 901).values()
    assert {"version", "kind", "subject", "well", "findings", "notes", "next", "devices", "driver"} <= set(value)


# -- starts that failed ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("log", "why", "tool"),
    [
        ("TASK ERROR: Device /dev/nvidia0 does not exist", "names a device node that the host hasn't got", ""),
        ("TASK ERROR: VM is locked (backup)", "another task has this guest locked", "unlock {}`"),
        (
            "lxc.hook.pre-start: Failed to run lxc.hook.pre-start",
            "what comes before the container's start",
            "start {} --debug`",
        ),
        ("TASK ERROR: it has none", "the task's log says", ""),
    ],
)
def test_why_a_guest_is_off_since_its_last_start_is_said(log: str, why: str, tool: str) -> None:
    starts = {"901": log, "103": log}
    vm = replace(with_vm(), extra=reading(failed_starts=starts).extra)
    of_container = diagnose(reading(DEVICE_LINES, failed_starts=starts), 901)
    reports = {"container 901": of_container, "VM 103 (Sandbox)": diagnose_vm(vm)}
    for name, report in reports.items():
        (finding,) = [one for one in report.findings if one.wanted == f"{name} started"]
        assert finding.found == f"its last start failed: {log}" and why in finding.why
        assert tool.format(103 if name.startswith("VM") else 901) in finding.next and " ID" not in finding.next
    running = diagnose(reading(DEVICE_LINES, inside(NODES), failed_starts=starts), 901)
    assert [one.wanted for one in running.findings] == []


def test_what_is_wrong_by_itself_and_refuses_a_step_counts_as_refused_in_its_place() -> None:
    error = HomelabError(wanted="this host to start", found="no initramfs", why="the kernel would stop", next="make it")
    other = HomelabError(wanted="a card", found="gone", why="a VM has it", next="look")
    wrong, refused = Finding.of(error, other, turn=Turn.PERSON), Finding.of(error, turn=Turn.REFUSED)
    assert cured([*wrong, *refused]) == [*refused, wrong[1]]
