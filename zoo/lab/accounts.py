"""The books of a bottom layer: every bound between an auto-encoder's loss and the best latent marginal, exactly.

From tables alone (see `zoo.lab.exact`; equation ids of `zoo.layerwise`), all in nats per datum.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from zoo.lab import exact


@dataclass(frozen=True)
class Account:
    """One bottom layer with one q and one top, in nats per datum; from the ceiling down, where theorems order them.

    Attributes:
        ceiling: -H(P_D), where x is discrete; None of densities and grey values, which have none.
        blm: U_D, within `certificate` of its value. criterion: L_D(theta_I, q_D).
        elbo_aggregated: ELBO with q_D as prior. codes, reconstruction: the auto-encoder bounds in sum and expectation
            form. deep: L_D(theta_I, P_J).
        elbo: ELBO with P_J as prior. information: I_q(x; h). kl: KL(q_D || P_J), which bounds the loss of a poor top
            only if q is optimal. price: the corrected bound of criterion - deep.
        mean_field: the classical auto-encoder's loss, no bound: it may stand above the BLM.
    """

    ceiling: float | None
    blm: float
    certificate: float
    criterion: float
    elbo_aggregated: float
    codes: float
    reconstruction: float
    deep: float
    elbo: float
    information: float
    kl: float
    price: float
    mean_field: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """JSON values."""
        return asdict(self)


def account(
    T: Tensor,
    log_q: Tensor,
    log_prior: Tensor,
    log_w: Tensor,
    *,
    mean_field: Tensor | None = None,
    steps: int = 2000,
) -> Account:
    """Make up the books.

    Args:
        T: log P(x_n | h), (N, 2^n). log_q: log q(h | x_n), (N, 2^n). log_prior: log P_J(h), (2^n). log_w: (N,).
        mean_field: log P(x_n | E_q h), (N,).
        steps: of EM for the best latent marginal.
    """
    T, log_q, log_prior, log_w = (part.detach().double() for part in (T, log_q, log_prior, log_w))
    w, q = log_w.exp(), log_q.exp()
    log_q_D = exact.aggregated(log_q, log_w)
    best, H = exact.blm(T, log_w, steps=steps), exact.entropy(log_w)
    likelihood = float(w @ (q * T).sum(-1))
    information = float(w @ exact.kl(log_q, log_q_D))  # lw.14
    kl = float(exact.kl(log_q_D, log_prior))
    return Account(
        ceiling=-H,
        blm=best.bound,
        certificate=best.certificate,
        criterion=float(w @ exact.evidence(T, log_q_D)),
        elbo_aggregated=likelihood - information,  # lw.14
        codes=float(w @ (log_q + T).logsumexp(-1)) - H,
        reconstruction=likelihood - H,
        deep=float(w @ exact.evidence(T, log_prior)),
        elbo=likelihood - information - kl,  # lw.14
        information=information,
        kl=kl,
        price=float(exact.price(T, log_q_D, log_prior, log_w)),
        mean_field=None if mean_field is None else float(w @ mean_field.detach().double()) - H,
    )


@dataclass(frozen=True)
class HeldOut:
    """What the bottom layer promises on validation data V, and the final score; nats per datum of V.

    Attributes:
        blm_of_train: (a) the evidence of V under the best latent marginal of the training data.
        blm: (b) the best latent marginal of V itself. criterion: (c) under q_D of the training data.
        deep: (d) the final score, under P_J.
    """

    blm_of_train: float
    blm: float
    criterion: float
    deep: float


def held_out(
    T: Tensor,
    T_valid: Tensor,
    *,
    log_q: Tensor,
    log_prior: Tensor,
    log_w: Tensor,
    log_w_valid: Tensor,
    steps: int = 2000,
) -> HeldOut:
    """The four numbers for validation data (lw.22): T and log_q are of the training data, T_valid of V."""
    T, T_valid, log_w, log_w_valid = (part.detach().double() for part in (T, T_valid, log_w, log_w_valid))
    log_q, log_prior, w = log_q.detach().double(), log_prior.detach().double(), log_w_valid.exp()

    def mean(Q: Tensor) -> float:
        return float(w @ exact.evidence(T_valid, Q))

    return HeldOut(
        blm_of_train=mean(exact.blm(T, log_w, steps=steps).log_prior),  # lw.22
        blm=exact.blm(T_valid, log_w_valid, steps=steps).bound,
        criterion=mean(exact.aggregated(log_q, log_w)),
        deep=mean(log_prior),
    )
