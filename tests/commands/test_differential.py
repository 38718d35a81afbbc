"""Every command line of cases.txt, through qemu-img and through diskmill's drop-in: the same exit status, the same
output, the same images, and the phrases of docs/callers.md. docs/differences.md explains what differs on purpose.

The drop-in runs in this process, which makes hundreds of lines quick; test_dropin.py runs it as a program.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tools import diskmill, dropin, qemu_img, without_newer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent)]

import images  # noqa: E402

PHRASES = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "callers.md").read_text(), re.MULTILINE)
DIFFERENCES = set(re.findall(r"^## (\S+)$", (ROOT / "docs" / "differences.md").read_text(), re.MULTILINE))


@dataclass
class Case:
    """One command line, the images that it makes, and the key of a difference that is known."""

    line: str
    makes: list[str] = field(default_factory=list)
    known: str | None = None

    @property
    def words(self) -> list[str]:
        return [
            word.replace("{sealed}", images.sealed()).replace("{iv}", images.base64_of(images.IV))
            for word in shlex.split(self.line)
        ]


def cases() -> Iterator[Case]:
    for text in Path(__file__).with_name("cases.txt").read_text().splitlines():
        if not text or text.startswith("#"):
            continue
        if set(re.findall(r"-[fO] (qcow|qed|vhdx)\b", text)) - set(images.FORMATS):
            continue
        for variant in [text] if "{f}" not in text and "{w}" not in text else _variants(text):
            rest, _, known = variant.partition(" !")
            line, _, makes = rest.partition("=> ")
            yield Case(line.strip(), makes.split(), _difference(line, known))


def _difference(line: str, known: str) -> str | None:
    """The key in *known* that holds for *line*: of `key@format`, only where the line is about that format."""
    for one in filter(None, known.split(" !")):
        key, _, only = one.strip().partition("@")
        if not only or any(re.search(rf"\b{format}\b", line) for format in only.split(",")):
            return key
    return None


def _variants(text: str) -> list[str]:
    return [text.replace("{f}", format).replace("{w}", format) for format in images.FORMATS]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("differential") / "pristine"
    folder.mkdir()
    images.build(folder)
    return folder


@dataclass
class Outcome:
    status: int
    stdout: str
    stderr: str


def theirs(case: Case, folder: Path) -> Outcome:
    done = qemu_img(*case.words, check=False, cwd=folder)
    return Outcome(done.returncode, done.stdout, done.stderr)


def ours(case: Case, folder: Path) -> Outcome:
    with contextlib.chdir(folder):
        return Outcome(*dropin(*case.words))


def normal(case: Case, text: str) -> Any:
    """*text* without what must differ: sizes on disk, times, identifiers made up, the steps of a percentage."""
    with contextlib.suppress(ValueError):
        return without(without_newer(json.loads(text)))
    text = re.sub(r"^disk size: .*$", "disk size: …", text, flags=re.MULTILINE)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"completed in [\d.]+ seconds", "completed in … seconds", text)
    text = re.sub(r"(    \(\d+\.\d\d/100%\)[\r\n]+)+", "PERCENT ", text)
    text = re.sub(r"\bcid: \d+", "cid: …", text)
    return text.strip()


VOLATILE = {"actual-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "cid", "parent-cid"}


def without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if key not in VOLATILE}
    return [without(one) for one in value] if isinstance(value, list) else value


def image_differences(name: str, folders: tuple[Path, Path]) -> Iterator[str]:
    left, right = (folder / name for folder in folders)
    if left.exists() != right.exists():
        yield f"{name}: only {'qemu-img' if left.exists() else 'the drop-in'} made it"
        return
    facts = []
    for folder in folders:
        done = qemu_img("info", "--output=json", name, cwd=folder, check=False)
        facts.append(without(json.loads(done.stdout)) if done.returncode == 0 else done.stderr)
    if facts[0] != facts[1]:
        yield f"{name}: info tells {facts[0]} of qemu-img's, {facts[1]} of the drop-in's"
        return
    if isinstance(facts[0], dict):
        format = facts[0]["format"]
        same = qemu_img("compare", "-f", format, "-F", format, left, right, check=False)
        if same.returncode:
            yield f"{name}: {same.stdout}{same.stderr}"
        checked = [qemu_img("check", "-q", "-f", format, path, check=False).returncode for path in (left, right)]
        if checked[0] != checked[1]:
            yield f"{name}: check says {checked}"


def differences(case: Case, pristine: Path, place: Path) -> Iterator[str]:
    folders = (place / "theirs", place / "ours")
    for folder in folders:
        images.copy(pristine, folder, case.line)
    one, other = theirs(case, folders[0]), ours(case, folders[1])
    assert "internal error" not in other.stderr, other.stderr
    if one.status != other.status:
        yield f"exit status {one.status} and {other.status}\n{one.stderr}\n{other.stderr}"
        return
    # What is printed before a failure is progress; only check and compare fail with results.
    if (one.status == 0 or case.words[0] in ("check", "compare")) and normal(case, one.stdout) != normal(
        case, other.stdout
    ):
        yield f"output\n{one.stdout}\n--- and\n{other.stdout}\n{other.stderr}"
    missing = [phrase for phrase in PHRASES if phrase in one.stderr and phrase not in other.stderr]
    if missing:
        yield f"phrases {missing} are not in\n{other.stderr}\nas they are in\n{one.stderr}"
    if one.status:
        assert len(other.stderr.splitlines()) >= 1 or case.words[0] in ("check", "compare"), "a failure says why"
    else:
        for name in case.makes:
            yield from image_differences(name, folders)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.line)
def test_same_as_qemu_img(case: Case, pristine: Path, tmp_path: Path) -> None:
    found = "\n".join(differences(case, pristine, tmp_path))
    shutil.rmtree(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "ours")
    if case.known is None:
        assert not found, f"qemu-img {case.line}\n{found}"
    else:
        assert case.known in DIFFERENCES, f"docs/differences.md does not explain '{case.known}'"
        assert found, f"docs/differences.md explains a difference under '{case.known}' that is there no longer"


@pytest.mark.parametrize(
    "line",
    [
        "compare -p nothere img.raw",
        "compare -p img.raw nothere",
        "compare -p img.raw",
        "convert -p -O qcow2 nothere new",
        "commit -p nothere",
        "rebase -p -F raw -b img.raw nothere",
        "amend -p -o compat=1.1 nothere",
    ],
)
def test_progress_where_nothing_can_be_opened(line: str, pristine: Path) -> None:
    """As qemu-img, line ends aside; diskmill by itself shows none where nothing began."""
    case = Case(line)
    text = io.IncrementalNewlineDecoder(None, translate=True).decode(ours(case, pristine).stdout)
    assert text == theirs(case, pristine).stdout
    assert diskmill(*case.words, check=False, cwd=pristine).stdout == ""


@pytest.mark.parametrize("line", [case.line for case in cases() if re.match(r"compare -\w*p", case.line)])
def test_where_the_progress_of_a_comparison_ends(line: str, pristine: Path) -> None:
    """At 100 % only where all was compared; what was found stands on its line, which ends after that."""
    case = Case(line)
    text = io.IncrementalNewlineDecoder(None, translate=True).decode(ours(case, pristine).stdout)
    texts = [theirs(case, pristine).stdout, text]
    ends = ["(100.00/100%)" in text for text in texts]
    assert ends[0] == ends[1]
    without_steps = [re.sub(r"(    \(\d+\.\d\d/100%\)\n)+", "PERCENT ", text) for text in texts]
    assert without_steps[0] == without_steps[1]


def test_every_difference_is_one_of_a_line() -> None:
    unused = DIFFERENCES - {case.known for case in cases()}
    assert not unused, f"docs/differences.md explains what no line of cases.txt has: {', '.join(sorted(unused))}"


def test_the_table_is_long_enough() -> None:
    assert len(list(cases())) >= 400
