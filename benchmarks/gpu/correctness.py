"""Whether the GPU computes what the CPU does: attention case by case, isolation of documents, whole training steps.

Also what the machine is and can do, and the speed of attention alone.
Example: python benchmarks/gpu/correctness.py --output runs/gpu
"""

from __future__ import annotations

from functools import partial

import attention
import ceilings
import training_step
from reporting import Report, arguments


def main() -> None:
    args = arguments(__doc__).parse_args()
    machine = Report("machine", args)
    machine.record("the machine", ceilings.machine)
    copy = partial(ceilings.copied_bytes_per_second, dry_run=args.dry_run)
    matmul = partial(ceilings.matmul_flops_per_second, dry_run=args.dry_run)
    machine.record("copying 4 GiB", lambda: {"gb_per_second": copy() / 1e9}, needs=5)
    machine.record("a bfloat16 product of 8192^3", lambda: {"tflops": matmul() / 1e12}, needs=5)
    correctness = Report("correctness", args)
    attention.check(correctness, dry_run=args.dry_run)
    training_step.check(correctness, dry_run=args.dry_run)
    attention.speed(Report("attention", args), dry_run=args.dry_run)


if __name__ == "__main__":
    main()
