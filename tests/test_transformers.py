"""Vision transformers, whose float parameters a GHN-3 predicts; quantization refuses them."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import GHN, CaptureError, GhnqWarning
from ghnq_quant.capture import capture
from ghnq_quant.zoos import create_model


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    sizes = {"hid": 8, "heads": 2, "layers": 1}
    return GHN((8, 8, 16, 16), 10, encoder="graphormer", **sizes).eval()


def vision_transformer(image_size: int = 32) -> nn.Module:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 20}
    return torchvision.models.VisionTransformer(image_size, 8, num_classes=10, **sizes)


def test_all_but_the_class_token_is_predicted(ghn: GHN) -> None:
    model = vision_transformer().eval()
    with pytest.warns(GhnqWarning, match="1 parameters keep their own initialization: class_token"):
        parameters = ghnq_quant.predict_parameters(
            model, ghn, example_input=torch.zeros(2, 3, 32, 32)
        )
    own = dict(model.named_parameters())
    assert [n for n, p in parameters.items() if torch.equal(p, own[n])] == ["class_token"]
    graph = capture(model, attention=True).arch_graph_by("ghn3")
    with torch.no_grad():
        (predicted,) = ghn([graph])
    positions = predicted["encoder.pos_embedding"]  # of patches, by their row and column
    assert positions.shape == (1, 12, 4, 4)
    found = parameters["encoder.pos_embedding"]
    assert torch.equal(found[0, 0], own["encoder.pos_embedding"][0, 0])
    for row in range(4):
        for column in range(4):
            assert torch.equal(found[0, 1 + 4 * row + column], positions[0, :, row, column])
    model.load_state_dict(parameters)
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_graphs_of_timm_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        models = timm.create_model("vit_base_patch16_224"), torchvision.models.vit_b_16()
    ours, theirs = (capture(m, attention=True).arch_graph_by("ghn3") for m in models)
    assert [(n.primitive, n.shape) for n in ours.nodes] == [
        (n.primitive, n.shape) for n in theirs.nodes
    ]
    assert sorted(ours.edges.tolist()) == sorted(theirs.edges.tolist())
    assert ours.classifier_weight == theirs.classifier_weight == 150


class Positions(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 10)
        self.positions = nn.Parameter(torch.zeros(1, tokens, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.positions).mean(1))


@pytest.mark.parametrize(("tokens", "predicted"), [(16, True), (17, True), (18, False), (3, False)])
def test_position_embeddings_of_square_images(tokens: int, predicted: bool, ghn: GHN) -> None:
    graph = capture(Positions(tokens)).arch_graph_by("ghn3")
    counts = graph.counts()
    assert counts.get("pos_enc", 0) == counts.get("sum", 0) == predicted
    if tokens == 16:
        parameters = ghnq_quant.predict_parameters(Positions(tokens), ghn)
        assert parameters["positions"].abs().min() > 0


def test_what_is_refused(ghn: GHN) -> None:
    model = vision_transformer()
    with pytest.raises(CaptureError, match="self_attention' is a MultiheadAttention"):
        ghnq_quant.init_quantized(model, 4, ghn=ghn)
    with pytest.raises(CaptureError, match="self_attention' is a MultiheadAttention"):
        ghnq_quant.predict_parameters(model)  # by a GHN-2
    model.encoder.layers[0].self_attention = nn.MultiheadAttention(12, 2, kdim=8, vdim=8)
    with pytest.raises(CaptureError, match="self_attention' is a MultiheadAttention"):
        ghnq_quant.predict_parameters(model, ghn)


@pytest.mark.parametrize("name", ["torchvision:swin_v2_t", "timm:swinv2_tiny_window8_256"])
def test_swin_v2_is_refused_by_name(name: str, ghn: GHN) -> None:
    with torch.device("meta"):
        model = create_model(name, 10)
    with pytest.raises(CaptureError, match=r"WindowAttention.* is attention of Swin V2"):
        ghnq_quant.predict_parameters(model, ghn)
