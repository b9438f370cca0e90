"""modprobe's configuration: modprobe.d files and what the kernel command line adds (modprobe.d(5), modprobe(8))."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from .catalogue import normal
from .state import HostState


class ModprobeConfig:
    """Options, blacklist, install commands and soft dependencies, by normalised module name."""

    def __init__(self) -> None:
        self.options: dict[str, list[str]] = {}
        self.blacklist: set[str] = set()
        self.install: dict[str, str] = {}
        self.off: set[str] = set()  # by `alias NAME off`, which comes before a module's own name
        self.soft_before: dict[str, list[str]] = {}
        self.soft_after: dict[str, list[str]] = {}

    @classmethod
    def read(cls, folders: Iterable[Path], cmdline: str) -> ModprobeConfig:
        """The configuration in these folders; a file name found in an earlier folder hides later ones."""
        config = cls()
        files: dict[str, Path] = {}
        for folder in folders:
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.suffix == ".conf" and path.name not in files:
                        files[path.name] = path
        for name in sorted(files):
            config.add_text(files[name].read_text(encoding="utf-8", errors="replace"))
        config.add_cmdline(cmdline)
        return config

    def add_text(self, text: str) -> None:
        """Take in the lines of one modprobe.d file; a line that it can't use is passed over."""
        for raw in text.replace("\\\n", " ").splitlines():
            words = raw.split()
            if not words or words[0].startswith("#"):
                continue
            verb, rest = words[0], words[1:]
            if verb == "options" and len(rest) >= 2:
                self.options.setdefault(normal(rest[0]), []).extend(rest[1:])
            elif verb == "blacklist" and len(rest) >= 1:
                self.blacklist.add(normal(rest[0]))
            elif verb == "install" and len(rest) >= 2:
                self.install[normal(rest[0])] = " ".join(rest[1:])
            elif verb == "softdep" and len(rest) >= 2:
                self._add_softdep(normal(rest[0]), rest[1:])
            elif verb == "alias" and rest[1:] == ["off"]:
                self.off.add(normal(rest[0]))

    def _add_softdep(self, module: str, words: list[str]) -> None:
        target: list[str] | None = None
        for word in words:
            if word == "pre:":
                target = self.soft_before.setdefault(module, [])
            elif word == "post:":
                target = self.soft_after.setdefault(module, [])
            elif target is not None:
                target.append(normal(word))

    def add_cmdline(self, cmdline: str) -> None:
        """`modprobe.blacklist=a,b` and `module.option=value` words of the kernel command line."""
        for word in kernel_words(cmdline):
            key, equals, value = word.partition("=")
            if key == "modprobe.blacklist" and equals:
                self.blacklist.update(normal(name) for name in value.split(",") if name)
            elif "." in key:
                module, _, option = key.partition(".")
                self.options.setdefault(normal(module), []).append(f"{option}={value}" if equals else option)

    def is_disabled(self, module: str) -> bool:
        """Whether an install command keeps the module from loading at all (`install x /bin/false`)."""
        command = self.install.get(normal(module), "")
        return command.split()[:1] in (
            ["/bin/false"],
            ["/bin/true"],
            ["false"],
            ["true"],
            ["/usr/bin/false"],
            ["/usr/bin/true"],
        )


def root_modprobe_config(host: HostState) -> ModprobeConfig:
    """modprobe's configuration on the running system."""
    folders = [host.root / name / "modprobe.d" for name in ("etc", "run", "usr/local/lib", "usr/lib")]
    return ModprobeConfig.read(folders, host.cmdline())


def kernel_words(cmdline: str) -> list[str]:
    """The words of a kernel command line, double quotes respected as the kernel does."""
    lexer = shlex.shlex(cmdline, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.quotes = '"'
    lexer.escape = ""
    lexer.commenters = ""
    return list(lexer)
