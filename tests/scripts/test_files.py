"""remote_scripts/lib/files.sh: files are written whole, kept, given back, and put back when a run fails."""

from __future__ import annotations

import pytest

from tests.scripts.conftest import Folder


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
    from host import scripts

    whole = scripts.cmdline("iommu", "amd_iommu=on", 0)
    before = folder.tree()
    for part in range(0, len(whole) - 20, len(whole) // 40):
        folder.bash(whole[:part], "apply", library=False)
    assert folder.tree() == before


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


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash", "tab\there", "two\nlines", "bell\x07", "plain"])
def test_json_strings_survive_any_text(folder: Folder, text: str) -> None:
    import json

    done = folder.bash('json_string "$TEXT"'.replace("$TEXT", "$(cat <<'END'\n" + text + "\nEND\n)"))
    assert json.loads(done.stdout) == text.replace("\x07", "\ufffd")
