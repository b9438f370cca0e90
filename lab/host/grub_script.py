"""What GRUB does with a custom.cfg: commands outside of its entries, as far as they choose one.

Of GRUB's language: `set`, `search --fs-uuid`, `load_env` and `save_env` of a file, `if` with the tests -n, -s, = and -a.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .state import HostState

_FILE = re.compile(r"\((?P<esp>[^)]*)\)/(?P<path>.+)|/boot/grub/(?P<beside>.+)")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class Script:
    """One run of it.

    Args:
        prefix: the folder of the menu.
        writable: whether GRUB can write there; on an ESP it can.
    """

    def __init__(self, host: HostState, prefix: Path, *, writable: bool) -> None:
        self._host, self._prefix, self._writable = host, prefix, writable
        self.variables = {"prefix": "/boot/grub"}

    def run(self, text: str) -> None:
        """All of a file. Entries are passed over: they are the menu's."""
        outside = re.sub(r"^([ \t]*)(menuentry|submenu) .*\{\n(?s:.*?)^\1\}\n", "", text, flags=re.MULTILINE)
        lines = (line.strip() for line in outside.splitlines())
        self._block(line for line in lines if line and not line.startswith("#"))

    def _block(self, lines: Iterator[str], *, runs: bool = True) -> str:
        """Up to the end of a block, whose line is the answer."""
        for line in lines:
            if line.startswith("if "):
                self._branches(line, lines, runs=runs)
            elif line in ("fi", "else") or line.startswith("elif "):
                return line
            elif runs:
                self._command([self._expanded(word) for word in _words(line)])
        return ""

    def _branches(self, line: str, lines: Iterator[str], *, runs: bool) -> None:
        is_open = runs
        while line != "fi":
            condition = re.sub(r"^(el)?if \[ (.*) \]; *then$", r"\2", line)
            holds = is_open and (line == "else" or self._holds([self._expanded(word) for word in _words(condition)]))
            is_open = is_open and not holds
            line = self._block(lines, runs=holds)

    def _holds(self, words: list[str]) -> bool:
        for test in " ".join(word or "''" for word in words).split(" -a "):
            match shlex.split(test):
                case ["-n", value]:
                    holds = bool(value)
                case ["-s", name]:
                    file = self._file(name)
                    holds = file is not None and file.exists() and bool(file.stat().st_size)
                case [left, "=", right]:
                    holds = left == right
                case _:
                    raise ValueError(f"the lab's GRUB has no test {test!r}")
            if not holds:
                return False
        return True

    def _command(self, words: list[str]) -> None:
        match words:
            case ["set", assignment]:
                name, _, value = assignment.partition("=")
                self.variables[name] = value
            case ["search", *_, uuid]:
                name = next(word for word in words if word.startswith("--set=")).removeprefix("--set=")
                if (self._host.esp / uuid).is_dir():
                    self.variables[name] = uuid
            case ["load_env", "--file", name, variable]:
                file = self._file(name)
                if file is not None and file.exists():
                    match = re.search(rf"^{variable}=(.*)$", file.read_text(), re.MULTILINE)
                    self.variables |= {variable: match[1]} if match else {}
            case ["save_env", "--file", name, variable]:
                self._save(name, variable)
            case ["insmod", _]:
                pass
            case _:
                raise ValueError(f"the lab's GRUB has no command {words}")

    def _save(self, name: str, variable: str) -> None:
        """In place, where the file system is one that it writes."""
        file = self._file(name)
        if file is None or self._host.fault("grub-cannot-write") or not (name.startswith("(") or self._writable):
            return
        size, text = file.stat().st_size, re.sub(rf"^{variable}=.*\n", "", file.read_text(), flags=re.MULTILINE)
        text = f"{text.rstrip('#')}{variable}={self.variables.get(variable, '')}\n"
        file.write_text(text.ljust(size, "#"))

    def _file(self, name: str) -> Path | None:
        match = _FILE.fullmatch(name)
        if match is None or match["esp"] == "":
            return None
        return self._prefix / match["beside"] if match["beside"] else self._host.esp / match["esp"] / match["path"]

    def _expanded(self, word: str) -> str:
        return _VARIABLE.sub(lambda match: self.variables.get(match[1], ""), word)


def _words(line: str) -> list[str]:
    return shlex.split(line)
