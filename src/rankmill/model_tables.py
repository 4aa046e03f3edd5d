"""What a person sees of models: those known by name, a verified one, a quantized one."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankmill.cells import Cell, cell, facts_table
from rankmill.models.presets import Preset
from rankmill.quantize import Quantized
from rankmill.verify import Verification


def models_lines(known: tuple[Preset, ...], width: int) -> list[str]:
    """The models that rankmill knows by name: a line each, or two where the width is too small."""
    heading = ("architecture", "shape", "params", "tokens", "authors'", "languages", "licence")
    rows = [("name", heading)] + [
        (
            preset.name,
            (
                preset.architecture,
                f"{preset.layers}x{preset.hidden}",
                "" if preset.parameters is None else f"{preset.parameters / 1e6:.0f}M",
                f"{preset.max_length:,}",
                f"{preset.recommended_length:,}",
                ", ".join(preset.languages),
                preset.licence or "see its page",
            ),
        )
        for preset in known
    ]
    widths = [max(len(facts[column]) for _, facts in rows) for column in range(len(heading))]
    numbers = range(1, 5)
    longest = max(len(name) for name, _ in rows)
    lines = []
    for name, facts in rows:
        told = "  ".join(
            fact.rjust(widths[column]) if column in numbers else fact.ljust(widths[column])
            for column, fact in enumerate(facts)
        ).rstrip()
        if longest + 2 + sum(widths) + 2 * (len(widths) - 1) <= width:
            lines.append(f"{name.ljust(longest)}  {told}")
        else:
            lines += [name, f"  {told}"]
    return lines


def models_notes(known: tuple[Preset, ...]) -> list[str]:
    """What a user has to know before using some of the models, said once for all it is true of."""
    names: dict[str, list[str]] = {}
    for preset in known:
        said = f"not yet: {preset.reason}" if preset.reason else preset.note
        if said:
            names.setdefault(said, []).append(preset.name)
    return [f"{', '.join(those)}: {said}" for said, those in names.items()]


def print_verification(out: Console, found: Verification) -> None:
    """Published scores beside those found, a table a source, and what comes of it."""
    for one in found.comparisons:
        variant = "" if one.variant is None else f", read as {one.variant}"
        told = f"{one.source.source} ({one.source.computed}; ±{one.source.tolerance:g}){variant}"
        out.print(cell(told), soft_wrap=True)
        table = Table(box=None)
        table.add_column("document", overflow="ellipsis", no_wrap=True, max_width=40)
        for heading in ("expected", "found", "difference"):
            table.add_column(heading, justify="right", no_wrap=True)
        for example, score in zip(one.source.examples, one.found, strict=True):
            difference = f"{score - example.score:+.5f}"
            numbers = (f"{example.score:.4f}", f"{score:.4f}", difference)
            table.add_row(cell(example.document), *numbers)
        out.print(table)
    variants = " and as ".join(name for name in found.matching if name is not None)
    verdict = Text("gives", "green") if found.matches else Text("does not give", "red")
    which = f", read as {variants}," if variants else ""
    who, whose = found.name, "its published scores"
    if found.model != found.name:
        who, whose = found.model, f"the published scores of {found.name}"
    line = cell(f"{who}{which} ").append_text(verdict).append(f" {whose} (float32 on the CPU).")
    out.print(line, soft_wrap=True)


def quantized_table(found: Quantized) -> Table:
    """An int8 folder, and how well it agrees with its source."""
    card, agreed = found.card, found.card.agreement
    over = f"mean over {agreed.lists:,} lists" if agreed.lists else "all pairs as one list"
    overlap = agreed.overlap_at_10
    rows: list[tuple[Cell, Cell]] = [
        ("output", str(found.folder)),
        ("digest", found.digest[:12]),
        ("made of", f"{card.source.name} ({card.source.digest[:12]})"),
        (
            "calibrated with",
            f"{card.calibration.pairs:,} pairs of {card.calibration.lists:,} lists "
            f"({card.calibration.digest[:12]})",
        ),
        ("judged by", f"{agreed.pairs:,} other pairs, against fp32"),
        (
            "  Kendall's tau",
            f"{agreed.kendall_tau:.4f} ({over}; lowest {agreed.kendall_tau_lowest:.4f})",
        ),
        ("  best ten in common", "no list is longer" if overlap is None else f"{overlap:.1%}"),
        (
            "  scores differ by",
            f"{agreed.score_rms_difference:.3g} (root mean square; largest "
            f"{agreed.score_largest_difference:.3g}), and spread by {agreed.score_spread:.3g}",
        ),
    ]
    return facts_table(rows)
