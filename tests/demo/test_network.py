"""The network that learns is the model that is served."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, Qwen3_5MoeForConditionalGeneration

from demo.network import Network, delta_rule
from demo.settings import model_config
from server.demo_model import DIRECTORY

TOKENIZER = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
TEXT = model_config(TOKENIZER)["text_config"]
SMALL = TEXT | {"hidden_size": 64, "num_hidden_layers": 4, "layer_types": TEXT["layer_types"][:4]}


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def test_logits_are_those_of_transformers(tmp_path: Path):
    network = Network(SMALL, torch.float32)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    config = AutoConfig.from_pretrained(DIRECTORY)
    for name, value in SMALL.items():
        if name in ("hidden_size", "num_hidden_layers", "layer_types"):
            setattr(config.text_config, name, value)
    config.vision_config.out_hidden_size = 64
    oracle = Qwen3_5MoeForConditionalGeneration(config).float()
    state = {
        f"model.language_model.{name}": value
        for name, value in network.state_dict().items()
        if not name.startswith("mtp.")
    }
    info = oracle.load_state_dict(state, strict=False)
    assert info.unexpected_keys == []
    missing = [name for name in info.missing_keys if "visual" not in name]
    assert missing == ["lm_head.weight"], "it is tied to the embedding"
    token_BT = torch.randint(0, 3000, (2, 192))
    with torch.no_grad():
        expected = oracle(input_ids=token_BT).logits
        hidden, imbalance = network(token_BT)
        torch.testing.assert_close(network.logits(hidden), expected, atol=1e-4, rtol=0)
    assert 1.0 <= imbalance.item() < TEXT["num_experts"]


def test_gradients_reach_every_parameter():
    network = Network(SMALL)
    token_BT = torch.randint(0, 3000, (2, 128))
    hidden, imbalance = network(token_BT)
    ahead, _ = network.mtp(network.embed_tokens(token_BT.roll(-1, 1)), hidden)
    (network.logits(hidden).mean() + network.logits(ahead).mean() + imbalance).backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert without == []


def test_gradients_of_placed_rows_are_those_of_plain_indexing():
    """The experts' custom backward passes, against numbers: a nudge moves the loss as predicted."""
    network = Network(SMALL, torch.float32)
    mlp = network.layers[0].mlp
    x = torch.randn(1, 64, 64, dtype=torch.float32, requires_grad=True)
    y, _ = mlp(x)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    assert x.grad is not None
    direction = torch.randn_like(x) * 1e-3
    with torch.no_grad():
        up, down = ((mlp(x + s * direction)[0] * weight).sum() for s in (1, -1))
    torch.testing.assert_close((up - down) / 2, (x.grad * direction).sum(), rtol=2e-2, atol=1e-4)


def test_the_delta_rule_is_the_recurrence():
    B, T, H, N, K, V = 2, 128, 2, 4, 16, 8
    q, k = torch.randn(2, B, T, H, K)
    v = torch.randn(B, T, N, V)
    beta, g = torch.rand(B, T, N), -torch.rand(B, T, N)
    out = delta_rule(q, k, v, beta, g, torch.float32)
    state = torch.zeros(B, N, K, V)
    q, k = (
        (x / x.square().sum(-1, keepdim=True).add(1e-6).sqrt()).repeat_interleave(N // H, 2)
        for x in (q, k)
    )
    for t in range(T):
        state = state * g[:, t].exp()[..., None, None]
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bnkv,bnk->bnv", state, k[:, t]))
        state = state + torch.einsum("bnk,bnv->bnkv", k[:, t], u)
        o = torch.einsum("bnkv,bnk->bnv", state, q[:, t]) * K**-0.5
        torch.testing.assert_close(out[:, t], o, atol=2e-5, rtol=1e-4)
