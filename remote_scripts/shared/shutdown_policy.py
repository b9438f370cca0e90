"""HA's `shutdown_policy=migrate`: a node restarts once HA has moved all its guests to other nodes. It waits without an
end for one that can't leave (PVE::HA::LRM, shutdown_request). With any other policy HA stops its guests here."""

from __future__ import annotations

import re

from remote_scripts.shared import guest_conf, ha, pmxcfs, vm_conf
from remote_scripts.shared.pmxcfs import Node
from remote_scripts.tools.system import System

_MIGRATES = re.compile(r"^ha:(?:.*,)?\s*shutdown_policy=migrate\s*(?:,|$)", re.MULTILINE)
# What can't be on another node while the guest runs, as check_local_resources (PVE::QemuMigrate::Helpers) and pct's
# migration say.
_OF_VM = re.compile(
    r"^(usb\d+:(?!(?:.*,)?\s*(?:host=)?(?i:spice)\s*(?:,|$))|(?:serial|parallel)\d+: */dev/|ivshmem:|virtiofs\d+:"
    r"|amd-sev:|intel-tdx:|args:.*vfio-pci|(?:ide|sata|scsi)\d+:(?! *none\b)(?!.*cloudinit).*,media=cdrom)",
    re.MULTILINE,
)
_OF_CONTAINER = re.compile(r"^(dev\d+:|lxc\.(?:cgroup2\.devices\.allow|mount\.entry *[:=] */dev/))", re.MULTILINE)
_BIND = re.compile(r"^mp\d+: *(?:volume=)?/.*", re.MULTILINE)
_SHARED = re.compile(r"(?:,|: *)shared=1(?:,|$)")


def why_not(system: System, node: Node, *, alone: bool) -> str:
    """What HA would wait for; empty: nothing.

    :param alone: no other node answers.
    :raises Failure: a configuration can't be read.
    """
    if not _MIGRATES.search(pmxcfs.text_of(system, "/etc/pve/datacenter.cfg")) or not ha.has_services(system, node):
        return ""
    try:
        services = ha.status(system).services
    except ha.NoAnswerError:
        return "`ha-manager status` doesn't say which guests HA would move away (shutdown_policy=migrate)"
    here = (service.id for service in services if service.node == node.name and service.state not in ha.LEFT_ALONE)
    stuck = next((service for service in here if alone or _has_device(system, service)), "")
    why = "as no other node answers" if alone else "which has a device of this host, or an ISO image in a drive"
    return f"HA can't move {stuck}, {why} (shutdown_policy=migrate)" if stuck else ""


def _has_device(system: System, service: str) -> bool:
    """A mapped PCI device can be on another node if its mapping says so."""
    kind, _, guest = service.partition(":")
    if kind == "vm":
        lines = guest_conf.lines_of_vm(system, guest)
        migrating = vm_conf.migrating(pmxcfs.text_of(system, guest_conf.MAPPINGS))
        devices = vm_conf.given_devices(lines)
        return bool(_OF_VM.search("\n".join(lines)) or {device.get("mapping") for device in devices} - migrating)
    text = "\n".join(guest_conf.own_lines(pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{guest}.conf")))
    return bool(_OF_CONTAINER.search(text)) or not all(_SHARED.search(line) for line in _BIND.findall(text))
