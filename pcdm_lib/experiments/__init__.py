"""What the notebooks of `reproduce/` share: parameters, one experiment, the suite, tables,
published figures."""
