"""Running a PyTorch model in another precision than its weights are stored in, without touching its code."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class InFloat64(TorchFunctionMode):
    """While it is entered, code that asks for float32 gets float64.

    Models cast to float32 where 16 bits would not do: in norms, angles, softmax. In a float64 run those casts are
    the coarsest rounding of all.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is Tensor.float:
            return args[0].double()
        wide = {name: _float64_for_float32(value) for name, value in (kwargs or {}).items()}
        return function(*(_float64_for_float32(value) for value in args), **wide)


def _float64_for_float32(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def widened(modules: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Lets modules compute in `dtype`, to the bit: each has its parameters widened while it runs, and no longer.

    Modules of the same parameters, such as a tower's blocks, use the same buffers, so they must run one after the
    other; when one of another kind runs, the buffers of those before are given back.
    """
    wide: dict[tuple, Tensor] = {}
    stored: dict[nn.Parameter, Tensor] = {}  # of the module that runs

    def widen(module: nn.Module, args: tuple) -> None:
        narrow = {(name, p.shape): p for name, p in module.named_parameters() if p.dtype != dtype}
        if narrow.keys() != wide.keys():
            wide.clear()
        for key, parameter in narrow.items():
            stored[parameter] = parameter.data
            if key not in wide:
                wide[key] = torch.empty_like(parameter, dtype=dtype)
            parameter.data = wide[key].copy_(parameter.data)

    def restore(module: nn.Module, args: tuple, output: Any) -> None:
        for parameter in module.parameters():
            if parameter in stored:
                parameter.data = stored.pop(parameter)

    hooks = []
    for module in modules:
        hooks.append(module.register_forward_pre_hook(widen))
        hooks.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Forbids CUDA to multiply float32 with 10 bits of mantissa, as it does in convolutions when nobody objects."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
