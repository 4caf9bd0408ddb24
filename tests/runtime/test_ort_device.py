"""Sessions of ONNX Runtime on a GPU, with a pretended one: nothing is computed anywhere else without a word."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import windows
from tests.pretended_gpu import CUDA, TENSORRT, PretendedLibrary, all_on
from tests.runtime.test_backends import stage_files
from trunkline.runtime.backends import (
    Missing,
    StageFiles,
    onnxruntime_cuda,
    onnxruntime_tensorrt,
    ort,
    ort_packages,
    sealed,
)
from trunkline.runtime.backends.forks import _inherited
from trunkline.runtime.backends.onnxruntime_tensorrt import SETTINGS, provider_options
from trunkline.runtime.cuda import driver
from trunkline.runtime.cuda.driver import DriverFacts
from trunkline.runtime.errors import BackendError, BundleError

ORIN = DriverFacts("Orin", (8, 7), 8 << 30, True, "0" * 32, (12, 6), "36.4, CUDA 12.6")

#: Options that the parsers of onnxruntime-gpu 1.23.2 and 1.31.1 take, read out of their libraries.
_CUDA = (
    "device_id gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search do_copy_in_default_stream use_tf32 "
    "cudnn_conv_use_max_workspace enable_cuda_graph cudnn_conv1d_pad_to_nc1d prefer_nhwc fuse_conv_bias"
)
_TENSORRT = (
    "auxiliary_streams bf16_enable build_heuristics_enable builder_optimization_level cuda_graph_enable "
    "context_memory_sharing_enable detailed_build_log dla_core dla_enable dump_ep_context_model dump_subgraphs "
    "engine_cache_enable engine_cache_path engine_cache_prefix engine_decryption_enable engine_decryption_lib_path "
    "engine_hw_compatible ep_context_embed_mode ep_context_file_path extra_plugin_lib_paths "
    "force_sequential_engine_build force_timing_cache fp16_enable int8_calibration_table_name int8_enable "
    "int8_use_native_calibration_table layer_norm_fp32_fallback max_partition_iterations max_workspace_size "
    "min_subgraph_size onnx_bytestream onnx_bytestream_size onnx_model_folder_path op_types_to_exclude "
    "preview_features profile_max_shapes profile_min_shapes profile_opt_shapes sparsity_enable tactic_sources "
    "timing_cache_enable timing_cache_path weight_stripped_engine_enable"
)
CUDA_OPTIONS = set(_CUDA.split())
TENSORRT_OPTIONS = {"device_id", *(f"trt_{name}" for name in _TENSORRT.split())}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> PretendedLibrary:
    pretended = PretendedLibrary()
    monkeypatch.setattr(ort, "library", lambda: pretended)
    monkeypatch.setattr(driver, "probe", lambda: ORIN)
    return pretended


@pytest.fixture
def tensorrt(library: PretendedLibrary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The provider runs what is asked of it; the folder that engines are kept in."""
    library.where = all_on(TENSORRT)
    monkeypatch.setattr(onnxruntime_tensorrt, "tensorrt_version", lambda: "10.3.0")
    monkeypatch.setattr(onnxruntime_tensorrt, "default_folder", lambda: tmp_path / "engines")
    return tmp_path / "engines" / "onnxruntime-tensorrt"


@pytest.fixture
def action(half_bundle: Path) -> StageFiles:
    return stage_files(half_bundle, "action", variant="trt")


class TestCuda:
    def test_what_is_asked_of_the_library(self, library: PretendedLibrary, action: StageFiles) -> None:
        """The processor is not named, and nothing that failed is tried again on it."""
        onnxruntime_cuda.open_stage(action).close()
        ((asked,),) = library.asked
        assert asked == (CUDA, onnxruntime_cuda.OPTIONS)
        assert library.keywords == [{"enable_fallback": 0}]
        assert asked[1]["use_tf32"] == "0"
        assert set(asked[1]) <= CUDA_OPTIONS
        assert all(type(value) is str for value in asked[1].values())

    def test_it_computes_what_the_processor_does(self, library: PretendedLibrary, action: StageFiles) -> None:
        session, inputs = onnxruntime_cuda.open_stage(action), {"history": windows(4)}
        found = session.run(inputs)["action"]
        assert (found.shape, found.dtype, type(found)) == ((3, 4, 32), np.float32, np.ndarray)
        kept = session.run_resident(inputs)["action"]
        assert (kept.shape, kept.dtype, kept.nbytes) == (found.shape, found.dtype, found.nbytes)
        np.testing.assert_array_equal(kept.numpy(), found)

    def test_a_provider_that_was_left_out(self, library: PretendedLibrary, action: StageFiles) -> None:
        library.leaves_out = {CUDA}
        with pytest.raises(BackendError, match="left out a provider") as caught:
            onnxruntime_cuda.open_stage(action)
        for part in ("stage action", f"expected: {CUDA}", "found: CPUExecutionProvider"):
            assert part in str(caught.value)

    def test_operators_that_the_provider_does_not_have(self, library: PretendedLibrary, action: StageFiles) -> None:
        library.where = lambda operator, floats: CUDA if floats and operator != "MatMul" else ort.CPU
        with pytest.raises(BackendError, match="would not compute a stage where it was asked to") as caught:
            onnxruntime_cuda.open_stage(action)
        assert f"all arithmetic in {CUDA}" in str(caught.value)
        assert re.search(r"\d+ x MatMul in CPUExecutionProvider$", str(caught.value), re.MULTILINE)

    def test_everything_on_the_processor(self, library: PretendedLibrary, action: StageFiles) -> None:
        library.where = lambda operator, floats: ort.CPU
        with pytest.raises(BackendError, match=r"\d+ x MatMul in CPU(.|\n)*\d+ x Add in CPU"):
            onnxruntime_cuda.open_stage(action)

    def test_shapes_and_masks_may_be_on_the_processor(self, library: PretendedLibrary, action: StageFiles) -> None:
        session = onnxruntime_cuda.open_stage(action)
        assert {kernel.provider for kernel in session.kernels if not kernel.floats} == {ort.CPU}
        assert {kernel.operator for kernel in session.kernels if not kernel.floats} >= {"Shape", "Concat"}

    def test_the_library_refuses(self, library: PretendedLibrary, action: StageFiles) -> None:
        library.fails = RuntimeError("CUDA failure 35: driver version is insufficient")
        with pytest.raises(BackendError, match=r"cannot load a stage\n.*stage action\n.*CUDA failure 35") as caught:
            onnxruntime_cuda.open_stage(action)
        assert caught.value.__cause__ is library.fails

    def test_the_device_fails_while_it_copies(self, library: PretendedLibrary, action: StageFiles) -> None:
        kept = onnxruntime_cuda.open_stage(action).run_resident({"history": windows(1)})["action"]
        kept.value = object()
        with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage action"):
            kept.numpy()

    def test_a_graph_of_another_signature(self, library: PretendedLibrary, action: StageFiles) -> None:
        (output,) = action.stage.outputs
        stage = replace(action.stage, outputs=(replace(output, name="other"),))
        with pytest.raises(BundleError, match="not the one its manifest describes"):
            onnxruntime_cuda.open_stage(replace(action, stage=stage))

    def test_a_forked_child_frees_neither_sessions_nor_outputs(
        self, library: PretendedLibrary, action: StageFiles
    ) -> None:
        session = onnxruntime_cuda.open_stage(action)
        kept = session.run_resident({"history": windows(1)})["action"]
        assert session in _inherited
        assert kept in _inherited

    def test_quantised_layers_are_counted_where_they_ran(self, library: PretendedLibrary, action: StageFiles) -> None:
        assert onnxruntime_cuda.int8_kernels(action) == 0


class TestTensorRt:
    def test_what_is_asked_of_the_library(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        """Everything in TensorRT; CUDA beside it, which the provider needs for copies."""
        onnxruntime_tensorrt.open_stage(action).close()
        ((first, second),) = library.asked
        assert (first[0], second) == (TENSORRT, (CUDA, {"device_id": "0", "use_tf32": "0"}))
        options = first[1]
        assert set(options) <= TENSORRT_OPTIONS
        assert all(type(value) is str for value in options.values())
        assert options["trt_max_workspace_size"] == str(1 << 30)
        assert {value for name, value in options.items() if name.endswith(("_enable", "_force_timing_cache"))} <= {
            "True",
            "False",
        }

    def test_no_precision_is_switched_on(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        """With one, the provider builds a weakly typed network, and what was verified is not what runs."""
        onnxruntime_tensorrt.open_stage(action).close()
        options = library.asked[0][0][1]
        assert not {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & set(options)

    def test_all_varying_inputs_have_sizes(self, half_bundle: Path, sensor_bundle: Path, tmp_path: Path) -> None:
        def shapes(bundle: Path, name: str) -> tuple[str | None, ...]:
            stage = stage_files(bundle, name, variant="trt").stage
            options = provider_options(stage, SETTINGS.for_stage(stage), tmp_path, "x")
            return tuple(options.get(f"trt_profile_{end}_shapes") for end in ("min", "opt", "max"))

        assert shapes(half_bundle, "action") == ("history:1x10x7", "history:32x10x7", "history:256x10x7")
        assert shapes(half_bundle, "vision") == tuple(f"pixels:{size}x160x160x3" for size in (1, 1, 8))
        assert shapes(half_bundle, "context") == tuple(f"tokens:{size}x12x64" for size in (1, 1, 32))
        assert shapes(sensor_bundle, "steps") == tuple(f"samples:{size}x16x6" for size in (3, 8, 512))
        assert shapes(sensor_bundle, "sensor") == (None, None, None)  # its sizes are fixed

    def test_products_outside_of_it(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        """It would run, and more slowly than anybody thinks."""
        library.where = lambda operator, floats: CUDA if operator == "MatMul" else TENSORRT if floats else ort.CPU
        with pytest.raises(BackendError, match=rf"all arithmetic in {TENSORRT}\n.*\d+ x MatMul in {CUDA}"):
            onnxruntime_tensorrt.open_stage(action)

    def test_casts_and_copies_may_be_beside_it(
        self, library: PretendedLibrary, tensorrt: Path, action: StageFiles
    ) -> None:
        library.where = lambda operator, floats: CUDA if operator == "Cast" else TENSORRT if floats else ort.CPU
        onnxruntime_tensorrt.open_stage(action).close()

    def test_two_heads_of_one_architecture_have_engines_of_their_own(
        self, library: PretendedLibrary, tensorrt: Path, action: StageFiles
    ) -> None:
        """The same graph, other weights: the provider itself would not tell them apart."""
        for digest in ("0" * 64, "1" * 64, "0" * 64):
            onnxruntime_tensorrt.open_stage(replace(action, weights_digest=digest)).close()
        options = [asked[0][1] for asked in library.asked]
        for name in ("trt_engine_cache_path", "trt_engine_cache_prefix"):
            first, second, third = (each[name] for each in options)
            assert first == third != second
        assert len([path for path in tensorrt.iterdir() if path.is_dir()]) == 2

    @pytest.mark.parametrize("what", ["TensorRT", "onnxruntime", "driver", "device", "rows"])
    def test_an_engine_is_made_again_when_what_made_it_changes(
        self,
        library: PretendedLibrary,
        tensorrt: Path,
        action: StageFiles,
        monkeypatch: pytest.MonkeyPatch,
        what: str,
    ) -> None:
        onnxruntime_tensorrt.open_stage(action).close()
        changes: dict[str, Callable[[], object]] = {
            "TensorRT": lambda: monkeypatch.setattr(onnxruntime_tensorrt, "tensorrt_version", lambda: "10.7.0"),
            "onnxruntime": lambda: setattr(library, "__version__", "1.32.0"),
            "driver": lambda: monkeypatch.setattr(driver, "probe", lambda: replace(ORIN, driver="36.5")),
            "device": lambda: monkeypatch.setattr(driver, "probe", lambda: replace(ORIN, name="Orin Nano")),
            "rows": lambda: monkeypatch.setattr(
                onnxruntime_tensorrt, "SETTINGS", replace(SETTINGS, optimization_level=5)
            ),
        }
        changes[what]()
        onnxruntime_tensorrt.open_stage(action).close()
        first, second = (asked[0][1]["trt_engine_cache_path"] for asked in library.asked)
        assert first != second

    def test_weights_that_nobody_named(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        with pytest.raises(BackendError, match="without the digest of its stage's weights"):
            onnxruntime_tensorrt.open_stage(replace(action, weights_digest=None))

    def test_the_folder_is_sealed(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        onnxruntime_tensorrt.open_stage(action).close()
        folder = Path(library.asked[0][0][1]["trt_engine_cache_path"])
        assert folder.parent == tensorrt
        assert (folder / sealed.SEAL).is_file()

    def test_a_stage_that_fails_leaves_no_seal(
        self, library: PretendedLibrary, tensorrt: Path, action: StageFiles
    ) -> None:
        library.leaves_out = {TENSORRT}
        with pytest.raises(BackendError, match="left out a provider"):
            onnxruntime_tensorrt.open_stage(action)
        assert not list(tensorrt.glob(f"*/{sealed.SEAL}"))

    def test_int8_layers_cannot_be_counted(self, library: PretendedLibrary, tensorrt: Path, action: StageFiles) -> None:
        assert onnxruntime_tensorrt.int8_kernels(action) == 0
        with pytest.raises(BackendError, match=r"cannot be counted(.|\n)*use the back end tensorrt"):
            onnxruntime_tensorrt.int8_kernels(replace(action, graph=action.graph + b"QuantizeLinear"))

    def test_no_gpu_when_a_stage_is_opened(
        self, library: PretendedLibrary, tensorrt: Path, action: StageFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "probe", lambda: Missing("no NVIDIA driver", "install it"))
        with pytest.raises(BackendError, match=r"no CUDA here\n.*no NVIDIA driver\n.*install it"):
            onnxruntime_tensorrt.open_stage(action)


def test_the_version_of_a_tensorrt_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_packages, "libraries_problem", lambda library, providers: "libnvinfer.so.10: no such file")
    with pytest.raises(BackendError, match=r"TensorRT cannot be loaded\n.*libnvinfer.so.10(.|\n)*nvidia-jetpack"):
        onnxruntime_tensorrt.tensorrt_version()


def test_a_tensorrt_that_does_not_tell_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_packages, "libraries_problem", lambda library, providers: None)
    with pytest.raises(BackendError, match="does not say which version"):
        onnxruntime_tensorrt.tensorrt_version()
