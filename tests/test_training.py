"""`lab.fit`, `lab.run` and `lab.check`: what they do, and what they refuse before it trains silently wrong."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, autoguide
from torch import Tensor, nn

import guides
from guides import Guide, data_plate
from zoo import lab

N = 24


class Mean(nn.Module):
    """m ~ N(0, 1), y ~ N(m + shift, noise), with an optional scale around the latent."""

    def __init__(self, N: int | None = None, *, noise: float = 1.0, scale: Any = 1.0) -> None:
        super().__init__()
        self.N, self.noise, self.scale = N, noise, scale
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=self.scale):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with data_plate(len(y), self.N):
            pyro.sample("y", dist.Normal(m + self.shift, self.noise), obs=y)


class Own(nn.Module):
    """A guide written by hand: calls a function with a parameter."""

    def __init__(self, story: Callable[..., Any]) -> None:
        super().__init__()
        self.story = story
        self.loc = nn.Parameter(torch.tensor(0.1))

    def forward(self, **batch: Tensor) -> None:
        self.story(self.loc, **batch)


def table(n: int = N) -> lab.Table:
    return lab.Table({"y": torch.sin(torch.arange(float(n)))}, name="sines")


def pair(**options: Any) -> tuple[Mean, Guide]:
    model = Mean(N, **options)
    return model, Guide(model, table().peek(), weights=guides.MeanField)


def point(N: int | None = N) -> tuple[Mean, Guide]:
    """A pair whose loss is a number: the guide is a point mass."""
    model = Mean(N)
    return model, Guide(model, table().peek(), weights=guides.Point, start={"m": torch.tensor(0.4)})


def normal_m(loc: Tensor, **batch: Tensor) -> Tensor:
    return pyro.sample("m", dist.Normal(loc, 0.5))


def train(model: nn.Module, guide: nn.Module, bound: ELBO | None = None, **options: Any) -> lab.Fit:
    return lab.fit(model, guide, [table().all()], bound or Trace_ELBO(), **{"epochs": 1, **options})


def state(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What is refused: sites


def nothing(loc: Tensor, **batch: Tensor) -> None:
    """A guide that forgets m."""


def too_much(loc: Tensor, **batch: Tensor) -> None:
    normal_m(loc)
    pyro.sample("extra", dist.Normal(loc, 1.0))


def the_data(loc: Tensor, **batch: Tensor) -> None:
    normal_m(loc)
    with data_plate(len(batch["y"]), N):
        pyro.sample("y", dist.Normal(loc, 1.0))


UNMATCHED = {
    "forgets": (nothing, r"the guide samples no \['m'\]: these sites would stay at the prior"),
    "extra": (too_much, "the guide samples 'extra', which the model does not have"),
    "observed": (the_data, "the guide samples 'y', which this batch observes"),
}


@pytest.mark.filterwarnings("ignore:Found")
@pytest.mark.parametrize("case", UNMATCHED)
def test_unmatched_sites(case: str) -> None:
    story, message = UNMATCHED[case]
    with pytest.raises(lab.UnmatchedSites, match=message):
        train(Mean(N), Own(story))


def test_an_auxiliary_site_of_the_guide_is_no_unmatched_site() -> None:
    def story(loc: Tensor, **batch: Tensor) -> None:
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("m", dist.Normal(loc + noise, 0.5))

    assert lab.check(Mean(N), Own(story), table().all(), Trace_ELBO()) == N


# What is refused: scales


class Local(nn.Module):
    """z_n ~ N(0, 1), y_n ~ N(z_n, 1)."""

    def __init__(self, N: int | None) -> None:
        super().__init__()
        self.N = N

    def forward(self, y: Tensor) -> None:
        with data_plate(len(y), self.N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def local(N: int | None) -> Own:
    def story(loc: Tensor, y: Tensor) -> None:
        with data_plate(len(y), N):
            pyro.sample("z", dist.Normal(loc.expand(len(y)), 0.5))

    return Own(story)


@pytest.mark.parametrize(("of_model", "of_guide"), [(N, None), (None, N), (N, 2 * N)])
def test_plates_of_different_sizes(of_model: int | None, of_guide: int | None) -> None:
    batch = table().peek()
    with pytest.raises(lab.PlateScale, match=r"site 'z' is scaled by .* in the model and .* in the guide"):
        lab.check(Local(of_model), local(of_guide), batch, Trace_ELBO())
    lab.check(Local(of_model), local(of_model), batch, Trace_ELBO())


@pytest.mark.parametrize("scale", [0.01, torch.tensor(0.01), torch.tensor([0.01, 0.01])], ids=["number", "0-d", "1-d"])
def test_a_scale_around_one_of_the_two(scale: Any) -> None:
    with pytest.raises(lab.PlateScale, match=r"site 'm' is scaled by .*a scale around one belongs around both"):
        train(Mean(N, scale=scale), Own(normal_m))


# What is refused: the mean-field bound where it is no bound


def test_a_pair_of_laws_without_a_divergence() -> None:
    def story(loc: Tensor, **batch: Tensor) -> None:
        pyro.sample("m", dist.StudentT(5.0, loc, 0.5))

    with pytest.raises(lab.UnregisteredKL, match=r"site 'm': no closed-form KL\(StudentT \|\| Normal\)"):
        train(Mean(N), Own(story), TraceMeanField_ELBO())
    train(Mean(N), Own(story), Trace_ELBO())


def test_an_automatic_guide_under_the_mean_field_bound() -> None:
    model = Mean(N)
    guide = guides.Auto(autoguide.AutoNormal, model, table().peek())
    with pytest.raises(lab.UnregisteredKL, match=r"mis-scores guides with the auxiliary site .*m_unconstrained"):
        train(model, guide, TraceMeanField_ELBO())
    train(model, guide, Trace_ELBO())


class Ladder(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1): the model goes down."""

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def exact_recognition(loc: Tensor, x: Tensor) -> None:
    """The exact posterior, q(z1 | x) q(z2 | z1): it goes up. Cov(z1, z2 | x) = 1/3."""
    with data_plate(len(x)):
        z1 = pyro.sample("z1", dist.Normal(2 * x / 3, math.sqrt(2 / 3)))
        pyro.sample("z2", dist.Normal(z1 / 2, math.sqrt(1 / 2)))


def test_the_mean_field_bound_of_a_bottom_up_guide_is_wrong_and_refused() -> None:
    x = torch.tensor([0.5, 1.0, 2.0])
    guide = Own(exact_recognition)
    evidence = float(dist.Normal(0.0, math.sqrt(3)).log_prob(x).sum())
    assert evidence == pytest.approx(-5.28, abs=0.005)
    assert float(-Trace_ELBO()(Ladder(), guide)(x=x).detach()) == pytest.approx(evidence, abs=1e-9)
    wrong = TraceMeanField_ELBO(num_particles=20_000, vectorize_particles=True)
    with pytest.warns(UserWarning, match="mean field"):
        value = float(-wrong(Ladder(), guide)(x=x).detach())
    assert value == pytest.approx(evidence - 3 / 3, abs=0.05)  # lower by the sum of the three covariances
    with pytest.raises(lab.MeanFieldOrder, match=r"the guide samples \['z1', 'z2'\], the model \['z2', 'z1'\]"):
        lab.check(Ladder(), guide, {"x": x}, TraceMeanField_ELBO())
    assert lab.check(Ladder(), guide, {"x": x}, Trace_ELBO()) == 3


# What is refused: numbers, batches, parameters


def spoiled(value: float) -> list[dict[str, Tensor]]:
    """A good batch and one with a bad number in it."""
    bad = table().all()["y"].clone()
    bad[3] = value
    return [table().all(), {"y": bad}]


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e200], ids=str)
def test_a_loss_that_is_not_finite_names_the_site_and_leaves_the_parameters(value: float) -> None:
    model, guide = pair()
    before: list[list[Tensor]] = []
    with pytest.raises(
        lab.NonFiniteLoss, match="loss not finite at step 2: the log-probability of site 'y' in the model"
    ):
        lab.fit(
            model,
            guide,
            spoiled(value),
            Trace_ELBO(),
            epochs=1,
            callbacks=[lambda fit: before.append(state(fit.model, fit.guide))],
        )
    assert len(before) == 1
    assert equal(before[0], state(model, guide))


@pytest.mark.parametrize("where", [0, 1])
def test_numbers_that_are_not_finite_in_the_inputs_are_named_too(where: int) -> None:
    class Regression(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with data_plate(len(x), 6):
                pyro.sample("y", dist.Normal(x * w, 1.0), obs=y)

    good = {"x": torch.ones(3), "y": torch.ones(3)}
    guide = Guide(Regression(), good, weights=guides.MeanField)
    batches = [good, good]
    batches[where] = {"x": torch.tensor([1.0, math.nan, 1.0]), "y": torch.ones(3)}
    with pytest.raises(lab.NonFiniteLoss, match="site 'y' in the model"):
        lab.fit(Regression(), guide, batches, Trace_ELBO(), epochs=1)


def test_a_gradient_that_is_not_finite_leaves_the_parameters() -> None:
    class Root(Mean):
        def forward(self, y: Tensor) -> None:
            pyro.factor("root", self.shift.abs().sqrt())  # finite at 0, with an infinite derivative
            super().forward(y)

    model = Root(N)
    guide = Guide(model, table().peek(), weights=guides.MeanField)
    before = state(model, guide)
    with pytest.raises(lab.NonFiniteLoss, match="the gradient is not finite; parameters are those before the step"):
        train(model, guide)
    assert equal(before, state(model, guide))


@pytest.mark.parametrize("batches", [[], [{}]], ids=["none", "empty"])
def test_no_batches(batches: list[Any]) -> None:
    with pytest.raises(lab.TrainingError, match="no batches to train on"):
        lab.fit(*pair(), batches, Trace_ELBO(), epochs=1)


def test_batches_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(lab.TrainingError, match=r"more than once|again|list"):
        lab.fit(*pair(), iter([table().all()] * 3), Trace_ELBO(), epochs=2)


def test_nothing_to_train() -> None:
    model, guide = pair()
    for module in (model, guide):
        module.requires_grad_(False)
    with pytest.raises(lab.TrainingError, match="neither model nor guide has a parameter to train"):
        train(model, guide)


def test_every_refusal_is_a_training_error_and_a_value_error() -> None:
    kinds = (lab.UnmatchedSites, lab.PlateScale, lab.UnregisteredKL, lab.MeanFieldOrder, lab.NonFiniteLoss)
    assert all(issubclass(kind, lab.TrainingError) and issubclass(kind, ValueError) for kind in kinds)


# What fit does


def test_it_finds_the_exact_posterior_of_a_conjugate_model() -> None:
    model, guide = pair()
    model.shift.requires_grad_(False)
    fit = train(model, guide, TraceMeanField_ELBO(), epochs=400, lr=0.1, decay=0.001)
    y = table()["y"]
    q = guide.q["m"]()
    assert float(q.stddev.detach()) == pytest.approx((1 + N) ** -0.5, rel=0.1)
    assert float(q.mean.detach()) == pytest.approx(float(y.sum()) / (1 + N), abs=0.2 * (1 + N) ** -0.5)
    evidence = float(dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 1).log_prob(y))
    value, error = fit.elbo(table().all(), particles=200)
    assert value == pytest.approx(evidence, abs=0.03 + 4 * error)
    assert value < evidence + 4 * error


def run_once(batches: Any, **options: Any) -> tuple[lab.Fit, list[Tensor]]:
    lab.seed(0)
    model, guide = pair()
    fit = lab.fit(model, guide, batches, Trace_ELBO(), **{"epochs": 3, "lr": 0.01, **options})
    return fit, state(model, guide)


def test_equal_seeds_give_identical_runs_and_another_order_another() -> None:
    one, first = run_once(table().batches(5, seed=1))
    two, again = run_once(table().batches(5, seed=1))
    _, other = run_once(table().batches(5, seed=2))
    assert one.losses == two.losses
    assert equal(first, again)
    assert not equal(first, other)


def test_the_same_loader_used_twice_serves_the_same_epochs() -> None:
    batches = table().batches(5, seed=1)
    _, first = run_once(batches)
    _, again = run_once(batches)
    assert equal(first, again)


def test_a_list_of_dicts_will_do_for_batches() -> None:
    batches = table().batches(5, seed=1)
    batches.set_epoch(0)
    listed = list(batches)
    _, from_list = run_once(listed, epochs=1)
    _, from_loader = run_once(table().batches(5, seed=1), epochs=1)
    assert equal(from_list, from_loader)


def test_any_re_iterable_will_do_for_batches() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
            yield from [table().all()] * 2

    fit, _ = run_once(Endless(), epochs=3, decay=0.5)
    assert fit.steps == 6


def test_callbacks_run_after_every_step() -> None:
    seen: list[tuple[int, list[Tensor]]] = []
    fit, end = run_once(
        table().batches(5, seed=1), callbacks=[lambda fit: seen.append((fit.steps, state(fit.model, fit.guide)))]
    )
    assert [steps for steps, _ in seen] == list(range(1, 16))
    assert fit.steps == 15
    assert equal(seen[-1][1], end)
    assert not equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("of_model", [N, 10 * N, None])
def test_losses_are_the_bound_over_N(of_model: int | None) -> None:
    model, guide = point(of_model)
    expected = float(Trace_ELBO()(model, guide)(**table().all()).detach()) / (of_model or N)
    fit = train(model, guide)
    assert (of_model or N) == fit.N
    assert fit.losses == [pytest.approx(expected)]


def test_a_model_without_a_data_plate_counts_as_one_datum() -> None:
    class Single(nn.Module):
        def forward(self, y: Tensor) -> None:
            pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    batch = {"y": torch.tensor(0.3)}
    fit = lab.fit(Single(), Guide(Single(), batch, weights=guides.MeanField), [batch], Trace_ELBO(), epochs=2)
    assert (fit.N, fit.steps) == (1, 2)


def test_validation_losses_are_recorded_after_every_epoch_in_nats_per_datum() -> None:
    model, guide = pair()
    guide.q["m"].log_scale.data.fill_(-30.0)  # no noise left, so the loss is a number
    valid = [{"y": table()["y"] + 1}]
    fit = train(model, guide, TraceMeanField_ELBO(), epochs=3, valid=valid, lr=0.0)
    exact = float(TraceMeanField_ELBO()(model, guide)(**valid[0]).detach()) / N
    assert fit.valid == pytest.approx([exact] * 3)


def test_short_validation_batches_count_for_the_rows_they_have() -> None:
    y = table()["y"]
    whole, parts = ([{"y": part} for part in y.split(size)] for size in (N, 20))
    losses = [train(*point(), lr=0.0, valid=valid).valid[0] for valid in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0])


def test_elbo_without_a_batch_is_that_of_the_training_data() -> None:
    y = table()["y"]
    fit = lab.fit(*point(), [{"y": part} for part in y.split(20)], Trace_ELBO(), epochs=1)
    assert fit.elbo(particles=2)[0] == pytest.approx(fit.elbo({"y": y}, particles=2)[0])


@pytest.mark.parametrize("bound", [Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO])
def test_validation_and_elbo_work_with_every_bound(bound: Callable[..., ELBO]) -> None:
    options = {"strict_enumeration_warning": False} if bound is TraceEnum_ELBO else {}
    fit = train(*pair(), bound(**options), valid=[table().all()])
    assert len(fit.valid) == 1
    assert math.isfinite(fit.elbo(table().all(), particles=2)[0])


def rates(**options: Any) -> list[float]:
    """The learning rate of every step."""
    made: list[torch.optim.Optimizer] = []

    def optimiser(parameters: Any, lr: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=lr))
        return made[0]

    seen: list[float] = []
    run_once(
        table().batches(6, seed=0),
        optimiser=optimiser,
        callbacks=[lambda fit: seen.append(made[0].param_groups[0]["lr"])],
        **{"lr": 1e-3, **options},
    )
    return seen


def test_the_rate_falls_along_a_cosine_to_decay_times_lr() -> None:
    seen = rates(epochs=5, decay=0.1)
    assert len(seen) == 20
    assert seen[-1] == pytest.approx(1e-4)
    assert seen[9] == pytest.approx((1e-3 + 1e-4) / 2)
    assert seen == sorted(seen, reverse=True)


def test_without_decay_the_rate_is_constant() -> None:
    assert set(rates()) == {1e-3}


def test_an_optimiser_of_ones_own_steps_on_the_loss_over_N() -> None:
    model, guide = point()
    loss = Trace_ELBO()(model, guide)
    (loss(**table().all()) / N).backward()
    expected = [p.detach() - 0.1 * p.grad for p in loss.parameters()]
    train(model, guide, optimiser=torch.optim.SGD, lr=0.1)
    for p, wanted in zip(loss.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted)


def test_frozen_parameters_stay() -> None:
    model, guide = pair()
    model.shift.requires_grad_(False)
    train(model, guide)
    assert float(model.shift) == 0


def fitted(losses: list[float]) -> lab.Fit:
    fit, _ = run_once([table().all()], epochs=1)
    fit.losses = losses
    return fit


def test_converged_knows_a_falling_loss_from_a_level_one() -> None:
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(1000.0)
    assert fitted((1.0 + 0.1 * noise).tolist()).converged
    assert not fitted((10.0 - 0.01 * steps + 0.1 * noise).tolist()).converged
    assert fitted((10 * (-steps / 50).exp() + 0.01 * noise).tolist()).converged
    assert not fitted([1.0] * 99).converged
    assert fitted([1.0] * 100).converged
    assert not fitted((1.0 - 0.001 * steps).tolist()).converged


def test_elbo_is_the_mean_over_particles_with_its_error() -> None:
    model, guide = pair()
    fit = lab.fit(model, guide, [table().all()], Trace_ELBO(), epochs=1, lr=0.0)
    loc, scale = 0.3, 0.5
    guide.q["m"].loc.data.fill_(loc)
    guide.q["m"].log_scale.data.fill_(math.log(scale))
    y = table()["y"]
    loglik = -0.5 * N * math.log(2 * math.pi) - 0.5 * float((y - loc).square().sum() + N * scale**2)
    exact = loglik - (-math.log(scale) + (scale**2 + loc**2 - 1) / 2)
    value, error = fit.elbo(table().all(), particles=400)
    assert value == pytest.approx(exact, abs=4 * error)
    assert fit.elbo(table().all(), particles=1600)[1] == pytest.approx(error / 2, rel=0.4)
    assert math.isnan(fit.elbo(table().all(), particles=1)[1])


def test_parameters_counts_those_of_the_guide() -> None:
    fit, _ = run_once([table().all()], epochs=1)
    assert fit.parameters == 2
    assert fit.seconds > 0


# Stages


def test_a_stage_with_a_step_of_its_own_and_one_with_an_optimiser() -> None:
    weight, mean = nn.Parameter(torch.zeros(())), torch.zeros(())
    recorded: list[float] = []
    epochs: list[str] = []

    def update(batch: Mapping[str, Tensor]) -> Tensor:
        mean.copy_(batch["y"].mean())
        return torch.tensor(7.0)

    def descend(batch: Mapping[str, Tensor]) -> Tensor:
        return (weight - mean - 1).square()

    sgd = torch.optim.SGD([weight], lr=0.5)
    batches = [{"y": torch.tensor([1.0, 3.0])}]
    lab.run(
        [
            lab.Stage("count", update, batches, 2, None, None, recorded.append, lambda: epochs.append("count")),
            lab.Stage("descend", descend, batches * 3, 1, sgd, None, recorded.append, lambda: epochs.append("descend")),
        ]
    )
    assert recorded == [7.0, 7.0, 9.0, 0.0, 0.0]
    assert float(weight.detach()) == 3.0
    assert epochs == ["count", "count", "descend"]


def test_a_step_of_its_own_that_gives_no_finite_number_stops_the_run() -> None:
    steps: list[float] = []
    with pytest.raises(lab.NonFiniteLoss, match="sleep"):
        lab.run([lab.Stage("sleep", lambda batch: torch.tensor(math.nan), [{}] * 3, 2, after_step=steps.append)])
    assert not steps


def test_a_stage_with_an_optimiser_stops_at_a_loss_that_is_not_finite() -> None:
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(lab.NonFiniteLoss, match="wake"):
        sgd = torch.optim.SGD([weight], lr=0.5)
        lab.run([lab.Stage("wake", lambda batch: weight * math.inf, [{}], 1, sgd)])
    assert float(weight.detach()) == 1.0


def test_a_stage_takes_its_batches_in_the_order_of_its_epochs() -> None:
    batches = table().batches(5, seed=3)
    seen: list[Tensor] = []

    def step(batch: Mapping[str, Tensor]) -> Tensor:
        seen.append(batch["y"])
        return torch.zeros(())

    lab.run([lab.Stage("one", step, batches, 2), lab.Stage("two", step, batches, 2)])
    half = len(seen) // 2
    assert equal(seen[:half], seen[half:])
    assert not torch.equal(seen[0], seen[half // 2])


# Surroundings


def test_importing_us_changes_no_setting_of_pyro_or_torch() -> None:
    script = (
        "import pyro, torch\n"
        "look = lambda: (pyro.settings.get(), torch.get_default_dtype(), torch.get_num_threads(), "
        "torch.initial_seed(), pyro.infer.SVI, torch.nn.functional.linear)\n"
        "import pyro.infer\n"
        "before = look()\n"
        "import guides, zoo, zoo.lab\n"
        "[zoo.paper(name) for name in zoo.PAPERS]\n"
        "assert look() == before, (before, look())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bound", [Trace_ELBO, TraceMeanField_ELBO])
def test_training_changes_no_setting_and_no_store(bound: Callable[[], ELBO]) -> None:
    before = pyro.settings.get()
    train(*pair(), bound())
    assert pyro.settings.get() == before
    assert not dict(pyro.get_param_store())
