"""The compiled selective scan is transformers' own, in value and gradient."""

import pytest

pytest.importorskip("numba")  # extra "fast"
pytest.importorskip("torch")  # extra "hf"
pytest.importorskip("transformers")

import torch
from transformers import MambaConfig, MambaForCausalLM, set_seed

from studies.mamba_scan import SelectiveScan, compiled_scan


def gradients(model, tokens):
    model.zero_grad()
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_of_a_model_are_those_without_it():
    set_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=30, hidden_size=16, state_size=5, num_hidden_layers=2, initializer_range=0.3)
    )
    tokens = torch.randint(30, (3, 14))
    plain, expected = gradients(model, tokens)
    with compiled_scan():
        loss, found = gradients(model, tokens)
    assert loss == pytest.approx(plain, rel=1e-6)
    for name, gradient in expected.items():
        assert float(gradient.norm()) > 0
        assert float((found[name] - gradient).norm()) < 1e-5 * float(gradient.norm()), name
    assert gradients(model, tokens)[0] == plain  # put back


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    u, delta = torch.randn(2, 7, 3, dtype=torch.double), torch.rand(2, 7, 3, dtype=torch.double)
    a, b = -torch.rand(3, 4, dtype=torch.double), torch.randn(2, 7, 4, dtype=torch.double)
    inputs = [x.requires_grad_() for x in (u, delta, a, b, torch.randn(2, 7, 4, dtype=torch.double))]
    assert torch.autograd.gradcheck(SelectiveScan.apply, inputs)
