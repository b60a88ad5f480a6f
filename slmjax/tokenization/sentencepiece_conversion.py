"""A SentencePiece model as a tokenizer of the `tokenizers` library, as transformers converts it.

Source: transformers 5, `SentencePieceExtractor`, `SpmConverter.build_tokenizer_from_spm_proto` and `generate_merges`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from slmjax.tokenization import sentencepiece_proto as sp
from slmjax.tokenization.backends import SPACE

Merges = list[tuple[str, str]]


def merges_by_id(vocabulary: Mapping[str, int]) -> Merges:
    """The pairs that give a token of the vocabulary; those of tokens with smaller ids are merged first."""
    merges = []
    for token, id in vocabulary.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                merges.append((id, at, left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def controls_of(model: sp.SentencePieceModel) -> list[tokenizers.AddedToken]:
    """Control and user-defined pieces in the order of their ids; the former are special."""
    return [
        tokenizers.AddedToken(piece, normalized=False, special=kind == sp.CONTROL)
        for piece, kind in zip(model.pieces, model.types, strict=True)
        if kind in (sp.CONTROL, sp.USER_DEFINED)
    ]


def convert(model: sp.SentencePieceModel, names: Mapping[int, str], *, legacy: bool) -> tokenizers.Tokenizer:
    """A tokenizer that encodes as the SentencePiece model itself does.

    names: of pieces that are called otherwise, by id. legacy: whether the text behind an added token is prefixed with
    a space as the beginning of a text is.
    """
    kept = {piece for id, piece in enumerate(model.pieces) if id not in names}
    pieces = [names[id] if id in names and names[id] not in kept else piece for id, piece in enumerate(model.pieces)]
    own = [piece for piece, kind in zip(pieces, model.types, strict=True) if kind == sp.USER_DEFINED]
    if model.algorithm == sp.UNIGRAM:
        scored = list(zip(model.pieces, model.scores, strict=True))
        unigram = models.Unigram(scored, unk_id=model.role_id("unk"), byte_fallback=model.byte_fallback)
        tokenizer = tokenizers.Tokenizer(unigram)
        own = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == sp.USER_DEFINED]
    else:
        bpe = models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            _merges_by_score(model, pieces),
            unk_token=model.roles.get("unk", "<unk>"),
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=bool(own),
        )
        tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model, legacy))
    cuts: list[pre_tokenizers.PreTokenizer] = []
    if model.add_dummy_prefix:
        scheme = "always" if legacy else "first"
        cuts.append(pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False))
    if own:  # whole wherever they stand
        pattern = "|".join(re.escape(piece) for piece in sorted(own, key=len, reverse=True))
        cuts.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    joins: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    joins += [decoders.ByteFallback()] if model.byte_fallback else []
    if model.add_dummy_prefix:
        joins += [decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    elif model.byte_fallback:
        joins.append(decoders.Fuse())
    tokenizer.decoder = decoders.Sequence(joins)
    return tokenizer


def _normalizers(model: sp.SentencePieceModel, legacy: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if model.add_dummy_prefix and legacy:  # Metaspace puts no space before a sign for one
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE * 2))
    return steps


def _merges_by_score(model: sp.SentencePieceModel, pieces: list[str]) -> Merges:
    """The pairs of pieces that give one, in the order of its score; only of those that are no markers and no bytes."""
    normal = {pieces[id]: (model.scores[id], id) for id, kind in enumerate(model.types) if kind == sp.NORMAL}
    ranked = []
    for piece, (score, id) in normal.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in normal and right in normal:
                ranked.append((-score, id, left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
