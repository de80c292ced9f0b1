"""Our models against sentence-transformers, in both directions, and the folders we must refuse."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as ReferenceCrossEncoder
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32, MINILM

TEXTS = ["How do I sort a list?", "sorted(iterable): return a new sorted list. " * 20, "", "Ünïcode, ™ and 漢字"]
QUERIES = ["what is it", "a long query " * 30, "x", "numpy cumsum"]
PASSAGES = ["it is " * 60, "short", "", "numpy.cumsum: the cumulative sum of the elements"]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    BiEncoder.load(MINILM, layers=2, max_length=48).save(folder)
    return folder


def test_bi_encoder_equals_sentence_transformers(minilm):
    ours = BiEncoder.load(minilm)
    reference = SentenceTransformer(str(minilm), device="cpu")
    assert reference.max_seq_length == ours.max_length == 48
    vectors = ours.encode(TEXTS, FLOAT32)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_bi_encoder_opens_what_sentence_transformers_saves(minilm, tmp_path):
    reference = SentenceTransformer(str(minilm), device="cpu")
    reference.save(str(tmp_path))
    ours = BiEncoder.load(tmp_path)
    assert ours.max_length == 48
    np.testing.assert_allclose(ours.encode(TEXTS, FLOAT32), reference.encode(TEXTS), atol=1e-5)


def test_cls_pooling_is_honoured(minilm, tmp_path):
    folder = tmp_path / "cls"
    shutil.copytree(minilm, folder)
    file = folder / "1_Pooling" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    reference = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(BiEncoder.load(folder).encode(TEXTS, FLOAT32), reference, atol=1e-5)


def test_other_poolings_modules_and_prompts_are_refused(tiny, tmp_path):
    def changed(name, file, change):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(change(content)))
        return folder

    pooled = changed("max", "1_Pooling/config.json", lambda c: c | {"pooling_mode_max_tokens": True})
    with pytest.raises(BadInput, match=r"1_Pooling/config.json: pooling .* is not supported"):
        BiEncoder.load(pooled)
    dense = changed("dense", "modules.json", lambda c: [*c, {"path": "3_Dense", "type": "a.Dense"}])
    with pytest.raises(BadInput, match=r"modules.json: module a.Dense is not supported"):
        BiEncoder.load(dense)
    prompts = changed("prompts", "config_sentence_transformers.json", lambda c: c | {"prompts": {"query": "q: "}})
    with pytest.raises(BadInput, match="prompts are not supported"):
        BiEncoder.load(prompts)
    with pytest.raises(BadInput, match="no cross-encoder"):
        CrossEncoder.load(tiny)
    with pytest.raises(BadInput, match=r"config.json: no such file"):
        BiEncoder.load(tmp_path)


def test_cross_encoder_equals_sentence_transformers(minilm, tmp_path):
    ours = CrossEncoder.start(minilm, max_length=40, seed=3)
    ours.save(tmp_path)
    scores = ours.score(QUERIES, PASSAGES, FLOAT32)
    reference = ReferenceCrossEncoder(str(tmp_path), device="cpu")
    assert isinstance(reference.activation_fn, torch.nn.Identity)
    expected = reference.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.std() > 0.01
    np.testing.assert_allclose(CrossEncoder.load(tmp_path).score(QUERIES, PASSAGES, FLOAT32), scores, atol=1e-6)
    with pytest.raises(BadInput, match="a bi-encoder is needed"):
        BiEncoder.load(tmp_path)


def test_published_cross_encoders_open_and_save(tiny, tmp_path):
    published, saved = tmp_path / "published", tmp_path / "saved"
    config = BertConfig.from_pretrained(tiny, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(published)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(published)
    pairs = (["w1 w2", "w3"], ["w1 w2 w5", "w9 w8 w7"])
    ours = CrossEncoder.load(published)
    ours.save(saved)
    scores = ours.score(*pairs, FLOAT32)
    reference = ReferenceCrossEncoder(str(saved), device="cpu")
    np.testing.assert_allclose(scores, reference.predict(list(zip(*pairs, strict=True))), atol=1e-5)
    np.testing.assert_allclose(CrossEncoder.start(saved, 32).score(*pairs, FLOAT32), scores, atol=1e-6)


def test_a_cross_encoder_with_two_labels_is_refused(tiny, tmp_path):
    BertForSequenceClassification(BertConfig.from_pretrained(tiny, num_labels=2)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="one label"):
        CrossEncoder.load(tmp_path)


def test_truncated_models_keep_the_lowest_layers(tiny):
    whole, lower = BiEncoder.load(tiny), BiEncoder.load(tiny, layers=1)
    assert len(lower.transformer.encoder.layer) == lower.transformer.config.num_hidden_layers == 1
    kept = lower.transformer.encoder.layer[0].state_dict()
    for name, weight in whole.transformer.encoder.layer[0].state_dict().items():
        assert torch.equal(kept[name], weight)
    with pytest.raises(BadInput, match="layers must be between 1 and the 2"):
        BiEncoder.load(tiny, layers=3)
    with pytest.raises(BadInput, match="max_length must be between 4 and the model's"):
        BiEncoder.load(tiny, max_length=65)


def test_scores_do_not_depend_on_the_batch(tiny):
    model = CrossEncoder.start(tiny, 32)
    queries = ["w1 w2"] * 30
    passages = [" ".join(f"w{j}" for j in range(i)) for i in range(30)]
    together = model.score(queries, passages, FLOAT32)
    alone = [model.score([q], [p], FLOAT32)[0] for q, p in zip(queries, passages, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert model.score([], [], FLOAT32).shape == (0,)


def test_bfloat16_stays_close_and_its_scores_do_not_tie(minilm):
    bfloat16 = Compute(torch.device("cpu"), torch.bfloat16)
    exact = BiEncoder.load(minilm).encode(TEXTS, FLOAT32)
    model = BiEncoder.load(minilm)
    close = model.encode(TEXTS, bfloat16)
    assert (exact * close).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(model.encode(TEXTS, FLOAT32), exact, "the weights are as they were")
    words = resolve_model(MINILM).joinpath("vocab.txt").read_text(encoding="utf-8").split("\n")[3000:3200]
    scores = CrossEncoder.start(minilm, 40).score(["query"] * 200, words, bfloat16)
    assert len(set(scores.tolist())) > 190
