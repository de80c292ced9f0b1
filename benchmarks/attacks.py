"""Attacks on the service as bytes: a fixed list, and mutations of good requests. hostile.py sends them."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUERY = "what is a neural ranking model"
TEXTS = ["Neural ranking models learn to order documents.", "Rivers run to the sea; \u00e9, \u4e2d\u6587, \U0001f600."]
GOOD: dict[str, dict[str, Any]] = {
    "/rerank": {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True},
    "/v1/rerank": {
        "query": QUERY,
        "documents": [TEXTS[0], {"text": TEXTS[1]}],
        "top_n": 2,
        "return_documents": True,
        "first_stage_scores": [12.5, 3],
    },
    "/search": {"query": QUERY, "k": 3},
}
OTHER_PATHS = ("/", "/docs", "/docs.json", "/schema.json", "/info", "/metrics", "/livez", "/healthz", "/readyz")
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "POST")
STRANGE_PATHS = (
    "//", "///rerank", "/rerank/", "/RERANK", "/rerank%00", "/%00", "/..", "/../../etc/passwd", "/..%2f..%2fetc/passwd",
    "/static_content/../../app.py", "/static_content/..%2f..%2fapp.py", "/static_content/%2e%2e/%2e%2e/app.py",
    "/static_content/", "/static_content/index.css%00", "/static_content//etc/passwd", "/rerank?" + "a=b&" * 5000,
    "/rerank#f", "/%ff%fe", "/" + "a" * 60_000, "/\u00e9", "/rerank\\..", "*", "http://evil.example/rerank", "rerank", "",
    "/rerank;x=1", "/v1/../rerank", "/v1%2frerank", "/service.py", "/model/model.onnx", "/rerank/submit", "/?" + "%" * 99,
)  # fmt: skip
PICKLE_TYPES = (
    "application/vnd.bentoml+pickle", "Application/Vnd.BentoML+Pickle", "application/vnd.bentoml+pickle; charset=utf-8",
    " application/vnd.bentoml+pickle ", "application/vnd.bentoml.pickle", "application/pickle", "application/x-pickle",
    "application/python-pickle", "application/octet-stream", "application/vnd.bentoml.parquet", "application/x-dill",
)  # fmt: skip
OTHER_TYPES = (
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=" + "x" * 5000, "application/msgpack", "application/x-msgpack", "image/png", "/", ";",
    "application/json, application/vnd.bentoml+pickle", "application/x-ndjson", "application/jsonp", "*/*",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2.5, 1e308, 10**30, -(10**400), float("nan"), float("inf"), "", " ", "\n", "3", "yes", "\0",
    "a\0b", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "x" * 20_001, "\u0301" * 20_000, [], {}, [[]], [None],
    {"text": ""}, {"text": 3}, {"text": {"text": "a"}}, ["a"] * 1001, [{}] * 1000, {"": ""}, {"__proto__": {}},
    {"url": "file:///etc/passwd"},
)  # fmt: skip
HEADERS = (
    ["X: " + "a" * 60_000], ["X: " + "a" * 2_000_000], [f"X{i}: a" for i in range(5000)], ["X: a"] * 200_000, ["X: \0"],
    ["X" * 100_000 + ": a"], ["Host: other"], [": a"], ["X a"], [" folded"], ["X:\r\n folded"], ["X: \u00e9"],
    ["Authorization: Bearer " + "k" * 50_000], ["Content-Type: \u4e2d"], ["Content-Type: application/json"] * 99,
    ["Accept: " + "*/*," * 9000], ["Cookie: " + "a=b;" * 9000], ["traceparent: 00-" + "0" * 99],
    ["baggage: " + "a=b," * 9000], ["X-Forwarded-For: \"'<"], ["Range: bytes=0-,0-,0-"], ["Range: bytes=" + "0-0," * 5000],
    ["If-Modified-Since: x"], ["If-None-Match: *"], ["Connection: x"], ["X: \udcba"], ["X: \\u\udcba"],
    ["Content-Type: \udcbd"], ["Keep-Alive: timeout=1e9"],
)  # fmt: skip
GARBAGE = (
    b"\0" * 100, b"\x16\x03\x01\x02\0", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\r\n" * 1000,
    b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n", b"POST / SMTP/1.1\r\n\r\n", b"G" * 1_000_000, b"/" * 10**6,
)  # fmt: skip
PATIENCE = 35.0


@dataclass(frozen=True)
class Attack:
    """Bytes to send, and what to expect.

    patience: seconds to wait for an answer before the client says that it sends no more.
    refused: whether only a status of 400 to 499 will do.
    """

    kind: str
    data: bytes
    patience: float = PATIENCE
    refused: bool = False

    @property
    def method(self) -> str:
        return self.data.split(b" ", 1)[0].decode("latin-1")


def raw(method: str, path: str, body: bytes = b"", headers: Iterable[str] = (), length: int | None = None) -> bytes:
    """A request as bytes; ``length`` is announced instead of the body's."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *headers]
    if length is not None or body:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def post(path: str, body: bytes, content_type: str = "application/json", *headers: str, **options: Any) -> bytes:
    return raw("POST", path, body, [f"Content-Type: {content_type}", *headers], **options)


def dumps(value: Any) -> bytes:
    """JSON, with NaN where it is; as escapes what UTF-8 does not hold."""
    return json.dumps(value).encode()


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def unpickled_creates(marker: Path) -> bytes:
    """A pickle that creates ``marker`` when it is loaded."""
    return b"cbuiltins\nopen\n(V%s\nVw\ntR." % str(marker).encode()


def bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies that are no request, by kind."""
    good = dumps(GOOD["/rerank"])
    for opening in (b"[", b'{"query":', b'{"query":"q","texts":[' + b"["):
        yield "nesting", opening * 100_000
        yield "nesting", opening * 100_000 + b"]" * 100_000
    for digits in (
        b"1" * 1_000_000,
        b"-" + b"9" * 5000,
        b"1e999999999",
        b"0." + b"3" * 100_000,
        b"1E-99999",
        b"01",
        b"+1",
    ):
        for field in (
            b'"query":"q","texts":["a"],"top_k":',
            b'"query":"q","documents":["a"],"top_n":',
            b'"query":"q","k":',
        ):
            yield "numbers", b"{" + field + digits + b"}"
    for literal in (b"NaN", b"Infinity", b"-Infinity", b"nul", b"True", b"'q'", b"undefined"):
        yield "literals", b'{"query":' + literal + b',"texts":["a"],"k":' + literal + b"}"
    yield "duplicate keys", b'{"query":"a","query":3,"texts":["a"],"texts":[]}'
    yield "duplicate keys", b"{" + b'"query":"a",' * 100_000 + b'"texts":["a"]}'
    yield "unknown keys", b'{"query":"q","texts":["a"],' + b",".join(b'"%x":1' % i for i in range(1_000_000)) + b"}"
    yield "unknown keys", b'{"query":"q","texts":["a"],"' + b"k" * 1_000_000 + b'":1}'
    yield "many", b'{"query":"q","texts":[' + b",".join([b"1"] * 1_000_000) + b"]}"
    yield "many", b'{"query":"q","documents":[' + b",".join([b"{}"] * 1_000_000) + b"]}"
    for escape in (rb"\ud800", rb"\udc00\ud800", rb"\u0000", rb"\u00", rb"\x41", rb"\uD83D\uDE00"):
        yield "escapes", b'{"query":"' + escape + b'","texts":["' + escape + b'"],"documents":["' + escape + b'"]}'
    for part in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\0", b"\n", b"\x1b[31m"):
        yield "encodings", b'{"query":"' + part + b'","texts":["a"]}'
    for encoding in ("utf-16", "utf-32", "utf-8-sig", "utf-16-be", "utf-7"):
        yield "encodings", good.decode().encode(encoding)
    for other in (
        b"",
        b" ",
        b"\0" * 1000,
        b"null",
        b"3",
        b'"q"',
        b"[]",
        b"{}",
        b"{]",
        b"q=1&texts=a",
        good + good,
        good[:-1],
    ):
        yield "not a request", other


def media(marker: Path) -> Iterator[Attack]:
    """Content types that the service must not read, and compressed bodies."""
    pickle, bomb = unpickled_creates(marker), gzip.compress(b" " * 20_000_000, 1, mtime=0)
    for path, good in GOOD.items():
        for content_type in PICKLE_TYPES:
            yield Attack("pickle", post(path, pickle, content_type), refused=True)
            yield Attack("pickle", post(path, pickle, content_type, f"buffer-lengths: {len(pickle)}"), refused=True)
        yield Attack("pickle", post(path, pickle, "application/json", f"Content-Type: {PICKLE_TYPES[0]}"), refused=True)
        yield Attack("pickle", post(path, pickle, PICKLE_TYPES[0], "Content-Type: application/json"), refused=True)
        yield Attack("pickle", post(path, pickle), refused=True)
        for content_type in OTHER_TYPES:
            yield Attack("media types", post(path, dumps(good), content_type), refused=True)
        form = b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n' + b"[" * 100_000 + b"\r\n--x--\r\n"
        yield Attack("media types", post(path, form, "multipart/form-data; boundary=x"), refused=True)
        for encoding in ("gzip", "deflate", "br", "gzip, gzip", "x"):
            yield Attack(
                "compressed", post(path, bomb, "application/json", f"Content-Encoding: {encoding}"), refused=True
            )
        yield Attack("compressed", post(path, bomb), refused=True)


def framing() -> Iterator[Attack]:
    """How a body is announced and cut: chunks and lengths, right and wrong."""
    body, large = dumps(GOOD["/rerank"]), b" " * (17 * 2**20)
    chunks_follow = raw("POST", "/rerank", headers=["Transfer-Encoding: chunked"])
    yield Attack("too large", post("/rerank", large), refused=True)
    yield Attack("too large", chunks_follow + chunked(large, 2**16), refused=True)
    for size in (1, 7, 10**6):
        yield Attack("chunked", chunks_follow + chunked(body, size))
    for chunks in (
        b"zz\r\n",
        b"-1\r\n\r\n",
        b"f" * 17 + b"\r\n",
        b"5\r\nabc",
        b"3\r\nabcdef\r\n0\r\n\r\n",
        b"5;" + b"x" * 100_000,
        b"",
    ):
        yield Attack("wrong chunks", chunks_follow + chunks, patience=1)
    for length in ("-1", "1e3", "0x10", "9" * 30, "", "5, 5", "+3", "3 3", str(2**63)):
        yield Attack("wrong length", raw("POST", "/rerank", headers=[f"Content-Length: {length}"]) + body, patience=1)
    yield Attack("wrong length", post("/rerank", body, length=len(body) + 1))  # waits for the last byte
    yield Attack("wrong length", post("/rerank", body, length=len(body) - 1))
    yield Attack("wrong length", post("/rerank", body, "application/json", "Content-Length: 3"), patience=1)
    yield Attack("wrong length", post("/rerank", body, "application/json", "Transfer-Encoding: chunked"), patience=1)
    yield Attack("two in one", post("/rerank", body).replace(b"close", b"keep-alive") + post("/rerank", body))
    yield Attack("expect", post("/rerank", body, "application/json", "Expect: 100-continue"))
    yield Attack("expect", post("/rerank", body, "application/json", "Expect: 200-ok"))
    for name in ("websocket", "h2c", "x"):
        upgrade = ("Connection: Upgrade", f"Upgrade: {name}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MTIz")
        yield Attack("upgrade", raw("GET", "/rerank", headers=upgrade), patience=1)
        yield Attack("upgrade", post("/rerank", body, "application/json", *upgrade), patience=1)


def heads() -> Iterator[Attack]:
    """Methods, paths and headers."""
    for path, method in itertools.product((*GOOD, *OTHER_PATHS), METHODS):
        yield Attack("methods", raw(method, path))
    for path, method in itertools.product(STRANGE_PATHS, ("GET", "POST", "OPTIONS")):
        yield Attack("paths", raw(method, path), patience=5)
    for path, headers in itertools.product(("/", "/livez", "/static_content/index.css"), HEADERS):
        yield Attack("headers", raw("GET", path, headers=headers), patience=5)
    for headers in HEADERS:
        yield Attack("headers", raw("POST", "/rerank", dumps(GOOD["/rerank"]), headers), patience=5)
    for garbage in GARBAGE:
        yield Attack("not HTTP", garbage, patience=1)


def fixed(marker: Path) -> Iterator[Attack]:
    """Every attack that is not made by chance."""
    for kind, body in bodies():
        for path in GOOD:
            yield Attack(kind, post(path, body))
    for path, good in GOOD.items():
        yield Attack("good", post(path, dumps(good)))
    yield from itertools.chain(media(marker), framing(), heads())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something can be replaced."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated_json(rng: random.Random, value: Any) -> Any:
    """A copy with a place or more replaced, removed or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(list(places(value)))
        if not path:
            return deepcopy(rng.choice(VALUES))
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[path[-1]]
        elif isinstance(parent, dict) and rng.random() < 0.3:
            parent[rng.choice(("", "Query", "query\0", "long", "truncate", "model", "raw_scores", "\u00e9"))] = (
                deepcopy(rng.choice(VALUES))
            )
        else:
            parent[path[-1]] = deepcopy(rng.choice(VALUES))
    return value


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """A copy with bytes changed, removed, repeated or added."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        piece = rng.choice((b"", b"\0", b"\xff", b'"', b"{", b"[", b"\\u", b"\r\n", b":", rng.randbytes(4), data[:at]))
        changed[at : at + rng.choice((0, 1, 1, 5))] = piece
    return bytes(changed)


def mutation(rng: random.Random) -> Attack:
    """A good request, changed."""
    path, good = rng.choice(list(GOOD.items()))
    how = rng.random()
    if how < 0.5:
        return Attack("mutated JSON", post(path, dumps(mutated_json(rng, good))))
    if how < 0.8:
        return Attack("mutated body", post(path, mutated_bytes(rng, dumps(good))))
    return Attack("mutated request", mutated_bytes(rng, post(path, dumps(good))), patience=0.5)


def attacks(requests: int, seed: int, marker: Path) -> list[Attack]:
    """``requests`` attacks: the fixed ones, as a sample where they are more than two thirds, then mutations by ``seed``.

    A pickle among them creates ``marker`` if the service, on this machine, loads it.
    """
    rng = random.Random(seed)
    known = list(fixed(marker))
    if len(known) > requests * 2 // 3:
        known = rng.sample(known, requests * 2 // 3)
    return known + [mutation(rng) for _ in range(requests - len(known))]
