"""remote_scripts/lib/files.sh: files are written whole, kept, given back, and put back when a run fails."""

from __future__ import annotations

import os
import subprocess

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder, library
from tests.waiting import wait_until


def test_a_new_file_is_written_and_taken_away_with_the_directories_made_for_it(folder: Folder) -> None:
    before = folder.tree()
    assert folder.bash("put_file iommu /etc/new/deep/file 0644 'a b'; finish").returncode == 0
    assert folder.read("/etc/new/deep/file") == "a b\n"
    assert folder.bash("drop_file iommu /etc/new/deep/file; finish").returncode == 0
    assert folder.tree() == before


def test_what_was_there_before_comes_back_with_mode_and_content(folder: Folder) -> None:
    folder.write("/etc/file", "theirs, no newline", 0o640)
    before = folder.tree()
    folder.bash("put_file vfio /etc/file 0644 ours; finish")
    assert folder.read("/etc/file") == "ours\n"
    folder.bash("put_file vfio /etc/file 0755 'ours, later'; finish")
    folder.bash("drop_file vfio /etc/file; finish")
    assert folder.tree() == before


def test_writing_the_same_again_changes_nothing(folder: Folder) -> None:
    folder.bash("put_file vfio /etc/file 0644 ours; finish")
    first = (folder.root / "etc/file").stat()
    done = folder.bash('put_file vfio /etc/file 0644 ours; finish; echo "$CHANGED"')
    assert done.stdout == "no\n"
    assert (folder.root / "etc/file").stat().st_ino == first.st_ino


@pytest.mark.parametrize("tamper", ["echo theirs >{}", "rm {}", "chmod 600 {}"])
def test_a_file_changed_by_hand_is_noticed_and_mended(folder: Folder, tamper: str) -> None:
    folder.bash("put_file vfio /etc/file 0644 ours; finish")
    folder.bash(tamper.format('"$ROOT/etc/file"'))
    assert folder.bash("file_state vfio /etc/file").stdout in ("changed", "missing")
    folder.bash("put_file vfio /etc/file 0644 ours; finish")
    assert folder.bash("file_state vfio /etc/file").stdout == "ok"


def copies(folder: Folder) -> list[str]:
    return [path.read_text() for path in (folder.root / "var/backups").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "then", ["put_file vfio /etc/file 0644 ours", "put_file vfio /etc/file 0644 new", "drop_file vfio /etc/file"]
)
def test_what_somebody_made_of_a_file_of_ours_is_kept_once_and_told(folder: Folder, then: str) -> None:
    folder.bash("put_file vfio /etc/file 0644 ours; finish")
    folder.write("/etc/file", "edited")
    done = folder.bash(f"{then}; finish")
    assert copies(folder) == ["edited"]
    kept = next(path for path in (folder.root / "var/backups").rglob("*") if path.is_file())
    assert f"the edited file is kept in /{kept.relative_to(folder.root)}" in done.stderr
    folder.bash(f"{then}; finish")
    assert copies(folder) == ["edited"]


def test_a_file_of_an_older_version_is_nobodys_edit_also_where_a_run_was_cut_short(folder: Folder) -> None:
    folder.bash("put_file vfio /etc/file 0644 old; finish")
    folder.bash("claim_file vfio /etc/file 0644 $(printf 'new\\n' | sha256sum | cut -d ' ' -f 1); kill -9 $$")
    assert folder.read("/etc/file") == "old\n"
    folder.bash("put_file vfio /etc/file 0644 new; finish")
    assert (folder.read("/etc/file"), copies(folder)) == ("new\n", [])


def test_a_failing_run_leaves_every_file_as_it_was(folder: Folder) -> None:
    folder.write("/etc/theirs", "theirs")
    folder.bash("put_file vfio /etc/ours 0644 first; finish")
    before = folder.tree()
    done = folder.bash(
        "put_file vfio /etc/theirs 0644 x; put_file vfio /etc/ours 0644 second; put_file vfio /etc/new/file 0644 y;"
        "drop_file vfio /etc/ours; die want found why next"
    )
    assert (done.returncode, done.stdout) == (1, "wanted: want\nfound:  found\nwhy:    why\nnext:   next\n")
    assert folder.tree() == before


def test_a_command_that_fails_unexpectedly_is_reported_and_undone(folder: Folder) -> None:
    before = folder.tree()
    done = folder.bash("change() { put_file vfio /etc/new 0644 x; false; }; change")
    assert done.returncode == 1
    assert "exit status 1 at line" in done.stdout and "false" in done.stdout
    assert folder.tree() == before


def test_a_script_cut_off_on_its_way_does_nothing(folder: Folder) -> None:
    whole = scripts.compose("cuda_toolkit.sh", PACKAGES="cuda-nvcc-12-8", RELEASE="12.8", NVCC="/usr/bin/nvcc")
    before = folder.tree()
    for part in range(0, len(whole) - 20, len(whole) // 40):
        folder.bash(whole[:part], "apply", parts=())
        at_once = scripts.command("apply", "root", at_once=True)
        subprocess.run(at_once, shell=True, input=whole[:part], text=True, capture_output=True, env=folder.environment)
    assert folder.tree() == before


def test_a_script_that_is_taken_at_once_says_and_does_what_it_does_as_it_comes(folder: Folder) -> None:
    at_once = scripts.command("two words", "root", at_once=True).replace("two words", "'two words'")
    text = f'main() {{ printf \'%s|\' "$0" "$@" "${{#1}}" \'ä\\\'; cat; exit 3; }}\n# {"long " * 40_000}\nmain "$@"\n'
    done = [
        subprocess.run(command, shell=True, input=text, text=True, capture_output=True, env=folder.environment)
        for command in (at_once, "bash -s -- 'two words'")
    ]
    assert [one.returncode for one in done] == [3, 3]
    assert done[0].stdout == done[1].stdout == "bash|two words|9|ä\\|", done


def test_a_client_that_is_gone_does_not_stop_a_run_between_two_files(folder: Folder) -> None:
    # Standard error is a pipe that nobody reads any more: each log line is a write to it.
    done = folder.bash(
        "exec 2> >(exit 0); sleep 0.1; put_file a /etc/one 0644 x; put_file a /etc/two 0644 x; log more; finish"
    )
    assert done.returncode == 0
    assert (folder.root / "etc/two").exists()


def test_a_client_that_cancels_does_not_either(folder: Folder) -> None:
    done = folder.bash("put_file a /etc/one 0644 x; kill -TERM $$; put_file a /etc/two 0644 x; finish")
    assert done.returncode == 0
    assert (folder.root / "etc/two").exists()


def test_two_runs_at_once_wait_for_each_other(folder: Folder) -> None:
    done = folder.bash(
        """
take_lock
other() { exec {LOCK}>&-; LOCK_TIMEOUT=1; take_lock; }
message=$(other) || echo "refused: $message"
"""
    )
    assert "refused: wanted: to be the only one changing this host" in done.stdout


# Its command lasts until the test writes a line.
HOLDS = """
take_lock
exec {wait}<>"$ROOT/run/go"
echo ready
run_logged bash -c ": >'$ROOT/run/running'; read -ru $wait _"
"""


def test_the_lock_is_held_until_the_command_of_a_killed_run_has_ended(folder: Folder) -> None:
    os.mkfifo(folder.root / "run/go")
    text = library("files") + HOLDS
    killed = subprocess.Popen(["bash", "-c", text], env=folder.environment, stdout=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdout.readline() == b"ready\n"
    wait_until((folder.root / "run/running").exists)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert folder.bash("make_run_dir; get_lock 0 || echo held").stdout == "held\n"
    (folder.root / "run/go").write_text("\n")
    assert folder.bash("LOCK_TIMEOUT=30; take_lock; echo free").stdout == "free\n"


def test_lock_and_logs_lie_where_root_alone_may_write(folder: Folder) -> None:
    done = folder.bash('take_lock; run_logged true; ls -A "$ROOT/run/homelab"; stat -c %a "$ROOT/run/homelab"')
    assert done.stdout == "lock\nsteps\n700\n"


def test_what_a_command_leaves_running_does_not_write_into_what_the_next_one_says(folder: Folder) -> None:
    """An answer that somebody else's lines push out is told to nobody, and decides what is done next."""
    os.mkfifo(folder.root / "run/go")
    done = folder.bash(
        """
take_lock
run_logged bash -c '(read -r _ <"$ROOT/run/go"; printf "stray %s\\n" {1..9}; : >"$ROOT/run/said") & echo one'
run_logged bash -c 'echo two; echo >"$ROOT/run/go"; until [[ -e $ROOT/run/said ]]; do sleep 0.02; done; exit 1' || printf '%s\n' "$OUTPUT"
"""
    )
    assert done.stdout == "two\n" and "stray 9" not in folder.read("/run/homelab/steps")


@pytest.mark.parametrize("made", ["ln -s /tmp {}", "touch {}", "mkdir {}; chown 65534 {}"])
def test_a_folder_for_the_lock_that_somebody_else_made_is_refused(folder: Folder, made: str) -> None:
    if "chown" in made and os.geteuid() != 0:
        pytest.skip("a folder of another user takes root")
    folder.bash(made.format('"$ROOT/run/homelab"', '"$ROOT/run/homelab"'), parts=())
    before = folder.tree()
    done = folder.bash("take_lock; put_file a /etc/one 0644 x; finish")
    assert (done.returncode, done.stdout.split(",")[0]) == (1, "wanted: a folder of root's own")
    assert folder.tree() == before


def test_a_copy_that_can_not_be_read_is_not_whole_whatever_is_noted_of_it(folder: Folder) -> None:
    made = 'mkdir -p "$STATE/kept/etc/file" "$STATE/sums/etc"; : >"$STATE/sums/etc/file"'
    assert folder.bash(f"{made}; ! kept_is_whole /etc/file || echo whole").stdout == ""


def test_a_folder_for_the_lock_that_can_not_be_made_is_nobody_elses(folder: Folder) -> None:
    full = 'mkdir() { [[ ${*: -1} != */run/homelab ]] || { echo "mkdir: No space left on device" >&2; return 1; }; command mkdir "$@"; }'
    before = folder.tree()
    done = folder.bash(f"{full}; take_lock; put_file a /etc/one 0644 x; finish")
    assert done.returncode == 1
    assert "found:  mkdir: No space left on device" in done.stdout
    assert "`df /run`" in done.stdout
    assert folder.tree() == before


def test_who_does_not_get_the_lock_leaves_the_files_of_the_other_run_alone(folder: Folder) -> None:
    folder.write("/etc/.file.homelab-tmp", "half of it")
    folder.write("/var/lib/homelab/.homelab-undo/0", "what it was")
    before = folder.tree()
    done = folder.bash("make_run_dir; get_lock 0; held=$LOCK; LOCK_TIMEOUT=0; take_lock")
    assert done.stdout.startswith("wanted: to be the only one changing this host")
    assert folder.tree() == before


def test_the_message_comes_also_where_nothing_can_be_put_back(folder: Folder) -> None:
    folder.write("/etc/theirs", "theirs")
    done = folder.bash("put_file vfio /etc/theirs 0644 x; mv() { return 1; }; die want found why next")
    assert done.stdout.startswith("wanted: want\nfound:  found\n")
    assert done.stdout.endswith(
        "left:   /etc/theirs could not be put back; the next run goes on from what is noted in /var/lib/homelab\n"
    )
    assert folder.bash("take_lock; drop_file vfio /etc/theirs; finish").returncode == 0
    assert folder.read("/etc/theirs") == "theirs"


@pytest.mark.parametrize(
    "damage", [': >"$KEPT"', 'rm "$KEPT"', 'echo other >"$KEPT"', 'head -c 3 "$KEPT" >"$ROOT/x"; mv "$ROOT/x" "$KEPT"']
)
def test_a_kept_original_that_was_damaged_is_never_written_back(folder: Folder, damage: str) -> None:
    folder.write("/etc/docker/daemon.json", '{"bip": "10.0.0.1/24"}\n')
    folder.bash("put_file a /etc/docker/daemon.json 0644 ours; finish")
    folder.bash(f"KEPT=$ROOT/var/lib/homelab/kept/etc/docker/daemon.json; {damage}", parts=())
    before = folder.files()
    done = folder.bash("take_lock; drop_file a /etc/docker/daemon.json; finish")
    assert done.returncode == 1
    assert "wanted: to give back /etc/docker/daemon.json as it was before this program" in done.stdout
    assert folder.files() == before


def test_an_original_that_an_older_version_kept_comes_back(folder: Folder) -> None:
    folder.write("/etc/file", "theirs")
    folder.bash('put_file a /etc/file 0644 ours; finish; rm -r "$STATE/sums"')
    folder.bash("drop_file a /etc/file; finish")
    assert folder.read("/etc/file") == "theirs"


def test_a_link_that_leads_nowhere_comes_back(folder: Folder) -> None:
    (folder.root / "etc/file").symlink_to("/nowhere")
    before = folder.tree()
    folder.bash("put_file a /etc/file 0644 ours; finish")
    folder.bash("drop_file a /etc/file; finish")
    assert folder.tree() == before


def test_another_layers_file_keeps_its_original_when_one_that_never_wrote_it_drops_it(folder: Folder) -> None:
    folder.write("/etc/file", "theirs")
    folder.bash("put_file a /etc/file 0644 ours; finish")
    folder.bash("drop_file b /etc/file; finish")
    folder.bash("drop_file a /etc/file; finish")
    assert folder.read("/etc/file") == "theirs"


@pytest.mark.parametrize(
    "left",
    [
        "/etc/default/.x.homelab-tmp",
        "/etc/kernel/cmdline.homelab-new",
        "/etc/.homelab-undo/0",
        "/var/lib/homelab/undo/0",
    ],
)
def test_what_a_run_that_was_cut_short_left_lying_about_goes_with_the_next(folder: Folder, left: str) -> None:
    before = folder.tree()
    folder.write(left, "half of it")
    assert folder.bash("take_lock; finish").returncode == 0
    assert folder.tree().keys() - before.keys() <= {"etc/default", "etc/kernel"}


def test_a_folder_in_a_temporary_files_place_is_somebodys(folder: Folder) -> None:
    folder.write("/etc/.file.homelab-tmp/theirs", "theirs")
    before = folder.tree()
    assert folder.bash("take_lock; put_file a /etc/file 0644 x; finish").returncode == 1
    assert folder.tree() == before


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash", "tab\there", "two\nlines", "bell\x07", "plain"])
def test_json_strings_survive_any_text(folder: Folder, text: str) -> None:
    import json

    done = folder.bash('json_string "$TEXT"'.replace("$TEXT", "$(cat <<'END'\n" + text + "\nEND\n)"))
    assert json.loads(done.stdout) == text.replace("\x07", "\ufffd")


@pytest.mark.parametrize("writes", ["copy_atomically /dev/zero", "write_atomically"])
def test_a_write_that_fails_in_a_condition_leaves_the_file_as_it_was(folder: Folder, writes: str) -> None:
    """Bash does not stop at an error in a condition: half of the content must not get the file's name all the same."""
    folder.write("/etc/file", "whole\n")
    folder.command("cp", '/bin/cp "$@" 2>/dev/null; echo half >"${@: -1}"; exit 1')
    folder.command("cat", "echo half; exit 1")
    arguments = {
        "copy_atomically /dev/zero": "/etc/file",
        "write_atomically": "/etc/file 0644",
    }
    done = folder.bash(
        f"if {writes.replace('/dev/zero', '$ROOT/etc/file')} {arguments[writes]} <<<new; then echo written; fi"
    )
    assert (done.stdout, folder.read("/etc/file")) == ("", "whole\n")


@pytest.mark.parametrize("fails", ["false", "echo half; exit 7", 'echo half "$NEVER_SET"', "die want found why next"])
def test_a_text_that_can_not_be_made_is_told_to_a_person_and_leaves_the_file_as_it_was(
    folder: Folder, fails: str
) -> None:
    folder.write("/etc/file", "whole\n")
    done = folder.bash(f"take_lock; text() {{ {fails}; }}; write_atomically /etc/file 0644 text; echo written; finish")
    assert done.returncode == 1 and done.stdout.startswith("wanted: every command of this script to succeed\n")
    assert folder.files() == {"etc/file": (0o644, "whole\n")}


@pytest.mark.parametrize("writes", ["write_atomically /etc/file 0644", "write_atomically /var/lib/homelab/file 0600"])
def test_a_text_for_which_there_is_no_room_leaves_the_file_as_it_was(folder: Folder, writes: str) -> None:
    path = writes.split()[1]
    folder.write(path, "whole\n")
    temporary = folder.root / f"{path[1:].rpartition('/')[0]}/.file.homelab-tmp"
    temporary.symlink_to("/dev/full")
    for text in ("new", "$(printf %0100000d 0)"):
        done = folder.bash(f"if {writes} printf '%s\\n' \"{text}\"; then echo written; fi; echo on")
        assert (done.stdout, folder.read(path)) == ("on\n", "whole\n")
        assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("path", "mode"), [("/var/lib/homelab/x", 0o600), ("/etc/x", 0o600), ("/etc/x", 0o644), ("/etc/x", 0o755)]
)
@pytest.mark.parametrize("text", ["", "-n one\n", "two\nlines, no newline", "\\n%s\xfc"])
def test_what_is_written_has_its_mode_and_every_byte(folder: Folder, path: str, mode: int, text: str) -> None:
    folder.write("/text", text)
    (folder.root / "var/lib/homelab").mkdir()
    read = 'IFS= read -rd "" text <"$ROOT/text" || :\numask 077\n'
    for write in (
        f"write_atomically {path} 0{mode:o} printf '%s' \"$text\"",
        f'write_atomically {path} 0{mode:o} <"$ROOT/text"',
    ):
        assert folder.bash(read + write).returncode == 0
        assert (folder.root / path[1:]).stat().st_mode & 0o7777 == mode
        assert (folder.root / path[1:]).read_bytes() == (folder.root / "text").read_bytes()
        (folder.root / path[1:]).unlink()


def test_the_states_of_a_layers_files_are_told_whatever_their_names_and_whatever_became_of_them(folder: Folder) -> None:
    names = [
        "/etc/a b",
        "/etc/a\\b",
        "/etc/.dot",
        "/etc/d/]x",
        "/etc/d.x",
        "/etc/gone",
        "/etc/mode",
        "/etc/other",
        "/etc/dir",
        "/etc/link",
    ]
    puts = "".join(f"put_file vfio '{name}' 0644 text\n" for name in names)
    tamper = "cd $ROOT/etc; rm gone dir link; mkdir dir; chmod 600 mode; echo other >other; ln -s d.x link\n"
    found = folder.bash(
        f"{{\n{puts}}} >/dev/null 2>&1\n{tamper}touch $STATE/files/vfio/etc/.x.homelab-tmp\nlayer_states vfio"
    )
    wrong = {
        "/etc/gone": "missing",
        "/etc/mode": "changed",
        "/etc/other": "changed",
        "/etc/dir": "changed",
        "/etc/link": "changed",
    }
    assert found.stdout.splitlines() == [f"{wrong.get(name, 'ok')} {name}" for name in sorted(names)], found.stderr
    assert folder.bash('layer_states nothing; find_layer_files nothing; printf "%s" "${#FILES[@]}"').stdout == "0"


def test_a_list_that_could_not_be_made_does_not_take_the_place_of_the_one_before(folder: Folder) -> None:
    folder.write("/var/lib/homelab/dirs", "/etc/ours\n")
    folder.command("sort", "exit 1")
    assert folder.bash("if make_dir /etc/another; then echo made; fi").stdout == ""
    assert folder.read("/var/lib/homelab/dirs") == "/etc/ours\n"
