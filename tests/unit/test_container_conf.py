"""A container's configuration as devices and rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab import tables
from remote_scripts.pve.container_conf import parse, passed_on, paths_of
from tests.conftest import shared
from tests.rows import rows

CONFIGURATIONS = tables.read(Path(__file__).parents[1] / "container_configurations.yaml")
BIND = "lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file"


@rows("name", CONFIGURATIONS)
def test_a_configuration_gives_a_node_and_allows_it(name: str) -> None:
    about = CONFIGURATIONS[name]
    conf = parse(f"hostname: box\n{about['text']}\n")
    entry = conf.entry_for("/dev/nvidia0")
    if entry is None or entry.source_of("/dev/nvidia0") != "/dev/nvidia0":
        given = "nothing"
    else:
        given = {"device": "dev", "mount-entry": "mount"}[entry.method]
    assert given == about["given"]
    assert (given == "dev" or conf.rule_for(195, 0, "rw") is not None) == about["allowed"]


def test_a_device_entry_has_its_own_mode_and_owner() -> None:
    plain, full = parse("dev0: /dev/nvidia0\ndev1: path=/dev/nvidiactl,mode=0666,uid=7,gid=44,deny-write=1\n").entries
    assert (plain.path, plain.method, plain.mode, plain.uid, plain.gid) == ("/dev/nvidia0", "device", 0o660, 0, 0)
    assert (full.path, full.mode, full.uid, full.gid, full.deny_write) == ("/dev/nvidiactl", 0o666, 7, 44, True)


@pytest.mark.parametrize("separator", [": ", ":", " = ", "="])
def test_a_raw_line_may_have_a_colon_or_an_equals_sign(separator: str) -> None:
    conf = parse(f"lxc.mount.entry{separator}/dev/nvidia0 dev/nvidia0 none bind,create=file\n")
    assert [(entry.path, entry.optional) for entry in conf.entries] == [("/dev/nvidia0", False)]


def test_a_mounted_folder_gives_every_node_below_it() -> None:
    conf = parse("lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n")
    entry = conf.entry_for("/dev/dri/renderD128")
    assert entry is not None and entry.source_of("/dev/dri/renderD128") == "/dev/dri/renderD128"
    assert conf.entry_for("/dev/drink") is None


def test_lines_of_a_snapshot_have_no_effect() -> None:
    conf = parse(f"hostname: x\n[before]\n{BIND}\ndev0: /dev/nvidia0\nhostname: y\n")
    assert (conf.entries, conf.options) == ([], {"hostname": "x"})
    assert conf.elsewhere == {"before": [BIND, "dev0: /dev/nvidia0"]}


def test_pending_changes_count_from_the_next_start_on() -> None:
    conf = parse(
        "dev0: /dev/nvidia0\ndev1: /dev/nvidia1\n\n[pve:pending]\ndelete: dev1\ndev2: /dev/nvidiactl\n\n[snap]\n"
    )
    assert [(entry.path, entry.pending) for entry in conf.entries] == [
        ("/dev/nvidia0", False),
        ("/dev/nvidiactl", True),
    ]


@pytest.mark.parametrize("lines", ["delete: dev0\ndev0: /dev/nvidia1", "dev0: /dev/nvidia1\ndelete: dev0"])
def test_what_is_to_come_comes_after_what_is_to_go(lines: str) -> None:
    """PVE::LXC::Config::vmconfig_apply_pending."""
    conf = parse(f"dev0: /dev/nvidia0\n[pve:pending]\n{lines}\n")
    assert [entry.path for entry in conf.entries] == ["/dev/nvidia1"]


def test_a_rule_allows_its_numbers_and_access() -> None:
    conf = parse("lxc.cgroup2.devices.allow: c 480:0 r\nlxc.cgroup2.devices.allow: c 483:* rwm\n")
    assert [rule.line.partition(": ")[2] for rule in conf.rules] == ["c 480:0 r", "c 483:* rwm"]
    assert conf.rule_for(480, 0, "rw") is None and conf.rule_for(480, 0, "r")
    assert conf.rule_for(483, 2, "rw")


def test_a_rule_for_all_allows_each() -> None:
    assert parse("lxc.cgroup2.devices.allow: a\n").rule_for(1, 2, "rw")


@rows(
    "line",
    [
        "lxc.cgroup2.devices.allow: c 195 rwm",
        "lxc.cgroup.devices.allow: c 195:* rwm",
        "lxc.mount.entry: /dev/nvidia0 dev/nvidia0",
        "lxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind,create=file",
        "dev0: /dev/nvidia0,mode=rw",
    ],
)
def test_what_has_no_effect_is_kept_as_such(line: str) -> None:
    conf = parse(f"{line}\n")
    assert (conf.broken, conf.entries, conf.rules) == ([line], [], [])


@pytest.mark.parametrize("text", ["", "# dev0: /dev/nvidia0\n", "mp0: local:x,mp=/y\nlxc.idmap: u 0 100000 65536\n"])
def test_other_lines_give_nothing(text: str) -> None:
    conf = parse(text)
    assert (conf.entries, conf.rules, conf.broken) == ([], [], [])


def test_windows_line_ends_and_a_missing_last_newline_change_nothing() -> None:
    assert [entry.line for entry in parse(f"{BIND}\r\n[s]\r\nx: y").entries] == [BIND]


def test_a_published_configuration_with_a_wrong_source() -> None:
    conf = parse(shared("real_hosts", "pve-lxc-rtx3060", "lxc_conf.txt").read_text(encoding="utf-8"))
    wrong = [entry.path for entry in conf.entries if entry.path != entry.source]
    assert wrong == ["/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap2"]
    assert conf.rule_for(234, 0, "rw") and conf.rule_for(238, 1, "r") and not conf.rule_for(508, 0, "rw")


# -- ways to a card that owners have written, and that aren't ones -----------------------------------------------------
CARD, RENDER = paths_of(["/dev/nvidia0"], "0000:01:00.0"), paths_of(["/dev/dri/renderD128"], "0000:00:02.0")
ALLOWED = "lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 226:* rwm\n"


def names_card(text: str, paths: list[str]) -> bool:
    """As a gate has it: by what is passed on of a configuration."""
    return parse(passed_on(f"unprivileged: 1\n{text}\n")).names_card(paths)


@rows(
    ("text", "paths"),
    [
        ("dev0: /dev//nvidia0,deny-write=1", CARD),
        ("lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file", CARD),
        ("lxc.mount.entry: /dev dev none rbind", CARD),  # a folder that is there needs no create=dir
        ("lxc.mount.entry: /dev/dri/by-path/pci-0000:00:02.0-render dev/dri/renderD128 none bind", RENDER),
        ("[a note of mine]\ndev0: /dev/nvidia0", CARD),  # PVE::LXC::Config: no section, by its blanks
        ("[2]\ndev0: /dev/nvidia0", CARD),
    ],
)
def test_every_way_to_a_card_that_an_owner_may_write_is_one(text: str, paths: list[str]) -> None:
    assert names_card(text, paths)


@rows(
    "text",
    [
        f"{ALLOWED}mp0: /srv/dev/nvidia0,mp=/x",
        f"{ALLOWED}lxc.mount.entry: //nas/dev dev/nvidia0 cifs credentials=/root/x",
        f"{ALLOWED}lxc.mount.entry: tmpfs dev/dri tmpfs rw",
        f"{ALLOWED}lxc.mount.entry: /srv/nodes/sound dev/snd none bind,create=dir",
        # What isn't read: who has the card so is seen once it has it open.
        f"{ALLOWED}lxc.mount.entry: / host none rbind",
        f"{ALLOWED}lxc.mount.entry: /srv/nodes/nvidia0 dev/nvidia0 none bind,create=file",
        "lxc.hook.mount: /usr/share/lxc/hooks/nvidia",
        "lxc.include: /etc/own/gpu.conf",
        "unprivileged: 0\nlxc.cgroup2.devices.allow: c 195:* rwm",
        "[before]\ndev0: /dev/nvidia0",
        "[pve:pending]\ndelete: dev0\n[x-1]\ndev0: /dev/nvidia0",
    ],
)
def test_what_gives_no_card_is_no_way_to_one(text: str) -> None:
    assert not names_card(text, [*CARD, *RENDER])


@rows(("value", "is_so"), [("1", True), ("yes", True), ("On", True), ("0", False), ("x", False)])
def test_a_boolean_is_one_however_somebody_has_written_it(value: str, is_so: bool) -> None:
    conf = parse(f"unprivileged: {value}\ntemplate: {value}\n")
    assert conf.unprivileged == is_so


def test_no_password_of_a_share_is_passed_on() -> None:
    lines = ["//nas/x mnt cifs username=a,password=verySecret", "//nas/x dev/x cifs password=verySecret,rw"]
    assert passed_on("".join(f"lxc.mount.entry: {line}\n" for line in lines)) == ""
    pending = "lxc.environment: PASSWORD=x\n[pve:pending]\nlxc.environment: PASSWORD=y"
    assert passed_on(f"tags: x\n{pending}\ntags: z") == "[pve:pending]\ntags: *"
