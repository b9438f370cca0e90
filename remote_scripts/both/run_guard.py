"""What the layer run_guard is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`who`: is at work, for the message that another one gets; no other run has that name.

    In seconds: `silence`: after so many without a word the client is gone: one that was switched off says no goodbye,
    and this program's says something every ten; `patience`: that the run before may take to notice that its client has
    gone; `handing`: for which a handover that has begun is waited for, and `ending`: a step of an earlier run. The last
    three together: less than a client waits for the answer (`timeouts.api`, by default 60).
    """

    who: str
    silence: float = 60.0
    patience: float = 5.0
    handing: float = 30.0
    ending: float = 20.0
