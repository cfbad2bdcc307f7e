"""Mistakes that people make, as edits of our kernels: python -m benchmarks.mutate KERNEL --semantic draws from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """`before`, which the source below kernels/ holds once, becomes `after`."""

    what: str
    source: str
    before: str
    after: str


def _of(source: str, *edits: tuple[str, str, str]) -> list[Mistake]:
    return [Mistake(what, source, before, after) for what, before, after in edits]


SEMANTIC: dict[str, list[Mistake]] = {
    "attention": [
        *_of(
            "attention.cu",
            ("no barrier between tiles", "    __syncthreads();  // every thread's part of the tile", "    //"),
            ("a wait for one group too few", "async_wait<2 * kPairs - 2>()", "async_wait<2 * kPairs - 1>()"),
            ("no barrier before rows are read", "  __syncthreads();  // the rows are described", "  //"),
            ("no barrier before Q_smem is reused", "  __syncthreads();  // even if no key tile ran", "  //"),
            ("no wait for q where there is no key", "  async_wait<0>();\n  __syncthreads();", "  __syncthreads();"),
            ("no edge where the last row begins at 64 m + 1", "t < bottom.key_begin", "t + 1 < bottom.key_begin"),
            ("no edge where the first row ends at 64 m - 1", "t + kBlockK > top", "t + kBlockK - 1 > top"),
            ("an edge by the first row's begin", "t < bottom.key_begin", "t < top.key_begin"),
            ("an edge by the last row's end", "top.key_begin + top.key_count", "bottom.key_begin + bottom.key_count"),
            ("no edges", "const bool is_edge = t <", "const bool is_edge = false && t <"),
            ("one tile of keys too many", "t < work.key_end; t +=", "t <= work.key_end; t +="),
            ("one tile of keys too few", "t < work.key_end; t +=", "t + kBlockK < work.key_end; t +="),
            (
                "another group's queries",
                "q += work.first_token * params.q.token + kv_head * heads",
                "q += work.first_token * params.q.token + kv_head",
            ),
            (
                "another group's output",
                "results.o + work.first_token * params.o.token + kv_head * heads",
                "results.o + work.first_token * params.o.token + kv_head",
            ),
            ("another group's bias", "bias.batch + kv_head * heads * params", "bias.batch + kv_head * params"),
            ("K's head for V", "blockIdx.x * strides.head", "(kKind == K ? blockIdx.x : 0) * strides.head"),
            ("queries and heads change places", "{packed / heads, packed % heads", "{packed % heads, packed / heads"),
            ("accumulators are not rescaled", "correction)) rescale(O_rmem, correction);", "correction)) {}"),
            ("keys before the first are read", "t + row + r >= key_begin && ", ""),
            ("keys after the last are read", " && t + row + r < key_end;", ";"),
            ("V arrives a pair late", "load<V>(t + (kPairs - 1) * kBlockK)", "load<V>(t + kPairs * kBlockK)"),
            ("K arrives a pair early", "load<K>(t + kPairs * kBlockK)", "load<K>(t + (kPairs - 1) * kBlockK)"),
            ("rows of a warp are stored before they are whole", "  __syncwarp();  // the rows are whole", "  //"),
            ("rows of a warp are stored while q is read", "  __syncwarp();  // every lane has read its Q", "  //"),
            ("a row too many is stored", "if (row >= rows) break;", "if (row > rows) break;"),
            ("a row too many has a sum", "r >= work.rows) return;", "r > work.rows) return;"),
            ("rows past the last are described", "min(r, work.rows - 1)", "r"),
            ("lse without the scale", "max[m][half], sum, exponent)", "max[m][half], sum, 1.0f)"),
            ("a row without keys is divided by its sum", "sum == 0.0f ? 0.0f : 1.0f / sum", "1.0f / sum"),
            ("the parts of the first tile of rows, always", "tile.first_partial * part_stride", "0 * part_stride"),
            ("parts that saw no key count", "if (part_max == -kInf) continue;", ""),
            ("parts weigh the same however many keys they saw", "* exponent) * part_sum;", "* exponent);"),
            ("merged parts are weighed without the scale", "(part_max - top) * exponent)", "part_max - top)"),
            ("weights against 0 instead of the largest", "float top = -kInf, weights", "float top = 0.0f, weights"),
            (
                "the last part is forgotten",
                "for (int i = 0; i < tile.partials; ++i) {",
                "for (int i = 1; i < tile.partials; ++i) {",
            ),
            ("a merged row's head counted from its tile", "packed % heads;", "r % heads;"),
        ),
        *_of(
            "common/softmax.cuh",
            ("sums are not rescaled", "sum[m][half] *= correction[m][half];", ""),
            ("rows without a visible key become NaN", "max[m][half] == -kInf ? 0.0f : max", "max"),
            ("rows far from zero are shifted in one fused step", "kFar = 4096.0f", "kFar = kInf"),
            ("rows far from zero are shifted twice", "if (is_far) shift[m][half] = 0.0f;", ""),
            ("neighbours of rows far from zero are shifted as these", "is_far ? max[m][half] : 0.0f", "max[m][half]"),
            (
                "lse overflows before it is scaled",
                "fmaf(max, factor * kLn2, log2f(sum) * kLn2)",
                "(max * factor + log2f(sum)) * kLn2",
            ),
            ("a row follows its neighbours", "if (changes) max[m][half] = top;", "max[m][half] = top;"),
            ("lanes of a quad do not meet", "return x + __shfl_xor_sync(kFullMask, x, 2);", "return x;"),
        ),
        *_of(
            "common/logit.cuh",
            (
                "the bias is capped, too",
                "fmaf(accurate_tanh(score * scale), cap, bias)",
                "cap * accurate_tanh(score * scale + bias / cap)",
            ),
            ("the bias is scaled", "fmaf(score, scale, bias)", "(score + bias) * scale"),
        ),
    ],
    "linear": _of(
        "linear.cu",
        ("no barrier between steps", "    __syncthreads();  // the step's tiles have landed", "    //"),
        ("a wait for one group too few", "async_wait<kStages - 2>()", "async_wait<kStages - 1>()"),
        ("the last block is known before sums are written", "  __syncthreads();  // the block's sums", "  //"),
        ("no fence before the count", "    __threadfence();\n    *is_last", "    *is_last"),
        ("no fence after the count", "    __threadfence();\n  }", "  }"),
        ("the counter is not zero again", "    if (*is_last) atomicExch(arrived, 0);\n", ""),
        ("no barrier after the count", "  __syncthreads();  // is_last is known", "  //"),
        ("the last but one adds up", "static_cast<int>(gridDim.y) - 1;", "static_cast<int>(gridDim.y) - 2;"),
        ("sums do not start anew", "      sums.take(split);\n      steps_left", "      steps_left"),
        ("sums start anew once only", "      steps_left = split_steps;\n", ""),
        ("own sums count twice", "    first[0] = first[1] = second[0] = second[1] = 0.0f;\n", ""),
        (
            "the last split is forgotten",
            "split < static_cast<int>(gridDim.y); ++split",
            "split + 1 < static_cast<int>(gridDim.y); ++split",
        ),
        ("a row too many is read", "row < rows && chunk", "row <= rows && chunk"),
        ("a chunk of K too many is read", "chunk * kChunk < columns", "chunk * kChunk <= columns"),
        ("a row too many is stored", "first_m + row >= M ||", "first_m + row > M ||"),
        ("a column too many is stored", "first_n + column >= N)", "first_n + column > N)"),
        (
            "gate and up change places",
            "gelu_tanh(z) * to_float(other.element[j])",
            "gelu_tanh(to_float(other.element[j])) * z",
        ),
        ("up is gate", "out_smem + out_offset(row, kColumns + column)", "out_smem + out_offset(row, column)"),
        ("the cap is forgotten outside tanh", "params.cap * tanhf(z / params.cap)", "tanhf(z / params.cap)"),
        (
            "tiles of rows and columns change places",
            "m = first + rest % rows;\n    n = rest / rows;",
            "m = first + rest / rows;\n    n = rest % rows;",
        ),
        ("the tile is stored while stages are read", "  __syncthreads();  // every warp has read the stages", "  //"),
        ("the tile is read before it is whole", "  __syncthreads();  // the tile is whole", "  //"),
        ("the last split reads beyond K", "min(K - first_k, split_steps * kBlockK)", "split_steps * kBlockK"),
        ("splits begin at the same place", "blockIdx.y * split_steps * kBlockK;", "0;"),
        ("every split's sums have one place", "partial + blockIdx.y * kSize + at", "partial + at"),
        (
            "every tile's sums have one place",
            "partial += static_cast<int64_t>(blockIdx.x) * gridDim.y * (kBlockM * kBlockN);",
            "",
        ),
        ("every tile counts in one place", "arrived + blockIdx.x,", "arrived,"),
        ("the residual of another row", "static_cast<int64_t>(first_m + row) * N", "static_cast<int64_t>(row) * N"),
    ),
    "rms_norm": [
        *_of(
            "rms_norm.cu",
            ("no eps in the first norm", "partial_tile + kPartials) / E + eps)", "partial_tile + kPartials) / E)"),
            (
                "no eps in the second norm",
                "block_sum<kThreads>(sum, partial_tile) / E + eps)",
                "block_sum<kThreads>(sum, partial_tile) / E)",
            ),
            (
                "eps is added to the root",
                "rsqrtf(block_sum<kThreads>(sum, partial_tile) / E + eps)",
                "1.0f / (1.0f / rsqrtf(block_sum<kThreads>(sum, partial_tile) / E) + eps)",
            ),
            (
                "both sums in one place",
                "block_sum<kThreads>(sum, partial_tile + kPartials)",
                "block_sum<kThreads>(sum, partial_tile)",
            ),
            ("the layer's scalar is forgotten", " + branch[i]) * layer_scalar)", " + branch[i]))"),
            (
                "the scalar of the branch only",
                "(to_float(r.element[i]) + branch[i]) * layer_scalar",
                "to_float(r.element[i]) + branch[i] * layer_scalar",
            ),
            ("w instead of 1 + w", "out[i] *= 1.0f + to_float(w.element[i])", "out[i] *= to_float(w.element[i])"),
            ("the second weight in the first norm", "scale, post_weight + e)", "scale, weight + e)"),
            (
                "the sum is kept without its branch",
                "if (h != nullptr) v.store(h + row + e);",
                "if (h != nullptr) r.store(h + row + e);",
            ),
            (
                "the mean over the block",
                "block_sum<kThreads>(sum, partial_tile) / E",
                "block_sum<kThreads>(sum, partial_tile) / (stride)",
            ),
        ),
        *_of(
            "common/reduce.cuh",
            ("no barrier before sums are read", "  __syncthreads();  // every warp has written its sum", "  //"),
            ("sums of warps that are not there", "threadIdx.x % 32 < kWarps ? ", "threadIdx.x % 32 <= kWarps ? "),
        ),
    ],
    "qk_norm_rope": _of(
        "qk_norm_rope.cu",
        ("no eps", "(sum) / D + params.eps)", "(sum) / D)"),
        ("V as normed as K", "is_value ? kNormV : kNorm != Raw", "kNorm != Raw"),
        ("K not normed", "if (is_value ? kNormV : kNorm != Raw)", "if (is_value ? kNormV : kNorm != Raw && is_query)"),
        ("pairs turn the other way", "y * c.element[i] + x * s.element[i]", "y * c.element[i] - x * s.element[i]"),
        (
            "low turns by what high became",
            "high[part + i] = y * c",
            "high[part + i] = low[part + i] * s.element[i] + y * c",
        ),
        ("the first key is a query", "!is_value && head < H", "!is_value && head <= H"),
        ("tokens without a slot are kept", "    if (slot < 0) return;\n", ""),
        (
            "K and V change places",
            "is_value ? v_cache + (slot * KH + head) * D : k_cache",
            "is_value ? k_cache + (slot * KH + head) * D : v_cache",
        ),
        ("a pair too many turns", "first + part + i >= pairs", "first + part + i > pairs"),
        ("a weight of the lower half for the upper", "weight + kHalf + first", "weight + first"),
        ("angles of the token's number", "positions == nullptr ? token : positions[token]", "token"),
        ("V from the keys' columns", "is_value ? params.v_column : 0", "is_value ? H * D : 0"),
        (
            "the weight of q for k",
            "is_query ? q_weight : is_value ? nullptr : k_weight",
            "is_value ? nullptr : q_weight",
        ),
        ("w instead of 1 + w", "(kNorm == OnePlus ? 1.0f : 0.0f)", "0.0f"),
        ("V turns, too", "  if (!is_value) {\n    const int64_t angles", "  {\n    const int64_t angles"),
    ),
    "geglu": _of(
        "geglu.cu",
        (
            "gate and up change places",
            "gelu_tanh(to_float(g.element[i])) * to_float(u.element[i])",
            "gelu_tanh(to_float(u.element[i])) * to_float(g.element[i])",
        ),
        ("the last block goes on", "  if (row >= N) return;\n", ""),
        ("up with gate's stride", "up + row * up_stride", "up + row * gate_stride"),
        ("vectors counted as elements", "(index - row * vectors_per_row) * kVec", "index - row * vectors_per_row"),
    ),
    "embed": _of(
        "embed.cu",
        ("the scale is not rounded", "to_float(from_float<T>(scale))", "scale"),
        ("features are scaled", ": 1.0f;", ": scale;"),
        ("the first feature is a token", "feature < 0", "feature <= 0"),
        ("features by the token's number", "static_cast<int64_t>(feature) * E", "token * E"),
        ("a row's end is not looked at", "e < E; e +=", "e < E + kVec; e +="),
    ),
    "logits": _of(
        "logits.cu",
        ("the highest index first", "(0xffffffffu - index)", "static_cast<uint32_t>(index)"),
        ("-0 below 0", "bit_cast<uint32_t>(value + 0.0f)", "bit_cast<uint32_t>(value)"),
        ("NaN below everything", "value != value ? 0xffffffffu :", "value != value ? 0u :"),
        ("negative values the other way", "? ~bits :", "? bits :"),
        ("no barrier in a round", "    __syncthreads();  // every warp's largest is there", "    //"),
        ("one place for all rounds", "round % 2 * kWarps", "0"),
        (
            "a winner wins again",
            "          if (keys[i] == winner) keys[i] = 0;",
            "          if (keys[i] == winner) keys[i] = winner;",
        ),
        ("the warp's largest is kept", "      of_warp = warp_largest(largest);\n", ""),
        ("a row's end is not looked at", "if (at < count) v = Vec", "v = Vec"),
        (
            "what lies after a row counts",
            "at < count ? key_of(v.element[j], at + j) : 0",
            "key_of(v.element[j], at + j)",
        ),
        (
            "every slice's keys have one place",
            "(row * gridDim.x + blockIdx.x) * k + round",
            "row * gridDim.x * k + round",
        ),
        ("the cap is forgotten outside tanh", "cap * tanhf(v.element[i] / cap)", "tanhf(v.element[i] / cap)"),
        ("the logits of row 0", "values[row * k + round] = z[row * V +", "values[row * k + round] = z["),
    ),
}
