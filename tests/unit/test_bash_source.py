"""homelab/remote/bash_source.py: what of a script's text is sent."""

from __future__ import annotations

import pytest

from homelab.remote.bash_source import functions_of, needed, stripped

# What is written, and what is sent of it.
TEXTS = {
    "the line for whoever runs the file": ("#!/bin/bash\necho\n", "echo\n"),
    "a line of its own": ("echo 1\n# no\n  # no\necho 2\n", "echo 1\necho 2\n"),
    "after a command": ("echo 1 # no\nf() { # PATH\n  :\n}\n", "echo 1\nf() {\n  :\n}\n"),
    "after an operator, without a space": ("echo;#no\n(#no\n  :\n)\n", "echo;\n(\n  :\n)\n"),
    "blank lines": ("\n\necho\n\n  \necho\n", "echo\necho\n"),
    "at the end, without a newline": ("echo # no", "echo"),
    "in quotes": ("echo '# yes' \" # yes\" $'# yes'\n", "echo '# yes' \" # yes\" $'# yes'\n"),
    "in a text of several lines": ("x='\n# yes\n\n'\ny=\"\n# yes\n\n\"\n", "x='\n# yes\n\n'\ny=\"\n# yes\n\n\"\n"),
    "in a here-document": ("cat <<END # no\n# yes\n\nEND\n# no\n", "cat <<END\n# yes\n\nEND\n"),
    "in a quoted here-document": ("cat <<'END' >x\n# $(yes\n\nEND\n", "cat <<'END' >x\n# $(yes\n\nEND\n"),
    "in a here-document that is moved in": ("cat <<-END\n\t# yes\n\tEND\necho\n", "cat <<-END\n\t# yes\n\tEND\necho\n"),
    "in two here-documents": ("cat <<A - <<B\n# 1\nA\n# 2\nB\n# no\n", "cat <<A - <<B\n# 1\nA\n# 2\nB\n"),
    "a here-string": ("cat <<<a # no\n# no\n", "cat <<<a\n"),
    "counts": ("echo $# ${#x} ${#x[@]} $((16#ff)) $(($# + 1))\n", "echo $# ${#x} ${#x[@]} $((16#ff)) $(($# + 1))\n"),
    "what is cut off": ("echo ${x#y} ${x##* } ${x# } \"${x# }\" # no\n", "echo ${x#y} ${x##* } ${x# } \"${x# }\"\n"),
    "inside a word": ("echo a#b # no\n", "echo a#b\n"),
    "escaped": ("echo \\# yes\\  # no\n", "echo \\# yes\\ \n"),
    "a quote that is escaped": ("echo \\' # no\necho \"\\\"\" # no\n", "echo \\'\necho \"\\\"\"\n"),
    "sums": ("((x = 1 << 2)) # no\n# no\n", "((x = 1 << 2))\n"),
    "a test": ("[[ $x =~ ^#(a|b)$ ]] # no\n", "[[ $x =~ ^#(a|b)$ ]]\n"),
    "in a command's place": ("x=$(\n  # no\n  echo # no\n)\ny=\"$(echo # no\n)\"\n", "x=$(\n  echo\n)\ny=\"$(echo\n)\"\n"),
    "in quotes in quotes": ("x=\"$(echo \"# yes\")\" # no\n", "x=\"$(echo \"# yes\")\"\n"),
    "after a line that goes on": ("echo 1 \\\n  # no\necho 2\n", "echo 1 \\\n\necho 2\n"),
    "in a list": ("x=(\n  1 # no\n  # no\n  '# yes'\n)\n", "x=(\n  1\n  '# yes'\n)\n"),
    "in a case": ("case $x in\n  '#') : ;; # no\n  *) ;; # no\nesac\n", "case $x in\n  '#') : ;;\n  *) ;;\nesac\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_comments_and_blank_lines_go_and_nothing_else(name: str) -> None:
    text, sent = TEXTS[name]
    assert stripped(text) == sent
    assert stripped(sent) == sent


@pytest.mark.parametrize("text", ["x=`id`\n", "cat <<END\n", "echo \"${x#'y'}\"\n"])
def test_what_it_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not known here|has no end"):
        stripped(text)


ONE = """\
TOP=$(of_the_top)
of_the_top() { printf 1; }
called() {
  one_further "$@"
  cat <<END
}
END
}
one_further() (
  printf 2
) >/dev/null
named() { printf 3; }
trapped() { printf 4; }
trap 'trapped' EXIT
nobody_s() {
  other_nobody_s
}
other_nobody_s() { nobody_s; }
"""
OTHER = """\
SECONDS_OF_OTHER=3
of_other() { printf 5; }
"""


def test_functions_that_nothing_names_stay_at_home() -> None:
    sent = needed([ONE, OTHER], "called\nstep 60 named\n")
    assert functions_of(sent) == ["of_the_top", "called", "one_further", "named", "trapped"]
    gone = [line for line in ONE.splitlines() if line not in sent.splitlines()]
    assert gone == ["nobody_s() {", "  other_nobody_s", "other_nobody_s() { nobody_s; }"]


@pytest.mark.parametrize(
    ("script", "sent"),
    [("of_other\n", OTHER), ("echo $SECONDS_OF_OTHER\n", OTHER.splitlines(keepends=True)[0]), ("echo\n", "")],
)
def test_a_part_of_which_nothing_is_named_is_not_sent_at_all(script: str, sent: str) -> None:
    assert needed([OTHER], script) == sent + script


def test_functions_named_by_a_sent_part_are_sent_in_either_order() -> None:
    parts = ["a() { b; }\n", "X=1\nb() { c; }\n", "c() { :; }\nd() { :; }\n"]
    expected = "a() { b; }\nX=1\nb() { c; }\nc() { :; }\n"
    assert needed(parts, "a\n") == f"{expected}a\n"
    assert {*needed(parts[::-1], "a\n").splitlines()} == {*expected.splitlines(), "a"}


def test_a_function_that_a_script_has_itself_is_the_last_one() -> None:
    assert needed(["f() { printf 1; }\n"], "f() { printf 2; }\nf\n").endswith("f() { printf 2; }\nf\n")


def test_a_function_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="f has no end"):
        functions_of("f() {\n  :\n")
