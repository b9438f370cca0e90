"""udev's rules that set an attribute of a PCI function when it is added (udev(7)), as people bind a card by `driver_override`.

Of what a rule may ask, what is about the function itself: ACTION, SUBSYSTEM, KERNEL, ATTR. A rule with another condition isn't met.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

#: Its keys: name, what stands in braces, operator, value.
Rule = list[tuple[str, str, str, str]]
_KEY = re.compile(r'(\w+)(?:\{([^}]*)\})?\s*(==|!=|[-+:]?=)\s*"([^"]*)"')
_IS = {"ACTION": "add", "SUBSYSTEM": "pci"}


def rules(root: Path) -> list[Rule]:
    """The rules of a system in udev's order: a file in /etc counts in place of one of the same name in /usr/lib."""
    files: dict[str, Path] = {}
    for folder in ("usr/lib/udev/rules.d", "etc/udev/rules.d"):
        files |= {path.name: path for path in (root / folder).glob("*.rules")}
    texts = (files[name].read_text(encoding="utf-8") for name in sorted(files) if files[name].is_file())
    lines = (line.strip() for text in texts for line in text.replace("\\\n", " ").splitlines())
    return [_KEY.findall(line) for line in lines if line and not line.startswith("#")]


def add(function: Path, given: Iterable[Rule]) -> None:
    """Do what rules say of a function of which the kernel says `add`.

    Args:
        function: its folder in sysfs.
    """
    target = ""
    for keys in given:
        if target and ("LABEL", "", "=", target) not in keys:
            continue
        target = ""
        if not all(_meets(function, *key) for key in keys if key[2] in ("==", "!=")):
            continue
        for name, argument, operator, value in keys:
            if name == "ATTR" and operator == "=" and (function / argument).is_file():
                (function / argument).write_text(f"{value}\n", encoding="utf-8")
            if name == "GOTO":
                target = value


def _meets(function: Path, name: str, argument: str, operator: str, value: str) -> bool:
    if name == "ATTR":
        file = function / argument
        found = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    else:
        found = function.name if name == "KERNEL" else _IS.get(name)
    alike = found is not None and any(fnmatch.fnmatchcase(found, pattern) for pattern in value.split("|"))
    return found is not None and alike == (operator == "==")
