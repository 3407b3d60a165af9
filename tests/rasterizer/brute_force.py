"""A renderer written for clarity: every pixel against every splat, float64, autograd.

Independent of splatgen.rasterizer: 3D covariances, a matrix inverse, Legendre recurrences and a Python
loop over the depth order, where the kernels use factors, cofactors, polynomials and tiles.

Shapes: C cameras, N Gaussians, P = H W pixels, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.scene import cameras as cams

ALPHA_MIN, ALPHA_MAX, T_STOP = 1 / 255, 0.999, 1e-4


@dataclass
class Scene:
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor
    width: int
    height: int
    sh_degree: int | None = None

    NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")

    def leaves(self, dtype: torch.dtype) -> Scene:
        """A copy whose tensors are leaves of the type."""
        new = {name: getattr(self, name).detach().to(dtype).requires_grad_() for name in self.NAMES}
        return Scene(
            **new, Ks=self.Ks.to(dtype), width=self.width, height=self.height, sh_degree=self.sh_degree
        )


def random_scene(
    seed: int,
    count: int = 120,
    *,
    size: tuple[int, int] = (22, 13),
    views: int = 2,
    sh_degree: int | None = None,
    channels: int = 3,
    opacity: tuple[float, float] = (0.02, 0.95),
    scale: tuple[float, float] = (0.02, 0.3),
) -> Scene:
    g = torch.Generator().manual_seed(seed)
    colors = torch.rand(count, channels, generator=g)
    if sh_degree is not None:
        colors = 0.5 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=g)
    low, high = math.log(scale[0]), math.log(scale[1])
    camera = cams.orbit(
        torch.linspace(10, 250, views), torch.linspace(-20, 50, views), size=size, distance=2.0, fov=45.0
    )
    return Scene(
        means=torch.rand(count, 3, generator=g) * 1.6 - 0.8,
        quats=torch.randn(count, 4, generator=g),
        scales=torch.exp(low + (high - low) * torch.rand(count, 3, generator=g)),
        opacities=opacity[0] + (opacity[1] - opacity[0]) * torch.rand(count, generator=g),
        colors=colors,
        viewmats=cams.viewmats(camera),
        Ks=camera.K,
        backgrounds=torch.rand(views, channels, generator=g),
        width=size[0],
        height=size[1],
        sh_degree=sh_degree,
    )


def legendre(l: int, m: int, z: Tensor) -> Tensor:  # noqa: E741
    """P_l^m(z) / (1 - z^2)^(m/2) with the Condon-Shortley sign, by the usual recurrence."""
    value, below = (
        torch.full_like(z, float((-1) ** m * math.prod(range(2 * m - 1, 0, -2)))),
        torch.zeros_like(z),
    )
    for k in range(m + 1, l + 1):
        value, below = ((2 * k - 1) * z * value - (k + m - 1) * below) / (k - m), value
    return value


def harmonics(degree: int, n: Tensor) -> Tensor:
    """Real spherical harmonics [..., K] of unit vectors [..., 3]."""
    x, y, z = n.unbind(-1)
    out = []
    for l in range(degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            k = abs(m)
            re, im = torch.ones_like(x), torch.zeros_like(x)
            for _ in range(k):  # (x + iy)^k = sin^k(theta) (cos k phi + i sin k phi)
                re, im = re * x - im * y, re * y + im * x
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            azimuth = re if m == 0 else math.sqrt(2) * (im if m < 0 else re)
            out.append(norm * azimuth * legendre(l, k, z))
    return torch.stack(out, -1)


def rotations(quats: Tensor) -> Tensor:
    """v -> q v q^-1 as a matrix: Q = I + 2 w [u] + 2 [u]^2."""
    unit = quats / quats.norm(dim=-1, keepdim=True)
    w, u = unit[:, :1, None], unit[:, 1:]
    zero = torch.zeros_like(u[:, 0])
    cross = torch.stack(
        [zero, -u[:, 2], u[:, 1], u[:, 2], zero, -u[:, 0], -u[:, 1], u[:, 0], zero], -1
    ).reshape(-1, 3, 3)
    return torch.eye(3, dtype=quats.dtype) + 2 * w * cross + 2 * cross @ cross


def one_camera(
    s: Scene, c: int, *, antialiased: bool, eps2d: float = 0.3, near: float = 0.01
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image [P, D + 1] without background (the last channel is depth), T [P], pixel means [P, N, 2]."""
    R, t = s.viewmats[c, :3, :3], s.viewmats[c, :3, 3]
    f = torch.stack([s.Ks[c, 0, 0], s.Ks[c, 1, 1]])
    centre = s.Ks[c, :2, 2]
    size = torch.tensor([s.width, s.height], dtype=f.dtype)
    x = s.means @ R.T + t
    z = x[:, 2:]
    safe = torch.where(z >= near, z, 1.0)
    margin = 0.3 * 0.5 * size / f
    ratio = (x[:, :2] / safe).clamp(-centre / f - margin, (size - centre) / f + margin)
    J = torch.cat([torch.diag_embed(f / safe), (-f * ratio / safe)[..., None]], -1)  # [N, 2, 3]
    Q = rotations(s.quats)
    covar = Q @ torch.diag_embed(s.scales**2) @ Q.mT
    sharp = J @ R @ covar @ R.T @ J.mT
    blurred = sharp + eps2d * torch.eye(2, dtype=f.dtype)
    conic = torch.linalg.inv(blurred)
    opacity = s.opacities
    if antialiased:
        opacity = opacity * (torch.linalg.det(sharp).clamp(min=0) / torch.linalg.det(blurred)).sqrt()
    means2d = x[:, :2] / safe * f + centre
    color = s.colors
    if s.sh_degree is not None:
        eye = torch.linalg.inv(s.viewmats[c])[:3, 3]
        Y = harmonics(s.sh_degree, torch.nn.functional.normalize(s.means - eye, dim=-1))
        color = (torch.einsum("nk,nkd->nd", Y, s.colors[:, : Y.shape[1]]) + 0.5).clamp(min=0)
    color = torch.cat([color, z], -1)
    rows, cols = torch.meshgrid(torch.arange(s.height), torch.arange(s.width), indexing="ij")
    pixels = torch.stack([cols, rows], -1).reshape(-1, 2).to(f.dtype) + 0.5  # [P, 2]
    copies = means2d[None].expand(len(pixels), -1, -1) * 1.0  # each pixel's own, for absgrad
    if copies.requires_grad:
        copies.retain_grad()
    d = copies - pixels[:, None]
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, conic, d)
    value = opacity * torch.exp(-sigma)
    alpha = torch.where(value > ALPHA_MAX, ALPHA_MAX, value)
    alpha = torch.where((alpha >= ALPHA_MIN) & (z[:, 0] >= near), alpha, 0.0)
    T = torch.ones(len(pixels), dtype=f.dtype)
    done = torch.zeros(len(pixels), dtype=torch.bool)
    image = torch.zeros(len(pixels), color.shape[1], dtype=f.dtype)
    for i in torch.argsort(z[:, 0], stable=True).tolist():
        a = alpha[:, i]
        after = T * (1 - a)
        done = done | (after <= T_STOP)
        a = torch.where(done, 0.0, a)
        image = image + (a * T)[:, None] * color[i]
        T = T * (1 - a)
    return image, T, copies, means2d


@dataclass
class Reference:
    image: Tensor  # [C, H, W, D]
    alpha: Tensor  # [C, H, W, 1]
    copies: list[Tensor]  # C of [P, N, 2]

    def absgrad(self) -> Tensor:
        """[C, N, 2], after a backward."""
        return torch.stack([copy.grad.abs().sum(0) for copy in self.copies])


def brute_force(s: Scene, *, mode: str = "RGB", antialiased: bool = False) -> Reference:
    """What gsplat.rasterization(render_mode=mode) should return."""
    images, alphas, copies = [], [], []
    for c in range(len(s.viewmats)):
        image, T, copy, _ = one_camera(s, c, antialiased=antialiased)
        rgb, depth, alpha = image[:, :-1] + T[:, None] * s.backgrounds[c], image[:, -1:], (1 - T)[:, None]
        if "ED" in mode:
            depth = depth / alpha.clamp(min=1e-10)
        parts = {"RGB": [rgb], "D": [depth], "ED": [depth]}.get(mode, [rgb, depth])
        images.append(torch.cat(parts, -1).reshape(s.height, s.width, -1))
        alphas.append(alpha.reshape(s.height, s.width, 1))
        copies.append(copy)
    return Reference(torch.stack(images), torch.stack(alphas), copies)
