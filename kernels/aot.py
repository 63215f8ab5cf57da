# pyright: basic, reportPrivateUsage=false
"""Compiles recorded launches ahead of time, for GPUs that are not here, and looks at the result.

What Triton compiles depends on a launch's dtypes, constants and options, on which addresses are
multiples of 16 bytes, and on integers that are 1 or multiples of 16, except where a kernel says
`do_not_specialize`. Triton's own code finds that out here, from tensors without memory, so what is
compiled is what a GPU would ask for. Base addresses are taken to be aligned, as torch's are.

Triton must not have been imported with TRITON_INTERPRET=1. It keeps what it compiled in its cache;
what was found out about it is kept there too, by the same hash.
"""

import ast
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels.launch import OPTIONS, Argument, Launch, options_of

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_MAKER_VERSION = 1  # of `Binary`: grows when its fields come to mean something else
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_DOT = re.compile(r"tt\.dot .*?-> tensor<(\d+)x(\d+)x")


@dataclass(frozen=True)
class Variant:
    """What Triton compiles once: a kernel with types, constants, known divisibility, options."""

    kernel: JITFunction[Any]
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]  # arguments known to be multiples of 16
    num_warps: int
    num_stages: int
    max_registers: int | None

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__.strip("_").removesuffix("_kernel")

    @cached_property
    def key(self) -> str:
        """A hash of the source, of all it calls, and of everything else that is compiled in.

        Unlike Triton's own it stays when a file's lines move.
        """
        parts = (sorted(_sources(self.kernel).items()), *self._parts, triton.__version__)
        return sha256(repr(parts).encode()).hexdigest()

    @property
    def _parts(self) -> tuple[Any, ...]:
        options = (self.num_warps, self.num_stages, self.max_registers)
        return (self.signature, self.constants, self.aligned, options)

    @property
    def source(self) -> ASTSource:
        place = {name: (i,) for i, name in enumerate(self.kernel.arg_names)}
        return ASTSource(
            self.kernel,
            dict(self.signature),
            {place[name]: value for name, value in self.constants},
            {place[name]: [["tt.divisibility", 16]] for name in self.aligned},
        )


@dataclass(frozen=True, slots=True)
class Binary:
    """What the compiler made of a variant for one compute capability."""

    key: str
    capability: int
    registers: int
    spill_bytes: int  # per thread
    shared_bytes: int
    num_warps: int
    dot_rows: int  # of the largest matrix product; 0: there is none
    has_wgmma: bool


def variant_of(launch: Launch) -> Variant:
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(f"{launch.name} is not compiled: TRITON_INTERPRET=1 was set at its import")
    backend = CUDABackend(GPUTarget("cuda", 90, 32))  # specialises alike for every target
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*map(_stand_in, launch.args), **launch.constants)
    _, signature, constants, attributes = kernel._pack_args(
        backend, dict(options) | OPTIONS, bound, specialization, options
    )
    names = kernel.arg_names
    return Variant(
        kernel=kernel,
        signature=tuple(signature.items()),
        constants=tuple((names[place], value) for (place,), value in constants.items()),
        aligned=tuple(names[place] for (place,), found in attributes.items() if found),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        max_registers=launch.max_registers,
    )


def variants_of(launches: Iterable[Launch]) -> list[Variant]:
    """The distinct ones, in the order of their first launch."""
    return list({variant.key: variant for variant in map(variant_of, launches)}.values())


def compile_all(jobs: Sequence[tuple[Variant, int]], *, num_processes: int = 2) -> list[Binary]:
    """Compile (variant, compute capability) pairs in processes that yield to everyone else's."""
    if num_processes == 1 or len(jobs) < 2:
        return [compile_variant(*job) for job in jobs]
    global _jobs
    _jobs = jobs  # kernels cannot be pickled: forked processes find them here
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=os.nice, initargs=(10,)
    ) as pool:
        return list(pool.map(_compile_job, range(len(jobs))))


def compile_variant(variant: Variant, capability: int) -> Binary:
    """Raises what Triton raises when a kernel does not compile."""
    kept = get_cache_manager(
        sha256(f"{variant.key}-{capability}-{_MAKER_VERSION}".encode()).hexdigest()
    )
    path = kept.get_file("binary.json")
    if path is not None:
        return Binary(**json.loads(Path(path).read_text()))
    options = options_of(variant.num_warps, variant.num_stages, variant.max_registers)
    try:
        compiled = triton.compile(
            variant.source, target=GPUTarget("cuda", capability, 32), options=options
        )
    except Exception as error:
        error.add_note(f"while compiling {variant.name} for sm_{capability}: {variant._parts}")
        raise
    registers, spill_bytes = _resource_usage(compiled.asm["cubin"])
    products = _DOT.findall(compiled.asm["ttir"])
    binary = Binary(
        key=variant.key,
        capability=capability,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        dot_rows=max((int(rows) for rows, _ in products), default=0),
        has_wgmma="wgmma.mma_async" in compiled.asm["ptx"],
    )
    kept.put(json.dumps(asdict(binary)), "binary.json", binary=False)
    return binary


_jobs: Sequence[tuple[Variant, int]] = ()


def _compile_job(place: int) -> Binary:
    return compile_variant(*_jobs[place])


@cache
def _sources(kernel: Any) -> dict[str, str]:
    """The source of a kernel, of our functions that it calls, and its global constants."""
    found: dict[str, str] = {kernel.__qualname__: kernel.src}
    for name in {node.id for node in ast.walk(kernel.parse()) if isinstance(node, ast.Name)}:
        value = kernel.__globals__.get(name)
        if isinstance(value, JITFunction) and not value.module.startswith("triton."):
            found |= _sources(value)
        elif isinstance(value, triton.language.constexpr):
            found[name] = repr(value.value)
    return found


class _Pointer:
    """Stands for a tensor without memory where Triton looks at dtype and address."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address


def _stand_in(argument: Argument) -> Any:
    return _Pointer(argument) if isinstance(argument, torch.Tensor) else argument


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread: our kernels have no stack but for spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = _USAGE.search(printed)
    if found is None:
        raise RuntimeError(f"cuobjdump did not say what is used: {printed}")
    return int(found[1]), int(found[2])
