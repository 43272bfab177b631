"""Fixtures of the end-to-end tests. LONGSPAN_SOURCE_DIR is the clone, LONGSPAN_BUILD_DIR a build folder with bin/."""

import os
import pathlib

import pytest

from cluster import Cluster


def path_from_environment(variable):
    value = os.environ.get(variable)
    if not value:
        raise pytest.UsageError(f"{variable} is not set: run tests/run.sh, or set it by hand")
    return pathlib.Path(value)


@pytest.fixture(scope="session")
def source_dir():
    return path_from_environment("LONGSPAN_SOURCE_DIR")


@pytest.fixture(scope="session")
def bin_dir():
    folder = path_from_environment("LONGSPAN_BUILD_DIR") / "bin"
    assert (folder / "longspan-server").exists(), f"no longspan-server in {folder}: build first"
    return folder


@pytest.fixture
def make_cluster(bin_dir, tmp_path):
    """make_cluster(workers=2, ...) gives a Cluster in this test's own folder, for use in a `with` block."""
    counter = iter(range(100))

    def make(**options):
        return Cluster(bin_dir, tmp_path / f"cluster-{next(counter)}", **options)

    return make
