"""Scripts that write the boot configuration, cut short at every command by a kill or a power cut: the next run finishes the work.

By default a sample of the moments is tried, another one with another seed (tests/sampling.py); HOMELAB_EVERY_CUT=1 tries every one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.boot_layers import Asked, initramfs
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2882 modprobe.blacklist=nouveau"
OTHER = "homelab.vfio=0000:01:00.0=10de:2882"
SAMPLE = 2

LOADERS = ("grub", "systemd-boot")
SCRIPTS = {"iommu": scripts.iommu_cmdline(IOMMU), "vfio": scripts.vfio_cmdline(VFIO)}
CHAIN: dict[str, str | Asked] = {"iommu": SCRIPTS["iommu"], "initramfs": initramfs(), "vfio": SCRIPTS["vfio"]}
#: Each script, and each loader; with another seed each with the other one.
LAYERS, KILLED = (
    pytest.mark.parametrize(("layer", "host"), rows, indirect=["host"])
    for pairs in [sampling.paired(list(SCRIPTS), LOADERS, "layers")]
    for rows in (pairs, sampling.sample(pairs, 1, "killed"))
)


def run(folder: Folder, verb: str, script: str | Asked) -> None:
    done = folder.run(verb, script)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def host(folder: Folder, request: pytest.FixtureRequest) -> Folder:
    """A stock host with the loader that the test names."""
    cut_kit.stock(folder, request.param)
    return folder


def up_to(host: Folder, layer: str) -> None:
    """Configure what comes before ``layer``."""
    for name, script in CHAIN.items():
        if name == layer:
            return
        run(host, "apply", script)


def each_is_made_good(
    host: Folder, cuts: list[cut_kit.Cut], seed: str, verb: str, script: str, wanted: cut_kit.Tree
) -> None:
    """From each cut, another run leads to ``wanted``."""
    wrong = []
    for cut in sampling.sample(cuts, SAMPLE, seed):
        cut_kit.restore(host.root, cut.files)
        done = host.run(verb, script)
        found = cut_kit.tree(host.root)
        if done.returncode != 0 or found != wanted:
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            wrong.append(f"{cut.number}, {cut.how}: {done.returncode} {done.stdout} {differing}")
    assert not wrong, "\n".join([f"HOMELAB_SEED={sampling.SEED}", *wrong])


@LAYERS
def test_an_apply_that_is_cut_short_is_finished_by_the_next_and_taken_back_by_a_revert(
    host: Folder, layer: str, tmp_path: Path
) -> None:
    up_to(host, layer)
    before = cut_kit.tree(host.root)
    cuts = cut_kit.cuts(host, "apply", SCRIPTS[layer], tmp_path / "output")
    assert len(cuts) > 20
    configured = cut_kit.tree(host.root)
    each_is_made_good(host, cuts, f"{layer} apply", "apply", SCRIPTS[layer], configured)
    each_is_made_good(host, cuts, f"{layer} revert", "revert", SCRIPTS[layer], before)


@LAYERS
def test_a_revert_that_is_cut_short_is_finished_by_the_next(host: Folder, layer: str, tmp_path: Path) -> None:
    up_to(host, layer)
    before = cut_kit.tree(host.root)
    run(host, "apply", SCRIPTS[layer])
    cuts = cut_kit.cuts(host, "revert", SCRIPTS[layer], tmp_path / "output")
    assert len(cuts) > 10
    assert cut_kit.tree(host.root) == before
    each_is_made_good(host, cuts, layer, "revert", SCRIPTS[layer], before)


@pytest.mark.parametrize("host", LOADERS, indirect=True)
def test_a_change_of_words_that_is_cut_short_leaves_none_of_the_old_ones(host: Folder, tmp_path: Path) -> None:
    up_to(host, "vfio")
    before = cut_kit.tree(host.root)
    run(host, "apply", SCRIPTS["vfio"])
    other = scripts.cmdline("vfio", OTHER, 1, entry=True)
    cuts = cut_kit.cuts(host, "apply", other, tmp_path / "output")
    changed = cut_kit.tree(host.root)
    each_is_made_good(host, cuts, "change", "apply", other, changed)
    each_is_made_good(host, cuts, "change back", "revert", other, before)


@LAYERS
def test_a_failing_run_that_is_cut_short_while_it_puts_things_back_is_finished_by_the_next(
    host: Folder, layer: str, tmp_path: Path
) -> None:
    up_to(host, layer)
    before = cut_kit.tree(host.root)
    run(host, "apply", SCRIPTS[layer])
    configured = cut_kit.tree(host.root)
    cut_kit.restore(host.root, before)
    (host.root / "fail").touch()
    cuts = cut_kit.cuts(host, "apply", SCRIPTS[layer], tmp_path / "output", status=1)
    left = {key for key in cut_kit.tree(host.root) if key not in before}
    assert "var/lib/homelab/pending/boot" in left, "what was generated is of neither the old nor the new files"
    assert not [key for key in left if not key.startswith("var/lib/homelab")]
    (host.root / "fail").unlink()
    each_is_made_good(host, cuts, f"{layer} apply", "apply", SCRIPTS[layer], configured)
    each_is_made_good(host, cuts, f"{layer} revert", "revert", SCRIPTS[layer], before)


@KILLED
def test_a_kill_leaves_the_files_that_the_other_tests_go_on_from(host: Folder, layer: str, tmp_path: Path) -> None:
    up_to(host, layer)
    before = cut_kit.tree(host.root)
    states = [cut.files for cut in cut_kit.cuts(host, "apply", SCRIPTS[layer], tmp_path / "output")]
    configured = cut_kit.tree(host.root)
    number = sampling.drawn(layer).randrange(50, 400)
    cut_kit.restore(host.root, before)
    killed = cut_kit.start(host, "apply", SCRIPTS[layer], tmp_path / "killed")
    for count, event in enumerate(killed.events, start=1):
        if count >= number and event.startswith("point "):
            killed.kill(event)
            break
        killed.go()
    assert killed.process.returncode == -9, f"HOMELAB_SEED={sampling.SEED}"
    assert cut_kit.tree(host.root) in states
    run(host, "apply", SCRIPTS[layer])
    assert cut_kit.tree(host.root) == configured
