"""Gradients of a network's parameters and of the hypernetwork in a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ghnq_quant import GHN, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.quantization import emit, load_backend
from ghnq_quant.research.data import ImageSet, training_batch
from ghnq_quant.research.finetuning.functional import FunctionalNetwork
from ghnq_quant.research.finetuning.step import Network, backward_meta_batch
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork


def simulated(item: SampledNetwork, bits: tuple[int, int], limit: float | None = None) -> nn.Module:
    """The network as modules, in train mode with the ranges of the batch."""
    network = item.build(initialize=False).train()
    if bits == (32, 32):
        return network
    scheme = QuantScheme(*bits, act_range="batch", bn="batch", channel_limit=limit)
    return emit(capture(network), scheme, load_backend("reference"))


@pytest.mark.parametrize("split", ["train", "mobile", "bn_free"])
@pytest.mark.parametrize(
    ("bits", "limit"),
    [((32, 32), None), ((4, 4), None), ((2, 8), 2.0), ((8, 32), None), ((32, 8), None)],
)
def test_a_functional_network_computes_what_its_modules_do(
    split: str, bits: tuple[int, int], limit: float | None
) -> None:
    ghn = bootstrap()
    x = torch.randn(4, 3, 32, 32)
    for index in range(4 if bits in ((32, 32), (4, 4)) else 2):
        item = ConvNets250K(split)[index]
        (predicted,) = ghn([item.graph])
        network = simulated(item, bits, limit)
        if bits == (32, 32):  # small maps sum in another order, so compare in float64
            predicted = {name: p.double() for name, p in predicted.items()}
            network, x = network.double(), x.double()
        parameters = {name: p.detach().requires_grad_() for name, p in predicted.items()}
        logits = FunctionalNetwork(item.program, bits, limit)(parameters, x)
        expected = functional_call(network, parameters, (x,))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11 * (bits == (32, 32)))
        values = list(parameters.values())
        gradients = torch.autograd.grad(logits.square().sum(), values, retain_graph=True)
        expected_gradients = torch.autograd.grad(expected.square().sum(), values)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.norm())


def test_a_range_s_gradient_reaches_what_sets_it() -> None:
    item = ConvNets250K("mobile")[2]
    (predicted,) = bootstrap()([item.graph])
    parameters = {name: p.detach().requires_grad_() for name, p in predicted.items()}
    x, values = torch.randn(4, 3, 32, 32), list(parameters.values())
    results = []
    for passed in (False, True):
        logits = FunctionalNetwork(item.program, (4, 4), 2.0, passed)(parameters, x)
        results.append((logits, torch.autograd.grad(logits.square().sum(), values)))
    (plain, straight), (same, aware) = results
    torch.testing.assert_close(same, plain, rtol=0, atol=0)
    assert all(g.isfinite().all() for g in aware)
    assert sum(not torch.equal(a, b) for a, b in zip(straight, aware, strict=True)) > 10


def bootstrap() -> GHN:
    """Its filters are small enough for networks without batch norms, and new batch norms keep
    gradients finite at 4 bits."""
    return GHN.from_pretrained("ghn2-cifar10-bootstrap").derived(
        precision_embedding=True, precision_decoder=True, new_batch_norms=True
    )


def gradients(ghn: GHN) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in ghn.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("bits", "new_norms"), [((32, 32), False), ((4, 8), False), ((4, 8), True)]
)
def test_two_stage_backward_is_the_gradient_of_the_mean_loss(
    digits: ImageSet, bits: tuple[int, int], new_norms: bool
) -> None:
    train = ConvNets250K("train")
    items = [train[i] for i in (0, 1, 2)]
    x, y = training_batch(digits.train, 0, 8, seed=0)
    ghn = bootstrap().derived(new_batch_norms=new_norms)
    networks = [FunctionalNetwork(item.program, bits) for item in items]
    result = backward_meta_batch(
        ghn, [i.graph for i in items], networks, [bits] * 3, [[(x, y)]] * 3
    )
    two_stage = gradients(ghn)

    ghn.zero_grad()
    losses, clipped = [], []
    for item in items:
        (parameters,) = ghn([item.graph], [bits])
        for p in parameters.values():
            p.requires_grad_()  # a new batch norm's, too
        loss = F.cross_entropy(functional_call(simulated(item, bits), parameters, (x,)), y)
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        norm = torch.cat([g.flatten() for g in found]).norm()
        losses.append(loss)
        clipped.append(loss * min(1.0, 10 / norm.item()))
    torch.stack(clipped).mean().backward()

    assert result.losses == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    assert result.failed == 0
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(
            two_stage[name], gradient, rtol=1e-3, atol=1e-5 * gradient.norm()
        )


def test_inner_steps_add_the_gradients_along_the_way(digits: ImageSet) -> None:
    item = ConvNets250K("train")[1]
    batches = [training_batch(digits.train, step, 8, seed=0) for step in range(3)]
    ghn = GHN.from_pretrained("ghnq-cifar10")
    network = FunctionalNetwork(item.program)
    inner_lr = 0.05
    backward_meta_batch(ghn, [item.graph], [network], [(32, 32)], [batches], inner_lr=inner_lr)
    result = gradients(ghn)

    ghn.zero_grad()
    (predicted,) = ghn([item.graph])
    values = {name: p.detach().clone() for name, p in predicted.items()}
    sums = {name: torch.zeros_like(p) for name, p in predicted.items()}
    for x, y in batches:
        leaves = {name: p.requires_grad_() for name, p in values.items()}
        F.cross_entropy(network(leaves, x), y).backward()
        norm = torch.cat([p.grad.flatten() for p in leaves.values()]).norm()
        for name, p in leaves.items():
            sums[name] += p.grad * min(1.0, 10 / norm) / 3
            values[name] = (p - inner_lr * p.grad / max(1.0, norm)).detach()
    torch.autograd.backward(list(predicted.values()), list(sums.values()))
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-3, atol=1e-5 * gradient.norm())


def failing(error: Exception) -> Network:
    """A network that fails when it is run."""

    def fail(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        raise error

    return fail


def test_a_network_that_runs_out_of_memory_costs_its_own_gradient_alone(digits: ImageSet) -> None:
    item = ConvNets250K("train")[1]  # its gradient is not clipped
    x, y = training_batch(digits.train, 0, 8, seed=0)
    ghn = bootstrap()
    network = FunctionalNetwork(item.program)
    (parameters, _) = ghn([item.graph] * 2)
    (F.cross_entropy(network(parameters, x), y) / 2).backward()
    alone = gradients(ghn)
    ghn.zero_grad()
    networks: list[Network] = [network, failing(torch.OutOfMemoryError("no memory left"))]
    result = backward_meta_batch(ghn, [item.graph] * 2, networks, [(32, 32)] * 2, [[(x, y)]] * 2)
    assert result.failed == 1
    assert len(result.losses) == 1
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-7)


def test_another_error_is_not_swallowed(digits: ImageSet) -> None:
    item = ConvNets250K("train")[0]
    x, y = training_batch(digits.train, 0, 8, seed=0)
    with pytest.raises(RuntimeError, match="a mistake"):
        backward_meta_batch(
            bootstrap(),
            [item.graph],
            [failing(RuntimeError("a mistake"))],
            [(32, 32)],
            [[(x, y)]],
        )
