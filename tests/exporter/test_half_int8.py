"""``trunkline export --precision int8 --half-int8``: one set of ranges and factors for both variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests import bound_backend
from tests.conftest import LOOSE_BUDGET
from tests.half_stages import STAGES
from tests.samples_kit import ACTIONS
from trunkline.calibration.int8.linears import array, find_linears, normalise
from trunkline.calibration.int8.outcome import CalibrationRecord, read_calibration
from trunkline.calibration.int8.recipe import Recipe
from trunkline.calibration.int8.smoothing import find_sites
from trunkline.calibration.samples.synthetic import frame, windows
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.cli import app
from trunkline.runtime import load
from trunkline.runtime.backends.tensorrt_layers import quantised_products
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import ExportError

#: Half precision beside int8: where it rounds a number to the other side, int8 takes the next step.
HALF_BESIDE_INT8 = 2e-2


def graph(bundle: Path, stage: str, variant: str) -> ir.Model:
    return ir.load(bundle / Bundle(bundle).manifest.stages[stage].variants[variant].graph)


def record_of(bundle: Path) -> CalibrationRecord:
    found = read_calibration(Bundle(bundle))
    assert found is not None
    return found


def constants(model: ir.Model, suffix: str) -> dict[str, NDArray[np.float32]]:
    return {name: array(each) for name, each in model.graph.initializers.items() if name.endswith(suffix)}


def test_the_same_layers_are_int8(half_int8_bundle: Path) -> None:
    manifest = Bundle(half_int8_bundle).manifest
    for stage in STAGES:
        layers = {
            each.name for each in record_of(half_int8_bundle).layers if each.stage == stage and each.precision == "int8"
        }
        assert layers
        assert manifest.stages[stage].variants["trt"].precision == "float16+int8"
        content = (half_int8_bundle / manifest.stages[stage].variants["trt"].graph).read_bytes()
        assert len(quantised_products(content)) == len(layers)


@pytest.mark.parametrize("stage", STAGES)
def test_with_the_same_ranges_and_weights(half_int8_bundle: Path, stage: str) -> None:
    """Weights to the last bit: they were smoothed alike. Scales as half precision can hold them."""
    cpu, trt = graph(half_int8_bundle, stage, "cpu"), graph(half_int8_bundle, stage, "trt")
    expected, found = constants(cpu, ".input_scale"), constants(trt, ".input_scale")
    assert expected.keys() == found.keys()
    for name, scale in expected.items():
        np.testing.assert_allclose(found[name], scale, rtol=1e-3, err_msg=name)
    weights = [{name: array(each) for name, each in model.graph.initializers.items()} for model in (cpu, trt)]
    int8 = [name for name, content in weights[1].items() if content.dtype == np.int8 and content.ndim == 2]
    assert len(int8) == len(expected)
    for name in int8:
        np.testing.assert_array_equal(weights[1][name], weights[0][name], err_msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_factors_can_be_moved_at_the_same_places(bundle: Path, single_stages: Path, stage: str) -> None:
    """Attention is one operator in one variant, and spelt out in the other."""
    places = []
    for path in (bundle / f"stages/{stage}/cpu.onnx", single_stages / stage / "single.onnx"):
        model = ir.load(path)
        normalise(model)
        places.append([[linear.name for linear in site.linears] for site in find_sites(model)])
    assert sorted(places[0]) == sorted(places[1])


def test_it_decides_as_the_variant_for_processors(half_int8_bundle: Path) -> None:
    random = np.random.default_rng()
    with load(half_int8_bundle, backend="onnxruntime") as cpu, Ensemble(Bundle(half_int8_bundle), bound_backend) as trt:
        assert trt.allowed_score_change == LOOSE_BUDGET.max_score_change
        for _ in range(3):
            image, histories = frame(random, 120, 160), windows(random, 12, ACTIONS)
            expected = cpu.score(image, "lift the lid", histories).scores
            found = trt.score(image, "lift the lid", histories).scores
            np.testing.assert_allclose(found, expected, atol=HALF_BESIDE_INT8)
            assert np.abs(found - expected).max() > 0


def test_nothing_speaks_against_tensorrt(half_int8_bundle: Path) -> None:
    for name, stage in Bundle(half_int8_bundle).manifest.stages.items():
        assert violations(half_int8_bundle / stage.variants["trt"].graph, "10.3") == [], name


def test_another_architecture_is_refused(single_stages: Path) -> None:
    model = ir.load(single_stages / "action" / "single.onnx")
    (first, *_) = find_linears(model)
    recipe = Recipe({first.name: 1.0, "nowhere": 1.0}, {frozenset({"here", "there"}): np.ones(3, np.float32)})
    with pytest.raises(ExportError) as caught:
        recipe.apply(model, "stage action, variant trt")
    for part in ("stage action", "nothing like nowhere", "nothing like here and there"):
        assert part in str(caught.value)
    assert first.name not in str(caught.value.found)


def test_ranges_come_from_a_calibration(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "a.pt", "-o", str(tmp_path / "b"), "--half-int8"])
    assert result.exit_code == 1
    assert "pass --precision int8 as well" in result.stderr
