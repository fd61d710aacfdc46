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
# # Does depth mix better? From one stuck chain to a verdict
#
# A model that knows ten kinds of digits well has ten deep valleys, and a Markov chain that moves pixel by pixel stays
# in one of them for long. Bengio, Mesnil, Dauphin and Rifai (2012) conjecture that a chain walks better in the *top
# representation* of a deep model: there the classes lie closer together, and every state decodes to a plausible
# picture. The claim is easy to illustrate and hard to test. In about forty minutes you will
#
# 1. see one chain stuck in one class,
# 2. turn the picture into numbers: classes visited, and the ceiling that no honest chain exceeds,
# 3. learn what R-hat and effective sample sizes see, and two ways to fool them,
# 4. hold ArviZ against the exact autocorrelation time of an enumerated chain,
# 5. compare depths, with fit and class law beside the visits,
# 6. fake good mixing with a noisy decoder,
# 7. compare chains that have the *same* target, exactly; and try the classical answer, tempering,
# 8. solve five exercises (solutions are below each of them; fold their headings first).
#
# You need Markov chains and restricted Boltzmann machines; the lesson on `layerwise` introduces the latter. Ids such
# as mix.13 name equations on the card of `zoo.mixing` (`zoo show mixing` prints it). The text of the paper was not at
# hand, so this is the paper as we understand it. What is a theorem is asserted in a cell nearby; what is only
# measured is printed, and never asserted.

# %%
# ruff: noqa: E402
import io
import os
import warnings

warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")  # ArviZ announces its next version
warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Image, display

from guides.codes import states
from zoo import lab, mixing
from zoo.lab import chain_reports, convergence, figures, kernels, markov, visits
from zoo.lab.labels import Labeller
from zoo.lab.noise import Noise
from zoo.lab.rbm import RBM

torch.set_num_threads(1)  # the matrices are small
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.spines.top": False})
plt.rcParams.update({"axes.spines.right": False, "font.size": 9, "axes.titlesize": "medium"})

# %% [markdown]
# The tests of this repository run the notebook with `ZOO_NOTEBOOK_STEPS=small`: shorter training and fewer draws.
# What is a theorem is asserted with the same tolerance at both settings.

# %%
SMALL = os.environ.get("ZOO_NOTEBOOK_STEPS") == "small"
EPOCHS = 4 if SMALL else 120
STEPS = 40 if SMALL else 1000  # draws of each chain
CHAINS = 10 if SMALL else 40
REPEATS = 3 if SMALL else 20
EPS = 1e-9  # rounding


def show(figure):
    """A figure of the library, which opens no window, as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    display(Image(buffer.getvalue()))


# %% [markdown]
# ## 1. One chain, one class
#
# The data are scikit-learn's digits, 8 x 8 pixels, cut at half grey. The model is a restricted Boltzmann machine (RBM)
# with 64 hidden units, trained by persistent contrastive divergence. Its chain is block Gibbs: all hidden units given
# the picture, all pixels given the hidden units, and so on.

# %%
split = mixing.data("digits", split=0)
train, valid, test = split


def trained(depth, seed=0):
    """A deep belief network of equal widths and its bottom-up guide; depth 1 is an RBM."""
    lab.seed(seed)
    model = mixing.Model.for_data(train, depth=depth, width=64)
    guide = mixing.guide(model, train.peek())
    plan = mixing.phases(model, guide)  # greedily, one RBM after the other
    batches = train.batches(50, seed=seed)
    lab.fit(model, guide, batches, mixing.bound(guide), epochs=EPOCHS, lr=1e-2, decay=0.01, phases=plan)
    return model, guide


model, guide = trained(1)
walk = mixing.walk(model, guide)
labeller = Labeller(train)  # has seen real pictures only, and may answer "none"
first = chain_reports.starts(train, train["y"], CHAINS, classes=10)  # one chain in each class, then again
run = lab.walk(walk.step, first, draws=STEPS, watch={"x": walk.decode}, seed=0)
labels = labeller(run["x"])

rows = {f"chain {m}": run["x"][m, :25] for m in range(6)}
show(figures.square_strips(rows))
print("labels of chain 0, draws 1-25:", *(str(k) if k >= 0 else "-" for k in labels[0, :25].tolist()))

# %% [markdown]
# *Figure 1.* Twenty-five successive draws of six chains, each started from a real picture of another class (0 to 5),
# one row each. Below: what a classifier calls the draws of the first chain; "-" is a draw of which it is not sure.
#
# A chain keeps drawing variations of the digit it began with. Nothing is wrong with the sampler: block Gibbs has the
# model's law as its target. It is only slow.

# %% [markdown]
# ## 2. Classes visited, and the ceiling
#
# Count the distinct classes in windows of $T$ draws. What would a perfect sampler show? $T$ *independent* draws from
# a class law $p$ visit $\sum_k 1-(1-p_k)^T$ classes on average, 6.5 of ten equal ones in ten draws. For a chain that
# is reversible and positive, as block Gibbs is (mix.9), this is a **ceiling** (mix.15): no such chain in stationarity
# visits more, whatever the labels. So `V_T / ceiling` is an honest score between 0 and 1.

# %%
law = visits.one_hot(labels, 10).mean((0, 1))
found = {
    T: (float(visits.visited(labels, 10, T).mean()), markov.ceiling(law, T))
    for T in (2, 5, 10, 20, 50, 100, 200, 500)
    if T <= STEPS
}
show(
    figures.visits(
        list(found), {"RBM": [v for v, _ in found.values()], "independent draws": [c for _, c in found.values()]}
    )
)
print(f"the class changes on {visits.switch_rate(labels):.1%} of the steps")

# %% [markdown]
# *Figure 2.* Distinct classes in $T$ draws of the RBM's chains, against independent draws from the same class law.
#
# The ceiling is a theorem, so let us check it where everything can be enumerated: random RBMs of 6 + 4 units, random
# labels, the expected number of visits by the transfer matrix (mix.14).

# %%
torch.manual_seed(0)
closest = []
for _ in range(20):
    small = RBM(6, 4, scale=float(torch.rand(()) * 3))
    A, B = markov.halves(small)  # P(h | v) and P(v | h) as matrices
    pi = (-small.free_energy(states(6))).detach().double().softmax(0)
    e = torch.nn.functional.one_hot(torch.randint(4, (64,)), 4).double()
    assert markov.stationarity_error(A @ B, pi) < 1e-6  # float32 parameters
    assert markov.eigenvalues(A @ B, pi).min() > -1e-6, "positive: no autocorrelation is negative"
    for T in (2, 5, 25):
        gap = markov.ceiling(pi @ e, T) - markov.visits(A @ B, pi, e, T)
        assert gap > -1e-6, "the ceiling of mix.15"
        closest.append(gap)
print(f"60 cases, none above the ceiling; the closest is {min(closest):.4f} classes below it")

# %% [markdown]
# ## 3. What R-hat and ESS see, and what they miss
#
# ArviZ wants statistics. A class label 0..9 is not a number, so we give it ten indicators, one for each class, and two
# ordinary ones: the pixel sum and the free energy. `method="mean"` is the effective sample size of the quantity we
# average.

# %%
report = chain_reports.judge(walk, split, chains=CHAINS, steps=STEPS, labeller=labeller)
display(pd.DataFrame([vars(s) for s in [*report.mixing.indicators, *report.mixing.others]]).set_index("name").round(3))
print("\n".join(report.mixing.sentences))

# %% [markdown]
# The chains began in different classes. They disagree for as long as they remember where they came from, and R-hat,
# which compares the variance between chains to that within, sees it. Rank plots show the same: of a chain that mixes,
# every rank among all draws is equally likely.

# %%
show(figures.ranks({"pixel sum": report.chains["pixel sum"], "free energy": report.chains["free energy"]}))

# %% [markdown]
# *Figure 3.* Rank plots, one line for each chain; flat is good.
#
# **Two ways to be fooled.** First: start all chains in one valley. They agree with one another, because they are stuck
# in the same place. Second: a class that no chain ever visits has a constant indicator, and ArviZ
# gives a constant the effective sample size of perfectly independent draws.

# %%
valleys = RBM(8, 1)  # two valleys, all pixels on or all off, equally deep
with torch.no_grad():
    valleys.W.fill_(6.0), valleys.b.fill_(-3.0), valleys.c.fill_(-24.0)
exact = float((-valleys.free_energy(states(8))).detach().softmax(0) @ states(8).sum(-1))
looks = {"v": lambda v, noise: v}
on = lab.walk(kernels.block_gibbs(valleys), torch.ones(8, 8), draws=500, watch=looks, seed=0)["v"].sum(-1)
both = torch.cat([torch.ones(4, 8), torch.zeros(4, 8)])
apart = lab.walk(kernels.block_gibbs(valleys), both, draws=500, watch=looks, seed=0)["v"].sum(-1)
print(f"exact mean of the pixel sum {exact:.2f}")
print(f"8 chains from one valley:    mean {float(on.mean()):.2f}, R-hat {float(az.rhat(on.numpy())):.3f}")
print(f"8 chains from both valleys:  mean {float(apart.mean()):.2f}, R-hat {float(az.rhat(apart.numpy())):.3f}")

never = np.zeros((4, 100))
print(f"a class never visited, 4 x 100 draws: ArviZ says ESS = {float(az.ess(never, method='mean')):.0f}")
print("this project says:", convergence.statistic("class 7", never))
assert float(az.ess(never, method="mean")) == never.size
assert convergence.statistic("class 7", never).ess == 0

# %% [markdown]
# So: start chains in different places, look for constants first, and look at the *worst* statistic, not at the median.

# %% [markdown]
# ## 4. Is the estimate itself right?
#
# For an enumerated chain the integrated autocorrelation time $\tau$ is exact: one linear system with the fundamental
# matrix (mix.12). Then $\mathrm{ESS}=MT/\tau$. Here is an RBM of 8 + 6 units with strong couplings, 256 pictures in
# all.

# %%
random = np.random.default_rng(0)
W = 2 * random.normal(size=(8, 6))
sharp = RBM(8, 6).double()
with torch.no_grad():
    sharp.W.copy_(torch.from_numpy(W))
    sharp.b.copy_(torch.from_numpy(-W.sum(1) / 2))
    sharp.c.copy_(torch.from_numpy(-W.sum(0) / 2))
A, B = markov.halves(sharp)
every = states(8).double()
pi = (-sharp.free_energy(every)).detach().softmax(0)
statistics = {"pixel sum": every.sum(-1), "free energy": sharp.free_energy(every).detach(), "v_0": every[:, 0]}
draws = 500 if SMALL else 5000
estimates = {name: [] for name in statistics}
for seed in range(REPEATS):
    start = every[torch.multinomial(pi, 4, replacement=True, generator=torch.Generator().manual_seed(seed))]
    chain = lab.walk(kernels.block_gibbs(sharp), start, draws=draws, watch={"v": lambda v, noise: v}, seed=seed)["v"]
    index = (chain * 2 ** torch.arange(7, -1, -1)).sum(-1).long()
    for name, f in statistics.items():
        estimates[name].append(float(az.ess(f[index].numpy(), method="mean")))
rows = []
for name, f in statistics.items():
    exact = 4 * draws / float(markov.iact(A @ B, pi, f))
    ratio = np.array(estimates[name]) / exact
    rows.append((name, exact, np.mean(estimates[name]), ratio.mean(), ratio.std(ddof=1)))
display(pd.DataFrame(rows, columns=["statistic", "exact ESS", "ArviZ", "ratio", "sd over seeds"]).round(2))
print(f"relaxation time {markov.relaxation_time(A @ B, pi):.2f} steps")

# %% [markdown]
# ArviZ is right on average here, and one run may be off by a few per cent: an effective sample size is an estimate,
# too.

# %% [markdown]
# ## 5. Going deeper
#
# A deep belief network (DBN) is a stack: the codes of one RBM are the data of the next. Its chain runs in the *top*
# RBM; a kept state is decoded once, downwards, and never fed back (mix.7). All layers have 64 units here, so that
# depth is not mixed up with width. Fit, class law and rejected draws stand beside the visits: a chain of blurry noise
# visits every class at once.

# %%
table, models = {}, {1: (model, guide)}
for depth in (1, 2, 3):
    if depth not in models:
        models[depth] = trained(depth)
    deep, q = models[depth]
    seen = chain_reports.judge(mixing.walk(deep, q), split, chains=CHAINS, steps=STEPS, labeller=labeller)
    table[f"depth {depth}"] = seen.row()
    if depth == 3:
        show(figures.square_strips({f"chain {m}": seen.chains["x"][m, :25] for m in range(6)}))
display(pd.DataFrame(table).round(3))
rejected = float((labeller(test["x"]) == visits.NONE).double().mean())
print(f"of the real test pictures the classifier rejects {rejected:.1%}")

# %% [markdown]
# *Figure 4.* Draws of six chains that walk at the top of a DBN of depth 3, decoded.
#
# One training seed is an anecdote. `zoo reproduce mixing` measures ten, with paired intervals; the README shows what
# came out. And one thing is wrong with the whole comparison: the chains of different depths have *different targets*.
# Each leaves the law of its own model invariant. If the deeper model is flatter, its chain is faster for a bad
# reason.

# %% [markdown]
# ## 6. How a noisy decoder fakes mixing
#
# Let $f$ be a statistic of the picture and $g(h)=E[f(x)\mid h]$ what the state knows of it. Decoding adds noise that
# has no memory, so (mix.13)
# $$\tau_x(f)=1+\frac{\operatorname{Var} g}{\operatorname{Var} f}\,(\tau_h(g)-1).$$
# Make the decoder noisier, and $\tau_x$ falls to 1 while the chain has not become faster at all. Here exactly, with
# the chain of section 4 and a decoder from its 8 units to 5 pixels whose couplings are turned down.

# %%
torch.manual_seed(1)
couplings, pixels = torch.randn(8, 5).double(), states(5).double()
f = pixels.sum(-1)
rows = []
for gain in (8.0, 2.0, 1.0, 0.5, 0.1):
    decode = markov.bits_kernel(gain * (2 * every - 1) @ couplings, pixels)  # P(x | state)
    g, share = markov.explained(pi, decode, f)
    tau_h = markov.iact(A @ B, pi, g)
    tau_x = markov.decoded_iact(tau_h, share)
    rows.append((gain, float(share), float(tau_h), float(tau_x)))
frame = pd.DataFrame(rows, columns=["gain of the decoder", "Var g / Var f", "tau of g(h)", "tau of f(x)"])
display(frame.round(3))
assert (frame["tau of f(x)"] <= frame["tau of g(h)"] + EPS).all()

# %% [markdown]
# That is why the report shows the statistic of the *state* ("pixel sum | s") beside that of the drawn picture. The
# same trick in one line, on the DBN: shuffle the entries of the top couplings. Nothing that was learned is left up
# there.

# %%
deep, q = models[2]
with torch.no_grad():
    learned = deep.prior.W.clone()
    deep.prior.W.copy_(learned.flatten()[torch.randperm(learned.numel())].view_as(learned))
broken = chain_reports.judge(mixing.walk(deep, q), split, chains=CHAINS, steps=STEPS, labeller=labeller)
with torch.no_grad():
    deep.prior.W.copy_(learned)
display(pd.DataFrame({"depth 2": table["depth 2"], "shuffled": broken.row()}).round(3))
show(figures.square_strips({f"chain {m}": broken.chains["x"][m, :25] for m in range(3)}))

# %% [markdown]
# *Figure 5.* Draws of the shuffled model. Effective sample sizes have never been better. The class law, the rejected
# draws, the distance to real pictures and the Parzen score say what happened.

# %% [markdown]
# ## 7. The same target
#
# Now without confounds. Take one DBN 9-6-4, small enough to enumerate, trained on bars and stripes by its exact
# likelihood, and three chains whose target is *the same law* P(x) (mix.10): (a) a sweep of single pixels given all
# others, (b) x and h1 in turn, h1 from the exact posterior, (c) the walk at the top, decoded.

# %%
torch.set_default_dtype(torch.float64)
bars = mixing.data("bars_and_stripes_3x3").train["x"]
lab.seed(0)
small = mixing.Model(9, [6, 4], len(bars), scale=0.5)
optimiser = torch.optim.Adam(small.parameters(), lr=0.05)
for _ in range(60 if SMALL else 800):
    optimiser.zero_grad()
    (-small.log_evidence(bars).mean() + 1e-3 * sum(p.square().sum() for p in small.parameters())).backward()
    optimiser.step()
world = mixing.same_target(small)
assert markov.stationarity_error(world.sweep, world.law) < 1e-12
assert markov.stationarity_error(world.alternate, world.law) < 1e-12
assert markov.stationarity_error(world.top, world.prior) < 1e-12

pictures = states(9).reshape(-1, 3, 3)
looked = {
    "pixel sum": states(9).sum(-1),
    "first pixel": states(9)[:, 0],
    "all rows constant": (pictures == pictures[:, :, :1]).all(-1).all(-1).double(),
    "all columns constant": (pictures == pictures[:, :1, :]).all(1).all(1).double(),
}
rows = []
for name, f in looked.items():
    g, share = markov.explained(world.prior, world.decode, f)
    tau_h = markov.iact(world.top, world.prior, g)
    rows.append((name, float(markov.iact(world.sweep, world.law, f)), float(markov.iact(world.alternate, world.law, f)),
                 float(markov.decoded_iact(tau_h, share)), float(tau_h)))  # fmt: skip
columns = ["statistic", "(a) sweep", "(b) x and h1", "(c) top, decoded", "(c) top, g(h)"]
display(pd.DataFrame(rows, columns=columns).set_index("statistic").round(2))
print(
    f"log-likelihood {float(small.log_evidence(bars).detach().mean()):.3f} nats, the best possible is {-np.log(14):.3f}"
)
torch.set_default_dtype(torch.float32)

# %% [markdown]
# Numbers are exact autocorrelation times; small is fast. The top walk may beat (b), its nearest relative, and still
# lose to a sweep with the exact marginal, which at real size nobody can afford. What a step costs belongs to the
# comparison.
#
# **The classical answer to slow modes** does not change the target either: run the same RBM at several temperatures at
# once and exchange states (parallel tempering). More work per step, the same law.

# %%
model, guide = models[1]
ladder = torch.linspace(0, 1, 3 if SMALL else 11).tolist()
tempering = kernels.Tempering(model.prior, ladder)
hot = lab.walk(tempering, tempering.start(first), draws=STEPS, watch={"x": lambda s, noise: tempering.cold(s)}, seed=0)
tempered = labeller(hot["x"])
rows = []
for name, some, work in (("Gibbs", labels, 1), (f"tempering, {len(ladder)} temperatures", tempered, len(ladder))):
    counts = float(visits.visited(some, 10, 10).mean())
    indicator = visits.one_hot(some, 10)
    worst = min(convergence.statistic(str(k), indicator[..., k].numpy()).ess for k in range(10)) / some.numel()
    rows.append((name, counts, visits.switch_rate(some), worst, worst / work))
columns = ["chain of the RBM", "classes in 10", "switch rate", "worst ESS per step", "per Gibbs sweep"]
display(pd.DataFrame(rows, columns=columns).set_index("chain of the RBM").round(4))

# %% [markdown]
# ## 8. Exercises
#
# ### Exercise 1. Break the ceiling
#
# The ceiling of mix.15 holds for reversible positive chains in stationarity. Find a chain on five equally likely
# classes that visits all five in five steps, and compute its ceiling. Which assumption fails?

# %% [markdown]
# #### Solution 1

# %%
cycle = torch.roll(torch.eye(5, dtype=torch.float64), 1, 1)  # 0 -> 1 -> 2 -> 3 -> 4 -> 0
uniform = torch.full((5,), 0.2, dtype=torch.float64)
visited, limit = markov.visits(cycle, uniform, torch.eye(5), 5), markov.ceiling(uniform, 5)
print(f"the cycle visits {visited:.0f} classes in 5 steps; independent draws {limit:.2f}")
assert abs(visited - 5) < EPS and visited > limit
assert markov.stationarity_error(cycle, uniform) < EPS and markov.balance_error(cycle, uniform) > 0.1, "not reversible"

# %% [markdown]
# ### Exercise 2. The lazy chain
#
# A chain that stays where it is with probability 1/2 and moves by $K$ otherwise has the kernel $(I+K)/2$. Show that
# $\tau_{\text{lazy}}=2\tau+1$ *for every statistic*, and check it on the RBM of section 4. What does laziness do to a
# chain that is not positive?

# %% [markdown]
# #### Solution 2
#
# With the fundamental matrix, $I-(I+K)/2=(I-K)/2$, so on centred statistics its inverse is twice that of $K$:
# $\tau_{\text{lazy}}=(4\langle f,Zf\rangle-\langle f,f\rangle)/\langle f,f\rangle=2\tau+1$. All eigenvalues become
# $(1+\lambda)/2\ge0$: laziness makes any reversible chain positive, so the ceiling holds for it.

# %%
lazy = (torch.eye(256, dtype=torch.float64) + A @ B) / 2
for name, f in statistics.items():
    tau, slow = float(markov.iact(A @ B, pi, f)), float(markov.iact(lazy, pi, f))
    print(f"{name}: {tau:.4f}, lazy {slow:.4f}")
    assert abs(slow - (2 * tau + 1)) < 1e-8

# %% [markdown]
# ### Exercise 3. A matrix of classes
#
# From the labels alone you can estimate the class transition matrix $C$. Its relaxation time is a *lower* bound of
# that of the chain, if labels are a function of the state and the chain is reversible (mix.16). Check it exactly on
# the RBM of section 4, with the class "more than half of the pixels are on".

# %% [markdown]
# #### Solution 3

# %%
e = torch.nn.functional.one_hot((every.sum(-1) > 4).long(), 2).double()
C = markov.class_transitions(A @ B, pi, e)
of_classes, of_chain = visits.relaxation_time(C), markov.relaxation_time(A @ B, pi)
print(f"relaxation of the classes {of_classes:.3f}, of the chain {of_chain:.3f} steps")
assert of_classes <= of_chain + 1e-6

# %% [markdown]
# ### Exercise 4. Forgetting
#
# Start all chains of the RBM on digits in class 0. After how many steps is the share of classes that of the chains in
# the long run? Plot the total variation against the step, with the noise floor of finitely many chains (mix.17).

# %% [markdown]
# #### Solution 4

# %%
M = 20 if SMALL else 200
many = chain_reports.starts(train, train["y"], M, classes=10, only=0)
forget = {}
for depth, (deep, q) in models.items():
    top = mixing.walk(deep, q)
    start = top.start(many, Noise(M, seed=2, stream=2))
    seen = labeller(lab.walk(top.step, start, draws=STEPS // 4, watch={"x": top.decode}, seed=2)["x"])
    long_run = visits.one_hot(seen[:, STEPS // 8 :], 10).mean((0, 1))
    forget[depth] = visits.total_variation(seen, long_run)
floor = visits.noise_floor(long_run, M)
_, axes = plt.subplots(figsize=(5.4, 3.2))
for (depth, values), colour, line in zip(forget.items(), figures.PALETTE, figures.LINES, strict=False):
    axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=line, label=f"depth {depth}")
axes.axhline(floor, color="black", linewidth=1, label="noise floor")
axes.set(xlabel="step", ylabel="total variation to the long run", xscale="log", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# *Figure 6.* How fast chains that start in class 0 forget it. The long run is that of the same chains, not of the
# data.
#
# ### Exercise 5. Pseudo-Gibbs
#
# Alternate $x\sim p(x\mid z)$ and $z\sim q(z\mid x)$ with a $q$ that is *not* the posterior. Show on an enumerated
# model that the chain does not leave $p(z)$ invariant, and that accepting each proposal with $\min(1,\,p(x,z')q(z\mid
# x)/p(x,z)q(z'\mid x))$ mends it (mix.11).

# %% [markdown]
# #### Solution 5

# %%
torch.manual_seed(3)
joint = torch.randn(8, 16).double().flatten().softmax(0).view(8, 16)  # p(x, z): 8 pictures, 16 codes
q_zx = torch.randn(8, 16).double().softmax(1)  # some q(z | x)
p_z = joint.sum(0)
p_xz = (joint / p_z).mT  # p(x | z), (16, 8)
wrong = p_xz @ q_zx
right = torch.zeros(16, 16, dtype=torch.float64)
for k in range(8):  # given x = k the accepted step is reversible for p(z | x)
    right += p_xz[:, k : k + 1] * markov.metropolised(q_zx[k].expand(16, -1), joint[k].log())
print(f"pseudo-Gibbs moves p(z) by {markov.stationarity_error(wrong, p_z):.3f}, "
      f"the accepted chain by {markov.stationarity_error(right, p_z):.0e}")  # fmt: skip
assert markov.stationarity_error(wrong, p_z) > 1e-3 and markov.stationarity_error(right, p_z) < 1e-12

# %% [markdown]
# ## What to take home
#
# * A strip of pictures is an anecdote; ten indicators, many chains from different classes, and the worst of them are
#   evidence.
# * Visits have a ceiling. Report the share of it, and never without fit and class law.
# * R-hat cannot see what no chain has seen, and a constant is a failure, not a success.
# * "The deeper chain mixes better" compares chains with different targets. The question with one target is another
#   one,
#   and can be answered exactly on small models.
#
# Reading: Bengio, Mesnil, Dauphin, Rifai (2012), *Better mixing via deep representations*; Vehtari, Gelman, Simpson,
# Carpenter, Buerkner (2021), *Rank-normalization, folding, and localization: an improved R-hat*; Desjardins,
# Courville, Bengio (2010) on tempering RBMs; Theis, van den Oord, Bethge (2016) on the Parzen score.
