"""Twins that launch several blocks: what orders blocks, and what happens to global memory."""

from __future__ import annotations

import numpy as np

from tests.support.twins import BY_64, ODD, ONE_THREAD, SHARED, UNWRITTEN, Unwritten, counting, floats, ints, twins

FENCES = (
    twins(
        "ticket_before_write write_after_fence no_acquire release_of_block_scope acquire_of_block_scope",
        "ok_ticket",
        (floats(1), floats(4), ints(1)),
        {0: 10, 1: [1, 2, 3, 4], 2: 4},
        names=("argument 1 (partial)",),
        **ONE_THREAD,
    ),
    twins(
        "every_thread_fences_first one_fences_before_barrier reader_fences_before_ticket",
        "ok_every_thread_fences ok_one_fences_after_barrier ok_reader_fences_after_barrier",
        (floats(1), floats(256), ints(1)),
        {0: 256},
        names=("argument 1 (partial)",),
        grid=4,
        shared=4,
    ),
    twins(
        "lane_fences_for_warp shuffled_ticket",
        "ok_lane_fences_for_warp",
        (floats(32), floats(128), ints(1)),
        {0: 4},
        names=("argument 1 (partial)",),
        grid=4,
        block=32,
    ),
    twins(
        "sum_then_count count_then_sum",
        "ok_sum_then_count",
        (floats(1), floats(1), ints(1)),
        {0: 10},
        names=("argument 1 (sum)",),
        **ONE_THREAD,
    ),
    twins(
        "first_resets_counter counter_read_early",
        "ok_last_resets_counter",
        (floats(1), ints(1)),
        {0: 4, 1: 0},
        names=("argument 1 (arrived)",),
        **ONE_THREAD,
    ),
)

LOCKS = (
    twins(
        "lock_without_release lock_without_acquire unlock_before_fence lock_of_block_scope",
        "ok_lock",
        (floats(1), ints(1)),
        {0: 4, 1: 0},
        names=("argument 0 (total)",),
        **ONE_THREAD,
    ),
    twins("unlock_plainly", "", (floats(1), ints(1)), {}, names=("argument 1 (mutex)",), **ONE_THREAD),
    twins("two_locks", "ok_two_locks", (floats(2), ints(2)), {0: 2}, names=("argument 0 (total)",), **ONE_THREAD),
    twins(
        "touch_after_release",
        "ok_two_under_one_lock",
        (floats(1), ints(1), ints(1)),
        {0: 4, 2: 4},
        names=("argument 2 (count)",),
        **ONE_THREAD,
    ),
    twins("lock_in_shared_memory", "", (floats(1),), {}, names=("argument 0 (total)",), shared=4, **ONE_THREAD),
    twins("", "ok_lock_in_shared_memory", (floats(4),), {0: 4}, grid=4, block=128, shared=4),
    twins(
        "once_checked_plainly",
        "ok_once",
        (floats(4), floats(1), ints(1), ints(1)),
        {0: 5},
        names=("argument 3 (ready)",),
        **ONE_THREAD,
    ),
    twins(
        "once_without_acquire",
        "",
        (floats(4), floats(1), ints(1), ints(1)),
        {},
        names=("argument 1 (table)",),
        **ONE_THREAD,
    ),
    twins(
        "handed_on_without_fence waits_for_one_of_all",
        "ok_handed_on ok_handed_on_by_exchange ok_waits_for_all",
        (floats(1), floats(3), ints(1), ints(3)),
        {0: 7},
        names=("argument 1 (data)",),
        grid=3,
        block=1,
    ),
    twins(
        "look_back_flag_first look_back_without_acquire",
        "ok_look_back",
        (floats(4), ints(1), ints(4)),
        {0: [1, 2, 3, 4]},
        names=("argument 0 (prefix)",),
        **ONE_THREAD,
    ),
    twins("look_back_plain_flag", "", (floats(4), ints(1), ints(4)), {}, names=("argument 2 (flags)",), **ONE_THREAD),
    twins(
        "look_back_half_packed",
        "ok_look_back_packed",
        (floats(4), ints(1), np.zeros(4, np.uint64)),
        {0: [1, 2, 3, 4]},
        names=("argument 2 (state)",),
        **ONE_THREAD,
    ),
)

TURNS = (
    twins(
        "split_k_passed_on_early split_k_waits_alone split_k_without_acquire split_k_without_release",
        "ok_split_k ok_split_k_all_fence",
        (floats(64), ints(1), ints(1)),
        {0: 4},
        names=("argument 0 (out)",),
        grid=4,
    ),
    twins(
        "fix_up_reported_by_one_warp",
        "ok_fix_up",
        (floats(64), floats(192), ints(1), ints(1)),
        {0: 4},
        names=("argument 1 (workspace)",),
        grid=4,
        shared=4,
    ),
    twins(
        "last_warp_without_fence",
        "ok_last_warp",
        (floats(32), floats(128), ints(1)),
        {0: 4},
        names=("argument 1 (partial)",),
        block=128,
    ),
    twins(
        "last_warp_shared_without_fence",
        "ok_last_warp_shared",
        (floats(32),),
        {0: 4},
        names=("shared memory",),
        block=128,
        shared=516,
    ),
    twins(
        "scale_renewed_without_fence scale_read_after_ticket",
        "ok_scale_renewed",
        (floats(4), floats(1, 1), ints(1)),
        {0: 1, 1: 2},
        names=("argument 1 (scale)",),
        **ONE_THREAD,
    ),
    twins(
        "third_reader_unfenced",
        "ok_third_reader",
        (floats(4), floats(1, 1), ints(1), ints(1)),
        {0: 1, 1: 2},
        names=("argument 1 (scale)",),
        **ONE_THREAD,
    ),
)

BLOCKS = (
    twins("chunks_overlap", "ok_chunks", (floats(50), 50), {0: 1}, names=("argument 0 (out)",), grid=4, block=16),
    twins(
        "stencil_in_place",
        "ok_stencil",
        (floats(256), floats(256, 1), 256),
        {0: np.where(np.arange(256) % 255 == 0, 1, 2)},
        names=("argument 0 (out)",),
        grid=4,
    ),
    twins("found_plainly", "ok_found", (ints(1), BY_64), {0: 1}, names=("argument 0 (found)",), grid=4),
    twins(
        "global_histogram_plainly global_histogram_cleared_by_one",
        "ok_global_histogram",
        (ints(8), counting(64, np.int32) % 8),
        {0: 32},
        names=("argument 0 (bins)",),
        grid=4,
    ),
    twins(
        "maximum_looked_at_plainly",
        "ok_maximum",
        (ints(1), counting(64, np.int32)),
        {0: 63},
        names=("argument 0 (maximum)",),
        grid=4,
    ),
    twins(
        "two_counts_in_halves",
        "ok_two_counts",
        (np.zeros(1, np.uint64), ODD),
        {0: 128 << 32 | 128},
        names=("argument 0 (counts)",),
        grid=4,
    ),
    twins("flag_without_barrier", "ok_flag_after_barrier", (ints(256), ints(64, 3)), {0: 1}, grid=4, **SHARED),
    twins(
        "shared_count_unwritten",
        "ok_shared_count ok_shared_count_exchanged",
        (ints(256), ints(64, 3)),
        {0: 1},
        kinds=UNWRITTEN,
        grid=4,
        **SHARED,
    ),
    *(
        twins(
            f"reads_unwritten<{cpp}>",
            f"ok_reads_written<{cpp}>",
            (np.zeros(64, dtype), Unwritten(64, dtype)),
            {0: np.arange(64)[::-1]},
            names=("argument 1 (scratch)",),
            kinds=UNWRITTEN,
        )
        for cpp, dtype in (("int", np.int32), ("uint8_t", np.uint8), ("float", np.float32), ("int64_t", np.int64))
    ),
    twins(
        "counts_in_unwritten",
        "ok_counts_in_cleared",
        (ints(64), Unwritten(8, np.int32)),
        {0: 8},
        names=("argument 1 (scratch)",),
        kinds=UNWRITTEN,
    ),
    twins("", "ok_writes_any_value<int>", (ints(64), Unwritten(64, np.int32), 0x7FA57FA5), {0: 0x7FA57FA5}),
    twins("", "ok_writes_any_value<uint8_t>", (np.zeros(64, np.uint8), Unwritten(64, np.uint8), 0x7F), {0: 0x7F}),
    twins(
        "reads_padding",
        "ok_reads_around_padding",
        (floats(64), BY_64),
        {0: BY_64},
        names=("shared memory",),
        kinds=UNWRITTEN,
        shared=288,
    ),
    twins(
        "register_unset",
        "ok_register_set",
        (floats(64), BY_64 + 1, 48),
        {0: np.where(np.arange(64) < 48, BY_64 + 1, 0)},
        kinds=(),
    ),
    twins("sum_unset", "ok_sum_set", (floats(64), BY_64, 64), {0: 2016}, kinds=()),
)

ALL = (*FENCES, *LOCKS, *TURNS, *BLOCKS)
