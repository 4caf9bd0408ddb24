"""Values from inside a stage are those the stage computes, and its weights stay where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.statistics_kit import HIDDEN, TOKENS, VALUES, batch, expected, save_stage
from trunkline.calibration.statistics.watch import Watch
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, BundleError, InputError


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stage(tmp_path_factory.mktemp("stage"))


def test_values_are_rows_of_channels(stage: Path) -> None:
    with Watch("toy", stage, VALUES) as watch:
        found = {name: rows.copy() for name, rows in watch.run({"x": batch(0)})}
    assert found["hidden"].shape == (2 * TOKENS, HIDDEN)
    np.testing.assert_array_equal(found["x"], expected([0])["x"])
    np.testing.assert_allclose(found["hidden"], expected([0])["hidden"], atol=1e-5)


def test_several_runs_and_sizes(stage: Path) -> None:
    with Watch("toy", stage, ["hidden"]) as watch:
        for index in (0, 1, 0):
            (_, rows), *rest = watch.run({"x": batch(index)})
            assert not rest
            np.testing.assert_allclose(rows, expected([index])["hidden"], atol=1e-5)


def test_only_inputs_need_no_session(stage: Path) -> None:
    (stage.parent / "other").mkdir()
    copied = Path(shutil.copy(stage, stage.parent / "other"))
    shutil.copy(stage.with_name("cpu.weights"), copied.parent)
    watch = Watch("toy", copied, ["x"])
    copied.unlink()
    assert [name for name, _ in watch.run({"x": batch(1)})] == ["x"]


def test_an_output_and_a_repeated_name(stage: Path) -> None:
    with Watch("toy", stage, ["y", "hidden", "y"]) as watch:
        assert watch.values == ("y", "hidden")
        assert [name for name, _ in watch.run({"x": batch(1)})] == ["y", "hidden"]


def test_nothing_behind_the_last_value_is_computed(stage: Path) -> None:
    """The graph still names the weights of the last layer, but nobody asks for its output."""
    with Watch("toy", stage, ["hidden"]) as watch:
        list(watch.run({"x": batch(1)}))
        assert [each.name for each in watch._session.get_outputs()] == ["hidden"]


def test_linear_inputs_of_a_real_stage(bundle: Path) -> None:
    checked = Bundle(bundle)
    path = bundle / checked.manifest.stages["vision"].variants["cpu"].graph
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    values = [node.input[0] for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    spec = checked.manifest.stages["vision"].inputs[0]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *map(int, spec.shape[1:])), np.uint8)
    before = sorted(path.name for path in bundle.rglob("*"))
    with Watch("vision", path, values) as watch:
        found = {name: rows.shape for name, rows in watch.run({"pixels": pixels})}
    assert set(found) == set(values)
    assert len(found) > 4
    assert {rows for rows, _ in found.values()} == {2 * 101}  # patches and a class token
    assert sorted(path.name for path in bundle.rglob("*")) == before


def test_the_digest_is_of_the_content(stage: Path, tmp_path: Path) -> None:
    same, other = save_stage(tmp_path / "same"), save_stage(tmp_path / "other", seed=1)
    digest = Watch("toy", stage, VALUES).digest
    assert Watch("toy", same, VALUES).digest == digest
    assert other.read_bytes() == same.read_bytes(), "the weights alone must make the difference"
    assert Watch("toy", other, VALUES).digest != digest


def test_unknown_values_are_all_named(stage: Path) -> None:
    with pytest.raises(InputError) as caught:
        Watch("toy", stage, ["hidden", "nowhere", "first", "neither"])
    assert caught.value.found == ["nowhere", "first", "neither"]
    assert "stage toy" in str(caught.value)


def test_integers_cannot_be_watched(bundle: Path) -> None:
    checked = Bundle(bundle)
    watch = Watch("text", bundle / checked.manifest.stages["text"].variants["cpu"].graph, ["ids"])
    with pytest.raises(InputError, match=r"stage text, ids[\s\S]*int64"):
        list(watch.run({"ids": np.zeros((1, 8), np.int64)}))


def test_no_graph(tmp_path: Path) -> None:
    (tmp_path / "cpu.onnx").write_bytes(b"\xff\xffno protobuf")
    with pytest.raises(BundleError, match="malformed"):
        Watch("toy", tmp_path / "cpu.onnx", VALUES)


def test_weights_elsewhere(stage: Path, tmp_path: Path) -> None:
    model = onnx.load(stage, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../cpu.weights"
    (tmp_path / "cpu.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"beside its graph[\s\S]*\.\./cpu\.weights"):
        Watch("toy", tmp_path / "cpu.onnx", VALUES)


def test_missing_weights(stage: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(stage, tmp_path))
    with pytest.raises(BundleError, match=r"cpu\.weights"):
        Watch("toy", copied, VALUES)


def test_the_library_fails(stage: Path) -> None:
    with Watch("toy", stage, VALUES) as watch, pytest.raises(BackendError, match="stage toy"):
        list(watch.run({"x": np.zeros((1, TOKENS, 3), np.float32)}))
