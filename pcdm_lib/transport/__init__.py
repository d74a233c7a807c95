"""Earth mover's distances, exact and by wavelets, and the bound that holds (Sect. 5.2)."""

from pcdm_lib.transport.bound import scale_constants, score_errors, transport_bound
from pcdm_lib.transport.exact import exact_emd, transport_plan
from pcdm_lib.transport.wavelets import wavelet_emd

__all__ = [
    "exact_emd",
    "scale_constants",
    "score_errors",
    "transport_bound",
    "transport_plan",
    "wavelet_emd",
]
