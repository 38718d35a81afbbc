import diskmill
import pytest
from diskmill_lay import BLOCK


def test_the_backing_file_shows_where_it_has_nothing_and_must_be_trusted(tmp_path, over):
    (tmp_path / "base").write_bytes(b"b" * 2 * BLOCK)
    (tmp_path / "top.lay").write_bytes(over(bytes(BLOCK) + b"t" * BLOCK + bytes(BLOCK), b"base"))
    with diskmill.open(tmp_path / "top.lay") as image:
        assert image.read(0, 3 * BLOCK) == b"b" * BLOCK + b"t" * BLOCK + bytes(BLOCK)
    (tmp_path / "evil.lay").write_bytes(over(bytes(BLOCK), b"/etc/passwd"))
    with pytest.raises(diskmill.errors.RefusedError):
        diskmill.open(tmp_path / "evil.lay")
