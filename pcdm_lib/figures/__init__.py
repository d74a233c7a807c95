"""The figures that notebooks share, in one style."""

from pcdm_lib.advice import need

need("matplotlib")
