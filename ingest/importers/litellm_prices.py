"""What each cost column of LiteLLM's table of models is here: a meter under conditions, or refused, with the reason. Data and parsing only."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ingest.store.price_terms import ANY, PriceTerms

HOUR_S: Final = 3_600
_BASES: Final[dict[str, tuple[str, str]]] = {
    "input_cost_per_token": ("input_tokens", "token"),
    "cache_read_input_token_cost": ("cache_read_tokens", "token"),
    "input_cost_per_token_cache_hit": ("cache_read_tokens", "token"),
    "cache_creation_input_token_cost": ("cache_write_tokens", "token"),
    "output_cost_per_token": ("output_tokens", "token"),
    "output_cost_per_reasoning_token": ("reasoning_tokens", "token"),
    "input_cost_per_audio_token": ("audio_tokens", "token"),
    "output_cost_per_audio_token": ("audio_output_tokens", "token"),
    "input_cost_per_image_token": ("image_tokens", "token"),
    "output_cost_per_image_token": ("image_output_tokens", "token"),
    "output_cost_per_image": ("image", "image"),
    "output_cost_per_second": ("second", "second"),
    "input_cost_per_second": ("second", "second"),
    "cost_per_second": ("second", "second"),
    "input_cost_per_character": ("character", "character"),
    "ocr_cost_per_page": ("page", "page"),
    "input_cost_per_query": ("request", "request"),
    "google_maps_grounding_cost_per_query": ("tool:maps_grounding", "request"),
}
"""Of several columns of one meter the first that says more than 0 counts, in this order."""
_NOT_TOLD: Final = "no sender tells how much of it a call used"
REFUSED: Final[dict[str, str]] = {
    "input_cost_per_image": "images that are sent are told as tokens",
    "input_cost_per_pixel": _NOT_TOLD,
    "output_cost_per_pixel": _NOT_TOLD,
    "input_cost_per_video_per_second": "seconds that are sent are not told apart from seconds that are made",
    "input_cost_per_video_token": _NOT_TOLD,
    "output_cost_per_second_480p": "the size of a video is not told",
    "output_cost_per_second_720p": "the size of a video is not told",
    "output_cost_per_second_1080p": "the size of a video is not told",
    "output_cost_per_second_4k": "the size of a video is not told",
    "cache_read_input_image_token_cost": "what was cached is told across kinds of content",
    "cache_read_input_audio_token_cost": "what was cached is told across kinds of content",
    "cache_creation_input_audio_token_cost": "what was cached is told across kinds of content",
    "input_dbu_cost_per_token": "units of Databricks are no money",
    "output_dbu_cost_per_token": "units of Databricks are no money",
}
"""Cost columns that become no price, and why."""
_SHAPE: Final = re.compile(r"(.+?)(_above_1hr)?(?:_above_(\d{1,6})k_tokens)?(?:_(batches|flex|priority))?")


class Priced(NamedTuple):
    """What a column is: its meter (a tier's is ``meter/tier``, as it was before tiers had a column), its unit, and conditions."""

    meter: str
    unit: str
    terms: PriceTerms


def litellm_columns(header: list[str]) -> dict[str, Priced]:
    """Return what each cost column of a header is, best first; empty = the file is no such table."""
    found: dict[str, Priced] = {}
    for base in _BASES:
        for name in header:
            shape = _SHAPE.fullmatch(name)
            if shape is None or shape[1] != base:
                continue
            _, hour, thousands, tier = shape.groups()
            meter, unit = _BASES[base]
            terms = PriceTerms(
                above_tokens=int(thousands) * 1_000 if thousands else None, cache_ttl_s=HOUR_S if hour else None
            )
            found[name] = Priced(f"{meter}/{tier}" if tier else meter, unit, terms if hour or thousands else ANY)
    return found
