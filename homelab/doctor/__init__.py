"""What is wrong with a card in a container, in a VM or on a host, in one page: `homelab doctor container 901
--like 950`.

`reading` is what the agent saw (homelab/reading/diagnosis.py asks it); `container`, `vm` and `host` judge it
(`diagnose`), `whole` all of a stack; `report` shows it as text or as JSON. What VMs and hosts share is in `cards`; what
is judged of a container is in `devices`, its findings are in `configuration` and `container_findings`.
"""
