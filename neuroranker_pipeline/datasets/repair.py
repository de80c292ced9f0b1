"""Text that was decoded wrongly once, such as the curly quotes of MS MARCO's passages, mended with ftfy."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def repaired(texts: pa.StringArray) -> pa.StringArray:
    """The texts with their encoding mended (https://ftfy.readthedocs.io, ``fix_encoding``): what was UTF-8
    and was read as Windows-1252 is read again.

    ASCII texts cannot be damaged that way and are not looked at; white space and everything else stays as it is.
    """
    from ftfy import fix_encoding

    plain = pc.fill_null(pc.string_is_ascii(texts), True)
    if pc.all(plain, min_count=0).as_py():
        return texts
    damaged = pc.invert(plain)
    mended = [fix_encoding(text) for text in texts.filter(damaged).to_pylist()]
    return pc.replace_with_mask(texts, damaged, pa.array(mended, pa.string()))
