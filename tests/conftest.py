import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from browser import browser, console_errors, new_page, page  # noqa: F401  (fixtures)

torch.set_num_threads(1)


def pytest_fixture_setup():
    """Begin what a fixture draws at one seed, whichever test asks for it first."""
    torch.manual_seed(0)


def pytest_runtest_call():
    """Begin what a test draws at one seed, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory):
    """Directory of a random-weight FluxPipeline unlike the bundled one in every size."""
    from pipelines import build_flux

    directory = tmp_path_factory.mktemp("flux")
    build_flux().save_pretrained(directory)
    return directory
