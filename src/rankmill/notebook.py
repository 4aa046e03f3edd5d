"""Progress in a notebook: one line below the cell, which changes in its place."""

from __future__ import annotations

import sys

from rankmill.progress import Listener, Progress


def listener() -> Listener | None:
    """What shows progress in the cell that is being run; None outside of notebooks."""
    # Whoever runs in a notebook has imported it; nobody else needs it.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    shown = display({"text/plain": "starting"}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def tell(now: Progress) -> None:
        shown.update({"text/plain": now.line()}, raw=True)

    return tell
