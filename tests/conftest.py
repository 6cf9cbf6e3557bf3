"""Fixtures that all tests share.

What takes long to import is imported inside them: the process that hands tests out to others reads
this file too, before it starts them, and needs none of it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest

import tests.annotations  # noqa: F401  (before the package)

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from tests.small_pair import SmallPair

# The models are too small to gain from threads, which on a busy machine wait for each other. Read
# when PyTorch is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


OF_MODELS = [
    Path(__file__).parent / name
    for name in (
        *("gate", "models", "intervene", "attribute"),
        *("discovery/test_find_circuits.py", "results/test_circuit.py"),
    )
]
"""Where models are made, run and scored."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is quick where models are made as newest, and puts files with slow tests first.

    So no process ends with a long test by itself.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        places = (item.path, *item.path.parents)
        if not item.get_closest_marker("slow") and any(one in places for one in OF_MODELS):
            item.add_marker("newest")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Checks annotations in quick tests alone: slow ones run the same functions for long."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)
    return (yield)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Starts every test from the same random state."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hides what models a user has fetched from the tests, and from the processes they start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_model() -> HookedTransformer:
    """A random model of 2 layers and 2 heads in evaluation mode, new for every test."""
    from tests.helpers import make_tiny_model

    return make_tiny_model()


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> SmallPair:
    """Small models that do two tasks, in folders; made once by each process that runs tests."""
    from tests.small_pair import make_small_pair

    return make_small_pair(tmp_path_factory.mktemp("small_pair"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The browser that pages are opened in, for all tests of a file."""
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
