"""Vocabularies: the classes that a model is asked for, in words, things before stuff."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from .names import key, nearest


@dataclass(frozen=True)
class Category:
    """A class.

    Args:
        names: synonyms, the first is what it is called.
        is_thing: countable (a car), or stuff (grass).

    Raises:
        ValueError: no name, or an empty one.
    """

    names: tuple[str, ...]
    is_thing: bool = True

    def __post_init__(self) -> None:
        names = self.names
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(
                f'names={names!r}: give a tuple of synonyms, such as ("cat", "kitten")'
            )
        if not names or not all(isinstance(name, str) and key(name) for name in names):
            raise ValueError(
                f'a category with names={list(names)!r}: give at least one name, none of them empty'
            )
        object.__setattr__(self, 'names', tuple(name.strip() for name in names))
        object.__setattr__(self, 'is_thing', bool(self.is_thing))

    @property
    def name(self) -> str:
        return self.names[0]

    def __str__(self) -> str:
        return ', '.join(self.names) + ('' if self.is_thing else ' (stuff)')


@dataclass(frozen=True)
class Vocabulary:
    """Classes in order: the things, then the stuff, each in the order in which they were given.

    Args:
        categories: in any order; afterwards things first.

    Attributes:
        order: ``given[order[k]]`` is class ``k``.

    Raises:
        ValueError: no category, or a name that two categories have.
    """

    categories: tuple[Category, ...]
    order: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = tuple(self.categories)
        if not given:
            raise ValueError(
                'an empty vocabulary: give at least one class, for example "cat, kitten; grass (stuff)"'
            )
        wrong = [item for item in given if not isinstance(item, Category)]
        if wrong:
            raise ValueError(
                f'{wrong[0]!r} is not a Category; Vocabulary.parse(…) takes names, files and data sets'
            )
        _check_names(given)
        order = sorted(range(len(given)), key=lambda i: not given[i].is_thing)  # stable
        object.__setattr__(self, 'categories', tuple(given[i] for i in order))
        object.__setattr__(self, 'order', tuple(order))

    @classmethod
    def parse(cls, source: Any) -> Vocabulary:
        """A vocabulary from what a user has.

        * a string: categories between ``;`` or lines, synonyms between ``,``, ``(stuff)`` or ``(thing)`` behind a category (default
          thing): ``'cat, kitten; grass (stuff); traffic light'``;
        * a ready name (:data:`~mmdiffrep.openvocab.ready.READY`): ``'coco-panoptic'``;
        * a list of such categories, of lists of synonyms, of :class:`Category`, of ``dict(names=…, isthing=…)``, or of a data set's
          ``dict(name=…, synonyms=…, isthing=…)``;
        * a data set's ``metainfo``: ``dict(classes=…)``, perhaps with ``thing_classes``, ``stuff_classes``;
        * a file: .txt (as the string), .json (as the list, or with COCO's or LVIS' ``categories``);
        * a vocabulary.

        Names that data sets made (``metainfo``, ``categories``, ``dict(name=…)``) become words and synonyms (see
        :func:`~mmdiffrep.openvocab.names.clean`), and a synonym that another of their classes has is dropped. All others are taken as
        they are written.

        Raises:
            ValueError: empty, contradictory, or nothing of these.
            FileNotFoundError: no such file.
        """
        if isinstance(source, Vocabulary):
            return source
        from .parsing import read

        found = read(source)
        return found if isinstance(found, Vocabulary) else cls(tuple(found))

    def __len__(self) -> int:
        return len(self.categories)

    def __str__(self) -> str:
        return '; '.join(map(str, self.categories))

    @property
    def names(self) -> tuple[str, ...]:
        """What each class is called."""
        return tuple(category.name for category in self.categories)

    @property
    def is_thing(self) -> tuple[bool, ...]:
        return tuple(category.is_thing for category in self.categories)

    @property
    def num_things(self) -> int:
        """The first ``num_things`` classes are things."""
        return sum(self.is_thing)

    @property
    def place(self) -> tuple[int, ...]:
        """The inverse of ``order``: the class of each category in the order given, such as a data set's labels."""
        return tuple(sorted(range(len(self)), key=self.order.__getitem__))

    def find(self, name: str) -> int:
        """The class that has a name among its synonyms.

        Raises:
            ValueError: none has; the nearest names are listed.
        """
        wanted = key(name)
        for number, category in enumerate(self.categories):
            if wanted in map(key, category.names):
                return number
        near = nearest(name, (n for category in self.categories for n in category.names))
        raise ValueError(f'no class is called {name!r}. Nearest: {near}')

    def without(self, names: Collection[str]) -> Vocabulary:
        """The classes that have none of these names.

        Raises:
            ValueError: a name that no class has, or no class is left.
        """
        if isinstance(names, str):
            raise ValueError(f'names={names!r} is one string; give a list of names')
        dropped = {self.find(name) for name in names}
        return Vocabulary(tuple(c for k, c in self._given() if k not in dropped))

    def seen_in(self, training: Vocabulary) -> tuple[bool, ...]:
        """Whether each class was among those of a training: any of its synonyms is one of theirs."""
        seen = {key(name) for category in training.categories for name in category.names}
        return tuple(any(key(name) in seen for name in c.names) for c in self.categories)

    def to_json(self) -> str:
        """A list in the order given, which :meth:`parse` reads from a file and :meth:`from_json` from a string."""
        entries = [dict(names=list(c.names), isthing=c.is_thing) for _, c in self._given()]
        return json.dumps(entries, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """
        Raises:
            ValueError: not JSON, or not such a list.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f'not a vocabulary in JSON: {error}') from error
        if isinstance(data, str):
            raise ValueError(f'not a vocabulary in JSON but a string: {data!r}')
        return cls.parse(data)

    def _given(self) -> list[tuple[int, Category]]:
        """(class, category) in the order given."""
        return [(k, self.categories[k]) for k in self.place]


def _check_names(categories: Sequence[Category]) -> None:
    """ValueError for a name of two categories."""
    owner: dict[str, Category] = {}
    for category in categories:
        for compared, name in {key(n): n for n in category.names}.items():
            other = owner.setdefault(compared, category)
            if other is category:
                continue
            if other.is_thing != category.is_thing:
                raise ValueError(
                    f"{name!r} is both a thing ('{other if other.is_thing else category}') and stuff "
                    f"('{category if other.is_thing else other}'): a name belongs to one category; remove it from one"
                )
            raise ValueError(
                f"{name!r} is a name of two categories, '{other}' and '{category}' (case, hyphens and underscores make no "
                'difference): remove it from one, or make them one'
            )
