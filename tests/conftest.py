"""Fixtures that all tests share."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer

from tests.helpers import make_tiny_model


@pytest.fixture(autouse=True)
def seed() -> None:
    """Starts every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tiny_model() -> HookedTransformer:
    """A random model of 2 layers and 2 heads in evaluation mode, new for every test."""
    return make_tiny_model()
