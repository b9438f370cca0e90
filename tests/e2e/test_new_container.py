"""Containers that are made from settings: created with their cards, changed in place, found again, removed."""

from __future__ import annotations

from collections.abc import Callable

import yaml

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_lxc import NO_REBOOT, NOBODY, conf, containers, opens
from tests.e2e.test_new_vm import KEY

TEMPLATE = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"


def test_a_container_is_made_with_its_cards_changed_mended_and_removed(stack_on: Callable[..., Stack]) -> None:
    example = yaml.safe_load((PROJECT / "examples/settings/new-container.yaml").read_text())["config"]
    create = example["homelab:containers"]["ollama"]["create"] | {"ssh-public-keys": KEY, "mp0": "/tank/a,mp=/a"}
    stack = stack_on(
        "phoenix",
        gpus={},
        containers={"ai": {"ctid": 300, "gpuAssignment": "all", "create": create}},
        **NO_REBOOT,
    )
    cache = "$HOMELAB_ROOT/var/lib/vz/template/cache"
    stack.lab.run(f"mkdir -p {cache} $HOMELAB_ROOT/tank/a; touch {cache}/{TEMPLATE.rpartition('/')[2]}")
    stock = stack.lab.snapshot()
    stack.up()
    lines = conf(stack, 300).splitlines()
    for line in ("hostname: ai", "memory: 8192", "features: nesting=1", "unprivileged: 1", "onboot: 1"):
        assert line in lines
    assert opens(stack, 300, "/dev/nvidia1", NOBODY)

    # Another setting: that alone is done, and all else is found as the first `up` left it.
    containers(stack)["ai"]["create"]["cores"] = 6
    more = stack.up("--refresh")
    assert (more.found_changed, more.changed) == (set(), {"pve-probe", "ai-ct"}), more.output
    assert "cores: 6" in conf(stack, 300)

    # No longer described, only adopted: it isn't taken for one that is to go. Described again.
    described = containers(stack)["ai"].pop("create")
    assert "container 300 stays: containers.ai adopts it" in stack.up().output
    containers(stack)["ai"]["create"] = described
    stack.up()
    assert opens(stack, 300, "/dev/nvidia1", NOBODY)
    stack.destroy()
    assert stack.lab.snapshot() == stock
