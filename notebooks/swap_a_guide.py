# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Swap a guide
#
# A **model** says how the data came about. A **guide** is the family of distributions $q$ in which we look for an
# approximation of the posterior. In Pyro both are programs, so one can be exchanged while the other stays as it is.
#
# In about half an hour you will
#
# 1. write a model whose posterior and evidence are known exactly,
# 2. swap four guides, one line each, and see what each of them misses,
# 3. learn why a diagonal matrix normal can never beat mean field,
# 4. do the same with a small neural network on real data, where only predictions can be compared,
# 5. see what `lab.fit` refuses to train,
# 6. solve three exercises (solutions are below each of them; fold their headings first).
#
# You need probability (Gaussians, Kullback-Leibler divergence) and some PyTorch. Claims that can be checked are checked
# by an `assert` in a cell nearby; if one were wrong, the notebook would stop.

# %%
# ruff: noqa: E402
import math
import os
import warnings
from functools import partial

warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")  # ArviZ announces its next version
warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from IPython.display import display
from pyro.distributions import Laplace, MultivariateNormal, Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn
from torch.distributions import kl_divergence

import guides
from zoo import lab
from zoo import matrix_gaussian as vmg
from zoo.lab import predictive
from zoo.lab.figures import LINES, PALETTE  # Okabe and Ito's colours, told apart by the colour-blind

torch.set_num_threads(1)  # the matrices are tiny
torch.set_default_dtype(torch.float64)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.spines.top": False})
plt.rcParams.update({"axes.spines.right": False, "font.size": 9})

# %% [markdown]
# Two settings. The tests of this repository run the notebook with `ZOO_NOTEBOOK_STEPS=small`: fewer steps and draws,
# so wider tolerances. What is a theorem is asserted with the same tolerance at both settings.

# %%
SMALL = os.environ.get("ZOO_NOTEBOOK_STEPS") == "small"
STEPS, RATE = (400, 0.1) if SMALL else (1500, 0.05)  # optimiser steps and learning rate, linear model
NET_STEPS = 300 if SMALL else 1500
CHAINS, WARMUP, DRAWS = (2, 50, 80) if SMALL else (4, 150, 250)
GUIDE_DRAWS = 1000 if SMALL else 4000

# %% [markdown]
# ## 1. A model with a known answer
#
# Linear regression with $K=3$ outputs. The inputs $X$ are $20\times4$, the weights $W$ are $4\times3$, and each
# output has a noise variance $\sigma_j^2$ that is *known*:
#
# $$W_{ij}\sim N(0,1),\qquad Y_{nj}\mid W\sim N\big((XW)_{nj},\ \sigma_j^2\big).$$
#
# In code it is an `nn.Module` whose `forward` tells this story. Two helpers of `guides` are used:
# `guides.linear("W", x, prior)` samples the site `W` and returns `x @ W` (how exactly is up to the guide, see below),
# and `guides.data_plate` marks the rows as independent.


# %%
class Regression(nn.Module):
    """Y = X W + noise, W ~ N(0, 1) element by element, noise variances known."""

    def __init__(self, variances):
        super().__init__()
        self.sd = torch.tensor(variances).sqrt()

    def forward(self, x, y=None):
        prior = Normal(0.0, 1.0).expand([x.shape[-1], len(self.sd)]).to_event(2)  # (4, 3)
        f = guides.linear("W", x, prior)  # (20, 3)
        with guides.data_plate(len(x)):
            return pyro.sample("y", Normal(f, self.sd).to_event(1), obs=y)


# %% [markdown]
# The data are made without random numbers, so that everybody has the same. The four inputs have quite different
# scales and are correlated; the outputs are a linear function of them plus a wave.

# %%
n, i, j = torch.arange(20.0)[:, None], torch.arange(4.0), torch.arange(3.0)
t = 0.37 * (n + 1)
X = torch.tensor([0.1, 0.4, 1.0, 2.0]) * (t.sin() + 0.5 * (t * (i + 2)).sin())  # (20, 4)
Y = X @ torch.cos(i[:, None] + 2 * j) + 0.5 * torch.sin(1.3 * n + 2.1 * j + 0.4 * n * j)  # (20, 3)
batch = {"x": X, "y": Y}

EACH = (0.05, 0.3, 1.8)  # every output has its own noise
COMMON = (0.3, 0.3, 0.3)  # all outputs share it
model = Regression(EACH)

# %% [markdown]
# **The exact answer.** Given the data the columns of $W$ are independent, and column $j$ is Gaussian:
#
# $$W_{:j}\mid Y\sim N\big(P_j^{-1}X^\top y_j/\sigma_j^2,\ P_j^{-1}\big),\qquad P_j=I+X^\top X/\sigma_j^2.$$
#
# The evidence $p(Y)$ is Gaussian too: column $j$ of $Y$ has covariance $\sigma_j^2I+XX^\top$. We write the posterior
# as one Gaussian over all 12 weights (`FullNormal`, row-major order).


# %%
def precisions(variances):
    """P_j for every output, (3, 4, 4)."""
    return torch.eye(4) + X.T @ X / torch.tensor(variances)[:, None, None]


def exact_posterior(variances):
    covariance, mean = torch.zeros(4, 3, 4, 3), torch.zeros(4, 3)
    for j, P in enumerate(precisions(variances)):
        covariance[:, j, :, j] = P.inverse()
        mean[:, j] = P.inverse() @ X.T @ Y[:, j] / variances[j]
    return guides.distributions.FullNormal(mean, torch.linalg.cholesky(covariance.reshape(12, 12)))


def log_evidence(variances):
    columns = (MultivariateNormal(torch.zeros(20), v * torch.eye(20) + X @ X.T) for v in variances)
    return sum(column.log_prob(y).item() for column, y in zip(columns, Y.T, strict=True))


exact, evidence = exact_posterior(EACH), log_evidence(EACH)
print(f"log evidence {evidence:.5f} nats")

# %% [markdown]
# A check that costs one line. By Bayes' rule $\log p(W)+\log p(Y\mid W)-\log p(W\mid Y)=\log p(Y)$ for *every* $W$,
# so the left side must not depend on the draw, and must be the evidence.

# %%
W = exact.sample((5,))  # five draws, (5, 4, 3)
log_prior = Normal(0.0, 1.0).log_prob(W).sum((-2, -1))
log_likelihood = Normal(X @ W, model.sd).log_prob(Y).sum((-2, -1))
print((log_prior + log_likelihood - exact.log_prob(W)).numpy().round(8))
assert torch.allclose(log_prior + log_likelihood - exact.log_prob(W), torch.tensor(evidence), atol=1e-8)  # rounding

# %% [markdown]
# ## 2. Four guides, one line each
#
# Training maximises the evidence lower bound $\mathrm{ELBO}(q)=E_q\log p(Y,W)-E_q\log q(W)$. Because
#
# $$\log p(Y)-\mathrm{ELBO}(q)=\mathrm{KL}\big(q(W)\,\|\,p(W\mid Y)\big),$$
#
# the gap between bound and evidence is exactly what $q$ misses. Here we can compute it, since we know the posterior.
#
# `train` below is the same for every guide. The bound belongs to the guide: if the guide knows its Kullback-Leibler
# divergence to the prior in closed form (`mean_field` is true), Pyro's `TraceMeanField_ELBO` uses it; else
# `Trace_ELBO` estimates it by sampling. Sixteen draws per step lower the noise of the gradient.


# %%
def bound_for(guide):
    particles = {"num_particles": 16, "vectorize_particles": True, "max_plate_nesting": 1}
    return TraceMeanField_ELBO(**particles) if guide.mean_field else Trace_ELBO(**particles)


def train(guide, model=model, steps=STEPS):
    lab.seed(0)
    return lab.fit(model, guide, [batch], bound_for(guide), epochs=steps, lr=RATE, decay=0.01)


# %% [markdown]
# Now the swap. The model is the same object in all four lines.
#
# * **MeanField**: every weight has its own mean and standard deviation; all are independent.
# * **MatrixNormal**: weight $W_{ij}$ has standard deviation $r_ic_j$: one factor per input, one per output.
# * **MatrixNormalTril**: any covariance $U$ between inputs, one scale per output:
#   $\mathrm{cov}(W_{ij},W_{i'j'})=U_{ii'}V_{jj'}$, $V$ diagonal.
# * **full rank**: one Gaussian over all 12 weights, Pyro's own `AutoMultivariateNormal`, wrapped by `guides.Auto`.

# %%
lab.seed(0)
fits = {}
fits["MeanField"] = train(guides.Guide(model, batch, weights=guides.MeanField))
fits["MatrixNormal"] = train(guides.Guide(model, batch, weights=guides.MatrixNormal))
fits["MatrixNormalTril"] = train(guides.Guide(model, batch, weights=guides.MatrixNormalTril))
fits["full rank"] = train(guides.Auto(AutoMultivariateNormal, model, batch))

# %% [markdown]
# ### Against the exact posterior
#
# What did each learn? `law` reads $q(W)$ out of a trained guide, and `KL(q || exact)` is its gap to the evidence,
# free of simulation noise. `Fit.elbo` estimates the same bound by simulation, as one would have to do without an
# exact answer; the two must agree.


# %%
@torch.no_grad()
def law(fit):
    """The trained q(W), event shape (4, 3)."""
    if isinstance(fit.guide, guides.Guide):
        return fit.guide.q["W"]()
    joint = fit.guide.auto.get_posterior()
    return guides.distributions.FullNormal(joint.loc.reshape(4, 3), joint.scale_tril)


def covariance(q):
    """The covariance of W.reshape(-1), (12, 12)."""
    if isinstance(q, guides.distributions.FullNormal):
        return q.scale_tril @ q.scale_tril.T
    if isinstance(q, guides.distributions.MatrixNormal):
        return torch.kron(q.row.dense(), q.col.dense())
    return q.variance.flatten().diag()


def correlation(S):
    return S / torch.outer(S.diagonal(), S.diagonal()).sqrt()


laws = {name: law(fit) for name, fit in fits.items()}
gaps = {name: kl_divergence(q, exact).item() for name, q in laws.items()}
rows = []
for name, q in laws.items():
    elbo, error = fits[name].elbo(batch, particles=50)
    assert abs(evidence - gaps[name] - elbo) < 5 * error, name  # five standard errors of the simulated bound
    rows.append(
        {
            "guide": name,
            "parameters": fits[name].parameters,
            "gap to evidence (nats)": gaps[name],
            "ELBO, simulated": f"{elbo:.2f} ± {error:.2f}",
            "worst mean (exact sd)": ((q.mean - exact.mean) / exact.variance.sqrt()).abs().max().item(),
            "smallest sd ratio": (q.variance / exact.variance).sqrt().min().item(),
            "largest sd ratio": (q.variance / exact.variance).sqrt().max().item(),
            "worst correlation error": (correlation(covariance(q)) - correlation(covariance(exact))).abs().max().item(),
        }
    )
display(pd.DataFrame(rows).set_index("guide").round(3))

# %% [markdown]
# Read the table row by row. "sd ratio" is the guide's standard deviation over the exact one.
#
# * All four find the posterior **means** (up to training noise). For a Gaussian posterior that is a theorem: the best
#   mean does not depend on the covariance structure.
# * **MeanField** makes the standard deviations too small. Its best variance of a weight is $1/(P_j)_{ii}$, the
#   variance *given all the other weights*, which is never larger than the marginal variance $(P_j^{-1})_{ii}$.
# * **MatrixNormal** has the largest gap, although it looks more structured. Section 3 says why.
# * **MatrixNormalTril** has correlations, but the same ones for every output, since $V$ only rescales. Here the noise
#   differs between outputs, and so do the exact correlations.
# * **full rank** contains the exact posterior. What remains is training, not the family: it has the most parameters,
#   and its divergence from the prior is sampled, not computed.

# %%
MEAN, GAP = (0.3, 0.5) if SMALL else (0.1, 0.1)  # training noise: exact sd, nats. Fewer steps leave more of it
P = precisions(EACH)
conditional = P.diagonal(dim1=-2, dim2=-1).T.rsqrt()  # 1 / sqrt of (P_j)_ii, (4, 3)

assert all(((q.mean - exact.mean) / exact.variance.sqrt()).abs().max() < MEAN for q in laws.values())
assert torch.allclose(laws["MeanField"].variance.sqrt(), conditional, rtol=0.25 if SMALL else 0.1)
assert (conditional <= exact.variance.sqrt()).all()  # a theorem
assert gaps["full rank"] < gaps["MatrixNormalTril"] < gaps["MeanField"] < gaps["MatrixNormal"]
assert gaps["full rank"] < GAP

tril = correlation(covariance(laws["MatrixNormalTril"])).reshape(4, 3, 4, 3)
assert all(torch.allclose(tril[:, j, :, j], tril[:, 0, :, 0]) for j in range(3))  # one pattern for all outputs
truth = correlation(covariance(exact)).reshape(4, 3, 4, 3)
differs = max((truth[:, j, :, j] - truth[:, 0, :, 0]).abs().max().item() for j in range(3))
print(f"the exact correlations of two outputs differ by up to {differs:.2f}")
assert differs > 0.1

# %% [markdown]
# ### Against NUTS
#
# Mostly there is no exact answer, and the reference is a long Markov chain. `lab.nuts` runs Pyro's No-U-Turn sampler
# on the same text of the model. (`jit_compile` translates the model once; the sampler calls it thousands of times.)

# %%
JIT = {"jit_compile": True, "ignore_jit_warnings": True}
chains = lab.nuts(model, batch, chains=CHAINS, draws=DRAWS, warmup=WARMUP, **JIT)
summary = az.summary(chains, var_names=["W"], round_to=3)
display(summary[["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]])

error = summary["mean"].to_numpy() - exact.mean.flatten().numpy()
assert (np.abs(error) < 5 * summary["mcse_mean"] + 1e-3).all()  # five Monte Carlo standard errors, and the rounding
assert np.allclose(
    summary["sd"], exact.variance.sqrt().flatten(), rtol=0.5 if SMALL else 0.2
)  # 1 / sqrt(2 ESS), five of it
assert summary["r_hat"].max() < (1.15 if SMALL else 1.05)
assert not chains.sample_stats.diverging.any()

# %% [markdown]
# **R-hat** compares the spread between chains with the spread within them: near 1, the chains have forgotten where
# they started. **ESS** says how many independent draws the chain is worth.
#
# For a *guide* R-hat says nothing. Its draws are independent by construction, so R-hat is 1 however bad the guide is.
# Let us cut the draws of the mean-field guide into four "chains":

# %%
drawn = lab.to_arviz(fits["MeanField"], batch, draws=4 * GUIDE_DRAWS)  # one chain: lab does not pretend
as_chains = {"W": drawn.posterior["W"].values.reshape(4, GUIDE_DRAWS, 4, 3)}
r_hat = az.rhat(az.from_dict(as_chains))["W"].values.max()
print(f"largest R-hat {r_hat:.3f}, and yet a gap of {gaps['MeanField']:.2f} nats and no correlation at all")
assert r_hat < 1.01 and gaps["MeanField"] > 3

# %% [markdown]
# Two figures of what is missed. Dots: standard deviations. Squares: correlations, with the weights ordered output by
# output, so that an output is a block of four on the diagonal.

# %%
nuts_draws = torch.tensor(chains.posterior["W"].values).flatten(0, 1)  # (draws, 4, 3)
by_output = torch.arange(12).reshape(4, 3).T.flatten()  # row-major positions of W, output by output
LABELS = [f"{i + 1}" for _ in range(3) for i in range(4)]

figure, axes = plt.subplots(figsize=(7.5, 3.0))
place = np.arange(12)
axes.bar(place, exact.variance.sqrt().flatten()[by_output], color="#DDDDDD", label="exact")
shown = {**{name: q.variance.sqrt() for name, q in laws.items()}, "NUTS": nuts_draws.std(0)}
for k, ((name, sd), marker) in enumerate(zip(shown.items(), "osD^x", strict=True)):
    axes.plot(place + 0.15 * (k - 2), sd.flatten()[by_output], marker, color=PALETTE[k], markersize=4.5, label=name)
axes.set_xticks(place, LABELS)
axes.set(xlabel="input of the weight; outputs 1, 2, 3 from left to right", ylabel="posterior standard deviation of W")
axes.axvline(3.5, color="grey", linewidth=0.5), axes.axvline(7.5, color="grey", linewidth=0.5)
axes.legend(fontsize="small", ncols=3)
plt.show()

# %%
pictures = {"exact": correlation(covariance(exact)), "NUTS": torch.corrcoef(nuts_draws.flatten(1).T)}
pictures |= {name: correlation(covariance(q)) for name, q in laws.items()}
figure, panels = plt.subplots(2, 3, figsize=(7.5, 5.2), sharex=True, sharey=True)
for axes, (name, matrix) in zip(panels.flat, pictures.items(), strict=True):
    image = axes.imshow(matrix[by_output][:, by_output], vmin=-1, vmax=1, cmap="PuOr")
    axes.set_title(name, fontsize="medium")
    axes.set_xticks([1.5, 5.5, 9.5], ["output 1", "output 2", "output 3"])
    axes.set_yticks([1.5, 5.5, 9.5], ["output 1", "output 2", "output 3"], rotation=90, va="center")
    axes.tick_params(length=0)
figure.colorbar(image, ax=panels, label="posterior correlation of two weights", shrink=0.8)
plt.show()

# %% [markdown]
# ## 3. Why a diagonal matrix normal cannot beat mean field
#
# A matrix normal with diagonal covariances $U=\mathrm{diag}(r^2)$, $V=\mathrm{diag}(c^2)$ makes all weights
# independent, with variances $\mathrm{var}(W_{ij})=r_i^2c_j^2$. That is *mean field, with a table of variances of
# rank one*. So every `MatrixNormal` is a `MeanField`, and not the other way round. The best of a smaller family
# cannot be better:
#
# $$\max\mathrm{ELBO}(\text{diagonal matrix normal})\ \le\ \max\mathrm{ELBO}(\text{mean field}).$$
#
# First look at it: rewrite the trained matrix normal as a mean field. It is the same distribution.

# %%
q = laws["MatrixNormal"]
rewritten = guides.distributions.FactorNormal(q.loc, torch.outer(q.row.scale, q.col.scale))
print(f"KL between the two writings: {kl_divergence(q, rewritten).item():.1e} nats")
print("ranks of the tables of variances: ", {name: int(torch.linalg.matrix_rank(laws[name].variance)) for name in laws})
assert abs(kl_divergence(q, rewritten).item()) < 1e-12  # rounding
assert torch.linalg.matrix_rank(q.variance) == 1 < torch.linalg.matrix_rank(laws["MeanField"].variance)

# %% [markdown]
# Now the best of both families, in closed form. Both have the exact means. Mean field has $s_{ij}^2=1/\Pi_{ij}$ with
# $\Pi_{ij}=(P_j)_{ii}$. The diagonal matrix normal has $s^2_{ij}=u_iv_j$, where $u$ and $v$ solve
#
# $$u_i=\frac{K}{\sum_j\Pi_{ij}v_j},\qquad v_j=\frac{D}{\sum_i\Pi_{ij}u_i},$$
#
# which is Sinkhorn's algorithm for scaling a matrix: iterate until it stops. What the smaller family loses is
# $-\tfrac12\sum_{ij}\log(\Pi_{ij}u_iv_j)\ge0$, and it is zero exactly if $\Pi$ has rank one.


# %%
def best_variances(variances):
    """The optimal variances (4, 3) of mean field and of the diagonal matrix normal."""
    Pi = precisions(variances).diagonal(dim1=-2, dim2=-1).T  # (4, 3)
    u, v = torch.ones(4), torch.ones(3)
    for _ in range(500):
        u = 3 / (Pi @ v)
        v = 4 / (Pi.T @ u)
    return 1 / Pi, torch.outer(u, v)


def best_gaps(variances):
    """Exact gaps to the evidence at the two optima, in nats."""
    posterior = exact_posterior(variances)
    best = (guides.distributions.FactorNormal(posterior.mean, s.sqrt()) for s in best_variances(variances))
    return [kl_divergence(q, posterior).item() for q in best]


for title, variances in {"own noise": EACH, "common noise": COMMON}.items():
    mean_field, diagonal = best_gaps(variances)
    print(
        f"{title:13} mean field {mean_field:.8f}, diagonal {diagonal:.8f}, difference {diagonal - mean_field:.8f} nats"
    )

mean_field, diagonal = best_gaps(EACH)
assert abs(diagonal - mean_field - 0.42035049) < 1e-7  # the digits given
assert abs(np.subtract(*best_gaps(COMMON))) < 1e-9  # rounding

# %% [markdown]
# If all outputs share the noise, all $P_j$ are the same, the table $1/\Pi_{ij}$ does not depend on $j$, so it has
# rank one, and the two families have the same optimum. With different noise the best variance is
# $1/(1+a_i/\sigma_j^2)$, where $a_i=(X^\top X)_{ii}$ is the strength of the input: close to 1 in every output for a
# weak input, close to $\sigma_j^2/a_i$ for a strong one. A product $r_i^2c_j^2$ cannot do both.
#
# Did training find these optima? It must end at or above them, and near.

# %%
print(f"MeanField    trained {gaps['MeanField']:.4f}   optimum {mean_field:.4f} nats")
print(f"MatrixNormal trained {gaps['MatrixNormal']:.4f}   optimum {diagonal:.4f} nats")
assert 0 <= gaps["MeanField"] - mean_field < GAP and 0 <= gaps["MatrixNormal"] - diagonal < GAP

# %%
figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.2), sharex=True, sharey=True)
for axes, (title, variances) in zip(panels, {"own noise": EACH, "common noise": COMMON}.items(), strict=True):
    for k, (x, y) in enumerate(zip(*(s.sqrt().T for s in best_variances(variances)), strict=True)):
        axes.loglog(
            x,
            y,
            "osD"[k],
            color=PALETTE[k],
            markersize=9 - 2.5 * k,
            label=f"output {k + 1}, noise variance {variances[k]}",
        )
    axes.axline((0.1, 0.1), (1, 1), color="grey", linewidth=0.8)
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    axes.set_xlabel("sd of a weight, best mean field")
panels[0].set_ylabel("sd, best diagonal matrix normal")
plt.show()

# %% [markdown]
# So what is a matrix normal good for? With diagonal covariances: fewer parameters ($dk+d+k$ against $2dk$). With a
# *full* row covariance (`MatrixNormalTril`): correlations between inputs, and then it is no longer inside mean field.
# If a diagonal matrix normal scores better than mean field somewhere, it was trained better, started better, or
# scored on something else than the bound; its optimum is not better.

# %% [markdown]
# ## 4. A network, where single weights mean nothing
#
# Real data now: scikit-learn's diabetes set, one input (body mass index) and the first 150 training rows. The model is
# `zoo.matrix_gaussian.Model`: one hidden layer of 8 rectified units, weights $N(0,1)$, unknown noise precision $\tau$
# with a Gamma prior. No exact posterior is known; the reference is NUTS.

# %%
everything, _, test = vmg.data("diabetes", features=["bmi"])
some_rows = everything.subset(range(150))
net = vmg.Model.for_data(some_rows, hidden=[8], noise="standardised")
data = some_rows.all()
print(f"x: body mass index in {some_rows.units['x'].split(';')[0]};  y: {some_rows.units['y']}")

net_chains = lab.nuts(net, data, chains=CHAINS, draws=DRAWS, warmup=WARMUP, **JIT)

# %% [markdown]
# The same four guides. `W1`, `W2` get the family we name, and the positive site `tau` keeps a Gamma. (`net.start()`
# lets $q(\tau)$ start at the scale of $y$.) The bound of a network has many optima, so every guide starts from the
# same seed: the first three then start at the same means.


# %%
def train_net(guide):
    lab.seed(0)
    return lab.fit(net, guide, [data], vmg.bound(guide), epochs=NET_STEPS, lr=0.05, decay=0.01)


start, net_fits = net.start(), {}
for family in (guides.MeanField, guides.MatrixNormal, guides.MatrixNormalTril):
    lab.seed(0)
    net_fits[family.__name__] = train_net(guides.Guide(net, data, weights=family, start=start))
lab.seed(0)
net_fits["full rank"] = train_net(guides.Auto(AutoMultivariateNormal, net, data, start=start))

# %% [markdown]
# ### Permute the hidden units
#
# Number the hidden units in another order: permute the columns of $W_1$ and, in the same way, the rows of $W_2$. The
# network computes the same function and has the same prior probability. So the posterior has $8!$ identical copies of
# everything, and "the posterior mean of weight $(1,3)$" is a statement about a numbering.

# %%
weights = {site: torch.tensor(net_chains.posterior[site].values).flatten(0, 1) for site in ("W1", "W2", "tau")}
order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
permuted = {**weights, "W1": weights["W1"][..., order], "W2": weights["W2"][:, [*order, 8]]}  # row 8 of W2 is the bias

before, after = (predictive.condition(net, draws, data) for draws in (weights, permuted))
print(f"largest change of a weight      {(weights['W1'] - permuted['W1']).abs().max():.2f}")
print(f"largest change of a prediction  {(before.outputs['y'].mean - after.outputs['y'].mean).abs().max():.1e}")
print(f"largest change of log p(y, W)   {(before.lp - after.lp).abs().max():.1e} nats")
print(f"number of copies                {math.factorial(8):,}")
assert (weights["W1"] - permuted["W1"]).abs().max() > 1
assert torch.allclose(before.outputs["y"].mean, after.outputs["y"].mean, rtol=1e-9)  # rounding: sums in another order
assert torch.allclose(before.lp, after.lp, rtol=1e-9)

# %% [markdown]
# A chain that mixes visits all numberings, so all units look alike in it. A guide commits itself to one numbering.
# Here are the posterior means of the eight output weights: under NUTS they are the same but for Monte Carlo error,
# under the guide they are whatever the start made of them. Neither is wrong, and comparing them number by number is.

# %%
by_unit = pd.DataFrame(
    {
        "NUTS": weights["W2"][:, :8, 0].mean(0),
        "MeanField": net_fits["MeanField"].guide.q["W2"]().mean[:8, 0].detach(),
    },
    index=pd.Index(range(1, 9), name="hidden unit"),
)
display(by_unit.round(2).T)
print("spread over the units:", by_unit.std().round(2).to_dict())
error = az.mcse(net_chains, var_names=["W2"])["W2"].values[:8, 0]
assert (np.abs(by_unit["NUTS"] - by_unit["NUTS"].mean()) < 5 * error).all()  # all the same, up to five standard errors
assert by_unit["MeanField"].std() > by_unit["NUTS"].std()

# %% [markdown]
# ### Compare functions instead
#
# What is identified is the function $f(x)$: its mean and its band on a grid, or its distribution at a few points. All
# numberings agree on it, so here guide and chain may be compared, and R-hat and ESS of the chain mean something.

# %%
grid = torch.linspace(-2, 2.5, 46)[:, None]
POINTS = (5, 20, 40)  # places in the grid

f = {"NUTS": predictive.condition(net, weights, {"x": grid}).outputs["y"].mean[..., 0]}
for name, fit in net_fits.items():
    f[name] = predictive.draw(net, fit.guide, {"x": grid}, GUIDE_DRAWS).outputs["y"].mean[..., 0]

points = f["NUTS"][:, POINTS].reshape(CHAINS, DRAWS, len(POINTS)).numpy()
values = [f"f({grid[k].item():.1f})" for k in POINTS]
functional = az.summary(
    az.from_dict({"f": points}, coords={"at": [f"{grid[k].item():.1f}" for k in POINTS]}, dims={"f": ["at"]}),
    round_to=3,
)
display(functional[["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]])
assert functional["r_hat"].max() < (1.15 if SMALL else 1.05)

# %%
figure, panels = plt.subplots(2, 2, figsize=(7.5, 5.6), sharex=True, sharey=True)
for axes, name, colour in zip(panels.flat, net_fits, PALETTE, strict=False):
    for who, shade, line in (("NUTS", "#000000", "--"), (name, colour, "-")):
        low, high = f[who].quantile(torch.tensor([0.05, 0.95]), 0)
        axes.fill_between(grid[:, 0], low, high, color=shade, alpha=0.2, linewidth=0)
        axes.plot(grid[:, 0], f[who].mean(0), color=shade, linestyle=line, label=who)
    axes.plot(data["x"], data["y"], "o", color="black", markersize=2)
    axes.legend(fontsize="small", loc="upper left")
figure.supxlabel("body mass index (training standard deviations)", fontsize="medium")
figure.supylabel("disease progression score: mean and 90 % band of f", fontsize="medium")
plt.show()

# %%
figure, panels = plt.subplots(1, 3, figsize=(7.5, 2.6), sharey=True)
colours = dict(zip(f, ("#000000", *PALETTE), strict=False))
for axes, k in zip(panels, POINTS, strict=True):
    for height, (name, draws) in enumerate(f.items()):
        q = draws[:, k].quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
        axes.plot(q[[0, 4]], [-height] * 2, color=colours[name], linewidth=1)
        axes.plot(q[[1, 3]], [-height] * 2, color=colours[name], linewidth=4)
        axes.plot(q[2], -height, "o", color="white", markeredgecolor=colours[name])
    axes.set_title(f"x = {grid[k].item():.1f}", fontsize="medium")
panels[0].set_yticks([-height for height in range(len(f))], list(f))
figure.supxlabel("f(x), disease progression score: median, 50 % and 90 % interval", fontsize="medium")
plt.show()

# %%
rise = {name: (draws[:, POINTS[2]] - draws[:, POINTS[0]]).mean().item() for name, draws in f.items()}
rows = []
for name, fit in net_fits.items():
    elbo, error = fit.elbo(data, particles=100)
    shift = (f[name].mean(0) - f["NUTS"].mean(0)) / f["NUTS"].std(0)
    ratio = f[name].std(0) / f["NUTS"].std(0)
    rows.append(
        {"guide": name, "ELBO (nats)": f"{elbo:.1f} ± {error:.1f}", "rise of the mean": round(rise[name], 1)}
        | {f"mean of {v}, off by (NUTS sd)": round(shift[k].item(), 2) for v, k in zip(values, POINTS, strict=True)}
        | {f"sd of {v} / NUTS": round(ratio[k].item(), 2) for v, k in zip(values, POINTS, strict=True)}
    )
display(pd.DataFrame(rows).set_index("guide").T)
print(f"rise of the mean from {values[0]} to {values[2]} under NUTS: {rise['NUTS']:.1f}")

# %% [markdown]
# Two things to see, the same for all four guides (the table says how much):
#
# * The mean function is somewhat **too flat**. A likely reason: the data hardly determine the weights one by one, every
#   weight that leaves the prior costs Kullback-Leibler divergence, and a Gaussian that sits on one numbering of the
#   units gets less likelihood for that price than the posterior does. So the function sinks towards the prior mean.
# * The band is **too wide**, although in section 2 such guides made single weights too certain. In
#   the posterior the errors of several weights cancel in $f$. If the dependence is lost, nothing cancels. A check with
#   the chain itself: shuffle the draws of every weight separately, which keeps each weight's distribution and destroys
#   all dependence, and look at the band again. (The full-rank guide keeps linear dependence only, and the posterior of
#   a network is not Gaussian.)

# %%
for name in net_fits:
    assert rise[name] < rise["NUTS"]  # flatter
    assert f[name].std(0)[POINTS[1]] > f["NUTS"].std(0)[POINTS[1]]  # wider in the middle of the data


def shuffled(draws):
    """Every element permuted over the draws on its own; draws (S, ...)."""
    return draws.gather(0, torch.rand(draws.shape).argsort(0))


lab.seed(0)
independent = {site: shuffled(draws) for site, draws in weights.items()}
wide = predictive.condition(net, independent, {"x": grid}).outputs["y"].mean[:, POINTS[1], 0].std()
print(f"sd of {values[1]}: NUTS {f['NUTS'][:, POINTS[1]].std():.1f}, the same draws without dependence {wide:.1f}")
assert wide > 1.3 * f["NUTS"][:, POINTS[1]].std()

# %% [markdown]
# Would a test score have told us? Scores on the test rows, from `lab.compare`: log-likelihood in nats per datum, RMSE
# in units of $y$, bound in nats per training datum.

# %%
scores = lab.compare(net_fits, test, draws=GUIDE_DRAWS).frame.drop(columns="seconds")  # seconds differ from run to run
display(scores)
spread = scores["log-lik"].astype(float).max() - scores["log-lik"].astype(float).min()
print(
    f"test log-likelihoods differ by {spread:.3f} nats per datum; the sd of {values[2]} under MeanField is "
    f"{f['MeanField'].std(0)[POINTS[2]] / f['NUTS'].std(0)[POINTS[2]]:.1f} times that under NUTS"
)
assert spread < 0.1

# %% [markdown]
# The noise of the data hides it: the band of $f$ is narrow beside the noise of $y$. A test score on noisy data is a
# blunt instrument for posteriors; compare functionals with a reference when there is one.

# %% [markdown]
# ## 5. What `lab.fit` refuses
#
# Some mistakes train without complaint and give wrong numbers. `lab.fit` looks at the first batch and stops.
#
# **A guide that forgets a site.** Pyro would warn, and leave `W2` and `tau` at the prior for ever.


# %%
class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, 8))

    def forward(self, x, y=None):
        pyro.sample("W1", Normal(self.loc, 0.1).to_event(2))


try:
    lab.fit(net, Forgetful(), [data], Trace_ELBO(), epochs=1)
    raise AssertionError("was not refused")
except lab.UnmatchedSites as refusal:
    print(f"UnmatchedSites: {refusal}")

try:
    guides.Guide(net, data, weights={"W1": guides.MeanField})
    raise AssertionError("was not refused")
except guides.GuideError as refusal:
    print(f"GuideError: {refusal}")

# %% [markdown]
# **The wrong bound for the order.** A model with two latents per datum, $z_2\to z_1\to x$, and a guide that
# recognises them from the bottom: $q(z_1\mid x)\,q(z_2\mid z_1)$. As $q$ we take the *exact* posterior,
# $z_1\mid x\sim N(\tfrac23x,\tfrac23)$ and $z_2\mid z_1\sim N(\tfrac12z_1,\tfrac12)$.


# %%
class TwoLatents(nn.Module):
    def forward(self, x):
        with guides.data_plate(len(x)):
            z2 = pyro.sample("z2", Normal(0.0, 1.0))
            z1 = pyro.sample("z1", Normal(z2, 1.0))
            pyro.sample("x", Normal(z1, 1.0), obs=x)


class BottomUp(nn.Module):
    def forward(self, x):
        with guides.data_plate(len(x)):
            z1 = pyro.sample("z1", Normal(2 * x / 3, math.sqrt(2 / 3)))
            pyro.sample("z2", Normal(z1 / 2, math.sqrt(1 / 2)))


observed = {"x": torch.tensor([-2.0, 0.5, 3.0])}
try:
    lab.fit(TwoLatents(), BottomUp(), [observed], TraceMeanField_ELBO(), epochs=1)
    raise AssertionError("was not refused")
except lab.MeanFieldOrder as refusal:
    print(f"MeanFieldOrder: {refusal}")

# %% [markdown]
# How wrong would it have been? The guide is exact, so its bound is the evidence, $x\sim N(0,3)$, whatever is drawn.
# `TraceMeanField_ELBO` adds up one divergence per site. It takes
# $\mathrm{KL}\big(q(z_1\mid x)\,\|\,p(z_1\mid z_2)\big)$ as if $z_2$ had been drawn before $z_1$ and independently of
# it; here $z_2$ was drawn from $z_1$.


# %%
def simulate(bound):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro warns about the order, and goes on
        return -torch.tensor([bound.loss(TwoLatents(), BottomUp(), **observed) for _ in range(200)])


truth = Normal(0.0, math.sqrt(3.0)).log_prob(observed["x"]).sum().item()
right, wrong = simulate(Trace_ELBO()), simulate(TraceMeanField_ELBO())
error = wrong.std().item() / math.sqrt(len(wrong))
print(
    f"log evidence {truth:.3f} nats, Trace_ELBO {right.mean():.3f}, "
    f"TraceMeanField_ELBO {wrong.mean():.3f} ± {error:.3f}"
)
assert (right - truth).abs().max() < 1e-8  # every draw, up to rounding
assert abs(wrong.mean() - truth) > 5 * error

# %% [markdown]
# ## 6. Exercises
#
# ### (a) Your own family
#
# A family is any callable `(prior, context) -> nn.Module` whose `forward(context)` returns $q$. Write a mean field of
# **Laplace** distributions, $q(w)=\prod_i\mathrm{Laplace}(w_i;m_i,b_i)$, and swap it into the model of section 1.
# Before you run it: how far below Gaussian mean field will its best bound be? (Hint: only the variance of $q$ enters
# $E_q\log p$, and the entropy of a Laplace with standard deviation $s$ is $\log(\sqrt2\,e\,s)$.)

# %% [markdown]
# #### Solution (a)
#
# $E_q\log p(W\mid Y)$ is quadratic in $W$, so for independent weights it depends on means and variances only. The
# same means and standard deviations are best as for the Gaussian; the entropy is lower by
# $\tfrac12\log(2\pi e)-\log(\sqrt2\,e)=\tfrac12(\log\pi-1)$ per weight. PyTorch knows the divergence from a Laplace to
# a normal, so `mean_field` stays true; if it did not, `Guide` would say so and `bound_for` would take the sampled
# bound. There is no `.activation` (see `guides.distributions`), so `guides.linear` samples the weights themselves.


# %%
class LaplaceMeanField(nn.Module):
    """Independent Laplace distributions for a real matrix."""

    def __init__(self, prior, context=None):
        super().__init__()
        self.loc = nn.Parameter(prior.mean.clone())
        self.log_scale = nn.Parameter(torch.full_like(prior.mean, -3.0))

    def forward(self, context=None):
        return Laplace(self.loc, self.log_scale.exp()).to_event(2)


own = guides.Guide(model, batch, weights=LaplaceMeanField)
assert own.mean_field
q = law(train(own))
as_gauss = guides.distributions.FactorNormal(q.mean, q.variance.sqrt())  # the Gaussian with the same moments
loss = 12 * (math.log(math.pi) - 1) / 2
laplace_gap = kl_divergence(as_gauss, exact).item() + loss
print(
    f"predicted gap {best_gaps(EACH)[0] + loss:.4f}, trained {laplace_gap:.4f} nats; "
    f"{loss:.4f} more than Gaussian mean field"
)
assert 0 <= laplace_gap - (best_gaps(EACH)[0] + loss) < GAP

draws = q.sample((20_000,))  # and by simulation, without using the argument above
log_ratio = q.log_prob(draws) - exact.log_prob(draws)
assert abs(log_ratio.mean().item() - laplace_gap) < 5 * log_ratio.std().item() / math.sqrt(len(draws))

# %% [markdown]
# ### (b) Two outputs share their noise
#
# Let the noise variances be $(0.3, 0.3, 1.8)$. Which of MeanField, MatrixNormal and MatrixNormalTril will be closest
# to the posterior? Will the gap of MatrixNormalTril be larger or smaller than in section 2? Will MatrixNormal now
# equal MeanField? Predict, then measure.

# %% [markdown]
# #### Solution (b)
#
# MatrixNormalTril misses only what differs *between* outputs: with equal noise everywhere it contains the posterior.
# Two equal outputs and a third that is closer than before: its gap shrinks, but not to zero. The table $\Pi$ has two
# equal columns, but the third is not a multiple of them, so its rank is 2 and MatrixNormal stays below MeanField. For
# the prediction of MatrixNormalTril, iterate $U=\big(\tfrac1K\sum_jv_jP_j\big)^{-1}$, $v_j=D/\mathrm{tr}(P_jU)$.


# %%
def best_tril_gap(variances):
    P, v = precisions(variances), torch.ones(3)
    for _ in range(2000):
        U = (v[:, None, None] * P).mean(0).inverse()
        v = 4 / (P @ U).diagonal(dim1=-2, dim2=-1).sum(-1)
    posterior = exact_posterior(variances)
    best = guides.distributions.MatrixNormal(posterior.mean, row_tril=torch.linalg.cholesky(U), col_scale=v.sqrt())
    return kl_divergence(best, posterior).item()


SHARED = (0.3, 0.3, 1.8)
shared, posterior = Regression(SHARED), exact_posterior(SHARED)
predicted = dict(zip(("MeanField", "MatrixNormal"), best_gaps(SHARED), strict=True))
predicted["MatrixNormalTril"] = best_tril_gap(SHARED)
rows = []
for name, gap in predicted.items():
    trained = law(train(guides.Guide(shared, batch, weights=getattr(guides, name)), model=shared))
    rows.append({"guide": name, "predicted gap": gap, "trained gap": kl_divergence(trained, posterior).item()})
    assert 0 <= rows[-1]["trained gap"] - gap < GAP
display(pd.DataFrame(rows).set_index("guide").round(4))
tril_gaps = {variances: best_tril_gap(variances) for variances in (EACH, SHARED, COMMON)}
print("best gap of MatrixNormalTril:", {variances: round(abs(gap), 4) for variances, gap in tril_gaps.items()})
assert predicted["MatrixNormalTril"] < predicted["MeanField"] < predicted["MatrixNormal"]
assert tril_gaps[EACH] > tril_gaps[SHARED] > tril_gaps[COMMON] and abs(tril_gaps[COMMON]) < 1e-9  # rounding

# %% [markdown]
# ### (c) Start and scale
#
# Every family takes `scale`, the standard deviation at which it starts; the default is $e^{-3}$. Fit `MatrixNormal`
# to the network of section 4 with `functools.partial(guides.MatrixNormal, scale=1.0)` (where the authors of the
# method start) and with the default. Look at the learning curves and at the noise of the first gradients. Explain.

# %% [markdown]
# #### Solution (c)
#
# With standard deviation 1 every weight is drawn from something like the prior: the first predictions are mostly
# noise, the gradient of the means is noisier, and the bound starts lower. With $e^{-3}$ the first steps are nearly
# those of an ordinary network, and the standard deviations grow later to where the bound wants them. It is the same
# family and the same bound, so after enough steps the difference should be small; but in a network, where the bound
# has several optima, a start may also decide which of them is found. Compare guides from the same start.


# %%
def gradient_noise(guide, repeats=200):
    """Standard deviation over simulations of the gradient of the means of W1, root mean square over its elements."""
    loss, gradients = vmg.bound(guide)(net, guide), []
    for _ in range(repeats):
        (gradient,) = torch.autograd.grad(loss(**data), guide.q["W1"].loc)
        gradients.append(gradient)
    return torch.stack(gradients).var(0).mean().sqrt().item()


curves, first = {}, {}
for title, scale in {"scale 1": 1.0, "scale exp(-3)": math.exp(-3)}.items():
    lab.seed(1)
    guide = guides.Guide(net, data, weights=partial(guides.MatrixNormal, scale=scale), start=start)
    first[title] = gradient_noise(guide)
    curves[title] = train_net(guide).losses

figure, axes = plt.subplots(figsize=(6.0, 2.8))
for (title, losses), colour, line in zip(curves.items(), PALETTE, LINES, strict=False):
    window = NET_STEPS // 150
    smooth = -np.array(losses).reshape(-1, window).mean(1)
    axes.semilogx(window * (np.arange(len(smooth)) + 0.5), smooth, color=colour, linestyle=line, label=title)
axes.set(xlabel="optimiser step", ylabel="ELBO (nats per datum)")
axes.legend()
plt.show()

early, late = slice(NET_STEPS // 10), slice(-NET_STEPS // 5, None)
for title, losses in curves.items():
    print(
        f"{title:14} noise of the first gradient {first[title]:7.1f}   "
        f"mean bound, first tenth {-np.mean(losses[early]):.3f}, last fifth {-np.mean(losses[late]):.3f} nats per datum"
    )
assert first["scale 1"] > 1.3 * first["scale exp(-3)"]  # a ratio of two simulated numbers, so with room
assert np.mean(curves["scale 1"][early]) > np.mean(curves["scale exp(-3)"][early])  # losses: a worse bound early on
