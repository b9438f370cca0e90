"""The way out by hand of a turn that doesn't end."""

from __future__ import annotations

from pathlib import Path

from tests.scripts.conftest import Folder


def test_the_way_out_by_hand_that_the_page_names_leaves_nothing_of_it(folder: Folder) -> None:
    page = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
    block = page.partition("## A node goes on trying to end its turn")[2].partition("```sh\n")[2].partition("```")[0]
    program, units = "/var/lib/homelab/turn-end", "/etc/systemd/system/homelab-turn"
    for path in (program, "/var/lib/homelab/away", "/var/lib/homelab/turn", f"{units}.timer", f"{units}.service"):
        folder.write(path, "")
    before = [path for path in folder.root.rglob("*turn*") if path.is_file()]
    assert len(before) == 4 and "homelab-turn.timer" in block
    folder.command("systemctl", 'echo "$*" >>"$ROOT/systemd"')
    done = folder.bash(block.replace(" /", " $ROOT/"))
    assert done.returncode == 0, done.stderr
    assert not [path for path in before if path.exists()] and not (folder.root / "var/lib/homelab/away").exists()
    assert "disable --now homelab-turn.timer" in folder.read("/systemd")
