"""The random scenarios of test_random_scenarios.py once more, for what the commands say: standard output, and of each
image afterwards `info`, snapshots and bitmaps, `map` and `check`, by qemu-img and by the drop-in.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from scenarios import for_a_while
from tools import qemu_img, without_newer

sys.path[:0] = [str(Path(__file__).parents[2] / "dropin" / "src"), str(Path(__file__).parent)]

from test_random_scenarios import Scenario  # noqa: E402

CHECKED = ("qcow2", "qed", "vmdk", "vdi", "parallels", "vhdx")
CHANGING = {"actual-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "cid", "parent-cid", "filename"}


def dropin(*words: str) -> tuple[int, str, str]:
    from diskmill_cli.main import run
    from diskmill_qemu_img import QemuImg

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words, QemuImg())
    return status, out.getvalue(), err.getvalue()


def normal(text: str) -> str:
    """*text* without what depends on the moment and on how files are laid out."""
    text = re.sub(r"^(disk size|Image end offset): .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"^\d+/\d+ = .*% allocated.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\bcid: \d+", "cid: …", text)


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: steady(one) for key, one in value.items() if key not in CHANGING}
    return [steady(one) for one in value] if isinstance(value, list) else value


def runs(entries: list[dict[str, Any]]) -> list[list[Any]]:
    """Entries of a map, neighbours that say the same as one. Data over a hole of its file may be told to be zeros."""
    found: list[list[Any]] = []
    for one in entries:
        says = [one["depth"], one["present"], one["zero"] and not one["data"], one["data"]]
        if found and found[-1][2:] == says:
            found[-1][1] += one["length"]
        else:
            found.append([one["start"], one["length"], *says])
    return found


class Telling(Scenario):
    def both(self, *words: str) -> int:
        if words[0] == "map" and "vhdx" in self.formats(words[-1]):
            return 0  # docs/differences.md, vhdx-map
        self.steps.append("qemu-img " + " ".join(words))
        there = qemu_img(*words, check=False, cwd=self.theirs)
        with contextlib.chdir(self.ours):
            status, out, err = dropin(*words)
        if there.returncode < 0:
            return 1  # it crashed
        if status != there.returncode:
            self.fail(f"exit status {there.returncode} and {status}\n{there.stderr}{err}")
        tells = words[0] in ("check", "compare") or status == 0 and words[0] != "map"  # where data lies is free
        if tells and normal(there.stdout) != normal(out):
            self.fail(f"{words}: output\n{there.stdout}--- and\n{out}")
        return status

    def compare(self) -> None:
        for name, disk in self.disks.items():
            self.alike(name, disk.format)

    def alike(self, name: str, format: str) -> None:
        """Both programs say the same of the drop-in's image, and of both images."""
        told = []
        for folder in (self.theirs, self.ours):
            done = qemu_img("info", "--output=json", "-f", format, name, check=False, cwd=folder)
            told.append(steady(json.loads(done.stdout)) if done.returncode == 0 else done.returncode)
        with contextlib.chdir(self.ours):
            status, out, _ = dropin("info", "--output=json", "-f", format, name)
            told.append(steady(without_newer(json.loads(out))) if status == 0 else status)
            if format == "parallels" and isinstance(told[2], dict):
                told[2].pop("dirty-flag", None)  # docs/differences.md, parallels-dirty
            if told[0] != told[1] or told[1] != told[2]:
                self.fail(f"info of {name}: {told}")
            if format in CHECKED:
                folders = (self.theirs, self.ours)
                checks = [qemu_img("check", "-f", format, name, check=False, cwd=folder) for folder in folders]
                if checks[0].returncode != checks[1].returncode:
                    self.fail(f"check of {name}: {checks[0].stdout} and {checks[1].stdout}{checks[1].stderr}")
            if "vhdx" not in self.formats(name):  # docs/differences.md, vhdx-map
                words = ("map", "--output=json", "-f", format, name)
                there = qemu_img(*words, check=False, cwd=self.ours)
                status, out, err = dropin(*words)
                if status and "has changed since" in err:
                    return  # the parent of a VMDK: docs/differences.md
                if status != there.returncode:
                    self.fail(f"map of {name}: {there.stderr} and {err}")
                if status == 0 and (one := runs(json.loads(there.stdout))) != (other := runs(json.loads(out))):
                    self.fail(f"map of {name}: {one} and {other}")

    def formats(self, name: str) -> list[str]:
        """The formats of the chain from *name* down."""
        disk = self.disks[name]
        return [disk.format, *(self.formats(disk.backing) if disk.backing else ())]


def scenario(seed: int, folder: Path) -> None:
    Telling(seed, folder).run()


def test_says_what_qemu_img_says(tmp_path: Path) -> None:
    for_a_while(6, scenario, tmp_path)
