"""A small model of each of timm's modules goes through every stage; the measurement itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghnq_quant import GhnqError
from ghnq_quant.research.coverage.run import measure_coverage
from ghnq_quant.research.coverage.stages import STAGES, Measurement, ModelCoverage
from ghnq_quant.research.coverage.zoo import Model, zoo_models
from ghnq_quant.research.runs.journal import read_journal

SMALL = (
    "test_byobnet",
    "test_convnext",
    "cs3darknet_focus_s",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "test_efficientnet",
    "fasternet_t0",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "lcnet_035",
    "test_nfnet",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "resnest14d",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "legacy_seresnet18",
    "skresnet18",
    "starnet_s050",
    "ese_vovnet19b_slim_dw",
)
#: The smallest of their modules, but too large for a quick test: only the first four stages run.
LARGE = (
    "convmixer_768_32",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "nasnetalarge",
    "pnasnet5large",
    "rdnet_tiny",
    "res2next50",
    "selecsls42",
    "tresnet_m",
    "vgg11",
    "legacy_xception",
    "xception41p",
)


#: Also tested with the default backend's layers, which takes three times as long.
BY_BREVITAS = ("test_byobnet", "test_convnext", "test_nfnet", "inception_v3")


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_smallest_model_of_each_module(name: str) -> None:
    (model,) = zoo_models("timm", name)
    memory = 8 * 2**30 if name in SMALL else 0
    backend = "brevitas" if name in BY_BREVITAS else "reference"
    *_, found = Measurement(backend=backend, memory=memory).results(model)
    assert (found.failed, found.reason) == (None, "")
    assert tuple(found.seconds) == (STAGES if name in SMALL else STAGES[:4])


def test_every_module_of_timm_has_its_sample() -> None:
    families = {model.family for name in (*SMALL, *LARGE) for model in zoo_models("timm", name)}
    assert families == {model.family for model in zoo_models("timm")}


def test_a_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    models = [*zoo_models("timm", "test_resnet"), Model("timm", "none", "no_such_model")]
    measure_coverage(models[:1], tmp_path)
    lines = (tmp_path / "coverage.jsonl").read_bytes()
    (tmp_path / "coverage.jsonl").write_bytes(lines + b'{"cut')
    first, second = measure_coverage(models, tmp_path)
    assert (tmp_path / "coverage.jsonl").read_bytes().startswith(lines)
    assert (first.failed, second.failed) == (None, "create")
    assert "no_such_model" in second.reason
    page = (tmp_path / "coverage.md").read_text("utf-8")
    assert "**timm: 1 of 2 models pass (50.0 %)**" in page
    assert "no_such_model" in page
    written = read_journal(tmp_path / "coverage.jsonl", ModelCoverage)
    assert written == {models[0]: first, models[1]: second}


def test_another_measurement_needs_another_folder(tmp_path: Path) -> None:
    models = zoo_models("timm", "test_resnet")
    with pytest.raises(GhnqError, match="unknown backend 'junk'"):
        measure_coverage(models, tmp_path, Measurement(backend="junk"))
    assert list(tmp_path.iterdir()) == []
    measure_coverage(models, tmp_path, Measurement(backend="reference"))
    page = (tmp_path / "coverage.md").read_text("utf-8")
    for other in (Measurement(bits=(8, 8), backend="reference"), Measurement()):
        with pytest.raises(GhnqError, match=r"identity\.(bits|backend)="):
            measure_coverage(models, tmp_path, other)
    assert (tmp_path / "coverage.md").read_text("utf-8") == page


def test_an_exported_model_gets_images_of_its_size() -> None:
    pytest.importorskip("torchao")
    (model,) = zoo_models("timm", "test_resnet")
    *_, found = Measurement(backend="pt2e").results(model)
    assert (found.failed, found.reason) == (None, "")


def test_a_model_beyond_the_limit_of_memory_is_told(tmp_path: Path) -> None:
    """A process that is allowed less memory than its code takes fails, and the parent goes on."""
    tight = Measurement(memory=2**28)
    (result,) = measure_coverage(zoo_models("timm", "test_resnet"), tmp_path, tight)
    assert result.failed is not None
    assert result.reason


def test_no_such_models() -> None:
    with pytest.raises(GhnqError, match="no adapter 'zoo'; installed are:"):
        zoo_models("zoo")
    with pytest.raises(GhnqError, match="no model matches 'nothing\\*'"):
        zoo_models(None, "nothing*")
