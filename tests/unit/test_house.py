"""What holds for the program's code as a whole."""

from __future__ import annotations

import ast
from collections import defaultdict
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pytest
from typing_extensions import is_typeddict

from homelab import settings, shapes
from tests.conftest import PROJECT


def test_a_class_or_type_has_a_name_of_its_own() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for folder in ("homelab", "components"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                names = [node.name] if isinstance(node, ast.ClassDef) else []
                if isinstance(node, ast.Assign):
                    names = [one.id for one in node.targets if isinstance(one, ast.Name) and not one.id.isupper()]
                for name in names:
                    # What begins with an underscore is its module's own, a type variable its function's.
                    if name[0].isupper() and not name.endswith("T"):
                        found[name].append(path.relative_to(PROJECT).as_posix())
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize(
    ("old", "new"), [("Api", "ApiAccess"), ("Iommu", "IommuSettings"), ("NewContainer", "NewContainerSettings")]
)
def test_a_settings_class_is_still_found_by_the_name_that_it_had_in_version_1_0(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"called {new} now"):
        assert getattr(settings, old) is getattr(settings, new)


def test_a_name_that_settings_never_had_is_not_found() -> None:
    assert not hasattr(settings, "Apis")


SHAPES = [one for one in vars(shapes).values() if is_typeddict(one)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_what_may_be_null_in_a_state_may_be_missing(shape: Any) -> None:
    hints = get_type_hints(shape, include_extras=True)
    nullable = {key for key, hint in hints.items() if type(None) in get_args(hint)}
    assert nullable - {key for key, hint in hints.items() if get_origin(hint) is NotRequired} == set()
