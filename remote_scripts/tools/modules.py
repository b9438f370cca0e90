"""The modules of this package: their sources, whether it runs from an archive or a folder; which ones a module needs;
and the archives that are made of them.
"""

from __future__ import annotations

import functools
import io
import pkgutil
import re
import zipfile
from collections.abc import Callable, Mapping

PACKAGE = "remote_scripts"
AGENT = f"{PACKAGE}.agent"
# Statements as the formatter writes them: to parse the whole package takes half a second of each run. A test compares.
_IMPORTS = re.compile(
    rf"^[ \t]*(?:from ({PACKAGE}[\w.]*) import (\((?:[^()#]|#.*)*\)|.*)|import ({PACKAGE}[\w.]*))", re.MULTILINE
)
_COMMENT, _NAME = re.compile(r"#.*"), re.compile(r"(?<!\bas )\b\w+")
# A moment that zip can tell, for archives that are the same each time.
_WHEN = (1980, 1, 1, 0, 0, 0)


def source(module: str) -> str:
    """The text of a module, with the line ends that it has in the repository; empty: there is no such module."""
    return (_content(module) or b"").decode().replace("\r\n", "\n")


def is_module(name: str) -> bool:
    """Whether there is such a module; a package is none."""
    return _content(name) is not None


@functools.cache
def _content(module: str, ending: str = "py") -> bytes | None:
    try:
        return pkgutil.get_data(PACKAGE, f"{module.removeprefix(f'{PACKAGE}.').replace('.', '/')}.{ending}")
    except OSError:
        return None


def imported(text: str) -> frozenset[str]:
    """The modules of the package that a module's source imports, anywhere in it."""
    modules: set[str] = set()
    for package, names, module in _IMPORTS.findall(text):
        name = package or module
        # What a module has is no module.
        modules |= {name} if is_module(name) else {f"{name}.{part}" for part in _NAME.findall(_COMMENT.sub("", names))}
    return frozenset(filter(is_module, modules))


def needed(*modules: str, imports: Callable[[str], frozenset[str]] | None = None) -> frozenset[str]:
    """The modules, with all that they import of the package, and what those import.

    :param imports: says what a module imports; by default its source does.
    """
    collected: set[str] = set()
    open_ones = [*modules]
    while open_ones:
        module = open_ones.pop()
        if module not in collected:
            collected.add(module)
            open_ones += imports(module) if imports else imported(source(module))
    return frozenset(collected)


def packed(texts: Mapping[str, str], comment: str = "", *, compiled: bool = False) -> bytes:
    """An archive of modules, with the packages that they are in: the same bytes each time.

    :param texts: a module's name -> its source; `__main__` is what the archive does when it is run.
    :param comment: of the zip: its last bytes.
    :param compiled: it is started often: nothing in it is compressed, and beside a source is its bytecode, if the
        archive that this runs from has it (put_agent.py). Another version of Python passes that by.
    """
    packages = {name.rpartition(".")[0] for name in texts} - {""}
    paths: dict[str, str | bytes] = {f"{package.replace('.', '/')}/__init__.py": "" for package in packages}
    paths |= {f"{name.replace('.', '/')}.py": text for name, text in texts.items()}
    paths |= {f"{name.replace('.', '/')}.pyc": code for name in texts if compiled and (code := _content(name, "pyc"))}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if compiled else zipfile.ZIP_DEFLATED) as whole:
        for path, text in sorted(paths.items()):
            entry = zipfile.ZipInfo(path, _WHEN)
            entry.compress_type = whole.compression
            whole.writestr(entry, text)
        whole.comment = comment.encode()
    return out.getvalue()
