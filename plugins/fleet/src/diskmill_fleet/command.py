"""``diskmill batch``: the declaration. What it does is in :mod:`diskmill_fleet.run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace
from diskmill_cli import common
from diskmill_cli.arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from diskmill_cli.session import Session

_PLAN = "plan"
_RUN = "run"


def run(arguments: Arguments, session: Session) -> int:
    from .run import run

    return run(arguments, session)


COMMAND = Command(
    "batch",
    "Do jobs on many images: plan, run, status, report.",
    "plan SOURCE... | run MANIFEST | status JOURNAL | report JOURNAL",
    (
        Option("job", ("--job",), "What is done with each image.", "JOB", default="convert", panel=_PLAN),
        Option(
            "to",
            ("--to",),
            "Where outputs go, with {stem}, {name}, {suffix}, {relative} and {digest} filled in.",
            "TEMPLATE",
            panel=_PLAN,
        ),
        replace(common.TARGET_FORMAT, panel=_PLAN),
        replace(common.OPTIONS, panel=_PLAN),
        Option("compress", ("-c", "--compress"), "Compress the outputs.", panel=_PLAN),
        Option("verify", ("--verify",), "Read each output back, and compare it.", panel=_PLAN),
        Option(
            "chains",
            ("--chains",),
            "Keep backing chains: a base among the sources is converted once, and its overlays lie on that.",
            panel=_PLAN,
        ),
        Option(
            "manifest",
            ("-m", "--manifest"),
            "Write the manifest here, and not to standard output.",
            "FILE",
            panel=_PLAN,
        ),
        Option(
            "journal",
            ("--journal",),
            "Where what was done is recorded.",
            "FILE",
            default="MANIFEST.journal",
            panel=_RUN,
        ),
        Option(
            "on",
            ("--on",),
            "Where jobs run: processes, or dask://HOST:PORT, a cluster by its scheduler.",
            "WHERE",
            default="processes",
            panel=_RUN,
        ),
        Option("jobs", ("-j", "--jobs"), "Jobs at a time; default: by processors and memory.", "N", panel=_RUN),
        Option("threads", ("--threads",), "Threads of each copy.", "N", default="1", panel=_RUN),
        Option("retries", ("--retries",), "Tries more after a failure that may pass.", "N", default="2", panel=_RUN),
        Option(
            "limit",
            ("--limit",),
            "STORE=JOBS[,BYTES_A_SECOND]: of a host, bucket or folder; repeatable.",
            "LIMIT",
            panel=_RUN,
        ),
        Option("keep_free", ("--keep-free",), "Bytes that stay free where outputs go.", "SIZE", panel=_RUN),
        Option("deadline", ("--deadline",), "Begin nothing more after so many seconds.", "SECONDS", panel=_RUN),
        Option(
            "dry_run",
            ("--dry-run",),
            "Tell what it would take: space by measuring, and time by the journal.",
            panel=_RUN,
        ),
        Option("out", ("--out",), "Where the report goes.", "FILE", default="JOURNAL.html", panel="report"),
        *common.OVERWRITE[1:],
        common.QUIET,
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="plan writes a manifest, a job a line, from folders, patterns and names. run does its jobs, the largest "
    "first; what is done is in the journal, so that the same command goes on where it was ended. An output has its "
    "name only when it is whole. Exit status: 0 all is done, 1 jobs failed, 3 there was no time for some.",
    examples=(
        Example("diskmill batch plan /vmware --to '/kvm/{relative}.qcow2' -O qcow2 -c -m jobs", "a job for each image"),
        Example("diskmill batch run jobs --journal done --keep-free 50G", "do what is not done yet"),
        Example("diskmill batch report done --out report.html", "what became of it, as a page"),
    ),
)
