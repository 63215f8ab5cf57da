"""Building and loading the C++ sources: cached, private, safe side by side, optional."""

import concurrent.futures
import logging
import os
import re
import stat
from pathlib import Path

import pytest
import torch

from kernels import cpu_build, linear


@pytest.fixture
def compiler() -> cpu_build.Compiler:
    try:
        return cpu_build.find_compiler()
    except cpu_build.CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer" / "cpu.cpp"
    path.parent.mkdir()
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def test_every_operation_is_found_and_loads(compiler: cpu_build.Compiler) -> None:
    folders = sorted(path.parent.name for path in Path(cpu_build.__file__).parent.glob("*/cpu.cpp"))
    assert sorted(cpu_build.OPERATIONS) == folders
    cpu_build.build_all()
    for operation in folders:
        module = __import__(f"kernels.{operation}.cpu", fromlist=["functions"])
        assert module.functions(), operation


def test_one_openmp_runtime_is_loaded(compiler: cpu_build.Compiler) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    linear.linear(torch.ones(1, 8), torch.ones(8, 8))
    runtimes = set(re.findall(r"\S*/lib(?:g|i)?omp\d*[-.]\S*", maps.read_text()))
    assert len(runtimes) == 1, runtimes


def test_builds_side_by_side_leave_one_file(
    compiler: cpu_build.Compiler, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        built = list(
            pool.map(lambda _: cpu_build.build(source, folder=folder, compiler=compiler), range(3))
        )
    assert list(folder.iterdir()) == [built[0]]
    assert set(built) == {built[0]}


def test_a_build_is_reused_until_the_source_changes(
    compiler: cpu_build.Compiler, source: Path, tmp_path: Path
) -> None:
    first = cpu_build.build(source, folder=tmp_path, compiler=compiler)
    nobody = cpu_build.Compiler("/nonexistent", compiler.version)
    assert cpu_build.build(source, folder=tmp_path, compiler=nobody) == first
    source.write_text('extern "C" int answer() { return 43; }\n')
    assert cpu_build.build(source, folder=tmp_path, compiler=compiler) != first
    other = cpu_build.Compiler("/nonexistent", "another version")
    with pytest.raises(cpu_build.CannotBuild):
        cpu_build.build(source, folder=tmp_path, compiler=other)


def test_a_broken_source_says_what_is_wrong(
    compiler: cpu_build.Compiler, source: Path, tmp_path: Path
) -> None:
    source.write_text("int answer( {\n")
    with pytest.raises(cpu_build.CannotBuild, match=r"answer does not compile: .*error"):
        cpu_build.build(source, folder=tmp_path, compiler=compiler)
    assert [path.name for path in tmp_path.iterdir()] == ["answer"]


def test_without_a_compiler_the_references_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    caches = (cpu_build._default_compiler, cpu_build._library, linear.cpu.functions)
    cpu_build._warn.cache_clear()
    for cached in caches:
        cached.cache_clear()
    x_TD, weight_FD = torch.randn(3, 8), torch.randn(5, 8)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                y_TF = linear.linear(x_TD, weight_FD)
                assert cpu_build.load("norm_rope", {"rms_norm": "p"}) == {}
    finally:
        monkeypatch.undo()
        for cached in caches:
            cached.cache_clear()
    assert torch.equal(y_TF, linear.reference.linear(x_TD, weight_FD))
    assert [record.message for record in caplog.records] == [
        "CPU kernels run as plain torch, which is several times slower: "
        "no C++ compiler (c++, g++ or clang++) was found"
    ]


def test_the_cache_folder_is_ours_alone(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    folder = cpu_build.private_folder([in_the_way, link, open_to_all, tmp_path])
    assert folder == open_to_all
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    with pytest.raises(cpu_build.CannotBuild):
        cpu_build.private_folder([in_the_way])
