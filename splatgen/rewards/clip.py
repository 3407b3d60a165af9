"""Rewards that are the cosine of a picture and its prompt in CLIP's space: CLIP score and PickScore.

Shapes: B images, P prompts, L tokens, S the side that a network sees, D the width of the shared space.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import (
    Lazy,
    check_report,
    explained,
    frozen,
    placed,
    quiet,
    read_tensors,
    torch_dtype,
)
from splatgen.models.weights import ModelFiles, WeightsError, find
from splatgen.rewards.pictures import cropped, normalised

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

N = TypeVar("N", bound=torch.nn.Module)
# mean and standard deviation. Only to put rewards on one scale: hardly anybody publishes deviations of single
# pictures, so these are the middle and a quarter of the ranges in which published scores lie, if not said
USUAL = {
    "pickscore": (20.5, 1.25),  # 18..23 (Kirstain et al. 2023 and those who report it since)
    "clip": (27.5, 3.75),  # 20..35 for pictures that show their prompt, with ViT-L/14
    "clip-b32": (31.5, 2.5),  # 29.8..33.5, and 2.49 of one method's (Lukoianov et al. 2024, table 1)
}
VARIANTS = re.compile("[ĲĳŉǄ-ǌǱ-ǳﬀ-ﬆ！-￯\u3000]")  # ligatures, and letters of full and half width
STRAIGHT = str.maketrans(dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))


class ClipReward:
    """A scale times the cosine of picture and prompt (Radford et al. 2021).

    What is computed of a prompt is kept. A prompt that is too long is a ValueError: published codes cut it,
    and with it the words for the view, which come last.
    """

    views = 1

    def __init__(
        self,
        *,
        name: str,
        image_tower: CLIPVisionModelWithProjection,
        text_tower: Lazy[CLIPTextModelWithProjection],
        tokenizer: Any,  # CLIPTokenizer
        scale: float = 1.0,
        usual: tuple[float, float] = (0.0, 1.0),
        source: str = "",
        framed: Callable[[Tensor, int], Tensor] = cropped,  # [B, 3, H, W], S -> [B, 3, S, S]
        cleaned: Callable[[str], str] = str,
    ) -> None:
        self.name = name
        self.mean, self.spread = usual
        self.source = source
        self.scale = scale
        self.image_tower, self.text_tower = image_tower, text_tower
        self._tokenizer, self._framed, self._cleaned = tokenizer, framed, cleaned
        self._longest: int = text_tower.get().config.max_position_embeddings
        self._texts: dict[str, Tensor] = {}  # [D] of each prompt seen

    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed what is new among prompts; raises ValueError for one with too many tokens."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if new:
            self._texts.update(zip(new, self.embed_tokens(self.tokens(new)), strict=True))

    def release(self) -> None:
        self.text_tower.release()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each; float32, or better if they are."""
        self.prepare(prompts)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        pictures = normalised(self._framed(images, self.image_tower.config.image_size))
        texts = torch.stack([self._texts[prompt] for prompt in prompts])
        return self.scale * (self.embed_pixels(pictures) * texts).sum(-1)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Ids [P, L], zeros after each end: they change nothing, since a token sees those before it only."""
        texts = [self._cleaned(prompt) for prompt in prompts]
        rows = self._tokenizer(texts, split_special_tokens=True).input_ids  # no prompt says "<|endoftext|>"
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self._longest:
                raise ValueError(
                    f"the prompt {prompt[:40]!r}... has {len(row) - 2} tokens and {self.name} reads "
                    f"{self._longest - 2}: shorten it"
                )
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Unit vectors [P, D] of ids [P, L]."""
        tower = self.text_tower.get()
        with torch.no_grad():
            return unit(tower(ids.to(tower.device)).text_embeds)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D] of normalised pixels [B, 3, S, S]."""
        return embedded(self.image_tower, pixels)


def embedded(image_tower: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    """Unit vectors [B, D] of normalised pixels [B, 3, S, S], at least in float32."""
    return unit(image_tower(pixels.to(image_tower.dtype)).image_embeds)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] of length 1, at least in float32."""
    return normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def load(load_options: LoadOptions, name: str = "clip") -> ClipReward:
    """CLIP score with ViT-L/14: 100 x cosine, as torchmetrics has it, but not cut off at 0.

    (Hessel et al. 2021 define 2.5 x cosine, cut off at 0. Scores of other CLIP models are not comparable.)
    """
    return _load(name, load_options, scale=100.0)


def load_b32(load_options: LoadOptions) -> ClipReward:
    """CLIP score with ViT-B/32, as Score Distillation via Inversion reports it; no more comparable to `clip`
    than the scores of any other two CLIP models."""
    return load(load_options, "clip-b32")


def load_pickscore(load_options: LoadOptions) -> ClipReward:
    """PickScore (Kirstain et al. 2023): exp(logit_scale) x cosine of a ViT-H/14 tuned on people's choices."""
    return _load("pickscore", load_options, scale=None)


def _load(name: str, load_options: LoadOptions, scale: float | None) -> ClipReward:
    from transformers import CLIPTextModelWithProjection

    found = find(name, load_options.weights)
    path = _weights(found.main)
    config = clip_config(found.main)
    tensors = read_tensors(path)
    _check_scale(tensors, path)

    def text_tower() -> CLIPTextModelWithProjection:
        chosen = _part(read_tensors(path), "text")
        return assembled(CLIPTextModelWithProjection, config.text_config, chosen, path, load_options)

    return ClipReward(
        name=name,
        image_tower=image_tower(config, tensors, path, load_options),
        text_tower=Lazy(text_tower),
        tokenizer=clip_tokenizer(words_folder(found), config.text_config.vocab_size),
        scale=scale or float(tensors["logit_scale"].double().exp()),
        usual=USUAL.get(name, (0.0, 1.0)),
        source=found.source,
    )


def _weights(folder: Path) -> Path:
    """The file of a model's tensors: of older ones there may be only the pickle, of which nothing is run."""
    older = folder / "pytorch_model.bin"
    path = folder / "model.safetensors"
    return older if older.is_file() and not path.is_file() else path


def clip_config(folder: Path) -> CLIPConfig:
    """The architecture of a CLIP model from a folder in transformers' layout."""
    from transformers import CLIPConfig

    with explained(CLIPConfig, folder), quiet():
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    for tower in (config.text_config, config.vision_config):  # files leave it out, or have it wrong, there
        tower.projection_dim = config.projection_dim
    return config


def image_tower(
    config: CLIPConfig, tensors: Mapping[str, Any], path: Path, load_options: LoadOptions
) -> CLIPVisionModelWithProjection:
    """The image tower of a whole CLIP model's tensors; the text tower may be left out of them."""
    from transformers import CLIPVisionModelWithProjection

    chosen = _part(tensors, "vision")
    vision = config.vision_config
    return assembled(CLIPVisionModelWithProjection, vision, chosen, path, load_options, turns=True)


def assembled(
    kind: type[N],
    config: Any,
    tensors: Mapping[str, Any],
    path: Path,
    load_options: LoadOptions,
    *,
    turns: bool = False,
) -> N:
    """A network of transformers from tensors that must be exactly its own, where and as a run keeps it.

    turns: it is used at every step, and takes turns with others where a run does that. Raises WeightsError
    for what is missing, left over or of another shape. (`kind(config)` would fill it with random numbers
    first, in float32.)
    """
    with explained(kind, path), quiet():
        network, report = kind.from_pretrained(  # type: ignore[attr-defined]
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch_dtype(load_options),
            ignore_mismatched_sizes=True,  # they come with the report, and are refused here
            output_loading_info=True,
        )
    check_report(kind, path, report)
    return placed(frozen(cast("N", network)), load_options, device=None if turns else load_options.device)


def clip_tokenizer(folder: Path, vocabulary: int) -> Any:
    """CLIP's tokenizer; raises WeightsError for one of another vocabulary than the text tower's."""
    from transformers import CLIPTokenizer

    with explained(CLIPTokenizer, folder), quiet():
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id != vocabulary - 1:  # the last token in every CLIP model
        raise WeightsError(
            f"{folder} has the tokenizer of another model: its texts end in token {tokenizer.eos_token_id} "
            f"and the network's in {vocabulary - 1}; fetch it again"
        )
    return tokenizer


def words_folder(found: ModelFiles) -> Path:
    """Where a model's tokenizer is: a folder of its own, or with the weights."""
    return found.folders.get("tokenizer", found.main)


def open_clip_text(prompt: str) -> str:
    """A prompt as open_clip cleans it, before the tokenizer does the rest.

    open_clip calls ftfy for this. Of what that does, quotes, ligatures, full-width letters and HTML's
    entities are here; text in a wrong encoding is not repaired, and control characters stay.
    """
    text = html.unescape(html.unescape(prompt))
    text = VARIANTS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return text.translate(STRAIGHT).strip().lower()


def _part(tensors: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """One tower of a whole model; what belongs to none goes with the image's, for a strict load to refuse."""
    text = ("text_model.", "text_projection.")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(text) == (tower == "text") and name != "logit_scale"
    }


def _check_scale(tensors: Mapping[str, Any], path: Path) -> None:
    if getattr(tensors.get("logit_scale"), "shape", None) != ():
        raise WeightsError(f"{path} is no whole CLIP model: it has no logit_scale; fetch it again")
