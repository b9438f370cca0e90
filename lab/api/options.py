"""Whether texts are what the options and parameters of Proxmox VE's API take, by their keys, types and formats.

The messages are those of a real node (PVE::JSONSchema), which names the format, then what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from homelab.guest.options import BOOLEANS, Parameter, tables

from .errors import FormatError

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
_DNS_LABEL = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"


def as_boolean(value: str) -> str:
    """`0` or `1`.

    Raises:
        FormatError: it is no boolean.
    """
    if value.lower() not in BOOLEANS:
        raise FormatError(f"type check ('boolean') failed - got '{value}'\n")
    return str(BOOLEANS[value.lower()])


def split_list(text: str) -> list[str]:
    """The words of a list, separated by commas, semicolons, blanks or NUL."""
    return [word for word in re.split(r"[,;\s\0]+", text) if word]


def _matching(pattern: str, message: str) -> Callable[[str], None]:
    compiled = re.compile(pattern)

    def check(value: str) -> None:
        if not compiled.fullmatch(value):
            raise FormatError(message.format(value) + "\n")

    return check


def _list_of(check: Callable[[str], None]) -> Callable[[str], None]:
    def check_each(value: str) -> None:
        for word in split_list(value):
            check(word)

    return check_each


def _device_path(value: str) -> None:
    if not re.fullmatch(r"/dev/(?!(?:.*/)?\.\.(?:/|$))\S+", value):
        raise FormatError(f"{value} is not a valid device path\n")


_configuration_id = _matching(r"[A-Za-z][A-Za-z0-9_-]+", "invalid configuration ID '{}'")
# Keys of options that may be deleted have the same form, but `delete` takes unknown ones as far as the handler.
_CHECKS: dict[str, Callable[[str], None]] = {
    "pve-vmid": _matching(r"[1-9][0-9]{2,8}", "value does not look like a valid VM ID"),
    "pve-node": _matching(_DNS_LABEL, "value does not look like a valid node name"),
    "dns-name": _matching(rf"(?:{_DNS_LABEL}\.)*{_DNS_LABEL}", "value does not look like a valid DNS name"),
    "pve-configid": _configuration_id,
    "pve-configid-list": _list_of(_configuration_id),
    "pve-storage-id": _matching(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "storage ID '{}' contains illegal characters"),
    "pve-tag-list": _list_of(_matching(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "invalid characters in tag")),
    "pve-storage-content-list": _list_of(
        _matching(r"images|rootdir|vztmpl|iso|backup|snippets|import|none", "invalid content type '{}'")
    ),
    "mac-addr": _matching(
        r"[0-9a-fA-F][02468aceACE](?::[0-9a-fA-F]{2}){5}", "value does not look like a valid unicast MAC address"
    ),
    "lxc-device-path": _device_path,
}


def check_format(name: str, value: str, path: str) -> None:
    """Checks a text against a format; formats that neither table has are not checked.

    Args:
        path: the parameter's name, with which errors inside a property string begin.

    Raises:
        FormatError: it hasn't the format.
    """
    if name in _CHECKS:
        _CHECKS[name](value)
    elif name in tables().formats:
        parse_properties(name, value, path)


def check_value(parameter: Parameter, value: str, path: str) -> str | None:
    """What is wrong with a value; None: nothing."""
    kind = parameter.kind
    if kind == "boolean" and value not in ("0", "1"):
        return f"type check ('boolean') failed - got '{value}'"
    if kind == "integer" and not _INTEGER.fullmatch(value):
        return f"type check ('integer') failed - got '{value}'"
    if kind == "number" and not _NUMBER.fullmatch(value):
        return f"type check ('number') failed - got '{value}'"
    if parameter.format:
        try:
            check_format(parameter.format, value, path)
        except FormatError as error:
            return f"invalid format - {error}"
    if parameter.pattern and not re.fullmatch(parameter.pattern, value):
        return "value does not match the regex pattern"
    if kind == "one of" and value not in parameter.words:
        return f"value '{value}' does not have a value in the enumeration '{', '.join(parameter.words)}'"
    return _check_bounds(parameter, value)


def _check_bounds(parameter: Parameter, value: str) -> str | None:
    if parameter.kind in ("integer", "number"):
        if parameter.low is not None and float(value) < parameter.low:
            return f"value must have a minimum value of {parameter.low:g}"
        if parameter.high is not None and float(value) > parameter.high:
            return f"value must have a maximum value of {parameter.high:.0f}"
    elif parameter.kind == "text":
        if parameter.high is not None and len(value) > parameter.high:
            return f"value may only be {parameter.high:.0f} characters long"
        if parameter.low is not None and len(value) < parameter.low:
            return f"value must be at least {parameter.low:.0f} characters long"
    return None


def parse_properties(name: str, text: str, path: str = "") -> dict[str, str]:
    """A property string's keys and values; booleans as `0` and `1`.

    Args:
        name: a format of options.toml.
        path: the parameter's name, for errors.

    Raises:
        FormatError: a key that isn't known, is missing or given twice, or a value that isn't right.
    """
    form = tables().formats[name]
    found: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = form.default or "", part
            if not key:
                raise FormatError("value without key, but schema does not define a default key\n")
        if key in found or (form.aliases and key == form.default and form.default in found):
            raise FormatError(f"duplicate key in comma-separated list property: {key}\n")
        if form.aliases and form.default and key in form.keys[form.default].words:
            found[form.default], key = key, form.aliases
        if key in form.keys and form.keys[key].kind == "boolean":
            value = str(BOOLEANS.get(value.lower(), value))
        found[key] = value
    errors = check_all(form.keys, found, path)
    if errors:
        raise FormatError("format error\n" + "".join(f"{key}: {message}\n" for key, message in sorted(errors.items())))
    return found


def check_all(known: Mapping[str, Parameter], given: Mapping[str, str], path: str = "") -> dict[str, str]:
    """The errors of a set of texts, by name (with the path before it)."""
    errors: dict[str, str] = {}
    for name, value in given.items():
        full = f"{path}.{name}" if path else name
        if name not in known:
            errors[full] = UNKNOWN
        elif message := check_value(known[name], value, full):
            errors[full] = message
        elif (needed := known[name].requires) and needed not in given:
            errors[f"{path}.{needed}" if path else needed] = f"missing property required by '{name}'"
    for name, parameter in known.items():
        if not parameter.optional and name not in given:
            errors[f"{path}.{name}" if path else name] = "property is missing and it is not optional"
    return errors
