"""VQAScore (Lin et al. 2024, arXiv 2404.01291): how probable "Yes" is, when a model is asked about a picture.

The model is Qwen2.5-VL and the question the one that the published code (t2v_metrics) asks it.

Shapes: B images, L tokens of the longest chat, V words of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import component, placed, torch_dtype
from splatgen.models.paging import begin
from splatgen.models.weights import find
from splatgen.rewards import qwen
from splatgen.scene.uploads import upload

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

QUESTION, ANSWER = 'Does this image show "{}"?', "Yes"
# mean and standard deviation, only to put rewards on one scale: of a probability that may be anything
USUAL = (0.5, 0.25)


class VqaReward:
    """The probability, among all words, that the answer begins with "Yes"."""

    views = 1
    mean, spread = USUAL

    def __init__(
        self, *, name: str, network: Qwen2_5_VLForConditionalGeneration, chat: qwen.Chat, source: str
    ) -> None:
        self.name, self.source = name, source
        self.network = network
        self._chat = chat
        self._yes = chat.read(ANSWER)[0]
        self._questions: dict[str, list[int]] = {}

    def prepare(self, prompts: Sequence[str]) -> None:
        """Write down the question of each prompt in tokens."""
        for prompt in prompts:
            if prompt not in self._questions:
                self._questions[prompt] = self._chat.read(QUESTION.format(prompt))

    def release(self) -> None:
        """Nothing goes: the text is read together with the picture."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probabilities [B] for images [B, 3, H, W] in 0..1 and one prompt each."""
        self.prepare(prompts)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        height, width = qwen.sides(*images.shape[-2:])
        pixels, grid = qwen.patches(images, height, width)
        count = height * width // qwen.UNIT**2
        turns = [self._chat.turn(self._questions[prompt], count) for prompt in prompts]
        ids = qwen.rows(turns)
        seen = (ids == self._chat.image).int()
        places, _ = self.network.model.get_rope_index(ids, seen, image_grid_thw=grid)  # [3, B, L], on the CPU
        begin(self.network)  # its parts are called by themselves
        hidden = self.network.model(
            input_ids=upload(ids, images.device),
            pixel_values=pixels,
            image_grid_thw=upload(grid, images.device),
            position_ids=upload(places, images.device),
            use_cache=False,
        ).last_hidden_state  # [B, L, D]
        ends = upload(torch.tensor([[n, len(turn) - 1] for n, turn in enumerate(turns)]), images.device)
        last = hidden[ends[:, 0], ends[:, 1]]
        logits = self.network.lm_head(last)  # [B, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cast("Tensor", logits.softmax(-1)[:, self._yes])


def load(load_options: LoadOptions) -> VqaReward:
    """Qwen2.5-VL of 3 billion parameters, for research only by its licence."""
    return _load("vqa", load_options)


def load_7b(load_options: LoadOptions) -> VqaReward:
    """Qwen2.5-VL of 7 billion parameters."""
    return _load("vqa-7b", load_options)


def _load(name: str, load_options: LoadOptions) -> VqaReward:
    from transformers import Qwen2_5_VLForConditionalGeneration

    found = find(name, load_options.weights)
    dtype = torch_dtype(qwen.in_range(load_options))
    network = component(Qwen2_5_VLForConditionalGeneration, found.main, dtype=dtype)
    qwen.recomputed(network, load_options)
    return VqaReward(
        name=name,
        network=placed(network, load_options, device=None),
        chat=qwen.Chat(found.main, network.config.image_token_id),
        source=found.source,
    )
