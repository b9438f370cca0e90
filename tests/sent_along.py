"""Asks the agent that is sent along, as a session does on a system that keeps none (`homelab.remote.agent.command_in_memory`)."""

from __future__ import annotations

from homelab.remote import agent


def text(verb: str, *requests: str) -> str:
    """Standard input: the requests, and the agent."""
    return agent.asked(verb, *requests) + agent.itself()


def answer(output: str) -> str:
    """Standard output without the system's question for the agent."""
    return output.removeprefix(agent.WANTS_AGENT.decode())
