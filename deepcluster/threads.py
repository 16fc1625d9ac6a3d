"""How OpenMP's threads wait for each other; to be settled before torch and faiss load."""

import os

SPINS = 1000


def wait_briefly() -> None:
    """Waiting threads spin for some microseconds, then sleep, unless the user's environment says otherwise.

    Spinning for long beside one busy process, as OpenMP does by default, costs a small network two thirds of its speed;
    not spinning at all costs a tenth to a fifth without one (docs/performance.md). GOMP_SPINCOUNT is for GNU's
    OpenMP (Linux), where it goes before OMP_WAIT_POLICY; others heed the latter only.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPINS)}
