"""What a person sees of a tuned weight and of a fitted curve. Nothing is decided here."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rankmill.calibrate import BINS, Fit
from rankmill.cells import cell
from rankmill.evaluate.significance import RESAMPLES
from rankmill.evaluation_tables import differences
from rankmill.tune import Tuning

_KINDS = {"platt": "Platt", "isotonic": "isotonic", "sigmoid": "sigmoid", "share": "same for all"}


def print_tuning(out: Console, found: Tuning) -> None:
    """Each weight's mean, what cross-validation gives, and both parts alone."""
    rule = found.rule
    table = _table("model's weight", found.metric)
    for row in found.weights.to_dict("records"):
        mark = "  chosen" if row["weight"] == rule.weight else ""
        part = {0.0: "  first stage alone", 1.0: "  model alone"}.get(row["weight"], "")
        table.add_row(f"{row['weight']:.2f}", f"{row['value']:.4f}{mark}{part}")
    out.print(table)
    out.print()
    weights = ", ".join(f"{weight:.2f}" for weight in found.folds["weight"])
    out.print(
        f"Cross-validated {found.metric}: {found.cross_validated:.4f} ({found.queries:,} judged "
        f"queries, {len(found.folds)} folds, seed {found.seed}; weights {weights}).",
        markup=False,
    )
    table = _table("cross-validated, less", "mean", "difference", "95 % interval", "p rand.")
    for row in found.against.to_dict("records"):
        table.add_row(cell(row["part"]), f"{row['value']:.4f}", *differences(row)[:3])
    out.print(table)
    out.print(
        f"p rand.: paired randomisation test, two-sided; interval: percentile bootstrap; "
        f"{RESAMPLES:,} draws each."
    )
    out.print()
    k = f", k: {rule.k}" if rule.method == "rrf" else ""
    out.print("The rule, for a run's configuration:", markup=False)
    told = f"column: {rule.column}, method: {rule.method}, weight: {rule.weight}{k}"
    out.print(cell(f"  rank: {{fuse: {{{told}}}}}"), soft_wrap=True)


def print_fit(out: Console, found: Fit) -> None:
    """The measures of each kind of probability, and how far the curve's can be relied on."""
    table = _table("probability", "log loss", "Brier", "ECE")
    for row in found.held_out.to_dict("records"):
        figures = (f"{row[name]:.4f}" for name in ("log_loss", "brier", "ece"))
        table.add_row(_KINDS[row["of"]], *figures)
    out.print(table)
    out.print()
    table = _table("pairs", "mean probability", "relevant")
    for row in found.bins.to_dict("records"):
        shares = (f"{row[name]:.4f}" for name in ("probability", "relevant"))
        table.add_row(f"{int(row['rows']):,}", *shares)
    out.print(table)
    out.print()
    fitted = found.calibration.fitted
    out.print(
        f"{fitted['queries']:,} queries, {fitted['pairs']:,} pairs, {fitted['relevant']:,} of them "
        f"relevant, {fitted['unjudged']:,} unjudged (not relevant). Measured on queries held out: "
        f"{fitted['folds']} folds, seed {fitted['seed']}. ECE: {BINS} bins of equal size.",
        markup=False,
    )


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if "@" in name else "right", no_wrap=True)
    return table
