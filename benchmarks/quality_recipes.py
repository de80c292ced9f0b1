"""How the students of ``quality.py`` are trained: the regimes that were tried on the choosing half, and the final ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TrainingSettings

SEEDS = (1, 2, 3)
SHARES = (0.5, 0.75, 1.0)  # of the trained weights, the rest the untouched student's


@dataclass(frozen=True)
class Recipe:
    """starts: the judged queries learned from are those whose qid starts so; made, collections: kinds of made queries, and
    of which passages; copies: lists of a judged query; other: what differs in the student's settings."""

    starts: tuple[str, ...] = ("",)
    made: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    copies: int = 2
    rate: float = 2e-4
    other: dict = field(default_factory=dict)

    def settings(self, small: str) -> StudentSettings:
        options = {"contrast_weight": 0.1, "objective": "distill", "teacher_temperature": 0.25, **self.other}
        return StudentSettings(
            base=small, max_length=200, train_length=128, scale_teacher=True,
            **{"lists": ListSettings(negatives=7), **options},
            training=TrainingSettings(
                lists_per_step=128, learning_rate=self.rate, head_learning_rate=self.rate, checkpoint_seconds=0,
                compile="never",
            ),
        )  # fmt: skip


BOTH = ("sentence", "keywords")
MIXED = Recipe(made=BOTH)
REGIMES = {
    "judged": Recipe(),
    "sentences": Recipe(made=("sentence",)),
    "keywords": Recipe(made=("keywords",)),
    "mixed": MIXED,
    "mixed-slow": replace(MIXED, rate=1e-4),
    "slice": Recipe(("slice/",), BOTH, ("slice",)),
}
CHOSEN, CHOSEN_SHARE = "judged", 0.5  # by the rule in quality.py, before anything else was looked at
FINAL = {"distilled": REGIMES[CHOSEN], "hard": replace(REGIMES[CHOSEN], other={"objective": "hard_labels"})}
ONCE = {"passages": Recipe((), BOTH, ("pydocs",)), "pydocs": Recipe(("pydocs/",))}  # trained with one seed
