"""Writes pickles opcode by opcode, naming functions that need not be installed."""

from __future__ import annotations

import struct
from typing import Any


class Raw(bytes):
    """Opcodes that push one value."""

    __slots__ = ()


PROTOCOL = b"\x80\x04"
STOP = b"."


def text(value: str) -> Raw:
    data = value.encode()
    return Raw(b"X" + struct.pack("<I", len(data)) + data)


def value(given: Any) -> Raw:
    """Push a plain value; containers may hold opcodes."""
    match given:
        case Raw():
            return given
        case str():
            return text(given)
        case bytes():
            made = b"B" + struct.pack("<I", len(given)) + given
        case None | bool():
            made = {None: b"N", True: b"\x88", False: b"\x89"}[given]
        case int():
            data = given.to_bytes(given.bit_length() // 8 + 1, "little", signed=True)
            made = b"\x8a" + bytes([len(data)]) + data
        case tuple():
            made = b"(" + b"".join(map(value, given)) + b"t"
        case list():
            made = b"](" + b"".join(map(value, given)) + b"e"
        case _:
            pairs = (value(key) + value(item) for key, item in given.items())
            made = b"}(" + b"".join(pairs) + b"u"
    return Raw(made)


def name(path: str) -> Raw:
    """Push a global; ``module:attribute.of.it``."""
    module, _, attribute = path.partition(":")
    return Raw(text(module) + text(attribute) + b"\x93")


def call(path: str | Raw, *arguments: Any) -> Raw:
    """Push what a function returns."""
    function = path if isinstance(path, Raw) else name(path)
    return Raw(function + value(arguments) + b"R")


def method(target: Raw, attribute: str, *arguments: Any) -> Raw:
    """Push what a method returns, reached as pickles reach it."""
    return call(call("builtins:getattr", target, attribute), *arguments)


def then(first: Raw, second: Raw) -> Raw:
    """Push two values and drop the first: what made it has been called all the same."""
    return Raw(first + b"0" + second)


def built(path: str, state: Any) -> Raw:
    """Push an object of a class that is given its state."""
    return Raw(name(path) + b")\x81" + value(state) + b"b")


def pickle_of(pushed: bytes) -> bytes:
    return PROTOCOL + pushed + STOP


def model(**attributes: Any) -> Raw:
    """Push a scikit-learn model that has these attributes beside its own."""
    state = {"solver": "auto", "positive": False, "coef_": 1, "n_features_in_": 1}
    state |= {**attributes, "_sklearn_version": "1.9.1"}
    return built("sklearn.linear_model._ridge:Ridge", state)


def in_model(pushed: Raw) -> bytes:
    """Return the file of a model, one attribute of which is what was pushed."""
    return pickle_of(model(extra=pushed))


def before_model(opcodes: bytes) -> bytes:
    """Return the file of a model, before which other opcodes leave the stack as it was."""
    return PROTOCOL + opcodes + model() + STOP
