"""The kernel command line of the next boot: what is configured, by whom, what was generated of it, and homelab's words
written there.

GRUB: /etc/default/grub.d/zz-homelab-NAME.cfg and /etc/grub.d/12_homelab; systemd-boot: the end of the first line of
/etc/kernel/cmdline, and /etc/kernel/{postinst,postrm}.d/zzz-homelab.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from remote_scripts import installed
from remote_scripts.shared import boot
from remote_scripts.shared.boot import GRUB_MENU, KERNEL_CMDLINE, NAMES
from remote_scripts.shared.words import missing_words, without_words
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_GRUB, _DROP_INS = "/etc/default/grub", "/etc/default/grub.d"
_OURS = "zz-homelab-"
_DROP_IN = """\
# Written by homelab, which takes it away again (pulumi destroy).
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"
export HOMELAB_WORDS="${{HOMELAB_WORDS:-}} {words}"
"""
_EXPORTED = re.compile(r'^export HOMELAB_WORDS="\$\{HOMELAB_WORDS:-\} (.*)"$', re.MULTILINE)
_KERNEL_LINE = re.compile(r"^[ \t\r\v\f]*linux(?:efi)?[ \t\r\v\f]+(?:[^ \t\r\v\f\n]+[ \t\r\v\f]*(.*))?", re.MULTILINE)
# grub-mkconfig sources these files: only a shell knows what they say. Whatever they print is dropped. The newline says
# that none of them has ended the shell.
_ASK_SHELL = (
    'for file in "$@"; do . "$file" >/dev/null 2>&1; done; '
    "printf '%s\\n' \"$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT\""
)


def own(system: System) -> dict[str, str]:
    """Each layer -> what it has on the command line of the next boot, as it is recorded.

    :raises Failure: it can't be read.
    """
    words = {}
    for name in NAMES:
        exported = _EXPORTED.search(system.files.need_text(boot.drop_in(name)))
        texts = f"{exported[1] if exported else ''} {system.files.need_text(boot.record(name))}"
        words[name] = " ".join(dict.fromkeys(texts.split()))
    return words


def configured(system: System, loader: str, words: Mapping[str, str] | None = None) -> str:
    """What the kernel gets at the next boot.

    :param loader: grub or systemd-boot.
    :param words: what it would get with these of ours, by layers, in the place of those that it has.
    :raises Failure: it can't be read.
    """
    if loader == "grub":
        return _grub_words(system, words)
    # Only the first line counts (proxmox-boot-tool's get_first_line), with or without a newline at its end.
    line = system.files.need_text(KERNEL_CMDLINE).partition("\n")[0]
    if words is not None:
        for name in NAMES:
            line = without_words(line, system.files.need_text(boot.record(name)).split())
        line = " ".join([line, *filter(None, words.values())])
    return line


def generated(system: System) -> str:
    """The kernel command line of the first entry of GRUB's menu; empty where there is no menu, or no entry in it.

    :raises Failure: there is one that can't be read.
    """
    match = _KERNEL_LINE.search(system.files.need_text(GRUB_MENU))
    return (match[1] or "") if match else ""


def _grub_words(system: System, words: Mapping[str, str] | None) -> str:
    """GRUB reads the files in the order of their names."""
    names = [name for name in system.files.need_names(_DROP_INS) if name.endswith(".cfg") and not name.startswith(".")]
    places, text = [_GRUB, *(f"{_DROP_INS}/{name}" for name in names)], ""
    if words is not None:
        text = "".join(_DROP_IN.format(words=of_layer) for of_layer in words.values() if of_layer)
        theirs = [place for place in places if not place.startswith(f"{_DROP_INS}/{_OURS}")]
        places = [place for place in theirs if place < f"{_DROP_INS}/{_OURS}"]
        places += [*(["/dev/stdin"] if text else []), *theirs[len(places) :]]
    files = [place if place == "/dev/stdin" else str(system.files.at(place)) for place in places]
    files = [file for file in files if os.path.exists(file)]
    ask = system.run.ask if words is None else system.run.ask_once  # none of ours is among the files
    done = ask("bash", "-c", _ASK_SHELL, "bash", *files, stdin=text.encode("utf-8", "surrogateescape"))
    output = done.output.decode("utf-8", "surrogateescape")
    if done.status != 0 or not output.endswith("\n"):
        raise Failure(
            f"to read which words {_GRUB} and {_DROP_INS} give the kernel",
            f"the shell that reads them as grub-mkconfig does ended with {done.status}",
            "what the next boot gets isn't known",
            "see on the host what grub-mkconfig complains of, and mend that file",
        )
    return output.removesuffix("\n").rstrip("\n")


def write(system: System, name: str, words: str, loader: str) -> None:
    """A layer's words, none included, and with vfio's the second boot entry. What is there for the other loader, which
    the host had before, goes.
    """
    is_grub, has_entry = loader == "grub", name == "vfio" and bool(words)
    _edit_line(system, name, "" if is_grub else words)
    _put(system, name, boot.drop_in(name), 0o644, _DROP_IN.format(words=words) if is_grub and words else "")
    _put(system, name, boot.GRUB_ENTRY, 0o755, f"{installed.TEXTS['grub_entry']}\n" if is_grub and has_entry else "")
    hook = f"{installed.TEXTS['systemd_boot_entry']}\n" if has_entry and not is_grub else ""
    for path in (boot.HOOK, boot.REMOVAL_HOOK):
        _put(system, name, path, 0o755, hook)


def _put(system: System, name: str, path: str, mode: int, text: str) -> None:
    if text:
        system.files.put(name, path, mode, text.encode("utf-8", "surrogateescape"))
    else:
        system.files.drop(name, path)


def _edit_line(system: System, name: str, words: str) -> None:
    """Puts the words at the end of the first line of /etc/kernel/cmdline, in place of those that this name has there.
    Words are recorded before they are in it, and until they are out of it: taking them away leaves every other byte.
    """
    files, record = system.files, boot.record(name)
    old, new = system.files.need_text(record).split(), words.split()
    path = f"/{os.path.relpath(files.at(KERNEL_CMDLINE).resolve(), system.root.resolve())}"
    first, newline, rest = system.files.need_text(KERNEL_CMDLINE).partition("\n")
    if old == new and not missing_words(words, first):
        return
    line = " ".join([_without_last(first, old), *new])
    if files.planning:
        files.plan_file("changed", path)  # a plan has the command line before and after by itself
        return
    files.about_to_change()
    files.remember(record, path)
    files.need_folder(record.rpartition("/")[0])
    _record(system, record, [*old, *new])
    if files.exists(path):
        files.rewrite(path, f"{line}{newline}{rest}".encode("utf-8", "surrogateescape"))
    files.at_finish.append(lambda: _record(system, record, new))
    files.changed = True
    system.log.say(f"wrote {path}")


def _without_last(line: str, words: Iterable[str]) -> str:
    """Another one of the same word is its owner's."""
    for word in words:
        before, found, after = f" {line} ".rpartition(f" {word} ")
        line = f"{before} {after}".removeprefix(" ").removesuffix(" ") if found else line
    return line


def _record(system: System, record: str, words: Iterable[str]) -> None:
    if text := " ".join(dict.fromkeys(words)):
        system.files.write(record, f"{text}\n".encode("utf-8", "surrogateescape"), 0o600)
    else:
        system.files.remove(record)
