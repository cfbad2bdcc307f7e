"""Matrix products by cuBLASLt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LaunchError
from ...host.files import cache_directory
from ..protocol import Array
from .algorithm_cache import AlgorithmCache, Entry
from .cublaslt_handles import Descriptors, Library
from .device import Cuda
from .gemm_product import Product, check_array, product_of
from .graph_timing import captured, fastest
from .launch_plan import Operand

_CANDIDATES = 8  # of cuBLASLt's guesses, the best of which come first
_FEWEST_LAUNCHES, _MANY_LAUNCHES, _MOST_LAUNCHES = 4, 16, 128  # in a graph that is timed
_ENOUGH_OPERATIONS = 1e12  # in a graph: a millisecond or more on any GPU, so that few launches suffice
_MOST_PLANS = 4096
_FACTORS = np.array([1.0, 0.0], np.float32)  # alpha and beta of out = alpha · product + beta · out
_ONE, _ZERO = (int(_FACTORS[i:].ctypes.data) for i in range(2))


class GemmPlan:
    """One product, ready to be launched any number of times, until its GemmPlans is closed."""

    def __init__(self, library: Library, descriptors: Descriptors, algorithm: Array) -> None:
        self.product = descriptors.product
        self._library, self._descriptors, self._algorithm = library, descriptors, algorithm
        self._matmul: Callable[..., None] = library.bindings.matmul
        self._handle, self._error = library.handle, library.error
        self._operation, self._weight = descriptors.operation, descriptors.weight
        self._x, self._out = descriptors.x, descriptors.out
        self._algorithm_address = int(algorithm.ctypes.data)
        self.workspace = library.workspace
        self._workspace, self._workspace_bytes = int(self.workspace.data.ptr), library.workspace_bytes
        library.plans.add(self)

    @property
    def algorithm(self) -> bytes:
        """The algorithm in cuBLASLt's own encoding."""
        return bytes(self._algorithm.data)

    def launch(self, out: int, x: int, weight: int, stream: int) -> None:
        """Starts the product of the arrays at these addresses of the current GPU, on a stream, which may be captured.

        Neither allocates nor waits. Addresses must be multiples of product.alignment, unchecked. Raises LaunchError.
        """
        try:
            self._matmul(
                self._handle, self._operation, _ONE, weight, self._weight, x, self._x, _ZERO, out, self._out,
                out, self._out, self._algorithm_address, self._workspace, self._workspace_bytes, stream,
            )  # fmt: skip
        except self._error as error:
            raise LaunchError(f"gemm {self.product}: cuBLASLt refuses the launch: {error}") from error

    def close(self) -> None:
        """Frees the descriptors; a launch after it is a LaunchError."""
        self._matmul = self._refuse
        self._descriptors.close()

    def _refuse(self, *_: int) -> None:
        raise LaunchError(f"gemm {self.product}: its GemmPlans is closed")


class GemmPlans:
    """Products out [M, N] = x [M, K] · weight [N, K]ᵀ on one GPU: bfloat16 or float16, summed in float32, rounded once.

    cache: directory for the results of `tune` (None: the user's). All products share one workspace, so they belong on
    one stream, or on streams that wait for each other. close(), or the garbage collector, frees cuBLASLt's resources.
    version: of cuBLASLt; bindings: their name. Raises DeviceError without cuBLASLt.
    """

    def __init__(self, cuda: Cuda, *, cache: Path | None = None) -> None:
        self._cuda = cuda
        self._library = Library(cuda)
        self.version, self.bindings = self._library.version, self._library.name
        directory = (cache_directory() if cache is None else cache) / "cublaslt"
        self._known = AlgorithmCache(directory, cuda.gpu_name, self.version)
        self._plans: dict[Product, GemmPlan] = {}

    def plan(
        self, m: int, n: int, k: int, dtype: Any, out_dtype: Any = None, ldx: int | None = None,
        ldo: int | None = None, *, alignment: int = 16,
    ) -> GemmPlan:  # fmt: skip
        """The plan of a product, made once: with the algorithm that tune found, or else cuBLASLt's first guess.

        dtype: of x and weight; out_dtype: the same (None) or float32. ldx, ldo: elements from row to row of x and out
        (None: k and n). alignment: of the address of each array, in bytes, a power of two.
        Raises LaunchError for a product that cuBLASLt does not support.
        """
        product = product_of(m, n, k, dtype, out_dtype, ldx, ldo, alignment)
        return self._plans.get(product) or self._keep(self._from_cache(product) or self._guesses(product, 1)[0])

    def tune(
        self, m: int, n: int, k: int, dtype: Any, out_dtype: Any = None, ldx: int | None = None,
        ldo: int | None = None, *, alignment: int = 16,
    ) -> GemmPlan:  # fmt: skip
        """As plan, with the fastest of cuBLASLt's guesses, as measured now, or earlier on a GPU of this name.

        The first guess is kept unless another is faster by more than the noise of the measurement. Measuring takes
        memory for the arrays, the weight several times over, and waits for the GPU.
        """
        product = product_of(m, n, k, dtype, out_dtype, ldx, ldo, alignment)
        plan = self._from_cache(product)
        if plan is None:
            plan, entry = self._fastest(self._guesses(product, _CANDIDATES))
            self._known.put(str(product), entry)
        return self._keep(plan)

    def run(self, plan: GemmPlan, out: Array, x: Array, weight: Array) -> None:
        """Starts out = x · weightᵀ on the current stream. Raises LaunchError for arrays that do not fit the plan."""
        product = plan.product
        check_array(product, "out", out, (product.m, product.n), product.out_dtype, product.ldo)
        check_array(product, "x", x, (product.m, product.k), product.dtype, product.ldx)
        check_array(product, "weight", weight, (product.n, product.k), product.dtype, product.k)
        launch = partial(plan.launch, out.data.ptr, x.data.ptr, weight.data.ptr)
        arrays = ("out", out), ("x", x), ("weight", weight), ("workspace", plan.workspace)
        self._cuda.enqueue("gemm", launch, (Operand.of(*pair) for pair in arrays))

    def close(self) -> None:
        """Frees cuBLASLt's resources; plans cannot be made or launched any more."""
        self._plans.clear()
        self._library.close()

    def _keep(self, plan: GemmPlan) -> GemmPlan:
        if len(self._plans) >= _MOST_PLANS:  # each prompt length has plans of its own
            self._plans.pop(next(iter(self._plans)))
        self._plans[plan.product] = plan
        return plan

    def _from_cache(self, product: Product) -> GemmPlan | None:
        """The plan with the cached algorithm; None without one, or if this cuBLASLt cannot run it."""
        known = self._known.get(str(product))
        if known is None:
            return None
        library, lt = self._library, self._library.open()
        algorithm, result = np.frombuffer(known, lt.matmul_algo_dtype).copy(), _results(lt, 1)
        with self._cuda.current():
            described = Descriptors(library, product)
            try:
                lt.matmul_algo_check(
                    library.handle, described.operation, described.weight, described.x, described.out, described.out,
                    algorithm.ctypes.data, result.ctypes.data,
                )  # fmt: skip
            except library.error:
                return None
        if result["state"][0] != 0 or result["workspace_size"][0] > library.workspace_bytes:
            return None
        return GemmPlan(library, described, algorithm)

    def _guesses(self, product: Product, count: int) -> list[GemmPlan]:
        """Plans with the best algorithms by cuBLASLt's heuristic: at least one, at most `count`."""
        library, lt = self._library, self._library.open()
        results, found = _results(lt, count), np.zeros(1, np.int32)
        with self._cuda.current(), library.reporting(LaunchError, f"gemm {product}"):
            described = Descriptors(library, product)
            lt.matmul_algo_get_heuristic(
                library.handle, described.operation, described.weight, described.x, described.out, described.out,
                described.preference, count, results.ctypes.data, found.ctypes.data,
            )  # fmt: skip
        usable = [i for i in range(found[0]) if results["state"][i] == 0]
        if not usable:
            raise LaunchError(f"gemm {product}: cuBLASLt has no algorithm for it")
        return [GemmPlan(library, described, results["algo"][i : i + 1].copy()) for i in usable]

    def _fastest(self, plans: list[GemmPlan]) -> tuple[GemmPlan, Entry]:
        """The fastest plan with weights read from memory, not from the L2 cache, and its measured times."""
        cuda, product = self._cuda, plans[0].product
        element = np.dtype(product.dtype).itemsize
        step = -(-product.n * product.k * element // product.alignment) * product.alignment
        copies = min(-(-2 * cuda.cache_bytes // step), _MOST_LAUNCHES)
        weights = _noise(cuda, copies * step // element, product.dtype)
        x = _noise(cuda, product.m * product.ldx, product.dtype)
        out = cuda.empty((product.m * product.ldo,), product.out_dtype)
        enough = int(_ENOUGH_OPERATIONS / (2.0 * product.m * product.n * product.k))
        count = max(copies, min(max(enough, _FEWEST_LAUNCHES), _MANY_LAUNCHES))
        usable, graphs, refusal = [], [], None
        with cuda.current():
            for plan in plans:
                addresses = [weights.data.ptr + i % copies * step for i in range(count)]
                try:
                    launches = [partial(plan.launch, out.data.ptr, x.data.ptr, weight) for weight in addresses]
                    graph = captured(cuda, launches)
                except LaunchError as error:  # some guesses cannot be run
                    refusal = refusal or error
                    continue
                usable.append(plan)
                graphs.append(graph)
            if refusal is not None and not usable:
                raise refusal
            choice = fastest(cuda, graphs)
        of_launch = 1e3 / count
        why = "it was the fastest" if choice.is_measured else "the first guess: no other was faster beyond the noise"
        times = (choice.chosen_ms, choice.first_ms, choice.fastest_ms, choice.noise_ms)
        plan = usable[choice.index]
        return plan, Entry(plan.algorithm, why, *(of_launch * ms for ms in times))


def _noise(cuda: Cuda, elements: int, dtype: str) -> Array:
    """Normally distributed values: a GPU is faster with zeros."""
    array = cuda.empty((elements,), dtype)
    values = np.random.default_rng(0).standard_normal(min(elements, 1 << 20), np.float32).astype(dtype)
    for i in range(0, elements, len(values)):
        cuda.upload(array[i : i + len(values)], values[: elements - i])
    return array


def _results(lt: Any, count: int) -> Array:
    """Array of `count` cublasLtMatmulHeuristicResult_t."""
    return np.zeros(count, lt.matmul_heuristic_result_dtype)
