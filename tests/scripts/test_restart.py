"""When a host restarts (lib/restart.sh; shared/restart.py does the same for guests): once the script that asks for it has ended, and whoever waits for its answer has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.scripts.conftest import Folder, library

#: What systemd-run is given, a word each line.
RUN = 'printf "%s\\n" "$@" >"$ROOT/unit"'


def asked(folder: Folder, text: str, by: str = "bash") -> list[str]:
    """The unit's command, of a script that does ``text``; ``by``: the program that runs it."""
    folder.command("systemd-run", RUN)
    file = folder.commands.parent / "restart.sh"
    file.write_text(library("common", "files", "restart"))
    environment = {**os.environ, **folder.environment}
    # A shell between them, which goes on after the script: it isn't replaced by it.
    way = ["-c", f'echo $$ >"$ROOT/by"; bash -c "source {file}; {text}"; exit $?']
    done = subprocess.run([by, *way], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    words = folder.read("unit").splitlines()
    return words[words.index("bash") :]


def named(folder: Folder, name: str) -> str:
    """bash, as a process of that name."""
    path = folder.commands.parent / name
    shutil.copy(Path(shutil.which("bash") or "").resolve(), path)
    return str(path)


def test_the_connection_that_has_the_answer_to_send_is_the_nearest_process_of_sshd(folder: Folder) -> None:
    for name in ("sshd", "sshd-session"):  # from OpenSSH 9.8 on
        *_, script, connection = asked(folder, "take_lock; restart_soon", named(folder, name))
        assert connection == folder.read("by").strip() != script
    # Where there is none, nothing ends, and it is a second.
    assert asked(folder, "take_lock; STARTED_BY=''; restart_soon")[-1] == "1"


def test_the_restart_begins_once_both_have_ended(folder: Folder) -> None:
    *command, _, _ = asked(folder, "take_lock; restart_soon")
    folder.command("timeout", 'shift; exec "$@"')  # without an end of its own
    folder.command(
        "systemctl",
        '[[ -e $ROOT/1 && -e $ROOT/2 ]] && echo "$@" >"$ROOT/restarts" || echo "too early" >"$ROOT/restarts"',
    )
    waits = [
        subprocess.Popen(["bash", "-c", f'read -r _; touch "$ROOT/{number}"'], env={**os.environ, **folder.environment}, stdin=subprocess.PIPE)
        for number in (1, 2)
    ]  # fmt: skip
    with subprocess.Popen([*command, *(str(one.pid) for one in waits)], env={**os.environ, **folder.environment}):
        for one in waits:
            one.communicate(b"\n")
    assert folder.read("restarts") == "reboot\n"
