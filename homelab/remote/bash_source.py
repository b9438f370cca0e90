"""Removes from a bash script's text comments, blank lines, and functions of the library that nothing names. Pure.

No general parser: it reads the syntax that remote_scripts/ uses, in shfmt's layout, and refuses any other. Tests
compare it with shfmt's own reading of every script (tests/scripts/test_composition.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

# Contexts of bash's syntax; the stack of these decides what a character means.
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
# Most lines are read without tokens: empty lines and comments, and lines that open no context.
_EMPTY = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)+")
# Each character can be matched in one way only, so that a line that isn't simple costs no time. No possessive
# quantifier does that here: Python 3.11 up to 3.11.4 (Debian 12 has 3.11.2) matches them wrongly (gh-106052).
_SIMPLE = re.compile(
    r"""[^\n'"\\\#\x60()<$]*
        (?: (?: \$\w | \$\{\w+\} | '[^'\n]*' | "(?:[^"\\$\x60\n]|\$\w|\$\{\w+\})*" | \(\) )
            [^\n'"\\\#\x60()<$]* )* \n""",
    re.VERBOSE,
)
# Token -> contexts that it opens.
_OPENS = {"quote": [_QUOTED], "value": [_VALUE], "command": [_CODE], "sum": [_SUM, _SUM], "open_sum": [_SUM, _SUM]}
# After these `#` begins a comment.
_BEFORE_A_WORD = {"newline", "blank", "open", "close", "command", "operator"}
_FUNCTION = re.compile(r"([A-Za-z_]\w*)\(\) (.*)", re.DOTALL)
_VARIABLE = re.compile(r"(?:export |declare -A )?([A-Za-z_]\w*)(?==|$)")
_WORD = re.compile(r"[A-Za-z_]\w*")


def stripped(text: str) -> str:
    """`text` without comments and blank lines; it does the same.

    :raises ValueError: it has syntax that this parser doesn't read, such as a command between backticks.
    """
    return "".join(_lines(text))


def needed(library: Iterable[str], script: str) -> str:
    """One text of the library's parts and a script, all `stripped`, without functions that nothing names, and without
    parts of which nothing is named.

    A name counts wherever it stands as a word, also in a string: a function that is called by its name in a variable,
    by a trap, or in another process stays. A part's lines outside of functions stay as soon as one of its functions or
    variables is named.
    """
    parts = [_part(text) for text in library]
    words = {*_WORD.findall(script)}
    included: set[tuple[_LibraryPart, str]] = set()
    while reached := {(part, name) for part in parts for name in part.reached(words)} - included:
        included |= reached
        words |= {word for part, name in reached for word in part.words[name]}
    return "".join(text for part in parts for name, text in part.chunks if (part, name) in included) + script


@functools.cache
def _part(text: str) -> _LibraryPart:
    """A part of the library, parsed once: many scripts have it."""
    return _LibraryPart(text)


class _LibraryPart:
    """A part of the library. `chunks`: function's name (empty: none) and text, in their order; `words`: function's
    name -> words in it, under the empty name those outside of functions.
    """

    def __init__(self, text: str) -> None:
        self.chunks = list(_chunks(text.splitlines(keepends=True)))
        self.words: dict[str, set[str]] = {"": set()}
        for name, chunk in self.chunks:
            self.words.setdefault(name, set()).update(_WORD.findall(chunk))
        self._variables = {match[1] for name, chunk in self.chunks if not name and (match := _VARIABLE.match(chunk))}

    def reached(self, words: set[str]) -> set[str]:
        """The names of the chunks that a text with these words uses."""
        functions = self.words.keys() & words
        return {*functions, ""} if functions or self._variables & words else set()


def functions_of(text: str) -> list[str]:
    """The names of the functions that a `stripped` text defines, in the text's order."""
    return [name for name, _ in _chunks(text.splitlines(keepends=True)) if name]


def _chunks(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Pairs of a function's name and text, or of no name and a line. shfmt begins and ends a function at the margin."""
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
    """The lines of a script that aren't empty, without comments; a here-document is one item."""
    contexts, here_documents = [_CODE], list[str]()
    pieces: list[str] = []
    position, previous = 0, "newline"
    while position < len(text):
        if previous == "newline" and not pieces and contexts[-1] == _CODE:
            if skipped := _EMPTY.match(text, position):
                position = skipped.end()
                continue
            if simple := _SIMPLE.match(text, position):
                yield simple[0]
                position = simple.end()
                continue
        token = _TOKENS[contexts[-1]].match(text, position)
        kind = token.lastgroup if token else None
        if token is None or kind is None or kind == "backtick":
            raise ValueError(f"not known here: {text[position : position + 40]!r}")
        position = token.end()
        if contexts[-1] == _CODE:
            # The innermost group of a here-document is its end.
            kind = "here" if kind == "end" else kind
            if kind == "comment" and previous in _BEFORE_A_WORD:
                if pieces and previous == "blank":
                    pieces.pop()
                continue
            if kind == "comment":  # inside a word
                position, kind = token.start() + 1, "other"
            if kind == "newline":
                previous = kind
                if pieces and (len(pieces) > 1 or pieces[0].strip()):
                    yield "".join([*pieces, "\n"])
                pieces = []
                while here_documents:
                    end = here_documents.pop(0)
                    body = re.compile(rf".*?^\t*{end}\n", re.DOTALL | re.MULTILINE).match(text, position)
                    if body is None:
                        raise ValueError(f"the here-document {end} has no end")
                    yield body[0]
                    position = body.end()
                continue
            if kind == "here":
                here_documents.append(token["end"])
        if kind == "literal" and contexts[-1] != _CODE and _QUOTED in contexts and contexts[-1] == _VALUE:
            raise ValueError(f"not known here: {token[0]!r} in a quoted ${{}}")
        pieces.append(text[token.start() : position])
        previous = kind
        if kind == "close":
            if len(contexts) > 1:
                contexts.pop()
        elif kind == "open":
            contexts.append(contexts[-1])
        else:
            contexts += _OPENS.get(kind, [])
    if pieces:
        yield "".join(pieces)
