"""Files of every kind, as they are published, read as ours; and ours written as they are."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from synchformer_jax.convert import files, published, torch_writer
from synchformer_jax.errors import UserError
from synchformer_jax.models import MODELS, model_config
from tests.convert.crafted import state_dict, tensor, text, write_archive
from tests.parity import DATA

CLASSIFIER = {
    "head.weight": (174, 64),
    "head.bias": (174,),
    "pre_logits.fc.weight": (64, 64),
    "pre_logits.fc.bias": (64,),
}


def small(**visual):
    """Width 64, which is one head; the published audio grid, so that the published defaults hold."""
    config = model_config("Ti")
    config.segments = 3
    config.visual.update(image_size=32, width=64, depth=2, heads=1, **visual)
    config.audio.update(width=64, depth=2, heads=1)
    config.head.update(width=32, depth=2, classes=7)
    return config


def arrays_of(stage, config):
    model = nnx.eval_shape(lambda: MODELS[stage](config, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in published.shapes(model).items()}


def theirs(read):
    """What was read, under the published names again."""
    graph, state = nnx.split(nnx.eval_shape(lambda: MODELS[read.stage](read.model, nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    values = [(path, variable.replace(read.arrays[".".join(map(str, path))])) for path, variable in flat]
    return published.from_state(nnx.merge(graph, nnx.from_flat_state(values)))


def check(read, arrays):
    """Checks that all arrays that the model reads came in."""
    back = theirs(read)
    unread = published.unread_of(nnx.eval_shape(lambda: MODELS[read.stage](read.model, nnx.Rngs(0))))
    for name in arrays.keys() - unread.keys():
        np.testing.assert_array_equal(back[name], arrays[name], err_msg=name)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
@pytest.mark.parametrize("stage", ["segment_avclip", "sync", "synchronizability"])
def test_a_bare_state_dict_tells_its_model(stage, suffix, tmp_path):
    config = small()
    arrays, path = arrays_of(stage, config), tmp_path / f"weights{suffix}"
    {
        ".pth": lambda: torch_writer.write(path, arrays),
        ".npz": lambda: np.savez(path, **arrays),
        ".safetensors": lambda: safetensors.numpy.save_file(arrays, path),
    }[suffix]()
    read = files.read(path)
    assert read.stage == stage and read.fresh == ()
    told = read.model
    assert (told.visual.image_size, told.visual.frames, told.visual.width, told.visual.depth) == (32, 16, 64, 2)
    assert (told.visual.heads, told.visual.attention, told.visual.position) == (1, "divided", "separate")
    assert (told.audio.frames, told.audio.width, told.audio.depth, told.audio.heads) == (66, 64, 2, 1)
    if stage != "segment_avclip":
        assert told.segments == (3 if stage == "sync" else 13)
        assert (told.head.width, told.head.depth, told.head.classes) == (32, 2, 7 if stage == "sync" else 2)
    assert read.notes == ["The file does not tell the number of attention heads; heads of width 64 are taken."]
    check(read, arrays)


@pytest.mark.parametrize("size", ["Ti", "S", "B", "L"])
def test_every_size_is_told_by_its_shapes(size):
    config = model_config(size)
    config.segments = 14
    shapes = published.shapes(nnx.eval_shape(lambda: MODELS["sync"](config, nnx.Rngs(0))))
    assert files.sizes.infer("sync", shapes).to_dict() == config.to_dict()
    assert files.sizes.is_usual(config)


@pytest.mark.parametrize(
    "visual",
    [{"attention": "joint", "position": "joint"}, {"attention": "trajectory"}, {"tubelet": 4, "patch_size": 8}],
)
def test_other_visual_extractors_tell_theirs(visual):
    config = small(**visual)
    shapes = published.shapes(nnx.eval_shape(lambda: MODELS["segment_avclip"](config, nnx.Rngs(0))))
    told = files.sizes.infer("segment_avclip", shapes).visual
    assert told.to_dict() == {**config.visual.to_dict(), "drop_path": told.drop_path}


def test_a_published_checkpoint_with_its_pickled_configuration(tmp_path):
    """`model`, and beside it an epoch and an `args` of a class that is not known here."""
    arrays = arrays_of("sync", small())
    torch_writer.write(tmp_path / "a.pt", arrays, container="model")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        stream = archive.read("archive/data.pkl")
        storages = {str(i): archive.read(f"archive/data/{i}") for i in range(len(arrays))}
    configuration = b"comegaconf.dictconfig\nDictConfig\n)\x81}" + text("_content") + b"}sb"
    rest = text("epoch") + b"K\x07s" + text("args") + configuration + b"s"
    read = files.read(write_archive(tmp_path / "b.pt", stream[:-1] + rest + b".", storages))
    assert read.stage == "sync"
    check(read, arrays)


def test_a_segment_avclip_checkpoint_of_several_devices(tmp_path):
    arrays = arrays_of("segment_avclip", small())
    spread = {f"module.{name}": array for name, array in arrays.items()}
    torch_writer.write(tmp_path / "epoch_best.pt", spread, container="state_dict")
    read = files.read(tmp_path / "epoch_best.pt")
    assert read.stage == "segment_avclip"
    check(read, arrays)


@pytest.mark.parametrize("pool", ["none", "mean", "attention"])
def test_a_segment_avclip_checkpoint_with_momentum(pool, tmp_path):
    """The published MultilevelMoCoCLIP: its momentum encoders and queues are left out."""
    config = small()
    config.avclip.global_pool = pool
    arrays = arrays_of("segment_avclip", config)
    given = {("segment_" if name == "logit_scale" else "") + name: array for name, array in arrays.items()}
    given |= {name.replace("_encoder", "_encoder_m"): array for name, array in arrays.items() if "_encoder" in name}
    given |= {"segment_v_queue": np.ones((64, 4), np.float32), "segment_queue_ptr": np.zeros(1, np.int64)}
    np.savez(tmp_path / "a.npz", **given)
    read = files.read(tmp_path / "a.npz")
    assert read.model.avclip.global_pool == pool
    assert read.model.segments == (3 if pool == "attention" else 14)
    assert "Left out" in read.notes[0] and " more." in read.notes[0]
    check(read, arrays)


def test_motionformer_as_it_was_trained_on_videos(tmp_path):
    """With a classifier, without the part that sums up over space."""
    arrays = arrays_of("motionformer", small())
    given = {name: array for name, array in arrays.items() if not name.startswith("spatial_attn_agg.")}
    classifier = {name: np.ones(shape, np.float32) for name, shape in CLASSIFIER.items()}
    torch_writer.write(tmp_path / "ssv2.pyth", given | classifier, container="model_state")
    read = files.read(tmp_path / "ssv2.pyth")
    assert read.stage == "motionformer" and read.fresh
    assert all(name.startswith("pool.") for name in read.fresh)
    check(read, given)
    assert "head.bias, head.weight, pre_logits.fc.bias, pre_logits.fc.weight" in read.notes[0]
    assert "spatial_attn_agg" in read.notes[-1] and "fresh" in read.notes[-1]
    back = theirs(read)
    for name in arrays.keys() - given.keys():
        is_scale = ".norm" in name and name.endswith("weight")
        expected = 1 if is_scale else 0
        spread = 0.02 if back[name].ndim > 1 else 0
        assert abs(back[name].mean() - expected) < 0.01 and abs(back[name].std() - spread) < 0.01, name


@pytest.mark.parametrize("bare", [False, True])
def test_ast_of_hugging_face(bare, tmp_path):
    """1,214 positions, of which the first 74 are taken."""
    arrays = arrays_of("ast", small())
    name = "ast.embeddings.position_embeddings"
    longer = np.concatenate([arrays[name], np.full((1, 1140, 64), 9, np.float32)], axis=1)
    given = {name: array for name, array in (arrays | {name: longer}).items() if name.startswith("ast.")}
    prefix = "" if bare else "audio_spectrogram_transformer."
    given = {prefix + name.removeprefix("ast."): array for name, array in given.items()}
    if not bare:
        given["classifier.dense.weight"] = np.ones((527, 64), np.float32)
    safetensors.numpy.save_file(given, tmp_path / "model.safetensors")
    read = files.read(tmp_path / "model.safetensors")
    assert read.stage == "ast" and read.model.audio.frames == 66
    check(read, {name: array for name, array in arrays.items() if name.startswith("ast.")})
    assert all(name.startswith("pool.") for name in read.fresh) and read.fresh
    assert f"{name} has 1,214 positions; the first 74 are taken." in read.notes
    assert bare or any("classifier.dense.weight" in note for note in read.notes)


def test_ast_as_transformers_saves_it(tmp_path):
    """Its file, and the names that the module has in memory."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    read = [files.read(tmp_path / name) for name in ("model.safetensors", "pytorch_model.bin")]
    for name, array in read[0].arrays.items():
        np.testing.assert_array_equal(read[1].arrays[name], array, err_msg=name)
    assert read[0].stage == read[1].stage == "ast" and read[0].notes == read[1].notes
    weights = model.state_dict()
    trained = weights["audio_spectrogram_transformer.embeddings.position_embeddings"][0, :74].numpy()
    np.testing.assert_array_equal(read[0].arrays["position"], trained)
    last = next(
        array for name, array in weights.items() if "1.mlp.fc2.weight" in name or "1.output.dense.weight" in name
    )
    np.testing.assert_array_equal(read[0].arrays["blocks.mlp.down.kernel"][1], last.numpy().T)


@pytest.mark.parametrize(("prefix", "stage"), [("vfeat_extractor.", "motionformer"), ("a_encoder.", "ast")])
def test_one_extractor_of_a_whole_model(prefix, stage, tmp_path):
    arrays = arrays_of(stage, small())
    np.savez(tmp_path / "part.npz", **{prefix + name: array for name, array in arrays.items()})
    read = files.read(tmp_path / "part.npz")
    assert read.stage == stage and read.fresh == ()
    check(read, arrays)


def test_longer_positions_of_the_head_are_trimmed(tmp_path):
    """A synchronizability model whose positions were not cut when it was fine-tuned from 14 segments."""
    arrays = arrays_of("synchronizability", small())
    name = "transformer.pos_emb_cfg.pos_emb"
    longer = np.concatenate([arrays[name], np.zeros((1, 8, 32), np.float32)], axis=1)
    torch_writer.write(tmp_path / "a.pth", arrays | {name: longer})
    read = files.read(tmp_path / "a.pth")
    check(read, arrays)
    assert any("the first 184 are taken" in note for note in read.notes)


def test_what_the_file_does_not_tell_comes_from_the_run(tmp_path):
    config = small()
    config.visual.heads, config.audio.stride, config.audio.heads = 4, 16, 2
    arrays = arrays_of("segment_avclip", config)
    np.savez(tmp_path / "a.npz", **arrays)
    read = files.read(tmp_path / "a.npz", config)
    assert read.model.to_dict() == config.to_dict() and read.notes == []
    check(read, arrays)


def test_other_types_of_numbers_become_float32(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = arrays_of("ast", small())
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    safetensors.numpy.save_file(half, tmp_path / "a.safetensors")
    read = files.read(tmp_path / "a.safetensors")
    check(read, {name: array.astype(np.float32) for name, array in half.items()})
    assert "Read as float32 from bfloat16." in read.notes
    arrays["ast.layernorm.bias"] = np.zeros(64, np.int64)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"ast\.layernorm\.bias holds int64 numbers"):
        files.read(tmp_path / "a.npz")


def test_keys_that_do_not_fit_are_told_in_a_table(tmp_path):
    arrays = arrays_of("sync", small())
    del arrays["vproj.weight"]
    arrays["aproj.bias"] = np.zeros(9, np.float32)
    arrays["lproj.bias"] = np.zeros(9, np.float32)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as error:
        files.read(tmp_path / "a.npz")
    told = str(error.value)
    assert "a.npz: The weights do not fit Synchformer (1 missing, 1 unexpected, 1 misshapen keys)" in told
    assert [line.split()[:2] for line in told.splitlines()[2:]] == [
        ["unexpected", "lproj.bias"],
        ["missing", "vproj.weight"],
        ["misshapen", "aproj.bias"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a text that stands for one"),
        (b"\n<!DOCTYPE html><html></html>", "a text that stands for one"),
    ],
)
def test_what_stands_for_a_file_is_told(content, message, tmp_path):
    for name in ("a.pt", "a.safetensors", "a.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            files.read(tmp_path / name)
    with pytest.raises(UserError, match="There is no file"):
        files.read(tmp_path / "none.pt")


def test_damaged_files_of_other_formats(tmp_path):
    arrays = {"a": np.ones((2, 3), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **arrays)
    for name in ("a.safetensors", "a.npz"):
        content = (tmp_path / name).read_bytes()
        for length in range(0, len(content), 7):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(UserError, match="cannot be read"):
                files.read(tmp_path / name)
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))  # a pickle inside
    with pytest.raises(UserError, match=r"cannot be read.*allow_pickle"):
        files.read(tmp_path / "a.npz")


def test_values_among_the_weights_that_are_none(tmp_path):
    for value, message in [
        ({"a": 1}, "holds a int under 'a'"),
        ([1], "holds a list where weights"),
        ({"model": {"a": object}}, "asks for builtins.object|holds a Name under 'a'"),
        ({}, "holds a dict where weights"),
    ]:
        with pytest.raises(UserError, match=message):
            files.read(write_archive(tmp_path / "a.pt", pickle.dumps(value, 2)))
    with pytest.raises(UserError, match="no weights of Synchformer"):
        files.read(write_archive(tmp_path / "a.pt", state_dict(a=tensor([1], [1])), {"0": bytes(24)}))
    huge = state_dict(a=tensor([2**40], [0]))
    with pytest.raises(UserError, match="would unpack to 4,398 GB"):
        files.read(write_archive(tmp_path / "a.pt", huge, {"0": bytes(24)}))


def test_a_configuration_that_a_file_carries_cannot_belie_its_arrays(tmp_path):
    arrays = arrays_of("ast", small())
    good = {"stage": "ast", "model": {"audio": {"depth": 10**9, "width": 7, "heads": 4, "new_field": 1}}}
    torch_writer.write(tmp_path / "a.pth", arrays, json.dumps(good))
    read = files.read(tmp_path / "a.pth")
    assert (read.model.audio.depth, read.model.audio.width, read.model.audio.heads) == (2, 64, 4)
    for carried in (
        "[",
        "[]",
        '{"model": {"audio": {"heads": "x"}}}',
        '{"model": {"audio": {"heads": 7}}}',
        "[" * 10**5,
    ):
        torch_writer.write(tmp_path / "a.pth", arrays, carried)
        with pytest.raises(UserError, match=r"a\.pth"):
            files.read(tmp_path / "a.pth")


@pytest.mark.parametrize("case", ["synchformer", "synchronizability", "avclip"])
def test_the_published_keys_tell_the_published_model(case):
    stage = {"synchformer": "sync", "avclip": "segment_avclip"}.get(case, case)
    shapes = {name: tuple(shape) for name, shape in json.loads((DATA / f"keys_{case}.json").read_text()).items()}
    config = files.sizes.infer(stage, shapes)
    expected = model_config("B")
    if stage == "synchronizability":
        expected.segments, expected.head.classes = 13, 2
    assert config.to_dict() == expected.to_dict()
