"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): published weights in transformers' classes.

The package `hpsv2` is not used: it needs torchvision, reads its weights anew for each call, and has no
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatgen.models import open_clip
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import Lazy, read_tensors
from splatgen.models.weights import WeightsError, find
from splatgen.rewards.clip import ClipReward, assembled, clip_tokenizer, open_clip_text, words_folder
from splatgen.rewards.pictures import padded

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection

# mean and standard deviation, only to put rewards on one scale. Means: of the better models in the tables of
# the HPSv2 repository. Deviations of single pictures are not published: these are of the size of the
# differences between its best and its older models
USUAL = {"hpsv2": (0.28, 0.03), "hpsv2.0": (0.27, 0.02)}
HEADS = (80, 64)  # width of a head in the image and the text tower of ViT-H-14


def load(load_options: LoadOptions) -> ClipReward:
    """HPSv2.1: cosine, some 0.15 to 0.4; not comparable with 2.0, nor between prompts."""
    return _load("hpsv2", "HPS_v2.1_compressed.pt", load_options)


def load_v20(load_options: LoadOptions) -> ClipReward:
    """HPSv2.0, which the package takes by default."""
    return _load("hpsv2.0", "HPS_v2_compressed.pt", load_options)


def _load(name: str, file: str, load_options: LoadOptions) -> ClipReward:
    found = find(name, load_options.weights)
    return from_file(found.main / file, words_folder(found), load_options, name=name, source=found.source)


def from_file(
    path: Path,
    words: Path,
    load_options: LoadOptions,
    *,
    name: str,
    source: str,
    heads: tuple[int, int] = HEADS,
) -> ClipReward:
    """The reward from a file as published and a folder with CLIP's tokenizer."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    tensors = _tensors(path)
    text = open_clip.text_config(tensors, path, heads[1])

    def text_tower() -> CLIPTextModelWithProjection:
        renamed = open_clip.text_tower(_tensors(path))
        return assembled(CLIPTextModelWithProjection, text, renamed, path, load_options)

    return ClipReward(
        name=name,
        image_tower=assembled(
            CLIPVisionModelWithProjection,
            open_clip.vision_config(tensors, path, heads[0]),
            open_clip.vision_tower(tensors),
            path,
            load_options,
            turns=True,
        ),
        text_tower=Lazy(text_tower),
        tokenizer=clip_tokenizer(words, text.vocab_size),
        usual=USUAL.get(name, (0.0, 1.0)),
        source=source,
        framed=padded,
        cleaned=open_clip_text,
    )


def _tensors(path: Path) -> Mapping[str, Any]:
    found = read_tensors(path).get("state_dict")
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds no 'state_dict': give the file that HPSv2's makers published")
    return found
