"""Break each equation on purpose and see that a test fails: ``python tools/mutation_check.py [-k words]``.

Every mutant of ``mutants.py`` is one line of the package changed in a copy of the source tree; the tests of that part
run against the copy until the first failure. A mutant that survives is a hole in the tests. Takes about a minute a
mutant. ``planted_bugs.py`` does the same to the GPU backends.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the source tree, to break."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".*", "*.egg-info", "site", "dist", "build")
        shutil.copytree(ROOT, tree, ignore=ignored)
        (tree / "msf_pmsn_plugins" / "adapters").symlink_to(tree / "adapters")  # as an install lays it out
        yield tree


def survives(mutant: Mutant, tree: Path) -> bool:
    """Run the mutant's tests in ``tree``; whether all passed."""
    path = tree / "msf_pmsn_plugins" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) < 1:
        raise SystemExit(f"{mutant.what}: no such line any more in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    # -P: the installed package must not win over the copy.
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, **mutant.environment, "PYTHONPATH": str(tree)}
    try:
        run = subprocess.run(
            [*command, *shlex.split(mutant.tests)], cwd=tree, env=environment, capture_output=True, text=True
        )
    finally:
        path.write_text(text)
    # A mutant may end the process by a signal, but must compile.
    if run.returncode > 1 or "BuildError" in run.stdout:
        raise SystemExit(f"{mutant.what}: the tests did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 0


def main(mutants: Sequence[Mutant], description: str | None) -> int:
    """Run the chosen mutants; 1 if one survived."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-k", default="", help="only mutants whose description holds these words")
    words = parser.parse_args().k
    chosen = [mutant for mutant in mutants if words in mutant.what]
    if not chosen:
        parser.error(f"no mutant's description holds {words!r}: see mutants.py and planted_*.py in tools/")
    survivors = []
    with copied_tree() as tree:
        for mutant in chosen:
            start = time.perf_counter()
            alive = survives(mutant, tree)
            survivors += [mutant.what] if alive else []
            print(
                f"{'SURVIVED' if alive else 'caught':8}  {mutant.what}  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(MUTANTS, __doc__))
