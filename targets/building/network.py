"""A stage's graph becomes an engine, with TensorRT, on the device that is to run it.

Requires: a checked graph, its weight file beside it, and a caller that holds ``Bundle.unchanged`` on that file.
Ensures: the network is the graph's, types included (nothing is left to the builder but the choice of kernels); its
inputs and outputs are the contract's; sizes may vary as far as the settings say and no further. Refuses: graphs with
plugins, and what the parser does not read, naming every node.

*What was scanned is what is read.* The parser is given the checked bytes. For weights outside the graph it asks for a
path of a file, and looks beside it for the name that stands in the graph. No file of that path needs to be there.

**This has never built an engine.** Calls were checked against the bindings of 10.3 to 11.4.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from trunkline.runtime.backends import Missing, StageFiles, tensorrt
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.backends.contract import check_signature
from trunkline.runtime.backends.tensorrt_log import TensorRtError, asking
from trunkline.runtime.backends.tensorrt_members import BUILD, lacking
from trunkline.runtime.backends.tensorrt_session import TensorRtSession, shape_at
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.settings import BuildRequest, BuildSettings, BuiltEngine, varying
from trunkline.runtime.errors import BackendError, InputError
from trunkline.runtime.manifest import Stage, fewest
from trunkline.runtime.onnx_graph import weight_file
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.record import shortened
from trunkline.targets.building.progress import BuildProgress

_FIX = (
    "if memory ran out, stop other programs (on a Jetson also the desktop) or lower the target's workspace_bytes; "
    "otherwise update TensorRT, or report the stage"
)


class TensorRtBuilder:
    """Compiles stages with the TensorRT of this machine. One thread at a time.

    Attributes:
        variant: of the stages that it compiles.
    """

    variant = tensorrt.VARIANT

    def __init__(self) -> None:
        """Looks for GPU and library.

        Raises:
            BackendError: one of them is missing, or the library cannot build.
        """
        self._trt = builder_library()
        self._device = tensorrt.device()

    @property
    def library(self) -> Library:
        """TensorRT, with its whole version."""
        return tensorrt.library()

    @property
    def device(self) -> Device:
        """This machine's GPU."""
        return self._device

    def build(self, request: BuildRequest, progress: Progress = silent) -> BuiltEngine:
        """Compiles a stage; takes minutes, and lets other threads run.

        Args:
            request: the stage, and how.
            progress: told in thousandths of each phase; what it raises stops the build and is raised here.

        Raises:
            BackendError: the parser refuses nodes, all of which are named; a setting is not one of this version's; or
                no engine could be built.
            BundleError: the graph's inputs or outputs are not the manifest's.
            InputError: the settings do not fit the stage.
        """
        files, settings = request.stage, request.settings
        watcher = BuildProgress(files.name, progress)
        with asking("TensorRT cannot build a stage", where=f"stage {files.name}", fix=_FIX):
            builder = api.new_builder(self._trt)
            # The network reads the parser's memory until it is built.
            network, _parser = _parsed(self._trt, builder, files)
            config = _configured(self._trt, builder, files.stage, settings)
            cache = api.use_timing_cache(config, request.timing_cache)
            api.watch(self._trt, config, watcher)
            try:
                plan = api.build(builder, network, config)
            except TensorRtError:
                watcher.raise_if_stopped()
                raise
            watcher.raise_if_stopped()
            return BuiltEngine(plan, api.measurements(cache))

    def open_engine(self, plan: bytes, stage: Stage) -> TensorRtSession:
        """Loads an engine that was compiled here.

        Raises:
            BackendError: TensorRT refuses it, or there is too little memory.
            BundleError: its inputs or outputs are not the stage's.
        """
        return TensorRtSession(self._trt, plan, stage)

    def int8_layers(self, plan: bytes, files: StageFiles) -> int:
        """How many linear layers of a stage run in int8 in an engine that was compiled here.

        Raises:
            BackendError: TensorRT refuses the engine, or it does not tell.
        """
        return tensorrt.int8_layers_of(self._trt, plan, files)


def builder_library() -> ModuleType:
    """The library, if it can build engines here.

    Raises:
        BackendError: it cannot, or there is no GPU.
    """
    missing = tensorrt.available()
    if missing is None and api.is_lean(api.library()):
        missing = Missing("only the lean runtime of TensorRT is installed, which builds no engines", tensorrt.INSTALL)
    if missing is None and (gone := lacking(api.library(), BUILD)):
        missing = Missing(f"TensorRT {api.version(api.library())} lacks {', '.join(gone)}", "update trunkline")
    if missing is not None:
        raise BackendError("engines cannot be built here", found=missing.reason, fix=missing.fix)
    return api.library()


def _parsed(trt: ModuleType, builder: Any, files: StageFiles) -> tuple[Any, Any]:
    """The stage as a network, and the parser whose memory it uses."""
    network = api.new_network(trt, builder)
    path = str(files.folder / "stage.onnx") if weight_file(files.graph) else None
    parser, problems = api.parse(trt, network, files.graph, path)
    if problems:
        raise BackendError(
            "TensorRT's parser refuses a stage",
            where=f"stage {files.name}",
            expected=f"what TensorRT {api.version(trt)} reads",
            found=shortened(problems),
            fix="update TensorRT, or export with another version of trunkline, and please report the architecture",
        )
    check_signature(files, *api.network_ports(network))
    return network, parser


def _configured(trt: ModuleType, builder: Any, stage: Stage, settings: BuildSettings) -> Any:
    config = api.new_config(
        trt,
        builder,
        workspace_bytes=settings.workspace_bytes,
        optimization_level=settings.optimization_level,
    )
    api.set_compatibility(
        trt, config, version_compatible=settings.version_compatible, hardware=settings.hardware_compatibility
    )
    if shapes := profile_shapes(stage, settings):
        api.add_profile(builder, config, shapes)
    return config


def profile_shapes(stage: Stage, settings: BuildSettings) -> dict[str, tuple[api.Shape, api.Shape, api.Shape]]:
    """Smallest, usual and largest shape of every input that varies.

    A dimension that no call has fewer of than some number is not built for less, whatever the settings allow.

    Raises:
        InputError: the settings say nothing of a varying dimension, or allow fewer than every call has.
    """
    sizes: dict[str, tuple[int, int, int]] = {}
    for letter in varying(stage):
        rows, least = settings.rows(letter), fewest(letter)
        if rows.maximum < least:
            raise InputError(
                "the batch profile allows less than any call has",
                where=f"dimension {letter}",
                expected=f"a maximum of {least} or more",
                found=rows.maximum,
                fix="raise it in the target's batch profile",
            )
        sizes[letter] = (max(least, rows.minimum), max(least, rows.optimum), rows.maximum)
    shapes = {}
    for spec in stage.inputs:
        if any(isinstance(size, str) for size in spec.shape):
            least_usual_most = [{letter: each[place] for letter, each in sizes.items()} for place in range(3)]
            smallest, usual, largest = (shape_at(spec, each) for each in least_usual_most)
            shapes[spec.name] = (smallest, usual, largest)
    return shapes
