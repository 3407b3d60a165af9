"""HPSv3 (Ma et al. 2025, arXiv 2508.03789): Qwen2-VL of 7 billion parameters with a head of three layers.

A long question ends in the token <|Reward|>, and the head makes of that token's last state a mean and a
spread of the score, of which the mean is taken. The package `hpsv3` is not imported; its question is read out
of the package's file, which is the only place where it is published.

Shapes: B images, L tokens of the longest chat, D the width of the language model.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import check_finite, explained, fill, quiet, read_tensors
from splatgen.models.paging import begin
from splatgen.models.weights import WeightsError, find
from splatgen.rewards import qwen
from splatgen.rewards.clip import assembled
from splatgen.scene.uploads import upload

if TYPE_CHECKING:
    from transformers import Qwen2VLModel

FILE, PACKAGE = "HPSv3.safetensors", "hpsv3-1.0.0-py3-none-any.whl"
QUESTION_FILE = "hpsv3/dataset/data_collator_qwen.py"
QUESTION_NAMES = ("INSTRUCTION", "prompt_with_special_token")
MARK, BLANK = "<|Reward|>", "{text_prompt}"
PIXELS = 256 * qwen.UNIT**2  # every picture has about as many
# mean and standard deviation, only to put rewards on one scale: its makers' table has the averages of twelve
# models between -0.2 and 10.6, those of today's from 8 on
USUAL = (8.0, 3.0)


class Question:
    """What is asked of a picture: a text with a place for the prompt, before and after the marked token."""

    def __init__(self, text: str, place: Path) -> None:
        before, mark, self.after = text.partition(MARK)
        if not mark or before.count(BLANK) != 1 or MARK in self.after:
            raise WeightsError(f"{place} does not hold the question of HPSv3: fetch it again")
        self._before = before.split(BLANK)

    def __call__(self, prompt: str) -> str:
        """The text up to the mark."""
        return prompt.join(self._before)


class HpsV3:
    """Human Preference Score v3, some 0 to 12."""

    name = "hpsv3"
    views = 1
    mean, spread = USUAL

    def __init__(
        self, *, network: Qwen2VLModel, head: nn.Module, chat: qwen.Chat, question: Question, source: str
    ) -> None:
        self.source = source
        self.network, self.head = network, head
        self._chat, self._question = chat, question
        self._mark, self._after = len(chat), chat.read(question.after)
        self._said: dict[str, list[int]] = {}

    def prepare(self, prompts: Sequence[str]) -> None:
        """Write down the question about each prompt in tokens."""
        for prompt in prompts:
            if prompt not in self._said:
                self._said[prompt] = self._chat.read(self._question(prompt))

    def release(self) -> None:
        """Nothing goes: the text is read together with the picture."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each."""
        self.prepare(prompts)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        height, width = qwen.sides(images.shape[-2], images.shape[-1], PIXELS, PIXELS)
        pixels, grid = qwen.patches(images, height, width)
        count = height * width // qwen.UNIT**2
        turns = [
            self._chat.turn([*self._said[prompt], self._mark, *self._after], count) for prompt in prompts
        ]
        ids = upload(qwen.rows(turns), images.device)
        begin(self.network)
        # the published code gives no places: it was trained with a picture's tokens in a row, as in a text
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.network(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=upload(grid, images.device),
            position_ids=places,
            use_cache=False,
        ).last_hidden_state  # [B, L, D]
        marked = hidden[ids == self._mark]  # [B, D]
        scores: Tensor = self.head(marked.to(next(self.head.parameters()).dtype))[:, 0]
        return scores


def reward_head(width: int) -> nn.Sequential:
    """From [..., D] to mean and spread [..., 2]; its dropout does nothing outside training."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def read_question(package: Path) -> Question:
    """Two strings of the package's source, joined; it is read as a text and never run."""
    with explained("the question", package), zipfile.ZipFile(package) as held:
        body = ast.parse(held.read(QUESTION_FILE)).body
    found = {
        node.targets[0].id: node.value.value
        for node in body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    return Question("".join(found.get(name, "") for name in QUESTION_NAMES), package)


def renamed(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's tensors by the names of transformers' Qwen2VLModel, and those of the head.

    The file has the names of transformers 4.45: `visual.` and `model.`; since 4.52 those are
    `model.visual.` and `model.language_model.`. What predicts words is left out.
    """
    model, head = {}, {}
    for name, tensor in tensors.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = tensor
        elif name != "lm_head.weight":
            newer = re.sub(r"^model\.(?!visual\.|language_model\.)", "model.language_model.", name)
            model[newer.removeprefix("model.")] = tensor
    return model, head


def load(load_options: LoadOptions) -> HpsV3:
    """The published weights; raises WeightsError where they are not whole."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    found = find("hpsv3", load_options.weights)
    base, path = found.folders["base"], found.main / FILE
    with explained(Qwen2VLConfig, base), quiet():
        config = Qwen2VLConfig.from_pretrained(base, local_files_only=True)
    chat = qwen.Chat(base, config.image_token_id)
    tensors, head = renamed(read_tensors(path))
    words = tensors.get("language_model.embed_tokens.weight")
    if getattr(words, "shape", (0,))[0] != len(chat) + 1:
        raise WeightsError(f"{path} does not go with the tokenizer in {base}: fetch hpsv3 again")
    config.text_config.vocab_size = len(chat) + 1
    network = assembled(Qwen2VLModel, config, tensors, path, qwen.in_range(load_options), turns=True)
    check_finite(network, path)
    qwen.recomputed(network, load_options)
    judge = fill(reward_head(config.text_config.hidden_size), head, path)
    return HpsV3(
        network=network,
        head=judge.float().to(load_options.device),
        chat=chat,
        question=read_question(found.folders["question"] / PACKAGE),
        source=found.source,
    )
