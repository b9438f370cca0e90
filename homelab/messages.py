"""The messages in the text of a log, each in one line and without what a program adds when it prints them. Pure.

A message of the kernel, its drivers, QEMU or a container engine has one or more lines. `dmesg` adds a time stamp (and
indents the further lines of a message), `journalctl` the date, the host and the program, a serial line the level.
NVIDIA's driver breaks its sentences and begins each line with "NVRM:" anew, and lines of other programs come between.
All of that is removed here, and a terminal's colours as well, so that patterns need not match it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homelab.text import clean

# What may stand before a line's message: `<6>` and /dev/kmsg's fields; times in brackets, of
# dmesg (also -T, -H, -x) and of the kernel's callers (printk.caller); dates of syslog and of `journalctl` (also -o
# short-iso, short-full).
_STAMP = (
    r"(?:<\d{1,3}>"
    r"|\d+,\d+,\d+,[^;\s]*;"
    r"|\w+\s*:\w+\s*:\s(?=\[)"
    r"|\[\s*(?:\+?\d+\.\d+|[TC]\d+|\w{3}\s?\d+\s\d\d:\d\d|\w{3}\s\w{3}\s+\d+\s\d\d:\d\d:\d\d\s\d{4}|\d{4}-\d\d-\d\d[T\s][\d:.,+]+)\]"
    r"|(?:\w{3}\s)?\d{4}-\d\d-\d\d[T\s]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d|\s[A-Z]{3,4}(?=\s))?(?=\s)"
    r"|[^\W\d]{3,4}\.?\s{1,2}\d{1,2}\s\d\d:\d\d:\d\d(?:\.\d+)?(?=\s))"
)
# A host and a program, after such a stamp; make's own lines look the same.
_PROGRAM = r"(?:[\w.-]+\s)?(?:kernel|(?!make\[)[\w./@-]+\[\d+\]):\s"
_PREFIX = re.compile(rf"\s*(?:(?:{_STAMP}\s*)+(?:{_PROGRAM}\s*)?(?:{_STAMP}\s*)*|(?:[\w.-]+\s)?kernel:\s+(?!\d))")
# A stamp as far as its second. Of dmesg -H the time since the message before doesn't say it.
_SECOND = re.compile(r".*?(?:\d\d:\d\d:\d\d|\[\s*\d+(?=\.))")
# The place before a further message in the same line, as in copied text.
_NEXT_MESSAGE = re.compile(
    rf"(?<=\s)(?=(?:{_STAMP}\s*)+{_PROGRAM}|\[\s*\d+\.\d{{3,}}\]\s|NVRM:\s"
    r"|(?:pci|pcieport|vfio-pci|nvidia|nouveau|snd_hda_intel|xhci_hcd|amdgpu|i915|xe)\s[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]:\s)"
)
# How rsyslog and /dev/kmsg write the line breaks within a message.
_ESCAPED_BREAK = re.compile(r"#012|\\x0a|\\n(?=\s*NVRM:)")
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
    """A message of a log. `raw`: its lines as they were printed; `text`: the message alone, in one line; `second`: in
    which it was printed, as its stamp says it, empty: it doesn't."""

    raw: list[str]
    text: str
    second: str = ""

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
    """The messages of a log, of a program's output, or of a copied part, in the order of their first lines."""
    log: list[Message] = []
    sentence: Message | None = None  # the driver's last one; messages of other programs may come between
    stamped = False  # whether the line before belongs to a message that begins with a stamp
    for prefix, line in _pieces(text):
        part = " ".join(line[len(prefix) :].split())
        if sentence and sentence.is_open and _CONTINUATION.match(part):
            sentence.append(line, part)
        elif stamped and not prefix and line[:2].isspace() and len(log[-1].text) < _LONGEST_LINE:
            log[-1].append(line, part)
        else:
            second = _SECOND.match(prefix)
            log.append(Message([line.strip()], part, second[0] if second else ""))
            if _SENTENCE.match(part):
                sentence = log[-1]
            stamped = bool(prefix)
    return log


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Each line, or part of a line that is a message of its own, after its prefix: what stands before the message."""
    for line in _lines(_ESCAPED_BREAK.sub("\n", clean(text))):
        rest = line
        while rest.strip():
            match = _PREFIX.match(rest)
            prefix = match[0] if match else ""
            message = rest[len(prefix) :].lstrip()
            next_message = _NEXT_MESSAGE.search(rest, len(rest) - len(message) + 1)
            end = next_message.start() if next_message else len(rest)
            yield prefix, rest[:end]
            rest = rest[end:]


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))


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
