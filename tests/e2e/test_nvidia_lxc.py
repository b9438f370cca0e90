"""NVIDIA's libraries in containers, of exactly their host's version: working, followed, mended, purged."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside_container
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, conf, containers
from tests.e2e.test_gpu_lxc import PHOENIX as WITHOUT_LIBRARIES
from tests.e2e.test_nvidia_failures import PACKAGES, VERIFICATION, killed_at
from tests.sampling import sample

PHOENIX = {"phoenix": {"ctid": 901, "gpuAssignment": "0,1", "nvidia": {"cuda": "12.8"}}}
MEDIA = {"media": {"ctid": 950, "gpuAssignment": "all", "nvidia": {}}}
SMI = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"


def driver_in(stack: Stack, ctid: int) -> set[str]:
    return set(inside_container(stack, ctid, SMI).split())


def test_901_runs_a_cuda_program_950_keeps_what_it_has_an_update_that_950_cannot_have_is_refused_and_a_purge_takes_away_what_was_added(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers={**PHOENIX, **MEDIA}, nvidia={"driver": "580"}, **NO_REBOOT)
    more = {"containerToolkit": "docker", "docker": "install", "onDestroy": "purge"}
    containers(stack)["phoenix"]["nvidia"] = {"cuda": "12.8", **more}
    # An engine's configuration stays with the owner's images and volumes.
    inventory = "dpkg -l | grep ^ii | tr -s [:blank:]; find $ROOT/etc/apt $ROOT/usr/share/keyrings -type f | sort | xargs sha256sum"
    before, media, mark = inside_container(stack, 901, inventory), conf(stack, 950), stack.lab.mark()
    up = stack.up()
    made = [name for operation, name in up.steps if operation == "create" and name.startswith("phoenix")]
    order = [
        "cards",
        "opened",
        "system",
        "packages",
        "verified",
    ]
    assert [name.removeprefix("phoenix-") for name in made if name.removeprefix("phoenix-") in order] == order
    assert driver_in(stack, 901) == driver_in(stack, 950) == {"580.105.08"}
    found = stack.output()["containers"]
    assert [card["name"] for card in found["phoenix"]["nvidia"]["gpus"]] == [
        "NVIDIA GeForce RTX 5090",
        "NVIDIA GeForce RTX 4090",
    ]
    assert (found["phoenix"]["nvidia"]["program"], found["phoenix"]["nvidia"]["cuda"]) == (True, "12.8")
    assert "docker.io" in inside_container(stack, 901, "dpkg-query -W")
    # No module, and no package that would build one, in a container.
    assert "dkms" not in inside_container(stack, 901, "dpkg-query -W")
    # The one that has its cards is recognised, and left as it is.
    assert (conf(stack, 950), stack.container_power(950, mark), found["media"]["method"]) == (media, [], "mount-entry")

    # An update that a container cannot have is refused and a second try brings all.
    (installed,) = driver_in(stack, 901)
    containers(stack)["phoenix"]["nvidia"] |= {"source": "packages"}
    stack.lab.fault("package-missing", "901=*/595*")
    stack.host["nvidia"]["driver"] = "595.58.03"
    failed = stack.up("--refresh", ok=False)
    assert failed.found_changed == set(), f"the first `up` isn't what a refresh reads: {failed.output}"
    message = failed.message
    assert "containers.phoenix: 595.58.03" in message and "nothing was changed" in message, message
    assert stack.lab.run(SMI).stdout.split()[0] == installed
    assert driver_in(stack, 901) == driver_in(stack, 950) == {installed}
    stack.lab.fault("package-missing", None)
    boots = len(stack.lab.boots())
    up = stack.up("--refresh")
    assert len(stack.lab.boots()) == boots + 1
    done = [name for _, name in up.steps]
    for container in ("phoenix", "media"):
        assert done.index("pve-packages") < done.index("pve-booted") < done.index(f"{container}-packages")
    # Seen at work: what was kept of the old one is gone.
    assert not (stack.lab.root / "var/lib/homelab/update").exists()
    (after,) = driver_in(stack, 901)
    assert after.startswith("595.") and driver_in(stack, 950) == {after}

    stack.destroy_as_left()
    assert inside_container(stack, 901, inventory) == before
    assert conf(stack, 950) == media


def test_libraries_of_which_a_step_was_killed_are_there_after_the_next_run_follow_a_driver_that_somebody_else_changed_and_stay_by_default(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("phoenix", gpus=CARDS, containers=WITHOUT_LIBRARIES, **NO_REBOOT)
    containers(stack)["phoenix"]["nvidia"] = {"cuda": "12.8"}
    for script in sample(('"ctid": 901', PACKAGES, VERIFICATION), 1, "steps in a container"):
        killed_at(stack, script, None)
    added = stack.up()
    assert driver_in(stack, 901) == {"580.105.08"}
    assert "phoenix-cards" not in added.changed, "it has its cards already"
    # As NVIDIA's guide has it: its repository by its keyring package, then what is there anew.
    keyring = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/cuda-keyring_1.1-1_all.deb"
    stack.lab.run(f"curl -fsSLo $ROOT/root/k.deb {keyring} && dpkg -i $ROOT/root/k.deb")
    there = "dpkg-query -W -f='${db:Status-Status} ${Package}\\n' 'libnvidia-*' 'nvidia-*' libcuda1"
    packages = stack.lab.run(f"{there} | sed -n 's/^installed //p'").stdout.split()
    stack.lab.run(f"apt-get -qq update && apt-get -qq install -y {' '.join(packages)}")
    stack.lab.reboot()
    stack.lab.run("pct start 901", check=False)
    found = stack.lab.run("cat $ROOT/proc/driver/nvidia/version").stdout
    assert "580.105.08" not in found, "the host's driver is as before: nothing is shown"
    up = stack.up("--refresh")
    assert "drift" in up.output
    assert up.found_changed == {"phoenix-system"}, f"the run after the kill has left something else: {up.output}"
    (version,) = driver_in(stack, 901)
    assert version in found
    # It leaves the stack.
    del containers(stack)["phoenix"]["nvidia"]
    up = stack.up()
    assert "stays" in up.output
    assert driver_in(stack, 901) == {version}
