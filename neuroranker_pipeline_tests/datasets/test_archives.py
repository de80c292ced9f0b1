from __future__ import annotations

import contextlib
import gzip
import io
import re
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets import archives
from neuroranker_pipeline.datasets.archives import open_bytes, open_members
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import archive, header

TEXT = b"".join(b"%d\tpassage %d\n" % (n, n * n) for n in range(20_000))
WANTED = ("collection.tsv", TEXT)


def contents(path: Path, *names: str) -> dict[str, bytes]:
    return {name: stream.read() for name, stream in open_members(path, names)}


def read(path: Path) -> bytes:
    with open_bytes(path) as stream:
        return stream.read()


def refused(path: Path, *names: str) -> str:
    """The error of reading an archive, which is one line and names it."""
    with pytest.raises(BadInput) as caught:
        contents(path, *names)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_plain_gzip_and_archives_read_alike(tmp_path: Path) -> None:
    plain, packed = tmp_path / "collection.tsv", tmp_path / "collection.tsv.gz"
    plain.write_bytes(TEXT)
    packed.write_bytes(gzip.compress(TEXT[:7_000]) + gzip.compress(TEXT[7_000:]))  # gzip files may be joined
    assert read(plain) == read(packed) == TEXT
    for name in ("c.tar", "c.tar.gz", "c.tgz"):
        assert contents(archive(tmp_path / name, ("deep/down/collection.tsv", TEXT))) == {"collection.tsv": TEXT}


def test_only_the_wanted_members_and_no_twins(tmp_path: Path) -> None:
    folder = header("data", tarfile.DIRTYPE)
    path = archive(tmp_path / "a.tar.gz", folder, ("data/._collection.tsv", b"\0\5"), ("readme", b"?"), WANTED)
    assert contents(path) == {"readme": b"?", "collection.tsv": TEXT}
    assert contents(path, "collection.tsv") == {"collection.tsv": TEXT}
    assert refused(path, "collection.tsv", "queries.tsv").endswith("no queries.tsv in this archive")


def test_long_and_foreign_names(tmp_path: Path) -> None:
    long = f"{'d' * 200}/é{'n' * 150}.tsv"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as out:
            info = tarfile.TarInfo(long)
            info.size = 1
            out.addfile(info, io.BytesIO(b"x"))
        assert contents(tmp_path / "a.tar") == {f"é{'n' * 150}.tsv": b"x"}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../escape.tsv", b"1\tone\n"), "'../escape.tsv' points out of the archive; refused"),
        (("a/../../escape.tsv", b"1\tone\n"), "points out of the archive; refused"),
        (("/etc/escape.tsv", b"1\tone\n"), "'/etc/escape.tsv' points out of the archive; refused"),
        (("\\escape.tsv", b"1\tone\n"), "points out of the archive; refused"),
        (header("link.tsv", tarfile.SYMTYPE, "/etc/passwd"), "'link.tsv' is a link; refused"),
        (header("hard.tsv", tarfile.LNKTYPE, "collection.tsv"), "'hard.tsv' is a link; refused"),
        (header("pipe", tarfile.FIFOTYPE), "'pipe' is neither plain file nor folder; refused"),
        (header("disk", tarfile.BLKTYPE), "'disk' is neither plain file nor folder; refused"),
        (header("tty", tarfile.CHRTYPE), "'tty' is neither plain file nor folder; refused"),
    ],
)
def test_harmful_members_are_refused_wherever_they_are(
    tmp_path: Path, member, message: str, late: bool, name: str
) -> None:
    path = archive(tmp_path / name, *([WANTED, member] if late else [member, WANTED]))
    assert message in refused(path, "collection.tsv")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_sparse_file_that_would_unfold_to_a_terabyte_is_refused(tmp_path: Path) -> None:
    old = header("collection.tsv", tarfile.GNUTYPE_SPARSE)
    assert "sparse" in refused(archive(tmp_path / "old.tar", old))
    new = header("collection.tsv", tarfile.REGTYPE)
    new.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0"}
    assert "neither plain file nor folder" in refused(archive(tmp_path / "new.tar", new))


def test_a_truncated_gzip_names_the_byte(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.tar.gz", WANTED).read_bytes()
    path = tmp_path / "torn.tar.gz"
    for keep in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        message = refused(path, "collection.tsv")
        assert f"damaged near byte {keep:,} of {keep:,} (Compressed file ended" in message


def test_a_wrong_byte_in_the_middle_of_a_gzip(tmp_path: Path) -> None:
    stored = gzip.compress(TEXT, compresslevel=0)  # not packed, so that only the check sum sees the change
    path = tmp_path / "collection.tsv.gz"
    path.write_bytes(stored[:100_000] + bytes([stored[100_000] ^ 1]) + stored[100_001:])
    with pytest.raises(BadInput, match=r"collection\.tsv\.gz: damaged near byte [\d,]+ of [\d,]+ \(CRC check failed"):
        read(path)
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    path.write_bytes(packed)
    with pytest.raises(BadInput, match=r"collection\.tsv\.gz: damaged near byte"):
        read(path)


def test_damage_behind_the_wanted_member_is_found(tmp_path: Path) -> None:
    whole = gzip.compress(archive(tmp_path / "whole.tar", WANTED, ("other", TEXT)).read_bytes() + bytes(3 << 20))
    path = tmp_path / "torn.tar.gz"
    path.write_bytes(whole[:-8] + bytes(8))  # check sum and length, far behind the end mark
    assert "CRC check failed" in refused(path, "collection.tsv")


def test_a_tar_cut_short_or_damaged(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.tar", WANTED, ("queries.tsv", TEXT)).read_bytes()
    path = tmp_path / "torn.tar"
    second = 512 + -(-len(TEXT) // 512) * 512
    for keep in (100, 5_000, second + 100, second + 5_000):
        path.write_bytes(whole[:keep])
        assert "damaged archive" in refused(path)
    path.write_bytes(whole[:second] + b"\1" + whole[second + 1 :])
    assert "damaged archive (bad checksum)" in refused(path), "a damaged header is not the end"
    path.write_bytes(b"not an archive at all")
    assert "damaged archive" in refused(path)
    path.write_bytes(b"")
    assert "damaged archive (empty file)" in refused(path)


def test_no_gzip_missing_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "plain.tsv.gz").write_bytes(b"plain text")
    with pytest.raises(BadInput, match=r"plain\.tsv\.gz: damaged near byte 2 of 10 \(Not a gzipped file"):
        read(tmp_path / "plain.tsv.gz")
    with pytest.raises(BadInput, match=r"absent\.tsv: cannot be read \(No such file"):
        read(tmp_path / "absent.tsv")
    with pytest.raises(BadInput, match="cannot be read \\(Is a directory"):
        read(tmp_path)


def bomb(path: Path, size: int) -> Path:
    """``size`` zeros, as gzip packs them at best: 1,030 to one."""
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as out:
        for _ in range(size >> 20):
            out.write(packer.compress(bytes(1 << 20)))
        out.write(packer.flush())
    return path


def test_a_bomb_is_refused_long_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "collection.tsv.gz", 128 << 20)
    assert path.stat().st_size * 1_000 < 128 << 20
    tracemalloc.start()
    try:
        taken = 0
        with pytest.raises(BadInput, match="unpacks to more than 100 times its size"), open_bytes(path) as stream:
            while block := stream.read(1 << 20):
                taken += len(block)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert taken <= archives.FREE_BYTES + (1 << 20)
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    assert "unpacks to more than" in refused(archive(tmp_path / "a.tar.gz", ("collection.tsv", bytes(8 << 20))))


def test_regular_text_is_no_bomb(tmp_path: Path) -> None:
    text = b"the same passage, over and over again\n" * 100_000
    path = tmp_path / "regular.tsv.gz"
    path.write_bytes(gzip.compress(text))
    assert len(text) > archives.MAX_RATIO * path.stat().st_size
    assert read(path) == text


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME], ids=["pax", "gnu"])
def test_a_huge_extended_header_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    info = header("collection.tsv", kind)
    info.size = 1 << 40
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert "a header of 1,099,511,627,776 bytes" in refused(path)


def test_headers_nested_without_end_are_refused(tmp_path: Path) -> None:
    info = header("x", tarfile.GNUTYPE_LONGNAME)
    info.size = 1
    path = tmp_path / "a.tar"
    path.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")) * 5_000)
    assert "damaged archive" in refused(path)


WHOLE = TEXT[:700]


@given(st.lists(st.tuples(st.integers(0, 4 * 512 + 700), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_no_damage_raises_anything_but_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], sealed: bool
) -> None:
    """Bytes changed anywhere in a tar file, also with the headers' check sums made right again."""
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    info = tarfile.TarInfo("é" * 60)
    info.pax_headers = {"size": "300", "comment": "x"}
    data = bytearray(archive(path, ("collection.tsv", WHOLE), info, ("queries.tsv", b"1\tone\n")).read_bytes())
    for place, value in changes:
        data[place] = value
    if sealed:
        for start in range(0, 6 * 512, 512):
            block = data[start : start + 512]
            if re.search(rb"ustar", block):
                total = sum(block[:148]) + sum(block[156:]) + 8 * 32
                data[start + 148 : start + 156] = b"%06o\0 " % total
    path.write_bytes(data)
    with contextlib.suppress(BadInput):
        contents(path)
