"""What the tests of files share."""

import pytest

from synchformer_jax.convert import torch_file
from tests.convert.crafted import SIX, state_dict, tensor, write_archive


@pytest.fixture(autouse=True, scope="module")
def warmed(tmp_path_factory):
    """Reads something harmless, so that what Python loads at first use is there."""
    folder = tmp_path_factory.mktemp("warm")
    stream = state_dict(a=tensor([2, 3], [3, 1]))
    torch_file.read(write_archive(folder / "a.pt", stream, {"0": SIX.tobytes()}))
