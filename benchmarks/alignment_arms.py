"""The arms of alignment.py: settings by name of every method and control, for each world."""

from __future__ import annotations

from typing import Any

Arms = dict[str, dict[str, Any]]
STEPS = 120  # of the toybox's runs


def weighted(strategy: str, candidates: int, lookahead: int, **more: Any) -> dict[str, Any]:
    """Settings of a weighted arm; all candidates of two are either best or worst."""
    ends = (
        {"top": min(2, candidates // 2), "bottom": min(2, candidates // 2)} if strategy == "min-max" else {}
    )
    ends = {"top": 1} if strategy == "best" else ends
    options = {"strategy": strategy, "candidates": candidates, "lookahead": lookahead, "stop": 1.0, **ends}
    return {"preference": "weighted", "weighted": {**options, **more}}


def arms() -> dict[str, dict[str, Any]]:
    """Settings by name of every method and control."""
    found: dict[str, dict[str, Any]] = {
        "sds": {},
        "sds, 4x steps": {"steps": 4 * STEPS},
        "mean of 4 noises": weighted("softmax", 4, 1, temperature=1e9),
        "sdi": {"score": "sdi"},
        "vsd": {"score": "vsd", "vsd": {"lr": 1e-4}},
        "vsd at 3e-3": {"score": "vsd", "vsd": {"lr": 3e-3}},
    }
    for candidates in (4, 8, 2):
        for lookahead in (1, 4):
            for strategy in ("min-max", "softmax", "best"):
                settings = weighted(strategy, candidates, lookahead)
                if strategy == "softmax":  # cosines differ by hundredths: raw, all weights are alike
                    settings["reward_options"] = {"units": "candidates"}
                found[f"{strategy}, N={candidates}, S={lookahead}"] = settings
    for rho in (1.0, 0.0):
        found[f"psd, rho={rho:.0f}"] = {"preference": "psd", "psd": {"rho": rho, "learn": False}}
        found[f"psd, rho={rho:.0f}, learned"] = {"preference": "psd", "psd": {"rho": rho, "lr": 1e-4}}
    for rate in (1e-3, 1e-2, 1e-1):
        found[f"psd, rho=1, learned at {rate:g}"] = {"preference": "psd", "psd": {"lr": rate}}
    found["dpo"] = {"preference": "dpo"}
    found["dpo, code"] = {"preference": "dpo", "dpo": {"form": "code"}}
    found["ascent"] = {"preference": "ascent"}
    found["ascent from the start"] = {"preference": "ascent", "ascent": {"start": 0.0}}
    found["ascent, last 30% pure"] = {"preference": "ascent", "ascent": {"pure": 0.3}}
    found["sdi, min-max, N=4"] = {"score": "sdi", **weighted("min-max", 4, 1)}
    found["vsd at 3e-3, min-max, N=4"] = {**found["vsd at 3e-3"], **weighted("min-max", 4, 1)}
    return found | further()


def further() -> dict[str, dict[str, Any]]:
    """Arms of scores and options that came later; the toybox reads no words for flaws or quality."""
    branches = {"scale": 1.0, "scale_end": 2.0, "null_scale": [1.0, 0.0], "scale_over": [0.0, 0.5]}
    return {
        "csd": {"score": "csd"},
        "csd, from null to negative": {"score": "csd", "guidance": branches},
        "nfsd": {"score": "nfsd"},
        "bridge": {"score": "bridge"},
        "ism": {"score": "ism"},
        "ism, warm-up": {
            "score": "ism",
            "ism": {"interval_start": 0.1},
            "guidance": {"t_max": [0.98, 0.5], "anneal": [0.0, 0.3]},
        },
        "sdi, 4 reverse steps": {"score": "sdi", "sdi": {"reverse": 4}},
        "scale from 3 to 1": {"guidance": {"scale": 3.0, "scale_end": 1.0}},
        "gradient clipped, 0.5 to 2": {"guidance": {"clip": [0.5, 2.0]}},
        "weighting dmd": {"guidance": {"weighting": "dmd"}},
        "times sqrt": {"guidance": {"times": "sqrt"}},
        "times dreamtime": {"guidance": {"times": "dreamtime"}},
        "times shifted by 3": {"guidance": {"shift": 3.0}},
        "one field of noise": {"guidance": {"noise": "world"}},
        "backgrounds white or black": {"views": {"background": "white-or-black"}},
        "elevations mixed": {"views": {"elevation_law": "mixed"}},
        "betas of torch": {"lr": {"betas": [0.9, 0.999]}},
        "positions fall first": {"lr": {"means_fall": [0.0, 0.6, 0.02]}},
        "total variation": {"regularise": {"tv": 1.0}},
        "depth and normal variation": {"regularise": {"depth_tv": 0.1, "normal_tv": 0.1}},
        "psd, no limit of time": {"preference": "psd", "psd": {"t_limit": 1.0}},
    }


def shelf_arms(steps: int) -> Arms:
    """What is worth its time on the shelf: every preference, and SDS at as many model calls.

    The shelf is guided at times from 0.6 up, where PSD's negative by default never learns.
    """
    found: Arms = {"sds": {}}
    found |= {f"sds, {times}x steps": {"steps": times * steps} for times in (2, 4)}
    for candidates in (4, 8):
        found[f"mean of {candidates} noises"] = weighted("softmax", candidates, 1, temperature=1e9)
        for strategy in ("best", "min-max"):
            found[f"{strategy}, N={candidates}, S=1"] = weighted(strategy, candidates, 1)
    for rho in (1.0, 0.0):
        found[f"psd, rho={rho:.0f}"] = {"preference": "psd", "psd": {"rho": rho, "learn": False}}
    learned = {"lr": 1e-2, "t_limit": 1.0}
    found["psd, rho=1, learned at 0.01, no limit of time"] = {"preference": "psd", "psd": learned}
    found["dpo"] = {"preference": "dpo"}
    found["ascent"] = {"preference": "ascent"}
    found["sdi"] = {"score": "sdi"}
    found["sdi, best, N=4"] = {"score": "sdi", **weighted("best", 4, 1)}
    return found
