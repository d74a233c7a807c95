"""AdamW alone, and with Muon on the hidden kernels: what moves how, and what is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pcdm_lib.models import UNet
from pcdm_lib.training.optimisers import Muon, make_optimiser, orthogonalise

SETTINGS = {"learning_rate": 1e-3, "muon_rate": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.01}


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 3, channels=(8, 8), blocks=1, dropout=0.0).to(memory_format=torch.channels_last)


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def test_who_moves_what() -> None:
    """Each parameter belongs to one optimiser; hidden kernels to Muon; entry, exit, biases, norms,
    noise level to AdamW."""
    net = network()
    optimiser = make_optimiser(net, "muon", **SETTINGS)
    muon = {p.data_ptr() for p in optimiser.parts["muon"].param_groups[0]["params"]}
    adamw = {p.data_ptr() for p in optimiser.parts["adamw"].param_groups[0]["params"]}
    names = {name for name, p in net.named_parameters() if p.data_ptr() in muon}
    assert not muon & adamw and muon | adamw == {p.data_ptr() for p in net.parameters()}
    assert {
        "down.0.conv_in.weight",
        "middle_attention.qkv.weight",
        "down.1.weight",
        "up.2.weight",
    } <= names
    assert names == {
        n
        for n, p in net.named_parameters()
        if p.ndim == 4 and n not in ("entry.weight", "exit.weight")
    }


def test_a_muon_step_is_orthogonal() -> None:
    """Law: the first step of a kernel is rate * sqrt(max(1, out / in)) times a matrix whose
    singular values are near 1."""
    net = network()
    before = copy.deepcopy(net)
    optimiser = make_optimiser(net, "muon", **SETTINGS)
    set_gradients(net, 1)
    optimiser.step()
    kernel, old = net.down[0].conv_in.weight, before.down[0].conv_in.weight
    singular = torch.linalg.svdvals((old - kernel).detach().flatten(1)) / 0.02
    # Newton and Schulz come that near in five steps
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.4
    step = (before.entry.weight - net.entry.weight).detach().abs()
    # AdamW's first step is its rate in every weight, and its decay
    assert float(step.max()) < 1.2e-3
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters()))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_continues_bit_for_bit(kind: str) -> None:
    """Three steps, or two, a copy through state_dict and one: the same weights."""
    first = network()
    optimiser = make_optimiser(first, kind, **SETTINGS)
    for seed in (1, 2):
        set_gradients(first, seed)
        optimiser.step()
    second = network()
    second.load_state_dict(first.state_dict())
    other = make_optimiser(second, kind, **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for net, chosen in ((first, optimiser), (second, other)):
        set_gradients(net, 3)
        chosen.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))
    other.zero_grad()
    assert all(p.grad is None for p in second.parameters())
    assert all(group["initial_lr"] == group["lr"] for group in other.param_groups)


def test_one_optimiser_where_one_is_enough() -> None:
    """AdamW alone without Muon, and for modules without hidden kernels."""
    assert isinstance(make_optimiser(network(), "adamw", **SETTINGS), torch.optim.AdamW)
    assert isinstance(make_optimiser(nn.Linear(2, 2), "muon", **SETTINGS), torch.optim.AdamW)


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown optimiser 'sgd'"):
        make_optimiser(network(), "sgd", **SETTINGS)
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimiser(nn.Identity(), "adamw", **SETTINGS)
    with pytest.raises(ValueError, match="matrices and kernels only"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="lr > 0"):
        Muon([nn.Parameter(torch.zeros(3, 3))], lr=0.0)
    with pytest.raises(ValueError, match="momentum in"):
        Muon([nn.Parameter(torch.zeros(3, 3))], momentum=1.0)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_orthogonalise(shape: tuple[int, int]) -> None:
    """The singular vectors stay, the singular values come near 1; nothing comes of nothing."""
    matrices = (
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7
    )
    matrices[2] = 0
    found = orthogonalise(matrices)
    for before, after in zip(matrices[:2], found):
        u, s, v = torch.linalg.svd(before, full_matrices=False)
        rotated = u.T @ after @ v.T
        kept = s > 0.1 * s.max()
        assert torch.allclose(rotated, torch.diag(torch.diagonal(rotated)), atol=1e-9)
        assert (
            float(torch.diagonal(rotated)[kept].min()) > 0.6
            and float(torch.diagonal(rotated).max()) < 1.3
        )
    assert float(found[2].abs().max()) == 0


@pytest.mark.parametrize("shape", [(16, 72), (72, 16)])
def test_muon_is_torchs_but_for_bfloat16(shape: tuple[int, int]) -> None:
    """Oracle: torch.optim.Muon on the same gradients, five steps; two kernels of a shape, so that
    they are done at once."""
    ours = [nn.Parameter(torch.zeros(shape[0], shape[1] // 4, 2, 2)) for _ in range(2)]
    theirs = [nn.Parameter(torch.zeros(shape)) for _ in range(2)]
    first, second = (
        Muon(ours, lr=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, momentum=0.95),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for a, b in zip(ours, theirs):
            b.grad = torch.randn(shape, generator=generator)
            a.grad = b.grad.reshape(a.shape)
        first.step()
        second.step()
    for a, b in zip(ours, theirs):
        assert (
            float((a.flatten(1) - b).detach().norm() / b.detach().norm()) < 0.02
            and float(b.detach().norm()) > 0.1
        )
