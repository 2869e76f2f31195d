"""Break each equation on purpose and see that a test fails: ``python tools/mutation_check.py [-k words]``.

Every mutant is one line of the package changed in a copy of the source tree; the tests of that part run against the
copy until the first failure. A mutant that survives is a hole in the tests. Takes about a minute a mutant.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MSF, PMSN = "neurons/msf.py", "neurons/pmsn.py"
TORCH = "backends/torch_backend.py"
MSF_TESTS = "tests/neurons/test_msf.py tests/neurons/test_variants.py"
PMSN_TESTS = "tests/neurons/test_pmsn.py tests/neurons/test_variants.py"
BOTH = MSF_TESTS + " tests/neurons/test_pmsn.py tests/neurons/test_streaming.py"


@dataclass(frozen=True)
class Mutant:
    """What is broken, in which file, and the tests that must notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "MSF oracle: strict threshold",
        "surrogate.py",
        "return (u >= 0).to(u.dtype)",
        "return (u > 0).to(u.dtype)",
        MSF_TESTS,
    ),
    Mutant("MSF: strict threshold", TORCH, "s += m >= theta", "s += m > theta", MSF_TESTS),
    Mutant(
        "MSF: reset looks at the last threshold",
        TORCH,
        "torch.where(m >= thresholds[0], v_reset, m)",
        "torch.where(m >= thresholds[-1], v_reset, m)",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: soft reset of one threshold whatever the count",
        TORCH,
        "m - _count(m, thresholds) * thresholds[0]",
        "m - (m >= thresholds[0]) * thresholds[0]",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: gradient through a fired step",
        TORCH,
        'back = gv * keep_seq[t] if reset_mode == "hard" else gv',
        "back = gv",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: backward in the wrong order of time",
        TORCH,
        "for t in range(len(kept) - 1, -1, -1):",
        "for t in range(len(kept)):",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: slope at the first threshold only",
        TORCH,
        "total = total + slope(m_seq - theta, surrogate, width)",
        "total = total + 0 * slope(m_seq - theta, surrogate, width)",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: closed window of the rectangle",
        "surrogate.py",
        "(u.abs() < a)",
        "(u.abs() <= a)",
        MSF_TESTS + " tests/test_surrogate.py",
    ),
    Mutant(
        "MSF: closed window of the kept byte",
        TORCH,
        "count += (m - theta).abs() < width",
        "count += (m - theta).abs() <= width",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: decay forgotten in the backward",
        "charges.py",
        "return (g if b == 1.0 else b * g), k * g",
        "return (g if b == 1.0 else b * g), g",
        MSF_TESTS,
    ),
    Mutant(
        "MSF: gradient of the decay with the membrane before reset",
        TORCH,
        "_after_reset(kept[t - 1], thresholds, v_reset, reset_mode)",
        "kept[t - 1]",
        MSF_TESTS,
    ),
    Mutant("MSF: lengths off by one", TORCH, ".unsqueeze(1) < lengths", ".unsqueeze(1) <= lengths", BOTH),
    Mutant(
        "loop: lengths off by one",
        "neurons/base.py",
        "device=lengths.device).unsqueeze(1) < lengths",
        "device=lengths.device).unsqueeze(1) <= lengths",
        BOTH,
    ),
    Mutant(
        "PMSN oracle: strict threshold",
        PMSN,
        "s = torch.where(k >= 1, k if burst else 1.0, 0.0)",
        "s = torch.where(v > 1, k if burst else 1.0, 0.0)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: strict threshold",
        TORCH,
        "s_seq = torch.where(k_seq >= 1, k_seq if burst else 1.0, 0.0)",
        "s_seq = torch.where((k_seq >= 1) & (_v_seq > 1), k_seq if burst else 1.0, 0.0)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: one threshold removed instead of all",
        PMSN,
        "        k = torch.floor(v.detach())\n        return v, k, v.detach() - k\n    # In double",
        "        k = torch.floor(v.detach())\n        return v, k, v.detach() - k.clamp(max=1)\n    # In double",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: missing clamp of the drive",
        TORCH,
        'torch.relu(y_seq) if reset_mode == "floor" else y_seq',
        "y_seq",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: missing mask of the clamp",
        TORCH,
        "gy = torch.where(y_seq > 0, gy, 0.0)",
        "gy = gy",
        PMSN_TESTS,
    ),
    Mutant("PMSN: residual in volts", PMSN, "v = r + q\n", "v = r / v_threshold + q\n", PMSN_TESTS),
    Mutant(
        "PMSN: slope in units of the threshold",
        TORCH,
        "u_seq = volts - v_threshold\n",
        "u_seq = v_seq - 1\n",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: input one step late",
        PMSN,
        "z = a * z + x.unsqueeze(-1)\n    y = (w * z)",
        "z, late = a * z + x.unsqueeze(-1), z\n    y = (w * late)",
        PMSN_TESTS,
    ),
    Mutant("PMSN: missing zero-order hold", PMSN, "c * b * (phi * dt)", "c * b * dt", PMSN_TESTS),
    Mutant(
        "PMSN: cancelling zero-order hold", PMSN, "small = z.abs() < 0.5", "small = z.abs() < 0.0", PMSN_TESTS
    ),
    Mutant(
        "PMSN: missing conjugate in the adjoint",
        TORCH,
        "g_state = block.jump.conj_physical() * g_state + part",
        "g_state = block.jump * g_state + part",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: missing conjugate in the gradient of w",
        TORCH,
        "gw += (g_leave * block.powers[..., 1:].conj_physical()).sum(-1)",
        "gw += (g_leave * block.powers[..., 1:]).sum(-1)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: modes folded as conjugate pairs",
        TORCH,
        "kernel = (w * powers[..., :size]).real.sum(1)",
        "kernel = 2 * (w * powers[..., :size]).real[:, : (a.shape[1] + 1) // 2].sum(1)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: gradient through the reset",
        TORCH,
        'elif reset_mode == "cumulative":\n        after',
        'if reset_mode in ("floor", "cumulative"):\n        after',
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: cumulative mode without its gradient through time",
        TORCH,
        "gy = gy.flip(0).cumsum(0).flip(0) + after",
        "gy = gy + after",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: serial reset of a negative membrane",
        PMSN,
        "k = torch.floor(v.detach()).clamp(min=0)",
        "k = torch.floor(v.detach())",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: residual rounded up to a threshold",
        TORCH,
        "last.clamp_(max=1 - torch.finfo(r.dtype).eps / 2)",
        "last.clamp_(max=1)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: fixed point loses its carry",
        TORCH,
        "before = torch.cat([(first & fraction).unsqueeze(0), residual[:-1]])",
        "before = torch.cat([residual[:1] * 0, residual[:-1]])",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: coeff left out of the direct gain",
        PMSN,
        "d if self.coeff == 1 else self.coeff * d",
        "d",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: a tied pair counted once",
        PMSN,
        "(2 if self.tied else 1)\n        return a, w",
        "1\n        return a, w",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: dt_scale the wrong way",
        PMSN,
        "log_dt + math.log(self.dt_scale)",
        "log_dt - math.log(self.dt_scale)",
        PMSN_TESTS,
    ),
    Mutant(
        "PMSN: global context keeps the local input",
        PMSN,
        "return response * mean + d.reshape(-1, 1) * x_seq",
        "return response * mean + d.reshape(-1, 1) * mean",
        PMSN_TESTS,
    ),
    Mutant(
        "state: reordering forgets the order",
        "state.py",
        "lambda tensor: tensor[index.to(tensor.device)]",
        "lambda tensor: tensor[: len(index)]",
        "tests/neurons/test_streaming.py",
    ),
]


def survives(mutant: Mutant, tree: Path) -> bool:
    """Run the mutant's tests in ``tree``; whether all passed."""
    path = tree / "msf_pmsn_plugins" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) < 1:
        raise SystemExit(f"{mutant.what}: no such line any more in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    # -P: the installed package must not win over the copy.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *mutant.tests.split(),
    ]
    run = subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    path.write_text(text)
    if run.returncode not in (0, 1):
        raise SystemExit(f"{mutant.what}: the tests did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 0


def main() -> int:
    """Run the chosen mutants; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only mutants whose description holds these words")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().k in mutant.what]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".*", "*.egg-info", "site", "dist", "build")
        )
        (tree / "msf_pmsn_plugins" / "adapters").symlink_to(tree / "adapters")  # as an install lays it out
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
    sys.exit(main())
