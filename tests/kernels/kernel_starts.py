"""What `launch` would start on a device, and how Triton would compile it, found out without either.

`record` puts a recorder in the place of every kernel and calls the launcher's own functions, so that flags, block sizes
and dtypes are those of the dispatcher, not a list that drifts from it. `Start` turns the arguments into what Triton's
launcher makes of them: None and the integer 1 are constants, other integers 32 or 64 bits wide, numbers and addresses
that 16 divides are marked so. Without that mark a kernel compiles to accesses of single elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source

from amopo_kernels.triton import launch
from amopo_kernels.triton.configs import TABLE

_POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
DIVISIBLE = (("tt.divisibility", 16),)


@dataclass(frozen=True)
class Start:
    """A kernel with the types, constants and attributes that one start of it has; equal ones compile to one binary."""

    name: str  # in the dispatcher's table
    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    attributes: tuple[tuple[str, tuple], ...]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, name: str, kernel: Any, arguments: tuple, keywords: dict[str, Any]) -> Start:
        names = kernel.arg_names
        values = dict(zip(names, arguments, strict=False)) | {k: v for k, v in keywords.items() if k in names}
        fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        described = [(key, *(("constexpr", ()) if key in fixed else specialise(values[key]))) for key in names]
        return cls(
            name,
            kernel,
            tuple((key, kind) for key, kind, _ in described),
            tuple((key, values[key]) for key, kind, _ in described if kind == "constexpr"),
            tuple((key, marks) for key, _, marks in described if marks),
            tuple((k, v) for k, v in keywords.items() if k not in names),
        )

    def compile(self, architecture: int) -> Any:
        place = self.kernel.arg_names.index
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs={(place(key),): value for key, value in self.constants},
            attrs={(place(key),): [list(mark) for mark in marks] for key, marks in self.attributes},
        )
        return compile_source(source, target=GPUTarget("cuda", architecture, 32), options=dict(self.options))

    def divides(self, *names: str) -> bool:
        """Whether 16 divides all of these arguments, as Triton knows it."""
        return all(name in dict(self.attributes) for name in names)

    def __str__(self) -> str:
        types = ", ".join(f"{key} {kind}" for key, kind in self.signature if kind != "constexpr")
        return (
            f"{self.name}({types}; {dict(self.constants)}; 16 divides {', '.join(key for key, _ in self.attributes)})"
        )


def specialise(value: Any) -> tuple[str, tuple]:
    """(type, attributes) of an argument at run time."""
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr", ()
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype], DIVISIBLE if value.data_ptr() % 16 == 0 else ()
    if isinstance(value, int):
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        return kind, DIVISIBLE if value % 16 == 0 else ()
    return "fp32", ()


class _Recorder:
    """Stands where a kernel stands: `kernel[grid](...)` is remembered instead of run."""

    def __init__(self, kernel: Any, remember: Callable[[Any, tuple, dict], None]) -> None:
        self._kernel, self._remember = kernel, remember

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **keywords: self._remember(self._kernel, arguments, keywords)


@contextlib.contextmanager
def record(architecture: int) -> Iterator[dict[Start, None]]:
    """While active, `launch`'s functions start nothing; what they would have started on `architecture` is collected."""
    starts: dict[Start, None] = {}
    names: list[str] = []

    def config(name: str, capability: object) -> object:
        names.append(name)
        return TABLE[name][architecture]

    def remember(kernel: Any, arguments: tuple, keywords: dict) -> None:
        starts[Start.of(names[-1], kernel, arguments, keywords)] = None

    kernels = {name: value for name, value in vars(launch).items() if name.endswith("_kernel")}
    replaced = {name: _Recorder(kernel, remember) for name, kernel in kernels.items()} | {"config": config}
    before, counts = {name: getattr(launch, name) for name in replaced}, launch.LAUNCHES.copy()
    try:
        vars(launch).update(replaced)
        yield starts
    finally:
        vars(launch).update(before)
        launch.LAUNCHES.clear()
        launch.LAUNCHES.update(counts)
