"""Packed batches give what padded ones give: vectors, scores and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.forward import forward_batch, forward_rows, infer
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.packed import PACKED, cast_weights, packs
from neuroranker_pipeline_tests.ranking.conftest import WORDS

CPU = torch.device("cpu")


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, size)) for size in (1, 28, 3, 9, 17, 2)]


def both_ways(model, tokens):
    """Outputs and gradients, padded and packed."""
    results = []
    for packed in (False, True):
        model.zero_grad()
        model.transformer.set_attn_implementation(PACKED if packed else "sdpa")
        rows = range(len(tokens))
        out = model(**(tokens.packed(rows, CPU, 0) if packed else tokens.batch(rows, CPU)))
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        results.append(
            (out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    return results


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_and_gradients(tiny, texts, pooling):
    model = BiEncoder.load(tiny).eval()
    model.pooling = pooling
    (padded, gradients), (packed, others) = both_ways(model, model.tokenize(texts))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item() + 1e-5)


def test_scores_of_pairs(tiny, texts):
    model = CrossEncoder.start(tiny, 32).eval()
    (padded, _), (packed, _) = both_ways(model, model.tokenize(["w1 w2"] * len(texts), texts))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)


def test_a_model_left_in_packed_attention_still_reads_padded_batches(tiny, texts):
    model = BiEncoder.load(tiny).eval()
    tokens = model.tokenize(texts)
    expected = forward_batch(model, tokens, np.arange(len(texts)), CPU)
    model.transformer.set_attn_implementation(PACKED)
    torch.testing.assert_close(forward_batch(model, tokens, np.arange(len(texts)), CPU), expected)


def test_packed_attention_refuses_a_padded_batch(tiny, texts):
    model = BiEncoder.load(tiny)
    model.transformer.set_attn_implementation(PACKED)
    with pytest.raises(ValueError, match="needs `bounds`"):
        model(**model.tokenize(texts).batch([0, 1], CPU))


def test_weights_are_cast_for_a_step_and_their_gradients_cast_back(tiny):
    model = BiEncoder.load(tiny).transformer
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    cast = cast_weights(model, torch.bfloat16, "m.")
    assert cast.keys() == {f"m.{name}" for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        assert cast[f"m.{name}"].requires_grad == weight.requires_grad
        assert torch.equal(cast[f"m.{name}"], weight.to(torch.bfloat16))
    used = cast["m.encoder.layer.0.output.dense.weight"]
    (used * 3).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients.keys() == {"encoder.layer.0.output.dense.weight"}
    gradient = gradients.popitem()[1]
    assert gradient.dtype == torch.float32
    assert (gradient == 3).all()


def test_batches_side_by_side_give_what_one_after_the_other_gives(tiny):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(300)]
    model = BiEncoder.load(tiny)
    tokens = model.tokenize(texts)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            seen = []
            outputs.append(
                infer(model, tokens, Compute(CPU, torch.float32), progress=lambda _, done, of, s=seen: s.append(done))
            )
            assert seen == sorted(seen)
            assert seen[-1] == len(texts)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def test_what_packs(tiny):
    transformer = BiEncoder.load(tiny).transformer
    assert packs(transformer)
    transformer.config.model_type = "deberta-v2"
    assert not packs(transformer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_cuda_packed_bfloat16_is_near_padded_float32(tiny, texts, compiled):
    from neuroranker_pipeline.ranking.forward import compile_layers

    model = BiEncoder.load(tiny).eval()
    tokens, rows = model.tokenize(texts), np.arange(len(texts))
    expected = forward_rows(model, tokens, rows, None)
    model.cuda()
    if compiled:
        compile_layers(model)
    with torch.autocast("cuda", torch.bfloat16):
        got = forward_rows(model, tokens, rows, None)
    got.sum().backward()
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0.02)
