"""What hands cards over, put on a host and taken away: the layers handover and hookscript."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import agent
from lab.host.state import of_root
from remote_scripts import put_agent
from remote_scripts.both.handover import Wanted
from remote_scripts.both.hookscript import Wanted as Hook
from remote_scripts.layers import handover as layer
from remote_scripts.notes import handover
from remote_scripts.notes.card import Card
from remote_scripts.pve import hookscripts
from remote_scripts.reading.answer import HandedOver
from remote_scripts.reading.handover import handed_over
from remote_scripts.reading.source import Source
from remote_scripts.tools import boot_service, modules
from remote_scripts.tools.done import Done
from tests.agent import api_kit, guest_kit, handover_kit
from tests.agent.handover_kit import BIG, CT950, START, STATE, VM, Host, noted
from tests.agent.handover_kit import host as host  # a fixture
from tests.agent.kit import Refused, ran

SERVICE, RECONCILE = layer.SERVICE, handover_kit.SERVICE
PROGRAM, PLACE = "/usr/local/sbin/homelab-handover", "/var/lib/vz/snippets/homelab-handover.sh"
STORAGES = """\
dir: other
	path /mnt/other
	content snippets,iso

dir: nas
	path /mnt/nas
	content snippets
	shared 1

lvmthin: local-lvm
	content images

dir: local
	path /var/lib/vz
	content {}
"""


@pytest.fixture(autouse=True)
def storages(host: Host) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    (host.root / handover.CARDS[1:]).unlink()


def apply(host: Host, *cards: Card) -> Any:
    return host.ask("apply", "handover", Wanted(cards=cards or (BIG,)))


def revert(host: Host) -> Any:
    return host.ask("revert", "handover", Wanted())


def hook(host: Host, verb: str, holder: str = "gaming-hook adopted", vmid: int = 103) -> Any:
    return host.ask(verb, "hookscript", Hook(vmid=vmid, holder=holder))


def seen(host: Host) -> HandedOver:
    """What a reading of the host has of it."""
    return handed_over(Source(host.system()))


def test_all_of_it_is_put_there_and_taken_back(host: Host) -> None:
    before = host.lasting()
    planned = host.ask("plan", "handover", Wanted(cards=(BIG,)))["files"]
    assert host.lasting() == before
    assert apply(host) == {"changed": True} and hook(host, "apply") == {"changed": True}
    written = [PROGRAM, handover.CARDS, *SERVICE.links.values(), PLACE]
    assert {file["what"] for file in planned} == {*written, *SERVICE.links}
    modes = [f"{(host.root / path[1:]).stat().st_mode & 0o777:o}" for path in written]
    assert " ".join(modes) == "755 644 644 644 755"
    assert "RequiresMountsFor=/var/lib/homelab\n" in host.read(written[2])
    assert [str((host.root / link[1:]).readlink()) for link in SERVICE.links] == written[2:4]
    assert "systemctl start homelab-handover.timer" in host.asked()
    assert host.read(VM).endswith("hookscript: local:snippets/homelab-handover.sh\n")
    assert apply(host) == {"changed": False} and hook(host, "apply") == {"changed": False}
    assert host.ask("plan", "handover", Wanted(cards=(BIG,)))["files"] == []
    assert hook(host, "revert") == {"changed": True} and revert(host) == {"changed": True}
    assert host.lasting() == before and revert(host) == {"changed": False}


def test_a_card_that_isnt_handed_over_any_more_takes_it_away(host: Host) -> None:
    before = host.lasting()
    apply(host)
    hook(host, "apply")
    planned = host.ask("plan", "handover", Wanted())["files"]
    assert {"how": "removed", "what": "VM 103's option hookscript", "diff": ""} in planned
    assert len(planned) == len({file["what"] for file in planned})
    assert host.ask("apply", "handover", Wanted()) == {"changed": True}
    (host.root / "var/lib/homelab/handover-hooks/103").unlink()
    host.ask("revert", "handover", Wanted())
    assert host.lasting() == before


def test_while_a_vm_has_a_card_nothing_of_it_goes(host: Host) -> None:
    apply(host)
    host.run(*START)
    with pytest.raises(Refused, match="gpus.big .*VM 103"):
        revert(host)
    with pytest.raises(Refused, match="gpus.big .*VM 103"):
        apply(host)
    # What was noted before the last start of the host tells nothing of now.
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    assert revert(host) == {"changed": True} and host.state() == ""


def test_a_state_that_cant_be_read_keeps_it_there(host: Host) -> None:
    apply(host)
    (host.root / STATE[1:]).mkdir(parents=True)
    with pytest.raises(Refused, match=STATE):
        revert(host)
    assert host.exists(PROGRAM)


@pytest.mark.parametrize(("content", "found"), [("iso,snippets", "local"), ("iso", "other")])
def test_a_storage_of_the_host_alone_is_chosen(host: Host, content: str, found: str) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format(content))
    assert hookscripts.need_storage(host.system()).name == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nodes pve2", "other"),
        ("nodes pve2,pve", "local"),
        ("nodes pve2 pve", "local"),
        ("disable 0", "local"),
        ("disable", "other"),
    ],
)
def test_a_storage_of_other_nodes_is_none_of_this_host(host: Host, line: str, found: str) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format(f"snippets\n\t{line}"))
    host.write(PLACE, "", 0o755)
    host.write(VM, "hookscript: local:snippets/homelab-handover.sh\n")
    assert hookscripts.need_storage(host.system()).name == found
    assert hookscripts.names_hook(host.system(), "103") is (found == "local")


AS_INSTALLED = """\
dir: local
\tpath /var/lib/vz
\tcontent iso,vztmpl,backup

lvmthin: local-lvm
\tthinpool data
\tcontent images,rootdir
"""
SWITCHED = AS_INSTALLED.replace("backup", "backup,snippets")


def as_installed(host: Host) -> None:
    host.write("/etc/pve/storage.cfg", AS_INSTALLED, 0o640)
    (host.root / "etc/pve/priv/lock").mkdir(parents=True, exist_ok=True)

    def perl(words: Sequence[str], stdin: bytes) -> Done:
        assert "thinpool data" not in " ".join(words), "every user may read a program's arguments"
        return api_kit.perl(host.root, words, stdin)

    host.programs["perl"] = perl


def test_a_host_as_installed_gets_a_storage_for_it_and_has_its_own_back(host: Host) -> None:
    as_installed(host)
    before = host.lasting()
    planned = host.ask("plan", "handover", Wanted(cards=(BIG,)))["files"]
    assert {"how": "changed", "what": "/etc/pve/storage.cfg: the storage local takes snippets", "diff": ""} in planned
    assert host.lasting() == before
    apply(host)
    hook(host, "apply")
    assert host.read("/etc/pve/storage.cfg") == SWITCHED and seen(host).lost_hooks == []
    assert apply(host) == {"changed": False}
    hook(host, "revert")
    planned = host.ask("plan", "handover", Wanted())["files"]
    assert "/etc/pve/storage.cfg: the storage local takes snippets no more" in {file["what"] for file in planned}
    revert(host)
    assert host.lasting() == before


@pytest.mark.parametrize(
    ("now", "path", "then"),
    [
        (SWITCHED.replace("backup,snippets", "snippets,rootdir"), "", AS_INSTALLED.replace("backup", "rootdir")),
        (AS_INSTALLED.replace("iso,vztmpl,backup", "iso, vztmpl"), "", None),  # somebody has taken it away
        (AS_INSTALLED.replace("iso,vztmpl,backup", "snippets"), "", None),  # it would take nothing
        (SWITCHED, "/etc/pve/nodes/pve2/qemu-server/105.conf", None),  # another node's VM names a script there
        (SWITCHED.replace("iso,vztmpl,backup,snippets", "backup,snippets,iso,vztmpl"), "", AS_INSTALLED),
    ],
)
def test_a_storage_takes_snippets_no_more_unless_others_use_it_for_them(
    host: Host, now: str, path: str, then: str | None
) -> None:
    as_installed(host)
    before = set(host.lasting())
    apply(host)
    host.write("/etc/pve/storage.cfg", now)
    if path:
        host.write(path, "hookscript: local:snippets/homelab-handover.sh\n")
    revert(host)
    assert host.read("/etc/pve/storage.cfg") == (then or now)
    assert {one for one in host.lasting() if not one.startswith("etc/pve/nodes/pve2")} == before


def test_without_a_storage_for_it_nothing_is_put_there(host: Host) -> None:
    host.write("/etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n\tshared 1\n")
    before = host.lasting()
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match="add snippets to the content of one"):
            host.ask(verb, "handover", Wanted(cards=(BIG,)))
    assert host.lasting() == before


def test_a_vm_names_the_script_where_it_lies(host: Host) -> None:
    """Somebody takes snippets from the storage, or the storage away: the VM would not start any more."""
    host.write("/etc/pve/storage.cfg", STORAGES.format("iso"))
    apply(host)
    hook(host, "apply")
    assert "hookscript: other:snippets/" in host.read(VM) and seen(host).lost_hooks == []
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    assert hook(host, "apply") == {"changed": False}, "it stays where it lies"
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets").replace("content snippets,iso", "content iso"))
    assert seen(host).lost_hooks == ["103"]
    qm, gone = host.programs["qm"], b"script 'local:snippets/homelab-handover.sh' does not exist\n"
    host.programs["qm"] = lambda _words, _stdin: Done(2, gone)
    with pytest.raises(Refused, match="script 'local:snippets/homelab-handover.sh' does not exist"):
        hook(host, "apply")
    host.programs["qm"] = qm
    apply(host)
    hook(host, "apply")
    assert host.read(VM).endswith("hookscript: local:snippets/homelab-handover.sh\n") and seen(host).lost_hooks == []
    hook(host, "revert")
    revert(host)
    assert [*host.root.rglob("homelab-handover*")] == []


def test_a_vm_whose_entry_got_another_name_keeps_its_hookscript(host: Host) -> None:
    """What has the new name is applied first, and what had the old one undone after that."""
    before = host.read(VM)
    apply(host)
    for verb, holder in (("apply", "old"), ("apply", "new"), ("revert", "old")):
        hook(host, verb, holder)
    assert "hookscript: local:snippets/" in host.read(VM)
    hook(host, "revert", "new")
    assert host.read(VM) == before


def test_what_is_installed_has_bytecode_and_makes_the_very_program_that_starts_guests(tmp_path: Path) -> None:
    """It notes the containers that it shuts down. Another version of Python passes the bytecode by."""

    def said(archive: str, text: str) -> bytes:
        words = [sys.executable, "-ISBc", f"import sys; sys.path.insert(0, {str(tmp_path / archive)!r}); {text}"]
        return subprocess.run(words, capture_output=True, check=True).stdout

    def made(archive: str, layer: str) -> bytes:
        of_program = f"boot_service.program({layer!r})"
        return said(archive, f"from remote_scripts.tools import boot_service; sys.stdout.buffer.write({of_program})")

    def imported(archive: str) -> bytes:
        return said(archive, "from remote_scripts.layers import handover; print(handover.__file__)").strip()

    (tmp_path / "agent").write_bytes(put_agent.compiled(agent.archive()))
    program = made("agent", "handover")
    (tmp_path / "handover").write_bytes(program)
    (tmp_path / "later").write_bytes(program.replace(MAGIC_NUMBER, b"\0\0\r\n"))
    assert made("handover", "start_guests") == made("agent", "start_guests")
    assert imported("handover").endswith(b"handover.pyc") and imported("later").endswith(b"handover.py")


def test_one_source_is_one_program_whatever_bytecode_an_agent_has_of_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preview's agent has none, and another agent's may differ."""
    real = modules._content
    for code, is_new in ((b"one", True), (b"another", False), (b"", False)):
        monkeypatch.setattr(
            modules, "_content", lambda name, ending="py", code=code: code if ending == "pyc" else real(name)
        )
        assert bool(host.ask("plan", "handover", Wanted(cards=(BIG,)))["files"]) is is_new, code
        assert apply(host) == {"changed": is_new}
    (host.root / PROGRAM[1:]).write_bytes(boot_service.program("handover").replace(b"def ", b"DEF ", 1))
    assert apply(host) == {"changed": True}, "somebody's edit, which ends as the program does"


def test_what_an_earlier_version_has_installed_goes_over_to_this_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an update that was cut short: its hookscript calls the program in each phase."""
    before = host.lasting()
    with monkeypatch.context() as earlier:
        earlier.setattr(layer, "_HOOK_TEXT", layer._HOOK_TEXT.replace("case ", "# case "))
        earlier.setattr(layer, "SERVICE", replace(SERVICE, unit="[Service]\nExecStart=/bin/true\n"))
        earlier.setattr(boot_service, "program", lambda name: f"of {name}".encode())
        apply(host)
        hook(host, "apply")
    with host.vm_locked():
        host.run(*START)
        for phase in ("post-start", "pre-stop"):
            host.run("hook", "103", phase)
    assert host.with_the_vm()
    host.run(*RECONCILE)
    assert apply(host) == {"changed": True} and host.read(PLACE) == layer._HOOK_TEXT
    assert (host.root / PROGRAM[1:]).read_bytes() == boot_service.program("handover") and seen(host).lost_hooks == []
    hook(host, "revert")
    revert(host)
    host.write(f"{guest_kit.TASKS}/index", "")
    assert host.lasting() == before


def test_a_hookscript_of_somebody_else_is_left_alone(host: Host) -> None:
    apply(host)
    host.write(VM, "hookscript: local:snippets/mine.sh\n")
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match=r"it has one already: local:snippets/mine\.sh"):
            hook(host, verb)
    hook(host, "revert")
    assert host.read(VM) == "hookscript: local:snippets/mine.sh\n"
    gone = b"Configuration file 'nodes/pve/qemu-server/777.conf' does not exist\n"
    host.programs["qm"] = lambda _words, _stdin: Done(2, gone)
    with pytest.raises(Refused, match=r"777\.conf' does not exist"):
        hook(host, "apply", vmid=777)


def test_a_hookscript_that_is_not_set_leaves_nothing_behind(host: Host) -> None:
    apply(host)
    before = host.lasting()
    host.fails("qm set")
    with pytest.raises(Refused, match="VM 103 with the hookscript local:snippets/homelab-handover.sh"):
        hook(host, "apply")
    assert host.lasting() == before


def test_no_vm_names_the_hookscript_when_it_is_gone(host: Host) -> None:
    apply(host)
    for vmid, name in ((104, "homelab-handover.sh"), (105, "mine.sh")):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", f"hookscript: local:snippets/{name}\n")
    host.fails("qm --delete hookscript")
    with pytest.raises(Refused, match="VM 104 without homelab's hookscript"):
        revert(host)
    assert host.exists(PROGRAM)
    host.fails()
    revert(host)
    assert host.read("/etc/pve/qemu-server/104.conf") == "" and "mine.sh" in host.read("/etc/pve/qemu-server/105.conf")


@pytest.mark.parametrize("cards", [(), (Card(name="other", functions={"0000:02:00.0": "10de:2684"}),)])
def test_a_container_that_is_still_off_is_started_though_its_card_isnt_handed_over_any_more(
    host: Host, cards: tuple[Card, ...]
) -> None:
    apply(host)
    host.run(*START)
    host.fails("nvidia-smi pci.bus_id")
    host.run(*RECONCILE)
    assert host.state() == "HELD" and host.owed() == {950: ""}
    host.alone()
    assert host.owed() == {950: "gpus.big isn't back from a VM"}
    apply(host, BIG, *cards)
    assert host.state() == "HELD", "what is noted of a card that stays shared stays"
    host.ask("apply", "handover", Wanted(cards=cards))
    assert host.state() == "" and host.read(CT950) == "stopped"
    host.alone()
    assert host.read(CT950) == "running" and not host.owed()


def test_units_that_systemd_has_not_read_are_read_by_the_next_run(host: Host) -> None:
    apply(host)
    real = host.programs["systemctl"]
    for needs, reads in (("no\n", False), ("yes\n", True)):
        host.write("/asked", "")
        host.programs["systemctl"] = lambda words, stdin, needs=needs: (  # type: ignore[misc]
            needs if "NeedDaemonReload" in words else real(words, stdin)
        )
        apply(host)
        assert ("daemon-reload" in host.asked()) is reads


def test_a_hookscript_that_was_lost_is_set_again(host: Host) -> None:
    """A snapshot's rollback, or a backup that was restored, drops it and keeps hostpci: the next start would hang."""
    apply(host)
    hook(host, "apply")
    conf = host.read(VM)
    lost = conf.replace("hookscript: local:snippets/homelab-handover.sh\n", "")
    host.write(VM, f"lock: rollback\n{lost}")
    assert seen(host).lost_hooks == ["103"]
    host.run(*RECONCILE)
    assert host.read(VM) == f"lock: rollback\n{lost}", "it is at work"
    host.write(VM, lost)
    host.run(*RECONCILE)
    assert host.read(VM) == conf and "VM 103 had lost its hookscript" in host.story()
    assert "To be rid of it for good, take the card out of the VM" in host.story()
    for other in ("hookscript: local:snippets/mine.sh\nhostpci0: 0000:01:00\n", "name: without a card\n"):
        host.write(VM, other)
        host.run(*RECONCILE)
        assert host.read(VM) == other


@pytest.mark.parametrize("python", ["works", "is broken", "is gone"])
def test_the_hookscript_refuses_a_start_and_lets_all_else_pass_where_python_is_broken(host: Host, python: str) -> None:
    apply(host)
    place = host.root.parent / "python3"
    if python != "is gone":
        place.write_text(f"#!/bin/sh\necho started\nexit {0 if python == 'works' else 1}\n")
        place.chmod(0o755)
    script = host.root.parent / "hook.sh"
    script.write_text(host.read(PLACE).replace("/usr/bin/python3", str(place)))
    for phase in ("pre-start", "post-start", "pre-stop", "post-stop"):
        done = subprocess.run(["sh", str(script), "103", phase], env=of_root(host.root), capture_output=True)
        assert done.returncode == (1 if phase == "pre-start" and python != "works" else 0), phase
        assert (b"VM 103 stays off" in done.stdout) is bool(done.returncode)
        assert (b"started" in done.stdout) is (phase in ("pre-start", "post-stop") and python != "is gone"), phase


@pytest.mark.parametrize(
    ("path", "text", "is_started"),
    [
        ("/nothing", "", False),
        (STATE, noted("VM"), True),
        (VM, "hookscript: local:snippets/mine.sh\n", False),
        (VM, "name: gaming\n\n[before]\nhookscript: local:snippets/homelab-handover.sh\n", True),
        (VM, "", True),
        (VM, None, False),
    ],
)
def test_the_service_starts_python_where_a_card_is_away_or_a_hookscript_was_lost(
    host: Host, path: str, text: str | None, is_started: bool
) -> None:
    apply(host)
    hook(host, "apply")
    (host.root / path[1:]).unlink() if text is None else host.write(path, text)
    unit = host.read(f"{boot_service.UNITS}/homelab-handover.service").replace("\\\n", " ")
    (line,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert not re.search(r"\$[{$]|%|\\\\", line), "what systemd would read otherwise than sh"
    words = shlex.split(line.removeprefix("ExecStart=-").replace("/usr/bin/python3", "echo started"))
    done = subprocess.run(words, env=of_root(host.root), capture_output=True)
    assert (done.stdout.startswith(b"started"), done.stderr) == (is_started, b"")


def test_the_program_works_by_itself_as_the_host_starts_it(host: Host) -> None:
    apply(host)

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        python = (sys.executable, "-I", "-S", "-B", "-X", "utf8")
        return ran(*python, str(host.root / PROGRAM[1:]), *words, **of_root(host.root), PATH=os.environ["PATH"])

    host.write("/etc/pve/qemu-server/104.conf", host.read(VM))
    done = started("hook", "104", "pre-start")
    assert done.returncode == 1 and "VM 104" in done.stdout + done.stderr
    assert started("hook", "104", "post-stop").returncode == 0
    host.write(handover.CARDS, "[")
    assert "as it was installed" in started("reconcile").stderr
