"""Fixtures that every test may ask for. They hand out the functions of tools.py and samples.py, so that tests with
hypothesis can use them too: each is the same for the whole session and keeps no state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ceph_cluster as ceph
import iscsi_target as iscsi
import nfs_server as nfs
import oracles
import pytest
import samples
import ssh_server as ssh
import tools
from hypothesis import HealthCheck, settings

# A loaded two-core machine is slow now and then: no test asserts a time, so hypothesis should not either. The database
# is off to keep runs alike; a failing example prints how to reproduce it.
settings.register_profile(
    "diskmill", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("diskmill")


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    return tools.run


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    return tools.tool


@pytest.fixture(scope="session")
def qemu_img() -> Callable[..., Any]:
    return tools.qemu_img


@pytest.fixture(scope="session")
def qemu_img_json() -> Callable[..., Any]:
    return tools.qemu_img_json


@pytest.fixture(scope="session")
def qemu_io() -> Callable[..., Any]:
    return tools.qemu_io


@pytest.fixture(scope="session")
def diskmill() -> Callable[..., Any]:
    return tools.diskmill


@pytest.fixture(scope="session")
def diskmill_json() -> Callable[..., Any]:
    return tools.diskmill_json


@pytest.fixture(scope="session")
def ext4_image() -> Callable[..., Any]:
    return samples.ext4_image


@pytest.fixture
def oracle(tmp_path: Path) -> Callable[..., None]:
    """For the kit's suites: qemu-img agrees with what an image holds."""
    return lambda machine, format, options: oracles.agreed(machine, format, options, tmp_path)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh.SshServer]:
    """A real sshd on the loopback address; see ssh_server.py."""
    with ssh.SshServer(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="session")
def iscsi_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[iscsi.IscsiTarget]:
    """A real iSCSI target on the loopback address; see iscsi_target.py."""
    with iscsi.IscsiTarget(tmp_path_factory.mktemp("iscsi")) as target:
        yield target


@pytest.fixture(scope="session")
def ceph_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph.CephCluster]:
    """A real Ceph cluster on the loopback address, with the pool ``rbd``; see ceph_cluster.py."""
    with ceph.CephCluster(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def nfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nfs.NfsServer]:
    """A real NFS server in a network of its own, which a test has yet to enter; see nfs_server.py."""
    with nfs.NfsServer(tmp_path_factory.mktemp("nfs")) as server:
        yield server
