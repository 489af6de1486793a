"""A randomly initialised trunk of any architecture, made in a moment: for tests and first steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ModelError, nearest, one_line
from whet.model.weights import Located, Weights
from whet.storage import file_sha256

if TYPE_CHECKING:
    from whet.paths import Paths

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
_SMALL: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 600,
}
"""Set where an architecture knows the name."""
_SMALL_TOO: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bart": {"encoder_ffn_dim": 64, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 2},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 16, "d_inner": 64},
    "gpt2": {"n_inner": 64},
    "xlnet": {"d_inner": 64, "d_head": 16},
}
"""What else is large, or unlike the weights that people use, in an architecture's defaults."""


@dataclass(kw_only=True)
class TinyWeights(Weights):
    """A transformers config made small, random weights from a seed, and a tokenizer that reads bytes."""

    architecture: str = "bert"
    """A `model_type` of transformers."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of its config beyond the small defaults."""
    seed: int = 0
    """Of the weights."""

    def locate(self, paths: Paths) -> Located:
        """Make the directory on first use; later the same one is found again."""
        import transformers

        key = json.dumps(
            [self.architecture, self.options, self.seed, transformers.__version__], sort_keys=True
        )
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        folder = paths.cached("tiny") / f"{self.architecture}-{name}"
        if not folder.is_dir():
            self._make(folder)
        return Located(folder, f"tiny {self.architecture}", file_sha256(folder / "model.safetensors"))

    def _make(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel

        from whet.model.encoder import quiet

        quiet()
        config = self._config()
        config.architectures = []  # Funnel has two trunks: transformers looks here for which
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                model = AutoModel.from_config(config)
            except _REFUSED as error:
                raise ModelError("options", one_line(error)[:300], self.options) from None
        model.save_pretrained(aside)
        left = self.architecture == "xlnet"  # it reads its answer from the last token
        byte_tokenizer(types=reads_types(config), left=left).save_pretrained(aside)
        try:
            aside.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(aside)

    def _config(self) -> Any:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, AutoConfig

        if self.architecture not in CONFIG_MAPPING:
            raise ModelError(
                "architecture", f"unknown; {nearest(self.architecture, CONFIG_MAPPING)}", self.architecture
            )
        default = AutoConfig.for_model(self.architecture)
        known = {*default.to_dict(), *default.attribute_map, *_UNLISTED}
        for name, value in self.options.items():
            if name not in known:
                raise ModelError(
                    f"options.{name}", f"{self.architecture} has none; {nearest(name, known)}", value
                )
        ids = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        small = {name: value for name, value in _SMALL.items() if name in known}
        settings = {**small, **ids, **_SMALL_TOO.get(self.architecture, {}), **self.options}
        try:
            return AutoConfig.for_model(self.architecture, **settings)
        except (*_REFUSED, StrictDataclassError) as error:
            raise ModelError("options", one_line(error)[:300], self.options) from None


_REFUSED = (TypeError, ValueError, NotImplementedError, AssertionError, ZeroDivisionError)
"""What transformers raises for settings that don't fit together."""
_UNLISTED = (
    "cls_dropout",
    "head_dim",
    "norm_rel_ebd",
    "position_buckets",
    "share_att_key",
    "conv_kernel_size",
)
"""Settings that models read though their config's defaults don't list them."""


def reads_types(config: Any) -> bool:
    """Whether a model tells first and second text apart by `token_type_ids`."""
    return config.model_type in ("funnel", "xlnet") or (getattr(config, "type_vocab_size", None) or 0) > 1


def byte_tokenizer(types: bool = True, left: bool = False) -> Any:
    """A tokenizer without a vocabulary to learn: one token per UTF-8 byte, BERT's special tokens around.

    Args:
        types: give `token_type_ids` too.
        left: pad on the left.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        mask_token="[MASK]",
        eos_token="[SEP]",
        model_max_length=512,
        model_input_names=inputs,
        padding_side="left" if left else "right",
        **names,
    )
