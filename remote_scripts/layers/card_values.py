"""How cards are reset and whether they may sleep, where the settings say so: now, and by a udev rule whenever a
function appears or gets a driver.

Changes /etc/udev/rules.d/90-homelab-cards.rules, and attributes in /sys/bus/pci/devices. What an attribute had
before is in /var/lib/homelab/card-values/ADDRESS=ATTRIBUTE (a slash in it is a colon), with homelab's value below:
`revert` gives it back.
"""

from __future__ import annotations

from contextlib import suppress

from remote_scripts.both.card_values import Value, Wanted
from remote_scripts.notes import value_notes
from remote_scripts.reading.cards import CARDS
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Changed
from remote_scripts.tools.pci import DEVICES, ids_of
from remote_scripts.tools.system import System, changes, plans

RULES = "/etc/udev/rules.d/90-homelab-cards.rules"
_LAYER = "values"
# Classes of what makes a card: displays and processing accelerators. Its other functions may lack a reset.


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change.

    :raises Failure: as of `apply`.
    """
    values = _choose(system, wanted)
    _write_rules(system, values)
    for value in values:
        if _is_there(system, value) and system.files.text(_path(value)) != value.value:
            system.files.plan_file("changed", _path(value))


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Sets the values, and gives back those that aren't wanted any more.

    :raises Failure: the kernel doesn't offer a card's reset, or hasn't taken a value; nothing was changed then, or all
        was given back.
    """
    return _change(system, _choose(system, wanted))


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Gives back all values, whatever `wanted` says."""
    return _change(system, ())


def _change(system: System, values: tuple[Value, ...]) -> Changed:
    there = [value for value in values if _is_there(system, value)]
    before: dict[str, str] = {}
    system.also_put_back = lambda: _put_back(system, before)
    for value in there:  # before the rule, by which a boot sets them
        _note(system, value)
    _write_rules(system, values)
    _give_back(system, values, before)
    for value in there:
        _set(system, value, before)
    return Changed(system.files.changed)


def _choose(system: System, wanted: Wanted) -> tuple[Value, ...]:
    """The values without those that a function has no attribute for. A reset that the kernel doesn't know for the
    card's picture is refused, before anything is written.
    """
    chosen = []
    for value in wanted.values:
        if _is_there(system, value):
            if value.attribute == "reset_method":
                offered = _offered(system, value)
                if value.value not in offered:
                    if not system.files.text(f"{DEVICES}/{value.address}/class").startswith(CARDS):
                        continue
                    raise Failure(
                        f"{value.address} reset by {value.value}",
                        f"reset_method has, by the kernel or a rule of yours: {' '.join(offered) or 'nothing'}",
                        "what the kernel can't do with this function has no effect",
                        "choose one of these for the card's reset, or take the setting out",
                    )
            if not system.files.exists(_path(value)):
                continue
        chosen.append(value)
    return tuple(chosen)


def _path(value: Value) -> str:
    return f"{DEVICES}/{value.address}/{value.attribute}"


def _record(value: Value) -> str:
    """Where its original value is noted."""
    return f"{value_notes.FOLDER}/{value_notes.name_of(value.address, value.attribute)}"


def _is_there(system: System, value: Value) -> bool:
    return ids_of(system, value.address) == value.id


def _offered(system: System, value: Value) -> list[str]:
    """The resets that the kernel has for it, and had before us: one that was chosen hides the others."""
    return f"{system.files.text(_path(value))} {system.files.line(_record(value))}".split()


def _write_rules(system: System, values: tuple[Value, ...]) -> None:
    if not values:
        system.files.drop(_LAYER, RULES)
        return
    lines = ["# Written by homelab, which takes it away again (pulumi destroy)."]
    for value in values:
        vendor, _, device = value.id.partition(":")
        # A driver that binds may set power/control anew.
        lines.append(
            f'ACTION=="add|change|bind", SUBSYSTEM=="pci", KERNEL=="{value.address}", ATTR{{vendor}}=="0x{vendor}", '
            f'ATTR{{device}}=="0x{device}", ATTR{{{value.attribute}}}="{value.value}"'
        )
    system.files.put(_LAYER, RULES, 0o644, "".join(f"{line}\n" for line in lines).encode())


def _note(system: System, value: Value) -> None:
    """Notes what it has, once, and what homelab writes."""
    files = system.files
    noted = files.need_text(_record(value))
    before = (noted if files.exists(_record(value)) else files.need_text(_path(value))).partition("\n")[0]
    text = f"{before}\n{value.value}\n"
    if text != noted:
        files.remember(_record(value))
        files.note(_record(value), text.encode())


def _set(system: System, value: Value, before: dict[str, str]) -> None:
    files = system.files
    if files.text(_path(value)) == value.value:
        return
    before.setdefault(_path(value), files.text(_path(value)))
    with suppress(OSError):
        files.set_attribute(_path(value), value.value)
    current = files.text(_path(value))
    if current != value.value:
        raise Failure(
            f"{value.address}: {value.attribute} to be {value.value}",
            f"it is {current or 'not readable'}",
            "the kernel hasn't taken the value; every card has its former values again",
            "look at `dmesg | tail` on the host, or take the setting out",
        )
    files.changed = True
    system.log.say(f"{value.address}: {value.attribute} is {value.value}")


def _put_back(system: System, before: dict[str, str]) -> None:
    """After a failure each attribute has again what it had when the run began."""
    for path, value in reversed(before.items()):
        with suppress(OSError):
            system.files.set_attribute(path, value)


def _give_back(system: System, wanted: tuple[Value, ...], before: dict[str, str]) -> None:
    """Of what homelab set and isn't wanted any more: the original value."""
    files = system.files
    kept = {_record(value) for value in wanted}
    for name in files.need_names(value_notes.FOLDER):
        record = f"{value_notes.FOLDER}/{name}"
        if record in kept or "=" not in name or not files.at(record).is_file() or name.startswith("."):
            continue
        parsed = value_notes.parse(name, files.need_text(record))
        path = f"{DEVICES}/{parsed.address}/{parsed.attribute}" if parsed else ""
        if parsed is None:
            system.log.say(f"note: what {name} was before isn't known: {record} is empty")
        elif files.exists(path):
            before[path] = files.text(path)
            try:
                files.set_attribute(path, parsed.before)
            except OSError:
                # Of the resets that the kernel found before the card's other functions were there, it takes those back
                # that it finds now.
                if parsed.attribute == "reset_method":
                    with suppress(OSError):
                        files.set_attribute(path, "default")
            system.log.say(f"{parsed.address}: {parsed.attribute} is {files.text(path)} again")
        files.remember(record)
        files.remove(record)
        files.changed = True
