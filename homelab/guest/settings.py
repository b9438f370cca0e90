"""A guest that the program makes, by Proxmox VE's own keys (homelab/guest/options.py)."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote

from pydantic import (
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from homelab.errors import HomelabError
from homelab.fields.model import Model
from homelab.fields.types import DiskGiB, GuestId, visible
from homelab.guest import options as guest_options
from remote_scripts.pve.properties import parse

#: Keys whose values are secrets.
SECRETS = frozenset({"cipassword", "password"})
# Keys that hold public keys, each on a line of its own.
_LINES = frozenset({"sshkeys", "ssh-public-keys"})
# Keys that are refused: pattern -> reason.
_REFUSED = {
    "vmid|node": "vmid, ctid and host beside create say that",
    "archive|restore|force|unique|live-restore": "a backup is restored by hand; without create the guest is adopted",
    "lock|template|unused[0-9]+": "Proxmox VE writes it itself",
    "description": "it has the mark by which this program knows its guest again",
    "start": "power beside create says whether it runs",
    "hostpci[0-9]+|dev[0-9]+": "gpus beside create gives cards",
}
#: Options by which Proxmox VE runs any program as root: a guest isn't made with one, and one that has it keeps it.
RUNS_PROGRAMS = frozenset({"args", "hookscript"})
# An option with a device of the host -> what remote_scripts/reading/vital.py finds that by.
_HOST_DEVICES = {
    r".*?[ =,](/[^,]*[^,/])": r"\1",
    r"usb.*[ =,]([0-9]+-[0-9.]+)": r"/\1/",
    r"usb.*[ =,](?:0x)?0*([0-9a-f]+):(?:0x)?0*([0-9a-f]+)": r"PRODUCT=\1/\2/",
}
# Folders of the host's system: Proxmox VE's own documentation warns of giving any of them to a container.
_SYSTEM_FOLDER = re.compile(r"/(?:(?:bin|boot|dev|etc|lib|lib64|proc|root|run|sbin|sys|usr|var)(?:/.*)?)?")
# Folders below /var that hold users' data.
_DATA_BELOW_VAR = re.compile(r"/var/lib/vz/(?!images|dump|template|private).+|/var/(?:srv|media|data|www)(?:/.*)?")
_DRIVE = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]+")
_FILE = re.compile(r"(?:^|[=,])([A-Za-z][\w.-]*:(?:iso|import|vztmpl)/[^,]+)")


class NewGuest(Model):
    """A guest that the program makes, and that `pulumi destroy` deletes with its disks."""

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[Literal["qemu", "lxc"]]

    protect: bool = False
    """`true`: the program never deletes it."""

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Names every key that Proxmox VE doesn't have, or that isn't for here. Values Proxmox VE's own code judges."""
        if not isinstance(value, dict):
            return handler(value)
        own = {key: one for key, one in value.items() if key in cls.model_fields}
        options, details = dict[str, str | SecretStr](), list[InitErrorDetails]()
        for key in sorted(value.keys() - own.keys()):
            taken = isinstance(value[key], str if key in SECRETS else str | int | float)
            text = guest_options.as_text(cls.kind, key, value[key]) if taken else ""
            if reason := refusal(cls.kind, key, text):
                details.append(_error((key,), reason))
            options[key] = SecretStr(text) if key in SECRETS else text
        try:
            made = handler({**own, **options})
        except ValidationError as error:
            details += [_error(one["loc"], one["msg"], one["input"]) for one in error.errors()]
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return made

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With Proxmox VE's keys; of numbered ones a pattern."""
        made = handler.resolve_ref_schema(handler(core))
        option = {"description": "As Proxmox VE takes it (man qm, man pct).", "type": ["string", "number", "boolean"]}
        known = [key for key in guest_options.of_new(cls.kind) if not refusal(cls.kind, key, "x")]
        stems = {key: key.rstrip("0123456789") for key in known}
        numbered = sorted(stem for key, stem in stems.items() if key == f"{stem}1")
        made["properties"] |= {f"{stem}0" if stem in numbered else key: option for key, stem in stems.items()}
        made["patternProperties"] = {f"^{stem}[0-9]+$": option for stem in numbered}
        return {**made, "additionalProperties": False}

    @property
    def options(self) -> dict[str, str]:
        """Proxmox VE's keys, without the secrets."""
        return {key: text for key, text in (self.model_extra or {}).items() if isinstance(text, str)}

    @property
    def secret_options(self) -> dict[str, str]:
        """The same, secret."""
        extra = self.model_extra or {}
        return {key: text.get_secret_value() for key, text in extra.items() if isinstance(text, SecretStr)}

    @property
    def volumes(self) -> list[str]:
        """The files that it is made of: of images, ISO images and templates."""
        return [volume for value in self.options.values() for volume in _FILE.findall(value)]


class NewVm(NewGuest):
    """A VM that the program makes, and that `pulumi destroy` deletes with its disks. Beside the keys of this table it
    takes Proxmox VE's own, as `qm set` takes them: `cores: 8`, `net0: virtio,bridge=vmbr0`."""

    kind = "qemu"

    clone: GuestId | None = None
    """The id of a template, of which it becomes a full clone (on `storage`, if that is set)."""
    size: DiskGiB | None = None
    """The size to which its system disk grows, if it is smaller: the disk of an image or a template is seldom large
    enough. The system disk is the first of `boot`'s order, else the first disk. It can grow later, and never
    shrinks."""

    def configuration(self, name: str) -> dict[str, str]:
        """The options of the VM.

        :param name: its name in the settings.
        """
        options = {"name": name, **FOR_CARDS, **self.options}
        disk = system_disk(options)
        if disk and options["bios"] == "ovmf" and self.clone is None:
            storage = options[disk].removeprefix("file=").partition(":")[0]
            # Keys of Microsoft's in it mean Secure Boot, under which NVIDIA's modules need a signature.
            options.setdefault("efidisk0", f"{storage}:1,efitype=4m,pre-enrolled-keys=0")
        if " " in options.get("sshkeys", ""):
            options["sshkeys"] = quote(options["sshkeys"].strip(), safe="")
        return options


class NewContainer(NewGuest):
    """A container that the program makes, and that `pulumi destroy` deletes with its disks. Beside the key of this
    table it takes Proxmox VE's own, as `pct create` and `pct set` take them: `ostemplate`, `rootfs`, `cores: 4`."""

    kind = "lxc"

    def configuration(self, name: str) -> dict[str, str]:
        """The options of the container.

        :param name: its name in the settings.
        """
        return {"hostname": name, "unprivileged": "1", **self.options}


#: What a VM with a card needs, unless its owner sets another value.
FOR_CARDS: Mapping[str, str] = {
    "machine": "q35",
    "bios": "ovmf",
    "cpu": "host",
    "balloon": "0",  # a card pins all of a VM's memory
    "scsihw": "virtio-scsi-single",
}


def find_host_devices(options: Mapping[str, str]) -> dict[str, str]:
    """The devices of the host that options may give a guest, by key, each as remote_scripts/reading/vital.py looks for
    it."""
    found = dict[str, str]()
    for key, text in options.items():
        line = f"{key} {text.lower() if key.startswith('usb') else text}"
        for pattern, form in _HOST_DEVICES.items():
            if match := re.match(pattern, line):
                found.setdefault(key, match.expand(form))
    return found


def refuse_programs(place: str, options: Mapping[str, str]) -> list[HomelabError]:
    """Why a guest isn't made with these options.

    :param place: the guest's in the settings.
    """
    return [
        HomelabError(
            wanted=f"{place}.create without {key}",
            found="a guest that isn't made yet",
            why="whoever writes the settings could run any program as root on the host by it; nothing was made",
            next="take it out, run `pulumi up`, then set it on the host by hand, where it stays",
        )
        for key in sorted(RUNS_PROGRAMS & options.keys())
    ]


def is_disk(key: str, value: str) -> bool:
    """Whether an option of a guest is a disk with data in it: no CD, and no folder of the host."""
    if re.fullmatch(r"rootfs|efidisk0|tpmstate0", key):
        return True
    first = value.partition(",")[0].partition("=")[2] or value.partition(",")[0]
    if re.fullmatch(r"mp[0-9]+", key):
        return not first.startswith("/")
    return (
        bool(_DRIVE.fullmatch(key)) and "media=cdrom" not in value and first.partition(":")[2] not in ("", "cloudinit")
    )


def system_disk(options: Mapping[str, str]) -> str | None:
    """The option of a VM's system disk: the first in its boot order, else the first of all; None: it has no disk."""
    order = re.search(r"order=([^,]+)", options.get("boot", ""))
    keys = [*(order[1].split(";") if order else ()), *sorted(options)]
    return next((key for key in keys if _DRIVE.fullmatch(key) and is_disk(key, options.get(key, ""))), None)


def refusal(kind: str, key: str, text: str) -> str | None:
    """The reason why an option can't be set under `create`; None: it can.

    :param kind: qemu or lxc.
    """
    for pattern, reason in _REFUSED.items():
        if re.fullmatch(pattern, key):
            return f"{reason}; take it out"
    known = guest_options.of_new(kind)
    if key not in known:
        program = "qm" if kind == "qemu" else "pct"
        matches = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
        meant = f"did you mean {matches[0]}?" if matches else f"expected one of Proxmox VE's, as man {program} has them"
        return f"unknown key, {meant}"
    try:
        for line in text.strip().split("\n") if key in _LINES else [text]:
            visible(line)
    except ValueError as error:
        return str(error)
    if kind == "lxc" and re.fullmatch(r"mp[0-9]+", key):
        folder = posixpath.normpath(re.sub("/+", "/", parse(key, text).get("volume", "").strip()))
        if _SYSTEM_FOLDER.fullmatch(folder) and not _DATA_BELOW_VAR.fullmatch(folder):
            return f"{folder} is of the host's own system: a container that changes it breaks the host"
    return None


def _error(place: tuple[int | str, ...], text: str, value: object = None) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("option", text), loc=place, input=value)
