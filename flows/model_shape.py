"""A model's sizes from its config.json and the headers of its safetensors files: no weights are
read, and nothing that needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling.errors import InputError
from labeling.hub import name_and_revision

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
}

# In files of old (GPT-2, Pythia); no parameters.
_BUFFERS = (
    *(".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"),
    ".inv_freq",
)


@dataclass(frozen=True)
class ModelShape:
    """A causal language model's sizes. `head` is what an output matrix of its own adds to
    `parameters`; tied embeddings have none."""

    parameters: int
    head: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    gated: bool
    vocabulary: int
    context: int | None

    @property
    def trunk(self) -> int:
        return self.parameters - self.head


def read_shape(model: str) -> ModelShape:
    """Shape of a model folder, or of a hub name (`name@revision`): config.json and the headers of
    its safetensors files; no weights are read.

    Raises:
        InputError: one of them is missing or cannot be read.
    """
    folder = Path(model)
    try:
        if folder.is_dir():
            config = read_json(folder / "config.json")
            tensors = _tensors(weight_files(folder))
        else:
            config, tensors = _on_the_hub(model)
        return shape_of(config, tensors)
    except KeyError as error:
        raise InputError(f"config.json of {model} does not say {error}") from None
    except Exception as error:  # the hub's and the file system's are many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the shape of {model} cannot be read: {reason}") from None


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, int]) -> ModelShape:
    """From a parsed config.json and the number of values of each tensor, by name.

    Raises:
        KeyError: config.json does not hold a size.
        ValueError: there are no tensors.
    """
    tensors = {name: n for name, n in tensors.items() if not name.endswith(_BUFFERS)}
    if not tensors:
        raise ValueError("there are no safetensors files to count parameters in")
    config = config.get("text_config") or config

    def first(*names: str) -> Any:
        return next((config[n] for n in names if config.get(n) is not None), None)

    sizes = {name: first(*names) for name, names in _NAMES.items()}
    for name, value in sizes.items():
        if value is None:
            raise KeyError(_NAMES[name][0])
    hidden, heads = sizes["hidden"], sizes["heads"]
    return ModelShape(
        parameters=sum(tensors.values()),
        head=sum(
            n for name, n in tensors.items() if name.split(".")[0] in ("lm_head", "embed_out")
        ),
        **sizes,
        kv_heads=first("num_key_value_heads") or heads,
        head_dim=first("head_dim") or hidden // heads,
        mlp=first("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        gated=any("gate_proj" in name or "gate_up_proj" in name for name in tensors),
        context=first("max_position_embeddings", "n_positions"),
    )


def _tensors(files: Iterable[Path]) -> dict[str, int]:
    """Values of each tensor: a safetensors file begins with the length of its JSON header."""
    tensors = {}
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                tensors[name] = math.prod(tensor["shape"])
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"model: {file} does not exist; give a folder that `model.save_pretrained` wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"model: {file} is not JSON ({error}): copy it again") from None
    if not isinstance(found, dict):
        raise InputError(f"model: {file} must hold an object: copy it again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads: others, such as a consolidated copy of all
    shards, may lie beside them.

    Raises:
        InputError: there are none.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map", {})
        return [folder / name for name in sorted(set(named.values()))]
    pickled = any(folder.glob("*.bin"))
    raise InputError(
        f"model: {folder} has no safetensors files of the names that transformers loads"
        + (" (pickled .bin files are not loaded)" if pickled else "")
        + ": `model.save_pretrained` writes model.safetensors there"
    )


def _on_the_hub(model: str) -> tuple[dict[str, Any], dict[str, int]]:
    import huggingface_hub as hub  # noqa: PLC0415 - only hub names need it

    name, revision = name_and_revision(model)
    cached = hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        with suppress(InputError, FileNotFoundError):  # config.json alone may have come
            return read_json(Path(cached)), _tensors(weight_files(Path(cached).parent))
    place = f"{name}@{revision}" if revision else name
    config = json.loads(hub.HfFileSystem().read_text(f"{place}/config.json"))
    metadata = hub.get_safetensors_metadata(name, revision=revision)
    return config, {
        tensor: math.prod(info.shape)
        for file in metadata.files_metadata.values()
        for tensor, info in file.tensors.items()
    }
