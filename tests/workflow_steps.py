"""A step of a workflow, run here: its own bash, with a stand-in for GitHub's CLI that keeps comments in a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.waiting import PATIENCE

# What the workflows call of gh, as it answers. Pages have one entry each, and --jq is jq's.
GH = """#!{python}
import json, os, pathlib, subprocess, sys
state = pathlib.Path(os.environ["FAKE_GH"])
known = json.loads(state.read_text()) if state.exists() else []
words = sys.argv[1:]
def option(name): return words[words.index(name) + 1] if name in words else None
def body(): return pathlib.Path(option("--body-file")).read_text()
def new(**what): known.append({{"number": len(known) + 1, "id": 1000 + len(known), "user": {{"login": "github-actions[bot]"}}, **what}})
if os.environ.get("FAKE_GH_FAILS") == words[0]: sys.exit("HTTP 502")
assert os.environ["GH_TOKEN"] and os.environ["GH_REPO"] == "me/homelab"
if words[0] == "api" and "--method" not in words:
    path = words[1].partition("?")[0]
    assert path.endswith("/comments"), words
    for one in [one for one in known if one.get("on") == path.split("/")[-2]]:
        subprocess.run(["jq", "-r", option("--jq")], input=json.dumps([one]), text=True, check=True)
elif words[:3] == ["api", "--method", "PATCH"]:
    number, field = int(words[3].rpartition("/")[2]), option("-F")
    assert field.startswith("body=@")
    next(one for one in known if one["id"] == number)["body"] = pathlib.Path(field[6:]).read_text()
elif words[:2] == ["pr", "comment"]: new(on=words[2], body=body())
else: sys.exit("not known here: " + " ".join(words))
state.write_text(json.dumps(known))
"""


class Steps:
    """A runner's folder, in which steps run."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("jq") is None:
            pytest.skip("jq isn't installed, by which GitHub's CLI is stood in for")
        self.folder = folder
        self.state = folder / "github.json"
        (folder / "bin").mkdir(exist_ok=True)
        self.program("gh", GH.format(python=sys.executable))

    def program(self, name: str, text: str) -> None:
        """A stand-in, first on the PATH."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def known(self) -> list[dict[str, Any]]:
        """Comments."""
        return json.loads(self.state.read_text()) if self.state.exists() else []

    def run(self, file: str, job: str, step: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One step's bash, as the runner starts it."""
        text, shell = step_of(file, job, step)
        assert shell == "bash"
        script = self.folder / "step.sh"
        script.write_text(text)
        given: Mapping[str, str] = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FAKE_GH": str(self.state),
            "GH_TOKEN": "a token",
            "GH_REPO": "me/homelab",
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
        }
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env={**os.environ, **given, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )


def step_of(file: str, job: str, step: str) -> tuple[str, str]:
    """A step's text, and the shell that it names.

    :param file: of examples/github.
    """
    whole = yaml.safe_load((PROJECT / "examples" / "github" / file).read_text())
    (found,) = [one for one in whole["jobs"][job]["steps"] if one.get("name") == step]
    return str(found["run"]), str(found.get("shell", ""))
