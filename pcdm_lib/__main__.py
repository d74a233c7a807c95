"""`python -m pcdm_lib train ...` is the command `pcdm train ...`."""

from pcdm_lib.commands.app import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
