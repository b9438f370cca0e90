"""Scripts that lie on a host, and commands that name them instead of having their text."""

from __future__ import annotations

import hashlib
import re
import shlex

import pytest

from homelab.remote import kept_scripts, scripts
from homelab.remote import nvidia_steps as steps
from tests.boot_layers import Asked
from tests.scripts.conftest import Folder

OWNER = "homelab-lab"
PLACE = f"/var/lib/homelab/scripts/{OWNER}"

# A command of each component, by what it composes.
COMMANDS = {
    "cuda": scripts.compose("cuda_toolkit.sh", PACKAGES="cuda-nvcc-12-8", RELEASE="12.8", NVCC="/usr/bin/nvcc"),
    "container": steps.in_container(901, scripts.compose("cuda_toolkit.sh", PACKAGES="", RELEASE="12.8", NVCC="it's")),
}  # fmt: skip


def put(folder: Folder) -> None:
    done = folder.run("apply", Asked("kept_scripts", kept_scripts.put(OWNER)))
    assert done.returncode == 0, done.stderr
    assert scripts.answer(done.stdout) == {"kept": len(kept_scripts.texts())}


def told(folder: Folder, head: str, run: str, names: list[str]) -> dict[str, str]:
    """What a command gives its script: the value of each argument, and what would run then (RUN)."""
    folder.as_sent = True
    show = 'for one; do printf "%s=%s\\0" "$one" "${!one-}"; done'
    done = folder.run("apply", f"{head}RUN={run}\nset -- {' '.join(names)} RUN\n{show}")
    assert done.returncode == 0, done.stderr
    return dict(one.split("=", 1) for one in done.stdout.split("\0") if one)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_names_its_scripts_runs_what_the_whole_one_does(folder: Folder, name: str) -> None:
    put(folder)
    whole = COMMANDS[name].rstrip("\n")
    short = kept_scripts.by_reference(COMMANDS[name], OWNER)
    assert len(short) < 6000
    text = next(one.text for one in kept_scripts.texts() if whole.endswith("\n" + one.text))
    short, last, end = short.rstrip("\n").rsplit("\n", 2)
    assert end == "exit 1"
    names = sorted({*re.findall(r"^([A-Z_]+)=", short, re.MULTILINE)} - {"KEPT_IN"})
    expected = told(folder, whole.removesuffix(text), shlex.quote(text), names)
    assert told(folder, short + "\n", last.removeprefix("eval "), names) == expected


def kept(folder: Folder, name: str) -> str:
    (file,) = (folder.root / PLACE[1:]).glob(f"{name}.*")
    return f"{PLACE}/{file.name}"


@pytest.mark.parametrize("change", ["missing", "cut short", "changed"])
def test_one_that_is_missing_or_changed_is_not_run(folder: Folder, change: str) -> None:
    put(folder)
    file = folder.root / kept(folder, "cuda_toolkit.sh")[1:]
    if change == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text()[:-100] + ("" if change == "cut short" else "#" * 100))
    before = folder.tree()
    for verb in ("apply", "revert"):
        done = folder.run(verb, kept_scripts.by_reference(scripts.compose("cuda_toolkit.sh"), OWNER))
        assert done.returncode == 1
        assert "it is missing, or has been changed" in done.stdout and "pulumi up --refresh" in done.stdout
        assert folder.tree() == before


def text_of(name: str) -> str:
    """A kept script's."""
    (text,) = (one.text for one in kept_scripts.texts() if one.name.rpartition(".")[0] == name)
    return text


def test_to_undo_something_another_version_is_taken_where_the_very_one_is_gone(folder: Folder) -> None:
    put(folder)
    older = kept_scripts.by_reference(scripts.compose("cuda_toolkit.sh"), OWNER)
    older = re.sub(r"(cuda_toolkit\.sh\.)[0-9a-f]{16}", r"\g<1>" + "0" * 16, older).replace("eval", "printf %s")
    assert "missing" in folder.run("apply", older).stdout
    done = folder.run("revert", older)
    assert done.stdout == text_of("cuda_toolkit.sh")


@pytest.mark.parametrize("digits", [0, 1, 15, 64])
def test_to_undo_something_nothing_runs_whose_name_has_no_sum_or_another_ones(folder: Folder, digits: int) -> None:
    """A name with an empty sum says nothing of what is in the file, and one with fewer digits little."""
    put(folder)
    file = folder.root / kept(folder, "cuda_toolkit.sh")[1:]
    file.unlink()
    text = "touch $ROOT/has-run"
    other = f"cuda_toolkit.sh.{hashlib.sha256(text.encode()).hexdigest()[:digits]}"
    folder.write(f"{PLACE}/{other}", text)
    folder.write(f"{PLACE}/cuda_toolkit.sh.{hashlib.sha256().hexdigest()[:16]}", "")
    done = folder.run("revert", kept_scripts.by_reference(scripts.compose("cuda_toolkit.sh"), OWNER))
    assert (done.returncode, (folder.root / "has-run").exists()) == (1, False)
    assert "it is missing, or has been changed" in done.stdout


def test_a_host_without_notes_gives_back_only_what_is_noted_elsewhere(folder: Folder) -> None:
    """Its root was put back to what it was before this program."""
    done = folder.run("revert", kept_scripts.by_reference(COMMANDS["cuda"], OWNER))
    assert (done.returncode, scripts.answer(done.stdout)) == (0, {"reverted": "nothing"})
    assert folder.run("apply", kept_scripts.by_reference(COMMANDS["cuda"], OWNER)).returncode == 1
    inside = steps.in_container(901, scripts.compose("cuda_toolkit.sh"))
    done = folder.run("revert", kept_scripts.by_reference(inside, OWNER))
    assert done.returncode == 1 and "missing" in done.stdout
    folder.write("/var/lib/homelab/steps/initramfs", "")
    assert folder.run("revert", kept_scripts.by_reference(COMMANDS["cuda"], OWNER)).returncode == 1


def test_what_is_read_in_part_is_not_run(folder: Folder) -> None:
    """What was read is held to the sum, not what lies there a moment later."""
    put(folder)
    before = folder.tree()
    command = kept_scripts.by_reference(COMMANDS["container"], OWNER)
    names = re.search(r"^need_kept_scripts (.+)$", command, re.MULTILINE)
    assert names and len(names[1].split()) > 1
    for number, name in enumerate(names[1].split(), start=1):
        file = folder.root / PLACE[1:] / name
        whole = file.read_text()
        folder.write("/whole", whole)
        file.write_text(whole[:3000] if len(whole) > 3000 else whole[:-1])
        # It is whole again when its sum is made.
        asked = f'echo >>"$ROOT/asked"; (($(wc -l <"$ROOT/asked") != {number})) || cat "$ROOT/whole" >{file}'
        folder.command("sha256sum", f'{asked}\nexec /usr/bin/sha256sum "$@"')
        done = folder.run("apply", command)
        assert done.returncode == 1 and "missing, or has been changed" in done.stdout and name in done.stdout
        assert file.read_text() == whole
        for made in ("whole", "asked"):
            (folder.root / made).unlink()
        assert folder.tree() == before


@pytest.mark.parametrize("says", ["exit 1", "echo"])
def test_without_their_sums_none_is_run(folder: Folder, says: str) -> None:
    put(folder)
    before = folder.tree()
    folder.command("sha256sum", says)
    done = folder.run("apply", kept_scripts.by_reference(COMMANDS["cuda"], OWNER))
    assert done.returncode == 1 and "missing, or has been changed" in done.stdout
    assert folder.tree() == before


def test_each_stack_has_a_folder_of_its_own_on_each_host() -> None:
    names = [("homelab", "a.b", "pve"), ("homelab", "a-b", "pve"), ("homelab-a", "b", "pve"), ("homelab", "a.b", "two")]
    owners = [kept_scripts.owner(*name) for name in names]
    assert len({*owners}) == len(owners) and all(re.fullmatch(r"[A-Za-z0-9_-]+", one) for one in owners)
    assert kept_scripts.owner_of("urn:pulumi:a.b::homelab::homelab:host:Probe::pve-probe", "pve") == owners[0]
