"""docs/settings*.md: each key of the settings is described, and the pages are what the models say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from docs.tables.meanings import meanings
from docs.tables.settings import MODELS, pages, with_current_tables
from homelab.guest import options as guest_options
from homelab.settings import Settings
from tests.conftest import PROJECT
from tests.rows import rows


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models below one, and itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(annotation):
        yield from models(part)


@rows("model", dict.fromkeys(models(Settings)), ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_each_key_has_a_meaning_and_each_model_a_table(model: type[BaseModel]) -> None:
    assert model in MODELS.values()
    assert model.__doc__ and "<" not in model.__doc__
    for name, meaning in meanings(model).items():
        assert meaning.endswith(".") and not meaning.startswith(" "), name
        assert "``" not in meaning, f"{name}: in Markdown, one backquote"


def test_the_pages_are_what_the_models_say() -> None:
    assert pages() == with_current_tables(pages()), "run `make docs`"


def test_each_model_has_one_table() -> None:
    text = "".join(pages().values())
    assert [name for name in MODELS if text.count(f"<!-- table: {name} -->") != 1] == []


def test_the_settings_page_leads_to_all_others() -> None:
    first = pages()["settings.md"]
    assert [name for name in pages() if name != "settings.md" and f"]({name})" not in first] == []


def test_a_number_shows_its_unit_and_bounds_a_choice_its_words() -> None:
    page = "".join(pages().values())
    assert "- **`port`** (integer, 1 to 65535; default `22`): " in page
    assert "- **`size`** (GiB, 1 to 65536): " in page
    assert "- **`use`** (`vm`, `lxc`, `host` or `shared`; default `vm`): " in page


# What pages quote of other programs' configuration.
OF_OTHERS = {"startup", "hostpciN", "runtimeClassName", "handler"}


def test_a_setting_that_a_page_names_is_one() -> None:
    keys = {field.alias or name for model in MODELS.values() for name, field in model.model_fields.items()}
    keys |= guest_options.of_new("qemu").keys() | guest_options.of_new("lxc").keys()
    pages_with_settings = [
        PROJECT / "README.md",
        *(PROJECT / "docs").glob("*.md"),
        *(PROJECT / "examples").glob("*.md"),
        *(PROJECT / "examples").glob("*/README.md"),
    ]
    unknown = {
        (page.name, key)
        for page in pages_with_settings
        for key in re.findall(r"`([a-z][A-Za-z]*): [^`\n]+`", page.read_text(encoding="utf-8"))
        if key not in keys | OF_OTHERS
    }
    assert unknown == set()


def test_the_projects_file_declares_each_key_with_the_models_default() -> None:
    declared = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    fields = {f"homelab:{field.alias}": field for field in Settings.model_fields.values()}
    assert declared.keys() == fields.keys()
    for key, about in declared.items():
        assert about["description"], key
        assert ("default" not in about) == fields[key].is_required(), key
        assert fields[key].is_required() or about["default"] == fields[key].default, key
