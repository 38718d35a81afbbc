"""Servers on the loopback address that works read from: those of the tests.

`python -m bench.servers KIND PORT FOLDER SOCKET IMAGE` runs until it is terminated: KIND is `http` (nginx, over the
folder of the images), `ssh` (sshd, whose client's configuration is FOLDER/ssh/ssh_config) or `s3` (SeaweedFS, with
IMAGE in the bucket `disks`). It listens at SOCKET once all is ready.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def serve(kind: str, port: int, folder: Path, image: Path, stack: ExitStack) -> None:
    """Start the server."""
    state = folder / kind
    if kind == "s3":  # the object stays for the next run
        tests = import_module("s3_server")
        server = stack.enter_context(tests.seaweedfs(state, port))
        if image.name not in server.objects():
            server.client.upload_file(str(image), tests.BUCKET, image.name)
        return
    shutil.rmtree(state, ignore_errors=True)
    if kind == "http":
        stack.enter_context(import_module("http_servers").nginx(image.parent, state, port))
    else:
        state.mkdir()
        stack.enter_context(import_module("ssh_server").SshServer(state, port))


def main() -> None:
    kind, port, folder, ready, image = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    with ExitStack() as stack:
        serve(kind, int(port), Path(folder), Path(image), stack)
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(ready)
            here.listen()
            signal.pause()


if __name__ == "__main__":
    main()
