"""Jobs: values that another process runs with the same result, and that cannot be made of what contradicts itself."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill import Context, Secret, Settings, Source, Target
from diskmill.contract.limits import Limits
from diskmill.errors import UsageError
from diskmill.jobs import Check, Compare, Convert, Digest, Info, Job, Measure
from samples import KiB, MiB, sparse_file

RUN = "import pickle, sys; pickle.dump(pickle.load(sys.stdin.buffer).run(), sys.stdout.buffer)"


def elsewhere(job: Job) -> Any:
    """What *job* gives in another process, which knows nothing but the pickled job."""
    done = subprocess.run([sys.executable, "-c", RUN], input=pickle.dumps(job), stdout=subprocess.PIPE, check=True)
    return pickle.loads(done.stdout)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sparse_file(tmp_path / "disk", 4 * MiB, {64 * KiB: b"data" * 30000, 3 * MiB: os.urandom(100 * KiB)})


def test_a_job_does_the_same_in_another_process(disk: Path, tmp_path: Path) -> None:
    raw = Source(str(disk), "raw")
    options = {"compression_type": "zstd", "cluster_size": "128k"}
    here, there = (
        Convert((raw,), Target(str(tmp_path / name), "qcow2", options), compress=True, digest="sha256", verify=True)
        for name in ("here", "there")
    )
    assert here.run() == elsewhere(there)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    made = Source(str(tmp_path / "there"))
    for job in (Check(made), Digest(made), Info(made), Measure(made, "qcow2"), Compare(raw, made)):
        assert job.run() == elsewhere(job)
    assert Compare(raw, made).run().identical


def test_secrets_are_read_where_the_job_runs(disk: Path, tmp_path: Path) -> None:
    key, image = tmp_path / "key", tmp_path / "image"
    key.write_text("one")
    settings = Settings(secrets=(Secret("s", file=str(key)),))
    options = {"key-secret": "s", "iter-time": "10"}
    job = Convert((Source(str(disk), "raw"),), Target(str(image), "luks", options), settings=settings)
    sent = pickle.dumps(job)
    key.write_text("another")
    pickle.loads(sent).run()
    with diskmill.open(
        f"json:{{'driver':'luks','file.filename':'{image}','key-secret':'s'}}", secrets={"s": "another"}
    ):
        pass
    assert "hidden" not in repr(Settings(secrets=(Secret("s", data="hidden"),)))


SOURCE, TARGET = Source("a"), Target("b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Convert((), TARGET),
        lambda: Convert((SOURCE,), TARGET, sparse=1000),
        lambda: Convert((SOURCE,), TARGET, sparse=2 << 30),
        lambda: Convert((SOURCE,), TARGET, threads=17),
        lambda: Convert((SOURCE,), TARGET, rate=-1),
        lambda: Convert((SOURCE,), TARGET, offload=True, compress=True),
        lambda: Convert((SOURCE,), TARGET, offload=True, sparse=4096),
        lambda: Convert((SOURCE,), TARGET, offload=True, salvage=True),
        lambda: Convert((SOURCE,), TARGET, reflink="perhaps"),
        lambda: Convert((SOURCE,), TARGET, reflink="auto", sparse=4096),
        lambda: Convert((SOURCE,), TARGET, reflink="always", verify=True),
        lambda: Convert((SOURCE,), TARGET, skip_broken=True),
        lambda: Convert((SOURCE, SOURCE), TARGET, bitmaps=True),
        lambda: Convert((Source("a", snapshot="1"), SOURCE), TARGET),
        lambda: Convert((SOURCE,), Target("b", backing="c"), digest="sha256"),
        lambda: Convert((SOURCE,), Target("b", backing="c"), verify=True),
        lambda: Convert((SOURCE,), Target("b", existing=True), settings=Settings(overwrite="refuse")),
        lambda: Target("b", zeroed=True),
        lambda: Target("b", image_opts=True),
        lambda: Target("b", existing=True, options={"size": "1"}),
        lambda: Target("b", backing_format="raw"),
        lambda: Source("a", cache="none at all"),
        lambda: Settings(overwrite="perhaps"),
        lambda: Settings(trust=5),  # type: ignore[arg-type]
        lambda: Settings(trust=("no such folder",)).context(),
        lambda: Limits(memory=-1),
        lambda: Context(cache="none at all"),
        lambda: Context(trust=5),  # type: ignore[arg-type]
        lambda: diskmill.digest("a", threads=17),
        lambda: diskmill.sync("a", "b", threads=0),
        lambda: diskmill.bench("a", depth=0),
        lambda: Settings(secrets=(Secret("s", data="1"), Secret("s", data="2"))),
        lambda: Secret("s"),
        lambda: Secret("s", data="1", file="2"),
        lambda: Check(SOURCE, "al"),  # type: ignore[arg-type]
        lambda: Digest(Source("a", snapshot="1")),
        lambda: Compare(SOURCE, Source("a", image_opts=True)),
    ],
)
def test_what_contradicts_itself_is_no_job(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


def test_a_job_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Convert((SOURCE,), TARGET).compress = True  # type: ignore[misc]


def test_folders_on_servers_are_trusted_by_url() -> None:
    assert Context(trust="https://host/disks/").trust.folders == ("https://host/disks/",)
    assert Settings(trust=("https://host/disks/", "folder")).context().trust.own
