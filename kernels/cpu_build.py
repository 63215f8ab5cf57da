"""Compiles each operation's `cpu.cpp` once per machine, keeps the result, and calls it by ctypes.

The sources need a C++17 compiler and nothing else: no torch headers, so a build takes seconds. The
shared object lives in a private folder (0700, ours) under a name that hashes the sources, the
flags, the compiler's version and the CPU, so a changed source, an upgraded compiler or a home
folder shared between machines never loads the wrong one. It is moved into place whole: processes
that build at the same time do the work twice and harm nothing. Where there is no compiler, or it
fails, one warning says so and the operations fall back to their plain-torch references.

All operations share the threads of `team.cpp`, as many as torch may use, the caller's included; no
OpenMP, so torch's stays the only runtime of its kind.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

Functions = dict[tuple[str, torch.dtype], Callable[..., None]]

OPERATIONS = ("fused_moe", "gated_delta", "linear", "norm_rope", "paged_attention")
_SOURCES = Path(__file__).parent
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off", "-w")
_NATIVE = "-march=native"
_BUILD_TIMEOUT_S = 300


class CannotBuild(Exception):
    """Why there is no shared object, in one line."""


@dataclass(frozen=True)
class Compiler:
    path: str
    version: str  # what it says of itself


def load(operation: str, signatures: Mapping[str, str]) -> Functions:
    """The compiled functions of `kernels/<operation>/cpu.cpp`, for fp32 and bf16.

    A signature is one letter per argument: `p` pointer, `i` int64, `f` float; function `name` is
    exported as `name_f32` and `name_bf16`. Empty where nothing can be compiled.
    """
    try:
        library = _library(_source(operation))
        library.use_team(_library(_SOURCES / "team.cpp").team_run)
    except (CannotBuild, OSError) as error:
        _warn(str(error))
        return {}
    functions: Functions = {}
    for name, signature in signatures.items():
        for suffix, dtype in _DTYPES.items():
            function: Any = library[f"{name}_{suffix}"]
            function.argtypes = [_TYPES[letter] for letter in signature]
            function.restype = None
            functions[name, dtype] = function
    return functions


def build_all() -> None:
    """Compile whatever is not compiled yet, in parallel. `load` does the same one by one."""
    try:
        folder, compiler = _default_folder(), _default_compiler()
        with concurrent.futures.ThreadPoolExecutor(max_workers=len(OPERATIONS)) as pool:
            builds = [
                pool.submit(build, source, folder=folder, compiler=compiler)
                for source in (*map(_source, OPERATIONS), _SOURCES / "team.cpp")
            ]
        for done in builds:
            done.result()
    except CannotBuild as error:
        _warn(str(error))


def build(source: Path, *, folder: Path, compiler: Compiler) -> Path:
    """The shared object of `source`, compiled into `folder` unless it lies there already."""
    headers = sorted(_SOURCES.glob("*.h"))
    key = hashlib.sha256()
    for part in (
        *(file.read_bytes() for file in (source, *headers)),
        " ".join((*_FLAGS, _NATIVE)).encode(),
        compiler.version.encode(),
        _cpu().encode(),
    ):
        key.update(hashlib.sha256(part).digest())
    target = folder / f"{source.parent.name}-{source.stem}-{key.hexdigest()[:24]}.so"
    if target.exists():
        return target
    name = "thread team" if source.parent == _SOURCES else source.parent.name
    logger.info("compiling the %s for this CPU, once", name)
    errors = ""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        unfinished = Path(scratch) / target.name
        for flags in ((_NATIVE,), ()):  # not every compiler knows that flag
            command = [compiler.path, *_FLAGS, *flags, str(source), "-o", str(unfinished)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                errors = str(error)
                continue
            if done.returncode == 0:
                os.replace(unfinished, target)
                return target
            errors = done.stderr
    first_error = next((line for line in errors.splitlines() if "error" in line), errors.strip())
    raise CannotBuild(f"{source.name} of {source.parent.name} does not compile: {first_error}")


def find_compiler() -> Compiler:
    """The first C++ compiler that answers."""
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            try:
                done = subprocess.run(
                    [path, "--version"], capture_output=True, text=True, timeout=60, check=True
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return Compiler(path, done.stdout)
    raise CannotBuild("no C++ compiler (c++, g++ or clang++) was found")


def private_folder(candidates: Sequence[Path]) -> Path:
    """The first of `candidates` that only this user can write: what lies there is run."""
    for folder in candidates:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                folder.chmod(0o700)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
        except OSError:
            continue
    raise CannotBuild(f"no private folder at {' or '.join(map(str, candidates))}")


def _source(operation: str) -> Path:
    return _SOURCES / operation / "cpu.cpp"


@functools.cache
def _library(source: Path) -> ctypes.CDLL:
    path = build(source, folder=_default_folder(), compiler=_default_compiler())
    return ctypes.CDLL(str(path))


@functools.cache
def _default_compiler() -> Compiler:
    return find_compiler()


@functools.cache
def _default_folder() -> Path:
    candidates = [Path(tempfile.gettempdir()) / f"deltaserve-kernels-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        candidates.insert(0, Path.home() / ".cache" / "deltaserve" / "kernels")
    return private_folder(candidates)


@functools.cache
def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = re.findall(
        r"^(?:model name|flags|Features|CPU implementer|CPU part)\s*:.*$", text, re.MULTILINE
    )
    return "\n".join([platform.machine(), *sorted(set(lines))])


@functools.cache
def _warn(reason: str) -> None:
    """Once per reason."""
    logger.warning("CPU kernels run as plain torch, which is several times slower: %s", reason)
