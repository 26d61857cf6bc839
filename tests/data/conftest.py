import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Nothing that `datasets` kept of another test is taken for this one's file."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
