"""The exact likelihood at the edge of what can be enumerated: 2^16 codes, 4,000 images, in pieces.

    python benchmarks/likelihood.py [BITS IMAGES]

A model 784 - BITS - RBM(BITS, BITS) with random weights in double precision, random binary images, one thread. Prints
wall seconds, the peak of the resident memory of the whole process, what of it was there before, and what the table
T[n, h] of all images would take at once.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from zoo import lab, layerwise


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    bits, images = (int(text) for text in (sys.argv[1:] or ("16", "4000")))
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    lab.seed(0)
    model = layerwise.Model(784, [bits])
    x = torch.bernoulli(torch.full((images, 784), 0.2))
    before, began = peak(), time.perf_counter()
    value = model.loglik(x)
    seconds, after = time.perf_counter() - began, peak()
    assert value is not None and len(value) == images
    whole = 8 * images * 2**bits / 2**20
    print(f"2^{bits} codes x {images} images of 784 pixels: {seconds:.1f} s, peak {after:.0f} MiB")
    print(f"before the likelihood {before:.0f} MiB; the whole table would take {whole:.0f} MiB")


if __name__ == "__main__":
    main()
