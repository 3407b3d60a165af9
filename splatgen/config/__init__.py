"""The settings of a run: frozen dataclasses, read from strict TOML or JSON. No torch here.

Every schedule is a fraction of the run in 0..1, so that `--steps` rescales them all.
Precedence: these defaults < preset < config file < command line.

Not here: anything that acts on a setting; nothing below knows of files but TOML and JSON.
"""

from splatgen.config.guidance_options import (
    AscentOptions,
    BridgeOptions,
    DPOOptions,
    GuidanceOptions,
    ISMOptions,
    NFSDOptions,
    PSDOptions,
    RefineOptions,
    SDIOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.config.model_options import (
    PriorOptions,
    RewardOptions,
)
from splatgen.config.reading import (
    convert,
    from_dict,
    merge,
    presets,
    read_file,
    read_preset,
    to_dict,
)
from splatgen.config.run_options import (
    EditOptions,
    ImageOptions,
    OutputOptions,
)
from splatgen.config.scene_options import (
    DensifyOptions,
    LearningOptions,
    RegulariseOptions,
    RenderOptions,
    SplatOptions,
    ViewOptions,
)
from splatgen.config.schema import (
    Config,
    ConfigError,
    ImageConfig,
    Method,
)

__all__ = [
    "AscentOptions", "BridgeOptions", "Config", "ConfigError", "DPOOptions", "DensifyOptions", "EditOptions",
    "GuidanceOptions", "ISMOptions", "ImageConfig", "ImageOptions", "LearningOptions", "Method",
    "NFSDOptions", "OutputOptions",
    "PSDOptions", "PriorOptions", "RefineOptions", "RegulariseOptions", "RenderOptions", "RewardOptions",
    "SDIOptions", "SplatOptions", "VSDOptions", "ViewOptions", "WeightedOptions", "convert", "from_dict",
    "merge", "presets", "read_file", "read_preset", "to_dict",
]  # fmt: skip
