from __future__ import annotations

from pathlib import Path

import pytest

from neuroranker_pipeline.datasets.beir import BeirSettings
from neuroranker_pipeline.datasets.files import FilesSettings
from neuroranker_pipeline.datasets.irds import IrDatasetsSettings
from neuroranker_pipeline.datasets.licences import DataTerms, terms_of
from neuroranker_pipeline.datasets.msmarco import MsMarcoSettings
from neuroranker_pipeline.datasets.pydocs import PydocsSettings
from neuroranker_pipeline.datasets.source import open_source

OWN = FilesSettings(folder="own", licence="CC BY 4.0")


@pytest.mark.parametrize(
    ("settings", "licence", "url", "hub"),
    [
        (MsMarcoSettings(folder="raw"), "non-commercial", "https://microsoft.github.io/msmarco/", "ms_marco"),
        (BeirSettings(folder="nq"), "as published", "https://github.com/beir-cellar/beir", "BeIR/nq"),
        (
            IrDatasetsSettings(dataset="cord19/trec-covid", train="x"),
            "see",
            "https://ir-datasets.com/cord19.html",
            None,
        ),
        (PydocsSettings(), "each under its own licence", None, None),
        (OWN, "CC BY 4.0", None, None),
    ],
)
def test_every_source_tells_its_terms(settings, licence, url, hub):
    (terms,) = terms_of(open_source(settings, Path("data")), settings)
    assert licence in terms.licence
    assert (terms.url, terms.hub) == (url, hub)


def test_joined_collections_are_told_one_by_one():
    main = MsMarcoSettings(folder="raw")
    source = open_source(main, Path("data"), {"mine": OWN})
    terms = terms_of(source, main, {"mine": OWN})
    assert [t.name for t in terms] == ["MS MARCO passage ranking", "files/own"]
    assert terms[1] == DataTerms("files/own", "CC BY 4.0")
