"""NeuroBench's figures, or the exception that it would print and go on without."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from neurobench.benchmarks import Benchmark

from . import RecipeError

__all__ = ["measured"]


def measured(benchmark: Benchmark) -> dict[str, Any]:
    """What ``benchmark`` gives, without its bars and headings.

    Raises:
        RecipeError: a metric that raised, for which NeuroBench puts 0 or None.
    """
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(io.StringIO()):  # its bar goes to stderr
        found = benchmark.run()
    errors = [line for line in told.getvalue().splitlines() if line.startswith("Error running")]
    if errors:
        raise RecipeError(f"NeuroBench: {'; '.join(dict.fromkeys(errors))}")
    return found
