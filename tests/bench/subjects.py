"""What is compared: two Pulumi programs and two peers, each as a command with its environment, and how it says "no change"."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from lab.engine import install, stacks
from tests.bench.errors import BenchError
from tests.bench.job import Job

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "tests" / "bench"
TOOLS = Path(sys.executable).parent
STACK = "bench"
NO_CHANGE = ("--yes", "--skip-preview", "--non-interactive")


@dataclass(frozen=True)
class Subject:
    """`changes` reads a run's output and returns what it did, None when that is nothing.

    `first`: arguments of a first run, on a stock host, which it restarts.
    """

    name: str
    title: str
    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]
    changes: Callable[[str], str | None]
    first: Sequence[str] = field(default=())


# --- Pulumi ---


def pulumi_changes(output: str) -> str | None:
    """From the CLI's summary: `Resources:` and a line for each kind of step."""
    summary = re.search(r"^Resources:\n((?:[ \t]+\S.*\n)+)", output, re.MULTILINE)
    if summary is None:
        return "no summary of resources"
    steps = [line.strip() for line in summary[1].splitlines()]
    done = [step for step in steps if not re.fullmatch(r"\d+ unchanged", step)]
    return "; ".join(done) or None


class Programs:
    """The stack of this program on a lab, and an empty program's, each with a backend in `folder`."""

    def __init__(self, engine: install.Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._config = folder / "Pulumi.bench.yaml"
        self._empty = folder / "empty"
        self._environment = engine.environment(os.environ) | {
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "NO_COLOR": "1",
        }

    def _with_backend(self, name: str) -> dict[str, str]:
        backend = self._folder / f"backend-{name}"
        backend.mkdir(exist_ok=True)
        return self._environment | {"PULUMI_BACKEND_URL": backend.as_uri()}

    def prepare(self, lab: Lab, gpus: dict[str, Any]) -> None:
        """Writes the configuration and the empty program, and makes both stacks."""
        self.prepare_hosts({"pve": lab}, {"pve": gpus})
        self._empty.mkdir()
        # As `pulumi new python` has it; the environment is this program's, so that both start the same interpreter.
        runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": str(PROJECT / ".venv")}}
        (self._empty / "Pulumi.yaml").write_text(yaml.safe_dump({"name": "empty", "runtime": runtime}))
        (self._empty / "__main__.py").write_text('"""A Python Pulumi program"""\n\nimport pulumi\n')
        try:
            subprocess.run(
                [str(self._engine.pulumi), "stack", "init", STACK, "--non-interactive", "--cwd", str(self._empty)],
                env=self._with_backend("empty"),
                check=True,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.CalledProcessError as error:
            raise BenchError(
                "two new stacks", str(error.stderr), "they are what is measured", "see `make up`"
            ) from error

    def prepare_hosts(self, labs: Mapping[str, Lab], gpus: Mapping[str, dict[str, Any]]) -> None:
        """Writes the configuration of these hosts, by name, and makes their stack."""
        hosts = {}
        for name, lab in labs.items():
            ssh = lab.connection
            way = {"port": ssh["port"], "hostKey": ssh["hostKey"], "privateKeyFile": ssh["privateKeyFile"]}
            hosts[name] = {"address": ssh["host"], "node": lab.api["node"], "ssh": way, "gpus": gpus[name]}
        self.prepare_settings(hosts)

    def prepare_settings(self, hosts: Mapping[str, Any]) -> None:
        """Writes the configuration, as `homelab:hosts` has it, and makes the stack."""
        self._config.write_text(yaml.safe_dump({"config": {"homelab:hosts": dict(hosts)}}), encoding="utf-8")
        try:
            stacks.create(self._engine.pulumi, STACK, self._with_backend("homelab"))
        except subprocess.CalledProcessError as error:
            raise BenchError("a new stack", str(error.stderr), "it is what is measured", "see `make up`") from error

    def state_bytes(self) -> int:
        """The size of this program's state."""
        folder = self._folder / "backend-homelab" / ".pulumi" / "stacks"
        return sum(path.stat().st_size for path in folder.rglob(f"{STACK}.json"))

    def _homelab(self, name: str, title: str, verb: str, *options: str) -> Subject:
        where = ("--stack", STACK, "--cwd", str(PROJECT), "--config-file", str(self._config))
        command = (str(self._engine.pulumi), verb, *NO_CHANGE, *options, *where)
        return Subject(name, title, command, self._folder, self._with_backend("homelab"), pulumi_changes)

    def up(self) -> Subject:
        """`up` of this program."""
        return self._homelab("up", "homelab: `up`, no change", "up")

    def refresh(self) -> Subject:
        """`up --refresh`, which reads the host."""
        return self._homelab("refresh", "homelab: `up --refresh`, no change", "up", "--refresh")

    def destroy(self) -> Subject:
        """Not measured: gives the host back."""
        return self._homelab("destroy", "homelab: `destroy`", "destroy")

    def empty(self) -> Subject:
        """`up` of a program that declares nothing: what the engine and the interpreter cost."""
        command = (str(self._engine.pulumi), "up", *NO_CHANGE, "--stack", STACK, "--cwd", str(self._empty))
        title = "the empty Pulumi program: `up`, no change"
        return Subject("empty", title, command, self._folder, self._with_backend("empty"), pulumi_changes)


# --- the peers ---


def pyinfra_changes(output: str) -> str | None:
    """From the totals that end a run: `Grand total`, then hosts, success (something changed), error, no change; `-` is 0."""
    total = re.search(r"^\s*Grand total\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s*$", output, re.MULTILINE)
    if total is None:
        return "no totals"
    done = [f"{count} {name}" for count, name in ((total[2], "changed"), (total[3], "failed")) if count != "-"]
    return ", ".join(done) or None


def ansible_changes(output: str) -> str | None:
    """From the play's recap: `pve : ok=5 changed=0 unreachable=0 failed=0 …`."""
    recap = re.search(r"^pve\s*:\s*(ok=.*)$", output, re.MULTILINE)
    if recap is None:
        return "no recap"
    counts = dict(pair.split("=") for pair in recap[1].split())
    wrong = [f"{name}={counts[name]}" for name in ("changed", "unreachable", "failed") if counts.get(name) != "0"]
    return " ".join(wrong) or None


def pyinfra(job: Job) -> Subject:
    """`pyinfra` with tests/bench/pyinfra/deploy.py."""
    folder = FOLDER / "pyinfra"
    return Subject(
        "pyinfra",
        "pyinfra: the same job, no change",
        (str(TOOLS / "pyinfra"), "-y", "inventory.py", "deploy.py"),
        folder,
        {**os.environ, "BENCH_JOB": str(job.facts)},
        pyinfra_changes,
        ("--data", "restart=yes"),
    )


def ansible(job: Job, lab: Lab) -> Subject:
    """`ansible-playbook` with tests/bench/ansible/playbook.yml; its own files, and its connections, stay in the job's folder."""
    folder = FOLDER / "ansible"
    inventory = job.folder / "inventory.json"
    inventory.write_text(json.dumps(_inventory(job, lab), indent=1), encoding="utf-8")
    home = job.folder / "a"  # short: the path of a socket in it has at most 107 bytes
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home / "c"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return Subject(
        "ansible",
        "Ansible: the same job, no change",
        (str(TOOLS / "ansible-playbook"), "-i", str(inventory), "playbook.yml"),
        folder,
        environment,
        ansible_changes,
        ("--extra-vars", json.dumps({"restart": True, "reboot": lab.run("command -v reboot").stdout.strip()})),
    )


def _inventory(job: Job, lab: Lab) -> dict[str, Any]:
    facts = job.write_facts(lab)
    ssh = facts["ssh"]
    variables = {
        "ansible_host": ssh["host"],
        "ansible_port": ssh["port"],
        "ansible_user": ssh["user"],
        "ansible_ssh_private_key_file": ssh["privateKeyFile"],
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={facts['known_hosts']} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
        # Named, so that no time goes into finding one. Not the environment's: the host would have the system's.
        "ansible_python_interpreter": str(Path(sys.executable).resolve()),
        # The simulated host has no terminals.
        "ansible_ssh_use_tty": False,
        # By default in the home that the password file names, which is this machine's and not the simulated host's.
        "ansible_remote_tmp": f"{facts['root']}/tmp/.ansible",
        **{name: facts[name] for name in ("root", "files", "words", "functions")},
    }
    return {"all": {"hosts": {"pve": variables}}}


def close_connections(job: Job) -> None:
    """Ends the SSH connections that Ansible keeps open for its next run."""
    for socket in (job.folder / "a" / "c").glob("*"):
        subprocess.run(
            ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "pve"], capture_output=True, stdin=subprocess.DEVNULL
        )
