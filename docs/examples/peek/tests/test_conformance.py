import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["peek", "glance"])
def test_it_runs(tmp_path, command):
    (tmp_path / "disk").write_bytes(b"begin".ljust(1024))
    words = [sys.executable, "-m", "diskmill_cli", command, "-n", "5", str(tmp_path / "disk")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == b"begin".hex(" ") + "\n"
