import pytest


@pytest.fixture
def held(tmp_path):
    def put(data):
        for number, at in enumerate(range(0, len(data), 70_001)):
            (tmp_path / f"disk.{number:03}").write_bytes(data[at : at + 70_001])
        return f"pieces:{tmp_path / 'disk'}"

    return put
