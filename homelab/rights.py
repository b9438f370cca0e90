"""Privileges in Proxmox VE: those that the settings need, those that are missing, and the commands that grant them
without taking others away.

The rules of /etc/pve/user.cfg (PVE::AccessControl::roles): of a path and those above it, the deepest one with entries
for the user decides, and entries further up have no effect. So an entry on a deeper path takes away what was granted
further up, and the safe way to one more privilege is to add it to the role that decides already. A token without
privilege separation has its user's privileges, and entries of its own are without effect; a token with privilege
separation has the privileges that both it and its user have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homelab.vm.creation import configuration

if TYPE_CHECKING:
    from homelab.settings import Download, Host, NewContainerSettings, NewVm, Vm

# The name of the role in docs/by-hand.md. Where it is taken, a new role gets a number behind it.
ROLE = "Homelab"

# A path -> privileges. `A|B`: one of these is enough.
Needs = dict[str, set[str]]

# Ends of privileges' names, in the order in which `least` prefers them.
_LEAST = ("Audit", "Use", "AllocateSpace")

# Privilege -> options of a VM that it allows to set (PVE::API2::Qemu; a node's recorded answers for each).
_VM_OPTIONS = {
    "VM.Config.CPU": "cores cpu cpulimit cpuunits numa smp sockets vcpus",
    "VM.Config.Memory": "memory balloon shares allow-ksm",
    "VM.Config.HWType": "acpi hotplug kvm machine scsihw smbios1 tablet vga watchdog audio rng serial hostpci usb",
    "VM.Config.Options": "agent autostart bios description keyboard localtime migrate_downtime migrate_speed name "
    "onboot ostype protection reboot startdate startup tdf template tags",
    "VM.Config.Disk": "boot bootdisk vmstatestorage ide sata scsi virtio efidisk tpmstate virtiofs cdrom",
    "VM.PowerMgmt": "freeze",
    "VM.Config.Network": "net",
    # Either of VM.Config.Cloudinit and VM.Config.Network.
    "VM.Config.Network|VM.Config.Cloudinit": "ipconfig cicustom cipassword citype ciupgrade ciuser nameserver "
    "searchdomain sshkeys",
}
_CONTAINER_OPTIONS = {
    "VM.Config.CPU": "cores cpulimit cpuunits",
    "VM.Config.Memory": "memory swap",
    "VM.Config.Network": "net hostname nameserver searchdomain",
    "VM.Config.Disk": "rootfs mp",
    "VM.Config.Options": "onboot description features tags startup unprivileged",
}
# A device or a disk of the host itself. `host=` and `file=` may be left out.
_HOSTS_OWN = re.compile(
    r"(?:serial|ide|sata|scsi|virtio)\d+: (?:file=)?/.*|usb\d+: (?!(?:.*,)?(?:mapping=|(?:host=)?spice(?:,|$))).*",
    re.IGNORECASE,
)


# -- needed privileges -----------------------------------------------------------------------------------------------
def of_options(keys: Iterable[str], *, container: bool = False) -> set[str]:
    """The privileges on /vms/ID for setting, or taking away, options of a guest's configuration."""
    table = _CONTAINER_OPTIONS if container else _VM_OPTIONS
    privilege_of = {option: privilege for privilege, options in table.items() for option in options.split()}
    privileges = (privilege_of.get(key) or privilege_of.get(key.rstrip("0123456789")) for key in keys)
    return {privilege for privilege in privileges if privilege}


def roots_alone(options: Mapping[str, str]) -> list[str]:
    """Of a VM's options those that Proxmox VE lets root@pam alone set, and no token (check_vm_modify_config_perm)."""
    return [key for key, value in options.items() if not of_options([key]) or _HOSTS_OWN.fullmatch(f"{key}: {value}")]


def of_mapping(mapping: str, *, write: bool, make: bool) -> Needs:
    """The privileges for a card's mapping.

    :param mapping: its id.
    :param write: whether its entry is changed.
    :param make: whether the mapping is new.
    """
    path = "/mapping/pci" if make else f"/mapping/pci/{mapping}"
    return {path: {"Mapping.Modify"} if write else {"Mapping.Use|Mapping.Modify|Mapping.Audit"}}


def of_vm(vm: Vm, host: Host, keys: Iterable[str], *, power: bool = True) -> Needs:
    """The privileges for an existing VM.

    :param keys: the options that are to be changed.
    :param power: whether it is shut down or started.
    """
    path = f"/vms/{vm.vmid}"
    needs: Needs = {path: {"VM.Audit", *of_options(keys), *({"VM.PowerMgmt"} if power else ())}}
    for use in vm.gpus:
        if not use.by_address:
            needs.setdefault(f"/mapping/pci/{host.mapping_of(use.gpu)}", set()).add("Mapping.Use")
    if vm.address == "agent":
        needs[path].add("VM.GuestAgent.Audit|VM.Monitor")
    return needs


def of_new_vm(name: str, vmid: int, new: NewVm, *, models: bool = False) -> Needs:
    """The privileges for creating a VM, and for deleting it.

    :param name: the VM's name in the settings.
    :param models: whether the host's Proxmox VE asks for one to a processor model of its own.
    """
    keys = {*configuration(name, new), "description"}
    path = f"/vms/{vmid}"
    needs: Needs = {
        path: {"VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.Config.Disk", *of_options(keys)},
        f"/storage/{new.disk.storage}": {"Datastore.AllocateSpace"},
        f"/sdn/zones/localnetwork/{new.bridge}": {"SDN.Use"},
    }
    if new.isos:
        needs[path].add("VM.Config.CDROM")
    for volume in (*new.isos, *((new.image,) if new.image else ())):
        storage = f"/storage/{volume.partition(':')[0]}"
        needs.setdefault(storage, set()).add("Datastore.Audit|Datastore.AllocateSpace")
    if new.template is not None:
        needs[f"/vms/{new.template}"] = {"VM.Clone"}
        if new.cloud_init is not None:
            # Its drive is added to the clone; in other new VMs it comes with the disks.
            needs[path] |= {"VM.Config.Cloudinit", "VM.Config.CDROM"}
    if "startup" in keys:
        needs["/"] = {"Sys.Modify"}
    if models and (model := re.match(r"custom-([^,]+)", new.cpu)):
        needs[f"/mapping/cpu/{model[1]}"] = {"Mapping.Use"}
    return needs


def of_new_container(ctid: int, config: Iterable[str], new: NewContainerSettings, pve: str) -> Needs:
    """The privileges for creating a container, and for deleting it.

    :param config: the options that it is created with.
    :param pve: the host's version of Proxmox VE.
    """
    needs: Needs = {
        f"/vms/{ctid}": {
            *("VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.Config.Disk", "VM.Config.Options"),
            *of_options(config, container=True),
        },
        f"/storage/{new.disk.storage}": {"Datastore.AllocateSpace"},
        f"/storage/{new.template.partition(':')[0]}": {"Datastore.Audit|Datastore.AllocateSpace"},
        f"/sdn/zones/localnetwork/{new.bridge}": {"SDN.Use"},
    }
    if not new.unprivileged and not pve.startswith("8."):  # pve-container 6.0.6
        needs["/"] = {"Sys.Modify"}
    return needs


def of_download(download: Download, node: str) -> Needs:
    """The privileges for downloading a file, and for removing it (PVE::API2::Storage::Status, Storage::Content; Nodes
    for templates).

    :param node: the host's name in Proxmox VE.
    """
    # The storage is searched for the file first. A download from any address takes Sys.AccessNetwork.
    privileges = {"Datastore.AllocateTemplate", "Datastore.Audit|Datastore.AllocateSpace"}
    if not download.keep:
        privileges.add("Datastore.Allocate")
    needs: Needs = {f"/storage/{download.storage}": privileges}
    if download.template is None:
        needs[f"/nodes/{node}"] = {"Sys.AccessNetwork"}
    return needs


def together(parts: Iterable[Needs]) -> Needs:
    """The privileges of all parts, by path."""
    needs: Needs = {}
    for part in parts:
        for path, privileges in part.items():
            needs.setdefault(path, set()).update(privileges)
    return needs


def missing(needs: Needs, has: Mapping[str, Iterable[str]]) -> Needs:
    """The needed privileges that are missing.

    :param has: path -> privileges.
    """
    lacking = {
        path: {choice for choice in privileges if not set(choice.split("|")) & set(has.get(path, ()))}
        for path, privileges in needs.items()
    }
    return {path: privileges for path, privileges in lacking.items() if privileges}


def least(privileges: Iterable[str], pve: str = "") -> str:
    """Of several privileges, each of which is enough, the one that allows least.

    :param pve: the host's version of Proxmox VE, which may not have all of them.
    """
    names = list(privileges)
    release = int(match[0]) if (match := re.match(r"\d+", pve)) else None
    if release is not None:
        names = [name for name in names if _exists(name, release)] or names
    return next((name for end in _LEAST for name in names if name.endswith(f".{end}")), names[0])


def _exists(privilege: str, release: int) -> bool:
    """Whether a release of Proxmox VE has a privilege. Those of the guest agent have replaced VM.Monitor in 9 (release
    notes)."""
    return release >= 9 if privilege.startswith("VM.GuestAgent.") else release < 9 or privilege != "VM.Monitor"


def described(needs: Needs) -> str:
    """Privileges for a message: `VM.Audit, VM.PowerMgmt on /vms/103`."""
    parts = (
        f"{', '.join(choice.replace('|', ' or ') for choice in sorted(privileges))} on {path}"
        for path, privileges in sorted(needs.items())
    )
    return "; ".join(parts)


# -- granted privileges ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AclEntry:
    """An entry of the access control list. `propagate`: whether it counts for paths below; `kind`: user, group or
    token; `subject`: the name of that user, group or token."""

    path: str
    propagate: bool
    kind: str
    subject: str
    role: str


@dataclass
class Permissions:
    """The privileges in /etc/pve/user.cfg. `roles`: name -> privileges; `separated`: token -> whether it has privilege
    separation; `groups`: name -> users."""

    roles: dict[str, set[str]] = field(default_factory=dict)
    entries: list[AclEntry] = field(default_factory=list)
    separated: dict[str, bool] = field(default_factory=dict)
    groups: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Permissions:
        """The privileges in the file's text. Its lines have fields between colons; the first field is the line's kind.
        Other kinds, such as pools, are passed over."""
        permissions = cls()
        for line in text.splitlines():
            kind, *fields = line.split(":")
            if kind == "role" and len(fields) > 1:
                permissions.roles[fields[0]] = {name for name in fields[1].split(",") if name}
            elif kind == "token" and len(fields) > 2:
                permissions.separated[fields[0]] = fields[2] == "1"
            elif kind == "group" and len(fields) > 1:
                permissions.groups[fields[0]] = {name for name in fields[1].split(",") if name}
            elif kind == "acl" and len(fields) > 3:
                permissions.entries += [
                    AclEntry(fields[1], fields[0] == "1", _kind(subject), subject.removeprefix("@"), role)
                    for subject in fields[2].split(",")
                    for role in fields[3].split(",")
                    if subject and role
                ]
        return permissions

    def subjects(self, identity: str) -> list[tuple[str, str]]:
        """Kind and name of the users and tokens whose entries decide for a user or token."""
        user, _, token = identity.partition("!")
        if token and self.separated.get(identity, True):
            return [("token", identity), ("user", user)]
        return [("user", user)]

    def counting(self, kind: str, subject: str, path: str) -> list[AclEntry]:
        """The entries that decide for a user or token on a path."""
        groups = {name for name, users in self.groups.items() if subject in users}
        deciding: list[AclEntry] = []
        for above in _paths_to(path):
            entries = [entry for entry in self.entries if entry.path == above and (entry.propagate or above == path)]
            own = [entry for entry in entries if (entry.kind, entry.subject) == (kind, subject)]
            of_groups = [entry for entry in entries if entry.kind == "group" and entry.subject in groups]
            deciding = own or of_groups or deciding
        return deciding

    def has(self, kind: str, subject: str, path: str) -> set[str] | None:
        """The privileges of a user or token on a path, by custom roles; None: by a built-in role, whose privileges
        /etc/pve/user.cfg doesn't have."""
        entries = self.counting(kind, subject, path)
        if any(entry.role not in self.roles for entry in entries):
            return None
        return {name for entry in entries for name in self.roles[entry.role]}


def _kind(subject: str) -> str:
    return "group" if subject.startswith("@") else "token" if "!" in subject else "user"


def _paths_to(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]


# -- commands ----------------------------------------------------------------------------------------------------------
def advice(access: Permissions | None, identity: str, lacking: Needs) -> str:
    """What to do next to grant missing privileges, and nothing else.

    :param access: of the host; None: it couldn't be read.
    :param identity: the user or token.
    :param lacking: the missing privileges.
    """
    lacking = {path: {least(choice.split("|")) for choice in privileges} for path, privileges in lacking.items()}
    grants = commands(access, identity, lacking) if access else []
    if grants:
        return f"on the host: {' && '.join(f'`{command}`' for command in grants)}; then run `pulumi up` again"
    names = " ".join(sorted({name for privileges in lacking.values() for name in privileges}))
    return (
        f"on the host, add it to the role that {identity} has there (`pveum acl list` shows which; not one on a "
        "deeper path, which "
        f'would replace what it has): `pveum role modify ROLE --append 1 --privs "{names}"`; then run `pulumi up` again'
    )


def commands(
    access: Permissions,
    identity: str,
    lacking: Needs,
    *,
    kept: Collection[str] = (),
    shared: Collection[str] = (),
    own: Collection[str] = (),
) -> list[str]:
    """The commands that grant missing privileges, to be run in their order.

    :param identity: the user or token.
    :param lacking: the missing privileges.
    :param kept: roles that are not to be extended.
    :param shared: roles that homelab has made: one with exactly the missing privileges is used, instead of a new one.
    :param own: roles that were made for this identity: one that has the missing privileges is used.
    """
    roles: dict[str, set[str]] = {}
    acl_commands: list[str] = []
    taken = set(access.roles)
    for kind, subject in access.subjects(identity):
        for path, privileges in sorted(lacking.items()):
            has = access.has(kind, subject, path)
            wanted = privileges if has is None else privileges - has
            if not wanted:
                continue
            entries = access.counting(kind, subject, path)
            denied = next((entry for entry in entries if entry.role == "NoAccess"), None)
            if denied:
                acl_commands.append(
                    f"pveum acl delete {denied.path} --{denied.kind}s {_quoted(denied.subject)} --roles NoAccess"
                )
                continue
            extendable = next(
                (entry for entry in entries if entry.role in access.roles and entry.role not in kept), None
            )
            if extendable is not None:
                roles.setdefault(extendable.role, set()).update(wanted)
                continue
            # A role that can't be extended gets a second one beside it, on the same path for the same subject.
            beside = entries[0] if entries else AclEntry(_path_for_first_entry(path), True, kind, subject, "")
            role = next(name for name in (ROLE, *(f"{ROLE}{number}" for number in range(2, 99))) if name not in taken)
            roles.setdefault(role, set()).update(wanted)
            # The role has the rights to all other paths, too.
            alone = " --propagate 0" if beside.path == "/" and not entries else ""
            command = f"pveum acl modify {beside.path}{alone} --{beside.kind}s {_quoted(beside.subject)} --roles {role}"
            acl_commands += [command] if command not in acl_commands else []
    role_commands = []
    for role, names in roles.items():
        usable = [name for name in own if names <= access.roles.get(name, set())]
        usable += [name for name in shared if access.roles.get(name) == names]
        if usable and role not in taken:
            acl_commands = [command.replace(f" --roles {role}", f" --roles {usable[0]}") for command in acl_commands]
            continue
        privileges_text = " ".join(sorted(names))
        verb = f"modify {role} --append 1" if role in taken else f"add {role}"
        role_commands.append(f'pveum role {verb} --privs "{privileges_text}"')
    return role_commands + acl_commands


def _quoted(subject: str) -> str:
    """A user's name, which may have a quote in it, as a word of a shell."""
    return "'" + subject.replace("'", "'\\''") + "'"


def _path_for_first_entry(path: str) -> str:
    """The path for a user's first entry: that of all guests, mappings or networks; of a storage its own."""
    for above in ("/vms", "/mapping/pci", "/sdn/zones"):
        if path == above or path.startswith(f"{above}/"):
            return above
    return path
