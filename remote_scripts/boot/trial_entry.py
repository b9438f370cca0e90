"""What a boot loader reads of a boot on trial, as texts: the entry, and the choice of it. Pure.

GRUB: a section of custom.cfg, which the menu reads last, has a copy of the menu's default entry. The choice lies in an
environment block (`grub-editenv`, 1024 bytes). This program writes `once`; GRUB turns that into `taken` before it
starts the trial; `keep` means that the trial is confirmed, and makes it the default until a new menu is made.
systemd-boot: the trial is an entry of its own, chosen by a variable that the loader deletes.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from remote_scripts.tools.words import without_words

ID, TITLE = "homelab-trial", "GPU passthrough, on trial"
#: By this word on its command line a boot is known for the trial.
WORD = "homelab.trial"
#: A kernel that panics, or that is stuck, restarts: into the default, where the loader has taken the choice back.
RESTARTS = "panic=30 softlockup_panic=1"
#: On an ESP, and beside GRUB's menu where there is no ESP.
ON_ESP, BESIDE_MENU = "homelab/grubenv", "homelab.env"
#: The place beside the menu, where GRUB can write, among the UUIDs of ESPs.
WRITABLE_MENU = "writable-menu"
_BEGIN, _END = "# homelab: a boot on trial, until it is confirmed\n", "# homelab: end\n"
_SECTION = re.compile(re.escape(_BEGIN) + r"(?s:.*?)" + re.escape(_END))
_SECTIONS = re.compile(rf"\n?{_SECTION.pattern}")
_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?P<kind>menuentry|submenu)[ \t](?P<head>.*)\{ *\n(?P<body>(?s:.*?))^(?P=indent)\} *\n",
    re.MULTILINE,
)
_DEFAULT = re.compile(r'^[ \t]*set default=(?P<quote>"?)(?P<value>.*?)(?P=quote)[ \t]*$', re.MULTILINE)
_KERNEL_LINE = re.compile(r"^([ \t]*linux(?:16|efi)?[ \t].*?)[ \t]*$", re.MULTILINE)
_FILES = re.compile(r"^[ \t]*(linux|initrd)(?:16|efi)?[ \t]+(.+?)[ \t]*$", re.MULTILINE)
_OPTIONS = re.compile(r"^options[ \t]+(.*?)[ \t]*$", re.MULTILINE)
_ID_OPTIONS = ("$menuentry_id_option", "--id")
_BLOCK_BYTES = 1024
_ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef")
_LOOK = """\
  if [ -n "$homelab_place" -a -s "$homelab_file" ]; then
    set homelab_trial=
    load_env --file "$homelab_file" homelab_trial
    if [ "$homelab_trial" = keep ]; then
      set homelab_starts=yes
    elif [ "$homelab_trial" = once ]; then
      set homelab_trial=taken
      save_env --file "$homelab_file" homelab_trial
      set homelab_trial=
      load_env --file "$homelab_file" homelab_trial
      if [ "$homelab_trial" = taken ]; then
        set homelab_starts=yes
      fi
    fi
  fi
"""
_CHOICE = """\
insmod part_gpt
insmod part_msdos
insmod fat
set homelab_starts=
{looks}if [ "$homelab_starts" = yes ]; then
  set fallback=0
  set default={id}
  set boot_once=true
fi
"""


@dataclass(frozen=True)
class Entry:
    """A menuentry or submenu of GRUB's menu. `text`: all of it; `inner`: what a submenu has."""

    title: str
    identifier: str
    text: str
    inner: tuple[Entry, ...]


def environment(value: str) -> bytes:
    """The environment block with this choice, which is in its first sector."""
    return f"# GRUB Environment Block\nhomelab_trial={value}\n".encode().ljust(_BLOCK_BYTES, b"#")


def value_of(block: bytes, name: str) -> str:
    """What an environment block has by a name; empty: nothing."""
    match = re.search(rb"^%s=(.*)$" % name.encode(), block, re.MULTILINE)
    return match[1].decode("utf-8", "surrogateescape") if match else ""


def entries(menu: str) -> tuple[Entry, ...]:
    """The entries of a grub.cfg, or of a submenu's text."""
    return tuple(_entries(menu))


def _entries(menu: str) -> Iterator[Entry]:
    for match in _BLOCK.finditer(menu):
        try:
            words = shlex.split(match["head"])
        except ValueError:
            words = []
        by_option = (words[at + 1] for at, word in enumerate(words[:-1]) if word in _ID_OPTIONS)
        inner = entries(match["body"]) if match["kind"] == "submenu" else ()
        yield Entry("".join(words[:1]), next(by_option, ""), match[0], inner)


def default_entry(menu: str, environment_block: bytes) -> tuple[str, bool]:
    """The text of a menu's default entry, and whether the menu's `default` names it. Otherwise it is the first entry
    with a kernel. Empty: there is none.

    :param environment_block: the one beside the menu, which has the saved entry.
    """
    names = [match["value"] for match in _DEFAULT.finditer(menu) if match["value"] != "${next_entry}"]
    choice = names[-1] if names else "0"
    if choice == "${saved_entry}":
        choice = value_of(environment_block, "saved_entry")
    entry = _find(entries(menu), choice or "0")
    if entry is not None and _KERNEL_LINE.search(entry.text):
        return entry.text, True
    return next((entry.text for entry in _leaves(entries(menu)) if _KERNEL_LINE.search(entry.text)), ""), False


def files_of(entry: str) -> tuple[str, list[str]]:
    """The kernel that an entry of either loader starts, empty: none, and its initramfs."""
    lines = _FILES.findall(entry)
    kernel = next((words.split()[0] for key, words in lines if key == "linux"), "")
    return kernel, [path for key, words in lines if key == "initrd" for path in words.split()]


def lacks_initramfs(menu: str, entry: str) -> bool:
    """Whether an entry of GRUB's menu names no initramfs of its own, and others do. An early one stands in all."""
    initramfs, (_, named) = files_of(entry)[1], files_of(menu)
    all_entries = len(_KERNEL_LINE.findall(menu))
    return bool({*named} - {*initramfs}) and all(named.count(path) >= all_entries for path in initramfs)


def _find(menu: Sequence[Entry], choice: str) -> Entry | None:
    """By number, title or id, of a submenu's behind `>`."""
    head, _, rest = choice.partition(">")
    for number, entry in enumerate(menu):
        if head in (str(number), entry.title, entry.identifier):
            return _find(entry.inner, rest or "0") if entry.inner else entry
    return None


def _leaves(menu: Iterable[Entry]) -> Iterator[Entry]:
    for entry in menu:
        yield from _leaves(entry.inner) if entry.inner else (entry,)


def trial_entry(entry: str, without: Iterable[str], words: str) -> str:
    """The entry of the trial: a copy of one that boots, with other words."""
    head, _, body = entry.partition("\n")
    for option in _ID_OPTIONS:
        head = re.sub(rf"{re.escape(option)}[ \t]+('[^']*'|\S+)", "", head)
    head = re.sub(r"menuentry[ \t]+('(?:[^']|'\\'')*'|\"[^\"]*\"|\S+)", f"menuentry '{TITLE}' --id {ID}", head, count=1)
    body = re.sub(r"^[ \t]*savedefault[ \t]*\n", "", body, flags=re.MULTILINE)
    without = [*without]
    return f"{head}\n" + _KERNEL_LINE.sub(lambda match: f"{without_words(match[1], without)} {words}", body)


def section(entry: str, places: Iterable[str]) -> str:
    """What custom.cfg gets: whole lines.

    :param places: of the choice: UUIDs of ESPs, and WRITABLE_MENU.
    """
    looks = ""
    for place in places:
        if place == WRITABLE_MENU:
            looks += f'set homelab_place=menu\nset homelab_file="$prefix/{BESIDE_MENU}"\n'
        else:
            looks += f"set homelab_place=\nsearch --no-floppy --fs-uuid --set=homelab_place {place}\n"
            looks += f'set homelab_file="($homelab_place)/{ON_ESP}"\n'
        looks += _LOOK
    return f"{_BEGIN}{entry}{_CHOICE.format(looks=looks, id=ID)}{_END}"


def custom_cfg(before: str | None, section: str) -> str | None:
    """A custom.cfg with this section in place of an earlier one. With an empty section it is again its owner's file,
    byte for byte. None: the owner has no such file, which isn't the same as an empty one.
    """
    if before is None or _SECTION.fullmatch(before):
        return section or None
    theirs = _SECTIONS.sub("", before)
    return f"{theirs}\n{section}" if section else theirs


def esps(lsblk: str) -> list[str]:
    """The UUID of the ESP of a host where no tool manages ESPs: the one at /boot/efi, else the only one on the disk
    with /boot. Empty: there is none, or several.

    :param lsblk: `lsblk -Pno KNAME,PKNAME,UUID,PARTTYPE,MOUNTPOINT`.
    """
    rows = [dict(word.partition("=")[::2] for word in shlex.split(line)) for line in lsblk.splitlines()]
    by_place = {row.get("MOUNTPOINT"): row for row in rows if row.get("MOUNTPOINT")}
    if uuid := by_place.get("/boot/efi", {}).get("UUID"):
        return [uuid]
    below = by_place.get("/boot") or by_place.get("/")
    names = {below["KNAME"]} if below else set()
    while parents := {row["PKNAME"] for row in rows if row["KNAME"] in names and row["PKNAME"]} - names:
        names |= parents
    here = [row["UUID"] for row in rows if row["PKNAME"] in names and row["PARTTYPE"] in _ESP_TYPES and row["UUID"]]
    return here if len({*here}) == 1 else []


def copied(entry: str, title: str, without: Iterable[str], words: str) -> str:
    """A copy of an entry of systemd-boot with another title and other words; empty: that one isn't whole.

    :param title: the line, as `re.sub` takes it.
    """
    options = _OPTIONS.search(entry)
    if not options:
        return ""
    text = re.sub(r"^title[ \t].*", title, entry, flags=re.MULTILINE)
    return _OPTIONS.sub(lambda match: f"options  {without_words(match[1], without)} {words}".rstrip(), text, count=1)


def default_conf(loader_conf: str, names: Iterable[str]) -> str:
    """The file's name of the entry that systemd-boot starts by default, of these; empty: none."""
    patterns = re.findall(r"^default[ \t]+(\S+)", loader_conf, re.MULTILINE)
    pattern = patterns[-1] if patterns else "*"
    fits = [name for name in names if fnmatch.fnmatch(name, pattern) or name == f"{pattern}.conf"]
    return max(fits, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], default="")


def efi_text(variable: bytes) -> str:
    """The text of an EFI variable as the kernel shows it: four bytes of attributes, then UTF-16 with a NUL."""
    return variable[4:].decode("utf-16-le", "replace").rstrip("\0")
