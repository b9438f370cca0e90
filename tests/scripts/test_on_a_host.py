"""The scripts on a whole host, without SSH and Pulumi: what happens to its boot when things are not as they should be."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.cards import remapping
from homelab.container import plan as container_plan
from homelab.host import gates, plan
from homelab.remote import agent, scripts
from homelab.settings import Container
from homelab.settings import Host as HostSettings
from lab.host.proxmox_boot import on_vfat
from lab.machine import Machine, load_scenario
from remote_scripts.both.confirm_boot import Wanted as ConfirmBoot
from tests import sampling
from tests.boot_layers import Asked, initramfs, iommu, reboot, vfio
from tests.conftest import PROJECT
from tests.lab.host_kit import run_layer
from tests.lab.test_real_hosts import be_no_proxmox, read
from tests.unit.hosts import settings

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2882,0000:01:00.1=10de:22be"


class Host:
    """A running lab host; scripts run in its environment."""

    def __init__(self, state: Path, scenario: str) -> None:
        self.machine = Machine.install(state, load_scenario(scenario))
        self.root = state / "root"
        self.machine.boot("start")
        be_no_proxmox(self.machine)

    def run(self, verb: str, script: Asked) -> subprocess.CompletedProcess[str]:
        return run_layer(self.machine, verb, script.layer, script.wanted)

    def bash(self, text: str) -> str:
        done = subprocess.run(["bash", "-c", text], env=self.machine.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def restart(self) -> None:
        self.machine.shutdown()
        assert self.machine.boot("reboot").comes_up
        be_no_proxmox(self.machine)

    def drivers(self) -> dict[str, str]:
        """PCI address -> driver."""
        devices = (self.root / "sys/bus/pci/devices").iterdir()
        return {one.name: link.readlink().name for one in devices if (link := one / "driver").is_symlink()}

    def files(self) -> dict[str, bytes]:
        """Everything that a boot reads, and our state."""
        folders = [self.root / "etc", self.root / "boot", self.root / "var/lib", self.machine.state / "esp"]
        return {
            str(path): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


def runs(machine: Host, words: str) -> None:
    """This boot has these words already: so they aren't tried first."""
    path = machine.root / "proc/cmdline"
    path.write_text(f"{path.read_text().strip()} {words}\n")


def put_agent(host: Host) -> None:
    """As a stack's first resource does it."""
    command = agent.command_to_put("root")
    environment = host.machine.environment()
    subprocess.run(["bash", "-c", command], input=agent.put("test"), env=environment, text=True, check=True)


def confirm(machine: Host) -> None:
    """As an `up` does it after the restart."""
    done = machine.run("apply", Asked("confirm_boot", ConfirmBoot()))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def host(tmp_path: Path) -> Callable[[str], Host]:
    return lambda scenario: Host(tmp_path / scenario, scenario)


def test_a_file_that_is_read_later_and_takes_our_words_away_is_named_and_nothing_is_changed(
    host: Callable[[str], Host],
) -> None:
    desktop = host("rtx5090")
    (desktop.root / "etc/default/grub.d/zzz-own.cfg").write_text('GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    before = desktop.files()
    done = desktop.run("apply", iommu(IOMMU))
    assert done.returncode == 1
    assert "what sorts after zz-homelab in /etc/default/grub.d" in done.stdout
    assert desktop.files() == before


def test_an_iommu_word_with_more_options_is_left_to_its_owner(host: Callable[[str], Host]) -> None:
    desktop = host("rtx5090")
    default = desktop.root / "etc/default/grub"
    default.write_text(default.read_text().replace('"quiet"', '"quiet intel_iommu=on,sm_on iommu=pt"'))
    desktop.bash("update-grub")
    before = desktop.files()
    done = desktop.run("apply", iommu("intel_iommu=on iommu=pt"))
    assert (done.returncode, '"changed":false' in done.stdout) == (0, True)
    assert desktop.files() == before


@pytest.mark.parametrize("scenario", sampling.sample(["rtx5090", "intel-zfs", "zfs-grub-shim"], 1, "twice"))
def test_applied_twice_and_taken_back_twice_is_as_once(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    stock = machine.files()
    layers: list[Asked] = [
        iommu(IOMMU),
        initramfs(),
        vfio(VFIO),
    ]
    for script in layers:
        assert machine.run("apply", script).returncode == 0
    configured = machine.files()
    for script in layers:
        assert scripts.answer(machine.run("apply", script).stdout)["changed"] in ("no", False)
    assert machine.files() == configured
    for _ in range(2):
        for script in reversed(layers):
            assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock


# Scenario -> the slot that goes to a VM, and the settings for it, if they aren't those of the scenario's own stack. tests/e2e/test_converge.py
# has one with the engine.
SLOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtx5090": ("0000:01:00", {}),
    "wtr-max": ("0000:01:00", {}),
    "intel-zfs": ("0000:01:00", {}),
    "two-identical": ("0000:1e:00", {}),
    "four-functions": ("0000:01:00", {}),
    "zfs-grub-shim": ("0000:01:00", {}),
    "iommu-off": ("0000:03:00", {}),
    # Its containers lose the card.
    "phoenix": ("0000:02:00", {"gpus": {"rtx4090": {"match": "10de:2684", "allowContainers": [901, 950]}}}),
    # The host's driver has both cards.
    "recorded-node": ("0000:41:00", {"gpus": {"second": {"match": "10de:2684", "address": "41:00"}}}),
    # Bound by somebody's own configuration: taken over only when asked.
    "bound-by-hand": ("0000:01:00", {"takeOver": True}),
    # As on a real host with a forgotten audio function: the ids name the card only; the IOMMU words are there.
    "half-bound": ("0000:01:00", {}),
}


def wanted_on(scenario: str) -> HostSettings:
    """The settings of ``SLOTS``."""
    about = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())
    return settings(**({"gpus": about["gpus"]} | SLOTS[scenario][1]))


def layers_of(want: plan.Wanted) -> list[Asked]:
    """What makes the boot of a host that is planned so, in its order."""
    return [
        iommu(want.iommu_words),
        initramfs(bool(want.vfio_words)),
        vfio(want.vfio_words),
    ]


def bind(machine: Host, scenario: str) -> plan.Wanted:
    """What is planned for the host, applied; it takes a restart."""
    wanted = wanted_on(scenario)
    want = plan.wanted(remapping.to_be(read(machine.machine), wanted), wanted)
    for script in layers_of(want):
        done = machine.run("apply", script)
        assert done.returncode == 0, done.stdout + done.stderr
    return want


# Scenario -> how somebody has bound its card and a sound controller, the card's slot and id, the controller and its id.
BY_HAND: dict[str, tuple[str, str, str, str, str]] = {
    "bound-by-hand": (
        """
sed -i 's/ids=10de:2b85,/ids=1002:1640,10de:2b85,/' "$ROOT/etc/default/grub" "$ROOT/etc/modprobe.d/vfio.conf"
update-initramfs -u -k all; update-grub""",
        "0000:01:00",
        "10de:2b85",
        "0000:09:00.1",
        "1002:1640",
    ),
    "intel-zfs": (
        """
sed -i '1s/$/ intel_iommu=on vfio-pci.ids=10de:2786,10de:22bc,8086:7ad0/' "$ROOT/etc/kernel/cmdline"
echo vfio-pci >>"$ROOT/etc/initramfs-tools/modules"
update-initramfs -u -k all; proxmox-boot-tool refresh""",
        "0000:01:00",
        "10de:2786",
        "0000:00:1f.3",
        "8086:7ad0",
    ),
}


@pytest.mark.parametrize("scenario", BY_HAND)
def test_a_card_that_ids_bind_by_hand_is_the_hosts_until_a_destroy(host: Callable[[str], Host], scenario: str) -> None:
    """Nobody's file is edited: our word comes last, and counts."""
    by_hand, slot, card, other, left = BY_HAND[scenario]
    machine = host(scenario)
    machine.bash(by_hand)
    machine.restart()
    stock, before = machine.files(), machine.drivers()
    assert {before[f"{slot}.0"], before[f"{slot}.1"], before[other]} == {"vfio-pci"}
    for use in ("lxc", "host"):
        asked = settings({"card": {"match": card, "use": use}})
        (error,) = gates.check(read(machine.machine), asked)[1]
        assert error.next.startswith("set takeOver: true for the host")
    wanted = settings({"card": {"match": card, "use": "host"}}, takeOver=True)
    want = plan.wanted(read(machine.machine), wanted)
    assert (want.vfio_words, want.functions) == (f"vfio-pci.ids={left}", {})
    layers = layers_of(want)
    for script in layers:
        done = machine.run("apply", script)
        assert done.returncode == 0, done.stdout + done.stderr
    machine.restart()
    drivers = machine.drivers()
    assert "vfio-pci" not in (drivers.get(f"{slot}.0"), drivers.get(f"{slot}.1")) and drivers[other] == "vfio-pci"
    found = read(machine.machine)
    assert plan.verify(found, wanted, want) == [] and plan.wanted(found, wanted) == want
    assert not any(plan.drift(found, want).values())
    for script in reversed(layers):
        assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock
    machine.restart()
    assert machine.drivers() == before


# Scenario -> what the refusal names, with the cards of its stack.
REFUSED = {
    "crowded-group": "nvme0n1",
    "nic-in-group": "network card",
    "firmware-off": "switch on Intel VT-d",
    "z370-two-cards-one-group": "graphics card",
    "one-to-one": "mapped 1:1",
}


@pytest.mark.parametrize("scenario", REFUSED)
def test_a_host_that_would_be_brought_down_is_refused(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    about = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())
    slots, errors = gates.check(read(machine.machine), settings(about["gpus"]))
    assert slots and REFUSED[scenario] in "\n".join(map(str, errors))


def test_an_id_that_two_cards_have_asks_for_an_address(host: Callable[[str], Host]) -> None:
    machine = host("two-identical")
    (error,) = gates.check(read(machine.machine), settings({"gpu": {"match": "10de:2204"}}))[1]
    assert "2: 0000:1d:00, 0000:1e:00" in error.found and 'add `address: "0000:1d:00"`' in error.next


def test_a_boot_partition_without_room_is_refused(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.machine.set_fault("boot-free-mb", 0)
    done = machine.run("plan", initramfs(is_needed=True))
    assert done.returncode != 0 and "room on /boot for a new initramfs" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "scenario", ["wtr-max", *sampling.sample(sorted(SLOTS.keys() - {"wtr-max"}), 3, "bound hosts")]
)
def test_a_host_is_bound_by_what_is_planned_for_it_and_given_back(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    stock, before = machine.files(), machine.drivers()
    wanted = wanted_on(scenario)
    want = bind(machine, scenario)
    layers = layers_of(want)
    machine.restart()
    bound = {address for address, driver in machine.drivers().items() if driver == "vfio-pci"}
    slot = SLOTS[scenario][0]
    assert bound == {path.name for path in (machine.root / "sys/bus/pci/devices").glob(f"{slot}.*")}
    assert {address: driver for address, driver in machine.drivers().items() if address not in bound} == {
        address: driver for address, driver in before.items() if address not in bound
    }
    cmdline = (machine.root / "proc/cmdline").read_text()
    if scenario == "half-bound":
        assert "homelab.vfio=0000:01:00.1=10de:22eb" in cmdline and cmdline.split().count("amd_iommu=on") == 1
        assert not [path for path in machine.files() if "zz-homelab-iommu" in path]
    if scenario == "bound-by-hand":
        assert "homelab.vfio=0000:01:00.0=10de:2b85" in cmdline
    found = read(machine.machine)
    assert plan.verify(found, wanted, want) == []
    # What its boot is to have is noted by whoever restarts it (the layer reboot): nobody did.
    assert not any(plan.drift(found, want).values())
    again = plan.wanted(remapping.to_be(found, wanted), wanted)
    assert (again.words, again.functions) == (want.words, want.functions)
    for script in reversed(layers):
        assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock
    machine.restart()
    assert machine.drivers() == before


@pytest.mark.parametrize("scenario", ["rtx5090", "intel-zfs"])
def test_the_second_boot_entry_gives_the_card_back_for_one_boot_and_a_new_kernel_is_bound(
    host: Callable[[str], Host], scenario: str
) -> None:
    """With either loader."""
    machine = host(scenario)
    put_agent(machine)
    bind(machine, scenario)
    machine.restart()
    confirm(machine)
    bound = machine.drivers()
    assert bound["0000:01:00.0"] == "vfio-pci"
    ours = sorted(path.stem for path in machine.machine.state.glob("esp/*/loader/entries/homelab-without-gpu-*.conf"))
    machine.machine.next_entry = ours[-1] if ours else "Proxmox VE without GPU passthrough, GNU/Linux"
    machine.restart()
    assert machine.drivers() == bound | {"0000:01:00.0": "nouveau", "0000:01:00.1": "snd_hda_intel"}
    machine.restart()
    assert machine.drivers() == bound
    version = "6.17.13-21-pve"
    machine.machine.install_kernel(version)
    machine.machine.shutdown()
    assert machine.machine.boot("reboot").kernel == version
    assert machine.drivers()["0000:01:00.0"] == "vfio-pci"
    entries = machine.machine.state.glob("esp/*/loader/entries/*.conf")
    seconds = [path.read_text() for path in entries if path.name == f"homelab-without-gpu-{version}.conf"]
    assert bool(seconds) == bool(ours) and not [text for text in seconds if "homelab.vfio" in text]


def test_words_lost_from_the_kernel_cmdline_file_are_named_and_come_back(host: Callable[[str], Host]) -> None:
    machine = host("intel-zfs")
    want = bind(machine, "intel-zfs")
    machine.restart()
    confirm(machine)
    configured = machine.files()
    machine.bash('echo "root=ZFS=rpool/ROOT/pve-1 boot=zfs" >"$ROOT/etc/kernel/cmdline"; proxmox-boot-tool refresh')
    drift = plan.drift(read(machine.machine), want)
    for layer in ("iommu", "vfio"):
        assert "is not on the configured kernel command line" in "\n".join(drift[layer]), drift
    for script in layers_of(want):
        assert machine.run("apply", script).returncode == 0
    assert machine.files() == configured, "at once: this boot has them already"


def test_another_card_chosen_is_bound_in_place_of_the_first(host: Callable[[str], Host]) -> None:
    machine = host("two-identical")
    before = machine.drivers()
    bind(machine, "two-identical")
    machine.restart()
    other = settings({"first": {"match": "10de:2204", "address": "1d:00", "allowConsole": True}})
    want = plan.wanted(remapping.to_be(read(machine.machine), other), other)
    for script in layers_of(want):
        assert machine.run("apply", script).returncode == 0
    machine.restart()
    assert machine.drivers()["0000:1d:00.0"] == "vfio-pci"
    assert machine.drivers()["0000:1e:00.0"] == before["0000:1e:00.0"]


@pytest.mark.parametrize(
    ("scenario", "fault", "layer", "said", "undone"),
    [
        ("rtx5090", "update-initramfs", 1, "the initramfs of every installed kernel rebuilt", ("init-top/homelab-vfio",)),
        ("rtx5090", "update-grub", 2, "the boot configuration generated again", ("zz-homelab-vfio.cfg", "12_homelab")),
        # update-initramfs writes to the ESPs as well.
        ("intel-zfs", "proxmox-boot-tool", 1, "superblock", ("init-top/homelab-vfio",)),
    ],
)  # fmt: skip
def test_a_tool_that_fails_leaves_the_files_of_its_step_as_they_were_and_the_next_run_finishes(
    host: Callable[[str], Host], scenario: str, fault: str, layer: int, said: str, undone: tuple[str, ...]
) -> None:
    """As an `up` ends then: tests/e2e/test_failures.py."""
    machine = host(scenario)
    stock = machine.files()
    wanted = wanted_on(scenario)
    layers = layers_of(plan.wanted(remapping.to_be(read(machine.machine), wanted), wanted))
    for script in layers[:layer]:
        assert machine.run("apply", script).returncode == 0
    if fault == "update-grub":
        runs(machine, layers[layer].wanted.words)
    before = machine.files()
    machine.machine.set_fault(fault, "fail")
    done = machine.run("apply", layers[layer])
    assert done.returncode == 1 and done.stdout.count("wanted:") == 1 and said in done.stdout, done.stdout
    now = machine.files()
    assert not [path for path in now if path not in stock and path.endswith(undone)]
    read_at_boot = [path for path in stock if path.endswith("boot/grub/grub.cfg") or "loader/entries" in path]
    assert read_at_boot and {path: now[path] for path in read_at_boot} == {path: before[path] for path in read_at_boot}
    assert not (machine.root / "var/lib/homelab/undo").exists()
    machine.machine.clear_faults()
    for script in layers:
        assert machine.run("apply", script).returncode == 0
    machine.restart()
    assert machine.drivers()["0000:01:00.0"] == "vfio-pci"
    for script in reversed(layers):
        assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock


def stands_against(machine: Host) -> str:
    """What keeps container 901 of a host from the driver's first two cards."""
    found = read(machine.machine)
    want = plan.wanted(found, settings({}))
    one = Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0,1"})
    wish = container_plan.wish_of("phoenix", one, found, want, container_plan.cards(found, want, {}, "pve"), "pve")
    return "\n".join(map(str, container_plan.judge_container(wish, found).refusals))


def test_what_stands_against_a_card_in_a_container_is_read_from_its_host(host: Callable[[str], Host]) -> None:
    """What is said of it, and what takes no host: tests/unit/test_containers.py."""
    machine = host("phoenix")
    assert stands_against(machine) == ""
    config = machine.root / "etc/pve/qemu-server/103.conf"
    before = config.read_text()
    config.write_text(f"{before}hostpci0: 0000:02:00\n")
    said = stands_against(machine)
    assert "card 1 (gpuAssignment)" in said and "0000:02:00 is given to VM 103 (Sandbox)" in said, said
    device = machine.root / "sys/bus/pci/devices/0000:02:00.0"
    machine.bash(
        f"modprobe vfio-pci; echo vfio-pci >{device}/driver_override; echo 0000:02:00.0 >{device}/driver/unbind; "
        f"echo 0000:02:00.0 >{machine.root}/sys/bus/pci/drivers_probe"
    )
    said = stands_against(machine)
    assert "0000:02:00 is bound to vfio-pci for VM 103 (Sandbox)" in said, said
    config.write_text(before)

    blacklist = machine.root / "etc/modprobe.d/no-nvidia.conf"
    blacklist.write_text("blacklist nvidia\nblacklist nvidia_drm\nblacklist nvidia_uvm\n")
    machine.bash("update-initramfs -u -k all")
    machine.restart()
    said = stands_against(machine)
    assert "NVIDIA's driver loaded on the host" in said and "installed and not loaded" in said, said
    driver = read(machine.machine).nvidia
    assert (driver.version, driver.installed) == ("", True)


def test_a_host_without_the_driver_has_no_card_for_a_container(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    (machine.root / "etc/pve/lxc/901.conf").write_text("arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n")
    said = stands_against(machine)
    assert "NVIDIA's driver loaded on the host" in said and "the driver isn't installed" in said, said
    assert not read(machine.machine).nvidia.installed


@pytest.mark.parametrize(
    ("scenario", "generated", "step", "script"),
    [
        ("rtx5090", "root/boot/grub/grub.cfg", "boot", iommu(IOMMU)),
        ("intel-zfs", "esp/*/loader/entries/proxmox-*.conf", "boot", iommu(IOMMU)),
        ("rtx5090", "root/boot/initrd.img-*", "initramfs", initramfs()),
    ],
)
def test_a_power_cut_before_a_file_was_generated_is_made_good(
    host: Callable[[str], Host], scenario: str, generated: str, step: str, script: Asked
) -> None:
    machine = host(scenario)
    runs(machine, IOMMU)
    old = {path: path.read_bytes() for path in machine.machine.state.glob(generated)}
    machine.run("apply", script)
    configured = machine.files()
    assert old and all(path.read_bytes() != text for path, text in old.items())
    for path, text in old.items():
        path.write_bytes(text)
    pending = machine.root / "var/lib/homelab/pending" / step
    pending.parent.mkdir()
    pending.touch()
    assert machine.run("apply", script).returncode == 0
    assert machine.files() == configured


def test_an_initramfs_that_fails_for_one_kernel_leaves_no_file_of_ours_and_is_mended_by_the_next_run(
    host: Callable[[str], Host],
) -> None:
    machine = host("rtx5090")
    stock = machine.files()
    oldest = sorted(path.name.removeprefix("vmlinuz-") for path in (machine.root / "boot").glob("vmlinuz-*"))[0]
    machine.machine.set_fault("update-initramfs", f"fail:{oldest}")
    done = machine.run("apply", initramfs())
    assert done.returncode == 1 and done.stdout.startswith("wanted: the initramfs of every installed kernel rebuilt")
    left = {path.relative_to(machine.root).as_posix() for path in map(Path, machine.files()) if str(path) not in stock}
    assert left == {"var/lib/homelab/pending/initramfs"}, "with the old files it failed, too: that is still to be done"
    machine.machine.clear_faults()
    assert machine.run("revert", iommu(IOMMU)).returncode == 0, "whichever script comes next"
    assert machine.files() == stock


def test_an_initramfs_that_a_power_cut_left_empty_is_made_anew(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.run("apply", initramfs())
    configured = machine.files()
    image = sorted((machine.root / "boot").glob("initrd.img-*"))[0]
    image.write_bytes(b"")
    image.with_name(image.name + ".new").write_bytes(b"")
    assert machine.run("apply", initramfs()).returncode == 0
    assert machine.files() == configured


def test_pinning_a_kernel_still_works_beside_the_second_boot_entry(host: Callable[[str], Host]) -> None:
    """proxmox-boot-tool takes the root device's id from grub.cfg by a pattern that a doubled entry would match twice."""
    machine = host("zfs-grub-shim")
    runs(machine, VFIO)
    machine.run("apply", vfio(VFIO))
    machine.bash("update-grub")
    kernel = machine.bash("proxmox-boot-tool kernel list").split()[-1]
    machine.bash(f"proxmox-boot-tool kernel pin {kernel}; proxmox-boot-tool refresh")
    pinned = (machine.root / "etc/default/grub.d/proxmox-kernel-pin.cfg").read_text()
    assert pinned.count("\n") == 1 and f"gnulinux-{kernel}-advanced-" in pinned
    machine.machine.shutdown()
    assert machine.machine.boot("reboot").kernel == kernel


def test_an_esp_that_is_gone_is_passed_over_as_proxmox_does(host: Callable[[str], Host]) -> None:
    machine = host("intel-zfs")
    uuids = machine.root / "etc/kernel/proxmox-boot-uuids"
    uuids.write_text(uuids.read_text() + "DEAD-BEEF\n")
    runs(machine, VFIO)
    assert machine.run("apply", vfio(VFIO)).returncode == 0
    for esp in (machine.machine.state / "esp").iterdir():
        entries = {path.name for path in (esp / "loader/entries").iterdir()}
        ours = {name for name in entries if name.startswith("homelab-without-gpu-")}
        assert len(ours) == len(entries) - len(ours) > 0
        assert all("homelab.vfio" not in (esp / "loader/entries" / name).read_text() for name in ours)
        assert all("without GPU passthrough" in (esp / "loader/entries" / name).read_text() for name in ours)


def test_an_esp_that_is_full_has_its_whole_images_again(host: Callable[[str], Host]) -> None:
    """As proxmox-kernel-helper 8.1.0 leaves it: a part of the first image, nothing on the second ESP, and status 1."""
    machine = host("intel-zfs")
    esps = sorted((machine.machine.state / "esp").iterdir())
    before = [{path: path.read_bytes() for path in esp.rglob("*") if path.is_file()} for esp in esps]
    machine.machine.set_fault("esp-bytes", sum(on_vfat(len(content)) for content in before[0].values()))
    done = machine.run("apply", initramfs())
    assert done.returncode != 0 and "No space left on device" in done.stdout + done.stderr
    assert [{path: path.read_bytes() for path in esp.rglob("*") if path.is_file()} for esp in esps] == before


def test_a_boot_without_a_switch_can_be_confirmed(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    before = machine.files()
    assert machine.run("apply", Asked("confirm_boot", ConfirmBoot())).returncode == 0
    assert machine.files() == before


def test_taking_everything_back_disarms_the_switch_too(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    stock = machine.files()
    words = iommu(IOMMU)
    machine.run("apply", words)
    machine.machine.set_fault("reboot-ignored", True)
    assert '"reboot":"yes"' in machine.run("apply", reboot(IOMMU)).stdout
    assert (machine.root / "etc/systemd/system/homelab-rollback.timer").exists()
    machine.run("revert", words)
    assert machine.files() == stock
    assert not list((machine.root / "etc/systemd/system").rglob("homelab*"))


def test_a_manual_reboot_is_left_to_the_person_and_has_its_switch(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.run("apply", iommu(IOMMU))
    done = machine.run("apply", reboot(IOMMU, policy="manual"))
    assert '"reboot":"manual"' in done.stdout
    assert list((machine.root / "etc/systemd/system").rglob("homelab*"))
