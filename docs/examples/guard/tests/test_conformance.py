import diskmill
import diskmill_guard
import pytest


def test_it_forbids_what_it_is_there_for(tmp_path, monkeypatch):
    monkeypatch.setattr(diskmill_guard, "PRIVATE", str(tmp_path / "private"))
    (tmp_path / "private").mkdir()
    (tmp_path / "link").symlink_to("private/disk")
    for path in (tmp_path / "disk", tmp_path / "private" / "disk"):
        path.write_bytes(bytes(512))
    assert diskmill.info(tmp_path / "disk", format="raw").format == "raw"
    for name in ("private/disk", "private/../private/./disk", "link"):
        with pytest.raises(diskmill.errors.RefusedError, match="nobody may open this"):
            diskmill.info(tmp_path / name, format="raw")
