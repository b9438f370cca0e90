"""Folders of the host in a container that is made: given, mended, changed, taken away; what is in them is never touched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from homelab.guest.resource import Guest
from homelab.guest.work import GuestWork
from homelab.remote.proxmox import api as api_module
from homelab.settings import NewContainer
from lab import Lab
from tests.lab.stack_kit import ID, NODE, TEMPLATE, made_guest, put_template, stack_of

FILMS, SONGS = "/tank/films,mp=/films", "/tank/songs,mp=/songs"


def inputs(*mounts: str) -> Guest.Inputs:
    new = {"ostemplate": f"local:vztmpl/{TEMPLATE}", "rootfs": "local-lvm:8", "features": "keyctl=1"}
    options = NewContainer.model_validate({**new, **{f"mp{number}": mount for number, mount in enumerate(mounts)}})
    return made_guest("lxc", "media", options.configuration("media"))


def mounted(lab: Lab) -> list[str]:
    lines = (lab.root / f"etc/pve/nodes/{NODE}/lxc/{ID}.conf").read_text().splitlines()
    return [line for line in lines if line.startswith("mp")]


def test_folders_are_given_mended_changed_and_taken_away_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    with Lab.start("bound-by-hand", state=tmp_path / "lab") as lab:
        put_template(lab)
        lab.run("mkdir -p $HOMELAB_ROOT/tank/films $HOMELAB_ROOT/tank/songs; echo a >$HOMELAB_ROOT/tank/films/a")
        root = GuestWork(stack_of(lab))
        first = inputs(FILMS, SONGS)
        outputs = root.create(first)
        assert mounted(lab) == ["mp0: /tank/films,mp=/films", "mp1: /tank/songs,mp=/songs"]
        assert root.read(first, outputs).drift == []
        lab.run(f"pct start {ID}")

        lab.run(f"pct stop {ID}; pct set {ID} --delete mp1; pct set {ID} --mp0 mp=/films,volume=/tank/films")
        found = root.read(first, outputs)
        assert found.drift == ["mp1"]
        root.update(first, first, found)
        assert mounted(lab)[1] == "mp1: /tank/songs,mp=/songs"

        second = inputs(f"{FILMS},ro=1")
        changed = root.update(second, first, dataclasses.replace(found, drift=[]))
        assert mounted(lab) == ["mp0: /tank/films,mp=/films,ro=1"]
        root.delete(second, changed)
        assert (lab.root / "tank/films/a").read_text() == "a\n" and (lab.root / "tank/songs").is_dir()
