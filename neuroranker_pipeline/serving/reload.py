"""Takes over a new model while the one before serves: it is loaded and tried first, and one that fails changes nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.onnx_model import find_model

logger = logging.getLogger(__name__)

State = tuple[tuple[str, int, int, int], ...]


class Reloader:
    """Looks every ``seconds`` whether the files of a model have changed, and if so calls ``take_over(path)``.

    A change counts once two looks have found the same files, so that a copy under way is left to end. ``take_over`` raises
    ``BadInput`` for a model that cannot be served; ``failure`` then says why, until another change succeeds.
    """

    def __init__(self, path: Path, take_over: Callable[[Path], None], seconds: float) -> None:
        self.path = path
        self.failure: str | None = None
        self._take_over = take_over
        self._seconds = seconds
        self._served = self._seen = model_state(path)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reloader", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, after a load that is under way."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """One look; whether a new model was taken over."""
        before, self._seen = self._seen, model_state(self.path)
        if self._seen == self._served or self._seen != before:
            return False
        self._served = self._seen  # also of a failure: the same files are not tried again
        try:
            self._take_over(self.path)
        except BadInput as error:
            self.failure = str(error)
            logger.error("the model before goes on serving: %s", error)
            return False
        self.failure = None
        logger.info("serving %s, which has changed", self.path)
        return True

    def _watch(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                self.look()
            except Exception:  # whatever it is, the model that serves is not touched, and the next look may succeed
                logger.exception("looking for a new model at %s failed", self.path)


def model_state(path: Path) -> State:
    """What changes with a model: name, inode, size and time of each file in its folder; empty when there is none."""
    try:
        folder = find_model(path).parent
        files = sorted(file for file in folder.iterdir() if file.is_file())
        stats = [(str(file.resolve()), file.stat()) for file in files]
    except (BadInput, OSError):
        return ()
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
