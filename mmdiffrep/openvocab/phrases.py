"""Noun phrases of captions: what a caption says is in the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

METHODS = ('rule', 'spacy')

# phrases of measure or place whose noun is not a thing in the image
_IDIOMS = re.compile(
    r"""\b(?:
        in\ (?:the\ )?(?:front|middle|center|centre|back|foreground|background|distance|corner)(?:\ of)?
        | (?:at|on)\ (?:the\ )?(?:top|side|edge|back|end|left|right|bottom)(?:\ (?:side|hand\ side))?(?:\ of)?
        | next\ to | close\ to | close\ up\ of | close-up\ of | (?:outside|inside|out|because|instead|full|made)\ of
        | (?:group|bunch|couple|pair|lot|lots|number|variety|row|rows|set|series|lots|plenty|type|kind|piece|pieces|part|side|top)\ of
        | (?:picture|photo|photograph|image|view|shot|close-up)\ (?:of|in)
        | there\ (?:is|are) | as\ well\ as | such\ as | at\ night | by\ side
    )\b""",
    re.VERBOSE,
)
_SPLIT = set(
    # articles, determiners, numbers
    'a an the this that these those some any each every no all both either neither another other many several few more most '
    'much various different one two three four five six seven eight nine ten eleven twelve dozen dozens hundreds '
    # pronouns
    'i you he she it we they me him us them his her hers its their theirs my your our himself herself itself themselves '
    'who whom whose which what where when while there here someone something everyone '
    # prepositions
    'about above across after against along alongside amid among amongst around as at atop before behind below beneath beside '
    'besides between beyond by down during for from in inside into near of off on onto opposite out outside over past through '
    'throughout to toward towards under underneath until up upon via with within without '
    # conjunctions, auxiliaries, negations
    'and or but nor so than then if because though although is are was were be been being am has have had having do does did '
    'can could will would may might must should not '
    # adverbs
    'very too also just only together away back apart nearby outdoors indoors still almost quite really next ready while '
    'forward upside ahead side'.split()
)  # fmt: skip
# those whose -ing and -ed or irregular forms are seldom nouns in captions
_VERBS = (
    'sit stand lie lay hold eat wear ride walk run look fly play jump hit catch throw show contain include feature sleep wait '
    'drive carry pose talk prepare hang lean rest get take go come use swim kneel climb pull push reach watch smile perform try '
    'attempt stare gaze grab place fill cover surround park line attach board travel move work make swing toss enjoy face '
    'appear seem graze drink serve display stop cross approach gather top bend pass roll sail race bat chase follow lick open '
    'close point read say share snow stick turn relax feed lead kick squat balance float tie decorate load head put set blow cut ski skate surf skateboard snowboard pet brush slice'
)
_IRREGULAR = (
    'sat stood lay laid lain held ate eaten wore worn rode ridden ran flew flown caught threw thrown shown slept drove driven '
    'hung took taken went gone came swam made seen got put set seated lit left lying tying '
    'sits stands holds eats wears rides walks runs looks flies plays jumps hits catches throws contains includes lies lays '
    'sleeps waits drives carries poses talks hangs leans rests gets takes goes comes uses makes pulls pushes reaches watches '
    'shows says appears seems sit hold eat wear ride lie has'
)
# a phrase of these alone names nothing
_ADJECTIVES = set(
    'red green blue yellow black white brown gray grey pink purple dark light bright colorful colourful big large small little '
    'tall short long young old new empty full busy wooden open closed different same other high low tiny huge beautiful nice '
    'dirty clean wet dry cold hot sunny cloudy snowy standing striped'.split()
)


@lru_cache
def _verb_forms() -> frozenset[str]:
    found = set(_IRREGULAR.split())
    for verb in _VERBS.split():
        stems = {verb}
        if verb.endswith('e'):
            stems = {verb[:-1]}
        elif verb.endswith('y') and verb[-2] not in 'aeiou':
            found.add(verb[:-1] + 'ied')
        elif re.fullmatch(r'.*[^aeiou][aeiou][bdgklmnprt]', verb):
            stems.add(verb + verb[-1])
        found |= {stem + end for stem in stems for end in ('ing', 'ed')}
    return frozenset(found) - {'parking', 'crossing', 'opening'}  # nouns rather


def noun_phrases(caption: str, method: str = 'rule') -> list[str]:
    """The noun phrases of a caption, in lower case, without articles, each once, in their order.

    Args:
        method: ``'rule'`` cuts the text at punctuation, articles, determiners, numbers, pronouns, prepositions, conjunctions,
            auxiliaries and the verbs of a list, and keeps what is between, unless it is an adjective alone. It knows no grammar: a verb
            outside the list stays in its phrase, and ``swimming pool`` becomes ``pool``. ``'spacy'`` takes the noun chunks of spaCy's ``en_core_web_sm``, without leading determiners and without pronouns.

    Raises:
        ValueError: an unknown method, or a caption that is no string.
        ImportError: ``'spacy'`` without spaCy or its model.

    >>> noun_phrases('a striped red disc and two dogs in front of the wood')
    ['striped red disc', 'dogs', 'wood']
    """
    if method not in METHODS:
        raise ValueError(f'method={method!r} is unknown; allowed: {METHODS}')
    if not isinstance(caption, str):
        raise ValueError(f'caption={caption!r}: give one string')
    found = _by_rule(caption) if method == 'rule' else _by_spacy(caption)
    return list(dict.fromkeys(found))


def _by_rule(caption: str) -> list[str]:
    text = re.sub(r'\s+', ' ', caption.lower().replace('’', "'"))
    text = _IDIOMS.sub(' , ', text)
    phrases: list[list[str]] = [[]]
    for word in re.findall(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]", text):
        cuts = not word[0].isalnum() or word.isdigit() or word in _SPLIT or word in _verb_forms()
        if cuts:
            phrases.append([])
        else:
            phrases[-1].append(word)
    return [' '.join(words) for words in phrases if set(words) - _ADJECTIVES]


@lru_cache
def _spacy() -> Any:
    try:
        import spacy

        return spacy.load('en_core_web_sm')
    except (ImportError, OSError) as error:
        raise ImportError(
            "noun_phrases(method='spacy') needs spaCy and its English model: pip install spacy && python -m spacy download "
            f"en_core_web_sm. method='rule' needs neither ({error})"
        ) from error


def _by_spacy(caption: str) -> list[str]:
    found = []
    for chunk in _spacy()(caption).noun_chunks:
        words = list(chunk)
        while words and words[0].pos_ in ('DET', 'PRON', 'NUM', 'PUNCT'):
            words = words[1:]
        if words:
            found.append(' '.join(word.text.lower() for word in words))
    return found


def sample_phrases(
    phrases: Sequence[str], count: int = 8, generator: torch.Generator | None = None
) -> list[str]:
    """At most ``count`` different ones of a caption's phrases, drawn evenly, in their order; all where there are no more.

    Raises:
        ValueError: ``phrases`` is one string, or ``count`` is below 1.
    """
    if isinstance(phrases, str) or count < 1:
        raise ValueError(
            f'phrases={phrases!r}, count={count}; allowed: a list of phrases, a count of at least 1'
        )
    if len(phrases) <= count:
        return list(phrases)
    chosen = torch.randperm(len(phrases), generator=generator)[:count].sort().values
    return [phrases[i] for i in chosen.tolist()]
