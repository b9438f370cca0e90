"""What `pip install .` gives to another project: the program with its components, its data and what runs on hosts."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

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
    said = []
    for command in (["python", "-c", imports], ["homelab", "doctor", "--help"], ["homelab", "docs", "settings"]):
        done = subprocess.run([programs / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "container | vm | host" in said[1] and said[2].startswith("# Settings\n")


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
    # A page is named by what shows it; the schema lies where the settings' first line says.
    assert done.stdout.startswith("`homelab docs settings` # yaml-language-server: $schema=docs/config.schema.json\n")
    schema = PROJECT / "docs" / "config.schema.json"
    assert (folder / "docs" / "config.schema.json").read_bytes() == schema.read_bytes()
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text(encoding="utf-8"))
    assert project["runtime"]["options"]["virtualenv"] == ".venv" and project["name"] == "a-lab"
    # Its own on each machine.
    assert (folder / ".venv").readlink() == tmp_path / "venv" and "/.venv" in (folder / ".gitignore").read_text()
    provider = folder / project["plugins"]["providers"][0]["path"] / "pulumi-resource-homelab"
    assert os.access(provider, os.X_OK)


def test_each_link_of_readme_pages_and_examples_leads_somewhere_in_a_clone_and_in_the_wheel(built: Path) -> None:
    in_wheel = set(zipfile.ZipFile(built).namelist())
    pages = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *PROJECT.glob("docs/**/*.md")]
    pages = [page for page in pages if "site" not in page.parts] + [
        *PROJECT.glob("examples/*.md"),
        *PROJECT.glob("examples/*/*.md"),
    ]
    dead, found = [], 0
    for page in pages:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            if "://" not in link:
                there = (page.parent / link).resolve()
                name = f"homelab/template/{there.relative_to(PROJECT)}"
                dead += [(page.name, link)] if not there.exists() or name not in in_wheel else []
                found += 1
    assert dead == [] and found > 100
