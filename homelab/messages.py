"""A log's text as its messages: as they were meant, not as the way in which they were printed breaks them.

The kernel, its drivers, QEMU and container engines say one thing in one or more lines, and who shows it adds to each:
`dmesg` a time stamp (and indents the further lines of a message), `journalctl` the date, the host and who said it, a
serial line the level. NVIDIA's driver breaks its sentences and begins each line with "NVRM:" anew, and lines of others
come between. All of that is taken away here, once, so that no pattern has to know of it; a terminal's colours as well.
Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homelab.text import clean

# How a line begins where something else than its message begins it: `<6>` and /dev/kmsg's fields; times in brackets, of
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
# Who says it, after such a stamp: a host and a program; make's own lines look the same.
_BY = r"(?:[\w.-]+\s)?(?:kernel|(?!make\[)[\w./@-]+\[\d+\]):\s"
_PREFIX = re.compile(rf"\s*(?:(?:{_STAMP}\s*)+(?:{_BY}\s*)?(?:{_STAMP}\s*)*|(?:[\w.-]+\s)?kernel:\s+(?!\d))")
# Where one line has several messages, as after a copy: before the next one's beginning.
_NEXT = re.compile(
    rf"(?<=\s)(?=(?:{_STAMP}\s*)+{_BY}|\[\s*\d+\.\d{{3,}}\]\s|NVRM:\s"
    r"|(?:pci|pcieport|vfio-pci|nvidia|nouveau|snd_hda_intel|xhci_hcd|amdgpu|i915|xe)\s[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]:\s)"
)
# How rsyslog and /dev/kmsg write the line breaks within a message.
_ESCAPED_BREAK = re.compile(r"#012|\\x0a|\\n(?=\s*NVRM:)")
# Sentences that NVIDIA's driver breaks (kernel-open/nvidia/nv.c and nv-pci.c, src/nvidia/arch/nvalloc/unix/src/osapi.c)
# begin like that …
_SENTENCE = re.compile(r"NVRM: (?:The |This |Try |API mismatch|request_mem_region failed)")
# … and go on like this: with a word amid a sentence, not with the name of a function; one that never ends isn't
# followed for ever.
_FURTHER = re.compile(
    r"NVRM: (?!loading )(?:[a-z][\w./'-]*(?: |$)|\(|NVIDIA \S+ driver|System Processor|Firmware'|Software |BAR\d)"
)
_LONGEST_SENTENCE = 8
# What a line has at most that is read as one: twice what the kernel gives a message (kernel/printk/printk.c,
# PRINTKRB_RECORD_MAX). Patterns with `.*` would take hours for a line of a megabyte.
_LONGEST_LINE = 2048
# A blank of a pattern, but for one that is repeated or belongs to a set of characters.
_BLANK = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\s+(?![*+?{])")


@dataclass
class Message:
    """`raw`: its lines as they were printed; `text`: what it says, in one line."""

    raw: list[str]
    text: str

    @property
    def shown(self) -> str:
        """As it was printed."""
        return "\n".join(self.raw)

    def go_on(self, line: str, said: str) -> None:
        """Takes another line of it, which says that."""
        self.raw.append(line.strip())
        self.text = f"{self.text} {re.sub(r'^NVRM:', '', said).strip()}"

    @property
    def is_open(self) -> bool:
        """Whether it is a sentence that NVIDIA's driver hasn't ended yet."""
        return bool(_SENTENCE.match(self.text)) and not self.text.endswith(".") and len(self.raw) < _LONGEST_SENTENCE


def messages(text: str) -> list[Message]:
    """The messages of a log, of a program's output, or of a piece that somebody copied, in the order in which they
    begin."""
    found: list[Message] = []
    sentence: Message | None = None  # the driver's last one, whatever of others comes between
    stamped = False  # does the line before belong to a message that was begun with a stamp?
    for prefix, line in _pieces(text):
        said = " ".join(line[len(prefix) :].split())
        if sentence and sentence.is_open and _FURTHER.match(said):
            sentence.go_on(line, said)
        elif stamped and not prefix and line[:2].isspace() and len(found[-1].text) < _LONGEST_LINE:
            found[-1].go_on(line, said)
        else:
            found.append(Message([line.strip()], said))
            if _SENTENCE.match(said):
                sentence = found[-1]
            stamped = bool(prefix)
    return found


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Each line, or part of one that is a message by itself, with how it begins."""
    for line in _lines(_ESCAPED_BREAK.sub("\n", clean(text))):
        rest = line
        while rest.strip():
            begins = _PREFIX.match(rest)
            prefix = begins[0] if begins else ""
            said = rest[len(prefix) :].lstrip()
            following = _NEXT.search(rest, len(rest) - len(said) + 1)
            end = following.start() if following else len(rest)
            yield prefix, rest[:end]
            rest = rest[end:]


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """As `expression` has it, without regard to case."""
    return re.compile(expression(pattern), re.IGNORECASE)


def expression(pattern: str) -> str:
    """The pattern, whose blanks also are the line breaks at which somebody or something has wrapped a text."""
    return _BLANK.sub(lambda found: r"\s+" if found[0].isspace() else found[0], pattern)


class Log:
    """The messages of a text, to be searched at once."""

    def __init__(self, text: str) -> None:
        """:param text: output or log, of any length."""
        self.messages = messages(text)
        self.text = "\n".join(message.text for message in self.messages)

    def quote(self, match: re.Match[str], longest: int) -> str:
        """What was printed where something was found in the text, in one line."""
        first = self.text.count("\n", 0, match.start())
        last = first + match[0].rstrip("\n").count("\n")
        return cut(" ".join(message.shown for message in self.messages[first : last + 1]), longest)


def cut(text: str, longest: int) -> str:
    """A text in one line, without its end where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def shown(found: Sequence[Message]) -> str:
    """Messages as they were printed."""
    return "\n".join(message.shown for message in found)
