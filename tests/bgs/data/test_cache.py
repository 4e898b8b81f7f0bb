"""The cache of decoded clips: keyed by content and settings, whole entries only, safe under many writers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bgs.data import cache as module
from bgs.data.cache import ClipCache, content_hash, default_cache

SHAPE = (2, 3, 16, 16)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"some video")
    return path


@pytest.fixture
def cache(tmp_path):
    return ClipCache(tmp_path / "cache", {"frames": 2}, SHAPE)


def array(seed=0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def test_an_entry_is_an_ordinary_npy_file_opened_by_memory_map(cache, source):
    assert cache.read(source) is None
    cache.write(source, array())
    stored = cache.read(source)
    assert isinstance(stored, np.memmap) and not stored.flags.writeable
    assert np.array_equal(stored, array())
    assert np.array_equal(np.load(cache.entry(source), allow_pickle=False), array())


def test_the_key_is_the_content(cache, source, tmp_path):
    cache.write(source, array())
    copy = tmp_path / "elsewhere.mov"
    copy.write_bytes(source.read_bytes())
    assert np.array_equal(cache.read(copy), array())
    os.utime(source, (0, 0))
    assert cache.read(source) is not None
    source.write_bytes(b"some other video")
    assert cache.read(source) is None


def test_content_of_the_same_length_is_told_apart(source):
    before = content_hash(source)
    modified = source.stat().st_mtime_ns
    source.write_bytes(b"same v1deo")
    os.utime(source, ns=(modified, modified + 1))
    assert content_hash(source) != before


def test_settings_and_format_are_part_of_the_key(cache, source, tmp_path, monkeypatch):
    cache.write(source, array())
    assert ClipCache(tmp_path / "cache", {"frames": 3}, SHAPE).read(source) is None
    assert ClipCache(tmp_path / "cache", {"frames": 2}, SHAPE).read(source) is not None
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION + 1)
    assert ClipCache(tmp_path / "cache", {"frames": 2}, SHAPE).read(source) is None


def test_the_order_of_settings_does_not_matter(tmp_path):
    assert ClipCache(tmp_path, {"a": 1, "b": 2}, SHAPE).folder == ClipCache(tmp_path, {"b": 2, "a": 1}, SHAPE).folder


@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[:40],
    lambda content: content[:-1],
    lambda content: content + b"x",
    lambda content: b"x" + content[1:],
    lambda content: content.replace(b"|u1", b"|i1"),
])  # fmt: skip
def test_a_damaged_entry_counts_as_absent_and_is_replaced(cache, source, damage):
    cache.write(source, array())
    entry = cache.entry(source)
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.read(source) is None
    cache.write(source, array(1))
    assert np.array_equal(cache.read(source), array(1))


def test_only_arrays_of_its_shape_and_type(cache, source):
    with pytest.raises(ValueError, match=r"expected uint8 \(2, 3, 16, 16\), got uint8 \(1, 3, 16, 16\)"):
        cache.write(source, array()[:1])
    with pytest.raises(ValueError, match="got float32"):
        cache.write(source, array().astype(np.float32))


def test_a_failed_write_leaves_nothing(cache, source, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        cache.write(source, array())
    assert list(cache.folder.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
import numpy as np
from bgs.data.cache import ClipCache
cache, source = ClipCache(Path(sys.argv[1]), {"frames": 2}, (2, 3, 16, 16)), Path(sys.argv[2])
for turn in range(60):
    cache.write(source, np.full((2, 3, 16, 16), int(sys.argv[3]), np.uint8))
    seen = cache.read(source)
    assert seen is not None and len(np.unique(seen)) == 1, "torn entry"
"""


def test_concurrent_processes_never_see_a_torn_entry(cache, source, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "cache", source, str(k)], env=environment)
        for k in range(3)
    ]
    while any(writer.poll() is None for writer in writers):
        seen = cache.read(source)
        assert seen is None or len(np.unique(seen)) == 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert list(cache.folder.iterdir()) == [cache.entry(source)]


def test_default_place(monkeypatch):
    monkeypatch.setenv("BGS_CACHE", "/somewhere/bgs")
    assert default_cache() == Path("/somewhere/bgs")
    monkeypatch.delenv("BGS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/bgs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/bgs"
