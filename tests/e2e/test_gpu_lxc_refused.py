"""What stands against a card in a container: one clear message each, and the configuration as it was.

Each obstacle that its host tells of, without the engine: tests/unit/test_containers.py, tests/lab/test_container_hosts.py.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack, refusal
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, PHOENIX, conf, containers, opens


def test_it_is_refused_a_container_that_stays_on_runs_on_and_a_verification_shows_the_diagnosis(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    before, wanted = conf(stack, 901), containers(stack)["phoenix"]
    wanted["ctid"] = 999
    refused = refusal(stack)
    assert "container 999, to be adopted as containers.phoenix" in refused
    assert "901 (ai-lab), 950 (media)" in refused
    assert conf(stack, 901) == before
    wanted["ctid"] = 901

    # Its host's side isn't there: NVIDIA's software isn't installed in it either.
    stack.lab.run("pct stop 901; pct stop 950; rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia")
    wanted["nvidia"] = {"cuda": "12.8"}
    refused = refusal(stack)
    assert "NVIDIA's driver loaded on the host, for containers.phoenix" in refused
    assert "the driver is installed and not loaded" in refused and "`modprobe nvidia`" in refused
    stack.lab.run(
        "modprobe nvidia; modprobe nvidia_drm; modprobe nvidia_uvm; nvidia-modprobe -u -m -c 0; pct start 901; pct start 950"
    )
    del wanted["nvidia"]

    # It won't shut down.
    wanted["shutdown"] = {"timeout": 1}
    stack.lab.fault("guest-ignores-shutdown", "901")
    up = stack.up(ok=False)
    assert "it is still on" in up.output and "container 901 has back what it had" in up.output
    assert conf(stack, 901) == before
    wanted["shutdown"]["otherwise"] = "stop"

    # By somebody who wanted it read only: it is theirs, and left as it is.
    stack.lab.run("pct set 901 --dev0 /dev/nvidia0,deny-write=1")
    message = stack.up(ok=False).message
    assert "devices that can be opened in container 901" in message
    assert "no rule of the control group allows it" in message
    assert "/dev/nvidia0" in message and "`homelab doctor container 901`" in message

    stack.lab.fault("guest-ignores-shutdown", None)
    stack.lab.run("pct set 901 --delete dev0; pct reboot 901")
    stack.up("--refresh")
    assert opens(stack, 901, "/dev/nvidia0")
