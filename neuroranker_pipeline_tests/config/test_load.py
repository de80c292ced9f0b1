"""Profiles are validated: every error names the file, the key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroranker_pipeline.config.load import load_settings, profile_names
from neuroranker_pipeline.datasets.beir import BeirSettings
from neuroranker_pipeline.errors import BadInput


def write(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", profile_names())
def test_packaged_profiles_load(name: str) -> None:
    assert load_settings(name).profile == name


def test_there_are_the_profiles_that_the_readme_names() -> None:
    assert {"smoke", "quickstart"} <= set(profile_names())


def test_a_file_may_extend_a_profile_and_changes_only_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: smoke\nstudent:\n  training:\n    learning_rate: 1.0e-5\n")
    mine, smoke = load_settings(path), load_settings("smoke")
    assert mine.profile == "mine"
    assert mine.student.training.learning_rate == 1e-5
    assert mine.student.training.epochs == smoke.student.training.epochs
    assert mine.data == smoke.data


def test_a_file_may_extend_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "extends: smoke\nseed: 7\n", "base.yaml")
    assert load_settings(write(tmp_path, "extends: base.yaml\nbm25: {k1: 1.2}\n")).seed == 7


def test_overrides_win(tmp_path: Path) -> None:
    settings = load_settings("smoke", ["student.training.learning_rate=3e-5", "seed=5", "data.packages=[json, email]"])
    assert settings.student.training.learning_rate == 3e-5
    assert settings.seed == 5
    assert settings.data.packages == ("json", "email")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: smoke\nsede: 3\n", r"mine\.yaml: sede: unknown key; did you mean seed\?"),
        ("data: {source: beirr}", r"data\.source: expected one of pydocs, msmarco, beir.*got 'beirr'"),
        ("extends: slice\ndata: {foldr: x}", r"data\.foldr: unknown key; did you mean folder\?"),
        ("extends: quickstart\ndata: {source: beir}", r"data\.folder: must be given"),
        ("extends: slice\ndata: {tests: [dl21]}", r"data\.tests must be among dl19, dl20, got 'dl21'"),
        ("extends: slice\ndata: {carve: {dev: 2}}", r"data\.carve\.dev must be between 0 and 1"),
        (
            "training_collections: {nq: {source: beir, folder: x, titels: 3}}",
            r"training_collections\.nq\.titels: unknown key; did you mean titles\?",
        ),
        (
            "training_collections: {Nq: {source: beir, folder: x}}",
            r"training_collections\.Nq must be lower-case letters",
        ),
        (
            "student: {training: {learning_rat: 1}}",
            r"student\.training\.learning_rat: unknown key; did you mean learning_",
        ),
        (
            "bm25: {colour: red}",
            r"bm25\.colour: unknown key; known keys: b, depth, heap_mb, k1, keep_stopwords, language, stemmer, threads",
        ),
        ("bm25: {k1: -1}", r"mine\.yaml: bm25\.k1 must be from 0 to 100, got -1"),
        ("bm25: {depth: many}", r"bm25\.depth: input should be a valid integer.*got 'many'"),
        ("device: tpu", r"device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("profile: other", r"mine\.yaml: profile: not a setting"),
        ("student: {objective: hard_labels}", r"student\.objective must be distill, got 'hard_labels'"),
        (
            "teacher: {members: {a: {training: {learning_rat: 1}}}}",
            r"teacher\.members\.a\.training\.learning_rat: unknown key; did you mean learning_rate\?",
        ),
        (
            "teacher: {members: {a: {colections: [x]}}}",
            r"teacher\.members\.a\.colections: unknown key; did you mean coll",
        ),
        ("teacher: {members: {base_student: {}}}", r"teacher\.members\.base_student must be lower-case letters"),
        ("teacher: {members: {a: 3}}", r"teacher\.members\.a: input should be a dictionary.*got 3"),
        (
            "teacher: {members: {a: {collections: [nq]}}}",
            r"teacher\.members\.a\.collections must be among main, got 'nq'",
        ),
        (
            "training_collections: {nq: {source: beir, folder: x, weight: -1}}",
            r"training_collections\.nq\.weight must be from 0 to 20, got -1",
        ),
        ("mining: {rounds: 1, depth: 2}", r"mining\.depth must be at least student\.lists\.negatives, got 2"),
        ("unjudged: {source: file}", r"unjudged\.file must be the file of the queries, got ''"),
        ("unjudged: {file: log.tsv}", r"unjudged\.file must be left out unless source is file"),
        ("unjudged: {sorce: file}", r"unjudged\.sorce: unknown key; did you mean source\?"),
        ("unjudged: {source: sentences, min_words: 40}", r"unjudged\.min_words must be from 1 to max_words, got 40"),
        ("timing_seconds: -1", r"timing_seconds must be at least 0"),
        ("cascade_depth: 5", r"cascade_depth must be at least 10"),
        (
            "release: {measure: F1}",
            r"release\.measure must be a measure such as MRR@10, nDCG@10, R@100 or MAP, got 'F1'",
        ),
        ("release: {alpha: 0}", r"release\.alpha must be between 0 and 1, got 0"),
        ("release: {loss_to_base: -0.1}", r"release\.loss_to_base must be from 0 to 1, got -0\.1"),
        ("release: {keep: 0}", r"release\.keep must be at least 1, got 0"),
        ("interpolation: {grid: [0.1, 0.2]}", r"interpolation\.grid must be weights from 0 to 10 with 0 among them"),
        ("interpolation: {grid: [0, .nan]}", r"interpolation\.grid must be weights from 0 to 10"),
        ("seed: 1\nbm25: {k1: -1, b: 0.4}\nshards: {passages: 0}", r"shards\.passages must be.*; bm25\.k1 must be"),
        ("- a list", r"mine\.yaml: expected a mapping of settings, got list"),
        ("a: [1", r"mine\.yaml: not valid YAML: .*line 1"),
        ("extends: nothing", r"profile 'nothing' is unknown: expected one of .*quickstart.*smoke"),
        ("extends: mine.yaml", r"mine\.yaml: extends itself"),
        ("extends: gone.yaml", r"gone\.yaml: no such profile file"),
    ],
)
def test_errors_name_the_file_the_key_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_settings(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("seed.deeper=3", "seed is a value, not a group of settings"),
        ("student.training.learning_rate=-1", r"student\.training\.learning_rate must be greater than 0, got -1"),
        ("seed=[", "--set seed=\\[: not valid YAML"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_settings("smoke", ["seed=1", override])


def test_another_source_takes_nothing_from_the_one_it_replaces(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "extends: quickstart\ndata: {source: beir, folder: mine}\n"))
    assert settings.data == BeirSettings(folder="mine")
    same = load_settings(write(tmp_path, "extends: slice\ndata: {source: msmarco, folder: mine}\n"))
    assert same.data.folder == "mine"
    assert same.data.tests == ("dl19",)


def test_a_profile_name_cannot_leave_the_lake(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="profile must be a file name"):
        load_settings(write(tmp_path, "seed: 1", ".hidden.yaml"))


def test_a_member_of_an_ensemble_takes_from_the_teacher_what_it_does_not_say(tmp_path: Path) -> None:
    text = (
        "extends: smoke\n"
        "teacher:\n"
        "  layers: 3\n"
        "  training: {learning_rate: 2.0e-5}\n"
        "  members: {first: {}, gone: null, second: {layers: 1, seed: 4, training: {epochs: 2}}, ready: {train: false}}\n"
    )
    settings = load_settings(write(tmp_path, text), ["teacher.members.second.training.warmup=0.2"])
    first, second, ready = (settings.teacher.members[name] for name in ("first", "second", "ready"))
    assert settings.teacher.members.keys() == {"first", "second", "ready"}
    assert first.recipe() == settings.teacher.recipe()
    assert (second.layers, second.seed, second.training.epochs, second.training.warmup) == (1, 4, 2, 0.2)
    assert second.training.learning_rate == first.training.learning_rate == 2e-5
    assert ready.layers is None  # a ready model keeps its layers
    assert ready.max_length == first.max_length == 64


def test_weights_of_collections_are_no_part_of_the_raw_data(tmp_path: Path) -> None:
    from neuroranker_pipeline.datasets.source import open_source

    plain = load_settings("quickstart")
    weighted = load_settings("quickstart", ["data.weight=0.25"])
    assert weighted.collection_weights == {"main": 0.25}
    digests = [open_source(settings.data, tmp_path).digest("queries") for settings in (plain, weighted)]
    assert digests[0] == digests[1]


def test_training_judgments_are_needed_unless_nothing_is_trained_on_them(tmp_path: Path) -> None:
    ready, made = "teacher.members={a: {train: false}}", "unjudged.source=sentences"
    assert load_settings("quickstart").splits_needed == ("train", "dev")
    assert load_settings("quickstart", [made]).splits_needed == ("train", "dev")
    assert load_settings("quickstart", [ready]).splits_needed == ("train", "dev")
    assert load_settings("quickstart", [ready, made]).splits_needed == ("dev",)
    bare = "data: {source: files, folder: x, queries: null, qrels: null}\n"
    assert load_settings(write(tmp_path, bare + "unjudged: {source: sentences}\n")).splits_needed == ()
    with pytest.raises(BadInput, match=r"unjudged\.source must be file, titles or sentences where data has no queries"):
        load_settings(write(tmp_path, bare))
    with pytest.raises(
        BadInput, match=r"data\.files\.qrels must be null where queries is null|data\.qrels must be null"
    ):
        load_settings(write(tmp_path, "data: {source: files, folder: x, queries: null}\n"))
