"""What a running service does with hostile clients: broken bodies, raw HTTP, and clients that make it wait.

    bentoml serve ranker:latest --port 8000 &
    python benchmarks/hostile.py http://127.0.0.1:8000 [--requests 10000] [--seed 0] [--slow 300]

It sends a fixed list of attacks and then mutations of good requests, each on a connection of its own, and prints how
each kind was answered. It fails on a status of 500, an answer that shows the server's code, an error that is not JSON
``{error, detail}``, a payload that was unpickled, an answer that takes more than 30 seconds, and when a good request is
not answered as before. Then hundreds of slow and half-open clients stay, while a normal client's latency is taken.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import resource
import select
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attacks import GOOD, Attack, attacks, dumps, post, raw
from measured import table

VARYING = ("id", "milliseconds")  # of a good answer
LEAKS = re.compile(rb'Traceback|site-packages|neuroranker_pipeline[/.]|service\.py|File \\?"|dist-packages')
SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """status: 0 when the connection was closed without one."""

    status: int
    content_type: str
    body: bytes
    seconds: float


def send(url: str, attack: Attack) -> Answer:
    """The answer to an attack."""
    address = urlsplit(url)
    start = time.monotonic()
    status, content_type, body = 0, "", b""
    try:
        with socket.create_connection((address.hostname, address.port), timeout=2 * SECONDS) as client:
            transmit(client, attack)
            response = http.client.HTTPResponse(client, method=attack.method)
            response.begin()
            status, content_type = response.status, response.headers.get("content-type", "")
            body = response.read()
    except (OSError, http.client.HTTPException):
        pass  # closed, before or within the answer
    return Answer(status, content_type, body, time.monotonic() - start)


def transmit(client: socket.socket, attack: Attack) -> None:
    """Send an attack; the server may answer, or close, before it is all there."""
    try:
        client.sendall(attack.data)
        client.settimeout(attack.patience)
        try:
            client.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            client.shutdown(socket.SHUT_WR)
        client.settimeout(2 * SECONDS)
    except (BrokenPipeError, ConnectionResetError):
        pass


def complaint(attack: Attack, answer: Answer) -> str | None:
    """What is wrong with an answer, None when nothing is."""
    if answer.seconds > SECONDS:
        return f"took {answer.seconds:.0f} seconds"
    if answer.status == 0 and attack.patience > SECONDS:
        return "no answer"
    if answer.status == 500:
        return "status 500"
    if LEAKS.search(answer.body):
        return "shows the server's code"
    if attack.refused and not 400 <= answer.status < 500:
        return "not refused"
    if answer.status >= 400 and attack.method != "HEAD" and not is_error(answer):
        return "an error that is not {error, detail}"
    return None


def is_error(answer: Answer) -> bool:
    try:
        content = json.loads(answer.body)
    except ValueError:
        return False
    shaped = isinstance(content, dict) and sorted(content) == ["detail", "error"]
    return shaped and answer.content_type.startswith("application/json")


def good_answers(url: str) -> dict[str, Any]:
    """Answers to the good requests, without what differs from one to the next."""
    answers = {}
    for path, body in GOOD.items():
        answer = send(url, Attack("good", post(path, dumps(body))))
        content = json.loads(answer.body)
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key not in VARYING}
        answers[path] = (answer.status, content)
    return answers


def assault(url: str, known: list[Attack], clients: int = 16) -> tuple[dict[str, Counter[int]], list[str]]:
    """Send all attacks, ``clients`` at a time; gives counts of statuses by kind, and complaints."""
    statuses: dict[str, Counter[int]] = defaultdict(Counter)
    complaints = []
    with ThreadPoolExecutor(clients) as pool:
        for attack, answer in zip(known, pool.map(lambda attack: send(url, attack), known), strict=True):
            statuses[attack.kind][answer.status] += 1
            if wrong := complaint(attack, answer):
                complaints.append(
                    f"{attack.kind}: {wrong}: {attack.data[:200]!r} -> {answer.status} {answer.body[:200]!r}"
                )
    return statuses, complaints


SLOW: dict[str, tuple[bytes, bytes]] = {  # what is sent at once, and then again every second
    "silent": (b"", b""),
    "slow headers": (b"POST /rerank HTTP/1.1\r\nHost: test\r\nX: ", b"a"),
    "half a body": (post("/rerank", b"{", length=1000), b""),
    "slow body": (post("/rerank", b"{", length=1000), b" "),
    "reads nothing": (raw("GET", "/static_content/swagger-ui-bundle.js").replace(b"close", b"keep-alive") * 4, b""),
}


class SlowClients:
    """Connections that stay: ``each`` of every kind, made again when the server ends them."""

    def __init__(self, url: str, each: int) -> None:
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.each = each
        self.ended: Counter[str] = Counter()
        self._sockets: dict[str, list[socket.socket]] = {kind: [] for kind in SLOW}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SlowClients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in [client for clients in self._sockets.values() for client in clients]:
            client.close()

    def _run(self) -> None:
        while not self._stop.wait(1):
            for kind, (first, then) in SLOW.items():
                alive = [client for client in self._sockets[kind] if self._go_on(client, then)]
                self.ended[kind] += len(self._sockets[kind]) - len(alive)
                new = (self._connect(first) for _ in range(self.each - len(alive)))
                self._sockets[kind] = alive + [client for client in new if client is not None]

    def _connect(self, first: bytes) -> socket.socket | None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(1)
        try:
            client.connect(self.address)
            client.sendall(first)
        except OSError:
            client.close()
            return None
        client.setblocking(False)
        return client

    def _go_on(self, client: socket.socket, then: bytes) -> bool:
        """Send the next byte; False, and the socket closed, when the server has ended the connection."""
        try:
            client.send(then)
            # What an unread answer hides is seen by poll: the end of the stream, or an error.
            if not unread_end(client):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        client.close()
        return False


def unread_end(client: socket.socket) -> bool:
    """Whether the server has closed its side, read or not."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


def latencies(url: str, seconds: float) -> tuple[list[float], Counter[int]]:
    """Milliseconds of a normal client's requests, one after another on connections of their own, and their statuses."""
    taken, statuses, end = [], Counter[int](), time.monotonic() + seconds
    while time.monotonic() < end:
        answer = send(url, Attack("good", post("/rerank", dumps(GOOD["/rerank"]))))
        taken.append(1000 * answer.seconds)
        statuses[answer.status] += 1
        time.sleep(0.02)
    return taken, statuses


def besiege(url: str, each: int, seconds: float) -> list[str]:
    """Latencies without and with slow clients, printed; gives complaints."""
    rows, complaints = [], []
    for count in (0, each):
        with SlowClients(url, count) as slow:
            time.sleep(15 if count else 1)  # until all are there, and the service has sent what they do not read
            taken, statuses = latencies(url, seconds)
        ended = dict(slow.ended) if count else ""
        taken.sort()
        rows.append([count * len(SLOW), len(taken), f"{taken[len(taken) // 2]:.0f}", f"{taken[-1]:.0f}", ended])
        if set(statuses) != {200}:
            complaints.append(f"with {count} slow clients of each kind a normal client got {dict(statuses)}")
    header = ("slow connections", "normal requests", "median, ms", "worst, ms", "slow ones ended by the service")
    print(table(header, rows))
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=int, default=300, help="connections of each slow kind")
    parser.add_argument("--seconds", type=float, default=30, help="of a normal client's requests beside them")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = good_answers(arguments.url)
    with tempfile.TemporaryDirectory() as scratch:
        marker = Path(scratch) / "unpickled"
        statuses, complaints = assault(arguments.url, attacks(arguments.requests, arguments.seed, marker))
        complaints += ["a payload was unpickled"] if marker.exists() else []
    print(
        table(
            ("attack", "requests", "answers"), [[kind, each.total(), counts(each)] for kind, each in statuses.items()]
        )
    )
    print(f"all: {counts(sum(statuses.values(), Counter()))}\n")
    complaints += besiege(arguments.url, arguments.slow, arguments.seconds) if arguments.slow else []
    complaints += ["a good request is answered otherwise than before"] if good_answers(arguments.url) != before else []
    print("\n".join(complaints[:50]))
    raise SystemExit(f"{len(complaints)} complaints" if complaints else 0)


def counts(statuses: Counter[int]) -> str:
    """Statuses with their counts; a connection that was closed without an answer has none."""
    return ", ".join(f"{status or 'closed'}: {count}" for status, count in sorted(statuses.items()))


if __name__ == "__main__":
    main()
