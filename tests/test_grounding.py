"""Noun phrases, and the loss that finds an image's caption: against loops, and in two processes against one."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmdiffrep.openvocab import phrases as phrases_module
from mmdiffrep.openvocab.grounding import (
    grounding_loss,
    grounding_similarity,
    noun_phrases,
    sample_phrases,
)

ROOT = Path(__file__).parents[1]
SIZES = [3, 1, 0, 5]  # phrases of each caption


def batch(sizes=SIZES, queries=4, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(sizes), queries, width, generator=generator, dtype=dtype)
    return embeddings, [torch.randn(k, width, generator=generator, dtype=dtype) for k in sizes]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def slow_similarity(embeddings, phrases, scale):
    """The formula, number by number."""
    found = []
    for image in embeddings.tolist():
        row = []
        for caption in phrases:
            total = 0.0
            for phrase in caption.tolist():
                logits = [scale * cosine(query, phrase) for query in image]
                top = max(logits)
                weights = [math.exp(x - top) for x in logits]
                total += sum(w * x for w, x in zip(weights, logits)) / sum(weights)
            row.append(total / len(caption) if len(caption) else 0.0)
        found.append(row)
    return found


def slow_loss(similarity, named):
    """-log of the right one's share: of the captions that have phrases, and of all images."""
    rows = [math.log(sum(math.exp(similarity[i][j]) for j in named)) - similarity[i][i] for i in named]
    columns = [
        math.log(sum(math.exp(similarity[i][j]) for i in range(len(similarity)))) - similarity[j][j] for j in named
    ]
    return (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


# ---- similarity and loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1.0, 14.3])
def test_similarity_against_a_loop(scale):
    embeddings, phrases = batch()
    got = grounding_similarity(embeddings[:3], phrases, scale)
    assert got.shape == (3, 4)
    torch.testing.assert_close(got, torch.tensor(slow_similarity(embeddings[:3], phrases, scale), dtype=torch.float64))
    torch.testing.assert_close(grounding_similarity(embeddings[:3] * 7, phrases, scale), got)  # cosines


def test_similarity_by_hand():
    """Two queries, one along the phrase, one across it: logits 2 and 0."""
    embeddings = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    got = grounding_similarity(embeddings, [torch.tensor([[2.0, 0.0]])], 2.0)
    assert got.item() == pytest.approx(2 * math.exp(2) / (math.exp(2) + 1))


@pytest.mark.parametrize('sizes', [SIZES, [2, 2], [0, 1, 0]])
def test_loss_against_a_loop(sizes):
    embeddings, phrases = batch(sizes)
    similarity = slow_similarity(embeddings, phrases, 5.0)
    want = slow_loss(similarity, [k for k, size in enumerate(sizes) if size])
    assert grounding_loss(embeddings, phrases, 5.0).item() == pytest.approx(want, rel=1e-9)


def test_the_right_caption_is_cheap_and_a_wrong_one_dear():
    phrases = [torch.eye(4)[k : k + 1] for k in range(4)]
    embeddings = torch.eye(4)[:, None].repeat(1, 3, 1)
    assert grounding_loss(embeddings, phrases, 20.0) < 1e-6
    assert grounding_loss(embeddings.roll(1, 0), phrases, 20.0) > 10
    assert grounding_loss(torch.ones(4, 3, 4), phrases, 20.0).item() == pytest.approx(math.log(4))  # tells nothing


def test_without_any_phrase_there_is_nothing_to_learn():
    embeddings, phrases = batch([0, 0])
    embeddings.requires_grad_(True)
    loss = grounding_loss(embeddings, phrases, 5.0)
    loss.backward()
    assert loss.item() == 0 and torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_gradient_is_the_slope():
    embeddings, phrases = batch()
    leaves = [embeddings, torch.cat(phrases), torch.tensor(5.0, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e, p, s: grounding_loss(e, p.split(SIZES), s), leaves)


def test_half_precision_is_computed_in_full():
    embeddings, phrases = batch(dtype=torch.float32)
    want = grounding_loss(embeddings, phrases, 50.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(grounding_loss(embeddings, phrases, 50.0), want)
    low = [p.bfloat16() for p in phrases]
    assert grounding_loss(embeddings.bfloat16(), low, 50.0).dtype == torch.float32


def test_shapes_that_do_not_fit():
    embeddings, phrases = batch()
    with pytest.raises(ValueError, match=r'3 captions were given for 4 images; give one for each'):
        grounding_loss(embeddings, phrases[:3], 1.0)
    with pytest.raises(ValueError, match=r'phrases of shapes \[\(2, 5\)\], do not fit; allowed: \(B, Q, D\)'):
        grounding_similarity(embeddings, [torch.zeros(2, 5)], 1.0)
    with pytest.raises(ValueError, match='0 captions'):
        grounding_similarity(embeddings, [], 1.0)


# ---- two processes --------------------------------------------------------------------------------------------

PROCESS = """
import sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from mmdiffrep.openvocab.grounding import grounding_loss

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
given = torch.load(folder + '/given.pth', weights_only=True)
dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = (torch.nn.Linear(6, 5).double() for _ in range(2))
        self.scale = torch.nn.Parameter(torch.tensor(5.0).double())
        self.load_state_dict(given['state'])

    def forward(self, embeddings, phrases):
        return grounding_loss(self.image(embeddings), [self.text(p) for p in phrases], self.scale)

results = {}
for name, (ranges, batch) in given['cases'].items():
    model = DistributedDataParallel(Model())
    a, b = ranges[rank]
    loss = model(batch[0][a:b], batch[1][a:b])
    loss.backward()
    results[name] = loss.item(), {n: p.grad for n, p in model.module.named_parameters()}
torch.save(results, f'{folder}/{rank}.pth')
dist.destroy_process_group()
"""
CASES = {
    'equal': (SIZES, [(0, 2), (2, 4)]),
    'images': (SIZES, [(0, 3), (3, 4)]),
    'one without phrases': ([0, 0, 2, 3], [(0, 2), (2, 4)]),
    'none has phrases': ([0, 0], [(0, 1), (1, 2)]),
}


def test_two_processes_are_one(tmp_path):
    """The same loss in both, and DistributedDataParallel's gradients are those of one process with the whole batch."""
    torch.manual_seed(0)
    image, text = (torch.nn.Linear(6, 5).double() for _ in range(2))
    scale = torch.nn.Parameter(torch.tensor(5.0).double())
    own = {f'{part}.{n}': p for part, m in (('image', image), ('text', text)) for n, p in m.named_parameters()}
    own['scale'] = scale
    cases = {name: (ranges, batch(sizes, seed=3)) for name, (sizes, ranges) in CASES.items()}
    state = {n: p.detach().clone() for n, p in own.items()}
    torch.save(dict(state=state, cases=cases), tmp_path / 'given.pth')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', PROCESS]
    processes = [
        subprocess.Popen([*command, str(rank), str(port), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], errors
    found = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2)]
    for name, (_, (embeddings, phrases)) in cases.items():
        for p in own.values():
            p.grad = None
        loss = grounding_loss(image(embeddings), [text(p) for p in phrases], scale)
        loss.backward()
        for result in found:
            got, grads = result[name]
            assert got == pytest.approx(loss.item(), rel=1e-12), name
            for key, p in own.items():
                assert torch.allclose(grads[key], p.grad, rtol=1e-9, atol=1e-12), (name, key)
            assert (own['image.weight'].grad.abs().sum() > 0) == (name != 'none has phrases')


# ---- noun phrases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'caption, wanted',
    [
        (
            'a striped red disc, a blue star and a green ring in front of wood and sky',
            ['striped red disc', 'blue star', 'green ring', 'wood', 'sky'],
        ),
        ('A man with a red helmet on a small moped on a dirt road. ', ['man', 'red helmet', 'small moped', 'dirt road']),
        ('Two giraffes standing next to each other in a field near tall trees.', ['giraffes', 'field', 'tall trees']),
        ('A group of people riding on the back of a truck', ['people', 'truck']),
        ('there is a brown bear that is sitting in the tall grass', ['brown bear', 'tall grass']),
        ('Several cars parked along the side of a parking lot', ['cars', 'parking lot']),
        ('A close up of a plate of food', ['plate', 'food']),
        ('the sky is blue, the sky is clear', ['sky', 'clear']),
        ("a cat's bowl; 2 dogs, an orange", ["cat's bowl", 'dogs', 'orange']),
        ('A fire hydrant covered in snow next to a stop sign at night', ['fire hydrant', 'snow', 'stop sign']),
        ('a tree-lined street and a building', ['tree-lined street', 'building']),
        ('ein Café, ein Fluß', ['ein café', 'ein fluß']),
        ('', []), ('Sitting and waiting.', []), ('... , !', []),
    ],
)  # fmt: skip
def test_noun_phrases_by_rule(caption, wanted):
    assert noun_phrases(caption) == wanted


def test_no_article_or_verb_of_the_list_is_left():
    for word in ('a', 'the', 'of', 'sitting', 'laying', 'stopped', 'riding', 'putting', 'carried', 'ridden', 'is'):
        assert noun_phrases(f'horse {word} field') == ['horse', 'field'], word


def test_noun_phrases_wrong_arguments():
    with pytest.raises(ValueError, match=r"method='nltk' is unknown; allowed: \('rule', 'spacy'\)"):
        noun_phrases('a cat', 'nltk')
    with pytest.raises(ValueError, match='give one string'):
        noun_phrases(['a cat'])


@pytest.fixture
def spacy(monkeypatch):
    """Puts another module in spaCy's place."""
    phrases_module._spacy.cache_clear()
    yield lambda module: monkeypatch.setitem(sys.modules, 'spacy', module)
    phrases_module._spacy.cache_clear()


def test_spacy_is_missing(spacy):
    spacy(None)
    with pytest.raises(ImportError, match=r'needs spaCy and its English model: pip install spacy .*rule'):
        noun_phrases('a cat', 'spacy')

    def load(name):
        raise OSError(f"[E050] Can't find model '{name}'")

    spacy(SimpleNamespace(load=load))
    with pytest.raises(ImportError, match="download en_core_web_sm.*Can't find model 'en_core_web_sm'"):
        noun_phrases('a cat', 'spacy')


def test_spacy_chunks_lose_their_determiners(spacy):
    tags = dict(a='DET', the='DET', two='NUM', it='PRON', his='PRON')

    def chunk(text):
        return [SimpleNamespace(text=word, pos_=tags.get(word.lower(), 'NOUN')) for word in text.split()]

    chunks = [chunk(text) for text in ('The red cat', 'it', 'two dogs', 'his hat', 'A red cat')]
    spacy(SimpleNamespace(load=lambda name: lambda caption: SimpleNamespace(noun_chunks=chunks)))
    assert noun_phrases('…', 'spacy') == ['red cat', 'dogs', 'hat']


# ---- sampling -------------------------------------------------------------------------------------------------


def test_sampling_is_even_without_repetition_and_in_order():
    names = [f'p{k}' for k in range(6)]
    generator = torch.Generator().manual_seed(0)
    seen = dict.fromkeys(names, 0)
    for _ in range(600):
        found = sample_phrases(names, 2, generator)
        assert len(set(found)) == 2 and found == sorted(found)
        for name in found:
            seen[name] += 1
    assert all(150 < count < 250 for count in seen.values())  # 200 each; the deviation is 11.5
    a, b = (sample_phrases(names, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a == b


def test_few_phrases_are_all_taken():
    assert sample_phrases(['a', 'b']) == ['a', 'b'] and sample_phrases([]) == []
    with pytest.raises(ValueError, match="phrases='cat'"):
        sample_phrases('cat')
    with pytest.raises(ValueError, match='count=0; allowed'):
        sample_phrases(['cat'], 0)
