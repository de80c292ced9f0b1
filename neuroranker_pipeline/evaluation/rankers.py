"""What the rankers that are compared and released are called: in reports, run files, metrics and decisions."""

from __future__ import annotations

from typing import Final

FIRST_STAGE: Final = "BM25"
BASE: Final = "base student"
INT8: Final = "student int8"
SEARCH: Final = "search"
"""What the service's ``/search`` gives, which ships: the int8 student's vector of the query, the stored vectors of the
passages, and BM25's score by the weight chosen on dev."""
