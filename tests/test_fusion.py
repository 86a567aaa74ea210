"""The fusion of two classifications, against a loop in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiffrep.openvocab.fusion import PRESETS, fuse

SEEN = [True, False, True, False, False]


def case(seed=0, queries=4, scale=5.0):
    g = torch.Generator().manual_seed(seed)
    return (
        scale * torch.randn(2, queries, 6, generator=g),
        scale * torch.randn(2, queries, 5, generator=g),
    )


def slow(logits, clip_logits, seen, alpha, beta, p_void=None):
    """The formula, number by number."""

    def softmax(row):
        top = max(row)
        parts = [math.exp(v - top) for v in row]
        return [p / sum(parts) for p in parts]

    rows = []
    flat = zip(
        logits.flatten(0, -2).double().tolist(), clip_logits.flatten(0, -2).double().tolist()
    )
    for number, (head, clip) in enumerate(flat):
        void = softmax(head)[-1] if p_void is None else p_void.flatten().double().tolist()[number]
        p, c = softmax(head[:-1]), softmax(clip)
        weight = [alpha if s else beta for s in seen]
        mixed = [x ** (1 - w) * y**w for x, y, w in zip(p, c, weight)]
        rows.append([m / sum(mixed) * (1 - void) for m in mixed] + [void])
    return torch.tensor(rows, dtype=torch.float64).view(*logits.shape)


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_against_the_formula(preset, given):
    logits, clip = case(1)
    p_void = torch.rand(2, 4) if given else None
    found = fuse(logits, clip, SEEN, **PRESETS[preset], p_void=p_void)
    assert found.dtype == torch.float32 and found.shape == (2, 4, 6)
    wanted = slow(logits, clip, SEEN, **PRESETS[preset], p_void=p_void)
    torch.testing.assert_close(found.exp().double(), wanted, atol=1e-6, rtol=1e-5)


def test_the_ends():
    logits, clip = case(2)
    found = fuse(logits, clip, SEEN, 0, 0)
    torch.testing.assert_close(found, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
    found = fuse(logits, clip, SEEN, 1, 1)
    void = logits.softmax(-1)[..., -1:]
    torch.testing.assert_close(found[..., :-1].exp(), clip.softmax(-1) * (1 - void))
    torch.testing.assert_close(found[..., -1:].exp(), void)
    # alpha is of seen classes, beta of the others: with one kind only its own weight matters
    for seen, weights in (([True] * 5, (0.2, 0.9)), ([False] * 5, (0.9, 0.2))):
        assert torch.equal(fuse(logits, clip, seen, *weights), fuse(logits, clip, SEEN, 0.2, 0.2))


def test_permuted_classes_permute():
    logits, clip = case(3)
    order = torch.tensor([3, 0, 4, 2, 1])
    found = fuse(logits[..., [*order, 5]], clip[..., order], torch.tensor(SEEN)[order])
    torch.testing.assert_close(found, fuse(logits, clip, SEEN)[..., [*order, 5]])


def test_a_vocabulary_for_each_image():
    logits, clip = case(4)
    seen = torch.tensor([SEEN, [False] * 5])
    found = fuse(logits, clip, seen[:, None])
    for row in range(2):
        torch.testing.assert_close(found[row], fuse(logits[row], clip[row], seen[row]))


number = st.floats(allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(number, min_size=4, max_size=4),
    st.lists(number, min_size=3, max_size=3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_finite_everywhere(head, clip, alpha, beta):
    for p_void in (None, torch.zeros(1), torch.ones(1)):
        found = fuse(
            torch.tensor([head]), torch.tensor([clip]), [True, False, True], alpha, beta, p_void
        )
        assert torch.isfinite(found).all()
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_low_precision_is_left():
    logits, clip = case(5)
    with torch.autocast('cpu', torch.bfloat16):
        found = fuse(logits.bfloat16(), clip, SEEN)
    torch.testing.assert_close(found, fuse(logits.bfloat16().float(), clip, SEEN))
    none = fuse(torch.zeros(0, 6), torch.zeros(0, 5), SEEN)
    assert none.shape == (0, 6)


def test_gradients_are_finite_where_a_probability_is_zero():
    logits = torch.tensor([[500.0, -500, 0, 3]], requires_grad=True)
    fuse(logits, torch.tensor([[-500.0, 500, 0]]), [True, False, True]).exp()[0, 0].backward()
    assert torch.isfinite(logits.grad).all()


def test_errors():
    logits, clip = case(6)
    with pytest.raises(
        ValueError,
        match=r'logits \(2, 4, 5\) and clip_logits \(2, 4, 5\) do not fit; needed: \(…, Q, K \+ 1\)',
    ):
        fuse(logits[..., :-1], clip, SEEN)
    with pytest.raises(ValueError, match='with at least one class'):
        fuse(logits[..., :1], clip[..., :0], [])
    with pytest.raises(
        ValueError, match=r'seen has shape \(4,\) for 5 classes.*Vocabulary.seen_in'
    ):
        fuse(logits, clip, SEEN[:4])
    with pytest.raises(ValueError, match=r'beta=1.5 does not fit; allowed: \[0, 1\]'):
        fuse(logits, clip, SEEN, 0.3, 1.5)
    for bad in (torch.zeros(2, 3), torch.full((2, 4), 1.5)):
        with pytest.raises(
            ValueError, match=r'p_void of shape .* does not fit .*needed: \(2, 4\), probabilities'
        ):
            fuse(logits, clip, SEEN, p_void=bad)
