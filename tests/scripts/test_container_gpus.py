"""A container's configuration, edited in every shape that one has: what is ours comes and goes, everything else stays."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess

import pytest

from homelab.remote import scripts
from remote_scripts.layers.container_record import Wanted as ContainerRecord
from tests.boot_layers import read_host
from tests.lab.host_kit import run_layer
from tests.scripts.test_on_a_host import Host

SHUTDOWN = {"timeout": 5, "otherwise": "fail"}
BASE = "arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n"
SNAPSHOT = "\n[clean]\narch: amd64\nhostname: box\nmemory: 256\nsnaptime: 1700000000\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\n"
OTHERS = "hookscript: local:snippets/somebodys.pl\nmp0: /tank,mp=/tank\nlxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\nlxc.cgroup2.devices.allow: c 226:* rwm\n"
ALLOW = "lxc.cgroup2.devices.allow: c "
BIND = "lxc.mount.entry: /dev/{0} dev/{0} none bind,optional,create=file\n"
# What somebody needs for a card, by hand.
BY_HAND = f"{ALLOW}195:* rwm\n{ALLOW}480:* rwm\n" + "".join(
    BIND.format(name) for name in ("nvidia0", "nvidiactl", "nvidia-uvm")
)


class Containers:
    """A host with two cards, and container 300, which is off, with any configuration."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.path = host.root / "etc/pve/lxc/300.conf"

    def run(
        self, verb: str = "apply", method: str = "mount-entry", minors: str = "0"
    ) -> subprocess.CompletedProcess[str]:
        devices = {"METHOD": method, "MINORS": minors, "FUNCTIONS": ""}
        return self.host.run(verb, scripts.container_gpus(300, devices, SHUTDOWN, "0"))

    def apply(self, method: str = "mount-entry", minors: str = "0") -> str:
        done = self.run("apply", method, minors)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.path.read_text()

    def revert(self) -> str:
        done = self.run("revert")
        assert done.returncode == 0, done.stdout + done.stderr
        return self.path.read_text()


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Containers:
    return Containers(Host(tmp_path_factory.mktemp("host"), "phoenix"))


def ours(text: str) -> list[str]:
    """Lines about NVIDIA's nodes above the first section."""
    head = text.partition("\n[")[0]
    return [line for line in head.splitlines() if "nvidia" in line or "devices.allow" in line]


@pytest.mark.parametrize(
    "before",
    [
        BASE,
        BASE + SNAPSHOT,
        BASE + OTHERS,
        BASE + OTHERS + SNAPSHOT,
        f"#a note%3A with more\n#and another line\n{BASE}",
        f"{BASE}\n\n{SNAPSHOT}",
        f"# a comment in between\n{BASE}lxc.invalid.key: 1\nnonsense\n",
        f"{BASE}lxc.cgroup.devices.allow: c 195:* rwm\n",
        f"{BASE}\n[pve:pending]\nmemory: 1024\n{SNAPSHOT}",
        BASE.replace("\n", "\r\n"),
    ],
    ids=["plain", "snapshot", "others", "both", "notes", "blanks", "invalid", "cgroup 1", "pending", "crlf"],
)
def test_raw_lines_come_above_the_first_section_and_go_without_a_trace(containers: Containers, before: str) -> None:
    with containers.path.open("w", newline="") as file:
        file.write(before)
    once = containers.apply()
    with containers.path.open(newline="") as file:
        after = file.read()
    assert BIND.format("nvidia0") in after
    added = [line for line in after.splitlines(keepends=True) if line not in before.splitlines(keepends=True)]
    kept = after
    for line in added:
        kept = kept.replace(line, "", 1)
    assert kept == before
    assert "".join(added) in after  # together
    assert not any("nvidia" in line and "clean" in after.partition(line)[0] for line in added)
    assert containers.apply() == once
    containers.revert()
    with containers.path.open(newline="") as file:
        assert file.read() == before


def test_a_last_line_without_its_end_gets_one_as_proxmox_writes_it(containers: Containers) -> None:
    containers.path.write_text(BASE.removesuffix("\n"))
    assert containers.apply().startswith(f"{BASE}{ALLOW}195:0 rwm\n")
    assert containers.revert() == BASE


def test_what_somebody_has_given_it_is_enough(containers: Containers) -> None:
    for text in (
        BASE + BY_HAND,
        f"dev0: /dev/nvidia0,gid=44\ndev1: /dev/nvidiactl\ndev2: path=/dev/nvidia-uvm\n{BASE}",
    ):
        containers.path.write_text(text)
        for method in ("mount-entry", "device"):
            assert containers.apply(method) == text
        assert containers.revert() == text


def test_a_rule_with_an_old_major_is_left_and_the_right_one_added(containers: Containers) -> None:
    text = BASE + BY_HAND.replace("480:*", "508:*")
    containers.path.write_text(text)
    assert containers.apply() == f"{text}{ALLOW}480:0 rwm\n"
    assert containers.revert() == text


def test_a_line_of_ours_that_was_there_before_stays(containers: Containers) -> None:
    text = BASE + BIND.format("nvidia0")
    containers.path.write_text(text)
    assert containers.apply().count(BIND.format("nvidia0")) == 1
    assert containers.revert() == text


def test_moved_lines_are_found_again(containers: Containers) -> None:
    containers.path.write_text(BASE)
    lines = containers.apply().splitlines(keepends=True)
    containers.path.write_text("".join(reversed(lines)))
    assert sorted(containers.apply(minors="1").splitlines()) != sorted(containers.apply(minors="0").splitlines())
    assert sorted(containers.revert().splitlines()) == sorted(BASE.splitlines())


def test_dev_options_go_through_pct_and_take_free_numbers(containers: Containers) -> None:
    text = f"arch: amd64\ndev1: /dev/sda\nhostname: box\nmemory: 512\nunprivileged: 1\n{SNAPSHOT}"
    containers.path.write_text(text)
    after = containers.apply("device")
    assert "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/sda\ndev2: /dev/nvidiactl,mode=0666\n" in after
    assert after.partition("\n[clean]")[2] == text.partition("\n[clean]")[2]
    assert containers.apply("device") == after
    converted = containers.apply("mount-entry")
    assert "dev1: /dev/sda\n" in converted and "dev0" not in converted and BIND.format("nvidia0") in converted
    assert containers.apply("device") == after
    assert containers.revert() == text


def test_the_assignment_takes_lines_away_again(containers: Containers) -> None:
    containers.path.write_text(BASE)
    both = ours(containers.apply(minors="0 1"))
    one = ours(containers.apply(minors="1"))
    assert set(both) - set(one) == {f"{ALLOW}195:0 rwm", BIND.format("nvidia0").strip()}
    assert containers.apply(minors="") == BASE
    assert containers.revert() == BASE


@pytest.mark.parametrize("method", ["device", "mount-entry"])
@pytest.mark.parametrize(
    ("text", "minors", "said"),
    [
        (f"{BASE}lock: snapshot\n", "0", "it is locked: snapshot"),
        (f"{BASE}template: 1\n", "0", "it is a template"),
        (BASE, "7", "not on the host: /dev/nvidia7; the driver's cards are: /dev/nvidia0 /dev/nvidia1"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changed(
    containers: Containers, method: str, text: str, minors: str, said: str
) -> None:
    containers.path.write_text(text)
    done = containers.run("apply", method, minors)
    assert done.returncode == 1
    assert said in done.stdout
    assert [line[:7] for line in done.stdout.splitlines()] == ["wanted:", "found: ", "why:   ", "next:  "]
    assert containers.path.read_text() == text
    assert not (containers.host.root / "var/lib/homelab").exists()


def test_a_node_that_was_not_made_yet_is_told_from_a_card_that_is_not_there(containers: Containers) -> None:
    containers.path.write_text(BASE)
    node = containers.host.root / "dev/nvidia-uvm"
    kept = node.read_bytes()
    node.unlink()
    done = containers.run()
    node.write_bytes(kept)
    node.chmod(0o666)
    assert "nothing has made the nodes yet" in done.stdout
    assert "homelab-nvidia-nodes" in done.stdout


def test_a_file_that_another_process_has_locked_is_waited_for_and_left(containers: Containers) -> None:
    containers.path.write_text(BASE)
    lock = containers.host.root / "run/lock/lxc/pve-config-300.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        ["flock", str(lock), "-c", "echo held; read -r _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "held\n"
    devices = {"METHOD": "mount-entry", "MINORS": "0", "FUNCTIONS": ""}
    script = scripts.container_gpus(300, devices, SHUTDOWN, "0").replace(
        "CONF_LOCK_TIMEOUT:-10", "CONF_LOCK_TIMEOUT:-0"
    )
    done = containers.host.run("apply", script)
    holder.communicate("\n")
    assert done.returncode == 1
    assert "pve-config-300.lock is held by another process" in done.stdout
    assert containers.path.read_text() == BASE
    assert not (containers.host.root / "var/lib/homelab").exists()


def test_a_change_between_the_reading_and_the_writing_is_read_again(containers: Containers) -> None:
    containers.path.write_text(BASE)
    devices = {"METHOD": "mount-entry", "MINORS": "0", "FUNCTIONS": ""}
    script = scripts.container_gpus(300, devices, SHUTDOWN, "0")
    # Somebody with an editor, who takes no lock, at the worst moment: once.
    late = 'insert_lines() { original_insert_lines; [[ -e $ROOT/tmp/late ]] || { : >"$ROOT/tmp/late"; echo "tags: mine" >>"$ROOT$PVE_LXC/$CTID.conf"; }; }\n'
    script = script.replace("\ninsert_lines() {", "\noriginal_insert_lines() {", 1)
    script = script.replace("\nreplace_conf() {", f"\n{late}replace_conf() {{", 1)
    done = containers.host.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    text = containers.path.read_text()
    assert "tags: mine\n" in text and BIND.format("nvidia0") in text
    assert containers.revert() == f"{BASE}tags: mine\n"


def test_the_digest_tells_what_gives_it_the_devices(containers: Containers) -> None:
    def answer(text: str, minors: str = "0") -> str:
        containers.path.write_text(text)
        done = containers.run("apply", "mount-entry", minors)
        assert done.returncode == 0, done.stdout
        containers.revert()
        return done.stdout

    assert answer(BASE) == answer(BASE.replace("512", "1024"))
    assert answer(BASE) != answer(BASE, "1")


@pytest.mark.parametrize("method", ["mount-entry", "device"])
def test_a_configuration_with_a_zero_byte_is_left_as_it_is(containers: Containers, method: str) -> None:
    """bash has no such byte: what it writes again would lack it."""
    text = BASE.encode() + b"tags: a\0b\n"
    containers.path.write_bytes(text)
    done = containers.run("apply", method, "0")
    containers.path.write_text(BASE)
    assert done.returncode == 1 and "found:  its configuration has a zero byte" in done.stdout
    assert containers.revert() == BASE


# bash as it is when pmxcfs has made itself read-only: the file that would replace a configuration can't be made.
READ_ONLY = """umask() {
  if [[ ${temporary:-} == *.conf.tmp.* ]]; then printf '%s: Permission denied\\n' "$temporary" >&2 && return 1; fi
  builtin umask "$@"
}
"""
MEMBERS = """{"nodename": "pve", "cluster": {"name": "c", "nodes": 2, "quorate": 0}, "nodelist": {
 "pve": {"id": 1, "online": 1, "ip": "192.168.0.202"},
 "pve2": {"id": 2, "online": 0, "ip": "192.168.0.203"}}}"""


@pytest.mark.parametrize("method", ["mount-entry", "device"])
def test_a_file_that_cant_be_written_for_want_of_a_quorum_was_changed_by_nobody(
    containers: Containers, method: str
) -> None:
    containers.path.write_text(BASE)
    members = containers.host.root / "etc/pve/.members"
    members.write_text(MEMBERS)
    devices = {"METHOD": method, "MINORS": "0", "FUNCTIONS": ""}
    text = scripts.container_gpus(300, devices, SHUTDOWN, "0")
    try:
        done = containers.host.run("apply", READ_ONLY + text)
    finally:
        members.unlink()
    assert done.returncode != 0
    assert "Permission denied: no quorum; these nodes of the cluster don't answer: pve2" in done.stdout, done.stdout
    assert "pvecm status" in done.stdout and "changed from elsewhere" not in done.stdout
    assert containers.path.read_text() == BASE
    assert containers.apply(method) != BASE
    assert containers.revert() == BASE


def test_a_lock_that_another_process_holds_is_waited_for_a_minute_and_named(containers: Containers) -> None:
    containers.path.write_text(BASE)
    lock = containers.host.root / "run/lock/lxc/pve-config-300.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    devices = {"METHOD": "mount-entry", "MINORS": "0", "FUNCTIONS": ""}
    text = "CONF_LOCK_TIMEOUT=0.01\n" + scripts.container_gpus(300, devices, SHUTDOWN, "0")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = containers.host.run("apply", text)
    assert "pve-config-300.lock is held by another process" in done.stdout
    assert done.stderr.count("is being changed: reading it again") == 7, "ten seconds each"
    assert containers.path.read_text() == BASE


def test_a_container_of_another_node_is_named_with_its_node(containers: Containers) -> None:
    far = containers.host.root / "etc/pve/nodes/pve2/lxc/310.conf"
    far.parent.mkdir(parents=True)
    far.write_text(BASE)
    done = containers.host.run(
        "apply", scripts.container_gpus(310, {"METHOD": "device", "MINORS": "0", "FUNCTIONS": ""}, SHUTDOWN, "0")
    )
    shutil.rmtree(far.parent.parent)
    assert "it is on the node pve2, not on this one" in done.stdout and "pct migrate 310" in done.stdout


def test_a_revert_under_a_former_name_in_the_settings_takes_nothing_out(containers: Containers) -> None:
    """A container that is renamed there is made anew under its new name first; what had the old one is undone after that."""

    def run(verb: str, guest: str) -> str:
        devices = {"METHOD": "mount-entry", "MINORS": "0", "FUNCTIONS": ""}
        done = containers.host.run(verb, scripts.container_gpus(300, devices, SHUTDOWN, "0", guest=guest))
        assert done.returncode == 0, done.stderr
        return containers.path.read_text()

    containers.path.write_text("hostname: ai\nunprivileged: 1\n")
    stock, had = containers.path.read_text(), run("apply", "ai")
    assert run("apply", "media") == had != stock
    assert run("revert", "ai") == had
    assert run("revert", "media") == stock


def carry(containers: Containers, verb: str, record: dict[str, str] | None = None) -> dict[str, str]:
    """What is noted of the container goes from one node to another, which the tests have on one host."""
    done = run_layer(containers.host.machine, verb, "container_record", ContainerRecord(ctid=300, record=record or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    noted: dict[str, str] = json.loads(done.stdout)["record"]
    return noted


def test_what_is_noted_goes_with_a_container_to_another_node(containers: Containers) -> None:
    """As a move leaves it: the file is under another node's name, and this node's scripts leave it alone."""
    containers.path.write_text(BASE)
    given = containers.apply()
    root, record = containers.host.root, containers.host.root / "var/lib/homelab/containers/300"
    noted = {one.name: one.read_bytes() for one in record.iterdir()}

    taken = carry(containers, "read")
    away = root / "etc/pve/nodes/other/lxc/300.conf"
    away.parent.mkdir(parents=True)
    containers.path.rename(away)
    done = containers.run("revert")
    assert done.returncode == 0 and "is on other now" in done.stderr
    assert away.read_text() == given and {one.name: one.read_bytes() for one in record.iterdir()} == noted
    carry(containers, "revert", taken)
    assert not record.exists() and carry(containers, "read") == {}
    # On the node that it is on now.
    away.rename(containers.path)
    for _ in range(2):  # a run that was killed after it
        carry(containers, "apply", taken)
    assert {one.name: one.read_bytes() for one in record.iterdir()} == noted
    assert containers.revert() == BASE and not record.exists()
    away.parent.rmdir()


def test_lines_of_a_run_that_was_cut_short_go_along_too(containers: Containers) -> None:
    """The lines are noted before they are written; what is wanted is noted last."""
    containers.path.write_text(BASE)
    containers.apply()
    record = containers.host.root / "var/lib/homelab/containers/300"
    (record / "wanted").unlink()
    seen = json.loads(containers.host.run("read", read_host()).stdout)["containers"]
    assert [(one["id"], len(one["drift"])) for one in seen] == [(300, 1)]
    taken = carry(containers, "read")
    carry(containers, "revert", taken)
    assert not record.exists()
    carry(containers, "apply", taken)
    assert containers.revert() == BASE and not record.exists()
