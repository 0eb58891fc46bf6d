"""Works out a TorchScript model's input shapes from the layers that its inputs reach first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

_SPATIAL = -2
"""Marks a dimension of an image or a signal: free, but not any size will do."""

_SIZES = (32, 28, 224, 64, 16, 96, 128, 256, 299, 384, 512, 8)
"""Sizes that are tried for it: those that data sets and published networks use."""

_LONGER_SIZES = (16000, 1024)

_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_SAME_SHAPE = frozenset(
    (
        *("relu", "relu_", "sigmoid", "tanh", "gelu", "silu"),
        *("hardtanh", "leaky_relu", "elu", "dropout", "to", "float"),
        *("double", "half", "long", "int", "type_as", "contiguous"),
        *("detach", "clone", "abs", "neg", "exp", "log"),
        *("log1p", "sqrt", "clamp", "mul", "add", "sub"),
        *("div", "rsub", "mul_", "add_", "sub_", "div_"),
        *("alias", "layer_norm", "batch_norm", "instance_norm"),
    )
)
_FLATTENING = frozenset((*("flatten", "view", "reshape", "squeeze"),))
_CONVOLUTIONS = frozenset(
    (
        *("_convolution", "convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d"),
        *("conv_transpose2d", "conv_transpose3d", "_convolution_mode"),
    )
)


@dataclass(frozen=True)
class Guess:
    """One input: element type and shape, -1 for any size, ``_SPATIAL`` for a fitting one."""

    datatype: str
    shape: Tuple[int, ...]

    @property
    def certain(self) -> bool:
        """Whether every size is either given or free."""
        return _SPATIAL not in self.shape

    @property
    def tokens(self) -> bool:
        """Whether these are numbers of words."""
        return self.datatype == "INT64"

    def concrete(self, batch: int, size: int) -> Tuple[int, ...]:
        """Shape with all sizes filled in."""
        return tuple(size if dim == _SPATIAL else batch if dim == -1 else dim for dim in self.shape)

    @property
    def declared(self) -> Tuple[int, ...]:
        """Shape as a signature shows it."""
        return tuple(-1 if dim == _SPATIAL else dim for dim in self.shape)


def sizes_for(guesses: Sequence[Guess]) -> Tuple[int, ...]:
    """Sizes worth trying, the likeliest first."""
    if all(guess.certain for guess in guesses):
        return (1,)
    free = max(sum(dim == _SPATIAL for dim in guess.shape) for guess in guesses)
    return (*_SIZES, *_LONGER_SIZES) if free == 1 else _SIZES if free == 2 else _SIZES[:6]


def guess_inputs(module: Any, names: Sequence[str]) -> Dict[str, Optional[Guess]]:
    """Guess each input's type and shape; None where nothing can be told."""
    try:
        values = list(module.inlined_graph.inputs())[1:]
    except (RuntimeError, AttributeError):
        values = []
    found: Dict[str, Optional[Guess]] = dict.fromkeys(names)
    for name, value in zip(names, values):
        found[name] = _follow(module, value)
    if len(names) == 1 and found[names[0]] is None:
        found[names[0]] = _from_first_weights(module) or _from_recurrent_nodes(module)
    return _with_masks(found)


def _with_masks(found: Dict[str, Optional[Guess]]) -> Dict[str, Optional[Guess]]:
    """Give masks and the like the shape of the tokens that they stand beside."""
    tokens = [guess for guess in found.values() if guess is not None and guess.tokens]
    if not tokens:
        return found
    return {name: guess or tokens[0] for name, guess in found.items()}


def with_one_more_dimension(guess: Guess) -> Guess:
    """Shape of a sequence of rows, for a first layer that takes rows of any rank."""
    if len(guess.shape) == 2 and guess.shape[-1] > 0:
        return Guess(guess.datatype, (-1, -1, guess.shape[-1]))
    return guess


def _follow(module: Any, value: Any) -> Optional[Guess]:
    """Walk from an input through operations that keep its shape to the first layer."""
    waiting: List[Tuple[Any, bool]] = [(value, False)]
    seen: Set[Tuple[str, int, str]] = set()
    while waiting and len(seen) < 500:
        current, flattened = waiting.pop(0)
        for use in current.uses():
            node = use.user
            key = (node.kind(), use.offset, current.debugName())
            if key in seen:
                continue
            seen.add(key)
            guess = _layer(module, node, use.offset, flattened)
            if guess is not None:
                return guess
            operation = node.kind().split("::")[-1]
            if node.kind().startswith("aten::") and use.offset == 0:
                if operation in _SAME_SHAPE:
                    waiting.append((node.output(), flattened))
                elif operation in _FLATTENING:
                    waiting.append((node.output(), True))
    return None


def _layer(module: Any, node: Any, offset: int, flattened: bool) -> Optional[Guess]:
    """Guess by one operation that takes the input in the given place."""
    operation = node.kind().split("::")[-1]
    if operation in ("embedding", "embedding_bag"):
        known = offset == 1 and _weight(module, node, 0) is not None
        return Guess("INT64", (-1, -1)) if known else None
    if offset == 0 and operation in _RECURRENT:
        return _recurrent(module, node)
    weight = _weight(module, node, 1) if offset == 0 and node.inputsSize() > 1 else None
    if weight is None:
        return None
    guess = None
    if operation in ("matmul", "mm") and weight.dim() == 2:
        guess = Guess(datatype(weight), (-1, int(weight.shape[0])))
    elif operation == "linear":
        guess = Guess(datatype(weight), (-1, int(weight.shape[-1])))
    elif operation in _CONVOLUTIONS and not flattened:
        guess = _convolution(node, operation, weight)
    return guess


def _recurrent(module: Any, node: Any) -> Optional[Guess]:
    """Read the width of a sequence's elements off the list of a recurrent layer's weights."""
    import torch

    given = _resolve(module, node.inputsAt(2))
    first = given[0] if isinstance(given, (list, tuple)) and given else None
    if not isinstance(first, torch.Tensor) or first.dim() != 2:
        return None
    return Guess(datatype(first), (-1, -1, int(first.shape[1])))


def _from_recurrent_nodes(module: Any) -> Optional[Guess]:
    """Look for a recurrent layer anywhere, for frozen modules that keep no layers."""
    try:
        graph = module.inlined_graph
    except (RuntimeError, AttributeError):
        return None
    for operation in sorted(_RECURRENT):
        for node in graph.findAllNodes(f"aten::{operation}"):
            return _recurrent(module, node)
    return None


def _convolution(node: Any, operation: str, weight: Any) -> Guess:
    raw = operation in ("_convolution", "convolution")
    transposed = _integer(node, 6) == 1 if raw else "transpose" in operation
    groups = max(_integer(node, 8 if raw else 6), 1)
    channels = int(weight.shape[0]) if transposed else int(weight.shape[1]) * groups
    return Guess(datatype(weight), (-1, channels, *[_SPATIAL] * (weight.dim() - 2)))


def _integer(node: Any, position: int) -> int:
    """Value of a constant argument; 0 if it is not known."""
    value = node.inputsAt(position).toIValue() if position < node.inputsSize() else 0
    return int(value) if isinstance(value, (bool, int)) else 0


def _weight(module: Any, node: Any, position: int) -> Any:
    """Tensor of the model behind an argument, None if it is computed."""
    import torch

    value = _resolve(module, node.inputsAt(position))
    return value if isinstance(value, torch.Tensor) else None


def _resolve(module: Any, value: Any) -> Any:
    node = value.node()
    if node.kind() == "prim::Constant":
        return value.toIValue()
    if node.kind() == "prim::ListConstruct":
        return [_resolve(module, item) for item in node.inputs()]
    if node.kind() == "prim::Param":
        # Of the graph's inputs only the model itself is known.
        return module if value.debugName() == _own_name(module) else None
    if node.kind() == "prim::GetAttr":
        parent = _resolve(module, node.inputsAt(0))
        return getattr(parent, node.s("name"), None) if parent is not None else None
    if node.kind() in ("aten::t", "aten::transpose"):
        inner = _resolve(module, node.inputsAt(0))
        return inner.t() if getattr(inner, "dim", lambda: 0)() == 2 else None
    return None


def _own_name(module: Any) -> str:
    return str(next(iter(module.inlined_graph.inputs())).debugName())


def datatype(tensor: Any) -> str:
    """Protocol's name for inputs that meet this weight."""
    names = {"torch.float16": "FP16", "torch.bfloat16": "BF16", "torch.float64": "FP64"}
    return names.get(str(tensor.dtype), "FP32")


def _from_first_weights(module: Any) -> Optional[Guess]:
    """Guess by the first layer that has weights, in the order of definition."""
    for _, layer in module.named_modules():
        named = dict(layer.named_parameters(recurse=False))
        if named:
            return _by_kind(str(getattr(layer, "original_name", "")), named)
    return None


def _by_kind(kind: str, named: Dict[str, Any]) -> Optional[Guess]:
    for name in ("weight_ih_l0", "in_proj_weight"):
        if name in named:
            return Guess(datatype(named[name]), (-1, -1, int(named[name].shape[1])))
    weight = named.get("weight")
    if weight is None:
        return None
    if kind.startswith("Embedding"):
        return Guess("INT64", (-1, -1))
    shape = _shape_by_kind(kind, [int(size) for size in weight.shape])
    return None if shape is None else Guess(datatype(weight), shape)


def _shape_by_kind(kind: str, sizes: List[int]) -> Optional[Tuple[int, ...]]:
    shape: Optional[Tuple[int, ...]] = None
    if kind == "Linear":
        shape = (-1, sizes[-1])
    elif kind.startswith("Conv"):
        channels = sizes[0 if "Transpose" in kind else 1]
        shape = (-1, channels, *[_SPATIAL] * (len(sizes) - 2))
    elif kind.startswith(("BatchNorm", "InstanceNorm")):
        spatial = {"1": 0, "2": 2, "3": 3}.get(kind[-2:-1], 0)
        shape = (-1, sizes[0], *[_SPATIAL] * spatial)
    elif kind == "LayerNorm":
        shape = (-1, *sizes)
    return shape
