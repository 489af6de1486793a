"""What the tests of augmentation share: small lexicons, awkward texts, tiny models."""

from __future__ import annotations

import tempfile

import numpy as np

from whet.augmentation.base import Item, Surroundings
from whet.data.batch import Examples
from whet.lexicon.own import Own
from whet.paths import Paths

ENGLISH = [
    "good great fine",
    "bad poor awful",
    "film movie picture",
    "story tale",
    "actor player performer",
    "odd unusual",
]
CHINESE = ["好看 漂亮 美丽", "电影 影片", "喜欢 喜爱 爱好", "演员 艺人"]
STOP = ["the", "a", "is", "not", "很", "的", "我"]
LONG = ("The film is a good story about an odd actor , not a bad one . " * 60).strip()
TEXTS = {
    "plain": "The film is a good story; the actor is odd!",
    "capitals": "GOOD film. Bad story. The Actor Story",
    "chinese": "这部电影很好看，我喜欢的演员。",
    "mixed": "我喜欢这部movie的演员",
    "one word": "good",
    "one letter": "x",
    "chinese word": "电影",
    "emoji": "😀👍🏽",
    "emoji and words": "good 😀 film 👍🏽",
    "spaces": "  a   good\tfilm \n",
    "punctuation": "...!?",
    "numbers": "3.5 of 10, it's rock'n'roll-like",
    "long": LONG,
}


SHARED = tempfile.TemporaryDirectory(prefix="whet-words-")
"""A cache for what only takes time to make: jieba's index."""


def around(folder=None, names=("negative", "positive")):
    """Surroundings with a cache in `folder`."""
    return Surroundings(Paths(cache=str(folder or SHARED.name)), names)


def lexicons(folder):
    """`english` and `chinese` from files in `folder`."""
    (folder / "stop.txt").write_text("\n".join(STOP), encoding="utf-8")
    for name, groups in (("english", ENGLISH), ("chinese", CHINESE)):
        (folder / f"{name}.txt").write_text("# of the tests\n" + "\n".join(groups), encoding="utf-8")
    stop = str(folder / "stop.txt")
    return {name: Own(path=str(folder / f"{name}.txt"), stop=stop) for name in ("english", "chinese")}


def overrides(folder, key="augmentation"):
    """The same for the command line."""
    found = lexicons(folder)
    return [
        item
        for name, own in found.items()
        for item in (
            f"lexicon@{key}.{name}=own",
            f"{key}.{name}.path={own.path}",
            f"{key}.{name}.stop={own.stop}",
        )
    ]


def synonyms_of(word):
    """By brute force: the other words of the line that has the word."""
    return {other for line in ENGLISH + CHINESE for other in line.split() if word in line.split()} - {word}


def examples(texts, labels=None):
    """A training split of single texts or pairs."""
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    ids = np.array([f"row-{n}" for n in range(len(rows))])
    return Examples("train", ids, rows, np.arange(len(rows)) % 2 if labels is None else labels)


def items(texts, seed=1, epoch=0, copy=1):
    """One item a text."""
    return [Item((text,), 0, (seed, epoch, n, copy)) for n, text in enumerate(texts)]


# ---------------------------------------------------------------- tiny models

WORDS = [
    "the",
    "film",
    "is",
    "good",
    "bad",
    "great",
    "story",
    "of",
    "an",
    "actor",
    "odd",
    "fine",
    "not",
    "好",
    "看",
    "很",
    "电",
    "影",
]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def word_tokenizer(template=None, special=True):
    """Whole words and single Chinese characters; what isn't known is [UNK]; `##ly` continues a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "##ly", "!", "."])}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", cls_token="[CLS]",
        sep_token="[SEP]", eos_token="[SEP]", bos_token="[CLS]", model_max_length=64 if special else 256,
    )  # fmt: skip
    made.chat_template = template
    return made


def save(folder, kind, seed=0, template=None):
    """Random weights of a tiny model with the tokenizer above, in `folder`; which is returned."""
    import torch
    import transformers

    from whet.model.encoder import quiet

    quiet()
    tokenizer = word_tokenizer(template, special=kind != "CausalLM")
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "MaskedLM":
        config = transformers.BertConfig(**ids, **small, max_position_embeddings=64, initializer_range=0.5)
        build = transformers.BertForMaskedLM
    elif kind == "CausalLM":
        config = transformers.GPT2Config(
            **ids,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=256,
            initializer_range=0.5,
            tie_word_embeddings=False,
        )
        build = transformers.GPT2LMHeadModel
    else:
        sides = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in (("layers", 1), ("ffn_dim", 32), ("attention_heads", 2))
        }
        config = transformers.BartConfig(
            **ids, d_model=32, max_position_embeddings=128, decoder_start_token_id=2, forced_eos_token_id=None,
            init_std=0.5, **sides,
        )  # fmt: skip
        build = transformers.BartForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
    with torch.no_grad():
        if kind == "CausalLM":
            model.lm_head.weight[[0, 1, 3, 4]] = 0.0  # it hardly ever writes special tokens but the end
        elif kind == "Seq2SeqLM":
            model.final_logits_bias[0, [0, 1, 3, 4]] = -1e4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
