"""What holds for the program's code as a whole."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pytest
import yaml
from typing_extensions import is_typeddict

from homelab import shapes
from homelab.provider import registry as _registry  # noqa: F401  # which declares all resources
from homelab.resources.base import Resource, declared
from tests.conftest import PROJECT


def test_a_class_or_type_has_a_name_of_its_own() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for folder in ("homelab", "components"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [node.name] if isinstance(node, ast.ClassDef) else []
                if isinstance(node, ast.Assign):
                    names = [one.id for one in node.targets if isinstance(one, ast.Name) and not one.id.isupper()]
                for name in names:
                    # A type variable is its function's own.
                    if name.lstrip("_")[:1].isupper() and not name.lstrip("_").isupper() and not name.endswith("T"):
                        found[name].append(path.relative_to(PROJECT).as_posix())
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_each_part_of_the_package_is_in_the_map() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    named = {
        name.removeprefix("homelab/").strip("/")
        for row in rows
        for name in re.findall(r"`([\w/.-]+)`", row.split("|")[1])
    }
    there = {path.name for path in (PROJECT / "homelab").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - named - {"__init__.py", "__main__.py", "__pycache__", "components"} == set()


def test_no_file_of_the_program_is_longer_than_600_lines() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (PROJECT / "homelab").rglob("*.py")}
    assert [path for path, number in lines.items() if number > 600] == []


def test_all_exceptions_are_in_one_tree() -> None:
    classes = {
        (node.name, path.name)
        for path in (PROJECT / "homelab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(re.search("(Error|Exception)$", base) for base in bases(node))
    }
    assert {(name, place) for name, place in classes if place != "errors.py"} == {("Refusal", "stack.py")}


def test_no_module_keeps_what_changes_but_in_pythons_own_caches() -> None:
    changes = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard", "extend"}

    def kept_by(tree: ast.Module) -> set[str]:
        """The names of a module's own values that its functions change."""
        nodes = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        targets = [one for node in nodes for one in (node.targets if isinstance(node, ast.Assign) else [node.target])]
        changed: set[str] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Global(names=of):
                    changed.update(of)
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=verb)) if verb in changes:
                    changed.add(name)
                case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                    changed.add(name)
        return changed & {one.id for one in targets if isinstance(one, ast.Name)}

    assert kept_by(ast.parse("A = {}\nB = [1]\ndef f():\n    A['x'] = B[0]")) == {"A"}
    found = {
        f"{path.name}: {name}"
        for folder in ("homelab", "components")
        for path in (PROJECT / folder).rglob("*.py")
        for name in kept_by(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()


def names_in(body: list[ast.stmt]) -> list[tuple[str, ast.stmt]]:
    """What a module declares, by its names; an import that waits (homelab/later.py) is an import."""
    found: list[tuple[str, ast.stmt]] = []
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.append((node.name, node))
            case ast.If():
                found += names_in([*node.body, *node.orelse])
            case ast.Assign(value=ast.Call(func=ast.Name(id="later"))) | ast.Import() | ast.ImportFrom():
                pass
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found += [(one.id, node) for each in targets for one in ast.walk(each) if isinstance(one, ast.Name)]
            case _:
                found.append((ast.unparse(node), node))
    return found


def bases(node: ast.stmt) -> set[str]:
    return {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()


NO_COMPONENTS = ("__init__.py", "stack_outputs.py")
COMPONENTS = [path for path in sorted((PROJECT / "components").glob("*.py")) if path.name not in NO_COMPONENTS]
COMPONENTS.append(PROJECT / "examples" / "gaming_vm" / "lent_cards.py")


@pytest.mark.parametrize("path", COMPONENTS[:-1], ids=lambda path: path.stem)
def test_a_components_file_has_the_component_and_nothing_else_for_others(path: Path) -> None:
    public = [(name, node) for name, node in names_in(ast.parse(path.read_text()).body) if not name.startswith("_")]
    (component,) = [name for name, node in public if "pulumi.ComponentResource" in bases(node)]
    assert {name for name, _ in public} == {component}
    assert path.stem == re.sub(r"(?<!^)(?=[A-Z])", "_", component).lower()


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_a_component_takes_options_and_says_what_it_puts_out(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if "pulumi.ComponentResource" in bases(node)]  # type: ignore[arg-type]
    (component,) = [node for node in nodes if isinstance(node, ast.ClassDef)]
    (init,) = [one for one in component.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    taken = [(one.arg, ast.unparse(one.annotation)) for one in init.args.args[1:] if one.annotation is not None]
    assert ("opts", "pulumi.ResourceOptions | None") in taken and ("name", "str") not in taken
    assert not (init.args.kwonlyargs or init.args.vararg or init.args.kwarg)
    typed = {
        one.target.id for one in component.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    said = {
        one.attr
        for one in ast.walk(component)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and not one.attr.startswith("_")
    }
    assert said == typed


SHAPES = [one for one in vars(shapes).values() if is_typeddict(one)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_what_may_be_null_in_a_state_may_be_missing(shape: Any) -> None:
    hints = get_type_hints(shape, include_extras=True)
    nullable = {key for key, hint in hints.items() if type(None) in get_args(hint)}
    assert nullable - {key for key, hint in hints.items() if get_origin(hint) is NotRequired} == set()


def untyped(tree: ast.AST) -> int:
    """How many dictionaries in it have no named keys, also in the text of a cast."""
    found = 0
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=of, slice=ast.Tuple(elts=[*_, ast.Name(id="Any")])):
                found += ast.unparse(of).rpartition(".")[2].lower() in (
                    "dict",
                    "defaultdict",
                    "mapping",
                    "mutablemapping",
                )
            case ast.Name(id="Properties" | "Values", ctx=ast.Load()):
                found += 1
            case ast.Call(func=ast.Name(id="cast"), args=[ast.Constant(value=str(text)), *_]):
                found += untyped(ast.parse(text))
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(one: Mapping[str, Any]) -> dict[str, dict[str, Any]]: ...", 2),
        ("one: Properties = cast('dict[str, Any]', other)", 2),
        ("def f(one: Values) -> None: ...", 1),
        ("one: dict[str, object]; other: Callable[[str], Any]; name: tuple[str, Any]", 0),
    ],
)
def test_a_dictionary_without_named_keys_is_found_however_it_is_written(source: str, count: int) -> None:
    assert untyped(ast.parse(source)) == count


def test_a_dictionary_without_named_keys_is_where_the_keys_are_not_ours() -> None:
    found = {
        path.relative_to(PROJECT).as_posix(): count
        for folder in ("homelab", "components")
        for path in (PROJECT / folder).rglob("*.py")
        if (count := untyped(ast.parse(path.read_text(encoding="utf-8"))))
    }
    reasons = yaml.safe_load((PROJECT / "tests" / "unit" / "untyped.yaml").read_text(encoding="utf-8"))
    assert found == {path: count for files in reasons.values() for path, count in files.items()}, "give it a shape"


# -- what reaches a host's shell -----------------------------------------------------------------------------------
# What runs a text on a host, and which of its arguments that is.
SENDERS = {"run": 1, "ask_in": 2}
# The modules whose functions compose a script of quoted values.
COMPOSERS = {"scripts", "steps", "stack_folder"}


def names_of(kind: Any) -> set[str]:
    """Names of the fields of a dataclass or a shape, and of those that are nested in it."""
    if not (dataclasses.is_dataclass(kind) or is_typeddict(kind)):
        return {name for part in get_args(kind) for name in names_of(part)}
    hints = get_type_hints(kind)
    return {name for field, of in hints.items() for name in (field, *names_of(of))}


@pytest.mark.parametrize("resource", declared().values(), ids=lambda one: one.__name__)
def test_no_input_of_a_resource_is_a_text_that_is_run(resource: type[Resource]) -> None:
    """Whoever reaches the provider's port gives it inputs: names and values alone."""
    words = "script|scripts|command|commands|hook|code|program|stdin|shell|bash|exec|argv|arguments|eval"
    assert not [name for name in names_of(resource.Inputs) if re.search(rf"(?:^|_)(?:{words})(?:_|$)", name.lower())]


def unquoted(tree: ast.Module) -> list[int]:
    """Lines of a module that send a host what no composer has just composed."""
    composed = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_composed(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    # What a function is given as its script, it was given by a call that is looked at, too.
    handed_on = {"script", "text"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            at := SENDERS.get(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        )
        and len(node.args) > at
        and not (_is_composed(one := node.args[at]) or (isinstance(one, ast.Name) and one.id in composed | handed_on))
    ]


def _is_composed(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return all(_is_composed(one) or isinstance(one, ast.Name) for one in (node.body, node.orelse))
    module = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
    return isinstance(module, ast.Name) and module.id in COMPOSERS


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("run('verify', inputs.script)", [1]),
        ("session.run('verify', scripts.answer(x)['script'])", [1]),
        ("found = inputs.text\nsession.run('apply', found)", [2]),
        ("session.run('apply', f'{inputs.name}')", [1]),
        ("session.run('plan', scripts.card_nodes(inputs.needed))", []),
        ("script = steps.verification(a, b, c)\nself.run('verify', script, 3.0)", []),
        ("self.ask_in(one, 'apply', one.script)", [1]),
        ("loop.run(work())", []),
    ],
)
def test_what_is_sent_to_a_host_without_being_composed_is_found(source: str, lines: list[int]) -> None:
    assert unquoted(ast.parse(source)) == lines


@pytest.mark.parametrize("path", sorted((PROJECT / "homelab" / "provider").glob("*.py")), ids=lambda path: path.stem)
def test_the_provider_sends_a_host_what_it_has_composed(path: Path) -> None:
    assert unquoted(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_what_a_host_waits_for_is_said_as_waited_for() -> None:
    """Else `container 901 started: 12 s` is said of one that isn't."""
    texts = [path.read_text(encoding="utf-8") for path in (PROJECT / "remote_scripts").rglob("*.py")]
    said = {what for text in texts for what in re.findall(r"\.tries\(.+?, (\w+|f?\".+?\")\):?\n", text)}
    assert said and {what for what in said if not re.match(r"f?\"waiting ", what)} == set()
