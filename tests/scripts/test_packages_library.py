"""lib/packages/ by itself: what a failure's message is made of, what apt announces, what is taken for a lock."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from homelab.nvidia.symptoms import Context, recognise, symptoms
from homelab.remote.nvidia_steps import package_arguments
from homelab.settings.nvidia import Nvidia
from tests.scripts.conftest import Folder

APT = """\
Reading package lists...
E: {}
"""
# Real texts, and the name of the row that answers.
TEXTS = [
    ("package-not-found", APT.format("Unable to locate package nvidia-driver-999-open")),
    ("package-not-found", APT.format("Version '580.1-*' for 'libnvidia-compute-580' was not found")),
    ("disk-full", APT.format("You don't have enough free space in /var/cache/apt/archives/.")),
    ("no-network", "curl: (6) Could not resolve host: developer.download.nvidia.com\n"),
    ("repository-twice", APT.format("Conflicting values set for option Signed-By regarding source https://x/ /: /a != /b")),
    ("apt-locked", APT.format("Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (apt-get)")),
    ("checksum", APT.format("Failed to fetch https://x/y.deb  Hash Sum mismatch")),
    ("unmet-dependencies", "The following packages have unmet dependencies:\n a : Depends: b but it is not installable\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n"),
    (
        "dkms-build-failed",
        "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (apt-get)...\n"
        "Error! Bad return status for module build on kernel: 6.17.2-1-pve (x86_64)\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n",
    ),
]  # fmt: skip


def library(folder: Folder, text: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """The library with its arguments, then ``text``."""
    arguments = package_arguments(
        Nvidia.model_validate(settings), Context("vms.gaming", "vm", kernel="6.8.0-86-generic")
    )
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in arguments.items())
    return folder.bash(f"{assignments}take_lock\nmkdir -p $LOGS\n{text}", parts=["packages"])


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(TEXTS)])
def test_a_known_failure_is_answered_as_python_would(folder: Folder, name: str, text: str) -> None:
    folder.write("/log", text)
    done = library(folder, 'explain "$ROOT/log" wanted why')
    assert done.returncode == 1
    row = next(row for row in symptoms() if row.name == name)
    (expected, *_) = recognise(text, Context("vms.gaming", "vm", kernel="6.8.0-86-generic"))
    assert expected.wanted == row.wanted.format(name="vms.gaming")
    assert done.stdout == f"{expected}\n"


def test_what_took_too_long_names_the_setting_that_gives_it_longer(folder: Folder) -> None:
    done = library(folder, 'run_apt "$ROOT/log" sleep 9 || explain "$ROOT/log" wanted why', timeouts={"install": 1})
    assert done.returncode == 1
    assert "found:  ended after 1 s" in done.stdout
    assert "nvidia.timeouts.install" in done.stdout.rpartition("next:")[2]


def test_an_unknown_failure_shows_its_last_lines(folder: Folder) -> None:
    folder.write("/log", "".join(f"line {number}\n" for number in range(20)))
    done = library(folder, 'explain "$ROOT/log" "to do it" "it matters"')
    assert (
        done.stdout.startswith("wanted: to do it\nfound:  line 12\n")
        and "line 19\nwhy:    it matters\nnext:   correct" in done.stdout
    )


def test_the_end_of_the_compilers_output_is_shown(folder: Folder) -> None:
    folder.write("/var/lib/dkms/nvidia/580.1/build/make.log", "noise\n" * 30 + "error: too few arguments\n")
    folder.write("/log", "Consult /var/lib/dkms/nvidia/580.1/build/make.log for more information.\n")
    done = library(folder, 'explain "$ROOT/log" wanted why')
    assert "make.log ends:\nnoise" in done.stdout and "error: too few arguments\nwhy:" in done.stdout


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)", True),
        ("E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?", True),
        ("Error: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)", True),
        ("dpkg: error: dpkg frontend lock was locked by another process with pid 12", True),
        ("Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)...", False),
        ("E: Unable to locate package lock", False),
    ],
)  # fmt: skip
def test_what_is_a_lock_of_others(folder: Folder, line: str, held: bool) -> None:
    folder.write("/log", f"{line}\n")
    assert (library(folder, 'locked "$ROOT/log" || exit 99').returncode == 0) == held


def test_what_apt_announces(folder: Folder) -> None:
    folder.write(
        "/log",
        "Reading package lists...\nRemv nvidia-smi [550.1-1]\nPurg nvidia-smi [550.1-1]\n"
        "Inst libcuda1 [550.1-1] (580.1-1 NVIDIA:/ [amd64]) []\nInst dkms (3.0 Debian:12.5/stable [all])\nConf dkms (3.0 Debian:12.5/stable [all])\n",
    )
    done = library(folder, 'announced "$ROOT/log"')
    assert done.stdout.splitlines() == ["nvidia-smi\t550.1-1\t-", "libcuda1\t550.1-1\t580.1-1", "dkms\t-\t3.0"]


@pytest.mark.parametrize("proxy", ["http://u:p%40ss@proxy:1", "http://u@proxy:1", "http://proxy:1", None])
def test_what_is_secret_of_a_proxy_is_masked(folder: Folder, proxy: str | None) -> None:
    done = library(
        folder,
        'masked "at http://u:p%40ss@proxy:1 and p%40ss, http://u@proxy:1"; printf "%s" "$TEXT"',
        **({"proxy": proxy} if proxy else {}),
    )
    # By its form in every address; by itself where it is this run's own.
    assert done.stdout.startswith("at http://(secret)@proxy:1 and ")
    assert done.stdout.endswith(", http://(secret)@proxy:1")
    assert ("p%40ss" in done.stdout) == (proxy != "http://u:p%40ss@proxy:1")


@pytest.mark.parametrize(
    "text",
    [
        "https://developer.download.nvidia.com/compute/a@b", "see https://x/ and ask root@pam!homelab", "docker://nvidia/cuda@sha256:1",
        '{"a":"http://x","b":"u@h"}', "u:p@host", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_said_as_it_is(folder: Folder, text: str) -> None:
    assert library(folder, f'masked {shlex.quote(text)}; printf "%s" "$TEXT"').stdout == text


def test_output_goes_on_without_a_reader_and_with_its_status(folder: Folder) -> None:
    done = library(
        folder,
        'exec 2>&-\nrun_streamed 20 "$LOGS/x" bash -c "seq 1000; exit 3" || printf "%s %s" $? "$(wc -l <"$LOGS/x")"',
    )
    assert done.stdout == "3 1000"


def test_what_takes_too_long_is_ended(folder: Folder) -> None:
    done = library(folder, 'run_streamed 1 "$LOGS/x" sleep 60 || printf "%s %s" $? "$(<"$LOGS/x")"')
    assert done.stdout == "124 ended after 1 s"


def test_a_line_that_was_written_over_is_seen_in_its_last_state(folder: Folder) -> None:
    done = library(folder, 'run_streamed 20 "$LOGS/x" printf "Reading 1\\rReading 2\\r\\nend\\r\\n"')
    assert done.stderr == ""
    heading, *lines = (folder.root / "run/homelab/steps").read_text().splitlines()
    assert heading.endswith(r"packages: printf Reading 1\rReading 2\r\nend\r\n")
    assert lines == ["  Reading 2", "  end"]


# What apt has said of its state and in its output, DKMS's log -> what a person is told.
PROGRESS = {
    "a download": (
        "dlstatus:3:46.3000:Retrieving file 3 of 8 (2min 11s remaining)",
        "Need to get 4,103 MB/4,200 MB of archives.",
        "1.9 of 4.1 GB, 2 min left",
    ),
    "a small download": ("dlstatus:1:50:Retrieving file 1 of 1 (3s remaining)", "Need to get 240 MB of archives.", "120 of 240 MB, 3 s left"),
    "a download whose size nobody knows": ("dlstatus:1:12.5:Retrieving file 1 of 2", "", "12 %"),
    "packages that are unpacked": ("pmstatus:cuda-nvcc-12-8:45.4545:Unpacking cuda-nvcc-12-8", "", "installing, 45 %"),
    "nothing yet": ("", "Reading package lists...", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRESS)
def test_a_person_is_told_where_apt_is(folder: Folder, case: str) -> None:
    status, said, told = PROGRESS[case]
    folder.write("/apt", f"{said}\n")
    folder.write("/apt.status", f"pmstatus:dpkg-exec:0:Running dpkg\n{status}\n" if status else "")
    assert library(folder, 'progress_of "$ROOT/apt"; printf "%s" "$PROGRESS"').stdout == told


def test_a_person_is_told_how_far_the_compiler_is_also_within_a_package(folder: Folder) -> None:
    build = "/var/lib/dkms/nvidia/580.105.08/build"
    for number in range(5):
        folder.write(f"{build}/nvidia/{number}.c", "")
    head = "DKMS make.log for nvidia-580.105.08 for kernel 6.17.2-1-pve (x86_64)\nmake -C x\n"
    folder.write(f"{build}/make.log", head + "  CC [M]  nvidia/0.o\n  CC [M]  nvidia/1.o\n")
    folder.write("/apt", "")
    folder.write("/apt.status", "pmstatus:nvidia-dkms-580-open:80:Setting up\n")
    done = library(folder, 'progress_of "$ROOT/apt"; printf "%s" "$PROGRESS"')
    assert done.stdout == "building the module for 6.17.2-1-pve: 40 %"


def test_what_takes_long_says_so_and_a_half_line_is_one_line_in_the_log(folder: Folder) -> None:
    text = 'DOING="CUDA toolkit 12.8"; PROGRESS_SECONDS=1\nrun_streamed 20 "$LOGS/x" bash -c "printf half; sleep 2.5; echo \' line\'"'
    done = library(folder, text)
    assert done.stderr.splitlines()[0] in ("CUDA toolkit 12.8: 1 s", "CUDA toolkit 12.8: 2 s")
    assert (folder.root / "run/homelab/steps").read_text().splitlines()[1:] == ["  half line"]


def test_a_log_that_has_grown_too_long_keeps_its_end_and_goes_with_the_last_step(folder: Folder) -> None:
    log = folder.root / "run/homelab/steps"
    library(
        folder,
        'step_done cuda; step_done driver; STEP_LOG_BYTES=100; for n in 1 2 3 4 5 6; do open_step_log "$n"; done',
    )
    assert (
        log.stat().st_size < 200 and log.read_text().endswith(" packages: 6\n") and log.stat().st_mode & 0o777 == 0o600
    )
    library(folder, "step_undone cuda; finish")
    assert log.exists()
    library(folder, "step_undone driver; finish")
    assert not log.exists() and not (folder.root / "var/lib/homelab").exists()
