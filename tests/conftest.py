"""What every test starts from: the same random numbers and examples, and one torch thread."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

SEED = 20260729

# How long an example takes says how busy the machine is, and the same ones fail everywhere.
settings.register_profile(
    "edgeweave",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("edgeweave")


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # torch.export traces into this logger whenever somebody (pytest) listens to the root logger.
    logging.getLogger("torch.__trace").propagate = False


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} thread, seed {SEED}"


@pytest.fixture(autouse=True)
def _same_randomness_for_every_test() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
