"""The text of a bash script without what does nothing: comments, blank lines, functions of the library that nothing
names. Pure.

No general parser: it reads what remote_scripts/ has, in shfmt's layout, and refuses what it doesn't know. Tests hold it
to shfmt's own reading of every script (tests/scripts/test_composition.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

# What a text is inside of; the stack of these decides what a character means.
_CODE, _QUOTED, _VALUE, _SUM = "code", '"', "${", "(("
# \x60 is a backtick.
_INNER = r"""
    (?P<escaped>\\.) | (?P<ansi>\$'(?:[^'\\]|\\.)*') | (?P<sum>\$\(\() | (?P<command>\$\() | (?P<value>\$\{)
    | (?P<backtick>\x60)
"""
_LITERAL = r" | (?P<literal>'[^']*')"
_TOKENS = {
    _CODE: re.compile(
        rf"""(?P<newline>\n) | (?P<blank>[ \t]+) | (?P<comment>\#[^\n]*) | {_INNER} {_LITERAL} | (?P<quote>")
        | (?P<word_of_input><<<) | (?P<here><<-?\ ?(?P<mark>['"]?)(?P<end>\w+)(?P=mark))
        | (?P<open_sum>\(\() | (?P<open>\()
        | (?P<close>\)) | (?P<operator>[;&|]) | (?P<other>[^\n \t\#\\'"$\x60<();&|]+ | .)""",
        re.VERBOSE | re.DOTALL,
    ),
    _QUOTED: re.compile(rf'{_INNER} | (?P<close>") | (?P<other>[^\\"$\x60]+ | .)', re.VERBOSE | re.DOTALL),
    _VALUE: re.compile(
        rf"""{_INNER} {_LITERAL} | (?P<quote>") | (?P<close>\}}) | (?P<other>[^\\'"$\x60}}]+ | .)""",
        re.VERBOSE | re.DOTALL,
    ),
    _SUM: re.compile(
        rf"""{_INNER} {_LITERAL} | (?P<quote>") | (?P<open>\() | (?P<close>\)) | (?P<other>[^\\'"$\x60()]+ | .)""",
        re.VERBOSE | re.DOTALL,
    ),
}
# Most lines need no such care: what is to go, and what opens nothing.
_EMPTY = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)+")
# Each character can be matched in one way only, so that a line that isn't simple costs no time. No possessive
# quantifier does that here: Python 3.11 up to 3.11.4 (Debian 12 has 3.11.2) matches them wrongly (gh-106052).
_SIMPLE = re.compile(
    r"""[^\n'"\\\#\x60()<$]*
        (?: (?: \$\w | \$\{\w+\} | '[^'\n]*' | "(?:[^"\\$\x60\n]|\$\w|\$\{\w+\})*" | \(\) )
            [^\n'"\\\#\x60()<$]* )* \n""",
    re.VERBOSE,
)
# Token -> what it opens.
_OPENS = {"quote": [_QUOTED], "value": [_VALUE], "command": [_CODE], "sum": [_SUM, _SUM], "open_sum": [_SUM, _SUM]}
# After these `#` begins a comment.
_BEFORE_A_WORD = {"newline", "blank", "open", "close", "command", "operator"}
_FUNCTION = re.compile(r"([A-Za-z_]\w*)\(\) (.*)", re.DOTALL)
_VARIABLE = re.compile(r"(?:export |declare -A )?([A-Za-z_]\w*)(?==|$)")
_WORD = re.compile(r"[A-Za-z_]\w*")


def stripped(text: str) -> str:
    """`text` without comments and blank lines; what it does stays the same.

    :raises ValueError: it has what is not known here, such as a command between backticks.
    """
    return "".join(_lines(text))


def needed(library: Iterable[str], script: str) -> str:
    """Parts of the library and a script, all `stripped`, without what nothing names: functions, and parts of which
    nothing is named.

    A name counts wherever it stands as a word, in a text too: a function that is called by its name in a variable, by a
    trap, or in another process stays. What a part does besides defining functions is sent as soon as a function or a
    variable of it is named.
    """
    parts = [_part(text) for text in library]
    words = {*_WORD.findall(script)}
    sent: set[tuple[_LibraryPart, str]] = set()
    while new := {(part, name) for part in parts for name in part.reached(words)} - sent:
        sent |= new
        words |= {word for part, name in new for word in part.words[name]}
    return "".join(text for part in parts for name, text in part.chunks if (part, name) in sent) + script


@functools.cache
def _part(text: str) -> _LibraryPart:
    """A part is in many scripts."""
    return _LibraryPart(text)


class _LibraryPart:
    """A part of the library: `chunks` in their order; `words` that are in each function, and, without a name, outside
    of them."""

    def __init__(self, text: str) -> None:
        self.chunks = list(_chunks(text.splitlines(keepends=True)))
        self.words: dict[str, set[str]] = {"": set()}
        for name, chunk in self.chunks:
            self.words.setdefault(name, set()).update(_WORD.findall(chunk))
        self._variables = {match[1] for name, chunk in self.chunks if not name and (match := _VARIABLE.match(chunk))}

    def reached(self, words: set[str]) -> set[str]:
        found = self.words.keys() & words
        return {*found, ""} if found or self._variables & words else set()


def functions_of(text: str) -> list[str]:
    """The names of the functions that a `stripped` text defines, in its order."""
    return [name for name, _ in _chunks(text.splitlines(keepends=True)) if name]


def _chunks(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """A function's name and text, or no name and a line. shfmt begins a function at the margin, and ends it there."""
    name, text, end = "", "", ""
    for line in lines:
        if end:
            text += line
        elif match := _FUNCTION.match(line):
            name, text = match[1], line
            end = {"{\n": "}", "(\n": ")"}.get(match[2], "")
            if end:
                continue
        else:
            yield "", line
            continue
        if not end or line.startswith(end):
            yield name, text
            name, text, end = "", "", ""
    if end:
        raise ValueError(f"the function {name} has no end")


def _lines(text: str) -> Iterable[str]:
    inside, here = [_CODE], list[str]()
    line: list[str] = []
    at, before = 0, "newline"
    while at < len(text):
        if before == "newline" and not line and inside[-1] == _CODE:
            if skipped := _EMPTY.match(text, at):
                at = skipped.end()
                continue
            if simple := _SIMPLE.match(text, at):
                yield simple[0]
                at = simple.end()
                continue
        token = _TOKENS[inside[-1]].match(text, at)
        kind = token.lastgroup if token else None
        if token is None or kind is None or kind == "backtick":
            raise ValueError(f"not known here: {text[at : at + 40]!r}")
        at = token.end()
        if inside[-1] == _CODE:
            # The innermost group of a here-document is its end.
            kind = "here" if kind == "end" else kind
            if kind == "comment" and before in _BEFORE_A_WORD:
                if line and before == "blank":
                    line.pop()
                continue
            if kind == "comment":  # inside a word
                at, kind = token.start() + 1, "other"
            if kind == "newline":
                before = kind
                if line and (len(line) > 1 or line[0].strip()):
                    yield "".join([*line, "\n"])
                line = []
                while here:
                    end = here.pop(0)
                    body = re.compile(rf".*?^\t*{end}\n", re.DOTALL | re.MULTILINE).match(text, at)
                    if body is None:
                        raise ValueError(f"the here-document {end} has no end")
                    yield body[0]
                    at = body.end()
                continue
            if kind == "here":
                here.append(token["end"])
        if kind == "literal" and inside[-1] != _CODE and _QUOTED in inside and inside[-1] == _VALUE:
            raise ValueError(f"not known here: {token[0]!r} in a quoted ${{}}")
        line.append(text[token.start() : at])
        before = kind
        if kind == "close":
            if len(inside) > 1:
                inside.pop()
        elif kind == "open":
            inside.append(inside[-1])
        else:
            inside += _OPENS.get(kind, [])
    if line:
        yield "".join(line)
