"""Structs that Python fills have the members, the order and the layout of the kernel's source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.cuda.compile import compile_kernel
from gemma_cuda.device.emulator import Emulator
from gemma_cuda.device.structs import pack_struct, struct_type

PLANTED = """
#include <platform.cuh>
#include "common/planted_pair.cuh"

struct Record {  // a comment; int not_a_member;
  static constexpr int kNone = 1;
  int first, second;
  /* int neither; */
  float third;  // behind a member
  __device__ int sum() const {
    int local = first + second;
    return local;
  }
};
struct Params {
  float scale;
  int64_t far;
  Pair pair;
  int near;
};
__global__ void spell(double* out, Params params) {
  out[0] = params.scale, out[1] = params.far, out[2] = params.pair.low, out[3] = params.pair.high, out[4] = params.near;
}
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "planted_pair.cuh").write_text(
        "#pragma once\nstruct Pair {\n  int low;\n  float high;\n};\n"
    )
    (tmp_path / "planted_structs.cu").write_text(PLANTED)
    monkeypatch.setattr(sources, "kernel_directory", lambda: tmp_path)
    return tmp_path


def test_members_are_those_of_the_source(planted: Path) -> None:
    record = struct_type("planted_structs", "Record")
    assert record == np.dtype([("first", np.int32), ("second", np.int32), ("third", np.float32)])
    params = struct_type("planted_structs", "Params")
    assert params.names == ("scale", "far", "pair", "near") and params.itemsize == 32
    assert [params.fields[name][1] for name in params.names] == [0, 8, 16, 24]  # type: ignore[index]


def test_a_kernel_reads_what_is_packed_by_name(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = pack_struct("planted_structs", "Params", near=5, pair={"high": 4.0, "low": 3}, far=1 << 40, scale=1.5)
    assert len(params) == struct_type("planted_structs", "Params").itemsize
    monkeypatch.undo()  # the headers of the emulator are the package's
    out = np.zeros(5)
    Emulator(kernels=planted).launch("spell", (1,), (1,), 0, [out, params])
    assert out.tolist() == [1.5, 1 << 40, 3, 4, 5]


def test_a_member_that_is_missing_or_has_another_name_is_an_error(planted: Path) -> None:
    values = {"scale": 1.0, "far": 2, "pair": {"low": 3, "high": 4.0}, "near": 5}
    for name in values:
        wrong = {key: value for key, value in values.items() if key != name} | {"other": 0}
        with pytest.raises(KeyError, match=name):
            pack_struct("planted_structs", "Params", **wrong)
    with pytest.raises(KeyError, match="high"):
        pack_struct("planted_structs", "Params", **values | {"pair": {"low": 3, "higher": 4.0}})


@pytest.mark.parametrize(
    ("kernel", "instance"),
    [
        ("attention", "attention_merge<bf16, 64, 64>"),
        ("linear", "linear<bf16, bf16, 16, 64, 4, 8, Store>"),
        ("qk_norm_rope", "qk_norm_rope<bf16, 64, Raw, false>"),
    ],
)
def test_params_have_the_size_that_the_compiler_gives_them(kernel: str, instance: str) -> None:
    (params,) = (p for p in compile_kernel(instance, "sm_90a").parameters if p.kind == "struct")
    struct = struct_type(kernel, "Params")
    assert (params.name, params.size) == ("params", struct.itemsize)
    zeros = {name: dict.fromkeys(struct[name].names or (), 0) or 0 for name in struct.names or ()}
    assert pack_struct(kernel, "Params", **zeros) == bytes(params.size)


def test_tiles_of_attention_are_int32() -> None:
    """What a plan places on the device are int32 [tiles, members]."""
    for record in ("WorkTile", "MergeTile", "TileRow"):
        struct = struct_type("attention", record)
        assert struct.names and {struct[name] for name in struct.names} == {np.dtype(np.int32)}
