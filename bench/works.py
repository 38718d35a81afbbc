"""What the benchmark runs, as data: the images, and the works on them with the ratio that is diskmill's goal.

A command is the words after the program's name, the same for both programs, in which `{name}` stands for the path of an
image and `{out}` for the output. A new format adds a line to `WORKS` (`to`, `back`) and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Command = tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One job that both programs do."""

    name: str
    #: qemu-img's time over diskmill's, or more.
    goal: float
    command: Command
    #: The other side's whole command, where it is not qemu-img with the same words.
    against: Command | None = None
    #: Our side's whole command, where it is not diskmill with the words of `command`.
    whole: Command | None = None
    #: A whole command that runs beside each run, and listens at `{socket}` (`{uri}` for clients of NBD), or once it
    #: does at `{port}`.
    server: Command | None = None
    #: The servers are what is measured: diskmill's, and the other side's. `command` is their client's whole
    #: command then; its time counts, and the servers' processor time and memory.
    measured: tuple[Command, Command] | None = None
    #: Format drivers that diskmill needs; the work is left out where they are not installed.
    needs: tuple[str, ...] = ()
    #: A Python module that the other side needs; the work is left out where it is not installed.
    module: str | None = None
    #: Whole commands before each run, not measured.
    before: tuple[Command, ...] = ()
    #: Words after `qemu-img` that must succeed after a first, unmeasured run of each program.
    verify: Command | None = None
    #: Whether both must print the same JSON in that first run.
    same_json: bool = False
    #: The output must be no larger than qemu-img's.
    no_larger: bool = False
    #: Lasts milliseconds: run four times as often.
    short: bool = False
    #: Set in both programs' environment.
    environment: tuple[tuple[str, str], ...] = ()
    #: The most memory that diskmill may take, in MiB.
    memory: int = 128


@dataclass(frozen=True)
class Recipe:
    """How an image is made: whole commands, in which `qemu-img` and `python` stand for those programs."""

    commands: tuple[Command, ...]


NOTHING: Command = ("its-python", "-c", "pass")
"""What is left of a start without us: `its-python` stands for the interpreter that diskmill runs in."""
SECRET: Command = ("--object", "secret,id=s0,data=correct horse")
LUKS = "key-secret=s0,iter-time=10"
QCOW2_LUKS = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10"
LUKS_IMAGE = "driver=luks,key-secret=s0,file.filename="
QCOW2_LUKS_IMAGE = "driver=qcow2,encrypt.key-secret=s0,file.filename="


def converted(format: str, *words: str) -> Recipe:
    """An image that qemu-img converts from the raw source; `{image}` is the image's own path."""
    return Recipe((("qemu-img", "convert", "-f", "raw", "-O", format, *words, "{raw}", "{image}"),))


def encoded(format: str) -> Recipe:
    """An image that qemu-img cannot make: the tests' encoder does."""
    return Recipe((("python", "-m", f"tests.encoders.{format}", "{raw}", "{image}"),))


CHAIN = 100
SCRIPT: Command = ("sh", "-ec")


def shaped(script: str) -> Recipe:
    """An image that a shell script makes of the words `$1`, the image's own path, and `$0`, the raw source's."""
    return Recipe(((*SCRIPT, script, "{raw}", "{image}"),))


#: Writes 100,000 pieces of 4 KiB, each with a hole of 4 KiB behind it.
PIECES = """
import sys
with open(sys.argv[1], "wb") as file:
    for number in range(100_000):
        file.seek(number * 8192)
        file.write(b"7" * 4096)
    file.truncate(100_000 * 8192)
"""

SHAPES: Mapping[str, Recipe] = {
    "qcow2-chain": shaped(
        f"qemu-img create -q -f qcow2 $1-0 64M; n=0; while [ $n -lt {CHAIN} ]; do m=$((n + 1)); "
        "qemu-img create -q -f qcow2 -b $1-$n -F qcow2 $1-$m; "
        'qemu-io -f qcow2 -c "write -q -P $m $((n * 655360)) 128k" $1-$m; n=$m; done; cp $1-$n $1'
    ),
    "raw-pieces": Recipe((("python", "-c", PIECES, "{image}"),)),
    "qcow2-fragments": Recipe(
        (("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", "{raw-pieces}", "{image}"),)
    ),
    "qcow2-512": converted("qcow2", "-o", "cluster_size=512"),
    "qcow2-subclusters": converted("qcow2", "-o", "cluster_size=2M,extended_l2=on"),
}

IMAGES: Mapping[str, Recipe] = {
    "raw": Recipe((("python", "-m", "bench.source", "{image}", "{size}"),)),
    "raw-gz": Recipe((("sh", "-c", 'gzip -1 -c "$0" > "$1"', "{raw}", "{image}"),)),
    "qcow2": converted("qcow2"),
    "qcow2-deflate": converted("qcow2", "-c"),
    "qcow2-zstd": converted("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-small": Recipe((("qemu-img", "create", "-q", "-f", "qcow2", "{image}", "64M"),)),
    "qcow2-1T": Recipe((("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "{image}", "1T"),)),
    "qcow2-200-snapshots": Recipe(
        (
            ("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "{image}", "100G"),
            *(("qemu-img", "snapshot", "-c", f"s{number}", "{image}") for number in range(200)),
        )
    ),
    **SHAPES,
    "vmdk": converted("vmdk"),
    "vmdk-stream": converted("vmdk", "-o", "subformat=streamOptimized"),
    "luks-empty": Recipe((("qemu-img", "create", "-q", *SECRET, "-f", "luks", "-o", LUKS, "{image}", "{size}"),)),
    "qcow2-luks-empty": Recipe(
        (("qemu-img", "create", "-q", *SECRET, "-f", "qcow2", "-o", QCOW2_LUKS, "{image}", "{size}"),)
    ),
    "luks": converted("luks", *SECRET, "-o", LUKS),
    "qcow2-luks": converted("qcow2", *SECRET, "-o", QCOW2_LUKS),
    "vdi": converted("vdi"),
    "vpc": converted("vpc", "-o", "force_size=on"),
    "vhdx": converted("vhdx"),
    "qcow": converted("qcow"),
    "qed": converted("qed"),
    "parallels": converted("parallels"),
    "dmg": encoded("dmg"),
    "cloop": encoded("cloop"),
    "bochs": encoded("bochs"),
}


def to(format: str, *words: str, goal: float, name: str | None = None, no_larger: bool = False) -> Work:
    """The raw source converted to a format."""
    return Work(
        name or f"raw-{format}",
        goal,
        ("convert", "-f", "raw", "-O", format, *words, "{raw}", "{out}"),
        needs=(format,),
        verify=("compare", "-f", "raw", "-F", format, "{raw}", "{out}"),
        no_larger=no_larger,
    )


def back(image: str, *, goal: float) -> Work:
    """An image converted to raw; its format is its name up to the first dash."""
    format = image.partition("-")[0]
    return Work(
        f"{image}-raw",
        goal,
        ("convert", "-f", format, "-O", "raw", f"{{{image}}}", "{out}"),
        needs=(format,),
        verify=("compare", "-f", "raw", "-F", "raw", "{raw}", "{out}"),
    )


def encrypted(image: str, opened: str, *, goal: float) -> Work:
    """The raw source written into an empty encrypted image.

    The image exists already, so that both derive the key once and with as many iterations: at creation qemu-img tries
    out for some seconds how many there should be.
    """
    return Work(
        f"raw-{image}",
        goal,
        ("convert", *SECRET, "-n", "-f", "raw", "--target-image-opts", "{raw}", f"{opened}{{out}}"),
        needs=("luks", image.partition("-")[0]),
        before=(("cp", "--sparse=always", f"{{{image}-empty}}", "{out}"),),
        verify=("compare", *SECRET, "--image-opts", "driver=raw,file.filename={raw}", f"{opened}{{out}}"),
    )


def decrypted(image: str, opened: str, *, goal: float) -> Work:
    """An encrypted image converted to raw."""
    return Work(
        f"{image}-raw",
        goal,
        ("convert", *SECRET, "--image-opts", "-O", "raw", f"{opened}{{{image}}}", "{out}"),
        needs=("luks", image.partition("-")[0]),
        verify=("compare", "-f", "raw", "-F", "raw", "{raw}", "{out}"),
    )


def started(name: str, *words: str, goal: float = 1 / 3, copied: bool = False) -> Work:
    """A command that does next to nothing to a small image; *copied*: to `{out}`, which is a copy of it."""
    before = (("cp", "{qcow2-small}", "{out}"),) if copied else ()
    return Work(
        name if name == "info" else f"start-{name}",
        goal,
        words,
        against=NOTHING,
        needs=("qcow2",),
        before=before,
        short=True,
    )


def complete(name: str, *words: str) -> Work:
    """What the shell is offered for *words*: within 100 ms where an interpreter that does nothing takes 12."""
    return Work(
        f"complete-{name}",
        1 / 8,
        words,
        against=NOTHING,
        needs=("qcow2",),
        short=True,
        environment=(("_DISKMILL_COMPLETE", "fish"),),
    )


def read(format: str) -> Work:
    """A disk read through the library, against dissect's, from its beginning to its end."""
    program = ("python", "-m", "bench.reading")
    image = f"{{{format}}}"
    return Work(
        f"read-{format}",
        1,
        (),
        whole=(*program, "diskmill", image),
        against=(*program, "dissect", image),
        needs=(format,),
        module="dissect.hypervisor",
    )


NBDKIT: Command = ("nbdkit", "-f", "-U", "{socket}")
NBD_FILE: Command = (*NBDKIT, "-r", "file", "{raw}")


def served(image: str, *, goal: float) -> Work:
    """An image exported, and read by nbdcopy over four connections."""
    format = image.partition("-")[0]
    words = ("-t", "-k", "{socket}", "-f", format, f"{{{image}}}")
    return Work(
        f"serve-{image}",
        goal,
        ("nbdcopy", "--connections=4", "{uri}", "null:"),
        needs=("nbd", format),
        measured=(("diskmill", "serve", *words), ("qemu-nbd", "-r", "-e", "4", *words)),
        verify=("compare", "-f", "raw", "-F", "raw", "{raw}", "{uri}"),
    )


def from_nbd(format: str, *, goal: float, against: Command | None = None, name: str | None = None) -> Work:
    """What a server exports converted to a format."""
    return Work(
        name or f"nbd-{format}",
        goal,
        ("convert", "-f", "raw", "-O", format, "{uri}", "{out}"),
        against=against,
        server=NBD_FILE,
        needs=("nbd", format),
        verify=("compare", "-f", "raw", "-F", format, "{raw}", "{out}"),
    )


TO_QCOW2: Command = ("convert", "-f", "raw", "-O", "qcow2")
TO_QCOW2_HOLDS: Command = ("compare", "-f", "raw", "-F", "qcow2", "{raw}", "{out}")


def beside_plain(name: str, goal: float, whole: Command) -> Work:
    """A copy to qcow2 that does more, or comes otherwise, beside our plain one of the file."""
    plain = ("diskmill", *TO_QCOW2, "{raw}", "{out}")
    return Work(name, goal, (), whole=whole, against=plain, needs=("qcow2",), verify=TO_QCOW2_HOLDS)


def from_afar(
    kind: str,
    image: str,
    *,
    goal: float,
    against: Command,
    name: str | None = None,
    module: str | None = None,
    environment: tuple[tuple[str, str], ...] = (),
) -> Work:
    """An image that a server of the *kind* has, converted to raw."""
    format = image.partition("-")[0]
    where = {"http": "http://127.0.0.1:{port}/", "ssh": "ssh://127.0.0.1:{port}{folder}/", "s3": "s3://disks/"}[kind]
    return Work(
        name or f"{kind}-{image}-raw",
        goal,
        ("convert", "-f", format, "-O", "raw", where + image, "{out}"),
        against=against,
        server=("python", "-m", "bench.servers", kind, "{port}", "{folder}", "{socket}", f"{{{image}}}"),
        needs=(kind, format),
        module=module,
        verify=("compare", "-f", "raw", "-F", "raw", "{raw}", "{out}"),
        environment=environment,
    )


def fetched(image: str, then: str) -> Command:
    """The image fetched by wget to `{out}.part`, and made a raw one by the shell command *then*."""
    line = f'wget -q --no-proxy -O "$0.part" "$1" && {then} && rm "$0.part"'
    return ("sh", "-c", line, "{out}", f"http://127.0.0.1:{{port}}/{image}")


DOWNLOAD = "import boto3, sys; boto3.client('s3').download_file('disks', 'raw', sys.argv[1])"
S3_SERVICE = (
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:{port}"),
    ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
    ("AWS_SECRET_ACCESS_KEY", "s3cretS3CRET"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
)
SSH_CONFIG = "{folder}/ssh/ssh_config"


def shape(name: str, image: str, command: Command, *, copied: bool = False, same_json: bool = False) -> Work:
    """What is done to an image of an odd shape; *copied*: to `{out}`, which is a copy of it."""
    before = (("cp", "--sparse=always", f"{{{image}}}", "{out}"),) if copied else ()
    return Work(name, 1, command, needs=("qcow2",), before=before, same_json=same_json)


WORKS: tuple[Work, ...] = (
    # the main job
    to("qcow2", goal=1.2),
    back("qcow2", goal=1.2),
    to("qcow2", "-c", goal=10, name="raw-qcow2-deflate", no_larger=True),
    to("qcow2", "-c", "-o", "compression_type=zstd", goal=3, name="raw-qcow2-zstd"),
    back("qcow2-deflate", goal=2),
    back("qcow2-zstd", goal=2),
    Work("compare", 1, ("compare", "-f", "raw", "-F", "qcow2", "{raw}", "{qcow2}"), needs=("qcow2",)),
    Work("check-1T", 0.7, ("check", "-f", "qcow2", "--output=json", "{qcow2-1T}"), needs=("qcow2",), same_json=True),
    Work("map-1T", 0.7, ("map", "-f", "qcow2", "--output=json", "{qcow2-1T}"), needs=("qcow2",), same_json=True),
    # start-up, against an interpreter that does nothing
    Work("version", 1 / 3, ("--version",), against=NOTHING, short=True),
    started("info", "info", "{qcow2-small}"),
    started("map", "map", "{qcow2-small}"),
    started("create", "create", "-q", "-f", "qcow2", "{out}", "64M"),
    started("measure", "measure", "-O", "qcow2", "{qcow2-small}"),
    started("snapshot", "snapshot", "-l", "{qcow2-small}"),
    started("bitmap", "bitmap", "--add", "{out}", "b", copied=True),
    started("resize", "resize", "-q", "{out}", "64M", copied=True),
    started("check", "check", "{qcow2-small}", goal=1 / 4),
    # what a shell waits for when the tabulator key is pressed
    complete("commands", ""),
    complete("options", "convert", "--"),
    complete("values", "create", "-f", "qcow2", "-o", "cl"),
    complete("snapshots", "snapshot", "{qcow2-small}", "-a", ""),
    # qcow2 at scale
    Work(
        "check-200-snapshots",
        1 / 1.5,
        ("check", "-f", "qcow2", "--output=json", "{qcow2-200-snapshots}"),
        needs=("qcow2",),
        same_json=True,
        memory=512,
    ),
    Work(
        "snapshot-1T",
        1 / 1.5,
        ("snapshot", "-c", "new", "{out}"),
        needs=("qcow2",),
        before=(("cp", "--sparse=always", "{qcow2-1T}", "{out}"),),
        verify=("check", "-q", "-f", "qcow2", "{out}"),
        memory=512,
    ),
    # deep and odd shapes
    shape("chain-read", "qcow2-chain", ("convert", "-O", "raw", "{qcow2-chain}", "{out}")),
    shape("chain-rebase", "qcow2-chain", ("rebase", "-f", "qcow2", "-b", "", "{out}"), copied=True),
    shape("fragments-read", "qcow2-fragments", ("convert", "-O", "raw", "{qcow2-fragments}", "{out}")),
    shape("fragments-map", "qcow2-fragments", ("map", "--output=json", "{qcow2-fragments}")),
    shape("fragments-check", "qcow2-fragments", ("check", "--output=json", "{qcow2-fragments}"), same_json=True),
    shape("clusters-of-512", "qcow2-512", ("convert", "-O", "raw", "{qcow2-512}", "{out}")),
    shape("to-clusters-of-512", "raw", (*TO_QCOW2, "-o", "cluster_size=512", "{raw}", "{out}")),
    shape("subclusters", "qcow2-subclusters", ("convert", "-O", "raw", "{qcow2-subclusters}", "{out}")),
    shape("amend-refcount-width", "qcow2-1T", ("amend", "-o", "refcount_bits=32", "{out}"), copied=True),
    # streams, and what is proven
    Work("digest-sha256sum", 1.5, ("digest", "-f", "raw", "{raw}"), against=("sha256sum", "{raw}")),
    Work("digest-openssl", 1.5, ("digest", "-f", "raw", "{raw}"), against=("openssl", "dgst", "-sha256", "{raw}")),
    beside_plain("copy-with-digest", 1 / 1.1, ("diskmill", *TO_QCOW2, "--digest", "{raw}", "{out}")),
    beside_plain("copy-verified", 1 / 1.6, ("diskmill", *TO_QCOW2, "--verify", "{raw}", "{out}")),
    beside_plain(
        "copy-of-stdin",
        0.9,
        ("sh", "-c", 'exec {diskmill} convert -f raw -O qcow2 - "$1" < "$0"', "{raw}", "{out}"),
    ),
    beside_plain(
        "copy-of-a-pipe",
        0.9,
        ("sh", "-c", 'cat "$0" | {diskmill} convert -f raw -O qcow2 - "$1"', "{raw}", "{out}"),
    ),
    Work(
        "copy-of-gzip",
        1.5,
        ("convert", "-O", "qcow2", "{raw-gz}", "{out}"),
        against=(
            "sh",
            "-c",
            'zcat "$0" > "$1.raw" && {diskmill} convert -f raw -O qcow2 "$1.raw" "$1" && rm "$1.raw"',
            "{raw-gz}",
            "{out}",
        ),
        needs=("qcow2",),
        verify=TO_QCOW2_HOLDS,
    ),
    # VMware's
    to("vmdk", goal=3),
    to("vmdk", "-o", "subformat=streamOptimized", goal=8, name="raw-vmdk-stream"),
    back("vmdk", goal=1.2),
    back("vmdk-stream", goal=1.5),
    # encryption
    encrypted("luks", LUKS_IMAGE, goal=2),
    encrypted("qcow2-luks", QCOW2_LUKS_IMAGE, goal=1.5),
    decrypted("luks", LUKS_IMAGE, goal=2),
    decrypted("qcow2-luks", QCOW2_LUKS_IMAGE, goal=1.5),
    # other formats
    to("vdi", goal=1.2),
    back("vdi", goal=1.2),
    to("vpc", "-o", "force_size=on", goal=1.2),
    back("vpc", goal=1.2),
    to("vhdx", goal=1.2),
    back("vhdx", goal=1.2),
    to("qcow", goal=1.2),
    back("qcow", goal=1.2),
    to("qed", goal=1.2),
    back("qed", goal=1.2),
    to("parallels", goal=1.2),
    back("parallels", goal=1.2),
    back("dmg", goal=1.2),
    back("cloop", goal=1.2),
    back("bochs", goal=1.2),
    # the library
    *(read(format) for format in ("qcow2", "vmdk", "vdi", "vpc", "vhdx")),
    # network block devices
    from_nbd("raw", goal=2),
    from_nbd("qcow2", goal=2),
    from_nbd("raw", goal=1, against=("nbdcopy", "{uri}", "{out}"), name="nbd-raw-nbdcopy"),
    Work(
        "raw-nbd-nbdcopy",
        1,
        ("convert", "-n", "-f", "raw", "-O", "raw", "{raw}", "{uri}"),
        against=("nbdcopy", "--flush", "{raw}", "{uri}"),
        server=(*NBDKIT, "memory", "{size}"),
        needs=("nbd",),
        verify=("compare", "-f", "raw", "-F", "raw", "{raw}", "{uri}"),
    ),
    served("raw", goal=1.2),
    served("qcow2", goal=1.2),
    served("qcow2-zstd", goal=1.5),
    # servers of files and objects
    from_afar("http", "raw", goal=1.2, against=fetched("raw", 'cp "$0.part" "$0"')),
    from_afar(
        "http",
        "raw",
        goal=1,
        name="http-raw-qemu",  # 7.2 hangs without -m 1
        against=("qemu-img", "convert", "-m", "1", "-f", "raw", "-O", "raw", "http://127.0.0.1:{port}/raw", "{out}"),
    ),
    from_afar(
        "http",
        "qcow2-zstd",
        goal=1.5,
        against=fetched("qcow2-zstd", 'qemu-img convert -f qcow2 -O raw "$0.part" "$0"'),
    ),
    from_afar(
        "ssh",
        "raw",
        goal=1,
        against=("scp", "-q", "-F", SSH_CONFIG, "-P", "{port}", "127.0.0.1:{folder}/raw", "{out}"),
        environment=(("DISKMILL_SSH", f"ssh -F {SSH_CONFIG}"),),
    ),
    from_afar(
        "s3",
        "raw",
        goal=1.5,
        against=("python", "-c", DOWNLOAD, "{out}"),
        module="boto3",
        environment=S3_SERVICE,
    ),
)
