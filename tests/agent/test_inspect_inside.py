"""What a diagnosis runs inside containers, on a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.agent.kit import Host, bash, command

# Inside, every file in /dev is a node; where nothing matched, the pattern itself was asked for.
NODES = """
for path in "${@:3}"; do
  [[ ! -f $path ]] || echo "$path c3 0 660 0 44 character special file"
  [[ ! -d $path ]] || echo "$path 0 0 755 0 0 directory"
done
"""


def inside(host: Host, **environment: str) -> list[str]:
    before = host.tree()
    done = bash(host, "exec /bin/sh", scripts.file("inspect_inside.sh"), **environment)
    assert done.returncode == 0, done.stderr
    assert host.tree() == before
    return done.stdout.splitlines()


@pytest.fixture
def container(host: Host) -> Host:
    host.write("/dev/nvidia0", "")
    command(host, "stat", NODES)
    denied = "echo \"dd: can't open '$1': Permission denied\" >&2; exit 1"
    command(host, "dd", f"[[ -z ${{NOBODY:-}} ]] || {{ {denied}; }}\necho 0+0 >&2")
    command(host, "setpriv", 'shift 5; NOBODY=1 exec "$@"')
    return host


def test_who_may_open_a_node_is_told_for_root_and_for_an_ordinary_user(container: Host) -> None:
    assert inside(container) == [
        "node /dev/nvidia0 c3 0 660 0 44 character special file",
        "root /dev/nvidia0 ok",
        "user /dev/nvidia0 Permission denied",
    ]


def test_without_setpriv_su_becomes_nobody(container: Host) -> None:
    command(container, "setpriv", "exit 1")
    command(container, "su", '[[ $1 == nobody ]] || exit 9\nNOBODY=1 exec "$3" -c "${@:5}"')
    assert inside(container)[2] == "user /dev/nvidia0 Permission denied"


def test_capabilities_are_opened_for_reading_alone(container: Host, tmp_path: Path) -> None:
    (container.root / "dev/nvidia0").unlink()
    container.write("/dev/nvidia-caps/nvidia-cap2", "")
    command(container, "dd", f'echo "$2" >>{tmp_path}/opened')
    assert "root /dev/nvidia-caps/nvidia-cap2 ok" in inside(container)
    assert set((tmp_path / "opened").read_text().split()) == {"of=/dev/null"}


def test_what_is_no_device_is_passed_over(container: Host) -> None:
    command(container, "stat", 'echo "$3 0 0 644 0 0 regular file"')
    assert inside(container) == []


def test_libraries_are_told_by_the_file_behind_the_link(container: Host) -> None:
    (container.root / "dev/nvidia0").unlink()
    folder = container.write("/usr/lib/x86_64-linux-gnu/libcuda.so.580.105.08", "").parent
    (folder / "libcuda.so.1").symlink_to("libcuda.so.580.105.08")
    place = "/usr/lib/x86_64-linux-gnu/libcuda.so"
    assert inside(container) == [f"library {place}.1 {place}.580.105.08"]
