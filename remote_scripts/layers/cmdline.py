"""Words on the kernel command line of the next boot, and a second boot entry without them.

`apply` puts them into a boot on trial (boot/trial.py): its entry alone has them until that boot is confirmed. What
this boot runs with already is written at once, as is what only goes. Words that others have there
are left to them.
"""

from __future__ import annotations

from remote_scripts.boot import boot, trial
from remote_scripts.boot.loaders import found as loaders
from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.both.cmdline import Wanted
from remote_scripts.cluster import turn
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME, Changed
from remote_scripts.tools.system import System, changes, plans
from remote_scripts.tools.words import missing_words

_STEP = "boot"


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` changes, and the boot's confirmation.

    :raises Failure: the boot loader isn't known, or what is configured can't be read.
    """
    loader = loaders.need(system)
    added = _added(system, wanted, loader)
    if _is_to_come(system, wanted.name, added):
        return
    if _is_tried(system, wanted, added, loaders.own(system)[wanted.name].split()):
        trial.plan(system, loader)
    loaders.write(system, wanted.name, " ".join(added), loader)
    if _is_made_anew(system, wanted):
        esps = len(boot.uuids(system))
        system.files.plan_file("made", f"the boot entries on {esps} ESP(s)" if esps else boot.GRUB_MENU)


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Puts the words into a boot on trial, or into the configuration at once. Makes the boot configuration anew if it,
    or a file that it is made of, isn't as it should be.

    :raises Failure: as of `plan`; or the words have no effect; or the trial can't be armed or the configuration can't
        be made, and all is as it was.
    """
    loader = loaders.need(system)
    trial.settle(system)
    added = _added(system, wanted, loader)
    words, own_words = " ".join(added), loaders.own(system)
    comes = loader.configured(system, {**own_words, wanted.name: words})
    if missing_words(wanted.words, comes):
        raise Failure(
            f"'{wanted.words}' on the kernel command line",
            f"'{comes}'",
            "something that is read after this program's file removes it again; nothing was changed",
            "find it in /etc/default/grub, or in what sorts after zz-homelab in /etc/default/grub.d; take it out, "
            "and run `pulumi up` again",
        )
    if _is_to_come(system, wanted.name, added):
        return Changed(system.files.changed)
    if _is_tried(system, wanted, added, own_words[wanted.name].split()):
        trial.arm(system, wanted.rollback_after, {wanted.name: words})
        return Changed(True)
    system.files.followed_by = _STEP
    loaders.write(system, wanted.name, words, loader)
    if _is_made_anew(system, wanted):
        loaders.make_menus(system, loader)
    system.files.finish()  # the entry on trial is made of what is configured, and of the records
    trial.drop(system, wanted.name, wanted.rollback_after)
    return Changed(system.files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes out whatever was put there by this name, and what no other layer may come to give back: an initramfs that
    is to be made anew, this node's turn in its cluster.

    :raises Failure: as of `apply`.
    """
    files = system.files
    files.followed_by = _STEP
    loader = loaders.need(system)
    if trial.state(system) in ("ending", "over", ""):
        trial.settle(system)
    loaders.write(system, wanted.name, "", loader)
    was_tried = trial.drop(system, wanted.name, wanted.rollback_after)  # first: it makes room on an ESP
    if files.changed or files.is_pending(_STEP):
        loaders.make_menus(system, loader)
    changed = files.changed or was_tried
    _finish_initramfs(system)
    files.remove(f"{HOME}/wanted-boot")
    files.finish()  # whatever becomes of the cluster
    turn.give_back(system)
    trial.forget_when_given_back(system)
    return Changed(changed)


def _added(system: System, wanted: Wanted, loader: Loader) -> tuple[str, ...]:
    """Of the words those that no other file has."""
    return tuple(missing_words(wanted.words, loader.configured(system, {})))


def _is_to_come(system: System, name: str, added: tuple[str, ...]) -> bool:
    """The boot on trial has just these words of this layer."""
    return trial.is_chosen(system) and trial.note(system).get(name) == " ".join(added)


def _is_tried(system: System, wanted: Wanted, added: tuple[str, ...], before: list[str]) -> bool:
    """Unless nothing changes or all of it goes, or this boot shows what these words do: with them, and without those
    that go. One that somebody else has by now doesn't go.
    """
    running = system.files.need_text("/proc/cmdline")
    going = [word for word in before if word not in wanted.words.split()]
    runs = not missing_words(" ".join(added), running) and all(missing_words(word, running) for word in going)
    return bool(added) and before != [*added] and not runs


def _is_made_anew(system: System, wanted: Wanted) -> bool:
    """What was written isn't in what the next boot reads; or where ESPs hold that, this boot came without it."""
    if system.files.changed or system.files.is_pending(_STEP):
        return True
    running = system.files.need_text("/proc/cmdline") if boot.uuids(system) else loaders.GRUB.generated(system)
    return bool(missing_words(wanted.words, running))


def _finish_initramfs(system: System) -> None:
    """Makes the initramfs that a run of the layer initramfs left undone, as it was cut short or could not even make
    them from the old files. If nothing of homelab's is in them any more, perhaps no other layer will.
    """
    if not system.files.is_pending("initramfs") or system.files.has_put("vfio", boot.INIT_TOP):
        return
    failed = boot.make_initramfs(system)
    if failed is not None:
        system.log.say(f"note: the initramfs of an earlier run could not be rebuilt: {failed}")
