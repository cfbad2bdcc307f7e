"""Finding the GPU, choosing the device, and `gemma-cuda doctor`, on machines that are made up here."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from gemma_cuda import cli
from gemma_cuda.device import Driver, choose_device, cuda_extra, detect, doctor
from gemma_cuda.device.doctor import State
from gemma_cuda.device.driver import Gpu
from gemma_cuda.errors import DeviceError, InputError
from tests.support.paths import ROOT

H100 = Gpu("NVIDIA H100", (9, 0), 80 * 2**30)
OLD = Gpu("Tesla T4", (7, 5), 16 * 2**30)


class FakeDriver:
    """libcuda's functions that are asked, answering through the ctypes pointers they get."""

    def __init__(self, *gpus: Gpu, version: int = 13000, init: int = 0) -> None:
        self.gpus, self.version, self.init = gpus, version, init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = self.gpus[device.value].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: ctypes.c_int) -> int:
        memory._obj.value = self.gpus[device.value].memory_bytes
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = self.gpus[device.value].compute_capability[{75: 0, 76: 1}[attribute]]
        return 0

    def cuGetErrorName(self, code: int, text: Any) -> int:
        text._obj.value = {803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}.get(code)
        return 0 if text._obj.value else 1


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_gpus_are_read_from_the_driver() -> None:
    driver = detect(lambda name: FakeDriver(H100, OLD, version=12090))
    assert driver == Driver(gpus=(H100, OLD), cuda_version=(12, 9))
    assert str(driver.gpus[0]) == "NVIDIA H100 (compute capability 9.0, 80 GiB)"


def test_no_driver_and_no_gpu_are_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.device.driver._DRIVER_FILES", ())
    assert detect(no_library) == Driver()
    assert detect(lambda name: FakeDriver(init=100)) == Driver(cuda_version=(13, 0))


def test_a_broken_driver_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.device.driver._DRIVER_FILES", (__file__,))
    without_library = detect(no_library)
    assert without_library.problem is not None and "libcuda.so.1 cannot be opened" in without_library.problem
    mismatch = detect(lambda name: FakeDriver(init=803))
    assert mismatch.problem == "the CUDA driver does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
    assert mismatch.remedy is not None
    nameless = detect(lambda name: FakeDriver(init=4242))
    assert nameless.problem == "the CUDA driver does not start: CUDA error 4242"
    not_a_driver = detect(lambda name: object())
    assert not_a_driver.problem is not None and "does not answer" in not_a_driver.problem


@pytest.mark.parametrize(
    ("driver", "extra"),
    [
        (Driver((H100,), (13, 0)), "cuda13"),
        (Driver((H100,), (14, 1)), "cuda13"),
        (Driver((H100,), (12, 4)), "cuda12"),
        (Driver((OLD, H100), (12, 4)), "cuda12"),
        (Driver((H100,), (11, 8)), None),
        (Driver((OLD,), (13, 0)), None),
        (Driver((), (13, 0)), None),
        (Driver(), None),
    ],
)
def test_the_extra_fits_the_driver(driver: Driver, extra: str | None) -> None:
    assert cuda_extra(driver) == extra


def test_auto_takes_numpy_and_says_why() -> None:
    assert choose_device("auto", driver=Driver()) == ("numpy", "no NVIDIA GPU is visible", None)
    assert choose_device("numpy", driver=Driver((H100,), (13, 0))).warning is None


@pytest.mark.parametrize(
    ("driver", "warning"),
    [
        (Driver((H100,), (13, 0)), "NVIDIA H100 (compute capability 9.0, 80 GiB) is visible, but CuPy not installed"),
        (Driver((OLD,), (13, 0)), "CUDA needs compute capability 8.0 or newer"),
        (Driver(problem="it does not start", remedy="reboot"), "it does not start; to use it: reboot"),
    ],
)
def test_a_visible_gpu_that_is_not_used_is_a_warning(driver: Driver, warning: str) -> None:
    choice = choose_device("auto", driver=driver)
    assert choice.name == "numpy"
    assert choice.warning is not None and warning in choice.warning


def test_auto_takes_the_first_gpu_that_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.device.is_installed", lambda module: True)
    choice = choose_device("auto", driver=Driver((OLD, H100), (13, 0)))
    assert choice == ("cuda:1", "NVIDIA H100 (compute capability 9.0, 80 GiB) is there", None)


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(DeviceError, match="device 'cuda' needs CuPy and cuda-bindings"):
        choose_device("cuda:1")
    for name in ("tpu", "cuda:", "cuda:x"):
        with pytest.raises(
            InputError, match=f"device is '{name}', expected one of auto, cuda, emulator, numpy, cuda:1"
        ):
            choose_device(name)


def test_the_warning_goes_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.device.detect", lambda: Driver((H100,), (13, 0)))
    assert cli.main(["prefill", "--model", "/missing", "--input-ids", "2"]) == 2
    assert capsys.readouterr().err.startswith("gemma-cuda: warning: NVIDIA H100")


def states(findings: list[doctor.Finding]) -> dict[str, State]:
    return {finding.subject: finding.state for finding in findings}


def test_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "numpy", "packages", "NVIDIA driver", "GPU", "CuPy", "NVRTC", "C++ compiler", "emulator"):
        assert subject in out


def test_doctor_names_what_to_install_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda module: False)
    findings = doctor.examine(Driver((H100,), (12, 8)))
    found = {finding.subject: finding for finding in findings}
    assert found["NVIDIA driver"].detail == "supports CUDA 12.8"
    assert found["GPU"].state is State.OK
    assert found["CuPy"].remedy == found["NVRTC"].remedy == "pip install 'gemma-cuda[cuda12]'"
    assert found["launch"].detail == "not tried, it needs CuPy and NVRTC"
    assert doctor.numpy_works(findings)


def test_doctor_tells_a_broken_part_from_a_missing_one() -> None:
    assert doctor._probe("x", "json", "print('1.0')", "install x") == doctor.Finding("x", State.OK, "1.0")
    broken = doctor._probe("x", "json", "import sys; sys.exit('no device')", "install x")
    assert broken == doctor.Finding("x", State.BROKEN, "no device", "install x")
    crashed = doctor._probe("x", "json", "import os; os.abort()", "install x")
    assert crashed.state is State.BROKEN and "exit code" in crashed.detail
    missing = doctor._probe("x", "no_such_module.part", "print()", "install x")
    assert missing == doctor.Finding("x", State.MISSING, "no_such_module.part is not installed", "install x")


def test_doctor_sees_a_wrong_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(np, "array_equal", lambda left, right: False)
    finding = doctor._numpy()
    assert finding.state is State.BROKEN and "a matrix product is wrong" in finding.detail
    assert not doctor.numpy_works([finding])


def test_doctor_runs_where_nothing_is_installed() -> None:
    # -S leaves site-packages out: only the standard library and this checkout are there.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from gemma_cuda.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ""
    assert "numpy: pip install gemma-cuda" in done.stdout
