"""Bad input and bad days: one clear message, exit code not 0, and the host unchanged or as the message says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Stack, refusal
from tests.e2e.test_gpu_vm import given_back
from tests.e2e.test_kill import STEP
from tests.engine_stack import Result
from tests.waiting import PATIENCE

PARTS = ("wanted:", "found:", "why:", "next:")
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


def one_message(result: Result, *said: str) -> None:
    """Exactly one message with its four parts, and ``said`` in it."""
    for text in said:
        assert text in result.message, result.output
    assert [result.message.count(part) for part in PARTS] == [1, 1, 1, 1], result.message


def test_a_bad_day_ends_with_one_clear_message_each_and_the_next_up_goes_on(
    stack_on: Callable[..., Stack], tmp_path: Path
) -> None:
    """Each leg goes on where the one before has failed."""
    stack = stack_on("rtx5090")
    stock = stack.lab.snapshot()
    # A host that isn't the one, and a login that is refused: without the engine. How that shows what is refused: tests/e2e/test_preview.py.
    right = stack.host["ssh"]
    import asyncssh

    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(stranger))
    for wrong, said in (
        ({"privateKeyFile": "/nowhere/id_ed25519"}, ("/nowhere/id_ed25519",)),
        ({"port": 1}, ("an SSH connection to 127.0.0.1:1",)),
        ({"hostKey": OTHER_KEY}, ("SHA256:",)),
        ({"privateKeyFile": str(stranger)}, ("to log in to 127.0.0.1", "ssh-copy-id")),
    ):
        stack.host["ssh"] = right | wrong
        message = refusal(stack)
        assert all(text in message for text in said), message
        assert [message.count(part) for part in PARTS] == [1, 1, 1, 1], message
    stack.host["ssh"] = right
    assert stack.lab.snapshot() == stock and len(stack.lab.boots()) == 1
    # A step that is cut off: pulumi-command, which runs it, has a sentence about exit signals.
    stack.lab.fault("script-hangs", STEP)
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_command(STEP, timeout=PATIENCE)
    stack.lab.power_cycle()
    assert process.wait(PATIENCE) != 0
    log = (stack.folder / "killed.log").read_text()
    assert "error: wanted: pve-cmdline: the step to its end" in log and "run `pulumi up` again: it finishes" in log, log
    stack.lab.fault("script-hangs", None)

    # A script that hangs is given up in time.
    mark = stack.lab.mark()
    stack.host["timeouts"] = {"connect": 10, "reboot": 60, "rollback": 60, "step": 5}
    hanging = "$HOMELAB_ROOT/usr/local/sbin/update-initramfs"
    stack.lab.run(
        f'mkdir -p "$HOMELAB_ROOT/usr/local/sbin"; printf "#!/bin/sh\\nexec sleep 600\\n" >"{hanging}"; chmod +x "{hanging}"'
    )
    failed = stack.up(ok=False)
    one_message(failed, "update-initramfs -u -k all: given up after")
    assert stack.lab.boots(since=mark) == [] and not stack.lab.run("pgrep -f '[s]leep 600' || :").stdout
    stack.lab.run(f'rm "{hanging}"')

    # A host without its network comes back as it was.
    before, mark = stack.machine.drivers(), stack.lab.mark()
    # Which guests run is asked for a minute before the restart, and may not be known.
    stack.host["timeouts"] = {"connect": 5, "reboot": 50, "rollback": 30}
    stack.lab.fault("no-network-when", "homelab.vfio")
    stack.lab.fault("timers-run-fast", 15)
    one_message(stack.up(ok=False), "it has returned by itself to what it was", "was not confirmed within 30 s")
    assert stack.machine.drivers() == before
    assert [boot["network"] for boot in stack.lab.boots(since=mark)] == [False, True]
    stack.lab.machine.clear_faults()
    assert stack.lab.snapshot()["boot/grub/grub.cfg"] == stock["boot/grub/grub.cfg"]

    # A host that never comes back is reported.
    stack.host["timeouts"] = {"connect": 5, "reboot": 3, "rollback": 30, "step": 300}
    stack.lab.fault("never-comes-back", True)
    done = stack.up("--refresh", ok=False)
    one_message(done, "127.0.0.1 back after its reboot", "switch it off and on")
    assert "pve-bind" in done.changed, "what was taken back is tried again"
    stack.lab.machine.clear_faults()

    # A menu that can't be made is said, and made by the next run. The boot is confirmed, and stays; which tools fail, and what they leave:
    # tests/agent/test_initramfs.py, test_cmdline.py.
    mark = stack.lab.mark()
    stack.host["timeouts"] = {"connect": 10, "reboot": 60, "rollback": 60}
    stack.lab.fault("update-grub", "fail")
    stack.lab.power_cycle()
    one_message(stack.up(ok=False), "the confirmed boot as the host's default")
    stack.lab.fault("update-grub", None)
    stack.up("--refresh")
    assert [boot["reason"] for boot in stack.lab.boots(since=mark)] == ["power"], "no other restart was needed"
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"

    # Every resource has a limit, also those of which nothing hung.
    made = [one for one in stack.resources() if one["custom"]]
    assert [one["urn"] for one in made if not one.get("customTimeouts")] == []
    assert [one["urn"] for one in made if "stackTrace" in one] == []
    stack.destroy()
    given_back(stack, stock)
    assert not (stack.lab.root / "var/lib/homelab").exists()
