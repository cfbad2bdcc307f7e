"""Resources of a kernel from the assembler's log, and variables inside a cubin."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_USED = re.compile(r"Used (\d+) registers([^\n]*)")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SHARED = re.compile(r"(\d+) bytes smem")
_NOTE = re.compile(r"^ptxas|: warning #")
_ROUTINE = re.compile(
    r"Compiling entry function|Function properties|bytes stack frame|Used \d+ registers|Compile time|bytes gmem"
)


@dataclass(frozen=True)
class Resources:
    """Of a kernel: registers and bytes of local memory per thread, bytes of static shared memory per block.

    stack_bytes holds arrays that are indexed at run time; spill bytes are registers that went to local memory. Both
    include the functions that were not inlined.
    """

    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


def parse_resources(log: str, entry: str) -> Resources:
    """The figures that `ptxas -v` gives for one entry function; raises ValueError if the log has none."""
    parts = _ENTRY.split(log)
    text = dict(zip(parts[1::2], parts[2::2], strict=True)).get(entry, "")
    used, memory = _USED.search(text), _MEMORY.findall(text)
    if used is None or not memory:
        raise ValueError(f"no registers of {entry} in the compiler's log: {log[-300:]!r}")
    stack, stores, loads = (sum(map(int, column)) for column in zip(*memory, strict=True))
    shared = _SHARED.search(used[2])
    return Resources(int(used[1]), int(shared[1]) if shared else 0, stack, stores, loads)


def parse_notes(log: str) -> tuple[str, ...]:
    """Warnings of the compiler and remarks of the assembler, a line each, without the figures that Resources has."""
    lines = (line.strip() for line in log.splitlines())
    return tuple(line for line in lines if _NOTE.search(line) and not _ROUTINE.search(line))


def read_symbol(cubin: bytes, name: str) -> bytes:
    """The initial bytes of a variable in a cubin (a 64-bit ELF file); raises ValueError if it is not there."""
    try:
        sections = _sections(cubin)
        for kind, offset, size, link in sections:
            if kind != _SYMBOL_TABLE:
                continue
            names = sections[link][1]
            for entry in range(offset, offset + size, _SYMBOL.size):
                word, _, _, index, value, length = _SYMBOL.unpack_from(cubin, entry)
                end = cubin.index(b"\0", names + word)
                if cubin[names + word : end].decode() == name:
                    start = sections[index][1] + value
                    return cubin[start : start + length]
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a cubin: {error}") from error
    raise ValueError(f"no variable {name} in the cubin")


_SYMBOL_TABLE = 2  # SHT_SYMTAB
_SYMBOL = struct.Struct("<IBBHQQ")  # st_name, st_info, st_other, st_shndx, st_value, st_size
_SECTION = struct.Struct("<IIQQQQIIQQ")  # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, ...


def _sections(cubin: bytes) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<HH", cubin, 0x3A)
    rows = (_SECTION.unpack_from(cubin, table + i * size) for i in range(count))
    return [(row[1], row[4], row[5], row[6]) for row in rows]
