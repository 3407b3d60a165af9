"""The packaged pictures of the shelf's nouns: `python -m splatgen.worlds.shelf.gallery` renders them.

One WebP of square thumbnails, row by row in the catalogue's order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from splatgen.worlds.shelf.catalogue import catalogue

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64  # pixels of a thumbnail
COLUMNS = 12
AZIMUTH, ELEVATION = 32.0, 20.0
DISTANCE = 2.15  # nearer than the models see it: nothing leaves the frame from here
BACKGROUND = 0.93
QUALITY = 82  # of WebP


def path() -> Path:
    """Where the packaged pictures lie."""
    return Path(__file__).with_name("gallery.webp")


def thumbnails() -> dict[str, Image]:
    """The picture of every noun by its name, SIDE x SIDE; raises OSError where the package lacks them."""
    from PIL import Image

    with Image.open(path(), formats=("WEBP",)) as file:
        sheet = file.convert("RGB")
    found = {}
    for n, noun in enumerate(catalogue().nouns):
        left, top = n % COLUMNS * SIDE, n // COLUMNS * SIDE
        found[noun] = sheet.crop((left, top, left + SIDE, top + SIDE))
    return found


def render() -> Image:
    """The sheet, from the models of this machine; ShelfError where there are none."""
    import torch
    from PIL import Image

    from splatgen.scene.cameras import orbit
    from splatgen.worlds.shelf.grammar import Caption, Item
    from splatgen.worlds.shelf.scenes import ground_truth

    captions = [Caption(Item(noun)) for noun in catalogue().nouns]
    angles = torch.full((len(captions),), AZIMUTH)
    cameras = orbit(angles, torch.full_like(angles, ELEVATION), size=SIDE, distance=DISTANCE)
    images = ground_truth(captions, cameras, torch.full((3,), BACKGROUND), supersample=4).rgb
    pixels = (255.0 * images + 0.5).byte().permute(0, 2, 3, 1).numpy()
    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE), (round(255 * BACKGROUND),) * 3)
    for n, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (n % COLUMNS * SIDE, n // COLUMNS * SIDE))
    return sheet


def main() -> None:
    render().save(path(), format="WEBP", quality=QUALITY, method=6)
    print(path())


if __name__ == "__main__":
    main()
