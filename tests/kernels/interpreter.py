"""Run Triton kernels on the CPU, by Triton's interpreter.

Triton chooses between compiler and interpreter when a kernel is defined, by an environment variable, for the whole
process. Here the choice is made when a kernel is launched: inside ``interpreted()`` every ``kernel[grid](...)`` is run
by the interpreter, on tensors of the CPU, and so is every function that it calls. Nothing has to be defined twice, and
other tests of the process still see the compiler.

float32, float16 and integers are exact there; bfloat16 is not (its bits are read as integers). Races cannot be seen,
for one program runs after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


@contextmanager
def interpreted() -> Iterator[None]:
    """Run kernels that are launched inside by the interpreter."""

    def launched(self: JITFunction, *args, grid, warmup=False, **options):
        return interpreter.InterpretedFunction(self.fn).run(*args, grid=grid, warmup=warmup, **options)

    def called(self: JITFunction, *args, **options):
        scope = interpreter._patch_lang(self.fn)
        try:
            return interpreter.InterpretedFunction(self.fn).rewrite()(*args, **options)
        finally:
            scope.restore()

    with mock.patch.object(JITFunction, "run", launched), mock.patch.object(JITFunction, "__call__", called):
        yield
