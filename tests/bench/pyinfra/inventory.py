"""The lab host, as pyinfra reaches it. BENCH_JOB names the facts of this run (tests/bench/job.py)."""

import json
import os
from pathlib import Path

_job = json.loads(Path(os.environ["BENCH_JOB"]).read_text(encoding="utf-8"))

pve = [
    (
        _job["ssh"]["host"],
        {
            "ssh_port": _job["ssh"]["port"],
            "ssh_user": _job["ssh"]["user"],
            "ssh_key": _job["ssh"]["privateKeyFile"],
            "ssh_known_hosts_file": _job["known_hosts"],
            "ssh_strict_host_key_checking": "yes",
            "ssh_allow_agent": False,
            "ssh_look_for_keys": False,
            # On a real host this is empty; the lab's host lies in a folder.
            "root": _job["root"],
            "files": _job["files"],
            "words": _job["words"],
            "functions": _job["functions"],
        },
    )
]
