"""Scoring killed at random moments against scoring left alone: the files must be the same, byte for byte.

    python benchmarks/scoring_resume.py [--pairs 1000000] [--kills 2] [--model NAME]

Synthetic pairs of short texts are scored with a cross-encoder in a process of its own; the peer is the same, undisturbed.
Without ``--model`` the model is a tiny one with random weights, so that a million pairs take minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measured import table

from neuroranker_pipeline.datasets.tables import CANDIDATES, PASSAGES, SCORES, read_table, read_texts, write_table
from neuroranker_pipeline.ranking.parts import FOLDER, ROWS_PER_PART

CANDIDATES_PER_QUERY = 100
QUERY = pa.schema([("qid", pa.string()), ("text", pa.string())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--model", help="a Hugging Face id, folder or package:<module> instead of the tiny model")
    parser.add_argument("--layers", type=int, default=1, help="layers to keep of --model")
    parser.add_argument("--seed", type=int, default=13, help="of the texts and of the moments of the kills")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return score(*arguments.worker)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        prepare(data, arguments)
        start = time.perf_counter()
        run(data, data / "alone")
        alone = time.perf_counter() - start
        rows = [["undisturbed", f"{alone:.0f} s", "", digest(data / "alone")]]
        rng, spent = random.Random(arguments.seed), 0.0
        total = -(-arguments.pairs // ROWS_PER_PART)
        # Any part may be the one in work, and any moment of it, or of starting the process, that of the kill.
        for after in sorted(rng.randrange(total) for _ in range(arguments.kills)):
            code, seconds = run(data, data / "killed", after, rng.uniform(0, 2 * alone / total))
            spent += seconds
            if code != -signal.SIGKILL:
                raise SystemExit(f"the run ended with status {code} before it was killed; use more --pairs")
            rows.append(["killed", f"{seconds:.0f} s", f"{finished(data / 'killed')} of {total} parts", ""])
        _, seconds = run(data, data / "killed")
        rows.append(["to the end", f"{seconds:.0f} s", "", digest(data / "killed")])
    print(f"{arguments.pairs:,} pairs; undisturbed {alone:.0f} s, with kills {spent + seconds:.0f} s in all\n")
    print(table(["run", "wall time", "kept", "SHA-256 of the scores"], rows))
    if rows[0][-1] != rows[-1][-1]:
        raise SystemExit("the files differ")


def prepare(data: Path, arguments: argparse.Namespace) -> None:
    """Write the model, and as many pairs of short texts as asked for."""
    from neuroranker_pipeline.ranking.models import CrossEncoder

    words = np.array([f"w{i}" for i in range(500)])
    rng = np.random.default_rng(arguments.seed)
    model = CrossEncoder.start(arguments.model or tiny_encoder(data / "encoder", words.tolist()), 64, arguments.layers)
    model.save(data / "model")
    queries = -(-arguments.pairs // CANDIDATES_PER_QUERY)
    passages = max(CANDIDATES_PER_QUERY, arguments.pairs // 10)

    def texts(n: int, low: int, high: int) -> list[str]:
        lengths = rng.integers(low, high, n)
        drawn = np.split(words[rng.integers(0, len(words), lengths.sum())], np.cumsum(lengths)[:-1])
        return [" ".join(text) for text in drawn]

    numbers = np.arange(arguments.pairs)
    rank = numbers % CANDIDATES_PER_QUERY
    # A query's candidates are consecutive passages from a random one on, so that no pair occurs twice.
    first = rng.integers(0, passages, queries)[numbers // CANDIDATES_PER_QUERY]
    qid = pa.array([f"q{i}" for i in numbers // CANDIDATES_PER_QUERY])
    pid = pa.array([f"p{i}" for i in (first + rank) % passages])
    columns = [qid, pid, pa.array(rank + 1, pa.int32()), pa.array(-rank, pa.float32())]
    write_table(data / "candidates", pa.table(columns, schema=CANDIDATES), CANDIDATES)
    asked = pa.table([[f"q{i}" for i in range(queries)], texts(queries, 2, 5)], schema=QUERY)
    write_table(data / "queries", asked, QUERY)
    found = pa.table([[f"p{i}" for i in range(passages)], texts(passages, 4, 12)], schema=PASSAGES)
    write_table(data / "passages", found, PASSAGES)


def tiny_encoder(folder: Path, words: list[str]) -> Path:
    """A one-layer BERT of 32 dimensions over whole words, with random weights."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from neuroranker_pipeline.ranking.models import BiEncoder

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=names, **special
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BiEncoder(BertModel(config), tokenizer, "mean", 64).save(folder)
    return folder


def run(data: Path, out: Path, parts: int | None = None, seconds: float = 0.0) -> tuple[int, float]:
    """Score in a process of its own, killed some seconds after so many parts are finished when told to.

    Returns its exit status and its wall time.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--worker", str(data), str(out)])
    while parts is not None and process.poll() is None:
        time.sleep(0.02)
        if finished(out) >= parts:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            break
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"scoring failed with status {code}")
    return code, time.perf_counter() - start


def finished(out: Path) -> int:
    """How many parts are there."""
    return len(list((work_of(out) / FOLDER).glob("[0-9]*.parquet")))


def work_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.work")


def score(data: Path, out: Path) -> None:
    """What the killed process does."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.models import CrossEncoder
    from neuroranker_pipeline.ranking.scoring import score_candidates

    model, work = CrossEncoder.load(data / "model"), work_of(out)
    candidates = read_table(data / "candidates", ["qid", "pid"])
    texts = read_texts(data / "queries", "qid"), read_texts(data / "passages", "pid")
    write_table(out, score_candidates(model, candidates, *texts, pick_compute(), work=work), SCORES)
    shutil.rmtree(work)


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    main()
