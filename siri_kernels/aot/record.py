"""Finds what Triton would compile for the launches of a call, without a GPU.

The call runs on fake CUDA tensors, which have shapes, strides and offsets but no storage. Each
launch goes through Triton's own ``JITFunction.run``, which specialises the arguments (types,
divisibility, alignment, equal to 1, options) as it does on a GPU; only its last step, the
compilation, is replaced by a note. So what is noted is what the JIT would compile, for any version
of Triton whose ``run`` ends in ``_do_compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from siri_kernels.aot.answers import answers_of
from siri_kernels.aot.parts import Part


class Variant(NamedTuple):
    """A kernel together with all that its machine code depends on.

    Attributes:
        kernel: the ``triton.JITFunction``.
        part: the GPU generation.
        signature: types of the arguments.
        constants: values of the constant arguments.
        attributes: divisibility of the others.
        options: of the compiler.
        call: the first call that launched it.
    """

    kernel: Any
    part: Part
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: Any
    call: str

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for two launches that get the same machine code."""
        return (self.name, self.part.name, *self.what())

    def what(self) -> tuple[str, ...]:
        """The arguments that ``JITFunction.run`` gives to the compiler, as text."""
        parts = (self.signature, self.constants, self.attributes, vars(self.options))
        return tuple(str(sorted((str(k), str(v)) for k, v in part.items())) for part in parts)

    def named(self) -> dict[str, Any]:
        """Constants by name, those of the host's ``tl.constexpr`` arguments only."""
        names = self.kernel.arg_names
        chosen = {p.name for p in self.kernel.params if p.is_constexpr}
        by_name = {names[path[0]]: value for path, value in self.constants.items()}
        return {name: value for name, value in by_name.items() if name in chosen}


class _Pointer:
    """A fake tensor as Triton's specialisation sees it: a dtype, an address and a size.

    PyTorch aligns what it allocates to 512 bytes, so the offset within the storage decides.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = 512 + int(tensor.storage_offset()) * tensor.element_size()
        self._size = tensor.untyped_storage().size()

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        """Bytes of the storage: AMD's compiler addresses small ones with 32 bits."""
        return int(self._size)

    def kind(self) -> tuple[Any, ...]:
        return self.dtype, self._address % 16, self._size < 2**31


class _StandInDriver:
    """The driver of a GPU that is not there."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def get_current_target(self) -> Any:
        return self.part.target()

    def get_current_device(self) -> str:
        return f"ahead of time, {self.part.name}"  # a key of the JIT's caches of its own

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextmanager
def driver_of(part: Part) -> Iterator[None]:
    """Triton takes ``part`` for the current GPU."""
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_StandInDriver(part))
    try:
        yield
    finally:
        driver._active = before


class Recorder:
    """Records, once each, the variants that the calls within :meth:`recording` launch.

    Args:
        parts: GPU generations to record for.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.variants: dict[tuple[str, ...], Variant] = {}
        self.launches = 0
        self._seen: set[Any] = set()
        self._call = ""
        self._part: Part | None = None

    def launch(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One launch: its variant for every part, or for the one that the call is for.

        Args:
            kernel: the ``triton.JITFunction``.
            args: of the launch.
            kwargs: of the launch.
        """
        self.launches += 1
        args = tuple(_Pointer(a) if isinstance(a, torch.Tensor) else a for a in args)
        kwargs = {k: _Pointer(a) if isinstance(a, torch.Tensor) else a for k, a in kwargs.items()}
        seen = (
            self._part,
            kernel,
            *(_kind(a) for a in args),
            *((k, _kind(a)) for k, a in kwargs.items()),
        )
        if seen in self._seen:
            return
        self._seen.add(seen)
        for part in self.parts if self._part is None else (self._part,):
            found = specialised(kernel, part, args, kwargs, self._call)
            self.variants.setdefault(found.key, found)

    @contextmanager
    def recording(self, call: str, part: Part | None = None) -> Iterator[None]:
        """Launches within are recorded and not made.

        Args:
            call: its name.
            part: whose kernels it launches; None: those of all.
        """
        from triton.runtime.jit import JITFunction

        recorder, self._call, self._part = self, call, part

        def run(
            kernel: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any
        ) -> None:
            recorder.launch(kernel, args, kwargs)

        with mock.patch.object(JITFunction, "run", run):
            yield


def _kind(value: Any) -> Any:
    return value.kind() if isinstance(value, _Pointer) else (type(value), str(value))


def specialised(
    kernel: Any, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any], call: str = ""
) -> Variant:
    """The variant that the real ``JITFunction.run`` gives to the compiler for these arguments.

    Args:
        kernel: the ``triton.JITFunction``.
        part: the GPU generation.
        args: of the launch.
        kwargs: of the launch.
        call: its name.
    """
    from triton.runtime.jit import JITFunction

    noted: list[Variant] = []

    def note(
        kernel: Any,
        key: Any,
        signature: Any,
        device: Any,
        constants: Any,
        options: Any,
        attributes: Any,
        warmup: Any,
    ) -> None:
        noted.append(Variant(kernel, part, signature, constants, attributes, options, call))

    with driver_of(part), mock.patch.object(JITFunction, "_do_compile", note):
        _REAL_RUN(kernel, *args, grid=(1,), warmup=True, **kwargs)
    return noted[0]


def _real_run() -> Callable[..., Any]:
    from triton.runtime.jit import JITFunction

    return JITFunction.run


_REAL_RUN = _real_run()


class _Context:
    """The ``ctx`` of an autograd function."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass


class FakeGPU:
    """PyTorch as on a machine with a GPU, for host code that reads nothing from it.

    Autograd's engine needs the real device, so an autograd function's ``forward`` is called as it
    is and its ``backward`` when :meth:`backward` says so. ``counts`` are the two
    numbers that backward of ``linear_logprob`` reads: tokens to recompute, entries to gather; None:
    whatever reads a number raises.

    Args:
        part: the GPU generation that host code finds; None: it asks for nothing that differs.
    """

    def __init__(self, part: Part | None = None) -> None:
        self.part = part
        self.counts: list[int] | None = [0, 0]
        self._tape: list[tuple[Any, _Context, tuple[torch.Tensor, ...]]] = []
        self._grad_enabled = True

    def backward(self, keep: Callable[[int], bool] = lambda index: True) -> None:
        """Calls the recorded functions' ``backward``; ``keep``: which outputs have a gradient."""
        tape, self._tape, self._grad_enabled = self._tape, [], False
        for function, context, outputs in reversed(tape):
            grads = [torch.empty_like(o) if keep(i) else None for i, o in enumerate(outputs)]
            function.backward(context, *grads)
        self._grad_enabled = True

    @contextmanager
    def active(self) -> Iterator[None]:
        """Fake tensors, and what a build of PyTorch without CUDA cannot do, replaced."""
        import importlib

        from torch._subclasses.fake_tensor import FakeTensorMode

        gpu = self

        def apply(cls: Any, *args: Any) -> Any:
            needs = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
            context = _Context(needs)
            out = cls.forward(context, *args)
            outputs = out if isinstance(out, tuple) else (out,)
            gpu._tape.append((cls, context, outputs))
            return out

        with ExitStack() as stack:

            def replace(owner: Any, name: str, value: Any) -> None:
                stack.enter_context(mock.patch.object(owner, name, value))

            replace(torch.autograd.Function, "apply", classmethod(apply))
            replace(torch, "is_grad_enabled", lambda: gpu._grad_enabled)
            for name in ("device", "device_of"):
                replace(torch.cuda, name, lambda *_: nullcontext())
            package = "siri_kernels.linear_logprob"
            fused, token_math, dense_backward = (
                importlib.import_module(f"{package}.triton.{name}")
                for name in ("fused", "token_math", "dense_backward")
            )
            # Gluon's kernel is compiled in another way (tests/kernels/test_fused_compiled.py).
            replace(fused, "ENABLED", False)
            replace(token_math, "reading", lambda report: lambda: list(gpu.counts or ()))
            replace(dense_backward, "adds_in_place", lambda device, dtype: True)
            error_bound = importlib.import_module(f"{package}.error_bound")
            replace(error_bound, "_reports", [])  # statistics of real calls are kept
            stats = importlib.import_module(f"{package}.screen.stats")
            replace(stats, "_reports", [])
            weight = importlib.import_module(f"{package}.screen_triton.weight")
            replace(weight, "_kept", [])
            for answer in answers_of(gpu.part) if gpu.part is not None else ():
                replace(*answer)
            stack.enter_context(torch.no_grad())  # its graph would need the device
            stack.enter_context(FakeTensorMode())
            stack.enter_context(_WithoutDevice(gpu))
            yield


class _WithoutDevice(TorchFunctionMode):
    """Operations that need the device even for tensors without storage, written with others."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return _indexed(*args)
        if func is torch.Tensor.__setitem__:
            return None
        if func is torch.Tensor.copy_:
            return args[0]
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is torch.Tensor.contiguous:
            same = args[0].is_contiguous()
            return args[0] if same else torch.clone(args[0], memory_format=torch.contiguous_format)
        if func in (torch.Tensor.tolist, torch.Tensor.__int__, torch.Tensor.item):
            if self.gpu.counts is None:
                raise RuntimeError(f"the host reads a number of the GPU: {func.__name__}")
            return list(self.gpu.counts) if func is torch.Tensor.tolist else self.gpu.counts[0]
        if func in (torch.addmm, torch.Tensor.addmm) and "out_dtype" in (kwargs or {}):
            out = kwargs.get("out")
            shape = (args[1].shape[0], args[2].shape[1])
            return args[0].new_empty(shape, dtype=kwargs["out_dtype"]) if out is None else out
        return func(*args, **(kwargs or {}))


def _indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """``tensor[index]``: PyTorch's own needs the device."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [i for i in index if not isinstance(i, torch.Tensor)]:
        place = [i is Ellipsis for i in index].index(True)
        taken = sum(i is not None for i in index) - 1
        whole = (slice(None),) * (tensor.dim() - taken)
        index = index[:place] + whole + index[place + 1 :]
    dim = 0
    gathered: list[torch.Tensor | None] = []
    for i in index:
        if i is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(i, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, torch.Tensor):
            gathered += [None] * (dim - len(gathered)) + [i]
        else:
            tensor = tensor.select(dim, int(i))
            continue
        dim += 1
    return torch.ops.aten.index.Tensor(tensor, gathered) if gathered else tensor
