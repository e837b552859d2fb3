"""Pickles, read without executing anything: a stack machine that makes plain values, and nothing else.

The standard library's pickletools decodes the instructions; its Unpickler does not follow them, although it lets a
program choose what names stand for. It reserves memory for whatever number a file gives to a value (8 bytes made it
take 16 GB and half a minute), hashes keys of the file's choosing, and sets attributes of what it has made. Here names
stand for constants and for functions of the caller; keys are text and small numbers; an object of any other class stays
a record of what the pickle gives it; and the steps, and so the time and the memory, are limited.

Reference: Lib/pickletools.py of CPython, which documents the instructions.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from quantcli.errors import DataError, printable

STEPS = 5_000_000
"""Most instructions of a pickle; torch.save writes 32 for a tensor."""
_KEY_BITS = 64

_MARK = object()


@dataclass(frozen=True, slots=True)
class Function:
    """What a name stands for that a pickle may call."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True, slots=True, repr=False)
class Unknown:
    """A name that stands for nothing: of a class of some library, or a function. It is shown as that name."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object that is not made: the name of its class, and the values that the pickle gives it."""

    kind: str
    held: list[Any]


class _Machine:
    """The stack of one pickle and the values that it refers back to.

    names(name): what a name stands for, None for one that is unknown. outside(id): the value that is kept elsewhere
    under an id.
    """

    def __init__(self, names: Callable[[str], Any], outside: Callable[[Any], Any], hint: str | None) -> None:
        self.names, self.outside, self.hint = names, outside, hint
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        """The values above the last mark, taken from the stack with it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def drop(self, arg: None) -> None:
        self.stack.pop()

    def pop_mark(self, arg: None) -> None:
        self.since_mark()

    def name(self, name: str) -> None:
        found = self.names(name)
        if isinstance(found, DataError):
            raise DataError(found.problem, hint=found.hint)
        self.stack.append(Unknown(name) if found is None else found)

    def global_(self, arg: str) -> None:
        module, _, attribute = arg.partition(" ")
        self.name(f"{module}.{attribute}")

    def stack_global(self, arg: None) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise DataError("it refers to something that is not a name")
        self.name(f"{module}.{attribute}")

    def push(self, arg: Any) -> None:
        self.stack.append(arg)

    def text(self, arg: str) -> None:
        """Text of Python 2, which is bytes."""
        self.stack.append(arg.encode("latin-1").decode("utf-8"))

    def put(self, arg: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise IndexError
        self.memo[arg] = value

    def memoize(self, arg: None) -> None:
        self.put(len(self.memo))

    def get(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    def tuple_(self, arg: None) -> None:
        self.stack.append(tuple(self.since_mark()))

    def take(self, count: int) -> Callable[[None], None]:
        """Makes a tuple of the last values."""

        def make(arg: None) -> None:
            self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

        return make

    def append(self, arg: None) -> None:
        value = self.pop()
        self.add([value])

    def appends(self, arg: None) -> None:
        self.add(self.since_mark())

    def add(self, values: list[Any]) -> None:
        found = self.stack[-1]
        if not isinstance(found, (list, Object)):
            raise DataError("it appends to something that is not a list")
        (found.held if isinstance(found, Object) else found).extend(values)

    def additems(self, arg: None) -> None:
        self.add(self.since_mark())

    def setitem(self, arg: None) -> None:
        value, key = self.pop(), self.pop()
        self.update([key, value])

    def setitems(self, arg: None) -> None:
        self.update(self.since_mark())

    def update(self, values: list[Any]) -> None:
        found = self.stack[-1]
        if isinstance(found, Object):
            found.held.extend(values)
            return
        if not isinstance(found, dict) or len(values) % 2:
            raise DataError("it sets items of something that is not a dict")
        for key, value in zip(values[::2], values[1::2]):
            found[checked_key(key)] = value

    def reduce(self, arg: None) -> None:
        args, function = self.pop(), self.pop()
        if isinstance(function, Unknown):
            problem = f"it calls {printable(function.name, 200)}, which is not part of a state dict"
            raise DataError(problem, hint=self.hint)
        if not isinstance(function, Function) or not isinstance(args, tuple):
            raise DataError("it calls something that is not a function of a state dict")
        try:
            self.stack.append(function.call(*args))
        except TypeError:  # of the call itself: the functions check what they are given
            raise DataError(f"it calls {function.name} with {len(args)} arguments") from None

    def object(self, arg: None) -> None:
        args, kind = self.pop(), self.pop()
        if not isinstance(kind, Unknown):
            raise DataError("it makes an object of something that is not a class")
        self.stack.append(Object(kind.name, [args]))

    def object_with_words(self, arg: None) -> None:
        """An object of a class, arguments, and arguments by name."""
        words, args = self.pop(), self.pop()
        self.stack.append((args, words))
        self.object(None)

    def build(self, arg: None) -> None:
        state, found = self.pop(), self.stack[-1]
        if isinstance(found, Object):
            found.held.append(state)
        elif not isinstance(found, dict):
            raise DataError("it sets attributes of something that is not a dict")

    def persistent(self, arg: None) -> None:
        self.stack.append(self.outside(self.pop()))


def checked_key(key: Any) -> Any:
    """A key of a dict: text, a number, a class or None, whose hashes no file can choose. Raises DataError."""
    if type(key) is int and key.bit_length() > _KEY_BITS:
        raise DataError("a key is a number of more than 64 bits")
    if key is not None and type(key) not in (str, int, bool, Unknown):
        raise DataError(f"a key is {said(key)}, not text or a whole number")
    return key


def said(value: Any) -> str:
    """What kind of thing a value is.

    >>> said(3), said({}), said(None)
    ('a number', 'a dict', 'None')
    """
    kinds = {dict: "a dict", list: "a list", tuple: "a tuple", str: "text", bytes: "bytes", bool: "true or false"}
    if value is None:
        return "None"
    if isinstance(value, Object):
        return f"an object of {printable(value.kind, 200)}"
    if isinstance(value, Unknown):
        return printable(value.name, 200)
    return "a number" if type(value) in (int, float) else kinds.get(type(value), "something else")


def _handlers(machine: _Machine) -> dict[str, Callable[[Any], None]]:
    """What each instruction that torch.save can write does."""

    def constant(value: Any) -> Callable[[None], None]:
        return lambda arg: machine.stack.append(value)

    found: dict[str, Callable[[Any], None]] = {
        "PROTO": lambda arg: None,
        "FRAME": lambda arg: None,
        "MARK": constant(_MARK),
        "NONE": constant(None),
        "NEWTRUE": constant(True),
        "NEWFALSE": constant(False),
        "EMPTY_TUPLE": constant(()),
        "EMPTY_LIST": lambda arg: machine.stack.append([]),
        "EMPTY_DICT": lambda arg: machine.stack.append({}),
        "POP": machine.drop,
        "POP_MARK": machine.pop_mark,
        "TUPLE": machine.tuple_,
        "APPEND": machine.append,
        "APPENDS": machine.appends,
        "SETITEM": machine.setitem,
        "SETITEMS": machine.setitems,
        "GLOBAL": machine.global_,
        "STACK_GLOBAL": machine.stack_global,
        "EMPTY_SET": lambda arg: machine.stack.append(Object("set", [])),
        "ADDITEMS": machine.additems,
        "REDUCE": machine.reduce,
        "NEWOBJ": machine.object,
        "NEWOBJ_EX": machine.object_with_words,
        "BUILD": machine.build,
        "BINPERSID": machine.persistent,
        "MEMOIZE": machine.memoize,
    }
    found |= {f"TUPLE{n}": machine.take(n) for n in (1, 2, 3)}
    numbers = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
    texts = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
    found |= dict.fromkeys((*numbers, *texts), machine.push)
    found |= dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), machine.text)
    return (
        found
        | dict.fromkeys(("BINPUT", "LONG_BINPUT"), machine.put)
        | dict.fromkeys(("BINGET", "LONG_BINGET"), machine.get)
    )


def _follow(stream: IO[bytes], handlers: Mapping[str, Callable[[Any], None]]) -> None:
    """Carry out the instructions of a pickle. Raises DataError for one without a handler, and for too many."""
    for steps, (opcode, arg, at) in enumerate(pickletools.genops(stream)):
        handler = handlers.get(opcode.name)
        if handler is None:
            if opcode.name == "STOP":
                return
            raise DataError(f"instruction {opcode.name} at byte {at} is not one that torch.save writes")
        if steps >= STEPS:
            raise DataError(f"it has more than {STEPS} instructions")
        handler(arg)


def load(
    stream: IO[bytes], names: Callable[[str], Any], outside: Callable[[Any], Any], *, hint: str | None = None
) -> Any:
    """The value of the pickle that begins where a stream in memory is, which is left behind its end.

    names(name): what a name stands for: a value, a Function, a DataError for one that is refused with another message,
    or None for one that is unknown, which the pickle may not call, and whose objects stay records. outside(id): the
    value that is kept elsewhere under an id. hint: what to do where it calls something unknown. Raises DataError.

    >>> import io, pickle
    >>> load(io.BytesIO(pickle.dumps({"a": (1, [None])}, 2)), lambda name: None, lambda id: None)
    {'a': (1, [None])}
    """
    machine = _Machine(names, outside, hint)
    try:
        with warnings.catch_warnings():  # Python's of a backslash in a name, which no name of torch.save has
            warnings.simplefilter("ignore", DeprecationWarning)
            _follow(stream, _handlers(machine))
        (value,) = machine.stack
    except (IndexError, KeyError):
        raise DataError("it is damaged: an instruction has nothing to work on") from None
    except (ValueError, OverflowError) as error:
        raise DataError(f"it is damaged or cut short: {printable(str(error), 200)}") from None
    return value
