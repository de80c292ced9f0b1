"""Attention in two products gives what the fused kernel gives, and in bfloat16 is about as near to float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neuroranker_pipeline.ranking import forward
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.forward import forward_batch, infer
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.packed import PACKED
from neuroranker_pipeline.ranking.padded import PADDED, padded_attention
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32, MINILM, WORDS

CPU = torch.device("cpu")
BFLOAT16 = Compute(CPU, torch.bfloat16)
MODULE = torch.nn.Identity()


def drawn(n: int, length: int) -> list[torch.Tensor]:
    """Queries, keys and values as a model has them: heads cut out of a row."""
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(n, length, 3, 8, generator=generator).transpose(1, 2) for _ in range(3)]


def ragged(n: int, length: int) -> torch.Tensor:
    """A mask whose first row is full, the second of one token, and the others between."""
    lengths = torch.tensor([length, 1, *range(2, n)])[:n].clamp(max=length)
    return (torch.arange(length) < lengths[:, None])[:, None, None].expand(n, 1, length, length)


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 70])
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_fused_kernel_and_its_gradients(length, n, masked):
    mask = ragged(n, length) if masked else None
    results = []
    for products in (False, True):
        inputs = [x.clone().requires_grad_() for x in drawn(n, length)]
        if products:
            out, weights = padded_attention(MODULE, *inputs, mask, scaling=0.4)
            assert weights is None
        else:
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.4).transpose(1, 2)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_scale_is_that_of_the_size_unless_given():
    inputs = drawn(2, 9)
    expected = F.scaled_dot_product_attention(*inputs).transpose(1, 2)
    torch.testing.assert_close(padded_attention(MODULE, *inputs, None)[0], expected)


def test_weights_are_dropped_and_the_kept_scaled_up():
    query, key, value = drawn(40, 64)
    torch.manual_seed(0)
    sums = padded_attention(MODULE, query, key, torch.ones_like(value), None, dropout=0.3)[0]
    assert sums.mean() == pytest.approx(1, abs=0.02)
    assert sums.std() > 0.05


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 30, 200)]


def errors(model, tokens, monkeypatch) -> dict[str, float]:
    """Root mean square errors in bfloat16, by the attention that served."""
    exact, found = infer(model, tokens, FLOAT32), {}
    assert model.transformer.config._attn_implementation == "sdpa"
    for products in (True, False):
        if not products:
            monkeypatch.setattr(forward, "_attends_in_products", lambda model, device: False)
        difference = infer(model, tokens, BFLOAT16) - exact
        found[model.transformer.config._attn_implementation] = float(np.sqrt(np.mean(difference**2)))
    return found


@pytest.mark.parametrize("name", ["tiny", MINILM])
def test_bfloat16_is_about_as_near_to_float32_as_with_the_fused_kernel(name, tiny, texts, monkeypatch):
    model = BiEncoder.load(tiny if name == "tiny" else name)
    found = errors(model, model.tokenize(texts), monkeypatch)
    assert found[PADDED] < 1.1 * found["sdpa"]
    assert found[PADDED] < 0.05 / model.dimension**0.5  # a twentieth of the vectors' components


def test_a_text_alone_is_what_it_is_beside_a_long_one(tiny):
    model = BiEncoder.load(tiny)
    short, long = "w3", " ".join(WORDS[:28])
    together = infer(model, model.tokenize([short, long]), BFLOAT16)
    alone = np.concatenate([infer(model, model.tokenize([text]), BFLOAT16) for text in (short, long)])
    np.testing.assert_allclose(together, alone, atol=0.01)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_training_and_float32_keep_the_fused_kernel(tiny):
    model = CrossEncoder.start(tiny, 32)
    pairs = model.tokenize(["w1 w2"], ["w3"])
    infer(model, pairs, BFLOAT16)
    assert model.transformer.config._attn_implementation == PADDED
    with BFLOAT16.autocast():
        forward_batch(model, pairs, np.array([0]), CPU).sum().backward()
    assert model.transformer.config._attn_implementation == "sdpa"
    for other in (PACKED, "eager"):
        model.transformer.set_attn_implementation(other)
        infer(model, pairs, FLOAT32)
        assert model.transformer.config._attn_implementation == {PACKED: "sdpa"}.get(other, other)


def test_attention_with_a_bias_of_its_own_keeps_the_fused_kernel(tiny, texts):
    model = BiEncoder.load(tiny)
    model.transformer.config.model_type = "mpnet"
    infer(model, model.tokenize(texts[:3]), BFLOAT16)
    assert model.transformer.config._attn_implementation == "sdpa"
