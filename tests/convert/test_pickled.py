"""Pickles are read as data, whatever they ask for."""

import collections
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from synchformer_jax.convert import pickled, torch_file
from synchformer_jax.convert.pickled import Inert, Name
from synchformer_jax.errors import UserError
from tests.convert.crafted import (
    call,
    nothing_runs,
    text,
    write_archive,
    write_streams,
)

WRITE = {"archive": write_archive, "streams": write_streams}
ASKED = [  # module, name, arguments: what would do harm, or could be made to
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("nt", "system", "touch {}"),
    ("subprocess", "Popen", "touch {}", -1, None, None, None, None, None, False, True),
    ("subprocess", "getoutput", "touch {}"),
    ("commands", "getoutput", "touch {}"),
    ("builtins", "eval", "open('{}', 'w')"),
    ("builtins", "exec", "open('{}', 'w')"),
    ("__builtin__", "execfile", "{}"),
    ("builtins", "open", "{}", "w"),
    ("builtins", "getattr", 1, "real"),
    ("builtins", "__import__", "this"),
    ("builtins", "compile", "1", "x", "eval"),
    ("builtins", "map", 1, 2),
    ("importlib", "import_module", "this"),
    ("runpy", "run_path", "{}"),
    ("pickle", "loads", b"."),
    ("_pickle", "loads", b"."),
    ("marshal", "loads", b"."),
    ("types", "FunctionType", 1),
    ("types", "CodeType", 1),
    ("functools", "partial", 1),
    ("operator", "attrgetter", "x"),
    ("operator", "methodcaller", "x"),
    ("operator", "getitem", {"a": 1}, "a"),
    ("pathlib", "Path.unlink", "{}"),
    ("pathlib", "PosixPath", 1),
    ("collections", "OrderedDict.fromkeys", "ab"),
    ("collections", "namedtuple", "A", "b"),
    ("io", "open", "{}", "w"),
    ("shutil", "rmtree", "{}"),
    ("ctypes", "CDLL", "libc.so.6"),
    ("socket", "socket"),
    ("pty", "spawn", "sh"),
    ("code", "InteractiveInterpreter"),
    ("typing", "get_type_hints", 1),
    ("torch", "load", "{}"),
    ("torch.hub", "load", "a", "b"),
    ("torch.storage", "_load_from_bytes", b"."),
    ("torch._utils", "_rebuild_sparse_tensor", 1),
    ("torch._utils", "_rebuild_qtensor", 1),
    ("numpy", "load", "{}"),
    ("numpy", "memmap", "{}", "uint8", "w+", 0, [9]),
    ("numpy.f2py.crackfortran", "getlincoef", "1", []),
    ("pip", "main", ["--version"]),
]


@pytest.mark.parametrize("format", WRITE)
@pytest.mark.parametrize("asked", ASKED, ids=[f"{module}.{name}" for module, name, *_ in ASKED])
def test_what_is_not_data_is_refused_by_its_name(asked, format, tmp_path):
    module, name, *arguments = asked
    sentinel = tmp_path / "harm"
    arguments = [pickle.loads(pickle.dumps(value).replace(b"{}", b"{}")) for value in arguments]
    filled = [value.format(sentinel) if isinstance(value, str) else value for value in arguments]
    filled = [
        [part.format(sentinel) for part in v] if isinstance(v, list) and v and v[0] == "touch" else v for v in filled
    ]
    path = WRITE[format](tmp_path / "weights.pt", call(module, name, *filled))
    with nothing_runs(), pytest.raises(UserError) as error:
        torch_file.read(path)
    assert "weights.pt is refused: it asks for" in str(error.value)
    assert name in str(error.value) or (module, name) == ("pathlib", "PosixPath")
    assert not sentinel.exists()


def test_such_a_pickle_does_harm_where_it_is_run(tmp_path):
    """The sentinel of these tests can appear."""
    sentinel = tmp_path / "harm"
    pickle.loads(call("os", "system", f"touch {sentinel}"))
    assert sentinel.exists()
    with pytest.raises(AssertionError), nothing_runs():
        pickle.loads(call("os", "system", "true"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_refused_alike(protocol, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    stream = pickle.dumps({"a": [1, (Evil(),)]}, protocol)
    with pytest.raises(UserError, match=r"asks for posix\.system"):
        torch_file.read(write_archive(tmp_path / "a.pt", stream))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"(S'true'\nios\nsystem\n.", "the operation INST"),
        (b"\x80\x02(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x02\x82\x01.", "the operation EXT1"),
        (b"\x80\x02cposixpath\njoin\n.", "posixpath.join"),  # named, not even called
        (b"\x80\x02N)R.", "a call of something that is no name"),
        (b"\x80\x02\x8c\x02os\x8c\x06system\x85R.", "a call of something"),  # a pair is no name
        (b"\x80\x02]K\x01b.", "a state for a list"),
        (b"\x80\x02K\x01K\x02a.", "items put into a int"),
        (b"\x80\x02)K\x01K\x01s.", "items put into a tuple"),
        (b"\x80\x02}K\x01\x85K\x01s.", "a key of type tuple"),
        (b"\x80\x02}\x8a\x0a" + b"\x7f" * 10 + b"K\x01s.", "a key of more than 64 bits"),
        (b"\x80\x02\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000 + b".", "an integer of many"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "cannot be read"),  # an id outside of the pickle that is no storage
    ],
)
def test_operations_that_data_does_not_need(stream, message, tmp_path):
    with nothing_runs(), pytest.raises(UserError) as error:
        torch_file.read(write_archive(tmp_path / "a.pt", stream))
    assert message in str(error.value)


def test_objects_of_unknown_classes_are_inert(tmp_path, monkeypatch):
    """A class that would do harm when its module is imported, when it is made and when it gets its state."""
    module = types.ModuleType("trap.config")
    module.__dict__["print"] = lambda: None

    class Trap(dict):
        def __setstate__(self, state):
            raise AssertionError("it was run")

    class Level:
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            return Level, (self.value,)

    for kind in (Trap, Level):
        kind.__module__, kind.__qualname__ = "trap.config", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "trap", types.ModuleType("trap"))
    monkeypatch.setitem(sys.modules, "trap.config", module)
    trap = Trap(a=1)
    trap.mode = "x"
    stream = pickle.dumps({"args": trap, "level": Level(3)}, 2)
    monkeypatch.delitem(sys.modules, "trap.config")
    monkeypatch.delitem(sys.modules, "trap")
    value, _ = torch_file.read(write_archive(tmp_path / "a.pt", stream))
    trap, level = value["args"], value["level"]
    assert isinstance(trap, Inert) and trap.kind == Name("trap.config", "Trap")
    assert trap.entries == {"a": 1} and trap.state == {"mode": "x"}
    assert level.kind == Name("trap.config", "Level") and level.given == (3,)
    assert "trap.config" not in sys.modules


def test_an_omegaconf_configuration_is_inert(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"model": {"params": {"n_embd": 768, "layers": [1, 2]}}, "x": "${model}"})
    value, _ = torch_file.read(write_archive(tmp_path / "a.pt", pickle.dumps({"args": config}, 2)))
    model = value["args"].state["_content"]["model"].state["_content"]["params"].state["_content"]
    assert model["n_embd"].state["_val"] == 768


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_out_as_they_went_in(protocol, tmp_path):
    values = {"numbers": [1, -2, 2**70, 1.5, True, None], "text": ("a", "ä" * 300), 5: {"x": []}}
    if protocol >= 2:  # what the first two write, they rebuild by calls that are refused
        values |= {
            "bytes": b"\x00\xff",
            "complex": 1 + 2j,
            "set": {1, 2},
            "frozen": frozenset({"a"}),
            "ordered": collections.OrderedDict(b=1, a=2),
            "default": collections.defaultdict(list, x=[3]),
            "counter": collections.Counter("aab"),
            "scalar": np.float32(2.5),
        }
    value, _ = torch_file.read(write_archive(tmp_path / "a.pt", pickle.dumps(values, protocol)))
    assert value == values


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numpy(protocol, tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3, order="F")
    value, _ = torch_file.read(write_archive(tmp_path / "a.pt", pickle.dumps({"a": array}, protocol)))
    np.testing.assert_array_equal(value["a"].values, array)
    objects = np.array([{}, None], object)
    with pytest.raises(UserError, match="the array type 'O8'"):
        torch_file.read(write_archive(tmp_path / "a.pt", pickle.dumps(objects, protocol)))


def test_a_key_that_would_take_for_ever_to_hash_is_refused(tmp_path):
    """A tuple of two of the last tuple, a hundred deep: its hash would take 2^100 steps."""
    doubled = b")" + b"q\x00h\x00\x86" * 100
    value, _ = torch_file.read(write_archive(tmp_path / "a.pt", b"\x80\x02" + doubled + b"."))
    assert len(value) == 2
    for stream in (b"\x80\x02}" + doubled + b"K\x01s.", b"\x80\x02}" + doubled + b"\x85cbuiltins\nset\n" + b"\x85R."):
        with pytest.raises(UserError):
            torch_file.read(write_archive(tmp_path / "a.pt", stream))


def test_what_a_pickle_costs_is_bounded(tmp_path, monkeypatch):
    huge = b"\x80\x02Nr\xff\xff\xff\xff."  # a memo of 2^32 places, to readers that keep it as a list
    assert torch_file.read(write_archive(tmp_path / "a.pt", huge))[0] is None
    monkeypatch.setattr(pickled, "BUDGET", 10_000)
    with pytest.raises(UserError, match="more than 10,000 operations"):
        torch_file.read(write_archive(tmp_path / "a.pt", b"\x80\x02" + b"N0" * 6000 + b"N."))
    copied = text("x" * 2000) + b"q\x00" + b"c_codecs\nencode\nh\x00\x85R0" * 10  # each copies the text
    with pytest.raises(UserError, match="more than 10,000 operations"):
        torch_file.read(write_archive(tmp_path / "a.pt", b"\x80\x02" + copied + b"N."))
