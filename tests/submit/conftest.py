"""A cluster of two machines on the loopback, started by `ray up` with the shipped
cluster/onprem.yaml.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.submit.client import Cluster
from tests.submit.machines import Network, free_ports, machines, unable
from tests.submit.shipped import ADDRESSES, PORTS


@pytest.fixture(scope="session")
def cluster(data_root: Path) -> Iterator[Cluster]:
    reason = unable()
    if reason:
        pytest.skip(reason)
    # Not below /tmp: the machines have a /tmp of their own, and would not see it.
    root = Path(tempfile.mkdtemp(prefix="tm", dir="/var/tmp"))
    try:
        ports = free_ports(PORTS)
        network = Network(root, data_root, ports)
        with machines(network, ADDRESSES) as found:
            started = Cluster(network, found, ports + 1)
            started.up()
            yield started
    finally:
        shutil.rmtree(root, ignore_errors=True)
