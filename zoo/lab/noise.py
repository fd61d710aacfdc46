"""Random numbers of many chains that run as one batch: each chain has a stream of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

AHEAD, HELD = 2**14, 2**22  # numbers drawn at once, of a chain at most and of all chains together about


class Noise:
    """One stream of uniform numbers for each of M chains.

    The numbers of a chain are a function of (seed, stream, chain) and of how many were taken: not of the other chains,
    of the number of cores, or of the global random state.

    Args:
        chains: M.
        seed: of all chains.
        stream: numbers from different streams are independent: one moves the chains, another looks at them.
        dtype: of the numbers; torch's default if not given. device: where they are wanted.

    Raises:
        ValueError: no chains, a seed below 0, or numbers of neither single nor double precision.
    """

    def __init__(
        self,
        chains: int,
        *,
        seed: int = 0,
        stream: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if chains < 1 or seed < 0:
            raise ValueError(f"noise is for one chain or more and a seed of 0 or more, not {chains} and {seed}")
        self.dtype, self.device = dtype or torch.get_default_dtype(), device
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"noise is made in single or double precision, not {self.dtype}")
        self.streams = [
            np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, stream, chain))))
            for chain in range(chains)
        ]
        self.ahead = torch.empty(chains, 0, dtype=self.dtype)

    def __len__(self) -> int:
        """Number of chains."""
        return len(self.streams)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), (M, *shape)."""
        wanted = int(np.prod(shape))
        if self.ahead.shape[1] < wanted:
            kind: Any = np.float64 if self.dtype == torch.float64 else np.float32
            count = max(min(AHEAD, HELD // len(self)), wanted)
            count += count % 2  # even: a half-used word would be a state of its own
            more = np.stack([stream.random(count, dtype=kind) for stream in self.streams])
            self.ahead = torch.cat([self.ahead, torch.from_numpy(more).to(self.dtype)], 1)
        taken, self.ahead = self.ahead[:, :wanted], self.ahead[:, wanted:]
        return taken.reshape(len(self), *shape).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers by the inverse of their distribution function, (M, *shape)."""
        tiny = torch.finfo(self.dtype).eps / 4
        return torch.special.ndtri(self.uniform(*shape).clamp_min(tiny))

    def bernoulli(self, probs: Tensor) -> Tensor:
        """Bits of these probabilities, (M, ...)."""
        return (self.uniform(*probs.shape[1:]) < probs).to(probs)

    def category(self, log_p: Tensor) -> Tensor:
        """Indices drawn from tables of log-probabilities (S,) or (M, S), by the inverse of the cumulative sum; (M,)."""
        edges = log_p.softmax(-1).cumsum(-1).expand(len(self), -1).contiguous()
        last = log_p.shape[-1] - 1
        u = self.uniform(1).to(edges).contiguous()
        return torch.searchsorted(edges, u, right=True).squeeze(-1).clamp_max(last)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the streams are, as tensors."""
        states = [stream.bit_generator.state for stream in self.streams]
        words = np.stack([state["state"]["state"] for state in states]).view(np.int64)
        return {"words": torch.from_numpy(words.copy()), "ahead": self.ahead.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where the streams were.

        Raises:
            ValueError: it is the state of another number of chains, or of another precision.
        """
        if len(state["words"]) != len(self):
            raise ValueError(f"this is the noise of {len(state['words'])} chains, not of {len(self)}")
        if state["ahead"].dtype != self.dtype:
            raise ValueError(f"this is noise of {state['ahead'].dtype}, not of {self.dtype}")
        for stream, words in zip(self.streams, state["words"].numpy().view(np.uint64), strict=True):
            inner: Any = stream.bit_generator.state
            stream.bit_generator.state = {**inner, "state": {"state": words.copy()}}
        self.ahead = state["ahead"].clone()
