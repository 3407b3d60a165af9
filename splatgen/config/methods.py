"""Published methods by name: a score and a preference each. No torch here.

Only the slots are named; every other setting stays what the run has, so that methods can be compared. The
presets in configs/ hold what the papers set beside them.
"""

from __future__ import annotations

import typing

from splatgen.config import ConfigError, Method
from splatgen.config.hints import did_you_mean

METHODS = {  # name: (score, preference)
    "sds": ("sds", "none"),
    "sdi": ("sdi", "none"),
    "vsd": ("vsd", "none"),
    "csd": ("csd", "none"),
    "nfsd": ("nfsd", "none"),
    "ism": ("ism", "none"),
    "bridge": ("bridge", "none"),
    "rewardsds": ("sds", "weighted"),
    "rewardsdi": ("sdi", "weighted"),
    "rewardvsd": ("vsd", "weighted"),
    "dreamdpo": ("sds", "dpo"),
    "psd": ("sds", "psd"),
    "dreamreward": ("sds", "ascent"),
}


def slots(name: str) -> dict[str, str]:
    """The settings of a method's name, or of SCORE+PREFERENCE; ConfigError when it is neither."""
    if name in METHODS:
        score, preference = METHODS[name]
        return {"score": score, "preference": preference}
    hints = typing.get_type_hints(Method)
    scores, preferences = typing.get_args(hints["score"]), typing.get_args(hints["preference"])
    score, plus, preference = name.partition("+")
    if plus and score in scores and preference in preferences:
        return {"score": score, "preference": preference}
    raise ConfigError(
        f"no method {name[:60]!r}; {did_you_mean(name, METHODS)}; or SCORE+PREFERENCE as in sdi+psd, "
        f"of {', '.join(scores)} and {', '.join(preferences)}"
    )
