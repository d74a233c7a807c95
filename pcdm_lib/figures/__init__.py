"""The figures that notebooks share, in one style."""
