"""Settings reach files, commands and property strings that root reads: no text of theirs may say more than one thing there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr

from homelab import tables
from homelab.errors import HomelabError
from homelab.nvidia.settings import Nvidia
from homelab.settings import NewContainer, NewVm, Settings, parse
from tests.rows import check_rows, rows
from tests.unit.hosts import KEY
from tests.unit.test_settings import hosts as one_host
from tests.unit.test_settings import refused

#: Between them every field that holds text.
WHOLE: list[dict[str, Any]] = tables.read(Path(__file__).with_name("whole_settings.yaml"))
Place = tuple[Any, ...]


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of a configuration, the parts before what they are parts of."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(one, (*place, key))
    if place:
        yield place, value


def changed(which: int, place: Place, value: Any) -> dict[str, str]:
    """The values of a whole configuration with one of them replaced."""
    config = copy.deepcopy(WHOLE[which])
    inner: Any = config
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return {key: json.dumps(one) for key, one in config.items()}


# Which whole configuration, a place in it, its value there.
VALUES = [(which, place, value) for which, config in enumerate(WHOLE) for place, value in leaves(config)]
TEXTS = [row for row in VALUES if isinstance(row[2], str)]
# Sent to the API as they are, or to an SSH library: a hyphen or a comma means nothing there.
FREE = {"password", "privateKey", "create"}


def ids(case: Any) -> str | None:
    return ".".join(str(part) for part in case) if isinstance(case, tuple) else None


def said(which: int, place: Place, value: Any) -> str:
    with pytest.raises(HomelabError) as raised:
        parse(changed(which, place, value))
    message = str(raised.value)
    assert [line[:7] for line in message.splitlines() if not line.startswith(" ")] == [
        "wanted:", "found: ", "why:   ", "next:  ",
    ], message  # fmt: skip
    assert all(character.isprintable() or character == "\n" for character in message), message
    return message


def test_the_whole_configurations_are_valid_and_have_every_text_that_there_is() -> None:
    def parts(value: Any) -> Iterator[Any]:
        yield value
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from parts(one)

    def filled(value: Any) -> set[tuple[str, str]]:
        """(model, field) of all text that settings have."""
        found: set[tuple[str, str]] = set()
        for name, one in value if isinstance(value, BaseModel) else ():
            for part in parts(one):
                if isinstance(part, BaseModel):
                    found |= filled(part)
                elif isinstance(part, str | SecretStr):
                    found.add((type(value).__name__, name))
        return found

    def types(annotation: Any) -> Iterator[Any]:
        yield annotation
        # A mapping's keys are names, which have a test of their own.
        for one in get_args(annotation)[1 if get_origin(annotation) is dict else 0 :]:
            yield from types(one)

    def text_fields(model: type[BaseModel]) -> set[tuple[str, str]]:
        """(model, field) of all text below a model."""
        found: set[tuple[str, str]] = set()
        for name, field in model.model_fields.items():
            for part in types(field.annotation):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found |= text_fields(part)
                elif part in (str, SecretStr):
                    found.add((model.__name__, name))
        return found

    found: set[tuple[str, str]] = set()
    for config in WHOLE:
        found |= filled(parse(config))
    assert text_fields(Settings) - found == set()


def test_no_text_has_a_control_character() -> None:
    controls = ["\nx", "\tx", "\rx", "\x00", "\x1b[31m", "\x7f", "\x85x", "\u2028x", "\u202ex", "\u200b"]
    # Of several lines by its nature.
    pem = ("ssh", "privateKey")

    def check(which: int, place: Place, value: str) -> None:
        def is_refused(added: str) -> None:
            assert place[0] in said(which, place, value + added)
            said(which, place, value[:1] + added + value[1:])

        ends_of_lines = ("\nx", "\rx", "\x85x", "\u2028x") if place[-2:] == pem else ("\nx",) * (place[-1] == "sshkeys")
        check_rows(is_refused, [(added,) for added in controls if added not in ends_of_lines])

    check_rows(check, TEXTS)


def test_no_text_is_taken_for_an_option_of_a_command() -> None:
    def check(which: int, place: Place, value: str) -> None:
        for option in (f"-{value}", f"--{value}", "-oProxyCommand=reboot"):
            said(which, place, option)

    check_rows(check, [row for row in TEXTS if not FREE & set(row[1])])


def test_no_text_goes_on_behind_a_comma_in_a_property_string() -> None:
    # A comma of their own, or in a file's name that no property string ever holds.
    with_commas = FREE | {
        "acsOverride",
        "gpuAssignment",
        "hostKeyFile",
        "privateKeyFile",
        "proxy",
        "hostKey",
    }

    def check(which: int, place: Place, value: str) -> None:
        said(which, place, f"{value},romfile=/x")
        said(which, place, f"{value} romfile")

    check_rows(check, [row for row in TEXTS if not with_commas & set(row[1])])


def test_no_text_is_empty_or_not_text_at_all() -> None:
    def check(which: int, place: Place, _: str) -> None:
        for wrong in ("", " ", "\ud800"):
            said(which, place, wrong)

    check_rows(check, TEXTS)


@rows("wrong", [None, True, 0, -1, 1e400, 2**80, "x", "{", [], [[]], {}, {"x": {}}, {"\x1b": 1}, "é" * 999], ids=repr)
def test_a_value_of_another_kind_is_a_sentence_wherever_it_stands(wrong: Any) -> None:
    def check(which: int, place: Place) -> None:
        try:
            parse(changed(which, place, wrong))
        except HomelabError as error:
            assert all(character.isprintable() or character == "\n" for character in str(error))

    check_rows(check, [(which, place) for which, place, _ in VALUES])


def test_a_key_of_another_kind_is_a_sentence_wherever_it_stands() -> None:
    def check(which: int, place: Place, value: dict[str, Any]) -> None:
        for key in ("", "\x1b[31m", "a\nb", "-x", "x,y", "é" * 999):
            assert len(said(which, place, {**value, key: next(iter(value.values()))})) < 2000, key

    check_rows(check, [row for row in VALUES if isinstance(row[2], dict)])


def test_a_secret_that_is_mistaken_is_not_quoted() -> None:
    def check(which: int, place: Place, _: str) -> None:
        assert "hunter2" not in said(which, place, "hunter2\x00")
        assert "8271828" not in said(which, place, 8271828)
        assert "hunter2" not in said(which, place, ["hunter2"])

    secrets = ("password", "privateKey", "proxy", "cipassword")
    check_rows(check, [row for row in VALUES if row[1][-1] in secrets])


@rows(("which", "place"), [(which, place) for which, place, value in VALUES if type(value) is int], ids=ids)
def test_a_number_has_bounds(which: int, place: Place) -> None:
    for wrong in (-1, 0, 2**31, 1.5, "1"):
        said(which, place, wrong)


@pytest.mark.parametrize("seconds", [1, 29, 86_401])
def test_a_dead_mans_switch_that_undoes_every_boot_is_refused(seconds: int) -> None:
    assert "homelab:hosts.pve.timeouts.rollback" in refused(one_host(timeouts={"rollback": seconds}))


VM, CONTAINER = ("vms", "gaming", "create"), ("containers", "ai", "create")
TEMPLATE = "local:vztmpl/debian.tar.zst"


@rows(
    ("place", "key", "value", "why"),
    [
        (VM, "hostpci0", "0000:01:00", "gpus beside create gives cards"),
        (CONTAINER, "dev0", "/dev/nvidia0", "gpus beside create gives cards"),
        (VM, "description", "mine", "the mark by which this program knows its guest again"),
        (VM, "lock", "backup", "Proxmox VE writes it itself"),
        (VM, "template", 1, "Proxmox VE writes it itself"),
        (VM, "vmid", 100, "vmid, ctid and host beside create say that"),
        (VM, "archive", "local:backup/a.vma", "a backup is restored by hand"),
        (CONTAINER, "restore", True, "a backup is restored by hand"),
        (CONTAINER, "unique", 1, "a backup is restored by hand"),
        (VM, "start", True, "power beside create says whether it runs"),
        (VM, "delete", "net0", "unknown key, expected one of Proxmox VE's, as man qm has them"),
        (CONTAINER, "skiplock", 1, "unknown key, expected one of Proxmox VE's, as man pct has them"),
        (VM, "cores", [8], "expected text, found none"),
        (VM, "size", 0, "greater than or equal to 1"),
        (VM, "clone", 9, "greater than or equal to 100"),
        (VM, "image", "noble", "unknown key, expected one of Proxmox VE's"),
        (CONTAINER, "mp0", "/etc/pve,mp=/a", "/etc/pve is of the host's own system"),
        (CONTAINER, "mp0", "volume=/tank/../etc,mp=/a", "/etc is of the host's own system"),
        (CONTAINER, "mp0", "mp=/a,volume=/etc", "/etc is of the host's own system"),
        (CONTAINER, "mp0", "//etc,mp=/a", "/etc is of the host's own system"),
        (CONTAINER, "mp0", "/,mp=/a", "/ is of the host's own system"),
        (CONTAINER, "mp0", "/var/lib/vz/images,mp=/a", "is of the host's own system"),
    ],
)  # fmt: skip
def test_a_mistaken_option_of_a_new_guest_is_named(place: Place, key: str, value: Any, why: str) -> None:
    message = said(0, (*place, key), value)
    assert f"homelab:{'.'.join(place)}" in message and why in message


def test_every_mistake_in_a_new_guest_is_named_at_once() -> None:
    wrong = {
        "coers": 8,
        "start": True,
        "hostpci0": "01:00",
        "size": "32",
    }
    message = said(0, VM, wrong)
    assert all(f"homelab:vms.gaming.create.{key}: " in message for key in wrong)
    assert "did you mean cores?" in message


@rows(
    ("place", "option"),
    [
        (VM, {"usb0": "mapping=keyboard"}),
        (VM, {"net0": "virtio,bridge=vmbr0,tag=20", "boot": "order=net0", "args": "-cpu x"}),
        (VM, {"onboot": True, "agent": 1, "cpulimit": 1.5, "tablet": "off", "balloon": 0}),
        (VM, {"scsi0": "local:8", "scsi30": "local:8", "pool": "a", "storage": "local", "protect": True}),
        (CONTAINER, {"ostemplate": TEMPLATE, "features": "nesting=1,mount=nfs;cifs", "unprivileged": 0}),
        (CONTAINER, {"ostemplate": TEMPLATE, "mp0": "/tank/films,mp=/films", "mp1": "local-lvm:8,mp=/a"}),
        (CONTAINER, {"ostemplate": TEMPLATE, "mp0": "/var/lib/vz/films,mp=/f", "mp9": "/var/www/html,mp=/w"}),
        (CONTAINER, {"ostemplate": TEMPLATE, "ssh-public-keys": f"{KEY}\n{KEY}\n"}),
    ],
)
def test_proxmox_ves_own_keys_are_taken(place: Place, option: dict[str, Any]) -> None:
    parse(changed(0, place, option))


def test_what_a_vm_with_a_card_needs_is_there_unless_its_owner_says_otherwise() -> None:
    def made(**options: Any) -> dict[str, str]:
        return NewVm.model_validate(options).configuration("dev")

    needed = {"machine": "q35", "bios": "ovmf", "cpu": "host", "balloon": "0", "scsihw": "virtio-scsi-single"}
    assert made() == {"name": "dev", **needed}
    efi = "local-lvm:1,efitype=4m,pre-enrolled-keys=0"
    assert made(scsi0="local-lvm:32")["efidisk0"] == efi
    both = {
        "sata0": "local:iso/a.iso,media=cdrom",
        "scsi0": "file=local-lvm:32",
        "ide2": "fast:cloudinit",
        "virtio0": "fast:8",
    }
    assert made(**both)["efidisk0"] == efi
    assert made(**both, boot="order=virtio0;scsi0")["efidisk0"].startswith("fast:1,")
    assert "efidisk0" not in made(scsi0="local-lvm:32", bios="seabios")
    assert made(scsi0="local:32", efidisk0="local:1,pre-enrolled-keys=1")["efidisk0"] == "local:1,pre-enrolled-keys=1"
    assert "efidisk0" not in made(clone=900, scsi1="local-lvm:32")
    assert made(name="other", machine="pc", cpu="x86-64-v3", onboot=True) == {
        "name": "other", **needed, "machine": "pc", "cpu": "x86-64-v3", "onboot": "1",
    }  # fmt: skip
    assert made(sshkeys="ssh-ed25519 AAAA+/ me\n")["sshkeys"] == "ssh-ed25519%20AAAA%2B%2F%20me"
    assert made(sshkeys="ssh-ed25519%20AAAA")["sshkeys"] == "ssh-ed25519%20AAAA"


def test_a_new_container_is_unprivileged_and_has_its_name() -> None:
    made = NewContainer.model_validate({"ostemplate": TEMPLATE, "cores": 2, "password": "geheim"})
    assert made.configuration("ai") == {"hostname": "ai", "unprivileged": "1", "ostemplate": TEMPLATE, "cores": "2"}
    assert made.secret_options == {"password": "geheim"} and "geheim" not in repr(made)
    made = NewContainer.model_validate({"ostemplate": TEMPLATE, "unprivileged": False, "hostname": "b"})
    assert made.configuration("ai") == {"hostname": "b", "unprivileged": "0", "ostemplate": TEMPLATE}


@rows(
    "url",
    [
        "http://m.lan/cuda",  # no TLS
        "https://m.lan/cuda\n* * * * * root reboot",
        "https://m.lan/\tcuda",
        "https://me:secret@m.lan/cuda",
        "https://m.lan/cuda [trusted=yes]",
        "https://m.lan/cuda?x=1",
        "https://m.lan/$(reboot)",
        "https://m.lan/`reboot`",
        "https:///cuda",
        "file:///cuda",
        "ftp://m.lan/cuda",
        "-o https://m.lan",
    ],
)
def test_a_mirror_is_an_address_of_one_word_over_tls(url: str) -> None:
    for which in ("cuda", "containerToolkit", "run"):
        with pytest.raises(ValueError, match="mirror"):
            Nvidia.model_validate({"mirror": {which: url}})


@rows("address", ["fe80::1%$(reboot)", "fe80::1%eth0,x", "-oProxyCommand=x", "a b", "a@b", "1.2.3", "pve;x"])
def test_an_address_is_no_shell_text(address: str) -> None:
    assert "expected" in said(0, ("vms", "gaming", "address"), address)
    assert "expected" in said(0, ("hosts", "pve", "address"), address)


def test_every_pattern_of_the_settings_is_ascii() -> None:
    # \d and \w of other scripts would go through, and mean nothing to a host.
    for text in ("٥٨٠", "５８０"):
        with pytest.raises(ValueError, match="driver"):
            Nvidia.model_validate({"driver": text})
    assert "expected" in said(0, ("hosts", "pve", "node"), "pve٠")
