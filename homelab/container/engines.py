"""Refusals of Docker, containerd and k3s inside a container where the host lets them start no containers. Pure."""

from __future__ import annotations

import re
import shlex

from homelab.errors import HomelabError
from homelab.host.facts import GuestConfig, HostFacts
from homelab.settings import Container
from remote_scripts.shared.booleans import is_true
from remote_scripts.shared.properties import parse

# These start containers by runc. podman of Debian and Ubuntu takes crun.
_WITH_RUNC = ("docker", "containerd", "k3s")
# The first lxc-pve whose profile for AppArmor leaves /proc and /sys of a container with nesting alone (proxmox/lxc,
# debian/changelog, "fix #7006", and its patch 0002-apparmor-skip-proc-and-sys-restrictions-if-nesting); on Proxmox VE 8
# by an owner's report (mkuthan/homelab-public issue 43).
_FIXED_IN = {"8": "6.0.0-2"}
_FIXED_IN_9 = "6.0.5-2"
# What the names of LXC's own profiles begin with. They refuse the same as the one that is made, and no version of
# lxc-pve changes that (lxc/lxc, config/apparmor/abstractions/container-base.in: `deny /sys/[^fdck]*{,/**} wklx`).
_LXC_PROFILES = "lxc-container-default"


def refusals(name: str, container: Container, facts: HostFacts) -> list[HomelabError]:
    """Errors for what keeps the engine of nvidia.containerToolkit from starting containers, before it is installed.

    runc 1.3.3, and what distributions have mended in older ones for CVE-2025-52881, opens sysctls through a /proc that
    is mounted nowhere. AppArmor takes their path there for one below /, and the profile that LXC makes refuses it
    (opencontainers/runc issues 4968 and 4972).
    """
    runtime = container.nvidia.container_toolkit if container.nvidia else None
    if runtime not in _WITH_RUNC or container.allow_older_lxc:
        return []
    config = facts.guests.config(container.ctid)
    profile = _profile(config)
    if profile and not profile.startswith(_LXC_PROFILES):
        return []
    fixed_in = _FIXED_IN.get(facts.pve.partition(".")[0], _FIXED_IN_9)
    version = facts.packages.get("lxc-pve", "")
    is_older = _numbers(version) < _numbers(fixed_in)
    has_nesting = _has_nesting(container, config)
    if not is_older and has_nesting and not profile:
        return []
    obstacles = (
        [f"lxc-pve {version} on the host" if version else "an unknown version of lxc-pve on the host"]
        if is_older
        else []
    )
    obstacles += [] if has_nesting else [f"container {container.ctid} without the feature nesting"]
    obstacles += [f"container {container.ctid} with LXC's profile {profile}"] if profile else []
    steps = [f"update the host to lxc-pve {fixed_in} or later (`apt full-upgrade`)"] if is_older else []
    if not has_nesting and config is not None:
        steps.append(f"`pct set {container.ctid} --features {shlex.quote(_with_nesting(config))}`")
    elif not has_nesting:
        steps.append(f"set containers.{name}.create.features.nesting: true")
    if profile:
        steps.append(f"take the line of lxc.apparmor.profile out of /etc/pve/lxc/{container.ctid}.conf")
    return [
        HomelabError(
            wanted=f"containers.{name}: {runtime} inside it, for nvidia.containerToolkit, which starts containers",
            found="; ".join(obstacles),
            why="runc 1.3.3 and later, and older ones with the same fix, can't start containers under the AppArmor "
            "profile that such a container gets (open sysctl net.ipv4.ip_unprivileged_port_start … permission denied)",
            next=f"{'; '.join(steps)}; then restart the container. If {runtime} starts containers there all the "
            f"same, containers.{name}.allowOlderLxc: true",
        )
    ]


def _features(config: GuestConfig) -> dict[str, str]:
    return parse("features", config.values.get("features", ""))


def _has_nesting(container: Container, config: GuestConfig | None) -> bool:
    if config is None:
        return container.create is not None and container.create.features.nesting
    return is_true(_features(config).get("nesting", ""))


def _with_nesting(config: GuestConfig) -> str:
    """The container's features with nesting: `pct set` replaces all of them."""
    return ",".join(f"{key}={value}" for key, value in {**_features(config), "nesting": "1"}.items())


def _profile(config: GuestConfig | None) -> str:
    """The AppArmor profile that the configuration names, mostly `unconfined`; empty: Proxmox VE makes one (PVE::LXC,
    make_apparmor_config)."""
    current = re.split(r"^\[", config.lines, maxsplit=1, flags=re.MULTILINE)[0] if config is not None else ""
    profiles = re.findall(r"^lxc\.apparmor\.profile[ \t]*[:=][ \t]*(\S+)", current, re.MULTILINE)
    return profiles[-1] if profiles and profiles[-1] != "generated" else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
