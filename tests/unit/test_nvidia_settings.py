"""homelab/nvidia/settings.py: what a user writes under `nvidia:`, and what is said of a mistake."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from homelab.nvidia.settings import Nvidia
from homelab.settings import Vm
from tests.rows import rows
from tests.unit.hosts import KEY


def test_the_issues_example() -> None:
    settings = Nvidia.model_validate({"driver": "580", "cuda": "12.8", "containerToolkit": "docker"})
    assert (settings.driver, settings.cuda, settings.container_toolkit) == ("580", "12.8", "docker")
    assert (settings.flavour, settings.source, settings.on_destroy, settings.docker) == (
        "auto",
        "auto",
        "keep",
        "as-is",
    )


def test_a_number_is_the_text_that_it_was() -> None:
    """Pulumi itself writes 13.0 as 13."""
    found = Nvidia.model_validate({"driver": 580, "cuda": 13})
    assert (found.driver, found.cuda) == ("580", "13.0")
    assert Nvidia.model_validate({"cuda": 12.8}).cuda == "12.8"


@rows(
    ("values", "said"),
    [
        ({"driver": 580.1}, "a branch"),
        ({"cuda": True}, "valid string"),
        ({"driver": "580-open"}, "open or proprietary is `flavour`"),
        ({"driver": "580-server"}, "open or proprietary is `flavour`"),
        ({"driver": "565+"}, "a branch"),
        ({"driver": ">=570"}, "a branch"),
        ({"driver": "latest"}, "a branch"),
        ({"driver": "580.105.08-1ubuntu1"}, "an exact version"),
        ({"driver": True}, "valid string"),
        ({"cuda": "12"}, "a release"),
        ({"cuda": "12-8"}, "a release"),
        ({"cuda": "12.8", "cudnn": "8"}, "'9'"),
        ({"containerToolkit": "lxd"}, "'docker', 'podman' or 'k3s'"),
        ({"flavour": "closed"}, "'auto', 'open' or 'proprietary'"),
        ({"onDestroy": "remove"}, "'keep' or 'purge'"),
        ({"docker": True}, "'as-is' or 'install'"),
        ({"mirror": {"cuda": "mirror.lan"}}, "expected https"),
        ({"mirror": {"cuda": "https://mirror.lan/?x=1"}}, "expected https"),
        ({"proxy": "proxy:3128"}, "expected http://HOST:PORT"),
        ({"timeouts": {"install": 0}}, "greater than or equal to 1"),
        ({"timeouts": {"build": 10}}, "Extra inputs are not permitted"),
        ({"drivers": "580"}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], said: str) -> None:
    def refused(**values: Any) -> str:
        with pytest.raises(ValidationError) as error:
            Nvidia.model_validate(values)
        return str(error.value)

    assert said in refused(**values)


def test_a_proxys_password_is_not_shown() -> None:
    settings = Nvidia.model_validate({"proxy": "http://me:secret@proxy.lan:3128"})
    assert "secret" not in repr(settings)
    assert settings.proxy and settings.proxy.get_secret_value() == "http://me:secret@proxy.lan:3128"


def test_a_mirrors_last_slash_does_not_matter() -> None:
    assert Nvidia.model_validate({"mirror": {"run": "https://mirror.lan/x/"}}).mirror.run == "https://mirror.lan/x"


@pytest.mark.parametrize("kind", ["win10", "win11"])
def test_a_windows_that_is_going_to_be_made_gets_no_stack(kind: str) -> None:
    made = {"ostype": kind}
    about = {"host": "pve", "vmid": 110, "gpus": ["rtx"], "address": "agent", "ssh": {"hostKey": KEY, "agent": True}}
    assert Vm.model_validate({**about, "create": made}).nvidia is None
    with pytest.raises(ValidationError, match="Windows Update or NVIDIA's own installer brings the driver"):
        Vm.model_validate({**about, "create": made, "nvidia": {}})
