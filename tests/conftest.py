"""What all tests share: where the real clips are, and a small home for JAX's compilations."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} of real clips is not on this machine")
    return folder


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """Real clips, which are not ours to redistribute."""
    return _folder("media")


@pytest.fixture(scope="session")
def shared_annotations() -> Path:
    """Published lists and tables."""
    return _folder("annotations")
