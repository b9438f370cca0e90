"""`LabCluster`: several labs that are the nodes of one cluster, started, inspected and stopped together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml

from lab.client import Lab, SnapshotEntry, add_to_snapshot
from lab.host.cluster import Cluster
from lab.state import LabError

CLUSTERS = Path(__file__).resolve().parent / "clusters"


class LabCluster:
    """A cluster's labs, by node. A context manager: they stop at its end.

    Args:
        folder: where all of it lies.
        nodes: the labs, in the order of their ids.
    """

    def __init__(self, folder: Path, nodes: dict[str, Lab]) -> None:
        self.folder = folder
        self.nodes = nodes

    @classmethod
    def start(cls, description: str | Path, folder: Path) -> Self:
        """Start all nodes of a cluster that is made anew, one after the other.

        Args:
            description: a name in lab/clusters, or a YAML file: `name`, and `nodes`, each with `ip`,
                the keys of a scenario, such as `extends`.

        Raises:
            LabError: there is something in the folder, or a node can't be started.
        """
        path = description if isinstance(description, Path) else CLUSTERS / f"{description}.yaml"
        data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if folder.exists() and any(folder.iterdir()):
            raise LabError(f"Unable to start a cluster in {folder}: wanted an empty folder. Give another one.")
        members = {
            name: {"id": number, "ip": one.pop("ip")} for number, (name, one) in enumerate(data["nodes"].items(), 1)
        }
        shared = Cluster.make(folder.absolute(), data["name"], members)
        nodes: dict[str, Lab] = {}
        for name, own in data["nodes"].items():
            scenario = folder / f"{name}.yaml"
            scenario.write_text(yaml.safe_dump({**own, "node": name, "cluster": str(shared.folder)}))
            nodes[name] = Lab.start(str(scenario), state=folder / "nodes" / name)
        return cls(folder, nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Lab:
        return self.nodes[name]

    def stop(self) -> None:
        """Stop all of them."""
        for lab in self.nodes.values():
            lab.stop()

    def snapshot(self) -> dict[str, dict[str, SnapshotEntry]]:
        """What every node has, by its name, and what they share, as `pve`."""
        shared: dict[str, SnapshotEntry] = {}
        add_to_snapshot(shared, self.folder / "pve", "etc/pve")
        return {name: lab.snapshot() for name, lab in self.nodes.items()} | {"pve": shared}
