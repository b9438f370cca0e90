"""NVIDIA's libraries in containers, of exactly their host's version: working, followed, mended, purged.

With Docker and its toolkit: tests/lab/test_nvidia_stack.py. From `homelab init` on: tests/e2e/test_init.py (a host with a history).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside_container
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, PHOENIX, containers
from tests.e2e.test_nvidia_failures import PACKAGES, VERIFICATION, killed_at
from tests.sampling import sample

SMI = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"


def driver_in(stack: Stack, ctid: int) -> set[str]:
    return set(inside_container(stack, ctid, SMI).split())


def test_containers_libraries_follow_their_hosts_driver_whoever_changes_it_past_a_kill_and_an_update_that_one_cannot_have(
    converged: Callable[..., Stack],
) -> None:
    """Until a purge takes away what was added, from the one that asks for it."""
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    inventory = "dpkg -l | grep ^ii | tr -s [:blank:]; find $HOMELAB_ROOT/etc/apt $HOMELAB_ROOT/usr/share/keyrings -type f | sort | xargs sha256sum"
    before = inside_container(stack, 901, inventory)
    containers(stack)["phoenix"]["nvidia"] = {"cuda": "13.0", "onDestroy": "purge"}
    for script in sample(('"ctid": 901', PACKAGES, VERIFICATION), 1, "steps in a container"):
        killed_at(stack, script, None)
    added = stack.up()
    assert "phoenix-cards" not in added.changed, "it has its cards already"
    assert driver_in(stack, 901) == {"580.105.08"}
    found = stack.output()["containers"]["phoenix"]["nvidia"]
    assert (found["program"], found["cuda"]) == (True, "13.0")
    assert [card["name"] for card in found["gpus"]] == [
        "NVIDIA GeForce RTX 5090",
        "NVIDIA GeForce RTX 4090",
    ]
    # No module, and no package that would build one, in a container.
    assert "dkms" not in inside_container(stack, 901, "dpkg-query -W")

    # As NVIDIA's guide has it: its repository by its keyring package, then what is there anew.
    keyring = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/cuda-keyring_1.1-1_all.deb"
    stack.lab.run(f"curl -fsSLo $HOMELAB_ROOT/root/k.deb {keyring} && dpkg -i $HOMELAB_ROOT/root/k.deb")
    there = "dpkg-query -W -f='${db:Status-Status} ${Package}\\n' 'libnvidia-*' 'nvidia-*' libcuda1"
    packages = stack.lab.run(f"{there} | sed -n 's/^installed //p'").stdout.split()
    pin = "Package: *nvidia* libcuda1\\nPin: version 590.48.01*\\nPin-Priority: 1001\\n"
    stack.lab.run(
        f"printf '{pin}' >$HOMELAB_ROOT/etc/apt/preferences.d/theirs; apt-get -qq update && apt-get -qq install -y {' '.join(packages)}; "
        "rm $HOMELAB_ROOT/etc/apt/preferences.d/theirs"
    )
    stack.lab.reboot()
    stack.lab.run("pct start 901", check=False)
    changed = stack.lab.run("cat $HOMELAB_ROOT/proc/driver/nvidia/version").stdout
    assert "580.105.08" not in changed, "the host's driver is as before: nothing is shown"
    up = stack.up("--refresh")
    assert "drift" in up.output
    assert up.found_changed == {"phoenix-system"}, f"the run after the kill has left something else: {up.output}"
    (installed,) = driver_in(stack, 901)
    assert installed in changed

    # A driver of ours: one that a container cannot have is refused, and a second try brings all.
    containers(stack)["phoenix"]["nvidia"] |= {"source": "packages"}
    stack.lab.fault("package-missing", "901=*/595*")
    stack.host["nvidia"] = {"driver": "595.58.03"}
    message = stack.up(ok=False).message
    assert "containers.phoenix: 595.58.03" in message and "nothing was changed" in message, message
    assert stack.lab.run(SMI).stdout.split()[0] == installed
    assert driver_in(stack, 901) == {installed}
    stack.lab.fault("package-missing", None)
    boots = len(stack.lab.boots())
    done = [name for _, name in stack.up().steps]
    assert len(stack.lab.boots()) == boots + 1
    assert done.index("pve-packages") < done.index("pve-booted") < done.index("phoenix-packages")
    # Seen at work: what was kept of the old one is gone.
    assert not (stack.lab.root / "var/lib/homelab/update").exists()
    (after,) = driver_in(stack, 901)
    assert after.startswith("595.")

    stack.destroy_as_left()
    assert inside_container(stack, 901, inventory) == before
