"""The fixture of a host that is nothing but a folder."""

from tests.agent.kit import host

__all__ = ["host"]
