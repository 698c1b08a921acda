"""Check and measure the trainer on this machine's first GPU, and its layouts on all of them.

    make gpu-check                                          everything, in about five minutes on an H100
    PYTHONPATH=benchmarks:tests python -m gpu_check --only steps --shape 4b --out gpu-check.json
    PYTHONPATH=benchmarks:tests python -m gpu_check --tiny   the same code at small sizes, also on a CPU

One line per measurement, and all of them in one JSON document. A check that fails is reported and the others go on; the
exit code is 1 then.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import checkpoints, environment, kernels, layouts, losses, parity, sampling, steps
from .sizes import SHAPES, Sizes

CHECKS: dict[str, Callable[[Sizes], Iterator[dict[str, Any]]]] = {
    "environment": environment.check,
    "kernels": kernels.check,
    "losses": losses.check,
    "steps": steps.check,
    "lora": steps.check_lora,
    "checkpoints": checkpoints.check,
    "sampling": sampling.check,
    "parity": parity.check,
    "layouts": layouts.check,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK", help=", ".join(CHECKS)
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.7b", help="of the full trainer's steps (default 1.7b)")
    parser.add_argument("--lora-shape", choices=SHAPES, default="4b", help="of the LoRA steps (default 4b)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the check itself")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    args = parser.parse_args()
    sizes = Sizes.tiny() if args.tiny else Sizes(args.shape, args.lora_shape)
    rows: list[dict[str, Any]] = []
    failed = False
    for name in args.only:
        started = time.perf_counter()
        try:
            for row in CHECKS[name](sizes):
                failed |= not row.get("ok", True)
                rows.append({"check": name} | row)
                print(json.dumps(rows[-1], default=str), flush=True)
        except Exception:  # noqa: BLE001  one check that fails must not cost the others' time on a borrowed card
            failed = True
            rows.append({"check": name, "error": traceback.format_exc()})
            print(rows[-1]["error"], file=sys.stderr, flush=True)
        rows.append({"check": name, "seconds": round(time.perf_counter() - started, 1)})
        args.out.write_text(json.dumps(rows, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(rows)} rows" + (", with failures" if failed else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
