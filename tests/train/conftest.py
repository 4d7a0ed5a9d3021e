"""One compilation for all tests of the trainer that compile the same."""

import jax
import pytest

from tests.train import tiny


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """The second run of a config reads what the first has compiled."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the config of the smallest model: `tiny_config(stage, data_folder)`."""
    return tiny.tiny
