"""The text of files/container_helper.sh, which container.py starts in a container.

In the agent's archive another module stands here, which has it. Elsewhere the program gives it
(homelab/remote/agent.py).
"""

TEXT = ""
