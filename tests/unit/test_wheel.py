"""What `pip install .` gives to another project: the program with its components, its data and what runs on hosts."""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from homelab import __version__
from homelab.text import by_address
from tests.conftest import PROJECT
from tests.installed import install, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(tmp_path_factory.mktemp("wheel"))


def test_it_has_all_of_the_program_and_of_what_runs_on_hosts(built: Path) -> None:
    names = set(zipfile.ZipFile(built).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"homelab"}
    # PyPI's `homelab` is somebody else's. The module keeps its name.
    assert {name.split("-")[0] for name in names if ".dist-info" in name} == {"homelab_gpu"}
    here = {
        str(path.relative_to(PROJECT)) if folder == "homelab" else f"homelab/{path.relative_to(PROJECT)}"
        for folder in ("homelab", "components", "remote_scripts")
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.parent.name != "homelab/components"
    }
    assert here - names <= {"homelab/components/__init__.py"}


def test_it_runs_from_any_folder(built: Path, tmp_path: Path) -> None:
    programs = install(built, tmp_path / "venv")
    imports = (
        "from homelab.components import gpu_vm; from homelab.remote import scripts; assert scripts.file('rollback.sh');"
        f"assert gpu_vm.__file__.startswith({str(tmp_path)!r}), gpu_vm.__file__;"
        # Of what runs on hosts, no module has two names.
        "import sys; assert 'remote_scripts.both.cmdline' in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith('homelab.remote_scripts')]"
    )
    for command in (["python", "-c", imports], ["homelab", "doctor", "--help"]):
        done = subprocess.run([programs / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "container | vm | host" in done.stdout


def test_it_makes_a_project_with_its_own_environment(built: Path, tmp_path: Path) -> None:
    programs = install(built, tmp_path / "venv")
    folder = tmp_path / "a lab"
    folder.mkdir()
    made = (
        "from pathlib import Path; from homelab.cli import project; project.make(Path.cwd(), None)\n"
        "from homelab.errors import HomelabError; from homelab.init.settings import merged; page = 'docs/settings.md'\n"
        "print(HomelabError(wanted='', found='', why='', next=page).next, merged('', 'config: {}', [], 'pve'))"
    )
    done = subprocess.run([programs / "python", "-c", made], cwd=folder, check=True, capture_output=True, text=True)
    # It has no documents: they are named by their address.
    address = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    page = by_address("docs/settings.md", address, __version__)
    assert done.stdout.startswith(f"{page} # yaml-language-server: $schema={address}/raw/")
    assert not (folder / "docs").exists()
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text(encoding="utf-8"))
    assert project["runtime"]["options"]["virtualenv"] == ".venv" and project["name"] == "a-lab"
    # Its own on each machine.
    assert (folder / ".venv").readlink() == tmp_path / "venv" and "/.venv" in (folder / ".gitignore").read_text()
    provider = folder / project["plugins"]["providers"][0]["path"] / "pulumi-resource-homelab"
    assert os.access(provider, os.X_OK)
