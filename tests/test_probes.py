"""Probes against slow versions and scikit-learn; rank, agreement and correlation by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mmdiffrep.evaluation.linear_probe import linear_predictions, linear_probe
from mmdiffrep.evaluation.probes import (
    agreement,
    effective_rank,
    knn_probe,
    logistic_probe,
    spearman,
)


def clouds(count, seed=0, classes=4, dim=12, spread=2.2):
    g = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, dim, generator=g)
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    return centres[labels] + spread * torch.randn(count, dim, generator=g) + 5, labels


def test_neighbours_against_a_loop():
    (x, y), (x_val, y_val) = clouds(60), clouds(30, seed=1)
    mean = x.mean(0)
    hits = 0
    for row, truth in zip(x_val, y_val):
        a = row - mean
        cosines = [((a @ (b - mean)) / (a.norm() * (b - mean).norm())).item() for b in x]
        nearest = sorted(range(60), key=lambda i: -cosines[i])[:7]
        votes = [0.0] * 4
        for i in nearest:
            votes[y[i]] += math.exp(cosines[i] / 0.07)
        hits += votes.index(max(votes)) == truth
    assert knn_probe(x, y, x_val, y_val, k=7) == pytest.approx(100 * hits / 30)
    with pytest.raises(ValueError, match='k=61 neighbours of 60 images'):
        knn_probe(x, y, x_val, y_val, k=61)


def test_probes_agree_with_scikit_learn():
    linear_model = pytest.importorskip('sklearn.linear_model')
    (x, y), (x_val, y_val) = clouds(400), clouds(400, seed=1)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    model = linear_model.LogisticRegression(max_iter=1000).fit(((x - mean) / deviation).numpy(), y.numpy())
    theirs = 100 * model.score(((x_val - mean) / deviation).numpy(), y_val.numpy())
    assert 60 < theirs < 99
    assert logistic_probe(x, y, x_val, y_val) == pytest.approx(theirs, abs=0.3)
    assert linear_probe(x, y, x_val, y_val, epochs=60, lr=1e-2) == pytest.approx(theirs, abs=3)
    found = linear_predictions(x, y, x_val, y_val, epochs=60, lr=1e-2)
    assert (found.numpy() == model.predict(((x_val - mean) / deviation).numpy())).mean() > 0.95


def test_without_scikit_learn_the_cure_is_named(monkeypatch):
    import builtins

    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('sklearn'):
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmdiffrep\[probes\]', or take --probe linear"):
        logistic_probe(*clouds(10), *clouds(10))


def test_effective_rank_by_hand():
    # centred columns of lengths 3, 1, orthogonal: shares 3/4 and 1/4
    x = torch.zeros(4, 5)
    x[:, 0] = 1.5 * torch.tensor([1.0, 1, -1, -1])
    x[:, 1] = 0.5 * torch.tensor([1.0, -1, 1, -1])
    assert effective_rank(x + 7) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-5)
    flat = torch.linalg.qr(torch.cat([torch.ones(6, 1), torch.randn(6, 3)], 1))[0][:, 1:]  # orthonormal, without a mean
    assert effective_rank(flat) == pytest.approx(3, rel=1e-4)
    assert effective_rank(torch.outer(torch.randn(6), torch.randn(4))) == pytest.approx(1, rel=1e-3)


def test_agreement_by_hand():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g).double(), torch.randn(20, 4, generator=g).double()
    h = torch.eye(20).double() - 1 / 20
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    assert agreement(x, y) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())))  # CKA's other form
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=g).double())[0]
    assert agreement(x, 3 * x @ rotation + 2) == pytest.approx(1)


def test_spearman_is_scipys():
    draws = np.random.default_rng(0)
    a = draws.integers(0, 6, 40)
    b = a + draws.integers(0, 8, 40)
    assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
