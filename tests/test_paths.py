import os

import pytest

from dgnet_keras.paths import is_utf8, readable, usable_path

LATIN = os.fsdecode(b"caf\xe9")


def test_a_path_through_a_link_is_resolved(tmp_path):
    """TensorFlow takes `link/..` for `tmp_path`."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert usable_path("--data-dir", f"{tmp_path}/link/../run") == tmp_path / "far" / "run"
    assert str(usable_path("--data-dir", "runs/mine")) == "runs/mine"
    assert usable_path("--data-dir", "gs://bucket/a/../b") == "gs://bucket/a/../b"


def test_a_name_that_is_not_utf8_is_refused_or_shown(tmp_path):
    assert not is_utf8(LATIN)
    assert is_utf8("caf\xe9")
    assert readable(LATIN) == "caf\\xe9"
    assert readable(os.fsencode("caf\xe9")) == "caf\xe9"
    with pytest.raises(ValueError, match=r"`x` must be .* UTF-8.*Received: b'.*caf\\xe9/run'"):
        usable_path("`x`", tmp_path / LATIN / "run")
    assert usable_path("`x`", tmp_path / LATIN, any_bytes=True) == tmp_path / LATIN
