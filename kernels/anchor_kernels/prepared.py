"""A kernel with all its arguments settled but the tensors, for launches that cost little.

A launch through Triton takes some 20 µs of the host: it looks at every argument to find the
variant that was compiled for such arguments. In a call that is made again and again only the
addresses change, so the variant of the first launch is kept and later ones take 5 µs.
"""

from collections.abc import Sequence

from torch import Tensor


class Prepared:
    """A kernel, its number of programs, and its arguments after the tensors.

    Args:
        kernel: takes tensors first, then what is in `rest`, then constants.
        programs: size of the grid, one or two dimensions.
        rest: sizes, strides and numbers, in the kernel's order.
        constants: its `tl.constexpr` arguments by name.
        options: what Triton is told beside the arguments, such as `num_warps`.

    Tensors of later launches must have the dtypes of the first ones and, where those begin on a
    boundary of 16 bytes, begin on one too: the variant was compiled for that.
    """

    def __init__(
        self, kernel, programs: Sequence[int], rest: tuple, constants: dict, options: dict
    ):
        self._kernel = kernel
        self._grid = (*programs, 1, 1)[:3]
        self._rest, self._constants, self._options = rest, constants, options
        self._short = None  # the variant's launch, and all arguments after the tensors

    def __call__(self, *tensors: Tensor | int, stream: int | None = None) -> None:
        """Launch it on the current device and its current stream.

        From the second launch on, addresses on the device serve as well as tensors. Who knows the
        current stream may name it: looking it up takes time.
        """
        if self._short is not None:
            launch, rest = self._short
            launch(*tensors, *rest, stream=stream)
            return
        compiled = self._kernel[self._grid](
            *tensors, *self._rest, **self._constants, **self._options
        )
        if compiled is not None:  # the interpreter compiles nothing
            names = self._kernel.arg_names[len(tensors) + len(self._rest) :]
            constants = (self._constants[name] for name in names)
            # At once: another thread may be about to launch it.
            self._short = compiled[self._grid], (*self._rest, *constants)
