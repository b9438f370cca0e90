"""Rights in Proxmox VE: which ones the settings need, which are missing, and the commands that give them without taking
others away.

The rules of /etc/pve/user.cfg (PVE::AccessControl::roles): of the entries on a path and on those above it, the deepest
that has any for the user counts, and what stands above it is forgotten. So an entry on a deeper path takes away what
was granted further up, and the safe way to one more privilege is to add it to the role that counts already. A token
without privilege separation has its user's rights, and entries of its own are without effect; one with it has what both
it and its user have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homelab.vm.creation import configuration

if TYPE_CHECKING:
    from homelab.settings import Download, Host, NewContainerSettings, NewVm, Vm

# The name that docs/day-two.md gives its role; another one where that is not the role to change.
ROLE = "Homelab"

# A path -> privileges. Where one of several would do: `A|B`.
Needs = dict[str, set[str]]

# Of several privileges that would do, the one that allows least comes first.
_LEAST = ("Audit", "Use", "AllocateSpace")

# A VM's option -> the privilege that setting it takes (PVE::API2::Qemu; a node's recorded answers for each).
_OF_VM = {
    "VM.Config.CPU": "cores cpu cpulimit cpuunits numa smp sockets vcpus affinity",
    "VM.Config.Memory": "memory balloon shares",
    "VM.Config.HWType": "acpi hotplug kvm machine scsihw smbios1 tablet vga watchdog audio rng serial hostpci usb",
    "VM.Config.Options": "agent autostart bios description keyboard localtime migrate_downtime migrate_speed name "
    "onboot ostype "
    "protection reboot startdate startup tdf template tags",
    "VM.Config.Disk": "boot bootdisk vmstatestorage ide sata scsi virtio efidisk tpmstate",
    "VM.Config.Network": "net",
    # Either of VM.Config.Cloudinit and VM.Config.Network.
    "VM.Config.Network|VM.Config.Cloudinit": "ipconfig cicustom cipassword citype ciupgrade ciuser nameserver "
    "searchdomain sshkeys",
}
_OF_CONTAINER = {
    "VM.Config.CPU": "cores cpulimit cpuunits",
    "VM.Config.Memory": "memory swap",
    "VM.Config.Network": "net hostname nameserver searchdomain",
    "VM.Config.Disk": "rootfs mp",
    "VM.Config.Options": "onboot description features tags startup unprivileged",
}


# -- what is needed --------------------------------------------------------------------------------------------------
def of_options(keys: Iterable[str], *, container: bool = False) -> set[str]:
    """What setting, or taking away, these options of a guest's configuration takes on /vms/ID."""
    table = _OF_CONTAINER if container else _OF_VM
    known = {option: privilege for privilege, options in table.items() for option in options.split()}
    found = (known.get(key) or known.get(key.rstrip("0123456789")) for key in keys)
    return {privilege for privilege in found if privilege}


def of_mapping(mapping: str, *, write: bool, make: bool) -> Needs:
    """What a card's mapping takes.

    :param write: its entry is changed.
    :param make: there is no such mapping yet.
    """
    path = "/mapping/pci" if make else f"/mapping/pci/{mapping}"
    return {path: {"Mapping.Modify"} if write else {"Mapping.Use|Mapping.Modify|Mapping.Audit"}}


def of_vm(vm: Vm, host: Host, keys: Iterable[str], *, power: bool = True) -> Needs:
    """What a VM takes that is there.

    :param keys: the options that are to be changed.
    :param power: is it shut down or started?
    """
    path = f"/vms/{vm.vmid}"
    needs: Needs = {path: {"VM.Audit", *of_options(keys), *({"VM.PowerMgmt"} if power else ())}}
    for use in vm.gpus:
        if not use.by_address:
            needs.setdefault(f"/mapping/pci/{host.mapping_of(use.gpu)}", set()).add("Mapping.Use")
    if vm.address == "agent":
        needs[path].add("VM.GuestAgent.Audit|VM.Monitor")
    return needs


def of_new_vm(name: str, vmid: int, new: NewVm) -> Needs:
    """What making a VM, and removing it, takes."""
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
            # A drive that is added to a VM that is there; in one that is made, it goes along with its disks.
            needs[path] |= {"VM.Config.Cloudinit", "VM.Config.CDROM"}
    return needs


def of_new_container(ctid: int, config: Iterable[str], new: NewContainerSettings) -> Needs:
    """What making a container, and removing it, takes.

    :param config: the options that it is made with.
    """
    return {
        f"/vms/{ctid}": {
            *("VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.Config.Disk", "VM.Config.Options"),
            *of_options(config, container=True),
        },
        f"/storage/{new.disk.storage}": {"Datastore.AllocateSpace"},
        f"/storage/{new.template.partition(':')[0]}": {"Datastore.Audit|Datastore.AllocateSpace"},
        f"/sdn/zones/localnetwork/{new.bridge}": {"SDN.Use"},
    }


def of_download(download: Download, node: str) -> Needs:
    """What downloading a file takes, and removing it (PVE::API2::Storage::Status, Storage::Content; Nodes for
    templates)."""
    # It is looked for first; and whoever may download may look around in the host's network.
    privileges = {"Datastore.AllocateTemplate", "Datastore.Audit|Datastore.AllocateSpace"}
    if not download.keep:
        privileges.add("Datastore.Allocate")
    needs: Needs = {f"/storage/{download.storage}": privileges}
    if download.template is None:
        needs[f"/nodes/{node}"] = {"Sys.AccessNetwork"}
    return needs


def together(parts: Iterable[Needs]) -> Needs:
    """All of them."""
    found: Needs = {}
    for part in parts:
        for path, privileges in part.items():
            found.setdefault(path, set()).update(privileges)
    return found


def missing(needs: Needs, has: Mapping[str, Iterable[str]]) -> Needs:
    """Of what is needed, what isn't there.

    :param has: path -> privileges.
    """
    found = {
        path: {one for one in privileges if not set(one.split("|")) & set(has.get(path, ()))}
        for path, privileges in needs.items()
    }
    return {path: privileges for path, privileges in found.items() if privileges}


def least(privileges: Iterable[str], pve: str = "") -> str:
    """Of several that would do, the one that allows least.

    :param pve: the host's version of Proxmox VE, which may not have all of them.
    """
    names = list(privileges)
    release = int(found[0]) if (found := re.match(r"\d+", pve)) else None
    if release is not None:
        names = [name for name in names if _exists(name, release)] or names
    return next((name for end in _LEAST for name in names if name.endswith(f".{end}")), names[0])


def _exists(privilege: str, release: int) -> bool:
    """Does a release of Proxmox VE have the privilege? The guest agent's took the place of VM.Monitor in 9 (release
    notes)."""
    return release >= 9 if privilege.startswith("VM.GuestAgent.") else release < 9 or privilege != "VM.Monitor"


def described(needs: Needs) -> str:
    """For a person: `VM.Audit and VM.PowerMgmt on /vms/103`."""
    parts = (
        f"{', '.join(one.replace('|', ' or ') for one in sorted(privileges))} on {path}"
        for path, privileges in sorted(needs.items())
    )
    return "; ".join(parts)


# -- who has what ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AclEntry:
    """An access control list's entry. `kind`: user, group or token."""

    path: str
    propagate: bool
    kind: str
    who: str
    role: str


@dataclass
class Permissions:
    """/etc/pve/user.cfg, as far as rights go. `separated`: tokens with privilege separation; `groups`: name ->
    users."""

    roles: dict[str, set[str]] = field(default_factory=dict)
    entries: list[AclEntry] = field(default_factory=list)
    separated: dict[str, bool] = field(default_factory=dict)
    groups: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Permissions:
        """Lines of fields between colons, the first of which says what it is. Others, such as pools, are passed
        over."""
        made = cls()
        for line in text.splitlines():
            kind, *fields = line.split(":")
            if kind == "role" and len(fields) > 1:
                made.roles[fields[0]] = {name for name in fields[1].split(",") if name}
            elif kind == "token" and len(fields) > 2:
                made.separated[fields[0]] = fields[2] == "1"
            elif kind == "group" and len(fields) > 1:
                made.groups[fields[0]] = {name for name in fields[1].split(",") if name}
            elif kind == "acl" and len(fields) > 3:
                made.entries += [
                    AclEntry(fields[1], fields[0] == "1", _kind(who), who.removeprefix("@"), role)
                    for who in fields[2].split(",")
                    for role in fields[3].split(",")
                    if who and role
                ]
        return made

    def subjects(self, identity: str) -> list[tuple[str, str]]:
        """Whose entries count for a user or token: kind and name."""
        user, _, token = identity.partition("!")
        if token and self.separated.get(identity, True):
            return [("token", identity), ("user", user)]
        return [("user", user)]

    def counting(self, kind: str, who: str, path: str) -> list[AclEntry]:
        """The entries that decide what a user or token may do on a path; none where there are none."""
        groups = {name for name, users in self.groups.items() if kind == "user" and who in users}
        found: list[AclEntry] = []
        for above in _paths_to(path):
            here = [e for e in self.entries if e.path == above and (e.propagate or above == path)]
            own = [e for e in here if (e.kind, e.who) == (kind, who)]
            found = own or [e for e in here if e.kind == "group" and e.who in groups] or found
        return found

    def has(self, kind: str, who: str, path: str) -> set[str] | None:
        """What a user or token may do on a path by roles that people made; None: by a built-in role, whose privileges
        /etc/pve/user.cfg doesn't have."""
        entries = self.counting(kind, who, path)
        if any(entry.role not in self.roles for entry in entries):
            return None
        return {name for entry in entries for name in self.roles[entry.role]}


def _kind(who: str) -> str:
    return "group" if who.startswith("@") else "token" if "!" in who else "user"


def _paths_to(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]


# -- what to do --------------------------------------------------------------------------------------------------------
def advice(access: Permissions | None, identity: str, lacking: Needs) -> str:
    """What to do so that nothing of `lacking` is missing, and nothing else changes.

    :param access: None: it couldn't be read.
    """
    lacking = {path: {least(one.split("|")) for one in privileges} for path, privileges in lacking.items()}
    found = commands(access, identity, lacking) if access else []
    if found:
        return f"on the host: {' && '.join(f'`{command}`' for command in found)}; then run `pulumi up` again"
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
    """The commands, to be run in their order.

    :param kept: roles that are not to be extended.
    :param shared: roles of this program's making: one that has exactly these privileges is taken, instead of another
        one like it.
    :param own: roles that were made for this identity: they are taken for what they allow, wherever it lacks.
    """
    roles: dict[str, set[str]] = {}
    lists: list[str] = []
    taken = set(access.roles)
    for kind, who in access.subjects(identity):
        for path, privileges in sorted(lacking.items()):
            has = access.has(kind, who, path)
            wanted = privileges if has is None else privileges - has
            if not wanted:
                continue
            entries = access.counting(kind, who, path)
            denied = next((entry for entry in entries if entry.role == "NoAccess"), None)
            if denied:
                lists.append(f"pveum acl delete {denied.path} --{denied.kind}s {_quoted(denied.who)} --roles NoAccess")
                continue
            ours = next((entry for entry in entries if entry.role in access.roles and entry.role not in kept), None)
            if ours is not None:
                roles.setdefault(ours.role, set()).update(wanted)
                continue
            # Beside a role that can't be changed, on the same path for the same subject: both count there.
            beside = entries[0] if entries else AclEntry(_natural(path), True, kind, who, "")
            role = next(name for name in (ROLE, *(f"{ROLE}{number}" for number in range(2, 99))) if name not in taken)
            roles.setdefault(role, set()).update(wanted)
            command = f"pveum acl modify {beside.path} --{beside.kind}s {_quoted(beside.who)} --roles {role}"
            lists += [command] if command not in lists else []
    made = []
    for role, names in roles.items():
        like = [name for name in own if names <= access.roles.get(name, set())]
        like += [name for name in shared if access.roles.get(name) == names]
        if like and role not in taken:
            lists = [command.replace(f" --roles {role}", f" --roles {like[0]}") for command in lists]
            continue
        privileges_text = " ".join(sorted(names))
        verb = f"modify {role} --append 1" if role in taken else f"add {role}"
        made.append(f'pveum role {verb} --privs "{privileges_text}"')
    return made + lists


def _quoted(who: str) -> str:
    """For a shell: the name of a user may have a quote in it."""
    return "'" + who.replace("'", "'\\''") + "'"


def _natural(path: str) -> str:
    """Where a user without any entry is best given one: for all guests, mappings or networks, but for a single
    storage."""
    for above in ("/vms", "/mapping/pci", "/sdn/zones"):
        if path == above or path.startswith(f"{above}/"):
            return above
    return path
