"""Markov chains: `walk` moves hundreds of them as one batch; `nuts` and `neutra` run Pyro's NUTS on a model's text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import arviz as az
import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn

from guides import Auto
from zoo.lab.arviz_bridge import from_draws
from zoo.lab.kernels import Step
from zoo.lab.noise import Noise
from zoo.lab.predictive import condition
from zoo.lab.stages import Bar

Watch = Mapping[str, Callable[[Tensor, Noise], Tensor]]


@dataclass(frozen=True)
class Chains:
    """What `walk` saw, and where it stands.

    Attributes:
        draws: {name: (chain, draw, ...)}, what was watched.
        state: of the chains after the last step, (chain, ...).
        noise: of the steps. asides: of what was watched, so that looking moves nothing.
        steps: made in all, those before the first draw and between draws included. seconds: of steps alone.
    """

    draws: dict[str, Tensor]
    state: Tensor
    noise: Noise
    asides: Noise
    steps: int
    seconds: float

    def __getitem__(self, name: str) -> Tensor:
        return self.draws[name]

    def then(self, more: Chains) -> Chains:
        """These draws and those of the walk that went on from here."""
        joined = {name: torch.cat([value, more[name]], 1) for name, value in self.draws.items()}
        return replace(more, draws=joined, seconds=self.seconds + more.seconds)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a walk needs to go on, as tensors (without the draws)."""
        noises = {"noise": self.noise, "asides": self.asides}
        flat = {f"{name}.{key}": value for name, n in noises.items() for key, value in n.state_dict().items()}
        return {"state": self.state.contiguous(), "steps": torch.tensor(self.steps), **flat}

    @staticmethod
    def from_state_dict(state: Mapping[str, Tensor]) -> Chains:
        """Chains without draws that go on where others stood."""
        noises = []
        for name in ("noise", "asides"):
            mine = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
            noises.append(Noise(len(state["state"]), dtype=mine["ahead"].dtype, device=state["state"].device))
            noises[-1].load_state_dict(mine)
        noise, asides = noises
        return Chains({}, state["state"], noise, asides, steps=int(state["steps"]), seconds=0.0)


@torch.no_grad()
def walk(
    step: Step,
    start: Tensor | Chains,
    *,
    draws: int,
    watch: Watch,
    warmup: int = 0,
    thin: int = 1,
    seed: int = 0,
) -> Chains:
    """Move many chains at once and keep what is watched. Nothing is printed; a bar appears after two seconds.

    Every chain has its own noise by (seed, chain): its draws do not depend on the others, on the number of cores, or on
    what is watched.

    Args:
        step: (state, noise) -> state, for a batch of states.
        start: (chain, ...), or the `Chains` of a walk that goes on: its draws are those that one long walk would have
            had.
        draws: of each chain. warmup: steps before the first draw. thin: steps between draws.
        watch: {name: (state, noise) -> (chain, ...)}, such as the decoded picture, evaluated at every draw.
        seed: of the noise; not used by a walk that goes on.

    Raises:
        ValueError: fewer than one draw or one step between draws.
    """
    if draws < 1 or thin < 1 or warmup < 0:
        raise ValueError(
            f"a walk takes one draw or more, thin of 1 or more, warmup of 0 or more; not {draws}, {thin}, {warmup}"
        )
    if isinstance(start, Chains):
        state, before = start.state, start.steps
        noise, asides = deepcopy(start.noise), deepcopy(start.asides)  # these chains stay where they stand
    else:
        precision = start.dtype if start.is_floating_point() else None
        kind: dict[str, Any] = {"seed": seed, "dtype": precision, "device": start.device}
        state, before = start, 0
        noise, asides = Noise(len(start), **kind), Noise(len(start), stream=1, **kind)
    kept: dict[str, list[Tensor]] = {name: [] for name in watch}
    seconds = 0.0
    with Bar(draws, 0) as bar:
        for draw in range(draws):
            began = time.perf_counter()
            for _ in range(thin + (warmup if draw == 0 else 0)):
                state = step(state, noise)
            seconds += time.perf_counter() - began
            for name, look in watch.items():
                kept[name].append(look(state, asides))
            bar.advance("chains")
    found = {name: torch.stack(values, 1) for name, values in kept.items()}
    return Chains(found, state, noise, asides, before + warmup + thin * draws, seconds)


def nuts(
    model: Callable[..., Any],
    batch: Mapping[str, Any],
    *,
    chains: int = 4,
    draws: int = 500,
    warmup: int | None = None,
    seed: int = 0,
    **options: Any,
) -> az.InferenceData:
    """The posterior of a model by the No-U-Turn Sampler, chain after chain.

    Every chain is seeded by (seed, chain), so the draws do not depend on the number of cores, and the global random
    state is left as it was.

    Args:
        model: a Pyro model without local latents of varying batch length; called as `model(**batch)`.
        batch: the data.
        draws: per chain. warmup: per chain, the default is as many.
        **options: handed to `pyro.infer.NUTS`.

    Returns:
        InferenceData with posterior, posterior_predictive, log_likelihood, observed_data, constant_data, sample_stats
        (`lp`, `diverging`), dimensions (chain, draw, ...).

    Raises:
        ValueError: fewer than 4 draws.
    """
    return _nuts(model, model, batch, lambda latents: latents, chains, draws, warmup, seed, options)


def neutra(
    model: Callable[..., Any],
    guide: Auto,
    batch: Mapping[str, Any],
    *,
    chains: int = 4,
    draws: int = 500,
    warmup: int | None = None,
    seed: int = 0,
    **options: Any,
) -> az.InferenceData:
    """The same posterior by NUTS in the latent space of a trained flow guide (neural transport).

    The guide's transform bends the posterior towards a standard normal; the target stays exact, however badly the guide
    fits. Arguments and result as for `nuts`, draws carried back to the model's own sites.

    Args:
        guide: `guides.Auto` of a class with a transform, such as `AutoIAFNormal`, trained on this batch.

    Raises:
        ValueError: a guide without a transform, or fewer than 4 draws.

    Reference: Hoffman et al. (2019); `pyro.infer.reparam.NeuTraReparam`.
    """
    with pyro.settings.context(module_local_params=True), _frozen(guide):
        try:
            transport = NeuTraReparam(guide.auto)
        except TypeError as error:
            raise ValueError(
                f"neural transport needs a guide with a transform, such as AutoIAFNormal ({error})"
            ) from error

        def back(samples: dict[str, Tensor]) -> dict[str, Tensor]:
            (shared,) = samples.values()
            with torch.no_grad():
                return transport.transform_sample(shared)

        return _nuts(transport.reparam(model), model, batch, back, chains, draws, warmup, seed, options)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of its parameters meanwhile; a trained flow cannot be copied, since it caches tensors of a graph."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _nuts(
    moving: Callable[..., Any],
    model: Callable[..., Any],
    batch: Mapping[str, Any],
    back: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    chains: int,
    draws: int,
    warmup: int | None,
    seed: int,
    options: Mapping[str, Any],
) -> az.InferenceData:
    """NUTS on `moving`, whose samples `back` turns into latents of `model`."""
    if draws < 4:
        raise ValueError(f"NUTS needs at least 4 draws per chain to be diagnosed, not {draws}")
    warmup = draws if warmup is None else warmup
    runs = []
    with torch.random.fork_rng(devices=[]):
        for chain in range(chains):
            torch.manual_seed(1000 * seed + chain)
            kernel = NUTS(moving, **options)
            sampler = MCMC(kernel, draws, warmup_steps=warmup, num_chains=1, disable_progbar=True)
            sampler.run(**batch)
            runs.append((back(sampler.get_samples()), sampler.diagnostics()["divergences"]["chain 0"]))
        parts = [condition(model, samples, batch) for samples, _ in runs]
    diverging = torch.zeros(chains, draws, dtype=torch.bool)
    for chain, (_, divergences) in enumerate(runs):
        diverging[chain, divergences] = True
    return from_draws(parts, batch, diverging=diverging.numpy())
