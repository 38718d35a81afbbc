"""`diskmill batch`: many jobs, whatever ends in between."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.jobs import Settings
from diskmill.sizes import MiB
from diskmill_fleet.manifest import Line
from diskmill_fleet.planning import Wish, plan
from diskmill_fleet.schedule import Limit, Schedule
from encoders import bochs, cloop, dmg, ewf, in_memory, sparseimage, vma
from http_servers import faulty, free_port
from nbd_servers import nbdkit, uri
from samples import ext4_image
from tools import diskmill as command
from tools import qemu_img, qemu_io, run, tool

PROGRAM = Path(sys.executable).with_name("diskmill")
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels")
OTHERS = {"bochs": bochs, "cloop": cloop, "dmg": dmg, "E01": ewf, "sparseimage": sparseimage, "vma": vma}
"""What qemu-img writes not."""
COUNT = int(os.environ.get("DISKMILL_FLEET", "30"))
KILLS = int(os.environ.get("DISKMILL_KILLS", "2"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in all formats, by several tools, a chain of three among them."""
    folder = tmp_path_factory.mktemp("fleet")
    for number, (suffix, encoder) in enumerate(OTHERS.items()):
        data = random.Random(suffix).randbytes(1 << 18).ljust(MiB, bytes([number + 1]))
        (folder / f"other.{number}.{suffix}").write_bytes(in_memory(encoder.encode)(data))
    (folder / "tree").mkdir()
    (folder / "tree" / "readme.txt").write_text("no image")
    ext4_image(folder / "system.img", 4 * MiB, folder / "tree")
    for number in range(COUNT - len(OTHERS) - 1):
        format = FORMATS[number % len(FORMATS)]
        inner = folder / f"rack{number % 3}"
        inner.mkdir(exist_ok=True)
        image = inner / f"{number}.{format}"
        qemu_img("create", "-q", "-f", format, image, "8M")
        qemu_io(image, f"write -P {number % 200 + 1} {number * 4096} 2M", format=format)
    below = folder / "rack0" / "0.raw"
    for name in ("middle", "top", "twin"):
        image = folder / f"{name}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw" if name == "middle" else "qcow2", image)
        qemu_io(image, f"write -P {len(name)} 6M 64k", format="qcow2")
        below = folder / "middle.qcow2"
    return folder


def manifest_of(fleet: Path, folder: Path, *words: str) -> Path:
    path = folder / "jobs"
    out = str(folder / "out") + "/{relative}.qcow2"
    command("batch", "plan", fleet, "--to", out, "-O", "qcow2", "-m", path, "--trust=anything", *words)
    return path


def records(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def right(manifest: Path, journal: Path) -> None:
    """Each job was recorded once as done, with the digest of its source, which its output has too."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    done = [one for one in records(journal) if one["status"] == "done"]
    assert Counter(one["id"] for one in done) == Counter(line["id"] for line in lines)
    digests = {one["id"]: one["digest"] for one in done}
    for line in lines:
        source = diskmill.digest(line["source"], context=diskmill.Context(trust=diskmill.ANYTHING))
        assert digests[line["id"]] == diskmill.digest(line["to"]) == source


def test_a_fleet_with_its_chains(fleet: Path, tmp_path: Path) -> None:
    manifest = manifest_of(fleet, tmp_path, "--chains", "-c", "-o", "compression_type=zstd", "--verify")
    journal = tmp_path / "journal"
    done = command("batch", "run", manifest, "--journal", journal, "--trust=anything")
    assert done.stdout == f"done: {COUNT + 3}, done before: 0, failed: 0, not begun: 0\n"
    right(manifest, journal)
    top = json.loads(qemu_img("info", "--output=json", "--backing-chain", tmp_path / "out" / "top.qcow2").stdout)
    assert [Path(one["filename"]).name for one in top] == ["top.qcow2", "middle.qcow2", "0.qcow2"]
    qemu_img("compare", fleet / "top.qcow2", tmp_path / "out" / "top.qcow2")
    again = command("batch", "run", manifest, "--journal", journal, "--trust=anything")
    assert again.stdout == f"done: 0, done before: {COUNT + 3}, failed: 0, not begun: 0\n"
    (tmp_path / "out" / "middle.qcow2").unlink()
    once = command("batch", "run", manifest, "--journal", journal, "--trust=anything")
    assert once.stdout.startswith(f"done: 1, done before: {COUNT + 2}")
    found = json.loads(command("batch", "status", "--output=json", journal).stdout)
    assert (found["done"], found["failed"]) == (COUNT + 3, 0)
    command("batch", "report", journal, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=|http:|https:|url\(", page), "it loads nothing"


def test_what_goes_wrong_is_told_and_the_rest_is_done(fleet: Path, tmp_path: Path) -> None:
    """An image that is damaged, one that cannot be read, one that is away, a passphrase that is wrong or not given, a
    disk that gets full."""
    folder, full, sock = tmp_path / "in", tmp_path / "full", tmp_path / "sock"
    folder.mkdir()
    full.mkdir()
    good = folder / "good.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", good, "4M")
    qemu_io(good, "write -P 1 0 4M", format="qcow2")
    bad = bytearray(good.read_bytes())
    bad[20:24] = b"\xff" * 4
    (folder / "bad.qcow2").write_bytes(bad)
    locked = folder / "locked.luks"
    command(
        "create", "-f", "luks", "--object", "secret,id=k,data=right", "-o", "key-secret=k,iter-time=10", locked, "1M"
    )
    (folder / "away.qcow2").symlink_to("nowhere")
    wrong = json.dumps({"driver": "luks", "key-secret": "wrong", "file": {"driver": "file", "filename": str(locked)}})
    causes = {
        str(folder / "bad.qcow2"): "cluster_bits",
        str(folder / "away.qcow2"): "No such file",
        str(locked): "a passphrase is needed",
        f"json:{wrong}": "the passphrase is wrong",
        uri(sock): "read at offset 0",
    }
    lines: list[dict[str, Any]] = [
        {"id": source, "source": source, "to": str(tmp_path / "out" / str(at)), "output_format": "qcow2"}
        for at, source in enumerate([*causes, str(good)])
    ]
    lines[4]["format"] = "raw"
    lines.append({"id": "full", "source": str(good), "to": str(full / "disk"), "output_format": "raw"})
    causes["full"] = "No space left on device"
    lines.append({"job": "check", "source": str(good)})
    lines.append({"id": "other", "job": "compare", "source": str(good), "other": str(fleet / "rack0" / "0.raw")})
    causes["other"] = "it differs from"
    lines.append({"id": "after", "source": str(good), "to": str(tmp_path / "x"), "needs": [lines[0]["id"]]})
    causes["after"] = "which it needs, failed"
    manifest = tmp_path / "jobs"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"mount -t tmpfs -o size=2m none {shlex.quote(str(full))} && exec " + shlex.join(
        [str(PROGRAM), "batch", "run", str(manifest), "--retries", "0", "--object", "secret,id=wrong,data=no"]
    )
    with nbdkit(sock, "--filter=error", "pattern", "1M", "error-pread-rate=100%"):
        done = run(tool("unshare"), "-rm", "sh", "-c", words, check=False)
    assert done.returncode == 1
    assert done.stdout == f"done: 2, done before: 0, failed: {len(causes)}, not begun: 0\n"
    failed = {one["id"]: one["error"] for one in records(tmp_path / "jobs.journal") if one["status"] == "failed"}
    assert failed.keys() == causes.keys()
    for id, words in causes.items():
        assert words in failed[id], failed[id]
        assert f"'{id}': {failed[id]}" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["5"], "nothing is left of what failed"


def test_a_changed_source_is_done_again(tmp_path: Path) -> None:
    """Also where it is the backing image, or on a server; and so is what reads an output that is made again."""
    base, same, top, out = (tmp_path / name for name in ("base.raw", "same.raw", "top.qcow2", "out"))
    base.write_bytes(b"one" * 1024)
    same.write_bytes(b"one" * 1024)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    with faulty(b"one" * 1024, lambda *asked: None) as server:
        lines: list[dict[str, Any]] = [
            {"id": "convert", "source": str(top), "to": str(out), "output_format": "qcow2"},
            {"id": "compare", "job": "compare", "source": str(out), "other": str(top), "needs": ["convert"]},
            {"id": "here", "job": "digest", "source": str(base), "format": "raw"},
            {"id": "there", "job": "digest", "source": server.url, "format": "raw"},
            {"id": "same", "job": "digest", "source": str(same), "format": "raw"},
        ]
        (tmp_path / "jobs").write_text("".join(json.dumps(line) + "\n" for line in lines))

        def again() -> tuple[str, set[str]]:
            done = command("batch", "run", tmp_path / "jobs")
            return done.stdout, {words.split(": ")[1] for words in done.stderr.splitlines()}

        assert again() == ("done: 5, done before: 0, failed: 0, not begun: 0\n", set())
        assert again() == ("done: 0, done before: 5, failed: 0, not begun: 0\n", set())
        base.write_bytes(b"two" * 1024)
        dry = json.loads(command("batch", "run", tmp_path / "jobs", "--dry-run", "--output=json").stdout)
        assert (dry["jobs"], dry["unmade"]) == (3, 1)
        assert again() == ("done: 3, done before: 2, failed: 0, not begun: 0\n", {"convert", "compare", "here"})
        out.unlink()
        assert again() == ("done: 2, done before: 3, failed: 0, not begun: 0\n", {"convert", "compare"})
        server.data, server.etag = b"two" * 1024, '"two"'
        assert again() == ("done: 1, done before: 4, failed: 0, not begun: 0\n", {"there"})
    digests = {one["id"]: one.get("digest") for one in records(tmp_path / "jobs.journal")}
    assert digests["there"] == digests["here"] == digests["convert"] == diskmill.digest(base, format="raw")
    assert again()[0] == "done: 0, done before: 5, failed: 0, not begun: 0\n", "the server is away"


@pytest.mark.parametrize("mine", [True, False])
def test_an_output_that_was_made_but_not_recorded(mine: bool, tmp_path: Path) -> None:
    """Killed right in between: where nothing may be replaced, it is known again by what is in it."""
    source, out, journal = tmp_path / "disk.raw", tmp_path / "out", tmp_path / "jobs.journal"
    source.write_bytes(b"disk" * 1024)
    (tmp_path / "jobs").write_text(json.dumps({"source": str(source), "to": str(out), "output_format": "qcow2"}))
    words = ("batch", "run", tmp_path / "jobs", "--no-clobber")
    command(*words)
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    if not mine:
        qemu_io(out, "write -P 1 0 512", format="qcow2")
    before = out.read_bytes()
    found = json.loads(command("batch", "status", "--output=json", journal).stdout)
    assert (found["done"], found["failed"]) == (0, 0)
    again = command(*words, check=False)
    assert again.returncode == (0 if mine else 1)
    assert ("File exists" in again.stderr) is not mine
    assert out.read_bytes() == before
    assert sum(one["status"] == "done" for one in records(journal)) == mine


@pytest.mark.parametrize("whom", ["driver", "worker"])
def test_killed_at_random_moments(whom: str, fleet: Path, tmp_path: Path) -> None:
    """Started again it ends complete, with nothing recorded twice."""
    manifest, journal = manifest_of(fleet, tmp_path, "-c"), tmp_path / "journal"
    words = [
        PROGRAM,
        "batch",
        "run",
        manifest,
        "--journal",
        journal,
        "--trust=anything",
        "-j",
        "2",
        "--limit",
        "/=2,24M",
    ]
    dice = random.Random(whom)
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(dice.uniform(0.4, 1.2))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if process.poll() is None else []
        if whom == "worker" and workers:
            os.kill(dice.choice(workers), signal.SIGKILL)
            killed += 1
            assert process.wait(120) == 0, process.stderr
        else:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
            end = time.monotonic() + 20
            while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they tidy up, and go
                assert time.monotonic() < end, "a worker outlives its leader"
                time.sleep(0.05)
        process.communicate()
    assert killed
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    right(manifest, journal)
    strays = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".qcow2"]
    assert not strays


def test_interrupted_it_ends_at_once_and_goes_on(fleet: Path, tmp_path: Path) -> None:
    manifest, journal = manifest_of(fleet, tmp_path), tmp_path / "journal"
    words = [PROGRAM, "batch", "run", manifest, "--journal", journal, "--trust=anything"]
    process = subprocess.Popen([*words, "--limit", "/=2,4M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    right(manifest, journal)


def test_limits_and_deadline(fleet: Path, tmp_path: Path) -> None:
    manifest = manifest_of(fleet, tmp_path)
    slow = command(
        "batch", "run", manifest, "--trust=anything", "--limit", f"{fleet}=1,2M", "--deadline", "1", check=False
    )
    assert slow.returncode == 3
    left = int(slow.stdout.rpartition(" ")[2])
    assert 0 < left < COUNT + 3
    with open(f"{manifest}.journal") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = command("batch", "run", manifest, "--trust=anything", check=False)
        assert "another run writes this journal" in other.stderr
    dry = json.loads(command("batch", "run", manifest, "--trust=anything", "--dry-run", "--output=json").stdout)
    assert dry["jobs"] == left
    assert dry["required"] > left * 2 * MiB
    assert dry["seconds"] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"source": "a"}', "no field 'to'"),
        ('{"source": "a", "to": "b", "sorce": 1}', "did you mean 'source'"),
        ('{"source": "a", "to": "b", "compress": 3}', "'compress' cannot be 3"),
        ('{"source": "a", "to": "b"}\n{"source": "c", "to": "./b"}', "write the same file"),
        ('{"source": "a", "to": "b"}\n{"source": "c", "to": "here/b"}', "write the same file"),
        ('{"source": "a", "to": "b"}\n{"source": "b", "to": "c"}', "one of them must need the other"),
        ('{"source": "a", "to": "b"}\n{"job": "digest", "source": "here/b"}', "one of them must need the other"),
        ('{"source": "a", "to": "b"}\n{"source": "c", "to": "d", "backing": "b"}', "one of them must need the other"),
        ('{"job": "digest", "source": "-"}', "names a standard stream"),
        ('{"source": "a", "to": "b", "needs": ["c"]}', "which is no line"),
        ('{"source": "a", "to": "b", "id": "x", "needs": ["x"]}', "waits for itself"),
        ('{"source": "a", "to": "b"', "line 1 is not JSON"),
        ("source,to\na,b,c\n", "more columns"),
    ],
)
def test_a_manifest_that_makes_no_sense(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text(text)
    (tmp_path / "here").symlink_to(".")
    done = command("batch", "run", tmp_path / "jobs", check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_jobs_in_a_row_and_orders_that_nobody_else_reads(tmp_path: Path) -> None:
    """One that reads what another wrote comes after it, as it says; and a worker's standard input is empty."""
    (tmp_path / "a").write_bytes(bytes(1024) + b"a" * 1024)
    lines: list[dict[str, Any]] = [
        {"job": "compare", "source": "c", "other": "a", "needs": ["c"], "id": "same"},
        {"source": "b", "format": "raw", "to": "c", "needs": ["b"]},
        {"source": "a", "format": "raw", "to": "b"},
        {"job": "digest", "source": "/dev/stdin", "format": "raw"},
    ]
    (tmp_path / "jobs").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = command("batch", "run", "jobs", "-j", "1", check=False, cwd=tmp_path, timeout=30)
    assert done.stdout == "done: 4, done before: 0, failed: 0, not begun: 0\n"
    (tmp_path / "empty").touch()
    [read] = [one for one in records(tmp_path / "jobs.journal") if one["job"] == "digest"]
    assert read["digest"] == diskmill.digest(tmp_path / "empty")


def test_a_busy_store_holds_up_no_other() -> None:
    many = [Line(f"a{number}", f"/a/{number}", job="info", size=9) for number in range(1500)]
    schedule = Schedule([*many, Line("b", "/b/0", job="info", size=1)], set(), [Limit.parse("/a=1")])
    begun = [found and found[0].id for found in (schedule.next(), schedule.next(), schedule.next())]
    assert begun == ["a0", "b", None]
    schedule.ended(many[0], done=True)
    following = schedule.next()
    assert following is not None and following[0].id == "a1"


def test_a_plan_by_several_processes_is_the_same(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Wish(to="/out/{relative}", output_format="qcow2", backing=True)
    alone = list(plan([str(fleet)], wish, Settings()))
    monkeypatch.setattr("diskmill_fleet.looking._FEW", 1)
    assert list(plan([str(fleet)], wish, Settings())) == alone
    assert sum(bool(line.needs) for line in alone) == 3


def test_a_template_that_gives_two_images_one_output(tmp_path: Path) -> None:
    for name in ("disk.raw", "disk.img"):
        (tmp_path / name).write_bytes(bytes(512))
    done = command("batch", "plan", tmp_path, "--to", "/out/{stem}", "-m", tmp_path / "jobs", check=False)
    assert done.returncode == 1
    assert "would both be written to '/out/disk'" in done.stderr


def test_csv_and_a_torn_journal(fleet: Path, tmp_path: Path) -> None:
    source = fleet / "rack0" / "0.raw"
    (tmp_path / "jobs").write_text(
        f'source,to,output_format,options\n{source},{tmp_path}/o,qcow2,"cluster_size=4k,compat=1.1"\n'
    )
    journal = tmp_path / "journal"
    command("batch", "run", tmp_path / "jobs", "--journal", journal)
    assert journal.stat().st_mode & 0o077 == 0, "names may hold passwords"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:20])  # the power went
    command("batch", "run", tmp_path / "jobs", "--journal", journal)
    assert journal.read_bytes() == whole
    assert json.loads(qemu_img("info", "--output=json", tmp_path / "o").stdout)["cluster-size"] == 4096


def test_on_a_cluster(fleet: Path, tmp_path: Path) -> None:
    """A worker and the scheduler are killed; it ends complete, and the same as on processes."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    python = [sys.executable, "-m"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}

    def scheduler() -> subprocess.Popen[bytes]:
        words = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        return subprocess.Popen([*python, *words, "--no-show"], **quiet)

    def worker() -> subprocess.Popen[bytes]:
        words = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        return subprocess.Popen([*python, *words], **quiet)

    manifest, journal = manifest_of(fleet, tmp_path), tmp_path / "journal"
    words = ["batch", "run", str(manifest), "--journal", str(journal), "--trust=anything"]
    words += ["--on", f"dask://127.0.0.1:{port}", "--limit", "/=2,24M"]
    lead, first, second = scheduler(), worker(), worker()
    try:
        for number in range(max(KILLS // 2, 1)):
            done = journal.read_bytes().count(b"\n") if journal.exists() else 0
            process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            end = time.monotonic() + 60
            while not journal.exists() or journal.read_bytes().count(b"\n") < done + 3:
                assert time.monotonic() < end
                if process.poll() is not None:
                    break
                time.sleep(0.05)
            first.kill()
            time.sleep(0.3)
            lead.kill()
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 1 or number
            assert "Traceback" not in errors
            for one in (lead, first, second):
                one.kill()
                one.wait()
            lead, first, second = scheduler(), worker(), worker()
        done = command(*words, timeout=120)
        assert "failed: 0" in done.stdout
        right(manifest, journal)
    finally:
        for one in (lead, first, second):
            one.kill()
            one.wait()
