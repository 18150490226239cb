"""A Ray cluster of a head and two nodes of one CPU each: python -m tests.survival.nodes FOLDER

Writes its address to FOLDER/address. A line on stdin is the id of a node whose processes are then
killed; the end of stdin ends the cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ray.cluster_utils import Cluster

MEMORY = 80 * 2**20  # bytes of each node's object store


def main(folder: Path) -> None:
    """Until stdin ends."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
        scratch = folder / "address.new"
        scratch.write_text(cluster.address)
        scratch.rename(folder / "address")
        for line in sys.stdin:
            (node,) = (n for n in nodes if n.node_id == line.strip())
            cluster.remove_node(node, allow_graceful=False)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
