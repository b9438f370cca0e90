"""The messages in the text of a log, each in one line and without what a program adds when it prints them. Pure.

A message of the kernel, its drivers, QEMU or a container engine has one or more lines. `dmesg` adds a time stamp (and
indents the further lines of a message), `journalctl -o short-monotonic` also the host and the program: so the agent
reads the kernel's log (remote_scripts/tools/kernel.py). NVIDIA's driver breaks its sentences and begins each line with
"NVRM:" anew, and lines of other programs come between. All of that is removed here, and a terminal's colours as well,
so that patterns need not match it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homelab.text import clean

# What stands before a line's message; some kernels add who calls (printk.caller).
_PREFIX = re.compile(r"\s*\[\s*\d+\.\d+\]\s(?:\[\s*[TC]\d+\]\s)?(?:[\w.-]+\skernel:\s)?")
# Sentences that NVIDIA's driver breaks (kernel-open/nvidia/nv.c and nv-pci.c, src/nvidia/arch/nvalloc/unix/src/osapi.c)
# begin like this …
_SENTENCE = re.compile(r"NVRM: (?:The |This |Try |API mismatch|request_mem_region failed)")
# … and their further lines like this: with a word amid a sentence, not with the name of a function.
_CONTINUATION = re.compile(
    r"NVRM: (?!loading )(?:[a-z][\w./'-]*(?: |$)|\(|NVIDIA \S+ driver|System Processor|Firmware'|Software |BAR\d)"
)
# Lines at most of a sentence, in case its end is missing.
_LONGEST_SENTENCE = 8
# Characters at most of a line; a longer one is divided: twice what the kernel gives a message (kernel/printk/printk.c,
# PRINTKRB_RECORD_MAX). Patterns with `.*` would take hours for a line of a megabyte.
_LONGEST_LINE = 2048


@dataclass
class Message:
    """A message of a log. `raw`: its lines as they were printed; `text`: the message alone, in one line."""

    raw: list[str]
    text: str

    @property
    def shown(self) -> str:
        """The message as it was printed."""
        return "\n".join(self.raw)

    def append(self, line: str, text: str) -> None:
        """Adds a further line of the message.

        :param line: as it was printed.
        :param text: its part of the message alone.
        """
        self.raw.append(line.strip())
        self.text = f"{self.text} {re.sub(r'^NVRM:', '', text).strip()}"

    @property
    def is_open(self) -> bool:
        """Whether it is a sentence of NVIDIA's driver without its end."""
        return bool(_SENTENCE.match(self.text)) and not self.text.endswith(".") and len(self.raw) < _LONGEST_SENTENCE


def messages(text: str) -> list[Message]:
    """The messages of a log, or of a program's output, in the order of their first lines."""
    log: list[Message] = []
    sentence: Message | None = None  # the driver's last one; messages of other programs may come between
    stamped = False  # whether the line before belongs to a message that begins with a stamp
    for line in _lines(text):
        prefix = _PREFIX.match(line)
        part = " ".join(line[prefix.end() if prefix else 0 :].split())
        if sentence and sentence.is_open and _CONTINUATION.match(part):
            sentence.append(line, part)
        elif stamped and not prefix and line[:2].isspace() and len(log[-1].text) < _LONGEST_LINE:
            log[-1].append(line, part)
        else:
            log.append(Message([line.strip()], part))
            if _SENTENCE.match(part):
                sentence = log[-1]
            stamped = bool(prefix)
    return log


def _lines(text: str) -> Iterator[str]:
    for line in clean(text).splitlines():
        yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE) if line.strip())


class Log:
    """The messages of a text, and `text`, all of them with a line each, for one search."""

    def __init__(self, text: str) -> None:
        """:param text: output or log, of any length."""
        self.messages = messages(text)
        self.text = "\n".join(message.text for message in self.messages)

    def quote(self, match: re.Match[str], longest: int) -> str:
        """The messages of a match in `text`, as they were printed, in one line of at most `longest` characters."""
        first = self.text.count("\n", 0, match.start())
        last = first + match[0].rstrip("\n").count("\n")
        return cut(" ".join(message.shown for message in self.messages[first : last + 1]), longest)


def cut(text: str, longest: int) -> str:
    """A text in one line, cut off after `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def shown(log: Sequence[Message]) -> str:
    """Messages as they were printed."""
    return "\n".join(message.shown for message in log)
