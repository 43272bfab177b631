"""Shared fixtures. Nothing is skipped: a missing program is an error that says what to build."""

import pathlib
import sys
import warnings

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference import prober, tiny_models, trainer  # noqa: E402


def pytest_configure(config):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="peft")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return tiny_models.ModelShelf(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def trainer_binary():
    return trainer.binary()


@pytest.fixture(scope="session")
def probes():
    with prober.Prober() as one:
        yield one
