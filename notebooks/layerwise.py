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
# # Layer by layer: what should the bottom layer optimise?
#
# A deep generative model is hard to train all at once, and easy to train one layer at a time. But what should the
# *bottom* layer aim at, as long as nobody knows the layers above it? Arnold and Ollivier (2012) answer: be optimistic.
# Assume that the layers above will be the best conceivable. This lesson makes the answer visible on a data set so small
# that every likelihood can be computed exactly. In about forty minutes you will
#
# 1. meet the data, the model and the question,
# 2. see the optimistic proxy, the best latent marginal, and all the bounds below it,
# 3. catch the loss of a classical auto-encoder above the bound, and see why,
# 4. give the encoder more freedom at no cost in the generative model,
# 5. look at dreams: pictures drawn from the trained models,
# 6. swap the prior above a fixed first stage, as two-stage models of today do, and see what each prior pays,
# 7. solve five exercises (solutions are below each of them; fold their headings first).
#
# You need Kullback-Leibler divergences, the idea of an auto-encoder and some PyTorch; the lesson *Swap a guide* is a
# good start. Ids such as lw.8 name equations on the card of `zoo.layerwise` (`zoo show layerwise` prints it). The text
# of the paper was not at hand for it, so this is the paper as we understand it. What is a theorem is asserted in a cell
# nearby; if it were wrong, the notebook would stop. What is only measured is printed, and never asserted.

# %%
# ruff: noqa: E402
import inspect
import math
import os
import warnings
from itertools import combinations

warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")  # ArviZ announces its next version
warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import guides
from guides.codes import states
from zoo import lab
from zoo import layerwise as lw
from zoo.lab import exact
from zoo.lab.figures import LINES, PALETTE  # Okabe and Ito's colours, told apart by the colour-blind
from zoo.lab.rbm import RBM

torch.set_num_threads(1)  # the matrices are small
torch.set_default_dtype(torch.float64)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.spines.top": False})
plt.rcParams.update({"axes.spines.right": False, "font.size": 9, "axes.titlesize": "medium"})

# %% [markdown]
# Two settings. The tests of this repository run the notebook with `ZOO_NOTEBOOK_STEPS=small`: smaller codes, fewer
# steps. What is a theorem is asserted with the same tolerance at both settings.

# %%
SMALL = os.environ.get("ZOO_NOTEBOOK_STEPS") == "small"
BITS = 6 if SMALL else 10  # of the code in most sections
FEWER = 5 if SMALL else 8  # where many nets are trained
NARROW = 4 if SMALL else 5  # where codes are too few to tell pictures apart
STEPS = 100 if SMALL else 500  # of each phase of a training
SEEDS = range(1 if SMALL else 5)
EPS = 1e-9  # rounding

# %% [markdown]
# ## 1. Tea, and the question
#
# Tea is poured from a pot into five cups. The left half of a picture is the pot, the right half the five cups, each two
# rows high; black is tea. A cup holds 0, 1 or 2 rows and the pot what is left, so there are $3^5=243$ pictures, and
# nothing else can happen. A third of them is for training, a third for validation, a third is left alone.

# %%
train, valid, test = lw.data("tea")
x, v = train["x"], valid["x"]
everything = torch.cat([part["x"] for part in (train, valid, test)])


def strip(rows):
    """Rows of small pictures, one row for each name."""
    _, panels = plt.subplots(len(rows), 12, figsize=(8.4, 0.66 * len(rows)))
    for line, (name, pictures) in zip(np.atleast_2d(panels), rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(picture.reshape(10, 10), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.axvline(4.5, color=PALETTE[1], linewidth=0.6)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="#BBBBBB")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    plt.show()


strip({"training": x[:12], "validation": v[:12]})

# %% [markdown]
# *Figure 1.* Pictures of Tea, 10 x 10 pixels; the thin line separates the pot from the cups.
#
# Three numbers to keep in mind, in nats per picture. A law that has never seen tea, all pixels fair coins, gives
# $-100\log2$. Independent pixels with the frequencies of the training pictures (one added to each count, so that
# nothing is impossible) do better. And there is a **ceiling**: no law gives training pictures more than $-H(P_D)$ on
# average, where $P_D$ is the law of the training data; for $N$ distinct pictures this is $-\log N$. A perfect model,
# one that knows the rule and nothing more, gives every picture $-\log243$.

# %%
rate = (x.sum(0) + 1) / (len(x) + 2)
pixels = (v * rate.log() + (1 - v) * (1 - rate).log()).sum(1).mean().item()
ceiling, perfect = -math.log(len(x)), -math.log(243)
print(
    f"fair coins {-100 * math.log(2):.2f}, independent pixels on the validation pictures {pixels:.2f} nats per picture"
)
print(f"a perfect model {perfect:.3f}, the ceiling on the {len(x)} training pictures {ceiling:.3f}")
assert len(exact.distinct(everything)[0]) == 243

# %% [markdown]
# ### The model
#
# Five cups of three levels each are $\log_2 243\approx7.9$ bits. So let a picture come from a code $h$ of a few bits:
#
# $$h\sim P_J(h),\qquad x_i\mid h\sim\mathrm{Bernoulli}\big(\sigma(hW+b)_i\big)\quad\text{(lw.1)}.$$
#
# The bottom layer is $P_I(x\mid h)$, with parameters $\theta_I=(W,b)$. The top is $P_J$, any law on codes; by default a
# restricted Boltzmann machine (RBM). In Pyro:

# %%
print(inspect.getsource(lw.Model.forward))

# %% [markdown]
# With few bits one can add up all codes. Then the **exact** log-likelihood, for any law $Q$ on codes, is
#
# $$L_D(\theta_I,Q)=E_{x\sim P_D}\log\sum_hP_I(x\mid h)\,Q(h),$$
#
# and the whole model has $L_D(\theta_I,P_J)$. Everything in this lesson is a comparison of such numbers.
#
# **The question.** We want to train $\theta_I$ first, then freeze it and train $P_J$. A bottom layer alone has no
# likelihood: $L_D(\theta_I,\cdot)$ still lacks its second argument. Which $Q$ should we put there?
#
# * A *stacked RBM* puts there the law of its own hidden units, as if nothing better would ever come. Pessimistic.
# * An *auto-encoder* seems to put nothing there at all: it reconstructs.
# * The paper puts there the best law of all, the **best latent marginal** (BLM):
#
# $$U_D(\theta_I)=\max_QL_D(\theta_I,Q)\quad\text{(lw.4)}.$$
#
# Why is this safe? If a top then reproduces $\hat Q$, the law that attains the maximum, nothing was lost: no pair
# $(\theta_I,P_J)$ has a higher likelihood than the best $U_D(\theta_I)$. If it misses, the loss is at most
# $\mathrm{KL}(\hat Q\,\|\,P_J)$ (lw.7). Greedy, with a guarantee.

# %% [markdown]
# ## 2. The optimistic proxy, made visible
#
# A guide $q(h\mid x)$, the encoder, is how one trains such a layer in practice. Encode the data, and codes have a law
# of their own, the **aggregated posterior** $q_D(h)=\frac1N\sum_nq(h\mid x_n)$ (lw.3). Take it for $Q$: the criterion
# is $L_D(\theta_I,q_D)$, and its maximum over *all* $q$ is $U_D$ (lw.5). Jensen's inequality, twice, leads further down
# to something well known (lw.13):
#
# $$U_D\ \ge\ L_D(\theta_I,q_D)\ \ge\ \mathrm{ELBO}(q_D)\ \ge\ E_{x}E_{q(h\mid x)}\log P_I(x\mid h)-H(P_D).$$
#
# At the right end is the reconstruction of an **auto-encoder** with a stochastic code. No KL, no prior: training an
# auto-encoder *is* training a bottom layer for the best top, by a lower bound.
#
# The encoder is no part of the generative model, so it may be as rich as one likes: that is the paper's AERI,
# "auto-encoder with rich inference"; here `Rich`, a perceptron. `lw.phases` says what is trained in which order, and on
# which bound.

# %%
lab.seed(0)
model = lw.Model.for_data(train, hidden=[BITS], top="rbm")
guide = lw.guide(model, train.peek(), latents=guides.Rich)
for phase in lw.phases(model, guide):
    print(f"{phase.name:8} {type(phase.bound).__name__:15} {sum(p.numel() for p in phase.parameters)} parameters move")

# %% [markdown]
# The first phase trains decoder and encoder on the auto-encoder bound (`Reconstruction`), with all codes added up. The
# second freezes them and trains the RBM on the codes, as if codes were data (lw.12). We put one phase before them, a
# classical auto-encoder (`MeanField`, section 3), because stochastic bits are easily stuck early in training; leave it
# out and compare. Each phase runs for as many steps.


# %%
def plan_for(model, guide):
    """A classical auto-encoder to start with, then the layer on its bound, then the top."""
    layer, top = lw.phases(model, guide, criterion="Reconstruction")
    return [lab.Phase("start", lw.MeanField(1), layer.parameters), layer, top]


def learn(model, guide, plan, data=train, steps=STEPS, lr=0.02, **options):
    batches = [data.all()]  # all data at once
    return lab.fit(model, guide, batches, lw.bound(guide), epochs=steps, lr=lr, decay=0.1, phases=plan, **options)


learn(model, guide, plan_for(model, guide))
books = lw.account(model, guide, x)
held = lw.held_out(model, guide, x, v)


def undecided(guide):
    """Share of the code's means that are no clear 0 or 1."""
    means = guide.q["h1"](x).mean.detach()
    return float(((means > 0.05) & (means < 0.95)).double().mean())


print(f"deep log-likelihood {books.deep:.2f} on training, {held.deep:.2f} on validation pictures")
print(f"{undecided(guide):.0%} of the code's means lie between 0.05 and 0.95")

# %% [markdown]
# ### How the best latent marginal is found
#
# $U_D$ has no formula, but $L_D(\theta_I,\cdot)$ is concave in $Q$, and EM climbs it. One step is **data
# incorporation** (lw.9). Ask for every picture which codes it would like, under the present $Q$; average over the
# pictures; this is the next $Q$:
#
# $$Q_{t+1}(h)=\frac1N\sum_n\frac{P_I(x_n\mid h)\,Q_t(h)}{P_{Q_t}(x_n)}=Q_t(h)\,G_{Q_t}(h).$$
#
# The factor $G_Q(h)$ says by how much all pictures together want code $h$ more often. It also **certifies** the result
# (lw.11): $U_D\le L_D(Q)+\log\max_hG_Q(h)$, whatever $Q$. So one knows how far EM is from the end without knowing the
# end; a small last step alone would say nothing, as EM becomes slow where codes die out.

# %%
tables = lw.tables(model, guide, x)  # T[n, h] = log P_I(x_n | h), and the laws of codes
T, log_w = tables.T, tables.log_w
best = exact.blm(T, log_w)  # stops at a certificate of 1e-6 nats, or after 20,000 steps


def incorporate_data(T, log_w, steps):
    """EM from the uniform law: L_D(Q_t), the certificate, and Q_t itself."""
    log_Q, found = T.new_full((T.shape[1],), -math.log(T.shape[1])), []
    for _ in range(steps):
        value = float(log_w.exp() @ exact.evidence(T, log_Q))
        certificate = float(exact.log_gain(T, log_Q, log_w).max())
        found.append((value, certificate, log_Q))
        log_Q = exact.incorporate(T, log_Q, log_w)
    return found


path = incorporate_data(T, log_w, 300 if SMALL else 1000)
value, certificate = np.array([(a, b) for a, b, _ in path]).T
gap = best.bound - value
promise = BITS * math.log(2) / np.arange(1, len(path) + 1)

assert (np.diff(value) >= -EPS).all()  # EM never falls, lw.10
assert (gap <= certificate + EPS).all()  # lw.11
assert (gap <= promise + EPS).all()  # lw.10: from the uniform law at most n log 2 / (t + 1)
print(f"U_D lies between {best.bound:.6f} and {best.bound + best.certificate:.6f} nats per picture")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.1))
t = np.arange(1, len(path) + 1)
left.loglog(t, promise, color=PALETTE[6], linestyle=":", label="known beforehand, n log 2 / (t + 1)")
left.loglog(t, certificate, color=PALETTE[1], linestyle="--", label="certificate, log max G")
left.loglog(t, np.maximum(gap, 1e-12), color=PALETTE[0], label="true gap, U - L(Q)")
left.set(xlabel="EM steps + 1", ylabel="nats per picture", ylim=(1e-5, 3000), title="How far is EM from the end?")
left.legend(fontsize="small", loc="upper right")
shown = [0, 3, 30, len(path) - 1]
for step, colour, line in zip(shown, (PALETTE[6], *PALETTE), (":", "-.", "--", "-"), strict=False):
    mass = path[step][2].exp().sort(descending=True).values
    right.loglog(np.arange(1, len(mass) + 1), mass, color=colour, linestyle=line, label=f"after {step} steps")
right.axvline(len(x), color="black", linewidth=0.8)
right.annotate(f"N = {len(x)}", (len(x), 2e-7), xytext=(-4, 0), textcoords="offset points", ha="right")
right.set(xlabel="rank of the code", ylabel="probability Q(h)", ylim=(1e-7, 1), title="The codes that are left")
right.legend(fontsize="small", loc="lower left")
plt.show()
alive = int((best.log_prior.exp() > 1e-6).sum())
print(f"{2**BITS} codes, {len(x)} training pictures; {alive} codes have more than a millionth of the mass of the BLM")

# %% [markdown]
# *Figure 2.* Left: the distance of EM from $U_D$ against the number of steps, below the certificate, below what was
# known before the first step. Right: the probabilities of all codes in falling order. EM starts from the uniform law
# and lets codes die out. Some best $\hat Q$ needs no more codes than there are pictures: it is a law made for these
# very pictures. That will matter below.
#
# ### The books
#
# `lw.account` keeps the books of the bottom layer, every number exact. Bars start at the ceiling and reach down to the
# value; the shorter, the better. Beside our layer we put one with so few bits that its codes cannot tell the training
# pictures apart.

# %%
lab.seed(0)
narrow = lw.Model.for_data(train, hidden=[NARROW], top="rbm")
narrow_guide = lw.guide(narrow, train.peek(), latents=guides.Rich)
learn(narrow, narrow_guide, plan_for(narrow, narrow_guide))
narrow_books, narrow_held = lw.account(narrow, narrow_guide, x), lw.held_out(narrow, narrow_guide, x, v)


def bars(axes, values, start):
    """Bars from the ceiling down, each with its value; the last one is the finished model."""
    place, low = np.arange(len(values)), min(values.values())
    colours = [PALETTE[0]] * (len(values) - 1) + [PALETTE[1]]
    axes.barh(place, [value - start for value in values.values()], left=start, color=colours, height=0.62)
    for row, value in zip(place, values.values(), strict=True):
        label = f"{value:.2f}"
        axes.annotate(label, (value, row), xytext=(-3, 0), textcoords="offset points", va="center", ha="right")
    axes.axvline(start, color="black", linewidth=1.2)
    axes.set_xlim(low - 0.25 * (start - low), start + 0.04 * (start - low))
    axes.set_yticks(place, list(values))


def on_training(b):
    return {
        "best latent marginal, U": b.blm,
        "criterion, L(q_D)": b.criterion,
        "ELBO with prior q_D": b.elbo_aggregated,
        "auto-encoder bound": b.reconstruction,
        "deep likelihood, L(P_J)": b.deep,
    }


def on_validation(h):
    return {
        "(b) best law for them, U_V": h.blm,
        "(a) best law for training": h.blm_of_train,
        "(c) q_D of training": h.criterion,
        "(d) deep likelihood": h.deep,
    }


figure, panels = plt.subplots(2, 2, figsize=(9.0, 5.0), sharey="row")
for column, b, h, bits in zip(panels.T, (books, narrow_books), (held, narrow_held), (BITS, NARROW), strict=True):
    above, below = column
    bars(above, on_training(b), ceiling)
    bars(below, on_validation(h), -math.log(len(v)))
    below.axvline(perfect, color="black", linewidth=1.2, linestyle=":")
    above.set_title(f"{bits} bits: training pictures")
    below.set(title=f"{bits} bits: validation pictures", xlabel="nats per picture")
panels[0, 0].invert_yaxis()
panels[1, 0].invert_yaxis()
plt.show()
for b, bits in ((books, BITS), (narrow_books, NARROW)):
    print(f"{bits} bits: the RBM on top loses {b.criterion - b.deep:+.3f} nats per picture against q_D;", end=" ")
    print(f"lw.8 allows {b.price:+.3f}, KL(q_D || P_J) {b.kl:.3f}; I_q {b.information:.3f}, H(P_D) {-b.ceiling:.3f}")

# %% [markdown]
# *Figure 3.* What a bottom layer is worth under different laws of its codes, for two layers. Line at the right: the
# ceiling, minus the entropy of the data. Blue: the best law, the law of the encoded data, and the two bounds below it.
# Orange: the model with its RBM, the only number that counts in the end. Below: the same layers on the validation
# pictures, with (b) the law that is best for *them*, (a) the law that was best for the training pictures, (c) the law
# of their codes, and (d) the finished model; the dotted line, close to the ceiling, is a perfect model.
#
# Read the upper panels from the top. The first four bars are ordered by theorems. The last of them, the auto-encoder
# bound, is the ELBO with the entropy $H(P_D)$ in the place of the information $I_q(x;h)$ that codes have about pictures
# (lw.14). Where every picture has codes of its own, $I_q=H(P_D)$, and the two agree. A few bits cannot know that much,
# $I_q\le n\log2$, and the bound gives the difference away.
#
# What does the top cost?
#
# $$L_D(\theta_I,q_D)-L_D(\theta_I,P_J)\ \le\
# \mathrm{KL}(Q_{\text{cond}}\,\|\,P_J)-\mathrm{KL}(Q_{\text{cond}}\,\|\,q_D)\quad\text{(lw.8)},$$
#
# with $Q_{\text{cond}}$ one EM step from $q_D$. The right side is the **price**. At the BLM itself it is
# $\mathrm{KL}(\hat Q\,\|\,P_J)$; for other $q$ that simpler form, $\mathrm{KL}(q_D\,\|\,P_J)$, is *false* in general
# (exercise a; on the printed lines compare it with the loss). The price limits a loss. The left side may be negative,
# too: $P_J$ can be better than $q_D$.
#
# Now the lower panels, the wide code first. The law that is best for the training pictures is a poor one for others
# (a): it let codes die that others need. The law of the codes (c) has the same fault: almost all its mass sits in
# spikes, the codes of training pictures. A small RBM cannot follow the spikes, and generalises between them (d). With
# few bits there is less room for spikes. And $U_V$ (b) is the optimistic number again, what the bottom layer would
# allow. It is what layers are chosen by (exercise c).


# %%
def check(books, bits):
    """What theorems say of any bottom layer, q and top."""
    assert books.ceiling + EPS >= books.blm
    assert books.blm + max(books.certificate, 0) + EPS >= max(books.criterion, books.deep)  # lw.4
    assert books.criterion + EPS >= books.elbo_aggregated >= books.reconstruction - EPS  # lw.14
    assert books.criterion + EPS >= books.codes >= books.reconstruction - EPS  # lw.13
    assert books.criterion - books.deep <= books.price + EPS  # lw.8
    assert books.elbo <= books.deep + EPS and abs(books.elbo_aggregated - books.kl - books.elbo) < EPS  # lw.14
    assert books.information <= min(-books.ceiling, bits * math.log(2)) + EPS  # I_q(x; h) <= H(P_D), and <= n log 2


check(books, BITS)
check(narrow_books, NARROW)
for h, bits in ((held, BITS), (narrow_held, NARROW)):
    slack = bits * math.log(2) / 2001  # U_V was had by up to 2000 steps of EM, lw.10
    assert max(h.blm, h.blm_of_train, h.criterion, h.deep) <= -math.log(len(v)) + EPS
    assert max(h.blm_of_train, h.criterion, h.deep) <= h.blm + slack  # lw.22

# %% [markdown]
# How good is the encoder? The distance between the first two bars is what $q$ leaves on the table: with this decoder
# another $q$ would reach $U_D$. Which one? The exact posterior under $\hat Q$, since its aggregated posterior is one EM
# step from $\hat Q$, hence $\hat Q$ itself (lw.5).

# %%
log_r = exact.posterior(T, best.log_prior)  # (N, 2^n)
reached = float(log_w.exp() @ exact.evidence(T, exact.aggregated(log_r, log_w)))
print(f"U_D {best.bound:.5f}: the trained encoder reaches {books.criterion:.5f}, the exact posterior {reached:.5f}")
assert best.bound - EPS <= reached <= best.bound + best.certificate + EPS  # lw.5

# %% [markdown]
# ## 3. The loss of a classical auto-encoder is no bound
#
# A classical auto-encoder has no stochastic code. It feeds the *mean* of the code to the decoder, and reports
# $\log P_I(x\mid E_qh)$ (lw.16). Since $\log P_I(x\mid h)$ is concave in $h$, Jensen's inequality now goes the other
# way:
#
# $$\log P_I(x\mid E_qh)\ \ge\ E_q\log P_I(x\mid h).$$
#
# So this loss stands *above* the auto-encoder bound, and nothing keeps it below $U_D$. We train an encoder with
# `MeanField` alone and every now and then make up the books.

# %%
lab.seed(0)
plain = lw.Model.for_data(train, hidden=[BITS])
plain_guide = lw.guide(plain, train.peek())
seen = []


def watch(fit, every=STEPS // 10):
    if fit.steps == 1 or fit.steps % every == 0:
        seen.append((fit.steps, lw.account(plain, plain_guide, x, steps=300)))


layer = lw.phases(plain, plain_guide, criterion="MeanField")[:1]  # no top here: U_D needs none
learn(plain, plain_guide, layer, steps=4 * STEPS, callbacks=[watch])
steps = [step for step, _ in seen]
reported = np.array([b.mean_field for _, b in seen])
enumerated = np.array([b.reconstruction for _, b in seen])
marginal = np.array([b.blm for _, b in seen])
certified = np.array([b.blm + max(b.certificate, 0) for _, b in seen])

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.3))
axes.axhline(ceiling, color="black", linewidth=1.2, label="ceiling, -H(P_D)")
axes.plot(steps, reported, color=PALETTE[1], linestyle="--", label="reported by MeanField, no bound")
axes.plot(steps, marginal, color=PALETTE[0], label="best latent marginal, U")
axes.plot(steps, enumerated, color=PALETTE[2], linestyle="-.", label="auto-encoder bound, all codes added up")
axes.fill_between(
    steps, marginal, reported, where=reported > certified, color=PALETTE[1], alpha=0.2, linewidth=0, interpolate=True
)
axes.set(xlabel="optimiser step", ylabel="nats per picture", ylim=(-60, 0))
axes.legend(fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.8))
plt.show()
print(f"at the end: reported {reported[-1]:.2f}, U_D at most {certified[-1]:.2f}, bound {enumerated[-1]:.2f}")
print(f"the reported number is above U_D at {int((reported > certified).sum())} of {len(steps)} looks")
print(f"{undecided(plain_guide):.0%} of the code's means lie between 0.05 and 0.95")
assert (reported >= enumerated - EPS).all()  # lw.16
assert (reported <= ceiling + EPS).all()  # log P(x | .) <= 0 for bits
for _, b in seen:
    check(b, BITS)

# %% [markdown]
# *Figure 4.* One training, three readings. Dashed: what the classical auto-encoder reports, shifted by $-H(P_D)$ so
# that all curves are comparable. Solid: the best latent marginal of the same decoder. Dash-dotted: the true
# auto-encoder bound of the same encoder. Shaded where the report lies above $U_D$, and so above the likelihood of *any*
# model with this bottom layer.
#
# The optimiser has found the loophole. A mean is a real number, and one real number can carry much more than one bit.
# The decoder learns to read grey levels, but a code drawn from $q$ has none: drawn bits reconstruct badly, and the
# bound falls far behind. The theorem promises only $\ge$; how wide the gap becomes is up to the data and the
# training, and the printed lines say what came out.
#
# That does not make it a bad way to train. $U_D$ rises along with it, and it is fast: that is why we use it as a start.
# But its number must not be reported, and the phase that follows it turns grey levels into bits.

# %% [markdown]
# ## 4. A richer encoder at no cost
#
# The encoder is a prop. The generative model is the decoder and the prior, and both stay as they are when the encoder
# grows. Three families in one line each, all others equal: `Vanilla` (linear: a plain auto-encoder), `Rich`
# (a perceptron: AERI), `Autoregressive` (a perceptron, and bits see one another, so $q$ does not factorise). Beside
# them a stacked RBM: `TiedRBM` is its own posterior with the decoder's weights, trained by contrastive divergence (CD)
# for as many steps as both phases of the others.

# %%
FAMILIES = {"Vanilla": guides.Vanilla, "Rich": guides.Rich, "Autoregressive": guides.Autoregressive}
NAMES = [*FAMILIES, "TiedRBM"]


def train_net(name, seed):
    lab.seed(seed)
    net = lw.Model.for_data(train, hidden=[FEWER])
    if name == "TiedRBM":
        encoder = lw.TiedRBM(net, train.peek())
        cd, top = lw.phases(net, encoder)
        plan = [cd, cd, top]
    else:
        encoder = lw.guide(net, train.peek(), latents=FAMILIES[name])
        plan = plan_for(net, encoder)
    learn(net, encoder, plan)
    return net, encoder


nets = {(name, seed): train_net(name, seed) for name in NAMES for seed in SEEDS}

# %%
accounts = {key: lw.account(*net, x) for key, net in nets.items()}
rows = []
for (name, seed), (net, _) in nets.items():
    b = accounts[name, seed]
    check(b, FEWER)
    score = float(net.loglik(v).mean())
    rows.append(
        {"encoder": name, "seed": seed, "U_D": b.blm, "L(q_D)": b.criterion, "missed by q": b.blm - b.criterion}
        | {"deep, training": b.deep, "deep, validation": score}
    )
scores = pd.DataFrame(rows).set_index(["encoder", "seed"])
sizes = {
    name: {
        "generative": sum(p.numel() for p in nets[name, 0][0].parameters()),
        "encoder only": sum(p.numel() for p in nets[name, 0][1].parameters()),
    }
    for name in NAMES
}
display(pd.DataFrame(sizes).T.rename_axis("parameters"))
display(scores.round(2))
assert len({size["generative"] for size in sizes.values()}) == 1  # the same generative model

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.0), sharey=True)
order = {name: row for row, name in enumerate(NAMES)}
for axes, columns in zip(panels, (("U_D", "L(q_D)"), ("deep, validation",)), strict=True):
    for column, marker, colour, shift in zip(columns, "os", (PALETTE[0], PALETTE[1]), (-0.1, 0.1), strict=False):
        for name in NAMES:
            values = scores.loc[name, column]
            place = np.full(len(values), order[name]) + (shift if len(columns) > 1 else 0)
            label = column if name == NAMES[0] else None
            axes.plot(values, place, marker, color=colour, markersize=6, markerfacecolor="none", label=label)
            axes.plot(values.mean(), place[0], "|", color=colour, markersize=16, markeredgewidth=2)
    axes.set_xlabel("nats per picture")
panels[0].set(title="The bottom layer, on training pictures", ylim=(len(NAMES) - 0.5, -0.5))
panels[0].set_yticks(range(len(NAMES)), NAMES)
panels[0].legend(fontsize="small", loc="upper left")
panels[1].set_title("The finished model, on validation pictures")
plt.show()

# %%
pivot = scores["deep, validation"].unstack("encoder")
for better, worse in (("Rich", "Vanilla"), ("Autoregressive", "Rich"), ("Rich", "TiedRBM")):
    difference = pivot[better] - pivot[worse]
    told = ", ".join(f"{d:+.2f}" for d in difference)
    print(f"deep validation, {better} minus {worse}: {told}; mean {difference.mean():+.2f} nats per picture")

# %% [markdown]
# *Figure 5.* Every mark is one net; ticks are means over the seeds. Left: the best latent marginal of the bottom layer
# (circles) and what its encoder makes of it (squares). Right: the finished model on pictures that it has not seen.
#
# What is certain: *for a fixed decoder* the best rich $q$ is at least as good as the best linear one, and none is
# better than $U_D$. That is a statement about optima. Training moves decoder and encoder together, from one start, with
# one learning rate, and a richer family may well end in a poorer optimum. So read the printed differences, seed by
# seed: do they have the same sign? Are they larger than the spread between seeds? A handful of seeds and one
# configuration rank nothing, neither encoders nor auto-encoders against stacked RBMs (CD has one learning rate here,
# and few steps). Whether AERI beats the plain auto-encoder was not resolved by our first trials either; it takes many
# configurations and paired intervals, and `zoo reproduce layerwise` asks the question so.
#
# One asymmetry is a theorem, though (lw.19). A stacked RBM is trained on the likelihood of an RBM, that is for the law
# of its own hidden units. The codes of the data have another law, $q_D$, which is one EM step from it, and therefore at
# least as good:

# %%
for seed in SEEDS:
    net, encoder = nets["TiedRBM", seed]
    machine = encoder.machines[0]
    with torch.no_grad():
        own = float(machine.log_prob(x).mean())
        log_own = machine.hidden_score(states(FEWER)) - machine.log_z()
        found = lw.tables(net, encoder, x)
        far = float(exact.kl(exact.aggregated(found.log_q, found.log_w), log_own))
    b = accounts["TiedRBM", seed]
    print(f"seed {seed}: the RBM alone {own:.3f}, its codes under their own law {b.criterion:.3f}; KL {far:.3f}")
    assert own + far <= b.criterion + EPS  # lw.19

# %% [markdown]
# ## 5. Dreams
#
# Now draw from the finished models: a code from the RBM, a picture from the decoder. One call of the model without
# data.

# %%
pictures = torch.cdist(everything, everything, p=1)  # pixels by which two pictures differ


@torch.no_grad()
def dream(net, rounds=1):
    """As many pictures as there are training data, `rounds` times."""
    return torch.cat([net() for _ in range(rounds)])


def wrong_pixels(dreamt):
    """Pixels by which each dream differs from the nearest of all 243 pictures."""
    return torch.cdist(dreamt, everything, p=1).amin(1)


lab.seed(0)
dreamers = {f"Rich, {BITS} bits": model} | {f"{name}, {FEWER} bits": nets[name, 0][0] for name in NAMES}
dreams = {name: dream(net, 5) for name, net in dreamers.items()}
dreams["independent pixels"] = torch.bernoulli(rate.expand(405, -1))
strip({"data": v[:12], **dreams})
rows = []
for name, dreamt in dreams.items():
    wrong = wrong_pixels(dreamt)
    rows.append({"dreams of": name, "wrong pixels, mean": wrong.mean().item(), "perfect": (wrong == 0).double().mean()})
display(pd.DataFrame(rows).set_index("dreams of").astype(float).round(3))

# %% [markdown]
# *Figure 6.* First row: validation pictures. Below: the first twelve draws of each model. The table compares 405 draws
# of each with the nearest of all 243 pictures: how many pixels are wrong on average, and which share is a perfect
# picture of tea. (Two pictures of the data differ in at least 10 pixels: a row moves from the pot to a cup.)
#
# Look at *how* dreams fail. A row that is half black: the decoder gives grey pixels there, and each is drawn on its
# own. A clean picture with too much tea: the decoder is sure, but the code is one that no picture would have; here the
# top is at fault. Log-likelihood punishes both, the eye forgives the first.

# %%
smallest = int(pictures[~torch.eye(243, dtype=torch.bool)].min())
print(f"smallest distance of two pictures: {smallest} pixels")
assert smallest == 10

# %% [markdown]
# ## 6. Two stages today
#
# A VQ-VAE is trained to reconstruct, with a uniform prior on its codes, whose KL is a constant; afterwards a strong
# autoregressive prior is trained on the codes. Latent diffusion takes an auto-encoder that was trained mostly to
# reconstruct, freezes it, and trains a diffusion model on its latents. Both are section 2: a bottom layer trained on
# its reconstruction, in the hope of a good top; then lw.12, maximum likelihood with codes in the place of data. In the
# words of the ELBO (lw.14): with prior $P_J$ it is
#
# $$E_xE_q\log P_I(x\mid h)-I_q(x;h)-\mathrm{KL}(q_D\,\|\,P_J),$$
#
# and the first stage leaves the last term to the second. So the first stage can be trained once, and priors swapped at
# will. Let us do so: the bottom layer and the encoder of section 2 stay fixed, and five tops are trained on its codes.
# The last is a free table over all codes. Its optimum needs no training: it is $q_D$.


# %%
def with_top(top, units=None):
    """The bottom layer of section 2 under another top, trained on its codes."""
    lab.seed(0)
    other = lw.Model.for_data(train, hidden=[BITS], top=top, top_hidden=units)
    other.decoders.load_state_dict(model.decoders.state_dict())
    if top == "tabular":
        with torch.no_grad():
            other.prior.logits.copy_(exact.aggregated(tables.log_q, tables.log_w))
    else:
        learn(other, guide, lw.phases(other, guide)[-1:])
    return other


tops = {
    "independent bits": with_top("bits"),
    "RBM, 2 units": with_top("rbm", 2),
    "RBM, 10 units": with_top("rbm", 10),
    "RBM, 40 units": with_top("rbm", 40),
    "free table, q_D": with_top("tabular"),
}
rows = []
for name, other in tops.items():
    b = lw.account(other, guide, x, steps=300)
    check(b, BITS)
    assert abs(b.criterion - books.criterion) < EPS  # the same bottom layer, the same q
    rows.append(
        {"top": name, "parameters": sum(p.numel() for p in other.prior.parameters())}
        | {"deep, training": b.deep, "lost": b.criterion - b.deep, "price, lw.8": b.price, "KL(q_D || P_J)": b.kl}
        | {"deep, validation": float(other.loglik(v).mean())}
    )
paid = pd.DataFrame(rows).set_index("top")
display(paid.round(3))
assert abs(paid.loc["free table, q_D", "lost"]) < 1e-6  # lw.12

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0), sharey=True)
place = np.arange(len(paid))
left.barh(place - 0.18, paid["lost"], height=0.34, color=PALETTE[1], label="lost, L(q_D) - L(P_J)")
left.barh(
    place + 0.18, paid["price, lw.8"], height=0.34, color=PALETTE[5], hatch="//", edgecolor="white", label="price"
)
left.set_yticks(place, list(paid.index))
left.invert_yaxis()
left.axvline(0, color="black", linewidth=1)
left.set(xlabel="nats per training picture", title="What each top costs, and what it may cost")
left.legend(fontsize="small", loc="lower right")
for column, marker, colour in (("deep, training", "o", PALETTE[0]), ("deep, validation", "s", PALETTE[1])):
    right.plot(paid[column], place, marker, color=colour, label=column.split(", ")[1])
right.hlines(place, paid["deep, validation"], paid["deep, training"], color="#AAAAAA", linewidth=1, zorder=0)
right.axvline(perfect, color="black", linewidth=1.2, linestyle=":", label="a perfect model")
right.set(xlabel="deep log-likelihood, nats per picture", title="The finished models")
right.legend(fontsize="small", loc="upper left")
plt.show()

# %% [markdown]
# *Figure 7.* One first stage, five priors. Left: what each loses on the training pictures against $q_D$, and the price,
# the most that it may lose (lw.8; hatched). Right: the exact log-likelihood of the finished model.
#
# On the training pictures the free table has nothing to pay: it *is* $q_D$. On the validation pictures it pays for
# that: it knows the codes of the training pictures by heart, and gives little to the codes of others. A guarantee about
# training data is not one about the world; the second stage has to generalise over codes, and the more freedom it has,
# the more it needs data or restraint. Compare the simplest tops in the last column: cups are filled independently of
# one another, so a good code of tea asks little of its prior.
#
# What is the same today: the two stages, the price as a KL between the law of the codes and the prior, the encoder as a
# prop. What is different: codes are real vectors or long sequences of symbols, so nothing can be added up; encoders are
# deterministic or nearly so, $I_q\approx H(P_D)$, where auto-encoder bound and $\mathrm{ELBO}(q_D)$ agree; and the
# reconstruction is often no log-likelihood at all.

# %% [markdown]
# ## 7. Exercises
#
# ### (a) The naive price is false
#
# It is tempting to write $L_D(\theta_I,q_D)-L_D(\theta_I,P_J)\le\mathrm{KL}(q_D\,\|\,P_J)$ for every $q$. Find a
# counterexample: a world with few pixels and bits, a random decoder, $q$ and $P_J$. How often does it fail, and does
# lw.8 ever? Why is it true at the BLM?

# %% [markdown]
# #### Solution (a)
#
# Jensen's inequality gives $L_D(q_D)-L_D(P_J)\le E_xE_{r(h\mid x)}\log\big(q_D(h)/P_J(h)\big)$, where $r$ is the
# posterior *under* $q_D$. The average of $r$ over the data is $Q_{\text{cond}}$, not $q_D$, and
# $E_{Q_{\text{cond}}}\log(q_D/P_J)$ is the right side of lw.8. At the BLM, $Q_{\text{cond}}=q_D$, and the naive form is
# the right one. Elsewhere KL weights the ratio with the wrong law. If $P_J$ gives up codes that $q_D$ hardly uses but
# the data need, little is charged, and much is lost.

# %%
lab.seed(0)
worlds = []
for _ in range(2000):
    X = exact.distinct(torch.bernoulli(torch.full((5, 4), 0.5)))[0]  # up to 5 pictures of 4 pixels
    weights = X.new_full((len(X),), -math.log(len(X)))
    eta = states(2) @ (1.5 * torch.randn(2, 4)) + torch.randn(4)  # 2 bits
    table = X @ eta.T - torch.nn.functional.softplus(eta).sum(-1)  # lw.2
    log_q_D = exact.aggregated((2 * torch.randn(len(X), 4)).log_softmax(-1), weights)
    log_P = (log_q_D + 0.7 * torch.randn(4)).log_softmax(-1)
    lost = float(weights.exp() @ (exact.evidence(table, log_q_D) - exact.evidence(table, log_P)))
    worlds.append((lost, float(exact.kl(log_q_D, log_P)), float(exact.price(table, log_q_D, log_P, weights))))
lost, naive, price = np.array(worlds).T
print(f"KL(q_D || P_J) is too small in {(lost > naive).sum()} of {len(lost)} random worlds,", end=" ")
print(f"lw.8 in {(lost > price + EPS).sum()}")
worst = (lost - naive).argmax()
print(f"the worst: lost {lost[worst]:.3f}, KL {naive[worst]:.3f}, lw.8 allows {price[worst]:.3f} nats per datum")
assert (lost <= price + EPS).all()  # a theorem
assert (lost > naive + EPS).any()  # a counterexample exists

# %% [markdown]
# ### (b) A batch is not the data set
#
# With many data one trains on minibatches. The obvious estimate of $q_D$ is the mean of $q(\cdot\mid x_m)$ over the
# batch. What is wrong with it? Compute the criterion on batches of 3, 9, 27 and 81 pictures with it, and with
# `lw.minibatch_aggregated` (lw.20), for the layers of section 2. Prove that lw.20 is unbiased for each datum of the
# batch, and check it on all batches of a tiny data set.

# %% [markdown]
# #### Solution (b)
#
# A datum of the batch always meets its own code there, with weight $1/B$ instead of $1/N$. Where codes are good its own
# is the one that counts, so its likelihood is overstated by up to $\log(N/B)$: small batches seem better. lw.20 gives
# its own code the weight $1/N$ and the others of the batch, a fair sample of all others, the rest, $(N-1)/N$ times
# their mean. So for each $n$ the mean over all batches that contain $n$ is $q_D$ exactly. The logarithm is concave, so
# the criterion is then too low in the mean, a lower bound. The less pictures profit from the codes of others, the less
# is lost.


# %%
def on_batch(index, corrected, T, log_q):
    """The criterion of each datum of a batch, (B,), and the law of codes it used."""
    rows, N = log_q[index], len(log_q)
    log_q_D = lw.minibatch_aggregated(rows, N) if corrected else rows.logsumexp(0) - math.log(len(index))
    return exact.evidence(T[index], log_q_D), log_q_D


found = lw.tables(narrow, narrow_guide, x)
LAYERS = {
    f"{BITS} bits": ({"T": tables.T, "log_q": tables.log_q}, books.criterion),
    f"{NARROW} bits": ({"T": found.T, "log_q": found.log_q}, narrow_books.criterion),
}
lab.seed(0)
sizes = [3, 9, 27, len(x)]
figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.1))
for axes, (name, (layer, criterion)) in zip(panels, LAYERS.items(), strict=True):
    axes.axhline(criterion, color="black", linewidth=1.2, label="all data")
    axes.axhline(ceiling, color="black", linewidth=1.2, linestyle=":", label="ceiling, -H(P_D)")
    for corrected, style, colour, shift in ((False, "s--", PALETTE[1], 0.97), (True, "o-", PALETTE[0], 1.03)):
        values = np.array(
            [
                [float(on_batch(torch.randperm(len(x))[:B], corrected, **layer)[0].mean()) for _ in range(50)]
                for B in sizes
            ]
        )
        label = "lw.20" if corrected else "mean of the batch"
        place = np.array(sizes) * shift
        axes.errorbar(place, values.mean(1), values.std(1), fmt=style, color=colour, label=label, capsize=2)
        assert abs(values[-1] - criterion).max() < 1e-6  # a batch of everything
    axes.set(xscale="log", xlabel="pictures in a batch", title=name)
    axes.set_xticks(sizes, [str(B) for B in sizes])
    axes.minorticks_off()
panels[0].set_ylabel("criterion, nats per picture")
panels[0].legend(fontsize="small", loc="upper right")
plt.show()

six = {"T": tables.T[:6], "log_q": tables.log_q[:6]}  # a data set of six pictures, all its batches of three
log_q_D = exact.aggregated(six["log_q"], torch.full((6,), -math.log(6)))
whole = exact.evidence(six["T"], log_q_D)
of = {n: [batch for batch in combinations(range(6), 3) if n in batch] for n in range(6)}
for n, batches in of.items():
    seen_by_n = [(on_batch(torch.tensor(b), True, **six), b.index(n)) for b in batches]
    mean_law = torch.stack([law[row].exp() for (_, law), row in seen_by_n]).mean(0)
    mean_value = torch.stack([values[row] for (values, _), row in seen_by_n]).mean()
    assert torch.allclose(mean_law, log_q_D.exp(), atol=1e-12)  # unbiased, for each datum
    assert mean_value <= whole[n] + EPS  # and a lower bound in the mean

# %% [markdown]
# *Figure 8.* The criterion of one and the same layer on batches, for the two layers of figure 3; means and standard
# deviations over 50 batches. Without the correction small batches look good, and may even stand above the ceiling.
#
# ### (c) Choose a layer before there is a top
#
# Train several bottom layers of different widths and learning rates. Rank them by `lw.promise` on the validation
# pictures, $U_V$, and only then train an RBM on each. Did the ranking foresee the final scores? Would $U_D$ on the
# training pictures have done as well?

# %% [markdown]
# #### Solution (c)
#
# $U_V$ is never below the final score of the same layer on $V$, whatever the top (lw.4). Whether its *order* is that of
# the final scores is an empirical matter; the rank correlations are printed. On training data the BLM prefers wide
# codes without end, up to the ceiling, since $\hat Q$ may be fitted to every single picture.

# %%
candidates = []
random = np.random.default_rng(1)
for number in range(4 if SMALL else 12):
    bits, lr = int(random.integers(3, BITS + 1)), float(10 ** random.uniform(-2.5, -1.5))
    lab.seed(number)
    net = lw.Model.for_data(train, hidden=[bits])
    encoder = lw.guide(net, train.peek())
    start, layer, top = plan_for(net, encoder)
    learn(net, encoder, [start, layer], steps=STEPS // 2, lr=lr)
    promised = {"U_V": lw.promise(net, v), "U_D": lw.promise(net, x)}  # no top was looked at so far
    learn(net, encoder, [top], steps=STEPS // 2)
    final = float(net.loglik(v).mean())
    candidates.append({"bits": bits, "lr": lr, **promised, "final": final})
    assert final <= promised["U_V"] + bits * math.log(2) / 2001  # lw.4, lw.10: up to 2000 steps of EM
candidates = pd.DataFrame(candidates)
ranks = candidates[["U_V", "U_D", "final"]].rank().corr()["final"]

figure, panels = plt.subplots(1, 2, figsize=(8.0, 3.2), sharey=True)
for axes, column, told in zip(panels, ("U_V", "U_D"), ("validation", "training"), strict=True):
    limits = candidates["final"].min() - 1, candidates["U_D"].max() + 1
    axes.plot(limits, limits, color="black", linewidth=0.8)
    for _, row in candidates.iterrows():
        place = (row[column], row["final"])
        axes.annotate(int(row["bits"]), place, xytext=(5, -9), textcoords="offset points", fontsize="x-small")
    axes.plot(candidates[column], candidates["final"], "o", color=PALETTE[0] if column == "U_V" else PALETTE[1])
    axes.set(xlabel=f"{column}, nats per {told} picture", title=f"rank correlation {ranks[column]:.2f}")
panels[0].set_ylabel("final score, nats per validation picture")
plt.show()
chosen = candidates.loc[candidates["U_V"].idxmax()]
print(
    f"chosen by U_V: {chosen['bits']:.0f} bits, final score {chosen['final']:.2f};"
    f" the best was {candidates['final'].max():.2f} nats per picture"
)

# %% [markdown]
# *Figure 9.* Promise and final score of each candidate; small numbers are bits of the code. On the line the top would
# lose nothing. On the left no point can be above the line; on the right, where promise and score are on different
# pictures, that is no theorem.
#
# ### (d) Data that repeat
#
# The scanned digits of scikit-learn, shrunk to 4 x 4 bits (`digits_4x4`), repeat themselves: there are far fewer
# distinct pictures than rows. What becomes of the ceiling $-\log N$? Is the auto-encoder bound with $\log N$ in the
# place of $H(P_D)$ still a bound? Train a layer of a few bits with an RBM on top and make up its books.

# %% [markdown]
# #### Solution (d)
#
# The ceiling is $-H(P_D)=\sum_nw_n\log w_n$ over *distinct* pictures of weight $w_n$; it equals $-\log N$ only if none
# repeats, and is higher otherwise. Since $H(P_D)\le\log N$ the bound with $\log N$ still holds, but gives away
# $\log N-H(P_D)$ for nothing. `Model.for_data` computes $H(P_D)$, and `lw.account` collapses repeated rows.

# %%
digits, _, digits_test = lw.data("digits_4x4")
distinct, weights = exact.distinct(digits["x"])
H = exact.entropy(weights)
lab.seed(0)
small = lw.Model.for_data(digits, hidden=[6], top="rbm")
encoder = lw.guide(small, digits.peek())
learn(small, encoder, plan_for(small, encoder), data=digits, steps=STEPS // 2)
b = lw.account(small, encoder, digits["x"])
check(b, 6)
rate = (digits["x"].sum(0) + 1) / (digits.N + 2)
alone = (digits_test["x"] * rate.log() + (1 - digits_test["x"]) * (1 - rate).log()).sum(1).mean()
print(f"{digits.N} rows, {len(distinct)} distinct: H(P_D) {H:.3f}, log N {math.log(digits.N):.3f} nats")
print(f"ceiling {b.ceiling:.3f}, U_D {b.blm:.3f}, L(q_D) {b.criterion:.3f}, deep {b.deep:.3f}")
print(f"auto-encoder bound {b.reconstruction:.3f}; with log N {b.reconstruction + H - math.log(digits.N):.3f}")
print(f"test rows: deep {float(small.loglik(digits_test['x']).mean()):.3f}, independent pixels {float(alone):.3f}")
assert abs(small.entropy - H) < EPS and H <= math.log(len(distinct)) <= math.log(digits.N)

# %% [markdown]
# ### (e) The constant that nobody knows
#
# The likelihood of an RBM needs $\log Z$, a sum over all states of its smaller layer. Where that is out of reach one
# anneals (AIS, lw.18): start from independent bits, move to the machine in small steps, and average the weights.
# Compare it with the exact value on the stacked RBM of section 4, for more and more steps, and from two starts: the
# machine's own visible bias, and the frequencies of the pixels. In which direction does it err, and what does that do
# to the log-likelihoods that people report?

# %% [markdown]
# #### Solution (e)
#
# The mean weight is unbiased for $Z$. By Jensen's inequality its logarithm is too *low* in the mean, so
# log-likelihoods, which subtract it, are too *high*. With few steps the weights are so uneven that almost every run
# misses the rare large ones; the error then is no noise around the truth but on one side.

# %%
machine = nets["TiedRBM", 0][1].machines[0]
with torch.no_grad():
    truth = float(machine.log_z())
    assert abs(truth - float(machine.hidden_score(states(FEWER)).logsumexp(0))) < EPS  # over the hidden units
frequency = (x.sum(0) + 1) / (len(x) + 2)
starts = {"own bias": None, "pixel frequencies": frequency.logit()}
lengths = [3, 10, 30, 100] if SMALL else [3, 10, 30, 100, 300, 1000]
lab.seed(0)
errors = {
    name: np.array([[machine.anneal(chains=50, steps=n, base=base).log_z - truth for _ in range(8)] for n in lengths])
    for name, base in starts.items()
}
figure, axes = plt.subplots(figsize=(6.5, 3.0))
axes.axhline(0, color="black", linewidth=1.2)
for (name, values), colour, marker, line, shift in zip(
    errors.items(), PALETTE, "os", LINES, (0.96, 1.04), strict=False
):
    place = np.array(lengths) * shift
    axes.plot(place, np.median(values, 1), line, color=colour, label=f"from {name}, median")
    axes.plot(np.repeat(place, values.shape[1]), values.flatten(), marker, color=colour, markersize=4, alpha=0.5)
axes.set(xscale="log", xlabel="steps of annealing (50 chains)", ylabel="estimate - exact log Z, nats")
axes.legend(fontsize="small", loc="lower right")
plt.show()
print(f"exact log Z {truth:.3f}; medians of the errors, nats")
display(pd.DataFrame({k: np.median(e, 1) for k, e in errors.items()}, index=pd.Index(lengths, name="steps")).round(3))

lab.seed(0)
tiny = RBM(6, 4, scale=0.5)  # unbiased, where the weights are tame enough to see it
with torch.no_grad():
    both = tiny.log_z(), tiny.hidden_score(states(4)).logsumexp(0)
    ratio = (tiny.anneal(chains=20_000, steps=5).log_weights - both[0]).exp()
print(f"tiny machine: mean weight over Z {ratio.mean():.4f} ± {ratio.std() / math.sqrt(len(ratio)):.4f}")
assert torch.allclose(*both)  # over the visible units, and over the hidden ones
assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(len(ratio))

# %% [markdown]
# *Figure 10.* Error of the estimate of $\log Z$ against the number of steps; each mark is a run of 50 chains. Steps are
# cheap, and where to start may matter as much as their number: look which start is ahead, and where both agree.
