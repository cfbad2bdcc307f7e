"""Matrix instructions against CuTe's layouts (tests/support/isa/), element by element; the layouts among themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gemma_cuda.device.sources import kernel_directory
from tests.support.emulated import KernelTestDevice
from tests.support.isa import layouts
from tests.support.isa.layouts import Array, Descriptor, Layout
from tests.support.isa.probes import CUTE, TYPES, halves, launch

# --- instructions ---


def sources_of(table: Array) -> Array:
    """(lane, 16-bit value of it) [elements, 2] that the rows which lanes point to have of each element."""
    first = table[:, ::16] // 16
    found = np.zeros((first.max() + 1, 2), np.int64)
    for lane in reversed(range(32)):  # of lanes that point to the same row the first counts
        found[first[lane]] = np.stack([np.full(8, lane), np.arange(8)], axis=1)
    return found


MOVES = [(count, form) for count in (1, 2, 4) for form in ("Straight", "Transposed")]


def move(instruction: str, count: int, form: str) -> tuple[Array, Array]:
    """(element that each lane's 16-bit values are [32, 2 count]; lane and value of a row that each element is)."""
    entry = layouts.read("matrix_moves")[f"{instruction} x{count}{' trans' * (form == 'Transposed')}"]
    registers, rows = ("destination", "source") if instruction == "ldmatrix" else ("source", "destination")
    return Layout.of(entry[registers]).table()[:, ::16] // 16, sources_of(Layout.of(entry[rows]).table())


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "form"), MOVES)
def test_ldmatrix(count: int, form: str, kernel_test_device: KernelTestDevice) -> None:
    elements, rows = move("ldmatrix", count, form)
    row = (8 * np.random.default_rng(count).permutation(128)[:32]).astype(np.int32)
    out = np.zeros((32, count), np.uint32)
    memory = np.arange(1024, dtype=np.uint16)
    launch(f"load_matrices<{count}, {form}>", [out, memory, row, 1024], shared=2048, make_device=kernel_test_device)
    lane, value = rows[elements].transpose(2, 0, 1)
    np.testing.assert_array_equal(halves(out), memory[row[lane] + value])


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "form"), MOVES)
def test_stmatrix(count: int, form: str, kernel_test_device: KernelTestDevice) -> None:
    elements, rows = move("stmatrix", count, form)
    row = (8 * np.random.default_rng(count).permutation(128)[:32]).astype(np.int32)
    registers = (1 + np.arange(64 * count, dtype=np.uint16)).reshape(32, 2 * count)
    out = np.zeros(1024, np.uint16)
    launch(
        f"store_matrices<{count}, {form}>",
        [out, registers.view(np.uint32), row, 1024],
        shared=2048,
        make_device=kernel_test_device,
    )
    lane, value = rows[elements].transpose(2, 0, 1)
    expected = np.zeros(1024, np.uint16)
    expected[row[lane] + value] = registers
    np.testing.assert_array_equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TYPES)
def test_mma(name: str, kernel_test_device: KernelTestDevice) -> None:
    """One register half of a is 1: the sums of its row are then the row of b that it meets."""
    (a_m, a_k), (b_k, b_n), (c_m, c_n) = (layouts.mma(operand, CUTE[name]) for operand in "abc")
    numbered = (1 + b_n + 8 * b_k).astype(TYPES[name]).view(np.uint32)  # up to 128, which is exact
    for lane, value in np.ndindex(32, 8):
        a, d = np.zeros((32, 8), TYPES[name]), np.zeros((1, 32, 4), np.float32)
        a[lane, value] = 1
        launch(f"multiply<{name}, 1>", [d, a.view(np.uint32), numbered], make_device=kernel_test_device)
        expected = np.where(c_m == a_m[lane, value], 1 + c_n + 8 * a_k[lane, value], 0)
        np.testing.assert_array_equal(d[0], expected, err_msg=f"lane {lane}, value {value} of a")


def check_instructions(text: str) -> None:
    """Each asm statement has the registers that its function's form has, and none out of its place."""
    count, text = 0, re.sub(r'"\s*"', "", text)
    for name, body in re.findall(r"void (\w+(?:<\w+>)?)\([^)]*\)(?:[^{;]*\))? \{\n(.*?)\n\}", text, re.DOTALL):
        statement = re.search(r"asm volatile\(\s*\"(.*?);\"(.*)\);", body, re.DOTALL)
        if statement is None:
            continue
        count += 1
        places = [int(place) for place in re.findall(r"%(\d+)", statement[1])]
        assert places[: len(set(places))] == sorted(set(places)), name
        assert places[len(set(places)) :] in ([], [0, 1, 2, 3]), f"{name}: d is both result and operand"
        operands = re.findall(r"\"[=+]?[rf]\"\((\w+)(?:\[(\d)\]|\()", statement[2])
        for array in ("registers", "d", "a", "b"):
            indices = [int(index) for operand, index in operands if operand == array and index]
            assert indices == list(range(len(indices))), (name, array)
        expected = {"x1": 2, "x2": 3, "x4": 5}[name.split("_")[1]] if "matrix" in name else 10
        assert len(set(places)) == expected == len(operands), name
        if "matrix" in name:
            assert (".trans" in statement[1]) == name.endswith("_trans") and f".{name.split('_')[1]}." in statement[1]
        else:
            assert statement[1].split(" ")[0].endswith(".row.col.f32.{0}.{0}.f32".format(CUTE[name[13:-1]]))
    assert count == 14


GPU_MMA = kernel_directory() / "gpu" / "mma.cuh"


def test_instructions_for_gpus_have_their_registers_in_order() -> None:
    """An emulator cannot see these: what it runs is their twin."""
    check_instructions(GPU_MMA.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"=r"(registers[2]), "=r"(registers[3])', '"=r"(registers[3]), "=r"(registers[2])'),
        ("{%4, %5, %6, %7}", "{%4, %6, %5, %7}"),
        ("x2.trans", "x2"),
        ("bf16.bf16", "f16.f16"),
        ('"r"(b[0]), "r"(b[1])', '"r"(b[1]), "r"(b[0])'),
    ],
)
def test_a_register_out_of_place_is_found(before: str, after: str) -> None:
    text = GPU_MMA.read_text(encoding="utf-8")
    assert before in text
    with pytest.raises(AssertionError):
        check_instructions(text.replace(before, after, 1))


# --- wgmma, for kernels to come ---


def test_a_warp_of_wgmma_has_the_fragments_of_mma() -> None:
    """Warp w has rows 16 w to 16 w + 15 of a in registers and of the accumulators, tile by tile as mma has them."""
    wgmma = layouts.read("wgmma")
    warp, lane = np.divmod(np.arange(128), 32)
    m, k = layouts.mma("a")
    expected = (16 * warp[:, None] + m[lane]) + 64 * k[lane]
    np.testing.assert_array_equal(Layout.of(wgmma["register a"]).table(), expected)
    assert [int(n) for n in wgmma["accumulator"]] == list(range(8, 257, 8))
    for columns, entry in wgmma["accumulator"].items():
        m, n = layouts.mma("c")
        tiles = [(16 * warp[:, None] + m[lane]) + 64 * (8 * tile + n[lane]) for tile in range(int(columns) // 8)]
        np.testing.assert_array_equal(Layout.of(entry).table(), np.concatenate(tiles, axis=1))


def test_wgmma_reads_b_as_whole() -> None:
    for columns, entry in layouts.read("wgmma")["shared b"].items():
        whole = np.arange(16 * int(columns))
        assert (Layout.of(entry).table().reshape(128, -1) == whole).all()


@pytest.mark.parametrize("name", ["32 bytes", "64 bytes", "128 bytes"])
def test_a_swizzle_xors_address_bits(name: str) -> None:
    """Bits 4 and up are xored by bits 7 and up, as many as the width in chunks has."""
    entry = layouts.read("swizzle")[name]
    bits, base, shift = entry["function"]["swizzle"]
    assert (16 << bits, base, shift) == (int(name.split()[0]), 4, 3)
    address = 16 * np.arange(64)
    expected = address ^ (address >> 7 & (1 << bits) - 1) << 4
    np.testing.assert_array_equal(entry["of_16_bytes"], expected)
    np.testing.assert_array_equal(layouts.swizzled(address, (bits, base, shift)), expected)


TILES = [
    (major, swizzle, int(rows))
    for major, swizzles in layouts.read("wgmma")["tile"].items()
    for swizzle, tiles in swizzles.items()
    for rows in tiles
]


@pytest.mark.parametrize(("major", "swizzle", "rows"), TILES)
def test_a_descriptor_reads_its_part_of_the_tile(major: str, swizzle: str, rows: int) -> None:
    """The canonical layouts of the PTX ISA, taken from the descriptor's fields, are where the tile's elements lie."""
    wgmma = layouts.read("wgmma")
    entry, atom = wgmma["tile"][major][swizzle][str(rows)], Layout.of(wgmma["atom"][major][swizzle])
    tile = Layout.of(entry["layout"]).addresses()
    assert sorted(tile.reshape(-1)) == list(range(0, 2 * tile.size, 2))
    height, width = atom.table().shape
    np.testing.assert_array_equal(tile[:height, :width], atom.addresses())
    for step, bits in enumerate(entry["descriptors"]):
        got = Descriptor.of(int(bits, 16)).addresses(rows, major)
        np.testing.assert_array_equal(got, tile[:, 16 * step : 16 * step + 16])
