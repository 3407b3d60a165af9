"""An object that is exact is judged so, one that is another is not, and a judge is asked every question."""

import pytest
import shelf_nets
import torch

from splatgen.rewards.shelf import ShelfReward
from splatgen.runs.rng import rng
from splatgen.scene.splats import Splats
from splatgen.worlds.shelf import evaluation
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.sampling import right
from splatgen.worlds.shelf.scenes import point_cloud


class Knowing:
    """A judge that prefers one text to all others."""

    def __init__(self, text: str) -> None:
        self.text = text

    def table(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(p.rpartition(",")[0] == self.text) for p in prompts]] * len(images))


def splats(text: str) -> Splats:
    """Small opaque splats all over a scene's surface."""
    means, rgb = point_cloud(parse(text), 8000, rng(0, 0, "points"))
    n = len(means)
    return Splats(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4).contiguous(),
        scales=torch.full((n, 3), -4.2),
        opacities=torch.full((n,), 4.0),
        sh=((rgb - 0.5) / 0.28209479)[:, None],
    )


def test_an_exact_object_is_close_and_another_is_not(shelf_of_boxes):
    evaluation.examination.cache_clear()
    caption = parse("a taxi on top of a cow")
    good = evaluation.evaluate(splats(str(caption)), caption, Knowing(str(caption)))
    assert good.iou > 0.82  # the splats reach a little over every edge
    assert good.psnr > 23
    assert good.psnr_256 > 23
    assert good.color_error < 0.08
    assert (good.nouns_right, good.places_right, good.all_right, good.all_right_truth) == (1, 1, 1, 1)
    other = evaluation.evaluate(splats("a frog next to a crab"), caption, Knowing("a taxi"))
    assert other.iou < 0.75
    assert other.psnr < good.psnr - 3
    assert (other.nouns_right, other.places_right, other.all_right) == (0, 0, 0)
    assert set(good.row()) == {"iou", "psnr", "psnr_256", "color_error", "nouns_right", "places_right",
                               "all_right", "all_right_truth"}  # fmt: skip
    evaluation.examination.cache_clear()


@pytest.mark.parametrize(
    "text", ["a taxi", "a red couch", "a cow on top of a red car", "a cow next to a taxi", "a red cube"]
)
@pytest.mark.parametrize("ordered", [True, False])
def test_every_choice_is_wrong_and_every_other_noun_is_among_them(text, ordered):
    caption = parse(text)
    found = evaluation.choices(caption, ordered=ordered)
    every = [*found.nouns, *found.places, *found.others]
    assert len(set(every)) == len(every)
    assert not any(right(other, caption, order_visible=ordered) for other in every)
    nouns = len(catalogue().nouns)
    expected = {"a taxi": nouns - 1, "a red couch": nouns - 1, "a red cube": 0}.get(text, 2 * (nouns - 2))
    assert len(found.nouns) == expected


def test_left_and_right_are_a_question_only_where_they_can_be_told():
    caption, mirrored = parse("a cow next to a taxi"), parse("a taxi next to a cow")
    assert mirrored in evaluation.choices(caption, ordered=True).places
    assert mirrored not in evaluation.choices(caption, ordered=False).places


def test_a_real_judge_answers(shelf_of_boxes):
    judge = ShelfReward(shelf_nets.net("judge"), "shelf-judge")
    evaluation.examination.cache_clear()
    seen = evaluation.examination(parse("a taxi"), 16)
    found = evaluation.judged(judge, seen.rgb, parse("a taxi"), seen.cameras)
    assert 0 <= found.all <= min(found.nouns, found.places) <= 1
    evaluation.examination.cache_clear()
