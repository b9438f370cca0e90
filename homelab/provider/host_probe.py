"""The work on a HostProbe: reads the host and plans; a refresh compares."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from homelab.errors import HomelabError, UnreachableError
from homelab.host import plan
from homelab.host.facts import HostFacts
from homelab.host.judge import judge_host
from homelab.later import later
from homelab.properties import mark_of, strings
from homelab.provider.base import Work, raised
from homelab.provider.plain import Properties
from homelab.remote import agent, host_session, ledger, logins, scripts, ssh, stack_folder
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.both.stack_folder import Wanted as StackFolder

if TYPE_CHECKING:  # of no use to a refresh
    from homelab.provider import card_mapping, storage_file
    from homelab.remote import planning
    from homelab.remote.proxmox import api
else:
    card_mapping, storage_file = later("homelab.provider.card_mapping"), later("homelab.provider.storage_file")
    api, planning = later("homelab.remote.proxmox.api"), later("homelab.remote.planning")


class HostProbeWork(Work[HostProbe.Inputs, HostProbe.Outputs]):
    """Reads and plans a host, compares it with the plan, and at the end takes away what killed runs left."""

    resource = HostProbe

    def create(self, inputs: HostProbe.Inputs) -> HostProbe.Outputs:
        return self._plan(inputs, {})

    def update(
        self, inputs: HostProbe.Inputs, before: HostProbe.Inputs, outputs: HostProbe.Outputs
    ) -> HostProbe.Outputs:
        if not outputs.stale and inputs.settings == before.settings:  # another agent, which the other steps bring
            host_session.of(inputs.host).hold(self.host(inputs))
            return outputs
        return self._plan(inputs, outputs.generation)

    def read(self, inputs: HostProbe.Inputs, outputs: HostProbe.Outputs) -> HostProbe.Outputs:
        facts = self.facts_of_refresh(inputs)
        want = plan.Wanted(**{field.name: getattr(outputs, field.name) for field in dataclasses.fields(plan.Wanted)})
        judged = judge_host(facts, self.host(inputs), planned=want)
        drift = {**judged.drift, "agent": self._drift_of_agent(inputs, facts)}
        for layer, differences in drift.items():
            for difference in differences:
                tell(f"{inputs.host}: drift ({layer}): {difference}")
        for line in judged.met:
            tell(f"{inputs.host}: note: {line}")
        drifted = {layer for layer, differences in drift.items() if differences}
        generation = raised(outputs.generation, drifted, drift.keys())
        return dataclasses.replace(outputs, generation=generation, stale=plan.stale(facts, want))

    def _drift_of_agent(self, inputs: HostProbe.Inputs, facts: HostFacts) -> list[str]:
        """Another version's is none: that of this one comes with the next `up`."""
        kept = facts.agents.get(stack_folder.owner_of(self.urn, inputs.host))
        is_there = inputs.agent != agent.version() or kept == inputs.agent
        return [] if is_there else ["this program's agent is missing on the host, or changed"]

    def _plan(self, inputs: HostProbe.Inputs, generation: dict[str, int]) -> HostProbe.Outputs:
        host_session.of(inputs.host).hold(self.host(inputs))
        host, vms, containers = self.host(inputs), self.stack.vms(inputs.host), self.stack.containers(inputs.host)
        planned = planning.planned(inputs.host, host, vms, containers, stack=ledger.stack_of(self.urn))
        # Also for those who skip the preview: what a reboot stops is said before anything is changed.
        tell(f"{inputs.host}: reboot: {planned.reboot.in_short(planned.want.gpus)}")
        host_session.of(inputs.host).is_reboot_told = True
        for remark in planned.remarks:
            tell(f"{inputs.host}: note: {remark}")
        generation = raised(generation, set(), [*plan.drift(planned.facts, planned.want), "agent"])
        return HostProbe.Outputs(**dataclasses.asdict(planned.want), generation=generation, stale=False)

    def show_plan(self, name: str) -> Properties:
        """Shows the plan for people in a preview: reads the host, changes nothing, and refuses what an `up` would.
        Nothing with the setting `plan: never`; with `always`, the host must be in reach.

        :param name: the host's in the settings.
        :returns: the plan as HostProbe puts it out; empty: the host wasn't read.
        :raises HomelabError: all refusals at once.
        """
        mode = self.stack.texts.get("plan")
        if mode == "never":
            return {}
        host = self.stack.host(name)
        try:
            _ = host.ssh.key
        except HomelabError as error:
            if mode == "always":
                raise
            tell(f"{name}: previewing without the key to the host: {error.found}")
            return {}
        try:
            vms, containers = self.stack.vms(name), self.stack.containers(name)
            stack = ledger.stack_of(self.urn)
            planned = planning.planned(name, host, vms, containers, planning.PATIENCE_SECONDS, stack)
        except UnreachableError as error:
            if mode == "always":
                raise
            tell(f"{name} can't be reached ({error.found}): previewed without reading it")
            return {}
        tell(planned.text(name, host, self.stack.restarts_before(name)))
        return dataclasses.asdict(planned.want)

    def delete(self, inputs: HostProbe.Inputs, outputs: HostProbe.Outputs) -> None:
        try:
            host = self.host(inputs)
            facts = ssh.read(host)
            if facts.edits:
                tell(
                    f"{inputs.host}: kept, from this or an earlier run of any stack: files of this program's as they "
                    f"had been edited by hand: {', '.join(facts.edits)}"
                )
            # A trial that failed leaves a kernel that runs without this program's words.
            ending = {*facts.cmdline.running.split()} - {*facts.cmdline.configured.split()}
            if ending.intersection(f"{outputs.iommu_words} {outputs.vfio_words}".split()):
                tell(
                    f"{inputs.host}: the boot configuration is as it was; the running kernel keeps the old command "
                    "line and the GPU's binding until the next reboot"
                )
            node = host.node_name
            storage_file.StorageFileWork(self.stack.texts).remove_unfinished(node, inputs.host, facts.ledger)
            card_mapping.CardMappingWork(self.stack.texts, self.urn).remove_unfinished(node, inputs.host, facts)
            owner = stack_folder.owner_of(self.urn, inputs.host)
            if owner in facts.agents:
                self._remove_folder_left(inputs.host, host, owner)
            self._tell_of_guests(api.Api(host, node))
            key = logins.public_half(host.ssh.key).partition(" ")[2]
            if "key" in ssh.Session(host).run("tidy_up", scripts.tidy_up(key)).split() and key:
                # By the name of the file itself: on Proxmox VE this is a link into /etc/pve, which sed would replace.
                tell(
                    f"{inputs.host}: root's authorized_keys keeps the key that `homelab init` put there; on the host, "
                    "this removes it (in a cluster, for every node): "
                    f"`sed -i '\\|{key} homelab$|d' \"$(readlink -f ~/.ssh/authorized_keys)\"`"
                )
        except HomelabError as error:  # nothing of the state is left to be given back: no reason to fail
            tell(f"{inputs.host}: it can't be read again ({error.wanted}: {error.found})")
        hosts = self.stack.host_names()
        if hosts and inputs.host not in hosts:
            # What has a new name is made first, and what had the old one undone then; the state doesn't tell that both
            # are one host.
            tell(
                f"{inputs.host}: if {' or '.join(hosts)} is this host under another name, its boot configuration and "
                "services have just been taken back: run `pulumi up --refresh` before the host is rebooted, which "
                "writes them again"
            )

    def _tell_of_guests(self, proxmox: api.Api) -> None:
        """Names the guests of this stack's making that are still there. They aren't removed without their resources:
        what is on their disks is nowhere else."""
        mark = mark_of(ledger.stack_of(self.urn))
        for kind, label, key in (("qemu", "VM", "name"), ("lxc", "container", "hostname")):
            for row in proxmox.get(f"nodes/{proxmox.node}/{kind}", f"to list the node's {label}s"):
                path = f"nodes/{proxmox.node}/{kind}/{row['vmid']}/config"
                config = strings(proxmox.get(path, f"to read the configuration of {label} {row['vmid']}"))
                if mark in config.get("description", ""):
                    guest = f"{label} {row['vmid']} ({config.get(key, 'without a name')})"
                    tell(
                        f"{proxmox.node}: {guest} stays. By its description this stack has made it: it was protected, "
                        "or a run was killed while it made it. If you don't need it, remove it in Proxmox VE's web "
                        "interface"
                    )

    def _remove_folder_left(self, name: str, host: Host, owner: str) -> None:
        """Takes away the folder that a run that was killed left of this stack on a host."""
        try:
            seconds = float(host.timeouts.step)
            ssh.Session(host).ask("revert", "stack_folder", StackFolder(owner=owner), seconds)
        except HomelabError as error:
            tell(
                f"{name}: this program's part in /var/lib/homelab/agents/{owner} stays ({error.wanted}: "
                f"{error.found}); nothing needs it any more"
            )
