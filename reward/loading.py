"""Loading a model with transformers: whole, from safetensors, without code of the model's own; and
everything that can be wrong with it in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import PreTrainedModel

from labeling.errors import InputError
from labeling.hub import name_and_revision

# How transformers and safetensors say it → what it means to somebody with a folder before them.
_MEANINGS = (
    ("mismatched", "the shapes of its weights are not those that its config.json describes"),
    ("deserializing header", "its safetensors file is cut off or damaged: copy it again"),
    ("no file named", "there is no model.safetensors in it (pickled .bin files are not loaded): "
     "`model.save_pretrained` writes one"),
    ("Unrecognized model", "there is no config.json with a `model_type` in it"),
    ("does not recognize this arch", "this version of transformers does not know the `model_type` "
     "in its config.json"),
    ("Unrecognized configuration", "the `model_type` in its config.json is of another kind"),
    ("custom code", "it brings code of its own, which is not run: take one without"),
    ("trust_remote_code", "it brings code of its own, which is not run: take one without"),
    ("backend tokenizer", "there is no tokenizer in it: `tokenizer.save_pretrained` writes one"),
)  # fmt: skip


def load_model(
    kind: Any, reference: str, what: str, new: Collection[str] = (), **settings: Any
) -> PreTrainedModel:
    """`kind.from_pretrained` in float32, e.g. `kind=AutoModelForCausalLM`.

    Args:
        reference: a folder in transformers' format, or a hub name (`name@commit`).
        what: what it is to be, for people, e.g. "a causal language model".
        new: first parts of the names of weights that may be missing, and start at random.

    Raises:
        InputError: it cannot be loaded, weights are missing or are no numbers.
    """
    name, revision = name_and_revision(reference)
    model, report = or_complain(
        lambda: kind.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        ),
        f"cannot load {what} from {reference}",
    )
    missing = sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in new)
    if missing:  # transformers would let them start at random, with no more than a warning
        raise InputError(
            f"cannot load {what} from {reference}: {len(missing)} weights are missing from its "
            f"safetensors, {missing[0]} among them"
        )
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"cannot use {what} from {reference}: its weights are not all numbers ({key}); a "
                "training that diverged leaves such a model"
            )
    return model


def or_complain(load: Callable[[], Any], complaint: str) -> Any:
    """What `load` gives; transformers' errors, which are many, as one line after `complaint`.

    Raises:
        InputError: it failed.
    """
    try:
        return load()
    except Exception as error:
        said = str(error).strip().strip("\"'")
        for words, meaning in _MEANINGS:
            if words in said:
                raise InputError(f"{complaint}: {meaning}") from error
        first = (said.splitlines() or [repr(error)])[0]
        raise InputError(f"{complaint}: {first}") from error
