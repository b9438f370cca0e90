"""`make up`, `make down` and their like: the stack `lab` on a simulated host, by the real Pulumi CLI.

The configuration is lab/Pulumi.lab.yaml with the address of the lab that was started; state, keys and that configuration lie in
`.lab/<scenario>`, so that nothing of the user's own Pulumi is touched.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console

from lab import Lab, LabError, progress
from lab.client import default_state
from lab.engine import install, stacks

PROJECT = Path(__file__).resolve().parent.parent
STACK = "lab"
# Of `make up` without SCENARIO.
DEFAULT = "rtx5090"
# No variable says which file a stack's configuration is in.
FUNCTIONS = """pulumi() {{
  case ${{1:-}} in
    up | update | preview | pre | refresh | destroy | down | config | watch)
      command pulumi "$@" --config-file {file} --cwd {project} ;;
    *) command pulumi "$@" --cwd {project} ;;
  esac
}}
homelab() {{
  case ${{1:-}} in
    doctor | show) (cd {project} && {python} -m homelab "$@" --config-file {file}) ;;
    *) (cd {project} && {python} -m homelab "$@") ;;
  esac
}}
"""


def functions(file: Path, project: Path, python: Path) -> str:
    """The shell functions by which `pulumi` and `homelab` are about the stack of that configuration."""
    words = {"file": file, "project": project, "python": python}
    return FUNCTIONS.format(**{name: shlex.quote(str(path)) for name, path in words.items()})


class Deployment:
    """One lab and its stack."""

    def __init__(self, scenario: str, state: Path | None = None) -> None:
        self.scenario = scenario
        self.state = state or default_state(scenario)
        self.backend = self.state / "pulumi"
        self.config_file = self.state / "Pulumi.lab.yaml"
        environ = {**os.environ, "PULUMI_HOME": str(install.cache_folder() / "home")}
        self.engine = install.ensure(environ)
        self.environment = self.engine.environment(environ) | {
            "PULUMI_BACKEND_URL": stacks.backend_url(self.backend),
            "PULUMI_CONFIG_PASSPHRASE": "",
        }

    def pulumi(self, *arguments: str) -> int:
        """Runs the CLI on the stack; its output is the person's."""
        return subprocess.run(self._command(*arguments), env=self.environment).returncode

    def carry_out(self, verb: str) -> int:
        """`up` or `destroy`: all that the CLI says, or at a terminal what a person needs of it."""
        command = self._command(verb, "--yes", "--skip-preview", "--suppress-outputs")
        if not sys.stdout.isatty():
            return subprocess.run(command, env=self.environment).returncode
        return progress.run(command, self.environment, Console(highlight=False))

    def _command(self, *arguments: str) -> list[str]:
        where = ["--stack", STACK, "--cwd", str(PROJECT)]
        if arguments[0] != "stack":  # which reads no configuration, and knows no such option
            where += ["--config-file", str(self.config_file)]
        return [str(self.engine.pulumi), *arguments, *where]

    def show(self) -> None:
        """Who has which card, and who gets it with the next `up`."""
        show = [sys.executable, "-m", "homelab", "show", "--config-file", str(self.config_file.resolve())]
        subprocess.run(show, cwd=PROJECT, env=self.environment)

    def prepare(self) -> None:
        """The lab running, the configuration written, the stack there."""
        lab = Lab.start(self.scenario, state=self.state, outlives_caller=True)
        self.backend.mkdir(parents=True, exist_ok=True)
        self._write_config(lab)
        if not (self.backend / ".pulumi" / "stacks" / "homelab" / f"{STACK}.json").exists():
            stacks.create(self.engine.pulumi, STACK, self.environment)
        stacks.release_dead_lock(self.engine.pulumi, STACK, self.backend, self.environment)
        (self.state / "env").write_text(
            "# To use this stack from a shell:  . this file\n"
            + "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self._exports().items())
            + functions(self.config_file, PROJECT, Path(sys.executable))
        )

    def _exports(self) -> dict[str, str]:
        names = ("PULUMI_HOME", "PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_SKIP_UPDATE_CHECK")
        # By HOMELAB_LAB `homelab init` knows that this shell is no place for somebody's own host.
        chosen = {"PATH": self.environment["PATH"], "PULUMI_STACK": STACK, "HOMELAB_LAB": str(self.state.resolve())}
        return {name: self.environment[name] for name in names} | chosen

    def _write_config(self, lab: Lab) -> None:
        written = yaml.safe_load((PROJECT / "lab" / "Pulumi.lab.yaml").read_text(encoding="utf-8"))
        config, host = written["config"], written["config"]["homelab:hosts"]["pve"]
        own = PROJECT / "lab" / "stacks" / f"{self.scenario}.yaml"
        if own.exists():
            stack = yaml.safe_load(own.read_text(encoding="utf-8"))
            for kind in ("vms", "containers"):
                config[f"homelab:{kind}"] = {name: {"host": "pve"} | one for name, one in stack.pop(kind, {}).items()}
            host |= stack
            for vm in config["homelab:vms"].values():
                if "nvidia" in vm:
                    guest = lab.guest(vm["vmid"])
                    vm["address"] = guest["host"]
                    vm["ssh"] = {name: guest[name] for name in ("port", "hostKey", "privateKeyFile")}
        ssh = lab.connection
        host["address"], host["node"] = ssh["host"], lab.api["node"]
        host["ssh"] = {"port": ssh["port"], "hostKey": ssh["hostKey"], "privateKeyFile": ssh["privateKeyFile"]}
        kept = yaml.safe_load(self.config_file.read_text(encoding="utf-8")) if self.config_file.exists() else {}
        self.config_file.write_text(yaml.safe_dump(kept | written, sort_keys=False), encoding="utf-8")
        self.config_file.chmod(0o600)


def main(arguments: list[str] | None = None) -> int:
    """`up`, `down`, `preview` or `outputs`, and a scenario. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="lab.deploy", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "preview", "outputs"])
    parser.add_argument("scenario")
    parser.add_argument("--state", type=Path, help="where the lab's state lies; default: .lab/SCENARIO")
    asked = parser.parse_args(arguments)
    verb = asked.verb
    try:
        deployment = Deployment(asked.scenario, asked.state)
        if verb == "down":
            return down(deployment)
        deployment.prepare()
    except (LabError, install.EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    if verb == "outputs":
        return deployment.pulumi("stack", "output", "--json")
    if verb == "preview":
        code = deployment.pulumi("preview", "--suppress-outputs")
    else:
        print("Plan", flush=True)
        deployment.show()
        print(flush=True)
        code = deployment.carry_out("up")
    print(hints(verb, asked.scenario, os.path.relpath(deployment.state), code))
    return code


def hints(verb: str, scenario: str, state: str, code: int) -> str:
    """What to do next, with the names of this lab.

    Args:
        state: the lab's folder.
        code: of the run.
    """
    named = "" if scenario == DEFAULT else f" SCENARIO={scenario}"
    first = {
        "preview": (f"make up{named}", "do it"),
        "up": (f"make up{named}", "once more: it goes on from there")
        if code
        else (f"make outputs{named}", "what other stacks can use"),
    }[verb]
    rows = [
        # A preview that refuses leaves nothing to be done.
        *([first] if verb == "up" or code == 0 else []),
        (f".venv/bin/python -m lab log --state {state}", "what happened on it"),
        (f".venv/bin/python -m lab run --state {state} -- lspci -nnk", "look at it, or break something"),
        (f".venv/bin/homelab show --config-file {state}/Pulumi.lab.yaml", "who has which card"),
        (f". {state}/env", "then `pulumi up`, `homelab show` and the like are about this stack, in this shell"),
        (f"make down{named}", "undo everything and stop the host"),
    ]
    lines = [line for command, what in rows for line in (f"  {command}", f"      {what}")]
    lines.append("Your own host: README.md#use-it")
    return "\n".join(["", f"The simulated host `{scenario}` runs in {state}, until `make down{named}`. Next:", *lines])


def down(deployment: Deployment) -> int:
    """Destroys what `up` made, if there is anything, and stops the lab."""
    code = 0
    if deployment.config_file.exists():
        deployment.prepare()
        code = deployment.carry_out("destroy")
    if code == 0:
        Lab.open(deployment.state).stop()
        print("`pulumi destroy` has ended, and the simulated host is stopped.")
    return code


if __name__ == "__main__":
    sys.exit(main())
