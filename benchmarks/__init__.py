"""Speed, memory and efficiency of pcdm_lib on this machine: `python -m benchmarks`, from the
checkout.

Absolute times belong to one machine and one hour. What compares two ways of doing a thing is
measured in turn, A B A B, in one process, and reported as the median ratio over the rounds with its
quartiles.
"""
