"""Damaged and hostile files for every reader of the package.

`damage.py` makes them, `readers.py` says what a reader may make of them, `run.py` reads each under
limits on time and memory. `make fuzz FUZZ_FILES=10000`, or

    python -m tests.fuzz --files 1000 --reader SVHN --seed 1

A file depends only on the seed, the reader and its number. `tests/test_fuzz.py` reads a few files a
reader.
"""
