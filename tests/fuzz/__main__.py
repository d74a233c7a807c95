"""`python -m tests.fuzz`: the figures as a table, a line for every fault; status 1 where there is
one."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time

os.environ.setdefault("TQDM_DISABLE", "1")  # the readers' own bars

from tqdm import tqdm

from . import run
from .readers import all_readers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of each reader's first file")
    parser.add_argument("--reader", default="", help="only those whose names begin so")
    options = parser.parse_args()
    readers = {k: v for k, v in all_readers().items() if k.startswith(options.reader)}
    if not readers or options.files < 1:
        parser.error(f"expected --files of at least 1, and a reader of {list(all_readers())}")
    run.limit_memory()
    began = time.perf_counter()
    with tqdm(total=options.files, unit=" files", disable=False, mininterval=1) as bar:

        def on_file(name: str, number: int) -> None:
            # what waits, or hangs in C code, ends with the process: the last line tells what it was
            bar.set_postfix_str(f"{name}, number {number}")
            bar.update()
            faulthandler.dump_traceback_later(30 * run.SECONDS, exit=True)

        tallies = run.fuzz(readers, options.files, options.seed, options.first, on_file)
    faulthandler.cancel_dump_traceback_later()
    print(run.table(tallies))
    print(f"\nseed {options.seed}, {(time.perf_counter() - began) / 60:.1f} minutes")
    faults = [line for tally in tallies.values() for line in tally.faults]
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
