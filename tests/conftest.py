"""Settings for all tests."""

import torch

# The tests' tensors are tiny: a second thread gains nothing, and on a busy machine waiting for it costs minutes.
torch.set_num_threads(1)
