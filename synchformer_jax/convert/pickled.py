"""Pickled values without `pickle`: a stream of operations read as data, by which nothing is ever imported or run.

The rule, for every name (a module and what is asked of it) in a stream:

1. A name of the tables here (`CALLS`, `TYPES`), or of the tables of the file's format, means what the table says:
   containers, plain values, arrays.
2. Any other name of Python's standard library is refused where it is named, called or not.
3. Any other name belongs to some package: a class of a configuration, say. Its objects become `Inert`; they keep what
   they were given and do nothing. What is called must look like a class (a capital first); a function is refused.

Names are compared as text and never looked up. What a stream may cost is bounded: operations and copied values, the
size of integers, and the kinds of keys, as the hash of nested tuples can take for ever.
"""

import dataclasses
import pathlib
import pickletools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

BUDGET = 5_000_000  # operations and copied values; a large checkpoint with its optimizer takes about 200,000
LARGEST_BITS = 2048  # of an integer
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
ANCIENT = ("commands", "popen2", "nt", "posix")  # dangerous, and not in every version's list of its modules


@dataclasses.dataclass(frozen=True)
class Name:
    """Something that a stream asked for by module and name. It stays unknown what that is."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False, repr=False)
class Inert:
    """An object of a class that is not known here: all that its pickle said of it, and no behaviour."""

    kind: Name
    given: tuple = ()  # arguments of its construction
    state: Any = None  # its attributes, as a rule
    items: list = dataclasses.field(default_factory=list)  # if it is some sort of list
    entries: dict = dataclasses.field(default_factory=dict)  # if it is some sort of mapping


class Refused(Exception):
    """A stream asks for what it does not get. The message names it, to follow "it asks for"."""


@dataclasses.dataclass(eq=False, repr=False)
class NumpyType:
    """A type of NumPy's; a stream tells its byte order afterwards."""

    dtype: np.dtype

    def set_state(self, state: tuple) -> None:
        """Takes the byte order."""
        order, *parts = state[1:5]
        if parts != [None, None, None] or order not in ("<", ">", "|", "="):
            raise Refused("an array of structures")
        self.dtype = self.dtype.newbyteorder(order)


@dataclasses.dataclass(eq=False, repr=False)
class NumpyArray:
    """An array of NumPy's; a stream tells its values afterwards."""

    values: np.ndarray

    def set_state(self, state: tuple) -> None:
        """Takes shape, type and values."""
        _, shape, kind, fortran, raw = state
        self.values = np.frombuffer(_bytes(raw), kind.dtype).reshape(shape, order="F" if fortran else "C")


def _bytes(text: str | bytes, coding: str = "latin1") -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8" if coding in ("utf8", "utf-8") else "latin1")


def _path(*parts: str) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise Refused("a path of other things than text")
    return str(pathlib.PurePosixPath(*parts))


def _key(value: Any) -> Any:
    """A value that may be a key: its hash costs little and cannot be made to collide with many others."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise Refused("a key of more than 64 bits")
    if not isinstance(value, (str, bytes, int, float, complex, type(None), Name, Inert)):
        raise Refused(f"a key of type {type(value).__name__}")
    return value


def _dict(pairs: Iterable | dict = ()) -> dict:
    return {_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _set(items: Iterable = ()) -> set:
    return {_key(item) for item in items}


def _numpy_type(code: str, *_: Any) -> NumpyType:
    if not re.fullmatch(r"[<>=|]?[biufcSU]\d{1,4}", code):
        raise Refused(f"the array type {code[:20]!r}")
    return NumpyType(np.dtype(code))


def _part_of_type(whole: Name, part: Any) -> Inert:
    """A type such as `typing.Optional[int]`."""
    if not (isinstance(whole, Name) and whole.module == "typing"):
        raise Refused("operator.getitem of something")
    return Inert(whole, (part,))


# What a call gives. All copy no more than they are given.
CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "Counter"): _dict,
    Name("collections", "defaultdict"): lambda _=None, pairs=(): _dict(pairs),
    Name("builtins", "dict"): _dict,
    Name("builtins", "list"): lambda items=(): list(items),
    Name("builtins", "tuple"): lambda items=(): tuple(items),
    Name("builtins", "set"): _set,
    Name("builtins", "frozenset"): lambda items=(): frozenset(_set(items)),
    Name("builtins", "complex"): complex,
    Name("builtins", "bytearray"): lambda data=b"", coding="latin1": _bytes(data, coding),
    Name("builtins", "bytes"): lambda data=b"": _bytes(data),
    Name("_codecs", "encode"): _bytes,
    Name("operator", "getitem"): _part_of_type,
    Name("argparse", "Namespace"): lambda: Inert(Name("argparse", "Namespace")),
    Name("types", "SimpleNamespace"): lambda: Inert(Name("types", "SimpleNamespace")),
    Name("numpy", "dtype"): _numpy_type,
    **{
        Name(module, "_reconstruct"): lambda *_: NumpyArray(np.empty(0))
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{
        Name(module, "scalar"): lambda kind, raw: np.frombuffer(_bytes(raw), kind.dtype)[0]
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{Name("pathlib", f"{pure}{system}Path"): _path for pure in ("", "Pure") for system in ("", "Posix", "Windows")},
}
# What may be named but not called.
TYPES = {Name("builtins", name) for name in ("bool", "float", "int", "long", "object", "str", "type", "NoneType")}


class Reader:
    """Reads streams of one file; they share what they may cost.

    Args:
        calls: what calls give, besides `CALLS`.
        values: what names mean that are no calls.
        persistent: gives the value of a persistent id, such as a storage; None refuses them.
    """

    def __init__(
        self,
        calls: Mapping[Name, Callable[..., Any]],
        values: Mapping[Name, Any],
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.calls, self.values, self.persistent = {**CALLS, **calls}, values, persistent
        self.left = BUDGET

    def read(self, file: BinaryIO) -> Any:
        """The value of the stream that starts here; the file is left behind it.

        Raises:
            Refused: it asks for what it does not get.
            Exception: of any other kind where the stream is broken.
        """
        stack: list[Any] = []
        below: list[list[Any]] = []  # stacks under the marks
        memo: dict[int, Any] = {}

        def to_mark() -> list[Any]:
            nonlocal stack
            items, stack = stack, below.pop()
            self.spend(len(items))
            return items

        def take(count: int) -> list[Any]:
            nonlocal stack
            if len(stack) < count:
                raise ValueError("it takes more than there is")
            items, stack[-count:] = stack[-count:], []
            return items

        for operation, argument, _ in pickletools.genops(file):
            self.spend(1)
            name = operation.name
            if name in PUSHED:
                stack.append(_small(argument))
            elif name in MADE:
                stack.append(MADE[name]())
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "MARK":
                below.append(stack)
                stack = []
            elif name == "POP_MARK":
                to_mark()
            elif name == "POP":
                stack.pop()
            elif name == "DUP":
                stack.append(stack[-1])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(tuple(take(int(name[-1]))))
            elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
                items = to_mark()
                stack.append(_gathered(name, items))
            elif name in ("APPEND", "SETITEM"):
                items = take(1 if name == "APPEND" else 2)
                _put(stack[-1], items, pairs=name == "SETITEM")
            elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
                items = to_mark()
                _put(stack[-1], items, pairs=name == "SETITEMS")
            elif name == "GLOBAL":
                stack.append(self.named(*argument.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                stack.append(self.named(*take(2)))
            elif name in ("REDUCE", "NEWOBJ"):
                stack.append(self.call(*take(2), is_class=name == "NEWOBJ"))
            elif name == "NEWOBJ_EX":
                asked, given, options = take(3)
                stack.append(self.call(asked, (*given, options) if options else given, is_class=True))
            elif name == "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            elif name == "BINPERSID" and self.persistent:
                stack.append(self.persistent(stack.pop()))
            elif name == "STOP":
                (value,) = stack
                return value
            elif name not in ("PROTO", "FRAME"):
                raise Refused(f"the operation {name}")
        raise EOFError("it ends in the middle")

    def spend(self, count: int) -> None:
        """Counts what the file has cost so far."""
        self.left -= count
        if self.left < 0:
            raise Refused(f"more than {BUDGET:,} operations")

    def named(self, module: str, name: str) -> Any:
        """What a name stands for, by the rule above."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("a name that is no text")
        asked = Name(PYTHON_2.get(module, module), name)
        if asked in self.values:
            return self.values[asked]
        package = asked.module.split(".")[0]
        listed = asked in self.calls or asked in TYPES or asked.module == "typing"
        if not listed and (package in sys.stdlib_module_names or package in ANCIENT):
            raise Refused(str(asked)[:200])
        return asked

    def call(self, asked: Any, given: tuple, *, is_class: bool) -> Any:
        """What a call gives, by the rule above."""
        if not isinstance(asked, Name) or type(given) is not tuple:
            raise Refused("a call of something that is no name")
        self.spend(sum(len(value) for value in given if isinstance(value, (str, bytes, list, dict, tuple, set))))
        if asked in self.calls:
            return self.calls[asked](*given)
        inner = asked.name.split(".")[-1].lstrip("_")
        package = asked.module.split(".")[0]
        if package in sys.stdlib_module_names or not (is_class or inner[:1].isupper()):
            raise Refused(f"a call of {str(asked)[:200]}")
        return Inert(asked, given)


PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise Refused("an integer of many thousand digits")
    return bytes(value) if isinstance(value, bytearray) else value


def _gathered(kind: str, items: list[Any]) -> Any:
    if kind == "DICT":
        return _dict(zip(items[::2], items[1::2], strict=True))
    return {"TUPLE": tuple, "LIST": list, "FROZENSET": lambda items: frozenset(_set(items))}[kind](items)


def _put(target: Any, items: list[Any], *, pairs: bool) -> None:
    """Adds items, or keys and values in turn, to a container."""
    if pairs and isinstance(target, (dict, Inert)):
        entries = target if isinstance(target, dict) else target.entries
        entries.update(_dict(zip(items[::2], items[1::2], strict=True)))
    elif not pairs and isinstance(target, (list, Inert)):
        (target if isinstance(target, list) else target.items).extend(items)
    elif not pairs and isinstance(target, set):
        target.update(_set(items))
    else:
        raise Refused(f"items put into a {type(target).__name__}")


def _build(target: Any, state: Any) -> None:
    """Gives an object its state; attributes of a plain dict (a `state_dict` has some) are let go."""
    if isinstance(target, Inert):
        target.state = state
    elif isinstance(target, (NumpyType, NumpyArray)):
        target.set_state(state)
    elif not isinstance(target, dict):
        raise Refused(f"a state for a {type(target).__name__}")
