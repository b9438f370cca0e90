"""What the tests of the engine share: the plugin, built once on this machine, and a host to reach by SSH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.engine import install
from tests.engine.plugin_process import Plugin
from tests.engine.ssh_host import SshHost


@pytest.fixture(scope="session")
def engine() -> install.Engine:
    """The engine as the program uses it: found, or built on this machine's first run (some minutes)."""
    environ = {name: value for name, value in os.environ.items() if name != "PULUMI_HOME"}
    return install.ensure(environ)


@pytest.fixture(scope="session")
def plugin_in_use(engine: install.Engine) -> Path:
    """pulumi-command's plugin as the engine starts it: the real one, or the stand-in."""
    return install.plugin_in(engine.home) / f"pulumi-resource-command{install.EXE}"


def plugins() -> list[str]:
    """What `plugin_binary` is in turn: the stand-in, and the real plugin where the engine would use it."""
    maker = install.Maker(os.environ, install.say_on_stderr)
    folders = (install.plugin_in(maker.home), maker.users_plugin())
    return ["stand-in", *(["real"] if any(map(install.is_real, folders)) else [])]


@pytest.fixture(scope="session", params=plugins())
def plugin_binary(request: pytest.FixtureRequest, engine: install.Engine, plugin_in_use: Path) -> Path:
    """The program of pulumi-command's plugin; of the stand-in, one that is built for the tests alone where the real plugin is used."""
    if request.param == engine.plugin:
        return plugin_in_use
    if shutil.which("go") is None:
        pytest.skip("the real plugin of pulumi-command is in use, and there is no Go to build the stand-in with")
    maker = install.Maker(os.environ, install.say_on_stderr)
    with maker.lock():
        return maker.built_stand_in()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An empty folder that stands for the program's."""
    folder = tmp_path / "program"
    folder.mkdir()
    return folder


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshHost]:
    """A host that runs commands."""
    root = tmp_path / "host"
    root.mkdir()
    with SshHost(root) as running:
        yield running


@pytest.fixture
def plugin(plugin_binary: Path, program: Path) -> Iterator[Plugin]:
    """The plugin, running and configured."""
    with Plugin(plugin_binary, program) as running:
        running.configure()
        yield running
