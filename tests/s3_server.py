"""A real S3 server on the loopback address: SeaweedFS."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from http_servers import free_port, running

KEY, SECRET, BUCKET = "AKIDTEST", "s3cretS3CRET", "disks"


class S3(NamedTuple):
    """The server.

    :ivar client: the vendor's client of it.
    """

    endpoint: str
    client: Any

    @property
    def env(self) -> dict[str, str]:
        """What the SDKs find in the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def objects(self) -> set[str]:
        """The names of all objects."""
        return {one["Key"] for one in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])}

    def uploads(self) -> list[str]:
        """The names of all uploads that are neither complete nor forgotten."""
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    def put(self, key: str, path: Path) -> str:
        """Have the object *key* be as the file at *path*; its URL."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return url(key)

    def get(self, key: str) -> bytes:
        """The object."""
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data


def url(key: str) -> str:
    """Of the object *key*."""
    return f"s3://{BUCKET}/{key}"


@contextmanager
def seaweedfs(folder: Path, port: int | None = None) -> Iterator[S3]:
    """SeaweedFS with its data in *folder*, and a bucket, empty the first time."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {"name": "ann", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port = port or free_port()
    words = [f"-{part}.port{kind}={free_port()}" for part in ("master", "volume", "filer") for kind in ("", ".grpc")]
    words += [
        f"-s3.port={port}",
        f"-s3.port.grpc={free_port()}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-volume.max=20",
    ]
    words += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.volumeSizeLimitMB=256"]
    weed = Path(sys.executable).with_name("weed")
    quietly = ("sh", "-c", f'exec "$0" "$@" >"{folder}/log" 2>&1')
    with running(
        port, *quietly, weed, "server", f"-dir={folder}/data", f"-s3.config={folder}/s3.json", *words, leave=0.2
    ):
        endpoint = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        until = time.monotonic() + 30
        while True:  # it answers before its parts have found each other
            try:
                with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="first", Body=b"x")
                client.delete_object(Bucket=BUCKET, Key="first")
                break
            except (ClientError, BotoCoreError) as error:
                if time.monotonic() > until:
                    pytest.fail(f"SeaweedFS is not ready: {error}")
                time.sleep(0.2)
        yield S3(endpoint, client)
