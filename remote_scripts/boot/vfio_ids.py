"""Ids that other configuration than this program's gives to vfio-pci: the option `ids`, which is
`vendor:device[:subvendor[:subdevice[:class[:class_mask]]]]`, in hex, separated by commas.

`ffffffff` is any (drivers/vfio/pci/vfio_pci.c, pci_match_one_device). What follows the device only narrows it, and
isn't looked at.
"""

from __future__ import annotations

import re

#: How a file names the module.
NAME = re.compile(r"vfio[-_]pci")
MODULES = "/etc/initramfs-tools/modules"
_ANY = 0xFFFFFFFF
_ID = re.compile(r"((?:0x)?[0-9a-f]{1,8}):((?:0x)?[0-9a-f]{1,8})")
_OPTIONS = re.compile(r"[ \t]*options[ \t]+")
_OF_VFIO = re.compile(r"[ \t]*vfio[-_]pci[ \t]")


def given(path: str, text: str) -> list[str]:
    """The ids that a file gives to vfio-pci, one string an option. A line may go on in the next one (modprobe.d(5)),
    and a value may be quoted.

    :param path: of initramfs-tools' modules, whose lines are a module and its options; or of modprobe.d.
    """
    ids = []
    for line in text.replace("\r\n", "\n").replace("\\\n", "").split("\n"):
        option = _OPTIONS.match(line)
        of_module = line[option.end() :] if option and path != MODULES else line
        if bool(option) == (path == MODULES) or not _OF_VFIO.match(of_module):
            continue
        words = of_module.replace('"', "").split()[1:]
        ids += [word[4:] for word in words if word.startswith("ids=") and len(word) > 4]
    return ids


def names(ids: str, device: str) -> bool:
    """Whether the option may name a function.

    :param ids: the option's value.
    :param device: `vendor:device`.
    """
    entries = ([int(part, 16) for part in match.groups()] for match in map(_ID.match, ids.lower().split(",")) if match)
    actual = [int(part, 16) for part in device.split(":")]
    return any(all(wanted in (_ANY, has) for wanted, has in zip(entry, actual, strict=True)) for entry in entries)
