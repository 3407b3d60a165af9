"""MVDream as its authors publish it: torch modules from its equations, with its names, and a tiny file.

An independent reading of the published architecture (the latent-diffusion UNet with self-attention over all
views and an embedding of the camera, its autoencoder, open_clip's text tower), to compare ours with. Its
state_dict is the published file's, at full size, too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, layer_norm, pad, silu


@dataclass(frozen=True, kw_only=True)
class Sizes:
    channels: int
    mults: tuple[int, ...]
    layers: int
    attention: tuple[int, ...]  # at which reductions of the side
    head: int
    context: int
    vae: int
    vae_mults: tuple[int, ...]
    vae_layers: int
    words: int
    blocks: int
    text_head: int = 64


FULL = Sizes(
    channels=320, mults=(1, 2, 4, 4), layers=2, attention=(4, 2, 1), head=64, context=1024,
    vae=128, vae_mults=(1, 2, 4, 4), vae_layers=2, words=49408, blocks=24,
)  # fmt: skip
TINY = Sizes(
    channels=32, mults=(1, 2, 2), layers=1, attention=(2, 1), head=64, context=64,
    vae=32, vae_mults=(1, 1), vae_layers=1, words=514, blocks=3,
)  # fmt: skip


def attend(q, k, v, heads):
    """softmax(q k^T / sqrt(d)) v, head by head, spelled out."""
    (b, n, c), m = q.shape, k.shape[1]
    q, k, v = (z.reshape(b, -1, heads, c // heads).transpose(1, 2) for z in (q, k, v))
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(c // heads)
    assert scores.shape == (b, heads, n, m)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


class Attention(nn.Module):
    def __init__(self, width, context, head):
        super().__init__()
        self.heads = max(width // head, 1)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, told):
        return self.to_out(attend(self.to_q(x), self.to_k(told), self.to_v(told), self.heads))


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * gelu(gate)


class Block(nn.Module):
    def __init__(self, width, context, head):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, head), Attention(width, context, head)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gate(width), nn.Dropout(0.0), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context, views):
        b, n, c = x.shape
        x = x.reshape(b // views, views * n, c)  # (b f) l c -> b (f l) c
        seen = self.norm1(x)
        x = (x + self.attn1(seen, seen)).reshape(b, n, c)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width, context, head):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, context, head)])

    def forward(self, x, emb, context, views):
        b, c, h, w = x.shape
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, context, views))
        return x + tokens.transpose(1, 2).reshape(b, c, h, w)


class Residual(nn.Module):
    def __init__(self, taken, given, time):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, taken), nn.SiLU(), nn.Conv2d(taken, given, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, given))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, given), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(given, given, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if taken == given else nn.Conv2d(taken, given, 1)

    def forward(self, x, emb, context, views):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb, context, views):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb, context, views):
        return self.conv(interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, emb, context, views):
        return super().forward(x)


class MultiView(nn.Module):
    """The UNet: input_blocks, middle_block, output_blocks, as they are numbered in the published code."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.width = ch = s.channels
        time = 4 * ch
        self.time_embed = nn.Sequential(nn.Linear(ch, time), nn.SiLU(), nn.Linear(time, time))
        self.camera_embed = nn.Sequential(nn.Linear(16, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(4, ch, 3, padding=1)])])
        skips, reduction = [ch], 1
        for level, mult in enumerate(s.mults):
            for _ in range(s.layers):
                parts = [Residual(ch, mult * s.channels, time)]
                ch = mult * s.channels
                if reduction in s.attention:
                    parts.append(Transformer(ch, s.context, s.head))
                self.input_blocks.append(nn.ModuleList(parts))
                skips.append(ch)
            if level < len(s.mults) - 1:
                self.input_blocks.append(nn.ModuleList([Down(ch)]))
                skips.append(ch)
                reduction *= 2
        middle = (Residual(ch, ch, time), Transformer(ch, s.context, s.head), Residual(ch, ch, time))
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(s.mults))):
            for n in range(s.layers + 1):
                parts = [Residual(ch + skips.pop(), mult * s.channels, time)]
                ch = mult * s.channels
                if reduction in s.attention:
                    parts.append(Transformer(ch, s.context, s.head))
                if level and n == s.layers:
                    parts.append(Up(ch))
                    reduction //= 2
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), nn.Conv2d(ch, 4, 3, padding=1))

    def forward(self, x, rows, context, camera, views):
        """rows are whole numbers of the schedule; camera [B, 16] or None."""
        half = self.width // 2
        turns = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = rows.float()[:, None] * turns  # in single precision, as published
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1).to(x))
        if camera is not None:
            emb = emb + self.camera_embed(camera)
        kept = []
        for parts in self.input_blocks:
            for part in parts:
                x = part(x, emb, context, views)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, emb, context, views)
        for parts in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in parts:
                x = part(x, emb, context, views)
        return self.out(x)


class Plain(nn.Module):
    """A residual block of the autoencoder."""

    def __init__(self, taken, given):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, taken, eps=1e-6), nn.Conv2d(taken, given, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, given, eps=1e-6), nn.Conv2d(given, given, 3, padding=1)
        if taken != given:
            self.nin_shortcut = nn.Conv2d(taken, given, 1)

    def forward(self, x):
        h = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Single(nn.Module):
    """Attention of one head over the pixels."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        seen = self.norm(x)
        q, k, v = (z(seen).flatten(2).transpose(1, 2) for z in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v, 1).transpose(1, 2).reshape(x.shape))


def middle(width):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = Plain(width, width), Single(width), Plain(width, width)
    return mid


def level(taken, given, count):
    found = nn.Module()
    found.block = nn.ModuleList(Plain(given if n else taken, given) for n in range(count))
    found.attn = nn.ModuleList()
    return found


class Encoder(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        widths = [s.vae * mult for mult in (1, *s.vae_mults)]
        self.conv_in = nn.Conv2d(3, s.vae, 3, padding=1)
        self.down = nn.ModuleList(level(a, b, s.vae_layers) for a, b in itertools.pairwise(widths))
        for n, stage in enumerate(self.down[:-1], 1):
            stage.downsample = nn.Module()
            stage.downsample.conv = nn.Conv2d(widths[n], widths[n], 3, stride=2)
        self.mid = middle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 8, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample.conv(pad(x, (0, 1, 0, 1)))
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        widths = [s.vae * mult for mult in s.vae_mults]
        self.conv_in = nn.Conv2d(4, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        self.up = nn.ModuleList(
            level(a, b, s.vae_layers + 1) for a, b in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        for n, stage in enumerate(self.up):
            if n:
                stage.upsample = nn.Module()
                stage.upsample.conv = nn.Conv2d(widths[n], widths[n], 3, padding=1)
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z):
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "upsample"):
                x = stage.upsample.conv(interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        self.encoder, self.decoder = Encoder(s), Decoder(s)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, images):
        """Images in -1..1 to the mean of the posterior, scaled."""
        return 0.18215 * self.quant_conv(self.encoder(images)).chunk(2, 1)[0]

    def decode(self, x):
        return self.decoder(self.post_quant_conv(x / 0.18215))


class TextBlock(nn.Module):
    def __init__(self, width, head):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // head)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask):
        """x [N, B, D], as MultiheadAttention takes it."""
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp.c_proj(gelu(self.mlp.c_fc(self.ln_2(x))))


class Text(nn.Module):
    """open_clip's CLIP without its image tower."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(TextBlock(s.context, s.text_head) for _ in range(s.blocks))
        self.token_embedding = nn.Embedding(s.words, s.context)
        self.positional_embedding = nn.Parameter(torch.randn(77, s.context))
        self.ln_final = nn.LayerNorm(s.context)
        self.text_projection = nn.Parameter(torch.randn(s.context, s.context))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens):
        """Tokens [B, 77] to states [B, 77, D]: all layers but the last, then the last norm."""
        mask = torch.full((77, 77), -torch.inf).triu(1).to(self.positional_embedding)
        x = (self.token_embedding(tokens) + self.positional_embedding).transpose(0, 1)
        for block in self.transformer.resblocks[:-1]:
            x = block(x, mask)
        norm = self.ln_final
        return layer_norm(x.transpose(0, 1), norm.normalized_shape, norm.weight, norm.bias, 1e-5)


class Published(nn.Module):
    """All of the checkpoint, with the tables of the schedule."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = MultiView(s)
        self.first_stage_model = Autoencoder(s)
        self.cond_stage_model = nn.Module()
        self.cond_stage_model.model = Text(s)
        for name, table in schedule().items():
            self.register_buffer(name, table.float())

    @property
    def unet(self):
        return self.model.diffusion_model

    @property
    def text(self):
        return self.cond_stage_model.model


def schedule():
    """Ho et al. 2020's tables for betas whose roots rise linearly."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    return {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - kept),
    }


def tokenizer():
    """CLIP's own, with bytes for words."""
    from transformers import CLIPTokenizer

    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    numbered = {word: n for n, word in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbered, merges=[], model_max_length=77)


def published(seed=0):
    """A tiny one with random weights, the same at every call; norms differ from ones and zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = Published(TINY).eval().requires_grad_(False)
        for module in found.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.weight.add_(0.2 * torch.randn_like(module.weight))
                module.bias.add_(0.2 * torch.randn_like(module.bias))
    return found


def save(found, folder):
    """The published layout: one file, and CLIP's tokenizer beside it, as `splatgen fetch` puts it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found.state_dict(), folder / "sd-v2.1-base-4view.pt")
    save_tokenizer(folder / "tokenizer")
    return folder


def save_tokenizer(folder):
    """vocab.json and merges.txt, as the published repository has them."""
    import json

    found = tokenizer()
    found.save_pretrained(folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps(found.get_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>"}
    special |= {f"{name}_token": "<|endoftext|>" for name in ("eos", "unk", "pad")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return folder
