"""NeuroBench's figures, or the exception that it would print and go on without."""

from __future__ import annotations

import io
import warnings
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
    with warnings.catch_warnings(record=True) as given, redirect_stdout(told), redirect_stderr(io.StringIO()):
        found = benchmark.run()  # its bar goes to stderr, where warnings would too
    for one in given:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    errors = [line for line in told.getvalue().splitlines() if line.startswith("Error running")]
    if errors:
        raise RecipeError(f"NeuroBench: {'; '.join(dict.fromkeys(errors))}")
    return found
