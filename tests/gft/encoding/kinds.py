"""Small tokenizers, one of every kind that has been wrong somewhere, and chat templates."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gft.model.encoding import Encoding

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
BEGIN, END, TURN_END = 2, 3, 5
CHARACTERS = string.ascii_letters + string.digits + "+=.,:/<>|_[]'#\n"
ROLES = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def vocabulary(*more: str) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys([*SPECIAL, *CHARACTERS, *more]))}


def fast(core: Tokenizer, template: str | None = None, **roles: str | None) -> PreTrainedTokenizerFast:
    if not core.get_added_tokens_decoder():
        core.add_special_tokens(list(SPECIAL))
    given = {role: text for role, text in (ROLES | roles).items() if text is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **given)
    tokenizer.chat_template = template
    return tokenizer


def characters(around: str = "$A") -> Tokenizer:
    """One token a character; `around` has the tokens that it adds to a text."""
    core = Tokenizer(models.WordLevel(vocabulary(" "), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", BEGIN), ("</s>", END)])
    return core


MERGES = [("=", "4"), ("y", "o"), ("▁", "y"), ("4", "2"), ("h", "i"), ("\n", "\n")]


def sentencepiece(scheme: str = "always", around: str = "<s> $A") -> Tokenizer:
    """BPE that puts a space in front of a text, as Llama's."""
    core = Tokenizer(models.BPE(vocabulary("▁", *map("".join, MERGES)), MERGES, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    core.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", BEGIN), ("</s>", END)])
    return core


def llama() -> Tokenizer:
    """The older way to the same space: a normalizer."""
    core = sentencepiece()
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = None
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return core


def byte_level(prefix_space: bool = False) -> Tokenizer:
    """BPE on bytes, as GPT-2's, which merges "=4" across a seam."""
    alphabet = dict.fromkeys([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    merges = [("=", "4"), ("y", "o"), ("Ġ", "yo"), ("Ċ", "Ċ"), ("h", "i")]
    entries = {text: number for number, text in enumerate([*alphabet, *map("".join, merges)])}
    core = Tokenizer(models.BPE(entries, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return core


def unigram() -> Tokenizer:
    """Pieces with scores: the end token's text is one of them."""
    pieces = [(text, -1.0 if text in SPECIAL else -3.0) for text in vocabulary("▁", "yo", "=4")]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(vocabulary(*("##" + c for c in CHARACTERS)), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece()
    return core


def greedy() -> Tokenizer:
    """Control tokens that swallow the white space behind them, as Phi-3's."""
    core = sentencepiece("first")
    core.add_special_tokens([AddedToken(text, rstrip=True, special=True) for text in SPECIAL])
    return core


def normalized() -> Tokenizer:
    """Control tokens that are looked for in the normalised text."""
    core = characters()
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.add_special_tokens([AddedToken(text, normalized=True, special=True) for text in SPECIAL])
    return core


KINDS = {
    "adds nothing": characters,
    "adds a begin token": lambda: characters("<s> $A"),
    "adds an end token": lambda: characters("$A </s>"),
    "adds both": lambda: characters("<s> $A </s>"),
    "puts a space in front": sentencepiece,
    "puts a space in front of the first word": lambda: sentencepiece("first"),
    "puts a space in front, adds both": lambda: sentencepiece("always", "<s> $A </s>"),
    "puts a space in front as Llama-2": llama,
    "bytes": byte_level,
    "bytes with a space in front": lambda: byte_level(prefix_space=True),
    "swallows white space": greedy,
    "normalises before it looks": normalized,
    "unigram": unigram,
    "word pieces": wordpiece,
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "ends turns with a token of its own": CHATML,
    "has a default system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    ),
    "trims": CHATML.replace("m.content", "m.content | trim"),
    "writes the begin token": "{{ bos_token }}" + CHATML,
    "writes eos, and spaces around": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "adds an empty thought": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "always asks for an answer": CHATML.replace("{% if add_generation_prompt %}", "")
    .replace("assistant\n{% endif %}", "assistant\n")
    .replace("<|im_start|>assistant\n", "{% if messages[-1].role == 'user' %}<|im_start|>assistant\n{% endif %}"),
}


def encoding(core: Tokenizer, template: str | None = None, configured: tuple[int, ...] = (END,), **roles) -> Encoding:
    return Encoding(fast(core, template, **roles), configured, "the model")
