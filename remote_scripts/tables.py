"""Tables of the program's that layers use, as JSON. In the agent's archive another module stands here, which has them
(homelab/remote/agent.py, which reads the YAML); elsewhere the program gives them.
"""

from __future__ import annotations

#: `both.symptoms.Symptom`s, in the order in which they are answered.
SYMPTOMS = "[]"
