"""What NVIDIA's repositories offer for the distribution of a guest that isn't there yet, asked on the host, by an apt
that knows nothing else. Nothing is changed.
"""

from __future__ import annotations

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.sources import add_aside
from remote_scripts.both.nvidia_index import Answer, Wanted
from remote_scripts.tools.system import System


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: a list can't be had."""
    with Apt(system, wanted.software, "nvidia").aside(alone=True) as apt:
        add_aside(apt, wanted.repositories)
        return Answer(tuple(apt.lacking(wanted.names)))
