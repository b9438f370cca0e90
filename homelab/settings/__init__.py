"""The stack's configuration as types: every mistake in it is named before anything runs.

Pulumi hands over what `Pulumi.<stack>.yaml` holds under `homelab:`; `load` turns it into `Settings` or says, for each mistake,
where it is, what was expected, what was found, and what was probably meant.
"""

from __future__ import annotations

import base64
import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

# Without this, pydantic looks through every installed package for plugins, at each start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from pydantic import (  # noqa: E402
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from homelab.errors import HomelabError, raise_all  # noqa: E402
from homelab.model import Model  # noqa: E402
from homelab.settings.nvidia import Nvidia  # noqa: E402
from homelab.settings.types import (
    Bridge,
    Cores,
    CpuModel,
    DiskGiB,
    GuestId,
    GuestUser,
    HostName,
    Ipv4,
    Ipv4Interface,
    LocalPath,
    MemoryMiB,
    NameServers,
    NetworkAddress,
    OptionName,
    OptionValue,
    Plain,
    Port,
    PrivateKey,
    Seconds,
    Secret,
    Storage,
    Template,
    UnixUser,
    Volume,
    matching,
    plain,
)

PROJECT = Path(__file__).resolve().parents[2]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
# A domain has more than four digits behind Intel's Volume Management Device.
_PCI_PLACE = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f](?:\.[0-7])?)")
_PCI_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[^\s:/!@,]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+")
_USER = re.compile(r"[^\s:/!@,]+@[A-Za-z][A-Za-z0-9._-]+")
# pve-configid, what Proxmox VE takes as a mapping's id.
_CONFIG_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_HOST_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+=*)(?: .*)?")
# The bytes of each part of a key after its type (RFC 4253, 5656 and 8709); None: any number, of a number.
_KEY_PARTS: dict[str, tuple[int | None, ...]] = {
    "ssh-ed25519": (32,),
    "ssh-rsa": (None, None),
    "ecdsa-sha2-nistp256": (8, 65),
    "ecdsa-sha2-nistp384": (8, 97),
    "ecdsa-sha2-nistp521": (8, 133),
}


def _is_public_key(value: str) -> bool:
    """``type base64 [comment]``, whole: with the type once more inside, all the parts that it has, and nothing after them."""
    match = _HOST_KEY.fullmatch(value.strip())
    if match is None:
        return False
    try:
        rest = base64.b64decode(match[2], validate=True)
    except ValueError:
        return False
    parts = []
    while rest:
        length = int.from_bytes(rest[:4])
        parts.append(rest[4 : 4 + length])
        if len(rest) < 4 + length or length == 0:
            return False
        rest = rest[4 + length :]
    lengths = _KEY_PARTS[match[1]]
    return (
        parts[:1] == [match[1].encode()]
        and [len(part) if length is not None else None for part, length in zip(parts[1:], lengths, strict=False)]
        == list(lengths)
        and len(parts) == 1 + len(lengths)
    )


def _public_key(value: str) -> str:
    plain(value.strip())
    if not _is_public_key(value):
        raise ValueError(
            "expected a public key such as `ssh-ed25519 AAAA…`, all of it (see `ssh-keyscan -t ed25519 ADDRESS`)"
        )
    return value.strip()


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _place(value: str) -> str:
    match = _PCI_PLACE.fullmatch(value.lower())
    if match is None:
        raise ValueError("expected a PCI address such as 0000:01:00 or 01:00.0 (see `lspci -D`)")
    # Function 0 is the slot's card itself; another one is what it says, such as a virtual function.
    return f"{match[1] or '0000'}:{match[2].removesuffix('.0')}"


def _function(value: str) -> str:
    if not _PCI_FUNCTION.fullmatch(value.lower()):
        raise ValueError("expected a PCI function's address such as 0000:02:00.0 (see `lspci -D`)")
    return value.lower()


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("expected a name of letters, digits and hyphens that begins with a letter, 40 at most")
    return value


Name = Annotated[str, AfterValidator(_name)]
Place = Annotated[str, AfterValidator(_place)]
Function = Annotated[str, AfterValidator(_function)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
# pve-node (Proxmox VE, PVE::JSONSchema).
NodeName = Annotated[
    str,
    AfterValidator(
        matching(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "a node's name, as `hostname` prints it on the host")
    ),
]


class Ssh(Model):
    """How a host is reached: exactly one of ``privateKeyFile``, ``privateKey``, ``password`` and ``agent``; its host key, pinned."""

    user: UnixUser = "root"
    port: Port = 22
    host_key: PublicKey | None = None
    host_key_file: LocalPath | None = None
    private_key_file: LocalPath | None = None
    private_key: PrivateKey | None = None
    password: Secret | None = None
    agent: bool = False

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        ways = [self.private_key_file, self.private_key, self.password, self.agent or None]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected exactly one of privateKeyFile, privateKey, password, agent")
        if (self.host_key is None) == (self.host_key_file is None):
            raise ValueError(
                "expected hostKey (the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address) or hostKeyFile: "
                "without it, whoever answers at the address would be given root's commands"
            )
        return self

    @property
    def pinned_host_key(self) -> str:
        """The host's public key, as ``type base64``.

        :raises HomelabError: hostKeyFile can't be read.
        """
        if self.host_key is not None:
            return " ".join(self.host_key.split()[:2])
        path = _path(self.host_key_file or "")
        try:
            return " ".join(_public_key(path.read_text(encoding="utf-8")).split()[:2])
        except (OSError, ValueError) as error:  # what isn't text is a ValueError, too
            raise HomelabError(
                f"the host's public key in {path}",
                str(error),
                "without it nobody can tell whether the right host answers",
                "save it there (the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address), or set hostKey",
            ) from error

    @property
    def key(self) -> str | None:
        """The private key's text; None where a password or an agent is used.

        :raises HomelabError: privateKeyFile can't be read.
        """
        if self.private_key is not None:
            return self.private_key.get_secret_value()
        if self.private_key_file is None:
            return None
        path = _path(self.private_key_file)
        try:
            return path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise HomelabError(
                f"an SSH private key in {path} (privateKeyFile)",
                f"{type(error).__name__}: {error}",
                "nothing on the host can be read or changed without it",
                "correct privateKeyFile, or make a key with `ssh-keygen -t ed25519` and `ssh-copy-id` it to the host",
            ) from error


def _path(text: str) -> Path:
    """Relative paths count from the project's folder, wherever `pulumi` is called."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else PROJECT / path


class Api(Model):
    """How the Proxmox VE API is reached: by ``token`` and ``tokenSecret``, or by ``user`` and ``password`` (raw devices, ROM files:
    root@pam alone). Its certificate is checked by exactly one of ``caFile`` (a copy of the host's /etc/pve/pve-root-ca.pem),
    ``fingerprint`` (SHA-256, of pve-ssl.pem) and ``publicCa`` (a certificate that this machine trusts anyway).
    """

    port: Port = 8006
    token: Plain | None = None
    token_secret: Secret | None = None
    user: Plain | None = None
    password: Secret | None = None
    ca_file: LocalPath | None = None
    fingerprint: Plain | None = None
    public_ca: bool = False

    @field_validator("token")
    @classmethod
    def _token_id(cls, value: str | None) -> str | None:
        if value is not None and not _TOKEN.fullmatch(value):
            raise ValueError("expected a token's id such as homelab@pve!pulumi")
        return value

    @field_validator("user")
    @classmethod
    def _with_realm(cls, value: str | None) -> str | None:
        if value is not None and not _USER.fullmatch(value):
            raise ValueError("expected a user with its realm, such as root@pam")
        return value

    @field_validator("fingerprint")
    @classmethod
    def _sha256(cls, value: str | None) -> str | None:
        plain = value and value.replace(":", "").lower()
        if plain is not None and not _FINGERPRINT.fullmatch(plain):
            raise ValueError(
                "expected a SHA-256 fingerprint, 64 hexadecimal digits (`openssl x509 -in /etc/pve/local/pve-ssl.pem -noout -fingerprint -sha256`)"
            )
        return plain

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        by_token = (self.token is not None, self.token_secret is not None)
        by_user = (self.user is not None, self.password is not None)
        if (by_token, by_user) not in (((True, True), (False, False)), ((False, False), (True, True))):
            raise ValueError("expected token and tokenSecret, or user and password")
        if sum((self.ca_file is not None, self.fingerprint is not None, self.public_ca)) != 1:
            raise ValueError(
                "expected exactly one of caFile, fingerprint, publicCa: without it, whoever answers at the address would be given "
                "the credentials"
            )
        return self

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam itself, who alone may use a device by its address; a token of root@pam is not."""
        return self.user == "root@pam"

    @property
    def ca_path(self) -> Path | None:
        """The file with the authority to trust.

        :raises HomelabError: it isn't there.
        """
        if self.ca_file is None:
            return None
        path = _path(self.ca_file)
        if not path.is_file():
            raise HomelabError(
                f"the certificate authority of the host in {path} (api.caFile)",
                "no such file",
                "without it nobody can tell whether the right host answers",
                "copy the host's /etc/pve/pve-root-ca.pem there, or set api.fingerprint",
            )
        return path


class Iommu(Model):
    """``enable``: put amd_iommu=on or intel_iommu=on on the command line; ``passthrough``: iommu=pt (host devices bypass it).

    None: where a VM gets a card, see `Host.wants_iommu`.
    """

    enable: bool | None = None
    passthrough: bool | None = None


class Gpu(Model):
    """A card, by what it is (``match``), where it is (``address``: its slot, or its graphics function), or both; and who gets it (``use``).

    ``allow…`` opens one gate each: group members that may go along, the firmware's console, containers that lose the card.
    ``mapping``: the id of its PCI mapping, by default the card's name. ``passthroughTest``: prove it with a small VM.
    """

    match: Plain | None = None
    address: Place | None = None
    use: Literal["vm", "lxc", "host"] = "vm"
    allow_group_members: list[Function] = []
    allow_console: bool = False
    allow_containers: list[GuestId] = []
    mapping: Plain | None = None
    passthrough_test: bool = False

    @field_validator("mapping")
    @classmethod
    def _mapping_id(cls, value: str | None) -> str | None:
        if value is not None and not _CONFIG_ID.fullmatch(value):
            raise ValueError("expected a mapping's id: a letter, then letters, digits, hyphens, underscores")
        return value

    @field_validator("match", mode="before")
    @classmethod
    def _id(cls, value: Any) -> Any:
        value = _lower(value)
        if isinstance(value, str) and not _PCI_ID.fullmatch(value):
            raise ValueError("expected vendor:device in hexadecimal, such as 10de:2b85 (see `lspci -nn`)")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.match is None and self.address is None:
            raise ValueError("expected `match` (vendor:device, such as 10de:2b85) or `address` (such as 0000:01:00)")
        return self


# Seconds from a host's start until it can have been reached and its boot confirmed.
SHORTEST_ROLLBACK = 30


class Timeouts(Model):
    """Seconds. ``connect``: for a connection; ``api``: until the API answers; ``api_task``: for a task of Proxmox VE, besides what it
    waits for; ``create``: for making or removing a guest, whose disk may have to be copied over a network or overwritten; ``reboot``: until a rebooting host
    answers again; ``rollback``: after its start, until an unconfirmed boot is undone; ``script``: for one script on the host, the wait
    for another run's included; ``task``: for one change over the API, or for one reading, beside what it has to wait for.
    """

    connect: Seconds = 15
    api: Seconds = 60
    api_task: Seconds = 300
    create: Seconds = 7200
    reboot: Seconds = 600
    rollback: Seconds = 600
    script: Seconds = 3600
    task: Seconds = 10_800

    @field_validator("rollback")
    @classmethod
    def _long_enough(cls, value: int) -> int:
        if value < SHORTEST_ROLLBACK:
            raise ValueError(
                f"expected {SHORTEST_ROLLBACK} seconds at least: a healthy host needs them to start its services and be asked how it "
                "is; a shorter time undoes every boot"
            )
        return value

    @property
    def boot(self) -> int:
        """For how long a host that was told to reboot is waited for: its reboot; then the switch's time, and the reboot that it makes."""
        return self.reboot + self.rollback + self.reboot


class Host(Model):
    """One Proxmox VE node. ``takeOver``: bind with this program's means what somebody else's configuration binds already.

    ``node``: its name in Proxmox VE, by default the name it has here. ``api`` is needed where cards go to VMs. ``nvidia``: NVIDIA's
    driver on the node itself, for the cards that stay with it.
    """

    address: NetworkAddress
    ssh: Ssh
    api: Api | None = None
    node: NodeName | None = None
    iommu: Iommu = Iommu()
    gpus: dict[Name, Gpu] = {}
    take_over: bool = False
    reboot: Literal["auto", "manual"] = "auto"
    nvidia: Nvidia | None = None
    timeouts: Timeouts = Timeouts()

    @property
    def gives_cards(self) -> bool:
        """Does a VM get a card?"""
        return any(gpu.use == "vm" for gpu in self.gpus.values())

    @property
    def wants_iommu(self) -> bool:
        """Is the IOMMU to be switched on? Where no VM gets a card, only if the settings ask for it."""
        return self.gives_cards if self.iommu.enable is None else self.iommu.enable

    @property
    def bypasses_iommu(self) -> bool:
        """Are the host's own devices to bypass it (iommu=pt)?"""
        default = self.gives_cards or self.wants_iommu
        return default if self.iommu.passthrough is None else self.iommu.passthrough

    def mapping_of(self, gpu: str) -> str:
        """The id of a card's PCI mapping."""
        return self.gpus[gpu].mapping or gpu

    @model_validator(mode="after")
    def _distinct_mappings(self) -> Self:
        passed = [name for name, gpu in self.gpus.items() if gpu.use == "vm"] if self.api else []
        ids = [self.mapping_of(name) for name in passed]
        for name in passed:
            if not _CONFIG_ID.fullmatch(self.mapping_of(name)):
                raise ValueError(f"gpus.{name}: Proxmox VE takes no mapping id of one letter: set `mapping`")
            if ids.count(self.mapping_of(name)) > 1:
                raise ValueError(f"gpus.{name}: another card of this host has the mapping {self.mapping_of(name)}, too")
        return self

    @model_validator(mode="after")
    def _distinct_gpus(self) -> Self:
        for name, gpu in self.gpus.items():
            for other_name, other in self.gpus.items():
                if other_name > name and gpu.address == other.address and gpu.match == other.match:
                    raise ValueError(
                        f"gpus.{name} and gpus.{other_name} are the same card ({gpu.address or gpu.match})"
                    )
                if other_name > name and gpu.address is not None and gpu.address == other.address:
                    raise ValueError(f"gpus.{name} and gpus.{other_name} are the same card ({gpu.address})")
        return self


class VmGpu(Model):
    """A card in a VM, as one hostpci option; just a name in the settings where nothing else is said.

    ``byAddress``: the raw form, without a mapping. It and ``romfile`` (a file in the host's /usr/share/kvm) take root@pam.
    """

    gpu: Name
    x_vga: bool = False
    rombar: bool = True
    pcie: bool = True
    romfile: Plain | None = None
    by_address: bool = False

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"gpu": value} if isinstance(value, str) else value

    @field_validator("romfile")
    @classmethod
    def _file_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("expected the name of a file in the host's /usr/share/kvm")
        return value


class Shutdown(Model):
    """How a guest is shut down for a change that needs it off: ``timeout`` in seconds, then ``fail`` or ``stop`` (as by its power switch)."""

    timeout: Seconds = 180
    otherwise: Literal["fail", "stop"] = "fail"


class CloudInit(Model):
    """What cloud-init makes of an image: a user with SSH keys; ``ip``: `dhcp` or an address with its prefix (192.168.0.50/24)."""

    user: GuestUser | None = None
    ssh_keys: list[PublicKey] = []
    password: Secret | None = None
    ip: Ipv4Interface = "dhcp"
    gateway: Ipv4 | None = None
    nameserver: NameServers | None = None


class Disk(Model):
    """The system disk: on which ``storage``, of how many GiB."""

    storage: Storage
    size: DiskGiB


# Keys of a VM's configuration that have a setting of their own: pattern -> the setting.
_OPTIONS_WITH_A_SETTING = {
    "name": "create.name",
    "cores|sockets|vcpus": "create.cores",
    "memory": "create.memory",
    "cpu": "create.cpu",
    "machine": "create.machine",
    "bios|efidisk0": "create.bios and secureBoot",
    "ostype": "create.osType",
    "agent": "create.agent",
    "onboot": "create.onboot",
    "scsi0": "create.disk",
    "tpmstate0": "create.tpm",
    "protection": "create.protect",
    "ci[a-z]+|sshkeys|ipconfig0|nameserver": "create.cloudInit",
    "hostpci[0-9]+": "gpus",
}
# Keys that this program or Proxmox VE writes for itself, and parameters of the API that are no option of a VM.
_OPTIONS_OF_NOBODY = {
    "description": "it has the mark by which this program knows its VM again",
    "balloon": "a card pins all of a VM's memory",
    "lock|digest|meta|vmgenid|parent|snaptime|vmstate|running[a-z-]*|unused[0-9]+|template": "Proxmox VE writes it itself",
    "vmid|node|newid|archive|storage|pool|start|force|unique|delete|revert|skiplock|skip_lock|autostart|full|target|format|snapname"
    "|background_delay|bwlimit|live-restore|ha-managed|import-working-storage": "it is no key of a VM's configuration",
}


def _owner_of_option(key: str, new: NewVm) -> str | None:
    """Why an option can't be set under ``options``; None: it can."""
    for pattern, setting in _OPTIONS_WITH_A_SETTING.items():
        if re.fullmatch(pattern, key):
            return f"it has a setting of its own, {setting}"
    for pattern, why in _OPTIONS_OF_NOBODY.items():
        if re.fullmatch(pattern, key):
            return f"{why}; take it out"
    if key in [f"sata{number}" for number in range(len(new.isos))]:
        return "create.isos are there"
    return "create.cloudInit has its drive there" if key == "ide2" and new.cloud_init is not None else None


class NewVm(Model):
    """A VM that is created: from a cloud ``image`` (a volume such as local:import/noble.qcow2), as a full clone of a ``template``
    (its VM id), or with an empty disk and ``isos``. Memory in MiB. ``options``: further keys of its configuration, as `qm set`
    takes them. A ``protect``ed VM is never deleted.
    """

    name: HostName | None = None
    cores: Cores = 4
    memory: Annotated[MemoryMiB, Field(ge=64)] = 8192
    disk: Disk
    image: Volume | None = None
    template: GuestId | None = None
    # sata0 to sata5, and no more.
    isos: Annotated[list[Volume], Field(max_length=6)] = []
    bridge: Bridge = "vmbr0"
    machine: Literal["q35", "pc"] = "q35"
    bios: Literal["ovmf", "seabios"] = "ovmf"
    secure_boot: bool = False
    tpm: bool = False
    cpu: CpuModel = "host"
    os_type: Literal["l26", "win11", "win10", "other"] = "l26"
    agent: bool = True
    onboot: bool = False
    cloud_init: CloudInit | None = None
    options: dict[OptionName, OptionValue] = {}
    protect: bool = False

    @model_validator(mode="after")
    def _options_of_others(self) -> Self:
        for key in self.options:
            if owner := _owner_of_option(key, self):
                raise ValueError(f"options.{key}: {owner}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.image is not None, self.template is not None, bool(self.isos))) > 1:
            raise ValueError("expected one of image, template and isos")
        if self.secure_boot and self.bios != "ovmf":
            raise ValueError("secureBoot takes bios: ovmf")
        return self


class Vm(Model):
    """A VM that gets cards: adopted by its ``vmid`` as it is, or made from ``create``.

    ``power``: keep (as it is found; the default for an adopted VM), running (the default for a created one), stopped. ``machine``:
    change it to that. ``display: none``: no emulated screen beside the card. ``address``: where the guest is reached, or `agent` to
    ask its guest agent. ``allowSharedOnboot``: it and another VM with the card may both start with the host. ``nvidia``: NVIDIA's
    stack in the guest, which is reached by ``ssh``.
    """

    host: Name
    vmid: GuestId
    gpus: list[VmGpu] = []
    power: Literal["keep", "running", "stopped"] | None = None
    shutdown: Shutdown = Shutdown()
    machine: Literal["q35"] | None = None
    display: Literal["keep", "none"] = "keep"
    address: NetworkAddress | None = None
    ssh: Ssh | None = None
    nvidia: Nvidia | None = None
    allow_shared_onboot: bool = False
    create: NewVm | None = None

    @property
    def wanted_power(self) -> str:
        return self.power or ("keep" if self.create is None else "running")

    @property
    def static_address(self) -> str | None:
        """Where the guest is reached, as far as the settings say it; `agent`: its guest agent does."""
        ip = self.create.cloud_init.ip if self.create and self.create.cloud_init else "dhcp"
        return self.address or (None if ip == "dhcp" else ip.partition("/")[0])

    @model_validator(mode="after")
    def _stack(self) -> Self:
        if self.nvidia is None:
            return self
        if self.ssh is None:
            raise ValueError("ssh is missing: nvidia is installed in the guest, as root or with sudo")
        if self.static_address is None:
            raise ValueError("address is missing: where ssh reaches the guest, or `agent` to ask its guest agent")
        if not self.gpus:
            raise ValueError("nvidia without gpus: a driver without a card can be neither loaded nor verified")
        if self.power == "stopped":
            raise ValueError("nvidia needs a VM that runs, and power is stopped")
        return self

    @model_validator(mode="after")
    def _options(self) -> Self:
        names = [gpu.gpu for gpu in self.gpus]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"gpus: {twice} is there twice")
        if sum(gpu.x_vga for gpu in self.gpus) > 1:
            raise ValueError("gpus: one card at most can be the VM's screen (xVga)")
        if self.create is not None and self.machine is not None:
            raise ValueError("machine changes an adopted VM; for a new one it is create.machine")
        if self.create is not None and self.create.machine == "pc" and any(gpu.pcie for gpu in self.gpus):
            raise ValueError("create.machine: a card with pcie needs q35")
        return self


class Features(Model):
    """What a container may besides: ``nesting`` anybody can set; the others root@pam alone, no token."""

    nesting: bool = True
    keyctl: bool = False
    fuse: bool = False

    @property
    def takes_root(self) -> bool:
        """Whether only root@pam itself can make a container so."""
        return self.keyctl or self.fuse


class NewContainer(Model):
    """A container that is created from a ``template`` (a volume such as local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst).

    Memory and swap in MiB; ``ip``: `dhcp` or an address with its prefix. A ``protect``ed container is never deleted.
    """

    template: Template
    hostname: HostName | None = None
    disk: Disk
    cores: Cores = 4
    memory: MemoryMiB = 4096
    swap: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 512
    bridge: Bridge = "vmbr0"
    ip: Ipv4Interface = "dhcp"
    gateway: Ipv4 | None = None
    nameserver: NameServers | None = None
    unprivileged: bool = True
    features: Features = Features()
    onboot: bool = True
    ssh_keys: list[PublicKey] = []
    password: Secret | None = None
    protect: bool = False


class Container(Model):
    """A container that shares cards with the host's driver: adopted by its ``ctid`` as it is, or made from ``create``.

    Which cards: ``gpuAssignment``, numbers of the driver (/dev/nvidiaN), `all` or `none`; or ``gpus``, names of the host's cards
    with use: lxc. ``method``: as `dev[n]` options (device) or raw lines (mount-entry); by default what the host can. ``power``: keep
    (as it is found; the default for an adopted one), running, stopped; ``start: true`` is the same as ``power: running``. ``nvidia``: the
    libraries that fit the host's driver, in the container.
    """

    host: Name
    ctid: GuestId
    gpu_assignment: Plain | None = None
    gpus: list[Name] | None = None
    method: Literal["device", "mount-entry"] | None = None
    power: Literal["keep", "running", "stopped"] | None = None
    start: bool = False
    shutdown: Shutdown = Shutdown()
    nvidia: Nvidia | None = None
    create: NewContainer | None = None

    @field_validator("gpu_assignment", mode="before")
    @classmethod
    def _assignment(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # YAML takes a 0 without quotation marks for a number
        if isinstance(value, str):
            value = value.strip()
            assigned_numbers(value)
        return value

    @property
    def numbers(self) -> list[int] | Literal["all"] | None:
        """The driver's numbers of the assigned cards, ascending; `all`; None where cards are named instead."""
        return None if self.gpu_assignment is None else assigned_numbers(self.gpu_assignment)

    @property
    def wanted_power(self) -> str:
        return self.power or ("running" if self.start or self.create is not None else "keep")

    @model_validator(mode="after")
    def _options(self) -> Self:
        if (self.gpu_assignment is None) == (self.gpus is None):
            raise ValueError(
                'expected exactly one of gpuAssignment (such as "0,1", "all" or "none") and gpus (names of cards)'
            )
        names = self.gpus or []
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"gpus: {twice} is there twice")
        if self.start and self.power not in (None, "running"):
            raise ValueError(f"start: true and power: {self.power} contradict each other")
        if self.nvidia is not None and (self.gpus == [] or self.numbers == []):
            raise ValueError("nvidia without a card: there is nothing to verify it with")
        if self.nvidia is not None and self.power == "stopped":
            raise ValueError("nvidia needs a container that runs, and power is stopped")
        return self


def assigned_numbers(text: str) -> list[int] | Literal["all"]:
    """`0,1` as [0, 1]; `none` as []; `all`. Raises ValueError: it is none of these, or names a card twice."""
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    parts = [] if plain == "none" else [part.strip() for part in plain.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        raise ValueError('expected numbers of /dev/nvidiaN such as "0" or "0,1", or "all", or "none"')
    found = sorted(int(part) for part in parts)
    for number in found:
        if found.count(number) > 1:
            raise ValueError(f"card {number} is there twice")
    return found


class Settings(Model):
    """All of `homelab:`. ``plan``: whether a preview reads the host (auto: when something would change and it is in reach).

    ``allowPlainSecrets``: secrets may stand in the stack's file as they are.
    """

    hosts: dict[Name, Host]
    vms: dict[Name, Vm] = {}
    containers: dict[Name, Container] = {}
    plan: Literal["auto", "always", "never"] = "auto"
    allow_plain_secrets: bool = False

    @property
    def stacks(self) -> dict[str, Nvidia]:
        """Where NVIDIA's stack is wanted: a place, such as `vms.sandbox`, -> what."""
        hosts = {f"hosts.{name}": host.nvidia for name, host in self.hosts.items()}
        vms = {f"vms.{name}": vm.nvidia for name, vm in self.vms.items()}
        containers = {f"containers.{name}": one.nvidia for name, one in self.containers.items()}
        return {place: stack for place, stack in {**hosts, **vms, **containers}.items() if stack is not None}

    @model_validator(mode="after")
    def _vms_fit(self) -> Self:
        holders: dict[tuple[str, str], str] = {}
        ids: dict[tuple[str, int], str] = {}
        for name, vm in self.vms.items():
            host = self.hosts.get(vm.host)
            if host is None:
                raise ValueError(f"vms.{name}.host: no such host; there are {', '.join(self.hosts)}")
            if host.api is None:
                raise ValueError(f"hosts.{vm.host}.api is missing: cards go to VMs ({name}) through the Proxmox VE API")
            if other := ids.get((vm.host, vm.vmid)):
                raise ValueError(f"vms.{name} and vms.{other} have the same vmid {vm.vmid}")
            ids[vm.host, vm.vmid] = name
            for use in vm.gpus:
                _check_use(name, vm, use, host)
                if other := holders.get((vm.host, use.gpu)):
                    raise ValueError(
                        f"gpus: {use.gpu} is given to vms.{other} and vms.{name}; one VM at a time can have it"
                    )
                holders[vm.host, use.gpu] = name
        return self

    @model_validator(mode="after")
    def _containers_fit(self) -> Self:
        ids = {(vm.host, vm.vmid): f"vms.{name}" for name, vm in self.vms.items()}
        for name, container in self.containers.items():
            host = self.hosts.get(container.host)
            if host is None:
                raise ValueError(f"containers.{name}.host: no such host; there are {', '.join(self.hosts)}")
            if name in self.vms:
                raise ValueError(f"containers.{name} and vms.{name}: a name is one guest's")
            if other := ids.get((container.host, container.ctid)):
                raise ValueError(f"containers.{name} and {other} have the same id {container.ctid}")
            ids[container.host, container.ctid] = f"containers.{name}"
            for gpu in container.gpus or []:
                _check_shared(name, container, gpu, host)
            _check_creation(name, container, host)
        return self

    @field_validator("hosts")
    @classmethod
    def _some(cls, value: dict[str, Host]) -> dict[str, Host]:
        if not value:
            raise ValueError("expected at least one host")
        addresses = [f"{host.address}:{host.ssh.port}" for host in value.values()]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"two hosts with the address {address}")
        return value


def _check_use(name: str, vm: Vm, use: VmGpu, host: Host) -> None:
    gpu = host.gpus.get(use.gpu)
    if gpu is None:
        raise ValueError(
            f"vms.{name}.gpus: hosts.{vm.host} has no card {use.gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if gpu.use != "vm":
        raise ValueError(f"vms.{name}.gpus: {use.gpu} stays with the host (use: {gpu.use}); a VM needs use: vm")
    if (use.by_address or use.romfile) and not (host.api and host.api.is_root):
        raise ValueError(
            f"vms.{name}.gpus: byAddress and romfile are root@pam's alone, no token's: set hosts.{vm.host}.api.user and password"
        )


def _check_shared(name: str, container: Container, gpu: str, host: Host) -> None:
    about = host.gpus.get(gpu)
    if about is None:
        raise ValueError(
            f"containers.{name}.gpus: hosts.{container.host} has no card {gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if about.use != "lxc":
        raise ValueError(f"containers.{name}.gpus: {gpu} is for use: {about.use}; a container needs use: lxc")


def _check_creation(name: str, container: Container, host: Host) -> None:
    if container.create is None:
        return
    if host.api is None:
        raise ValueError(
            f"hosts.{container.host}.api is missing: containers.{name} is created through the Proxmox VE API"
        )
    if container.create.features.takes_root and not host.api.is_root:
        raise ValueError(
            f"containers.{name}.create.features: all but nesting are root@pam's alone, no token's: set "
            f"hosts.{container.host}.api.user and password"
        )


def load() -> Settings:
    """The settings of the running program, refused where it is plain from them alone that they can't be carried out.

    :raises HomelabError: one error that names every mistake.
    """
    # What the language host hands to a program; pulumi.Config can't list keys, so an unknown one would go unnoticed.
    whole = json.loads(os.environ.get("PULUMI_CONFIG", "{}"))
    found = parse({key.removeprefix("homelab:"): text for key, text in whole.items() if key.startswith("homelab:")})
    errors = _unsafe(found)
    if found.stacks:
        from homelab.nvidia import preview  # only here: its data is read

        errors += preview.from_settings(found)
    raise_all(errors)
    return found


def _unsafe(found: Settings) -> list[HomelabError]:
    """What stands against secrets in plain text and values of the example; in a preview, the latter are only named."""
    import pulumi

    from homelab.settings import secrets as secret_settings

    stack, errors = pulumi.get_stack(), []
    if not found.allow_plain_secrets:
        file = Path.cwd() / f"Pulumi.{stack.rpartition('/')[2]}.yaml"
        plain_ones, unknown = secret_settings.in_plain_text(found, os.environ, file)
        if plain_ones:
            errors.append(secret_settings.plain_secrets(plain_ones, stack))
        if unknown:
            pulumi.log.warn(
                f"whether all of {', '.join(map(secret_settings.path_of, unknown))} are encrypted can't be told: some are, and {file} "
                "isn't the file that was read"
            )
    if places := secret_settings.left_open(found):
        error = secret_settings.still_open(places, stack)
        if pulumi.runtime.is_dry_run():
            pulumi.log.warn(f"`pulumi up` will refuse this:\n{error}")
        else:
            errors.append(error)
    return errors


def parse(values: Mapping[str, str]) -> Settings:
    """Settings, or a part of them, that can be read; what can't be carried out must not keep anybody from taking it away.

    :param values: key (without `homelab:`) -> text, structured values as JSON.
    :raises HomelabError: one error that names every mistake.
    """
    try:
        return Settings.model_validate({key: _decode(text) for key, text in values.items()})
    except ValidationError as error:
        raise _explain(error) from None


def load_host(hosts: str | None, name: str) -> Host:
    """One host from the text of `homelab:hosts`; for the processes that don't run the program.

    :raises HomelabError: it is missing or mistaken.
    """
    whole = _decode(hosts or "{}")
    if isinstance(whole, dict) and name in whole:
        # A mistake in another host's settings must not keep anybody from giving this one up.
        whole = {name: whole[name]}
    known = parse({"hosts": json.dumps(whole)}).hosts
    host = known.get(name)
    if host is None:
        raise HomelabError(
            f"homelab:hosts.{name} in the stack's configuration",
            f"hosts: {sorted(known)}",
            "it says how to reach the host",
            "put it back; to give the host up, take it out and run `pulumi up` while it can still be reached",
        )
    return host


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# Below these keys there are secrets, or may be by mistake.
_SECRET_PLACES = {"ssh", "api", "cloudInit", "proxy", "password", "mirror", "options"}


def _explain(error: ValidationError) -> HomelabError:
    """Pydantic's list as the text a person gets. Values never appear where they may be secret."""
    lines = []
    for problem in error.errors(include_url=False):
        # A key may be anything that JSON can say, control characters of a terminal too.
        place = ".".join(_visible(str(part)) for part in problem["loc"] if part != "[key]")
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = f"unknown key{_meant(problem['loc'])}"
        elif problem["type"] == "missing":
            text = "missing"
        elif isinstance(problem["input"], str | int | float | bool) and not _SECRET_PLACES & set(problem["loc"]):
            text = f"{text}; found {_visible(repr(problem['input']))}"
        lines.append(f"homelab:{place}{': ' if place else ''}{text}")
    return HomelabError(
        "a configuration that can be carried out",
        ("\n        ").join(lines),
        "nothing was done: a mistake here would surface half-way through a change to the host",
        "correct Pulumi.<stack>.yaml; the keys are described in docs/guide.md",
    )


# How much of a mistaken value or key a message shows.
_SHOWN = 120


def _visible(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _meant(location: tuple[int | str, ...]) -> str:
    """`, did you mean …` for an unknown key, from the keys that its model has."""
    model: Any = Settings
    for part in location[:-1]:
        model = _inside(model)
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = next(field.annotation for field in model.model_fields.values() if field.alias == part)
        else:  # a mapping of names to models, or a list of them
            model = get_args(model)[-1]
    known = [field.alias or "" for field in _inside(model).model_fields.values()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean `{close[0]}`?" if close else f"; known are {', '.join(known)}"


def _inside(annotation: Any) -> Any:
    """``X`` for ``X | None``."""
    return (
        next((one for one in get_args(annotation) if one is not type(None)), None)
        if _optional(annotation)
        else annotation
    )


def _optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)
