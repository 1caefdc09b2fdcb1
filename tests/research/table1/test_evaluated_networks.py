"""The networks of an evaluation: settings, places, models and states."""

from __future__ import annotations

import pytest
import torch
from table1_setting import random_images

from ghnq_quant import CheckpointError, GhnqError, SchemeError
from ghnq_quant.files import read_state
from ghnq_quant.research.table1.networks import network_places, open_network
from ghnq_quant.research.table1.settings import EvaluationSettings, parse_precisions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 63}, "--num-images 63"),
        ({"num_nets": 0}, "--num-nets 0"),
        ({"splits": ("test", "test")}, "named twice"),
        ({"splits": ()}, "either splits"),
        ({"models": ("resnet18",)}, "either splits"),
        ({"trained": "a.pt"}, "name it with --model"),
        ({"splits": (), "models": ("a", "b"), "trained": "a.pt"}, "of one model"),
        ({"splits": (), "models": ("a", "a")}, "named twice"),
        ({"adapt_stem": True}, "for models of --model"),
        ({"splits": (), "models": ("resnet18",), "num_nets": 2}, "a named model is one"),
        ({"precisions": ((8, 8),)}, "must be float"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(GhnqError, match=message):
        EvaluationSettings(**{"data": "digits", **settings})


def test_precisions_by_name():
    assert parse_precisions(["W4/A4", "float", "W4/A4"]) == ((32, 32), (4, 4))
    with pytest.raises(SchemeError, match="precision 'floats'"):
        parse_precisions(["floats"])


def test_places_and_models():
    settings = EvaluationSettings("digits", splits=("test", "mobile"), num_nets=2)
    places = network_places(settings)
    assert places == [("test", 0), ("test", 1), ("mobile", 0), ("mobile", 1)]
    with pytest.raises(GhnqError, match="split mobile has 100 networks, not 101"):
        network_places(EvaluationSettings("digits", splits=("mobile",), num_nets=101))
    ten = random_images(64, seed=0, side=32)
    named = EvaluationSettings("digits", splits=(), models=("mobilenet_v2",))
    model = open_network(named, network_places(named)[0], ten)
    assert model.classifier[1].out_features == 10
    assert model.features[0][0].stride == (2, 2)
    adapted = EvaluationSettings(
        "digits", splits=(), models=("timm:mobilenetv2_050", "mobilenet_v2"), adapt_stem=True
    )
    assert "--adapt-stem" in adapted.command().split()
    places = network_places(adapted)
    assert places == [("timm:mobilenetv2_050", 0), ("mobilenet_v2", 0)]
    assert open_network(adapted, places[0], ten).conv_stem.stride == (1, 1)
    wrong = EvaluationSettings("digits", splits=(), models=("mobilnet_v2",))
    with pytest.raises(GhnqError, match="did you mean mobilenet_v2"):
        open_network(wrong, ("mobilnet_v2", 0), ten)


def test_trained_states(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert torch.equal(read_state(tmp_path / "a.pt")[0]["a"], torch.ones(2))
    torch.save({"a": 1}, tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    for name in ("b.pt", "c.safetensors", "d.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
