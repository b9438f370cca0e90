"""Confirms the running boot, if it is one on trial: what is configured becomes the default without another restart."""

from __future__ import annotations

from remote_scripts.boot import trial
from remote_scripts.both.confirm_boot import Answer, Wanted
from remote_scripts.notes import owed
from remote_scripts.tools.kernel import need_boot_id
from remote_scripts.tools.system import System


def apply(system: System, wanted: Wanted) -> Answer:
    """Takes the decision without the lock: another run may hold that for longer than the trial lasts.

    :raises Failure: it can't be noted, or a note can't be read.
    """
    here = need_boot_id(system)
    if here == wanted.unless:
        return Answer(here, "", trial.rolled_back(system), trial.is_ending(system), "")
    lines = [system.files.text(trial.JUDGED), *owed.news(system)]
    judged = "; ".join(filter(None, lines))
    trial.confirm(system)
    if trial.state(system) in ("confirmed", "over"):
        trial.settle_if_free(system, wanted.lock_seconds)
    if judged and judged == wanted.told:
        system.files.remove(trial.JUDGED, owed.NEWS)
    rolled_back = trial.rolled_back(system)
    return Answer(here, "" if rolled_back else here, rolled_back, trial.is_ending(system), judged)
