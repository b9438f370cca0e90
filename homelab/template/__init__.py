"""The files of a project, as `homelab init` writes them, the program that such a project runs, and the documents. In
the repository they lie at the top; an installed package has them here.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path


def folder() -> Path:
    """The folder with Pulumi.yaml, the program, the provider's executable and the documents."""
    here = Path(__file__).resolve().parent
    return here if (here / "Pulumi.yaml").is_file() else here.parents[1]


def run_program() -> None:
    """Runs the program: what a project made by `homelab init` has as its own. It is updated with the package."""
    # The program calls its components by the name that they have in the repository.
    sys.modules.setdefault("components", importlib.import_module("homelab.components"))
    runpy.run_path(str(folder() / "__main__.py"))
