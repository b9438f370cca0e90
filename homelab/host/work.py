"""What is done for a host's resources: HostProbe reads the host and plans, BootVerification waits for its boot,
confirms it and compares it with what is wanted."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from homelab.cards import resolving
from homelab.cards.mapping import judge_mapping
from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.facts import kernel_log, names
from homelab.facts.host import HostFacts
from homelab.host import plan, stack_folder
from homelab.host.judge import judge_host, verified
from homelab.host.reboot import answered, in_short, stopped, stopping
from homelab.host.resource import BootVerification, HostProbe
from homelab.later import later
from homelab.properties import mark_of, strings
from homelab.remote import agent, boots, host_session, ledger, logins, loop, scripts, ssh
from homelab.resources.work.base import Work, raised
from homelab.resources.work.plain import Properties
from homelab.settings import Host
from homelab.shapes import BootSeen
from homelab.text import tell, tell_meanwhile
from remote_scripts.both import cluster_turn, nothing, reboot, start_guests
from remote_scripts.both.stack_folder import Wanted as StackFolder

if TYPE_CHECKING:  # of no use to a refresh
    from homelab.cards import work as card_mapping
    from homelab.judged import text as plan_text
    from homelab.judged import tree
    from homelab.reading import planning
    from homelab.remote.proxmox import api
    from homelab.storage import work as storage_file
else:
    card_mapping, storage_file = later("homelab.cards.work"), later("homelab.storage.work")
    api, planning = later("homelab.remote.proxmox.api"), later("homelab.reading.planning")
    plan_text, tree = later("homelab.judged.text"), later("homelab.judged.tree")


class HostProbeWork(Work[HostProbe.Inputs, HostProbe.Outputs]):
    """Reads and plans a host, compares it with the plan, and at the end takes away what killed runs left."""

    resource = HostProbe

    def create(self, inputs: HostProbe.Inputs) -> HostProbe.Outputs:
        return self._plan(inputs, {})

    def update(
        self, inputs: HostProbe.Inputs, before: HostProbe.Inputs, outputs: HostProbe.Outputs
    ) -> HostProbe.Outputs:
        return self._plan(inputs, outputs.generation, before.guests)

    def read(self, inputs: HostProbe.Inputs, outputs: HostProbe.Outputs) -> HostProbe.Outputs:
        facts, host = self.facts_of_refresh(inputs), self.host(inputs)
        # Another version's agent is no drift: this one's comes with the next `up`.
        version = inputs.agent if inputs.agent == agent.version() else ""
        stack, vms = ledger.stack_of(self.urn), self.stack.vms(inputs.host)
        judged = judge_host(facts, host, vms.values(), had=outputs, stack=stack, agent=version)
        for layer, differences in judged.drift.items():
            for difference in differences:
                tell(f"{inputs.host}: drift ({layer}): {difference}")
        for line in judged.met:
            tell(f"{inputs.host}: note: {line}")
        drifted = {layer for layer, differences in judged.drift.items() if differences}
        generation = raised(outputs.generation, drifted, judged.drift.keys())
        # With its plan all is refused that stands against a change, before the host is rebooted for it.
        cards = (card for card in resolving.resolve(facts, host.gpus)[0].items() if host.gpus[card[0]].may_leave)
        mappings = (judge_mapping(facts, host, *card) for card in cards)
        replans = bool(drifted) or any(one.against for one in mappings)
        return dataclasses.replace(outputs, generation=generation, stale=replans or plan.stale(facts, outputs))

    def _plan(self, inputs: HostProbe.Inputs, generation: dict[str, int], before: str = "") -> HostProbe.Outputs:
        judged = planning.planned(self._wanted(inputs.host, inputs.guests, before), is_changed=True)
        raise_all(judged.refusals)
        # Also for those who skip the preview: what a reboot stops is said before anything is changed.
        if judged.reboot:
            tell(f"{inputs.host}: reboot: {judged.reboot.in_short(judged.want.gpus)}")
            host_session.of(inputs.host).is_reboot_told = True
        for remark in (*judged.host.remarks, *judged.told_host.met):
            tell(f"{inputs.host}: note: {remark}")
        generation = raised(generation, set(), judged.host.drift)
        return HostProbe.Outputs(**dataclasses.asdict(judged.want), generation=generation, stale=False)

    def _wanted(self, name: str, guests: str, before: str) -> tree.Settings:
        """What the settings want of a host.

        :param guests: as of HostProbe's inputs, and as they were `before`.
        """
        vms, containers = self.stack.vms(name), self.stack.containers(name)
        changed = {guest.partition("=")[0] for guest in {*guests.split()} - {*before.split()}}
        return tree.Settings(name, self.stack.host(name), vms, containers, ledger.stack_of(self.urn), changed)

    def hold_for_a_step(self, inputs: HostProbe.Inputs, owner: str | None) -> None:
        """Holds a host before a step of pulumi-command's, and logs in there.

        :param owner: the stack's folder, where this program's agent is put; None: it is there.
        :raises HomelabError: as of HostSession.hold.
        """
        self.hold_or_fail(inputs)
        host = self.host(inputs)
        loop.run(logins.reach_for_a_step(host))
        if owner is not None:
            ssh.Session(host).put_agent(owner, float(host.timeouts.step))

    def show_plan(self, name: str, guests: str, before: str) -> Properties:
        """Shows the plan for people in a preview: reads the host, changes nothing, and refuses what an `up` would.
        Nothing with the setting `plan: never`; with `always`, the host must be in reach.

        :param name: the host's in the settings.
        :param guests: as of `_wanted`.
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
            judged = planning.planned(self._wanted(name, guests, before), planning.PATIENCE_SECONDS, is_changed=True)
        except UnreachableError as error:
            if mode == "always":
                raise
            tell(f"{name} can't be reached ({error.found}): previewed without reading it")
            return {}
        raise_all(judged.refusals)
        tell(plan_text.of_plan(judged, self.stack.restarts_before(name)))
        return dataclasses.asdict(judged.want)

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
            owner = stack_folder.owner(ledger.stack_of(self.urn), inputs.host)
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
        if hosts[:1] == [inputs.host]:  # by `destroy`, with all others
            tell("`pulumi stack rm --preserve-config` removes the stack; without that, its settings file goes, too")
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


# For so long this run waits for the guests that the host starts, one after the other; the host goes on without it.
STARTS_SECONDS = 900.0


class BootVerificationWork(Work[BootVerification.Inputs, BootVerification.Outputs]):
    """Waits for a reboot, confirms the boot, compares the host with what is wanted, and starts its guests."""

    resource = BootVerification

    def create(self, inputs: BootVerification.Inputs) -> BootVerification.Outputs:
        return self._verified(inputs, answered(scripts.answer(inputs.reboot)))

    def update(
        self, inputs: BootVerification.Inputs, before: BootVerification.Inputs, outputs: BootVerification.Outputs
    ) -> BootVerification.Outputs:
        # The guests that an earlier reboot stopped were seen to then.
        is_over = inputs.reboot == before.reboot
        answer = answered(scripts.answer(inputs.reboot) | ({"reboot": "no"} if is_over else {}))
        verified = self._verified(inputs, answer)
        return replace(verified, boot=outputs.boot) if verified.boot_id == outputs.boot_id else verified

    def _verified(self, inputs: BootVerification.Inputs, answer: reboot.Answer) -> BootVerification.Outputs:
        """:param answer: of the layer reboot."""
        want = plan.Wanted(inputs.iommu_words, inputs.vfio_words, inputs.functions, [], inputs.gpus)
        if answer.reboot == "yes":
            is_told = host_session.of(inputs.host).is_reboot_told
            why = "" if is_told else f", because {in_short(answer.reasons, inputs.gpus)}"
            tell(f"{inputs.host}: rebooting{why}; {stopping(answer)}")
        facts = _verify(self.host(inputs), inputs.host, answer, want, self._managed_guests(inputs.host))
        groups = f", {facts.iommu.groups} IOMMU groups" if facts.iommu.groups else ""
        tell(f"{inputs.host}: verified: kernel {facts.kernel}{groups}{_bound(facts, inputs)}")
        ids = [guest.id for guest in answer.guests] if answer.reboot == "yes" else []
        boot = BootSeen(id=facts.boot_id, stopped=ids, at=int(time.time()))
        return _outputs(facts, inputs, boot)

    def _managed_guests(self, name: str) -> start_guests.Wanted:
        """The host's guests in the settings, which this run shuts down and starts itself."""
        vms = {vm.vmid: vm.wanted_power for vm in self.stack.vms(name).values()}
        containers = {container.ctid: container.wanted_power for container in self.stack.containers(name).values()}
        off = [vmid for vmid, power in {**vms, **containers}.items() if power == "stopped"]
        # What is to run in any case isn't looked at again because of a reboot (ContainerProbe's `rebooted_at`).
        later = [vmid for vmid, power in containers.items() if power == "keep"]
        starts = [vmid for vmid in vms if vmid not in off]
        return start_guests.Wanted(later=(*starts, *later), unwanted=tuple(off))

    def is_held_meanwhile(self, inputs: BootVerification.Inputs) -> bool:
        """No: a reboot ends whatever holds its host, which is taken again once the boot is confirmed."""
        return False


def _verify(host: Host, name: str, answer: reboot.Answer, want: plan.Wanted, managed: start_guests.Wanted) -> HostFacts:
    old_boot_id = None
    if answer.reboot == "yes":
        old_boot_id = answer.boot_id
    elif answer.reboot == "manual" and ssh.read(host).boot_id == answer.boot_id:
        raise HomelabError(
            wanted=f"{name} rebooted, because {in_short(answer.reasons, want.gpus)}",
            found=f"it has not been since (reboot: manual); a reboot stops {stopped(answer)}",
            why="only a reboot brings the boot configuration into effect; what depends on it waits",
            next=f"reboot {name} when it suits you, then run `pulumi up` again: it continues from here"
            + (
                "; the next boot is a trial: another restart before it is confirmed leads back to what runs now"
                if answer.armed
                else ""
            ),
        )
    # Within reach, the boot on trial becomes the default, whatever the checks say: a person can act.
    facts = boots.confirm(host, old_boot_id, lambda text: tell(f"{name}: {text}"))
    if not facts.rolled_back:
        try:  # before anything else: the host itself starts its guests only while no run holds it
            host_session.of(name).hold(host)  # the reboot has ended what held it
        except HomelabError as error:
            # The boot is confirmed all the same; what would change something is refused.
            tell(f"{name}: note: {error.found}")
    if answer.turn and not facts.rolling_back:
        _end_turn(host, name)
    if answer.reboot == "yes" and not facts.rolling_back:
        # Of a boot that was given back this run changes nothing more.
        _start_guests(host, name, start_guests.Wanted() if facts.rolled_back else managed)
    if facts.rolled_back:
        raise HomelabError(
            wanted=f"the new boot of {name} confirmed",
            found="it has returned by itself to what it "
            f"was{', except for its restart' if facts.rolling_back else ''}: {facts.rolled_back}",
            why="its default never changed, so each restart leads back. A boot that couldn't be reached has most "
            "likely lost the device of its network; one that left no journal has stopped in its kernel",
            next="compare `journalctl -b -1` on the host (of an earlier boot, if the one on trial left no journal) with"
            " the plan (`pulumi preview`); when the cause is gone, run `pulumi up --refresh`",
        )
    errors, remarks = verified(facts, host, name, want)
    for remark in remarks:
        tell(f"{name}: note: {remark}")
    raise_all(errors)
    return facts


def _end_turn(host: Host, name: str) -> None:
    """Tell the other nodes of the cluster that this one is back: the next may restart. That it can't be told is no
    reason to fail."""
    try:
        seconds = cluster_turn.LOCK_SECONDS + cluster_turn.CLUSTER_SECONDS + host.timeouts.api
        over = ssh.Session(host).ask("apply", "cluster_turn", nothing.Wanted(), seconds)["over"]
    except HomelabError as error:
        tell(f"{name}: note: {error.found}")
        over = False
    if not over:
        tell(
            f"{name}: note: it couldn't tell its cluster that it is back: no other node restarts until the time of its "
            "turn has passed, or until `rm /etc/pve/homelab/turn`"
        )


def _start_guests(host: Host, name: str, managed: start_guests.Wanted) -> None:
    """Start again what ran before the reboot; what has no `onboot` would stay off. That one doesn't start is no reason
    to fail."""

    def show(line: str) -> None:
        tell_meanwhile(f"{name}: {line}")

    try:
        # Where it is cut off, the rest waits until this run has ended.
        answer = ssh.Session(host).ask("apply", "start_guests", managed, STARTS_SECONDS, show, goes_on=True)
    except HomelabError as error:
        tell(f"{name}: note: {error.found}; the host itself starts the guests that ran before the reboot")
        return
    if answer["started"]:
        tell(f"{name}: started again what ran before the reboot: {', '.join(answer['started'])}")
    for line in answer["off"]:
        tell(f"{name}: note: {line}")


def _bound(facts: HostFacts, inputs: BootVerification.Inputs) -> str:
    """The end of a message with the models of the cards that vfio-pci has; empty: none."""
    bound = {address for address in inputs.functions if facts.by_address[address].driver == "vfio-pci"}
    cards = [
        model
        for name, model in names.models_of_outputs(inputs.gpus).items()
        if {function["address"] for function in inputs.gpus[name]["functions"]} & bound
    ]
    return f", {', '.join(cards)} on vfio-pci" if cards else ""


def _outputs(facts: HostFacts, inputs: BootVerification.Inputs, boot: BootSeen) -> BootVerification.Outputs:
    cards = {function["address"] for gpu in inputs.gpus.values() for function in gpu["functions"]}
    return BootVerification.Outputs(
        kernel=facts.kernel,
        boot_id=facts.boot_id,
        iommu={"groups": facts.iommu.groups, "kernelLog": kernel_log.of_iommu(facts.iommu.kernel_log.splitlines())},
        devices={
            device.address: {"id": device.id, "driver": device.driver, "iommuGroup": device.group}
            for device in facts.devices
            if device.address in cards
        },
        boot=boot,
    )
