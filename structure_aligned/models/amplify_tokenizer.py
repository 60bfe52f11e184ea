"""AMPLIFY's tokenizer made from its fixed vocabulary, for use without the hub."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


AMPLIFY_VOCABULARY = (*("<pad>", "<unk>", "<mask>", "<bos>", "<eos>"), *"|LAGVSERTIDPKQNFYMHWCB")
"""All 27 tokens of AMPLIFY in the order of their ids; `|` separates chains. There is no `X`: it becomes `<unk>`."""


def amplify_tokenizer(max_length: int = 2048) -> PreTrainedTokenizerFast:
    """
    The tokenizer of every AMPLIFY checkpoint: a token for each letter, between `<bos>` and `<eos>`. White space is
    skipped; letters that are not in the vocabulary become `<unk>`.

    Args:
        max_length (`int`, *optional*, defaults to 2048): Its `model_max_length`.
    """
    ids = {token: index for index, token in enumerate(AMPLIFY_VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1",
        special_tokens=[("<bos>", ids["<bos>"]), ("<eos>", ids["<eos>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )
