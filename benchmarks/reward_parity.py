"""Our rewards against the packages that published them: `python benchmarks/reward_parity.py`.

The packages can't live beside ours (see REQUIREMENTS), so they run in an environment of their own, which is
built on the first call: some minutes, 2 GB, and a package index that pip can reach. There, a package makes a
network of its own classes, small and with random weights, and saves it as its makers saved the published one;
with --published it loads the published one instead. It then scores pictures through the function that its
users call, prompt and 8-bit picture in. Here, the saved file goes through `load_reward`. Compared are

    score      pictures of the network's own size
    gradient   of that score in the picture, relative, in the package's differentiable part
    resized    pictures of another size: PIL rounds them to 8 bits after resizing, ours are never rounded

Exits with 1 where score or gradient differ by more than TOLERANCE. Torch alone is imported at the top, since
this file also runs in the other environment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import types
import venv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT = Path(__file__).parents[1] / "build" / "parity"
PACKAGES = (
    "hpsv2==1.2.0",
    "image-reward==1.5",
)  # without what they ask for, which can't be installed together
REQUIREMENTS = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "transformers==4.40.2",  # image-reward does not import with 5, nor hpsv2's protobuf with it
    "timm==0.6.13",
    "fairscale==0.4.13",
    "huggingface-hub<1",
    "diffusers<0.32",
    "accelerate<1",
    "datasets<4",
    "numpy",
    "pillow",
    "requests",
    "clint",
    "ftfy",
    "regex",
)
TOLERANCE = {"score": 1e-5, "gradient": 1e-4}
PROMPTS = (
    "a red cube on a table",
    "two blue spheres, a photo",
    "A small GREEN boat & a dog's house, side view",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.&'"


# In our environment.


def build(folder: Path) -> Path:
    """The packages' environment; its Python. RuntimeError where it can't be built."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "done.txt"
    wanted = "\n".join((*REQUIREMENTS, *PACKAGES))
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"building {folder}: some minutes", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for arguments in (list(REQUIREMENTS), ["--no-deps", *PACKAGES]):
        found = subprocess.run([*pip, *arguments], check=False, text=True, stderr=subprocess.PIPE)
        if found.returncode:
            reason = [line for line in found.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError(
                f"the packages can't be installed into {folder}: {(reason or ['no reason given'])[0]}; they "
                "need Python 3.11, and an index that pip can reach"
            )
    done.write_text(wanted)
    return python


def pictures(height: int, width: int) -> Tensor:
    """Three smooth pictures [3, 3, H, W] in 0..255, with a few hard edges."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(len(PROMPTS), 3, 9, 9, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    fine[:, :, height // 3 : height // 2, width // 3 : width // 2] = 1.0
    return (255.0 * fine).round().to(torch.uint8)


def write_bert_words(folder: Path) -> int:
    """A vocabulary in bert-base-uncased's files; its length with BLIP's two words."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *(f"##{x}" for x in LETTERS),
        "red",
        "boat",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    return len(words) + 2


def write_clip_words(folder: Path) -> int:
    """CLIP's tokenizer of single bytes and a few merges; its length."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(n) for n in [*codes, *range(256, 256 + 256 - len(codes))]]
    merges = ["r e", "re d</w>", "b o", "bo a", "boa t</w>"]
    words = [*signs, *(f"{sign}</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    (folder / "special_tokens_map.json").write_text("{}")
    return len(words)


FILES = {"hpsv2": "HPS_v2.1_compressed.pt", "image-reward": "ImageReward.pt"}
WORDS = {"hpsv2": write_clip_words, "image-reward": write_bert_words}


def compare(name: str, python: Path, weights: str | None, published: bool) -> dict[str, Any]:
    """One row: the largest differences, and what was compared."""
    from splatgen.models.weights import find

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        job: dict[str, Any] = {"name": name, "random": not published}
        if published:
            found = find(name, weights)
            main, words = found.main, found.folders["tokenizer"]
        else:
            main, words, weights = work / name, work / name / "tokenizer", place
            words.mkdir(parents=True)
            job["vocabulary"] = WORDS[name](words)
        job |= {"main": str(main), "words": str(words), "file": str(main / FILES[name])}
        (work / "job.json").write_text(json.dumps(job))
        torch.save({"exact": pictures(224, 224), "resized": pictures(280, 280)}, work / "pictures.pt")
        subprocess.run([str(python), str(Path(__file__).resolve()), "--inside", place], check=True, cwd=place)
        theirs = torch.load(work / "theirs.pt", weights_only=True)
        return {"name": name, "weights": "published" if published else "random"} | differences(
            name, weights, torch.load(work / "pictures.pt", weights_only=True), theirs
        )


def differences(
    name: str, weights: str | None, seen: dict[str, Tensor], theirs: dict[str, Tensor]
) -> dict[str, Any]:
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards import load_reward

    reward = load_reward(name, LoadOptions(weights=weights))
    reward.prepare(PROMPTS)
    images = (seen["exact"].float() / 255.0).requires_grad_()
    scores = reward(images, PROMPTS)
    scores.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    with torch.no_grad():
        resized = reward(seen["resized"].float() / 255.0, PROMPTS)
    found = {
        "score": (scores.detach() - theirs["exact"]).abs().max(),
        "gradient": (images.grad - theirs["gradient"]).norm() / theirs["gradient"].norm(),
        "resized": (resized - theirs["resized"]).abs().max(),
        "spread": theirs["exact"].std(),  # of their scores, to read the others by
    }
    return {key: float(f"{float(value):.2e}") for key, value in found.items()}


# In the packages' environment.


def inside(work: Path) -> None:
    """Score with a package, and save what it found."""
    if torch.version.cuda is None:  # torchvision's own operators are not there beside torch for the CPU
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    job = json.loads((work / "job.json").read_text())
    seen = torch.load(work / "pictures.pt", weights_only=True)
    run = {"hpsv2": run_hpsv2, "image-reward": run_image_reward}[job["name"]]
    torch.manual_seed(0)
    torch.save(run(job, seen), work / "theirs.pt")


def as_pil(picture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def found_by(score: Any, differentiable: Any, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores [3] of each size, and the gradient [3, 3, H, W] of those of the first."""
    images = (seen["exact"].float() / 255.0).requires_grad_()
    scored = [differentiable(x, prompt) for x, prompt in zip(images, PROMPTS, strict=True)]
    torch.autograd.backward(torch.stack(scored).sum())
    assert images.grad is not None
    scores = {
        size: torch.tensor([score(as_pil(x), p) for x, p in zip(seen[size], PROMPTS, strict=True)])
        for size in ("exact", "resized")
    }
    return {**scores, "gradient": images.grad}


def run_image_reward(job: dict[str, Any], seen: dict[str, Tensor]) -> dict[str, Tensor]:
    Path("bert-base-uncased").symlink_to(job["words"])  # the package asks for it by this name
    sys.modules["clip"] = types.ModuleType("clip")  # imported for other scores, and not declared
    import ImageReward
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    med = Path(job["main"]) / "med_config.json"
    if job["random"]:
        med.write_text(json.dumps(MED | {"vocab_size": job["vocabulary"]}))
        small = VisionTransformer(img_size=224, patch_size=16, embed_dim=128, depth=2, num_heads=2)
        blip_pretrain.create_vit = lambda *args: (small, 128)
        model = ImageReward.ImageReward(med_config=str(med))
        livelier(model)
        torch.save(model.state_dict(), job["file"])
    model = ImageReward.load(job["file"], device="cpu", med_config=str(med))
    words = {"padding": "max_length", "truncation": True, "max_length": 35, "return_tensors": "pt"}

    def differentiable(image: Tensor, prompt: str) -> Tensor:
        tokens = model.blip.tokenizer(prompt, **words)
        pixels = model.preprocess.transforms[-1](image)[None]
        score: Tensor = model.score_gard(tokens.input_ids, tokens.attention_mask, pixels)[0, 0]
        return score

    return found_by(lambda picture, prompt: model.score(prompt, picture), differentiable, seen)


MED = {
    "hidden_size": 768, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 12,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    "pad_token_id": 0, "type_vocab_size": 2, "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip


def run_hpsv2(job: dict[str, Any], seen: dict[str, Tensor]) -> dict[str, Tensor]:
    import importlib.util

    spec = importlib.util.find_spec("hpsv2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0]) / "src" / "open_clip"
    merges = (Path(job["words"]) / "merges.txt").read_bytes()
    with gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "wb") as file:  # the package came without it
        file.write(merges.rstrip(b"\n"))
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory, get_tokenizer
    from hpsv2.src.open_clip.model import CLIP
    from hpsv2.src.open_clip.transform import image_transform

    if job["random"]:
        text = {"context_length": 77, "vocab_size": job["vocabulary"], "width": 128, "heads": 2, "layers": 2}
        vision = {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14}
        model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, output_dict=True)
        livelier(model)
        torch.save({"state_dict": model.state_dict()}, job["file"])
    else:
        model = factory.create_model("ViT-H-14", output_dict=True)
    transform = image_transform(224, is_train=False, resize_longest_max=True)
    img_score.model_dict.update(model=model, preprocess_val=transform)
    tokenizer = get_tokenizer("ViT-H-14")

    def differentiable(image: Tensor, prompt: str) -> Tensor:
        found = model(transform.transforms[-1](image)[None], tokenizer([prompt]))
        score: Tensor = (found["image_features"] * found["text_features"]).sum()
        return score

    img_score.score(as_pil(seen["exact"][0]), PROMPTS[0], cp=job["file"])  # loads the file into the model

    def score(picture: Any, prompt: str) -> float:
        return float(img_score.score(picture, prompt, cp=job["file"])[0])

    return found_by(score, differentiable, seen)


def livelier(model: torch.nn.Module) -> None:
    """Random weights that keep the size of what goes through: the packages' own make all scores equal."""
    for name, values in model.named_parameters():
        if values.ndim > 1:
            fan = values[0].numel() if "embed" not in name or "proj" in name else 4
            torch.nn.init.normal_(values, std=fan**-0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(values, std=0.1)
    model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the packages")
    parser.add_argument("--published", action="store_true", help="compare with the published weights")
    parser.add_argument("--weights", help="a folder of published models; else the Hugging Face cache")
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.inside:
        inside(args.inside)
        return 0
    try:
        python = build(args.environment)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [compare(name, python, args.weights, args.published) for name in FILES]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.out:
        from splatgen.runs.machine import machine_name

        report = {"date": datetime.now(UTC).strftime("%Y%m%d"), "machine": machine_name(), "rows": rows}
        report["packages"] = [*PACKAGES, *REQUIREMENTS]
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(not row[key] <= most for row in rows for key, most in TOLERANCE.items()))


if __name__ == "__main__":
    sys.exit(main())
