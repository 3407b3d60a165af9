"""T5's text encoder and tokenizer, as DeepFloyd IF and Stable Diffusion 3 read prompts.

Shapes: B prompts, N tokens, D the encoder's width.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import Lazy, component, explained, quiet
from splatgen.models.weights import WeightsError
from splatgen.priors.latent import full

if TYPE_CHECKING:
    from transformers import T5EncoderModel, T5Tokenizer

SENTINELS = 100  # tokens that T5 has beside those of its vocabulary's file


class T5Text:
    """Prompts to states. The encoder has gigabytes: it is loaded when it is asked, and can be let go."""

    def __init__(
        self,
        *,
        tokenizer: T5Tokenizer,
        encoder: Lazy[T5EncoderModel],
        length: int,  # tokens of every prompt, padded
        masked: bool,  # does the encoder know which tokens are padding?
        name: str,  # of the prior, for errors
    ) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._length, self._masked, self._name = length, masked, name

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """States [B, N, D] of the last layer, in float32 or better, on a device.

        Raises ValueError for a prompt of more tokens than are read. (Published codes cut it, and with it the
        words for the view, which come last.)
        """
        for prompt in prompts:
            count = len(self._tokenizer(prompt, verbose=False).input_ids)
            if count > self._length:
                raise ValueError(
                    f"the prompt {prompt[:40]!r}... has {count - 1} tokens and {self._name} reads "
                    f"{self._length - 1}: shorten it"
                )
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=self._length, return_tensors="pt"
        )
        encoder = self._encoder.get()
        mask = tokens.attention_mask.to(encoder.device) if self._masked else None
        with torch.no_grad():
            states = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask).last_hidden_state
        return full(states.to(device))

    def release(self) -> None:
        self._encoder.release()


def t5_text(
    folder: Path, number: str, load_options: LoadOptions, *, length: int, masked: bool, name: str
) -> T5Text:
    """From `text_encoder{number}` and `tokenizer{number}` in a folder of diffusers' layout.

    The encoder computes in bfloat16 where the run is in half precision (float16 overflows in it), on the
    device for large encoders. Raises WeightsError for what is missing or damaged.
    """
    part = f"text_encoder{number}"
    if not (folder / part / "config.json").is_file():
        raise WeightsError(f"{folder / part} has no config.json: fetch {name} whole")

    def load() -> T5EncoderModel:
        from transformers import T5EncoderModel

        dtype = torch.float32 if load_options.precision == "float32" else torch.bfloat16
        return component(T5EncoderModel, folder, part, dtype=dtype).to(load_options.text_device)

    tokenizer = read_tokenizer(folder / f"tokenizer{number}")
    return T5Text(tokenizer=tokenizer, encoder=Lazy(load), length=length, masked=masked, name=name)


def read_tokenizer(folder: Path) -> T5Tokenizer:
    """T5's tokenizer from tokenizer.json or spiece.model; raises WeightsError where neither can be read.

    transformers reads the latter with sentencepiece and protobuf installed only, and without either file it
    makes up a vocabulary.
    """
    from tokenizers.normalizers import Precompiled
    from transformers import T5Tokenizer

    model = folder / "spiece.model"
    with explained(T5Tokenizer, folder), quiet():
        if (folder / "tokenizer.json").is_file():
            found: T5Tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
            return found
        if model.is_file():
            pieces, charsmap = read_pieces(model.read_bytes())
            sentinels = [(f"<extra_id_{n}>", 0.0) for n in reversed(range(SENTINELS))]
            found = T5Tokenizer(vocab=[*pieces, *sentinels])
            if charsmap is not None:
                found.backend_tokenizer.normalizer = Precompiled(charsmap)
            return found
    raise WeightsError(f"{folder} has neither tokenizer.json nor spiece.model: fetch it again")


def read_pieces(data: bytes) -> tuple[list[tuple[str, float]], bytes | None]:
    """Pieces with their scores, and the map of characters, of a SentencePiece model.

    Its message has the pieces in field 1 (1 the text, 2 the score) and the normaliser in field 3 (2 the map).
    Raises ValueError for what is none.
    """
    pieces: list[tuple[str, float]] = []
    normaliser: dict[int, bytes | int] | None = None
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 3:
            normaliser = dict(_fields(_bytes(value)))
    if not pieces or normaliser is None:  # it comes last
        raise ValueError("it lacks pieces of words, or what comes after them")
    charsmap = _bytes(normaliser.get(2, b""))
    if charsmap and len(charsmap) < 4 + int.from_bytes(charsmap[:4], "little"):  # begins with a length
        raise ValueError("its map of characters is damaged")
    return pieces, charsmap or None


def _piece(data: bytes) -> tuple[str, float]:
    piece = dict(_fields(data))
    try:
        (score,) = struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))
        return _bytes(piece[1]).decode(), score
    except (struct.error, KeyError) as error:
        raise ValueError("it has a piece without text or score") from error


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text belongs")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of the fields of a message in protobuf's wire format."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no SentencePiece model")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in base 128, its least digits first, and where the next field begins."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("it ends too early")
