"""Beside PyTorch itself: it opens what we write, we read what it writes."""

import collections
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from synchformer_jax.convert import files, published, torch_file, torch_writer
from synchformer_jax.models import MODELS
from tests.convert.crafted import nothing_runs
from tests.convert.test_files import arrays_of, check, small

torch = pytest.importorskip("torch")
FORMATS = [True, False]  # today's, and that of the versions before 1.6


class Published(torch.nn.Module):
    """A module with parameters of given names and shapes, nested as their names say."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            here = self
            for part in path:
                if part not in here._modules:
                    here.add_module(part, torch.nn.Module())
                here = here._modules[part]
            here.register_parameter(last, torch.nn.Parameter(torch.empty(shape)))


@pytest.mark.parametrize(("suffix", "container"), [(".pth", None), (".pt", "state_dict")])
def test_pytorch_opens_what_we_write(suffix, container, tmp_path):
    config, path = small(), tmp_path / f"ours{suffix}"
    graph, _ = nnx.split(hollow := nnx.eval_shape(lambda: MODELS["segment_avclip"](config, nnx.Rngs(0))))
    model = nnx.merge(graph, published.to_state(hollow, arrays_of("segment_avclip", config)))
    files.write(path, "segment_avclip", model, config)
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        arrays = loaded[container] if container else loaded
        expected = published.from_state(model)
        assert isinstance(arrays, collections.OrderedDict) and list(arrays) == list(expected)
        for name, array in expected.items():
            assert arrays[name].dtype == torch.float32 and arrays[name].is_contiguous()
            np.testing.assert_array_equal(arrays[name].numpy(), array, err_msg=name)
        Published(published.shapes(model)).load_state_dict(arrays, strict=True)


def test_pytorch_reads_empty_and_single_numbers(tmp_path):
    arrays = {"a": np.float32(0.07), "b": np.empty((0, 3), np.float32), "c": np.ones((2, 1, 3), np.float32)}
    torch_writer.write(tmp_path / "a.pth", arrays)
    for name, array in torch.load(tmp_path / "a.pth", weights_only=True).items():
        assert array.shape == arrays[name].shape
        np.testing.assert_array_equal(array.numpy(), arrays[name])


def _same(found, expected):
    found = np.asarray(found)
    assert found.shape == tuple(expected.shape)
    assert str(found.dtype) == str(expected.dtype).removeprefix("torch.")
    same = torch.from_numpy(found.astype(np.complex128)) == expected.detach().to(torch.complex128)
    assert bool(same.all())


@pytest.mark.parametrize("zipped", FORMATS)
def test_arrays_of_every_kind(zipped, tmp_path):
    base = torch.arange(24.0)
    arrays = {
        "parameter": torch.nn.Parameter(base.reshape(4, 6)),
        "turned": base.reshape(4, 6).T,
        "part": base[3:20:4],
        "same_storage": base.reshape(2, 3, 4)[:, 1],
        "expanded": torch.ones(3).expand(2, 3),
        "scalar": torch.tensor(0.07),
        "empty": torch.zeros(0, 3),
    }
    for dtype in ("float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"):
        arrays[dtype] = torch.tensor([0, 1, 2, 3]).to(getattr(torch, dtype))
    if zipped:  # newer than the old format
        arrays["uint16"] = torch.tensor([1, 2], dtype=torch.uint16)
    torch.save(arrays, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with nothing_runs():
        value, text = torch_file.read(tmp_path / "a.pt")
        read = {name: np.asarray(array) for name, array in value.items()}
    assert text == "" and read.keys() == arrays.keys()
    for name, array in arrays.items():
        _same(read[name], array)


@pytest.mark.parametrize("zipped", FORMATS)
def test_a_checkpoint_with_all_that_training_adds(zipped, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    saved = {
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "metrics": {"loss": np.float64(1.5), "all": np.arange(3), "device": torch.device("cuda:0")},
        "args": {"path": Path("/some/where"), "size": torch.Size([2, 3]), "dtype": torch.float16},
        "rng": torch.get_rng_state(),
    }
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with nothing_runs():
        value, _ = torch_file.read(tmp_path / "a.pt")
    for name, array in module.state_dict().items():
        _same(value["state_dict"][name], array)
    _same(value["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert value["metrics"]["loss"] == 1.5 and value["metrics"]["device"] == "cuda:0"
    assert value["args"] == {"path": "/some/where", "size": (2, 3), "dtype": np.float16}


@pytest.mark.parametrize("zipped", FORMATS)
def test_published_names_from_pytorch(zipped, tmp_path):
    arrays = arrays_of("sync", small())
    saved = {"model": collections.OrderedDict((k, torch.from_numpy(v)) for k, v in arrays.items()), "epoch": 3}
    torch.save(saved, tmp_path / "sync.pt", _use_new_zipfile_serialization=zipped)
    check(files.read(tmp_path / "sync.pt"), arrays)


def test_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(6.0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    np.testing.assert_array_equal(np.asarray(torch_file.read(tmp_path / "a.pt")[0]["a"]), np.arange(6))


def test_whole_modules_and_sparse_arrays_are_refused(tmp_path):
    for saved, message in [
        (torch.nn.Linear(2, 3), r"torch\.nn\.modules\.linear\.Linear where weights by name"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "QInt8Storage|_rebuild_qtensor"),
    ]:
        torch.save(saved, tmp_path / "a.pt")
        with nothing_runs(), pytest.raises(files.UserError, match=message):
            files.read(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with nothing_runs(), pytest.raises(files.UserError, match=r"whole module|where weights by name"):
        files.read(tmp_path / "a.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "a.pt")
    with nothing_runs(), pytest.raises(files.UserError, match="TorchScript"):
        files.read(tmp_path / "a.pt")
