"""lib/progress.sh: a command that takes long says where it is while it does, and all that it says is in this system's log."""

from __future__ import annotations

import itertools
import re

import pytest

from homelab.remote import scripts
from tests.rows import failing
from tests.scripts.conftest import Folder
from tests.scripts.test_composition import PARTS, SCRIPTS, reading

KERNELS = ("6.14.8-2-pve", "6.17.2-1-pve")
BOTH_SAY = "echo 'update-initramfs: Generating /boot/initrd.img-6.14.8-2-pve'; echo 'update-initramfs: Generating /boot/initrd.img-6.17.2-1-pve'"
ESP = "echo 'Copying and configuring kernels on /dev/disk/by-uuid/AAAA-0001'; printf '\\tCopying kernel and creating boot-entry for 6.17.2-1-pve\\n'"


def told(folder: Folder, text: str, *parts: str, every: int = 1) -> list[str]:
    """The lines of the log for people, of a run in which `meanwhile PATTERN` waits until a person was told so; ``every``: PROGRESS_SECONDS."""
    folder.command("meanwhile", 'until grep -qE "$1" "$ROOT/told"; do read -rt 0.05 <> <(:) || :; done')
    done = folder.bash(f'exec 2>"$ROOT/told"\nPROGRESS_SECONDS={every}\ntake_lock\n{text}', parts=parts or ("files",))
    assert done.returncode == 0, done.stdout + folder.read("/told")
    return folder.read("/told").splitlines()


def installed(folder: Folder, *, esps: int = 0) -> None:
    for kernel in KERNELS:
        folder.write(f"/boot/vmlinuz-{kernel}", "")
    if esps:
        folder.write("/etc/kernel/proxmox-boot-uuids", "".join(f"AAAA-000{n}\n" for n in range(1, esps + 1)))


#: A command that takes long.
LONG = 'DOING="update-initramfs" run_logged update-initramfs -u -k all'


def test_what_takes_long_says_every_few_seconds_that_it_goes_on(folder: Folder) -> None:
    folder.command("update-initramfs", "echo Generating; meanwhile 'update-initramfs: [0-9]'")
    lines = told(folder, LONG)
    assert all(re.fullmatch(r"update-initramfs: \d+ s", line) for line in lines) and lines


def test_all_that_it_says_is_in_the_hosts_log_and_none_of_it_on_the_way(folder: Folder) -> None:
    folder.command("update-initramfs", f"{BOTH_SAY}; printf 'without an end'")
    assert told(folder, LONG, every=600) == []
    heading, *lines = folder.read("/run/homelab/steps").splitlines()
    assert heading.endswith(" update-initramfs: update-initramfs -u -k all")
    assert lines == [
        "  update-initramfs: Generating /boot/initrd.img-6.14.8-2-pve",
        "  update-initramfs: Generating /boot/initrd.img-6.17.2-1-pve",
        "  without an end",
    ]


def test_of_one_that_fails_the_end_is_shown(folder: Folder) -> None:
    folder.command("update-initramfs", "seq 100; echo 'grub-probe: error: no such disk.'; exit 1")
    lines = told(folder, f'{LONG} || printf "%s" "$OUTPUT"', every=600)
    assert lines == ["97", "98", "99", "100", "grub-probe: error: no such disk."]


def test_another_run_that_has_the_lock_is_waited_for_in_words(folder: Folder) -> None:
    folder.bash("make_run_dir")
    holder = 'flock "$ROOT/run/homelab/lock" meanwhile "waiting for another run"'
    # The holder has it before this one asks.
    text = f"""exec {{LOCK}}>&-
{holder} &
until ! flock -n "$ROOT/run/homelab/lock" true; do read -rt 0.01 <> <(:) || :; done
get_lock 60"""
    lines = told(folder, text)
    assert lines[0] in [f"waiting for another run on this system: {n} s" for n in (1, 2)]


def test_a_command_that_leaves_something_running_is_not_waited_for(folder: Folder) -> None:
    done = folder.bash("take_lock; run_logged bash -c 'sleep 50 & echo done'; echo \"$OUTPUT\"")
    assert done.stdout == "done\n"


def test_a_line_that_comes_in_two_is_one_line(folder: Folder) -> None:
    """bash reads a pipe byte by byte, and its time may be over between a status and the end of its line."""
    wait = "until [[ -e $ROOT/looked ]]; do read -rt 0.05 <> <(:) || :; done"
    text = f'exec {{pipe}}< <(printf 1; {wait}; printf "24\\n")\nawait_line "$pipe" 60 touch "$ROOT/looked"; echo "heard $HEARD"'
    done = folder.bash(text, parts=("progress",))
    assert done.stdout == "heard 124\n"


# -- this system's log -------------------------------------------------------------------------------------------
# Who writes into it, a thousand bytes at a time, or at once.
WRITERS = {
    "a line": 'for n in {1..40}; do note_line "$n $text"; done',
    "a heading": 'for n in {1..40}; do open_step_log "$n $text"; done',
    "a command": """run_logged bash -c 'for n in {1..40}; do printf "%s %01000d\\n" "$n" 0; done'""",
    "a command without lines": "run_logged sh -c 'head -c 40000 /dev/zero; echo; echo 40 end'",
    "several at once": 'for n in {1..40}; do note_line "$n $text" & all+=($!); done; wait "${all[@]}"; note_line "40 $text"',
}


@pytest.mark.parametrize("writer", WRITERS)
def test_this_systems_log_is_never_longer_than_it_may_be_whoever_writes(folder: Folder, writer: str) -> None:
    text = f"take_lock; STEP_LOG_BYTES=20000 ANSWER_BYTES=8000; printf -v text '%01000d' 0; {WRITERS[writer]}"
    done = folder.bash(text)
    log = folder.root / "run/homelab/steps"
    assert done.returncode == 0 and 1000 < log.stat().st_size <= 20_000, done.stderr
    assert log.stat().st_mode & 0o777 == 0o600 and not log.with_name("steps.old").exists()
    lines = log.read_text().splitlines()
    assert re.search(r"\b40 ", lines[-1]), lines[-1]
    # What stays of an older one are whole lines.
    assert re.match(r"  |\d{4}-\d\d-\d\d ", lines[0]), lines[0]


def test_a_line_that_comes_while_the_log_is_made_shorter_is_in_it(folder: Folder) -> None:
    folder.command("tail", '/usr/bin/tail "$@"; echo "  between" >>"$ROOT/run/homelab/steps"')
    folder.bash(
        'take_lock; STEP_LOG_BYTES=100; for n in {1..9}; do note_line "$n of nine"; done; STEP_LOG_BYTES=110; note_line last'
    )
    lines = folder.read("/run/homelab/steps").splitlines()
    assert "  between" in lines and "  9 of nine" in lines and lines[-1] == "  last"


def test_a_line_that_went_into_the_log_that_was_there_before_is_written_again(folder: Folder) -> None:
    moves = (
        'printf() { builtin printf "$@"; [[ $* != *late* || -e $log.old ]] || { mv "$log" "$log.old"; : >"$log"; }; }'
    )
    folder.bash(f"take_lock; note_line first; {moves}\nnote_line late")
    assert folder.read("/run/homelab/steps").splitlines()[-1] == "  late"


def test_where_nothing_tells_how_long_the_log_is_each_line_is_in_it_once(folder: Folder) -> None:
    folder.bash("take_lock; note_line one; PROCESS=/nowhere; note_line two; note_line three")
    assert folder.read("/run/homelab/steps").splitlines() == ["  one", "  two", "  three"]


def test_a_line_in_it_is_bounded_and_text_whoever_writes(folder: Folder) -> None:
    folder.bash(r"""make_run_dir; LOG_BYTES=1000; printf -v long '%05000d' 0
note_line "$long"; take_lock; run_logged printf '\033[31mred\033[0m\n'; note_line $'\033]0;title\007x\rhttp://u:p@proxy'""")
    log = folder.read("/run/homelab/steps")
    assert "… 4000 bytes are left out here …" in log and len(log) < 2000
    assert log.splitlines()[-3:] == ["  red", "  x", "  http://(secret)@proxy"]


@pytest.mark.parametrize("there", ["nothing", "a link", "a file"])
def test_where_the_folder_is_not_its_own_nothing_is_written(folder: Folder, there: str) -> None:
    (folder.root / "etc/other").mkdir()
    if there == "a link":
        (folder.root / "run/homelab").symlink_to(folder.root / "etc/other")
    elif there == "a file":
        folder.write("/run/homelab", "")
    done = folder.bash("open_step_log heading; note_line line; echo on")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
    assert not list((folder.root / "etc/other").iterdir())


def test_somebodys_build_of_long_ago_is_not_taken_for_what_is_done_now(folder: Folder) -> None:
    folder.write(
        "/var/lib/dkms/nvidia/550.1/build/make.log", "DKMS make.log for nvidia-550.1 for kernel 6.8.4 (x86_64)\n"
    )
    folder.command("pct", "meanwhile 'container 901: [0-9]'")
    assert not [line for line in told(folder, 'DOING="container 901" run_logged pct start 901') if "module" in line]


# -- the class -------------------------------------------------------------------------------------------------
# Commands that may take more than some seconds: first words that make one.
TAKE_LONG = (
    ("update-initramfs",), ("update-grub",), ("proxmox-boot-tool", "refresh"), ("dkms", "install"), ("apt-get",), ("dpkg", "--configure"),
    ("pct", "start"), ("pct", "shutdown"), ("pct", "stop"), ("qm", "create"), ("qm", "start"), ("qm", "stop"), ("qm", "destroy"),
    ("curl",), ("docker", "start"), ("systemctl", "restart"), ("nvidia-ctk",), ("modprobe", "nvidia"), ("rmmod",),
)  # fmt: skip
# apt-get -s only calculates.
QUICK = (("apt-get", "-s"),)


def test_no_script_starts_a_long_command_without_saying_where_it_is() -> None:
    """By itself, or under `within` or `timeout`: run_logged and run_streamed say so."""

    def check(name: str) -> None:
        for command in reading(scripts._code(name)).commands:
            words = command.words
            if words[:1] in (["within"], ["timeout"], ["env"], ["holding_lock"]):
                words = [
                    *itertools.dropwhile(
                        lambda word: re.match(r"[-$\d]|\w+=|env$|timeout$|within$|holding_lock$", word), words
                    )
                ]
            begins = {tuple(words[:length]) for length in (1, 2)}
            assert not begins & {*TAKE_LONG} or begins & {*QUICK}, words

    assert failing(check, [(name,) for name in (*SCRIPTS, *PARTS)]) == {}
