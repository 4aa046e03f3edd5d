"""The page around the charts. Everything that a run brought along is text on it, and stays text.

Jinja2 escapes whatever is put in; the only markup that comes from outside the template are the
charts, which `figure` has escaped. Besides, the page forbids itself all that it does not need:
scripts, requests, frames, forms, and any style but its own sheet.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rankmill.config import InputConfig, ModelConfig, OutputConfig, RunConfig
from rankmill.masking import mask
from rankmill.progress import duration
from rankmill.report import charts
from rankmill.report.facts import Facts
from rankmill.report.figure import BAD, FIRST, LINE, SECOND, THIRD
from rankmill.report.flow import draw_flow, percent
from rankmill.report.movers import Mover

# The page is drawn for wide and narrow windows; a diagram of many columns is not just shrunk.
_WIDE, _NARROW = 900.0, 420.0
_FAILURES_SHOWN = 10


@dataclass(frozen=True)
class Setting:
    """A line of the settings. changed: it is not what rankmill does by itself."""

    name: str
    value: str
    changed: bool


def render(
    facts: Facts, gains: Sequence[Mover] | None = None, losses: Sequence[Mover] | None = None
) -> bytes:
    """The report as a file. gains, losses: None where no texts are to be shown."""
    return render_page(
        __package__ or "",
        "page.html",
        title=facts.run["model"]["name"],
        facts=facts,
        model=facts.run["model"],
        profile=facts.run["profile"],
        versions=facts.run["versions"],
        when=_when(facts),
        failures=[
            (shard, mask(why)) for shard, why in sorted(facts.failures.items())[:_FAILURES_SHOWN]
        ],
        flow_wide=draw_flow(facts.counters, _WIDE, "flow-wide"),
        flow_narrow=draw_flow(facts.counters, _NARROW, "flow-narrow"),
        charts=_charts(facts),
        settings=list(settings(facts.run["config"])),
        gains=gains,
        losses=losses,
    )


def render_page(package: str, template: str, **values: object) -> bytes:
    """A page as a file, in the report's dress. package: where the template lies, which includes
    `head.html` for the `title`."""
    style = resources.files("rankmill.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("rankmill.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "percent": percent, "duration": duration}
    page = environment.get_template(template)
    html = page.render(style=Markup(style), style_digest=digest, **values)
    return html.encode("utf-8", "replace")


def _charts(facts: Facts) -> dict[str, Markup | None]:
    counters, summary = facts.counters, facts.summary
    pairs = counters.pairs_scored + counters.pairs_duplicate
    whole = pairs - counters.pairs_truncated
    shares = [
        (
            "tokens computed",
            [("text", counters.tokens, SECOND), ("padding", counters.padded_tokens, LINE)],
        ),
        (
            "rows scored",
            [("seen whole", whole, SECOND), ("cut to fit", counters.pairs_truncated, THIRD)],
        ),
    ]
    stages = dict(_stages(facts))
    reasons = dict(sorted(counters.quarantine.items(), key=lambda item: -item[1]))
    return {
        "scores": charts.draw_scores(summary),
        "origins": charts.draw_origins(summary),
        "moves": charts.draw_moves(summary),
        "agreement": charts.draw_agreement(summary),
        "lengths": charts.draw_lengths(summary),
        "shares": charts.draw_shares(shares),
        "timeline": charts.draw_timeline(facts.timeline),
        "stages": charts.draw_lines("stages", stages, _seconds, FIRST),
        "reasons": charts.draw_lines("reasons", reasons, _rows, BAD),
    }


def _stages(facts: Facts) -> Iterator[tuple[str, float]]:
    """Seconds of each stage, by what it is called; scoring by model where there are several."""
    for key, name in charts.STAGES.items():
        if key == "score" and facts.models:
            yield from ((f"{name}, {label}", one.seconds) for label, one in facts.models.items())
        elif key in facts.stages:
            yield name, facts.stages[key]


def _seconds(size: float) -> str:
    return duration(size) if size >= 10 else f"{size:.2g} s"


def _rows(size: float) -> str:
    return "1 row" if size == 1 else f"{size:,.0f} rows"


def _when(facts: Facts) -> str | None:
    """`2026-11-21 03:00 to 05:12 UTC`: from the first scoring to the last."""
    if facts.timeline is None:
        return None
    began, ended = (
        datetime.fromtimestamp(at, UTC) for at in (facts.timeline.began, facts.timeline.ended)
    )
    day = "" if began.date() == ended.date() else "%Y-%m-%d "
    if ended - began < ended - ended.replace(second=0):
        return f"{began:%Y-%m-%d %H:%M} UTC"
    return f"{began:%Y-%m-%d %H:%M} to {ended.strftime(day + '%H:%M')} UTC"


def settings(config: Mapping[str, Any]) -> Iterator[Setting]:
    """Every setting of a run in its resolved form, without credentials."""
    usual = dict(_flat(_DEFAULTS))
    for name, value in _flat(config):
        yield Setting(name, mask(_shown(value)), name not in usual or usual[name] != value)


_DEFAULTS = RunConfig(
    input=InputConfig(path="-"), output=OutputConfig(path="-"), model=ModelConfig(name="-")
).model_dump(mode="json")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
