"""What tells states and hosts of earlier versions from those that this one can read, and their refusal."""

from __future__ import annotations

from homelab.errors import HomelabError

#: In the provider's own inputs, which the state keeps: no state of 1.0.0 has it. It is raised where this version can't
#: give back what an earlier commit has noted. 2: a VM's originals weren't noted in /etc/pve/homelab yet; 3: of a
#: container's nodes more was noted; 5: a host's agent was a resource of its own.
STATES = {"states": "5"}
#: How the names begin of what was noted of guests until then.
NOTES = ("vm/", "power/", "containers/")
#: Of a boot with a dead man's switch, which the host was to confirm or to take back: the new default came first then.
SWITCH = ("/var/lib/homelab/armed", "/var/lib/homelab/rolling-back")
#: What wrote such states and notes, and what undoes them.
LATER = ("an earlier commit of 2.0.0.dev", "the commit that wrote it")
#: How the version of each agent since 2.0 begins; that of 1.0.0's has hexadecimal digits alone.
AGENTS = "2-"


def refusal(found: str, wrote: str = "homelab 1.0.0", commit: str = "commit 082c80e5") -> HomelabError:
    """The refusal of what an earlier version has left.

    :param found: what it is.
    :param wrote: that version.
    :param commit: what undoes it.
    """
    return HomelabError(
        wanted=f"nothing of {wrote}: it must be undone before this version is used",
        found=found,
        why="this version can't read what that one noted, so it could neither change it nor undo it; nothing was "
        "changed",
        next=f"check out {commit} of homelab, run `pulumi destroy` there for each stack (`pulumi up` "
        "first where its state is lost), then come back to this version and run `pulumi up`",
    )


def unconfirmed(found: str) -> HomelabError:
    """The refusal of a boot whose dead man's switch an earlier version has armed.

    :param found: what tells of it.
    """
    return HomelabError(
        wanted="the last configured boot of this host confirmed, or taken back, by the version that configured it",
        found=found,
        why="its dead man's switch is that version's: this one tries a boot in another way, and would leave that boot "
        "without either; nothing was changed",
        next=f"check out {LATER[1]} of homelab, restart the host unless it has restarted since, and run `pulumi up` "
        "there, which confirms the boot; then come back to this version and run `pulumi up`",
    )
