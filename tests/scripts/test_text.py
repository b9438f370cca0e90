"""lib/text.sh: whatever bytes a host's files and programs hold, what a script says is text, JSON stays JSON, and has an end."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from homelab.text import clean
from tests.scripts.conftest import Folder, library
from tests.waiting import PATIENCE

LIBRARY = library("files")
JUNK = {
    "a byte of Latin-1": b"f\xfcr",
    "a character that was cut": b"f\xc3",
    "half of a surrogate pair": b"\xed\xa0\x80",
    "an overlong slash": b"\xc0\xaf \xe0\x80\xaf",
    "beyond the last character": b"\xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
    "bytes alone": b"\x80\xbf\xfe\xff",
    "control characters": b"a\x01\x07\x08\x0b\x1f\x7fb",
    "the second row of control characters": b"\xc2\x80\xc2\x9b31m",
    "an escape sequence": b"\x1b[31;1mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link",
    "half an escape sequence": b"x\x1b[",
    "carriage returns": b"10%\r50%\r100%\r\ndone",
    "backslashes": b"\\ \\\\ \\n \\u0041 \\x \\",
    "quotes": b'"\' "\\"',
    "what turns the writing": "a\u202eb\u2066c\u200fd\u200be\ufefff".encode(),
    "many of them": bytes(range(1, 256)),
    "ampersands, which bash may replace": b"& \\& &&",
    "good text": "für 日本 😀 €".encode(),
    "newlines and tabs": b"\ta\n\nb\t\n",
}


def run(folder: Folder, script: bytes) -> subprocess.CompletedProcess[bytes]:
    """Like `Folder.bash`, by bytes."""
    whole = LIBRARY.encode() + script
    return subprocess.run(["bash", "-s"], input=whole, capture_output=True, env=folder.environment, timeout=PATIENCE)


def quoted(junk: bytes) -> bytes:
    return b"'" + junk.replace(b"'", b"'\\''") + b"'"


def is_text(said: bytes) -> str:
    text = said.decode("utf-8")
    assert clean(text) == text
    return text


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_json_stays_json_and_says_as_much_as_can_be_said(folder: Folder, junk: bytes) -> None:
    done = run(folder, b"json_string " + quoted(junk))
    assert done.returncode == 0
    found: str = json.loads(is_text(done.stdout))
    ordinary = "".join(chr(byte) for byte in junk if 0x20 <= byte < 0x7F)
    if b"\x1b" not in junk:
        assert "".join(char for char in found if " " <= char <= "~") == ordinary


def test_good_text_arrives_as_it_is(folder: Folder) -> None:
    for name in ("good text", "backslashes", "quotes", "newlines and tabs", "ampersands, which bash may replace"):
        done = run(folder, b"json_string " + quoted(JUNK[name]))
        assert json.loads(done.stdout) == JUNK[name].decode()


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_messages_and_the_log_are_text(folder: Folder, junk: bytes) -> None:
    value = quoted(junk)
    logged = b"log %b\n run_logged printf %%s %b\nprintf '%%s\\n' %b >&2\n" % (value, value, value)
    done = run(folder, b"take_lock\n" + logged + b"die %b %b why next\n" % (value, value))
    assert done.returncode == 1
    said = is_text(done.stdout)
    assert said.startswith("wanted: ") and said.endswith("\nwhy:    why\nnext:   next\n")
    is_text(done.stderr)


def test_an_unexpected_failure_is_told_in_text(folder: Folder) -> None:
    done = run(folder, b"false 'f\xfcr' '\x1b[2J'\n")
    assert "exit status 1 at" in is_text(done.stdout)


def test_the_log_is_out_when_the_script_has_ended_and_in_its_order(folder: Folder) -> None:
    done = run(folder, b"for n in {1..200}; do log $n; echo $n >&2; done\n")
    assert done.stderr.split() == [b"%d" % (n // 2 + 1) for n in range(400)]


def test_long_texts_keep_their_head_and_their_tail(folder: Folder) -> None:
    folder.write("/etc/big", "begins\n" + "x" * 3_000_000 + "\nends")
    done = run(folder, b'json_string "$(of_file "$ROOT/etc/big")"\n log "$(cat "$ROOT/etc/big")"\n')
    found = json.loads(done.stdout)
    assert found.startswith("begins\n") and found.endswith("\nends")
    assert len(found) < 300_000 and "bytes are left out here" in found
    assert len(done.stderr) < 100_000 and done.stderr.endswith(b"\nends\n")


@pytest.mark.parametrize("junk", [b"a", b"\xff"], ids=["plain", "no characters"])
def test_no_line_of_the_log_is_too_long_for_pulumi_command(folder: Folder, junk: bytes) -> None:
    """Behind a line of 64 KiB it waits for ever (bufio.Scanner), and a byte that is no character becomes one of three."""
    (folder.root / "junk").write_bytes(junk * 70_000)
    done = folder.bash('log "$(cat "$ROOT/junk")"; log the end')
    lines = done.stderr.splitlines()
    assert lines[-1] == "the end" and max(len(line.encode()) for line in lines) < 60_000


def test_a_program_that_talks_without_end_fills_no_log(folder: Folder) -> None:
    done = run(folder, b"take_lock\nrun_logged bash -c 'yes begins | head -c 40000000; echo ends' && log $OUTPUT\n")
    assert len(done.stderr) < 400_000 and b"ends" in done.stderr


def test_a_program_that_says_empty_lines_holds_nobody(folder: Folder) -> None:
    done = run(folder, b"take_lock\nrun_logged bash -c 'echo x; yes \"\" | head -c 250000'\necho $OUTPUT\n")
    assert done.stdout == b"\n"


def test_a_file_that_can_not_be_read_is_empty(folder: Folder) -> None:
    done = run(folder, b'found=$(of_file /proc/self/mem)\njson_string "$found"\n')
    assert json.loads(done.stdout) == ""


def test_a_file_with_nul_bytes_is_read_without_them(folder: Folder) -> None:
    folder.write("/etc/words", "a\0b\0")
    done = run(folder, b'json_string "$(of_file "$ROOT/etc/words")"\n')
    assert json.loads(done.stdout) == "ab" and done.stderr == b""


def test_what_cant_be_opened_although_it_may_be_read_ends_no_reading(folder: Folder) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder.root / "there"))
        done = run(folder, b'read_text "$ROOT/there"; printf "[%s]" "$TEXT"\n')
    assert (done.returncode, done.stdout) == (0, b"[]")


def test_what_is_said_late_is_passed_on_where_logins_end_after_a_time(folder: Folder) -> None:
    done = subprocess.run(
        ["bash", "-s"],
        input=LIBRARY.encode() + b"sleep 1.2; printf late >&2\n",
        capture_output=True,
        env=folder.environment | {"TMOUT": "1"},
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"late")


def test_plain_text_takes_no_process(folder: Folder) -> None:
    done = run(folder, b'PATH=/nowhere\njson_string "$(printf "a b\\t~\\nc")"\n')
    assert (done.returncode, done.stdout) == (0, b'"a b\\t~\\nc"')


@pytest.mark.parametrize("before", [0, 29, 31])
@pytest.mark.parametrize(
    "last",
    [
        b"half a line",
        b"a line\n",
        b"",
        b"\n",
        b"\ttab\n\n",
        "für\n".encode(),
        b"x" * 4095 + b"\n",
        b"x" * 4096,
        b"x" * 9000 + b"\ny",
    ],
)
def test_what_is_said_is_passed_on_whole(folder: Folder, before: int, last: bytes) -> None:
    lines = b"".join(b"line %d\n" % n for n in range(before))
    folder.root.joinpath("said").write_bytes(lines + last)
    done = run(folder, b'exec cat "$ROOT/said" >&2\n')
    assert done.stderr == lines + last


@pytest.mark.parametrize("before", [0, 4080, 4096])
def test_no_secret_is_passed_on_however_long_its_line(folder: Folder, before: int) -> None:
    filler = b"x" * before
    folder.root.joinpath("said").write_bytes(
        b"plain\n" + filler + b"https://user:password@proxy:3128/ then\nhttp://a:b@c\nhttp://plain/\n"
    )
    done = run(folder, b'exec cat "$ROOT/said" >&2\n')
    assert done.stderr == b"plain\n" + filler + b"https://(secret)@proxy:3128/ then\nhttp://(secret)@c\nhttp://plain/\n"


def test_what_is_said_in_parts_is_out_line_by_line(folder: Folder) -> None:
    script = (
        b"printf 'a ' >&2; printf 'b\\n' >&2; printf 'http://a:' >&2; sleep 0.1; printf 'b@c\\n' >&2; printf d >&2\n"
    )
    assert run(folder, script).stderr == b"a b\nhttp://(secret)@c\nd"


def test_a_few_plain_lines_of_the_log_take_no_program(folder: Folder) -> None:
    done = subprocess.run(
        ["bash", "-s"],
        input=b"PATH=/nowhere\n" + LIBRARY.encode() + b"log a; log 'b http://c/'\n",
        capture_output=True,
        env=folder.environment,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"a\nb http://c/\n")


def test_a_file_that_changes_while_it_is_read_is_read_as_it_was_at_one_time(folder: Folder) -> None:
    """As the kernel writes /proc/PID/status: a process that was woken up has another text of another length, at the same place."""
    file = folder.write("status", STATUS.format("S (sleeping)"))
    woken = folder.write("woken", STATUS.format("R (running)"))
    text = """
        FILE=$1 WOKEN=$2 MOMENT=$3 SEEN=0
        set -T
        trap '((++SEEN != MOMENT)) || cat "$WOKEN" >"$FILE"' DEBUG
        find_first "$FILE" "^PPid:[[:space:]](.*)$"
        trap - DEBUG
        echo "${FIRST:-none} $((SEEN >= MOMENT))"
    """
    for moment in range(1, 100):
        file.write_text(STATUS.format("S (sleeping)"))
        found, reached = folder.bash(text, str(file), str(woken), str(moment), parts=("lines",)).stdout.split()
        assert found == "71", moment
        if reached == "0":
            break
    assert moment > 5


STATUS = "Name:\tbash\nState:\t{}\nPid:\t7\nPPid:\t71\n"


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "\n", "a\n\n b\\n*"])
def test_the_last_line_of_a_text(folder: Folder, text: str) -> None:
    assert (
        folder.bash('find_last "$1"; printf "<%s>" "$LAST"', text, parts=("lines",)).stdout
        == f"<{text.split(chr(10))[-1]}>"
    )
