"""Pictures and questions as Qwen2-VL and Qwen2.5-VL read them, with a gradient for the pictures.

transformers' processor does the same through PIL and in 8 bits (Qwen2VLImageProcessor and the published chat
template); here a picture is resized as floats and never rounded.

Shapes: B images, L tokens of the longest row, N patches of a picture, D = 3 x 2 x 14 x 14 their numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import explained, quiet
from splatgen.models.weights import WeightsError
from splatgen.rewards.pictures import normalised, resized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATCH, MERGE = 14, 2  # pixels of a patch and patches of a token, each way
FRAMES = 2  # of a film; a picture is shown twice
UNIT = PATCH * MERGE
LEAST, MOST = 4 * UNIT**2, 16384 * UNIT**2  # pixels, as the published preprocessor_config.json has it
SYSTEM = "You are a helpful assistant."  # of the published chat template


def in_range(load_options: LoadOptions) -> LoadOptions:
    """As a run keeps its networks, but never in float16, whose range their activations leave."""
    half = load_options.precision != "float32"
    return dataclasses.replace(load_options, precision="bfloat16") if half else load_options


def recomputed(network: PreTrainedModel, load_options: LoadOptions) -> None:
    """Where a run recomputes activations, let every layer make its own again when a gradient comes back.

    transformers does that in training only, so the layers are told that they train; what could drop out lies
    further inside, and is not told.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if load_options.checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
        for layer in network.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True


def sides(height: int, width: int, least: int = LEAST, most: int = MOST) -> tuple[int, int]:
    """Height and width in whole tokens, with least to most pixels and nearly the same proportions.

    (Qwen's smart_resize; operations are in its order, since what is a whole number is rounded down.)
    """
    high, wide = (max(UNIT, round(n / UNIT) * UNIT) for n in (height, width))
    if high * wide > most:
        beta = math.sqrt(height * width / most)
        return tuple(max(UNIT, math.floor(n / beta / UNIT) * UNIT) for n in (height, width))  # type: ignore[return-value]
    if high * wide < least:
        beta = math.sqrt(least / (height * width))
        return tuple(math.ceil(n * beta / UNIT) * UNIT for n in (height, width))  # type: ignore[return-value]
    return high, wide


def patches(images: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Patches [B * N, D] of images [B, 3, H, W] in 0..1 at another size, and their grids [B, 3] on the CPU.

    Those of a token follow one another; a still picture is two equal frames.
    """
    pictures = normalised(resized(images, height, width))
    count, rows, columns = len(images), height // PATCH, width // PATCH
    cut = pictures.reshape(count, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]  # [B, R, C, 2, 2, 3, 1, 14, 14]
    both = cut.expand(*cut.shape[:6], FRAMES, PATCH, PATCH)
    grid = torch.tensor([[1, rows, columns]]).expand(count, -1)
    return both.reshape(count * rows * columns, -1), grid


class Chat:
    """The published chat: one picture, then a text by the user, then the assistant's turn."""

    def __init__(self, folder: Path, image_token: int) -> None:
        from transformers import Qwen2Tokenizer

        with explained(Qwen2Tokenizer, folder), quiet():
            self._tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        marks = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
        known = self._tokenizer.get_vocab()
        if any(mark not in known for mark in marks) or known["<|image_pad|>"] != image_token:
            raise WeightsError(f"{folder} has the tokenizer of another model: fetch it again")
        self._start, self._end, self._see, self._seen, self.image = (known[mark] for mark in marks)

    def __len__(self) -> int:
        """Tokens there are; the next one added would have this number."""
        return len(self._tokenizer)

    def read(self, text: str) -> list[int]:
        """Tokens of a text, in which no mark means anything."""
        found: list[int] = self._tokenizer(text, split_special_tokens=True).input_ids
        return found

    def turn(self, said: Sequence[int], pictures: int) -> list[int]:
        """Tokens of the whole chat for what the user says of a picture of so many tokens."""
        line, read = self.read("\n"), self.read
        system = [self._start, *read(f"system\n{SYSTEM}"), self._end, *line]
        user = [self._start, *read("user\n"), self._see, *[self.image] * pictures, self._seen]
        return [*system, *user, *said, self._end, *line, self._start, *read("assistant\n")]


def rows(turns: Sequence[Sequence[int]]) -> Tensor:
    """Ids [B, L] of chats, on the CPU; zeros after each end are seen by no token before them."""
    return pad_sequence([torch.tensor(turn) for turn in turns], batch_first=True)
