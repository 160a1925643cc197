"""Folders of small random models, written once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One folder per family, written by save_pretrained."""
    from tests.oracles.tiny_transformers import FAMILIES, tiny_model  # only where torch is needed anyway

    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}
