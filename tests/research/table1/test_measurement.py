"""Measuring one network by the paper's protocol equals a naive loop."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from table1_setting import Net

from ghnq_quant import GHN, GhnqError, QuantScheme, predict_parameters, quantize
from ghnq_quant.research.data import Images, evaluation_batches
from ghnq_quant.research.table1 import distribution, measure_network

FLOAT = (32, 32)
PRECISIONS = (FLOAT, (8, 8), (4, 8), (2, 2))


def naive(
    ghn: GHN,
    precision: tuple[int, int],
    images: Images,
    count: int,
    limit: float | None = None,
) -> torch.Tensor:
    """Logits at one precision, from a new model and a separate pass, with nothing shared."""
    model = Net()
    model.load_state_dict(predict_parameters(model, ghn, bits=precision), strict=False)
    if precision != FLOAT:
        scheme = QuantScheme(*precision, act_range="batch", bn="batch", channel_limit=limit)
        model = quantize(model, scheme=scheme, backend="reference")
    model.train()  # every batch norm, folded or not, with the statistics of the batch
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in evaluation_batches(images, 64, limit=count)])


@pytest.mark.parametrize(
    ("ghn_name", "limit"), [("tiny_ghn", None), ("embedded_ghn", None), ("tiny_ghn", 1.5)]
)
def test_all_precisions_in_one_pass_equal_naive_passes(ghn_name, limit, images, request):
    ghn, count = request.getfixturevalue(ghn_name), 200
    labels = torch.cat([y for _, y in evaluation_batches(images, 64, limit=count)])
    result = measure_network(
        Net(),
        ghn,
        images,
        PRECISIONS,
        group="net",
        index=0,
        num_images=count,
        channel_limit=limit,
    )
    reference = {p: naive(ghn, p, images, count, limit) for p in PRECISIONS}
    for precision, name in zip(PRECISIONS, result.precisions, strict=True):
        measured, logits = result.precisions[name], reference[precision]
        top1 = (logits.argmax(1) == labels).double().mean().item() * 100
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert measured.top1 == pytest.approx(top1, abs=1e-9)
        assert measured.top5 == pytest.approx((ranks < 5).double().mean().item() * 100, abs=1e-9)
        assert measured.nonfinite_images == 0
    assert result.images == count
    assert result.parameters == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("ghn_name", ["tiny_ghn", "embedded_ghn"])
def test_logits_error_is_against_the_float_network_with_the_same_parameters(
    ghn_name, images, request
):
    ghn = request.getfixturevalue(ghn_name)
    result = measure_network(Net(), ghn, images, PRECISIONS, group="", index=0, num_images=64)
    float_net = Net().train()
    bits = (4, 8)
    float_net.load_state_dict(predict_parameters(float_net, ghn, bits=bits), strict=False)
    ((x, _),) = evaluation_batches(images, 64, limit=64)
    r = float_net(x).detach().double()
    q = naive(ghn, bits, images, 64).double()
    measured = result.precisions["W4/A8"]
    assert measured.output_mse == pytest.approx(((r - q) ** 2).mean().item(), rel=1e-3)
    expected = 10 * math.log10((r**2).sum() / ((r - q) ** 2).sum())
    assert measured.output_snr_db == pytest.approx(expected, abs=0.01)
    assert result.precisions["float"].output_snr_db is None


def test_weight_error_is_of_the_folded_weights(tiny_ghn, images):
    result = measure_network(Net(), tiny_ghn, images, PRECISIONS, group="", index=0, num_images=64)
    net = Net()
    net.load_state_dict(predict_parameters(net, tiny_ghn), strict=False)
    ((x, _),) = evaluation_batches(images, 64, limit=64)
    z = net.stem(x)
    h = torch.relu(net.norm(z))
    folded = [
        w * (n.weight / (z.var((0, 2, 3), correction=0) + n.eps).sqrt()).view(-1, 1, 1, 1)
        for w, n, z in (
            (net.stem.weight, net.norm, z),
            (net.depthwise.weight, net.norm2, net.depthwise(h)),
        )
    ]
    signal = noise = 0.0
    for w in (*folded, net.conv.weight, net.head.weight):
        w = w.detach()
        low, high = min(w.min().item(), 0), max(w.max().item(), 0)
        scale = (high - low) / 15
        q = torch.fake_quantize_per_tensor_affine(w, scale, round(-low / scale), 0, 15)
        signal += w.double().square().sum().item()
        noise += (w - q).double().square().sum().item()
    snr = 10 * math.log10(signal / noise)
    assert result.precisions["W4/A8"].weight_snr_db == pytest.approx(snr, abs=0.02)
    assert result.precisions["float"].weight_snr_db is None


def test_the_network_given_is_not_changed_and_the_result_is_deterministic(tiny_ghn, images):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    results = [
        measure_network(net, tiny_ghn, images, PRECISIONS, group="", index=3, num_images=64)
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    first, second = ({**r.to_json(), "seconds": 0} for r in results)
    assert first == second


def test_images_with_logits_that_are_not_finite_count_as_wrong(tiny_ghn, images):
    class Overflowing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1e38 * 1e38

    result = measure_network(
        Overflowing(), tiny_ghn, images, PRECISIONS, group="", index=0, num_images=64
    )
    for measured in result.precisions.values():
        assert measured.nonfinite_images > 0
        assert measured.top1 <= 100 * (64 - measured.nonfinite_images) / 64
        assert measured.output_snr_db is None
    json.dumps(result.to_json(), allow_nan=False)


def test_the_last_batch_is_kept_unless_it_is_a_single_image(tiny_ghn, images):
    def measured(images: Images, num_images: int | None) -> tuple[int, int]:
        seen = []
        result = measure_network(
            Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=num_images,
            on_batch=lambda: seen.append(1),
        )  # fmt: skip
        return result.images, len(seen)

    expected = {
        64: (64, 1),
        65: (64, 1),
        66: (66, 2),
        129: (128, 2),
        1000: (300, 5),
        None: (300, 5),
    }
    assert {n: measured(images, n) for n in expected} == expected
    assert measured(images.select(torch.arange(129)), None) == (128, 2)


def test_layers_are_described_as_predicted_initial_and_trained(tiny_ghn, images):
    trained = Net()
    result = measure_network(
        Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=64,
        trained=trained.state_dict(),
    )  # fmt: skip
    assert [(x.name, x.depthwise) for x in result.layers] == [
        ("stem", False), ("depthwise", True), ("conv", False), ("head", False)
    ]  # fmt: skip
    predicted = predict_parameters(trained, tiny_ghn)
    for layer in result.layers:
        assert list(layer.sources) == ["predicted", "initial", "trained"]
        for source, state in (("predicted", predicted), ("trained", trained.state_dict())):
            expected = distribution(state[f"{layer.name}.weight"])
            assert layer.sources[source]["kurtosis"] == pytest.approx(expected.kurtosis, rel=1e-4)
            assert layer.sources[source]["mismatch"] == pytest.approx(expected.mismatch, rel=1e-4)
        # PyTorch's initialization is uniform
        assert layer.sources["initial"]["kurtosis"] == pytest.approx(1.8, abs=0.5)
    unfolded = [x for x in result.layers if x.name in ("conv", "head")]
    assert all(s["mismatch"] == s["folded_mismatch"] for x in unfolded for s in x.sources.values())
    with pytest.raises(GhnqError, match=r"stem.weight has shape \(8, 3, 3, 3\)"):
        measure_network(
            Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=64,
            trained=Net(width=4).state_dict(),
        )  # fmt: skip
