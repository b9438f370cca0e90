"""apt that looks at sources, lists, pins and a log of its own, in a folder below /run: what is fetched, asked and
simulated there changes nothing of the system's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remote_scripts.tools.files import Files

# Of the system's, with the option that names each: what is in them is seen, too.
_FOLDERS = {
    "lists": ("State::lists", "/var/lib/apt/lists"),
    "sources": ("Etc::sourceparts", "/etc/apt/sources.list.d"),
    "preferences": ("Etc::preferencesparts", "/etc/apt/preferences.d"),
    "conf": ("Etc::parts", "/etc/apt/apt.conf.d"),
}
_MAIN = "/etc/apt/apt.conf"
# An owner's hooks are for changes of the system's own lists. (-o doesn't clear a list.)
_CLEARED = "".join(f"#clear APT::Update::{name};\n" for name in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"))


@dataclass(frozen=True)
class Aside:
    """`options`: of each of apt's programs, with `environment`; `fetching`: further ones, with which `apt-get update`
    fetches the lists of the sources that were added, and no others."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    fetching: tuple[str, ...] = ()


#: The system's own apt.
THE_SYSTEMS = Aside()


@contextlib.contextmanager
def aside(files: Files, sources: Mapping[str, str], pins: Mapping[str, str], there: Sequence[str]) -> Iterator[Aside]:
    """Such an apt, until its end.

    :param sources: files for sources.list.d, by their names.
    :param pins: the same for preferences.d, in place of the system's of that name.
    :param there: names of sources that the system has itself: their lists are fetched anew all the same.
    """
    folder = f"/run/homelab/apt-{os.getpid()}"
    here, given = files.name(folder), os.environ.get("APT_CONFIG")
    texts = {f"only/{name}": text for name, text in sources.items()}
    texts |= {f"sources/{name}": text for name, text in sources.items() if name not in there}
    texts |= {f"preferences/{name}": text for name, text in pins.items()}
    texts["apt.conf"] = _include(given) + f'Dir::Etc::parts "{here}/conf";\nDir::Etc::main "{here}/main";\n'
    # apt reads it last.
    texts["main"] = _include(files.name(_MAIN) if files.is_file(_MAIN) else None) + _CLEARED
    files.remove_tree(folder)
    try:
        for name in (*_FOLDERS, "only", "log", "cache/archives/partial", "lists/partial"):
            files.need_folder(f"{folder}/{name}")
        for name, (_, theirs) in _FOLDERS.items():
            for entry in files.names(theirs):
                if entry not in ("lock", "partial", "auxfiles", *pins):
                    files.write_link(files.name(f"{theirs}/{entry}"), f"{folder}/{name}/{entry}")
        for path, text in texts.items():
            files.write(f"{folder}/{path}", text.encode(), 0o644)
        places = {option: name for name, (option, _) in _FOLDERS.items()} | {"Log": "log", "Cache": "cache"}
        only = {"Dir::Etc::sourceparts": f"{here}/only", "Dir::Etc::sourcelist": "/dev/null"}
        yield Aside(
            _options({f"Dir::{option}": f"{here}/{name}" for option, name in places.items()}),
            {"APT_CONFIG": f"{here}/apt.conf"},
            _options({**only, "APT::Get::List-Cleanup": "0", "APT::Update::Error-Mode": "any"}),
        )
    finally:
        files.remove_tree(folder)


def _include(path: str | None) -> str:
    return f'#include "{path}";\n' if path else ""


def _options(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))
