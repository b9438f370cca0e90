"""The agent as most tests put it on a lab's host: without bytecode, which a host takes 0.3 s to make, and a lab's host doesn't need (lab/host/host_python.py).
As a user's run puts it there: tests/agent/test_start.py, test_oldest_python.py, and what starts without `tests/quick_python`.
"""

from __future__ import annotations

from homelab.remote import agent

_real_put = agent.put
#: In the place of put_agent.py's.
_COMPILED = """\
def compiled(archive):
    out = io.BytesIO(archive)
    with zipfile.ZipFile(out, "a") as whole:
        whole.comment += b"0" * 64
    content = out.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()
"""


def put(owner: str) -> str:
    """In the place of `agent.put`."""
    program, _, last = _real_put(owner).rstrip("\n").rpartition("\n")
    return f"{program}\n{_COMPILED}\n{last}\n"
