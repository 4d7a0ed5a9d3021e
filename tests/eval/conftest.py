import pytest

from tests.eval import flashes


@pytest.fixture(scope="session")
def flash_data(tmp_path_factory):
    """A prepared data set of 21 clips of flashes and clicks."""
    return flashes.write_data_set(tmp_path_factory.mktemp("flashes"), 21, ("dense", "sparse", "none"))
