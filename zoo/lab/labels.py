"""The class of generated data: by a classifier of real data that may say "none"; without labels, by clusters."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor

from zoo.lab.tables import DataError, Table
from zoo.lab.visits import NONE

CONFIDENCE = 0.8  # of the classifier below which a datum belongs to no class
CLUSTERS = 10  # of data without labels
MOST = 5000  # rows that the classifier learns from


class Labeller:
    """The class of generated data, (..., D) -> (...), -1 for none; it has seen real data only.

    With labels a multinomial logistic regression on a Gaussian kernel, which rejects what it is less sure of than
    `CONFIDENCE`. (Of binary digits it rejects a sixth of the real ones, errs on 0.6 % of the others, and rejects nine
    tenths of independent pixels; a support vector machine with calibrated probabilities rejects a tenth of those.)
    Without labels the nearest of ten k-means clusters, which rejects nothing.

    Args:
        train: with x, and y where there are classes. seed: of the kernel's points and of the clusters.

    Attributes:
        names: of the classes. law: their shares among the training data, (classes).
        rejects: whether a datum may belong to none.

    Raises:
        DataError: fewer than two classes, or a class with fewer than five data.
    """

    def __init__(self, train: Table, *, seed: int = 0) -> None:
        x = train["x"][:MOST].cpu().numpy()
        self.rejects = train.classes is not None and "y" in train.tensors
        if self.rejects:
            y = train["y"].cpu()
            self.names = [str(name) for name in train.classes or ()]
            counts = torch.bincount(y, minlength=len(self.names))
            if len(self.names) < 2 or int(torch.bincount(y[:MOST], minlength=len(self.names)).min()) < 5:
                raise DataError(
                    f"class visits need two classes of five data or more; {train.name} has {counts.tolist()}"
                )
            gamma = 1 / (x.shape[1] * max(float(x.var()), 1e-6))
            kernel = Nystroem(gamma=gamma, n_components=min(400, len(x)), random_state=seed)
            self.machine = make_pipeline(kernel, LogisticRegression(C=20.0, max_iter=300)).fit(x, y[:MOST].numpy())
        else:
            clusters = min(CLUSTERS, len(train["x"].unique(dim=0)))
            self.machine = KMeans(clusters, n_init=3, random_state=seed).fit(x.astype("float32"))
            self.names = [f"cluster {k}" for k in range(clusters)]
            counts = torch.bincount(self(train["x"]), minlength=clusters)
        self.law = counts.double() / counts.sum()

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def __call__(self, x: Tensor) -> Tensor:
        rows, back = torch.unique(x.reshape(-1, x.shape[-1]).cpu(), dim=0, return_inverse=True)
        if not self.rejects:
            found = torch.as_tensor(self.machine.predict(rows.numpy().astype("float32"))).long()
        else:
            probs = torch.as_tensor(self.machine.predict_proba(rows.numpy()))
            classes = torch.as_tensor(self.machine.classes_).long()
            found = torch.where(probs.amax(1) >= CONFIDENCE, classes[probs.argmax(1)], NONE)
        return found[back].reshape(x.shape[:-1])


def nearest(x: Tensor, data: Tensor) -> Tensor:
    """Number of units in which each x (..., D) on bits differs from its nearest datum (N, D), (...)."""
    rows = x.reshape(-1, x.shape[-1])
    inner = [(piece @ data.mT * 2 - data.sum(-1)).amax(-1) for piece in rows.split(10_000)]  # |x - d|^2 = |x| - this
    return (rows.sum(-1) - torch.cat(inner)).reshape(x.shape[:-1])
