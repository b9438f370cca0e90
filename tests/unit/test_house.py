"""What holds for the program's code as a whole."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from homelab import shapes
from homelab.provider import registry as _registry  # noqa: F401  # which declares all resources
from homelab.resources.base import Resource, declared
from tests.conftest import PROJECT
from tests.rows import rows


def test_no_file_is_long() -> None:
    for folder, most in (("homelab", 600), ("remote_scripts", 400)):
        lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (PROJECT / folder).rglob("*.py")}
        assert [path for path, number in lines.items() if number > most] == []


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


def bases(node: ast.stmt) -> set[str]:
    return {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()


NO_COMPONENTS = ("__init__.py", "component.py", "stack_outputs.py")
COMPONENTS = [path for path in sorted((PROJECT / "components").glob("*.py")) if path.name not in NO_COMPONENTS]
COMPONENTS.append(PROJECT / "examples" / "gaming_vm" / "lent_cards.py")


@rows("path", COMPONENTS, ids=lambda path: path.stem)
def test_a_component_takes_options_and_says_what_it_puts_out(path: Path) -> None:
    kinds = {"pulumi.ComponentResource", "Component", "HostComponent", "GuestComponent"}
    nodes = [node for node in ast.parse(path.read_text()).body if kinds & bases(node)]
    (component,) = [node for node in nodes if isinstance(node, ast.ClassDef)]
    (init,) = [one for one in component.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    # Class(subject, …, opts=…): whatever follows the subject is named where it is used.
    (subject,) = [(one.arg, ast.unparse(one.annotation)) for one in init.args.args[1:] if one.annotation is not None]
    assert subject in {(name.lower(), name) for name in ("Host", "Vm", "Container", "System")}
    last, default = init.args.kwonlyargs[-1], init.args.kw_defaults[-1]
    assert last.annotation is not None and default is not None
    assert (last.arg, ast.unparse(last.annotation), ast.unparse(default)) == (
        "opts",
        "pulumi.ResourceOptions | None",
        "None",
    )
    assert not (init.args.vararg or init.args.kwarg or init.args.posonlyargs)
    typed = {
        one.target.id for one in component.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    said = {
        one.attr
        for one in ast.walk(component)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and not one.attr.startswith("_")
    }
    assert said == typed


@rows("shape", [one for one in vars(shapes).values() if is_typeddict(one)], ids=lambda shape: shape.__name__)
def test_what_may_be_null_in_a_state_may_be_missing(shape: Any) -> None:
    hints = get_type_hints(shape, include_extras=True)
    nullable = {key for key, hint in hints.items() if type(None) in get_args(hint)}
    assert nullable - {key for key, hint in hints.items() if get_origin(hint) is NotRequired} == set()


# -- what is asked ---------------------------------------------------------------------------------------------------
def made_up(tree: ast.Module) -> list[int]:
    """Lines of a module that make up settings without their cards, or a plan of nothing, so that a function can be
    asked. A function asks for what it needs instead: gates for a host, or for a card that is wanted so."""
    found = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            items = zip(map(_text_of, node.keys), node.values, strict=True)
            found |= {node.lineno for key, value in items if key == "gpus" and _is_literal(value)}
        if isinstance(node, ast.Call):
            name, named = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}
            is_plan = name.endswith("HostPlan") or name in ("plan.Wanted", "host_plan.Wanted")
            update = named.get("update") if name.endswith("model_copy") else None
            if (
                (is_plan and any(map(_is_empty, [*node.args, *named.values()])))
                or ("gpus" in named and _is_literal(named["gpus"]))
                or (isinstance(update, ast.Dict) and "gpus" in map(_text_of, update.keys))
            ):
                found.add(node.lineno)
    return sorted(found)


def _text_of(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_literal(node: ast.expr) -> bool:
    """Whether cards are none, or chosen in place: those of the settings come as a whole."""
    return isinstance(node, ast.Dict) or _is_empty(node)


def _is_empty(node: ast.expr) -> bool:
    """Whether it is an empty text or mapping."""
    return bool(re.fullmatch(r"''|{}|dict(\[.*\])?\(\)", ast.unparse(node)))


@rows(
    ("source", "lines"),
    [
        ("host.model_copy(update={'gpus': {}})", [1]),
        ("x = 1\nhost.model_copy(update={'nvidia': None, 'gpus': cards})", [2]),
        ("parse({'hosts': {'pve': {**login, 'gpus': {}}}})", [1]),
        ("{**host, 'gpus': {key: host['gpus'][key]}}", [1]),
        ("replace(host, gpus=dict[str, Gpu]())", [1]),
        ("plan.Wanted('', '', {}, [], gpus)", [1]),
        ("HostPlan(iommu_words='', vfio_words=words, functions=of, by_hand=hand)", [1]),
        ("host.model_copy(update={'ssh': key})", []),
        ("plan.Wanted(iommu, vfio, functions, [], gpus)", []),
        ("{'gpus': found, 'nvidia': {}}", []),
    ],
)
def test_settings_and_plans_that_are_made_up_are_found(source: str, lines: list[int]) -> None:
    assert made_up(ast.parse(source)) == lines


def test_no_settings_and_no_plan_are_made_up_so_that_a_function_can_be_asked() -> None:
    found = {
        f"{path.relative_to(PROJECT)}: {line}"
        for folder in ("homelab", "components", "provider")
        for path in (PROJECT / folder).rglob("*.py")
        for line in made_up(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()


# -- what reaches a host's shell -----------------------------------------------------------------------------------
# What runs a text on a host, and which of its arguments that is.
SENDERS = {"run": 1, "ask_in": 2}
# The modules whose functions compose a script of quoted values.
COMPOSERS = {"scripts", "steps", "stack_folder"}


@rows("resource", declared().values(), ids=lambda one: one.__name__)
def test_no_input_of_a_resource_is_a_text_that_is_run(resource: type[Resource]) -> None:
    """Whoever reaches the provider's port gives it inputs: names and values alone."""

    def names_of(kind: Any) -> set[str]:
        """Names of the fields of a dataclass or a shape, and of those that are nested in it."""
        if not (dataclasses.is_dataclass(kind) or is_typeddict(kind)):
            return {name for part in get_args(kind) for name in names_of(part)}
        hints = get_type_hints(kind)
        return {name for field, of in hints.items() for name in (field, *names_of(of))}

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


@rows(
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


@rows(
    "path",
    sorted([*(PROJECT / "homelab" / "resources" / "work").glob("*.py"), *(PROJECT / "homelab").glob("*/work.py")]),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_provider_sends_a_host_what_it_has_composed(path: Path) -> None:
    assert unquoted(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_what_a_host_waits_for_is_said_as_waited_for() -> None:
    """Else `container 901 started: 12 s` is said of one that isn't."""
    texts = [path.read_text(encoding="utf-8") for path in (PROJECT / "remote_scripts").rglob("*.py")]
    said = {what for text in texts for what in re.findall(r"\.tries\(.+?, (\w+|f?\".+?\")\):?\n", text)}
    assert said and {what for what in said if not re.match(r"f?\"waiting ", what)} == set()
