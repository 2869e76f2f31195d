"""Plant bugs in the kernels and launchers of the GPU backends and see that a test fails: [-k words].

Kinds of bugs that tests of one axis at a time let pass: where a view meets a chunk, lengths meet a pack of lanes, a
setting meets a cache. A backend's are a list of mutants in a file of its own and a line in :data:`BUGS`. No device is
needed; about a minute a bug.
"""

from __future__ import annotations

import sys

import planted_cupy
import planted_triton
from mutants import Mutant
from mutation_check import main

BUGS: dict[str, list[Mutant]] = {"cupy": planted_cupy.BUGS, "triton": planted_triton.BUGS}

if __name__ == "__main__":
    sys.exit(main([bug for bugs in BUGS.values() for bug in bugs], __doc__))
