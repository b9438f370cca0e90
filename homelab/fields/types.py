"""The types of texts and numbers in the settings. Each text ends up in a file, a command or a property string that root
reads.

`plain` is the rule for all texts: one line, visible characters alone, no hyphen at the beginning (a command takes that
for an option). Texts of a certain form, such as addresses, are matched against a pattern besides. Every text in the
settings is of one of these types, or is matched whole by a validator of its own; a test goes through all fields of all
models.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_HOSTNAME = (
    r"(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


@dataclass(frozen=True)
class InWords:
    """The name of a value's type, in a word or two of Markdown, for the tables of docs/settings.md
    (docs/tables/settings.py) and for editors (docs/tables/schema.py)."""

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "form": self.text.replace("`", "")}


# Placeholder of an encrypted value where the passphrase isn't known: in a pull request's preview, in the doctor.
ENCRYPTED = "(encrypted)"


def written(value: Any) -> Any:
    """A number as the text that it was before YAML took it for one."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def visible(value: str) -> str:
    """The text, if it is one line of visible characters and not empty.

    :raises ValueError: it isn't.
    """
    if not value.isprintable():
        raise ValueError("expected text on one line, without newline, tab or another control character")
    if not value.strip():
        raise ValueError("expected text, found none")
    return value


def plain(value: str) -> str:
    """The text, if it can stand in a file, and as an argument of a command.

    :raises ValueError: it can't.
    """
    visible(value)
    if value != value.strip():
        raise ValueError("expected no space at the beginning or the end")
    if value.startswith("-"):
        raise ValueError("expected no hyphen at the beginning: a command would take it for an option")
    return value


@dataclass(frozen=True)
class Text(InWords):
    """A text of a certain form. `pattern`: a regular expression that matches all of it, whose `\\d` and `\\w` are
    ASCII's; `expected`: what the text should be, for the message."""

    pattern: str
    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._matched, handler(source))

    def _matched(self, value: str) -> str:
        plain(value)
        if not re.fullmatch(self.pattern, value, re.ASCII):
            raise ValueError(f"expected {self.expected}")
        return value


def _secret(value: SecretStr) -> SecretStr:
    visible(value.get_secret_value())
    return value


def _private_key(value: SecretStr) -> SecretStr:
    # The only text that may have several lines. It goes to SSH libraries alone.
    for line in value.get_secret_value().strip().splitlines() or [""]:
        visible(line)
    return value


def _web_address(value: str) -> str:
    """An https address that lists of packages and curl take: without blanks and what means something in them."""
    plain(value)
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/%+=-]*)?", value):
        raise ValueError(
            "expected https, such as https://mirror.lan/cuda (without it, anyone on the way could change what is "
            "installed as root), and no user or password (it is written to files that everybody can read)"
        )
    return value.rstrip("/")


def _proxy(value: SecretStr) -> SecretStr:
    # A proxy's address may hold a password: the messages quote nothing of it.
    text = value.get_secret_value()
    if text == ENCRYPTED:
        return value
    plain(text)
    if not re.fullmatch(r"https?://([^\s:/@'\"\\]+(:[^\s/@'\"\\]*)?@)?[A-Za-z0-9.-]+(:[0-9]{1,5})?/?", text):
        raise ValueError("expected http://HOST:PORT, with USER:PASSWORD@ before the host where the proxy asks for them")
    return value


def network_address(value: str) -> str:
    """The text, if it is an IP address or a host name; an address in its canonical form.

    :raises ValueError: it is neither.
    """
    plain(value)
    if re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]{1,15})?", value):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(value))
    if not re.fullmatch(_HOSTNAME, value) or re.fullmatch(r"[0-9.]+", value):
        raise ValueError("expected an IP address or a host name, such as 192.168.0.202 or pve.lan")
    return value


CONFIG_ID = r"[A-Za-z][A-Za-z0-9_-]+"
_STORAGE = r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"
Plain = Annotated[str, AfterValidator(plain)]
WrittenText = Annotated[str, BeforeValidator(written)]
Secret = Annotated[SecretStr, InWords("secret"), AfterValidator(_secret)]
PrivateKey = Annotated[SecretStr, InWords("secret"), AfterValidator(_private_key)]
#: A file on the machine on which Pulumi runs.
LocalPath = Annotated[str, InWords("path on this machine"), AfterValidator(plain)]
#: https, and nothing that means something in a list of packages or a shell.
WebAddress = Annotated[str, InWords("https address"), AfterValidator(_web_address)]
Proxy = Annotated[SecretStr, InWords("http or https address"), AfterValidator(_proxy)]
NetworkAddress = Annotated[str, InWords("IP address or host name"), AfterValidator(network_address)]
#: pve-storage-id (Proxmox VE, PVE::JSONSchema).
Storage = Annotated[str, Text("storage", _STORAGE, "a storage's name, such as local-lvm (see `pvesm status`)")]
#: A file's name that Proxmox VE leaves as it is (PVE::Storage::normalize_content_filename), and knows the content by.
FileName = Annotated[
    str,
    Text(
        "name of a file",
        r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(iso|qcow2|raw|vmdk|tar\.(gz|xz|zst|bz2))",
        "a file's name that ends in .iso, .qcow2, .raw, .vmdk or .tar.zst (.gz, .xz, .bz2), by which Proxmox VE knows "
        "what it is",
    ),
]
RomFile = Annotated[
    str,
    Text("name of a file", r"[A-Za-z0-9][A-Za-z0-9._-]*", "the name of a file in the host's /usr/share/kvm"),
]
#: pve-configid (Proxmox VE, PVE::JSONSchema).
MappingId = Annotated[
    str,
    Text(
        "id of a mapping",
        CONFIG_ID,
        "a mapping's id: a letter, then letters, digits, hyphens, underscores",
    ),
]
Checksum = Annotated[
    str,
    Text(
        "`sha256:` or `sha512:` and hexadecimal digits",
        r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}",
        "sha256: and 64 hexadecimal digits in lower case, or sha512: and 128",
    ),
]
#: A user of a Unix system.
UnixUser = Annotated[str, Text("user name", r"[a-z_][a-z0-9_.-]{0,31}", "a Unix user's name")]
Sha256 = Annotated[
    str, Text("64 hexadecimal digits", r"[0-9a-f]{64}", "a SHA-256 checksum, 64 hexadecimal digits in lower case")
]

#: Proxmox VE's range for guests.
GuestId = Annotated[int, InWords("integer"), Field(ge=100, le=999_999_999)]
Port = Annotated[int, InWords("integer"), Field(ge=1, le=65535)]
#: A day: what takes longer never ends.
Seconds = Annotated[int, InWords("seconds"), Field(ge=1, le=86_400)]
DiskGiB = Annotated[int, InWords("GiB"), Field(ge=1, le=64 * 1024)]

_NAME = r"[A-Za-z][A-Za-z0-9-]{0,39}"
# A domain has more than four digits behind Intel's Volume Management Device.
_PCI_PLACE = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f](?:\.[0-7])?)")
_PCI_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


def _place(value: str) -> str:
    match = _PCI_PLACE.fullmatch(value.lower())
    if match is None:
        raise ValueError("expected a PCI address such as 0000:01:00 or 01:00.0 (see `lspci -D`)")
    # Function 0 stands for the card in the slot; another function, such as a virtual one, for itself.
    return f"{match[1] or '0000'}:{match[2].removesuffix('.0')}"


def _function(value: str) -> str:
    if not _PCI_FUNCTION.fullmatch(value.lower()):
        raise ValueError("expected a PCI function's address such as 0000:02:00.0 (see `lspci -D`)")
    return value.lower()


def is_name(text: str) -> bool:
    """Whether a text may be the name of a host, a card or a cluster in the settings."""
    return re.fullmatch(_NAME, text) is not None


_ACS_PART = re.compile(r"downstream|multifunction|id:[0-9a-f]{4}:[0-9a-f]{4}")


def _acs_override(value: str) -> str:
    parts = value.lower().split(",")
    if not all(_ACS_PART.fullmatch(part) for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(
            "expected downstream, multifunction, id:vendor:device (such as id:8086:1901) or several of them with "
            "commas and without spaces"
        )
    return ",".join(parts)


AcsOverride = Annotated[str, InWords("what to override"), AfterValidator(_acs_override)]
Name = Annotated[
    str, Text("name", _NAME, "a name of letters, digits and hyphens that begins with a letter, 40 at most")
]
PciPlace = Annotated[str, InWords("PCI address"), AfterValidator(_place)]
FunctionAddress = Annotated[str, InWords("PCI address of a function"), AfterValidator(_function)]
# pve-node (Proxmox VE, PVE::JSONSchema).
NodeName = Annotated[
    str,
    Text(
        "name of a node",
        r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
        "a node's name, as `hostname` prints it on the host",
    ),
]
