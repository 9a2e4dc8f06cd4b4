"""Tests of data have a cache of their own."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASHION_DATA_DIR", raising=False)
    monkeypatch.delenv("FASHION_CACHE_GB", raising=False)
    return tmp_path / "cache" / "fashion-mnist" / "pictures"
