"""What :meth:`Vocabulary.parse` takes, as categories in the order given."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .names import clean, key, nearest, settle, unique
from .vocabulary import Category, Vocabulary

KIND = re.compile(r'\s*\(\s*(stuff|thing)\s*\)\s*$', re.IGNORECASE)
FILES = ('.json', '.txt')


class Entry(NamedTuple):
    names: tuple[str, ...]
    is_thing: bool
    raw: str | None = None  # a data set's name for it; None: a user's names, which nothing changes


def read(source: Any) -> Vocabulary | list[Category]:
    """Categories in the order given, or a ready vocabulary.

    Raises:
        ValueError, FileNotFoundError: see :meth:`Vocabulary.parse`.
    """
    if isinstance(source, Path) or (isinstance(source, str) and _is_file(source)):
        return read_file(source)
    if isinstance(source, str):
        return _ready(source) or _categories(_from_text(source))
    if isinstance(source, Mapping):
        if 'categories' in source:
            return read(list(source['categories']))
        return _categories(_from_metainfo(source))
    if isinstance(source, Sequence):
        return _categories([_entry(item) for item in source])
    raise ValueError(
        f'{source!r} is no vocabulary: give a string, a list of names, a metainfo with classes, a file or a ready name'
    )


def read_file(path: str | Path) -> Vocabulary | list[Category]:
    """A user's own file: .txt, a category a line; .json, a list or COCO's or LVIS' ``categories``."""
    file = Path(path).expanduser()
    if file.suffix.lower() not in FILES:
        raise ValueError(f'vocabulary file {str(path)!r}: the allowed kinds are {list(FILES)}')
    if not file.is_file():
        raise FileNotFoundError(
            f'vocabulary file {str(path)!r}: no such file (looked in {file.absolute().parent})'
        )
    try:
        text = file.read_text(encoding='utf-8-sig')
        data = text if file.suffix.lower() == '.txt' else json.loads(text)
    except ValueError as error:
        raise ValueError(f'vocabulary file {str(path)!r} cannot be read: {error}') from error
    if isinstance(data, str) != (file.suffix.lower() == '.txt') or isinstance(data, (int, float)):
        raise ValueError(
            f'vocabulary file {str(path)!r} holds {data!r}; a list of categories is expected'
        )
    try:
        return _categories(_from_text(data)) if isinstance(data, str) else read(data)
    except ValueError as error:
        raise ValueError(f'vocabulary file {str(path)!r}: {error}') from error


def _is_file(text: str) -> bool:
    return text.lower().endswith(FILES) and ';' not in text and '\n' not in text


def _ready(text: str) -> Vocabulary | None:
    from .ready import READY, ready

    if text.strip() in READY:
        return ready(text.strip())
    # one word that is nearly a ready name is rather that, misspelt, than a class
    if re.search(r'[,;\s()]', text.strip()) is None:
        near = difflib.get_close_matches(text.strip().lower(), READY, 3, 0.75)
        if near:
            raise ValueError(
                f'{text!r} is not a ready vocabulary. Nearest: {near}; there are {list(READY)}. A class of that name: [{text!r}]'
            )
    return None


def _from_text(text: str) -> list[Entry]:
    """``'cat, kitten; grass (stuff)'``, or a line each."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [part for line in lines for part in _split_line(line)]
    if len(parts) == 1 and ',' in parts[0] and not text.strip().endswith(';'):
        warnings.warn(
            f"the vocabulary {text.strip()!r} is one class with synonyms, which ',' separates; ';' separates classes. A ';' at the end says "
            'that it is meant so',
            stacklevel=5,
        )
    return [_from_words(part) for part in parts]


def _split_line(line: str) -> list[str]:
    parts = line.split(';')
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()  # 'cat; dog;'
    if not all(part.strip() for part in parts):
        raise ValueError(
            f"{line!r} has an empty category: remove the ';' that has nothing before it"
        )
    return parts


def _from_words(text: str) -> Entry:
    """``'grass, lawn (stuff)'``."""
    if ';' in text:
        raise ValueError(
            f"{text!r} in a list: ';' separates categories in a string; make it several entries"
        )
    return _marked(text.split(','))


def _marked(words: Sequence[str], is_thing: bool | None = None) -> Entry:
    """Names, of which any may have ``(stuff)`` or ``(thing)`` behind it; ``is_thing`` is said elsewhere, or not (None)."""
    said = set() if is_thing is None else {is_thing}
    names = []
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f'the name {word!r} in {list(words)!r} is no string')
        if mark := KIND.search(word):
            said.add(mark[1].lower() == 'thing')
            word = word[: mark.start()]
        names.append(word.strip())
    if not all(key(name) for name in names) or not names:
        raise ValueError(f'the category {",".join(words)!r} has an empty name: remove it')
    if len(said) > 1:
        raise ValueError(f'the category {",".join(words)!r} is said to be both thing and stuff')
    return Entry(tuple(names), said.pop() if said else True)


def _entry(item: Any) -> Entry:
    if isinstance(item, Category):
        return Entry(item.names, item.is_thing)
    if isinstance(item, str):
        return _from_words(item)
    if isinstance(item, Mapping):
        return _from_mapping(item)
    if isinstance(item, Sequence):
        return _marked(list(item))
    raise ValueError(
        f'{item!r} is no category: give a name, a list of synonyms, or dict(names=…, isthing=…)'
    )


def _from_mapping(item: Mapping[str, Any]) -> Entry:
    if ('name' in item) == ('names' in item):
        raise ValueError(
            f"the category {dict(item)!r} needs 'name' or 'names', and not both; besides it 'synonyms' and 'isthing'"
        )
    synonyms = _list(item.get('synonyms') or [])
    kind = item.get('isthing', item.get('is_thing'))
    if kind is not None and kind not in (0, 1):
        raise ValueError(
            f'isthing={kind!r} of the category {dict(item)!r}; allowed: 0, 1, true, false'
        )
    if 'names' in item:
        return _marked([*_list(item['names']), *synonyms], None if kind is None else bool(kind))
    raw = str(item['name'])
    if not key(raw):
        raise ValueError(f'the category {dict(item)!r} has an empty name')
    names = unique(name for written in (raw, *synonyms) for name in clean(written))
    return Entry(names, True if kind is None else bool(kind), raw.strip())


def _list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _from_metainfo(meta: Mapping[str, Any]) -> list[Entry]:
    """Of mmdet's and mmseg's data sets."""
    if 'classes' not in meta:
        raise ValueError(
            f"a mapping with {sorted(map(str, meta))} is no vocabulary: it needs 'classes' (and perhaps 'thing_classes', "
            "'stuff_classes'), or 'categories'"
        )
    classes = _list(meta['classes'] or [])
    things, stuff = meta.get('thing_classes'), meta.get('stuff_classes')
    for said, names in (('thing_classes', things), ('stuff_classes', stuff)):
        unknown = [name for name in names or () if name not in classes]
        if unknown:
            raise ValueError(
                f'{said} has {unknown[:3]}, not among classes. Nearest: {nearest(unknown[0], classes)}'
            )
    both = [name for name in things or () if name in (stuff or ())]
    if both:
        raise ValueError(
            f'{both[:3]} are among both thing_classes and stuff_classes: take each out of one'
        )
    if things is not None and stuff is not None:
        neither = [name for name in classes if name not in things and name not in stuff]
        if neither:
            raise ValueError(f'{neither[:3]} are in neither thing_classes nor stuff_classes')
    entries = []
    for name in classes:
        if not isinstance(name, str) or not all(key(part) for part in name.split(',')):
            raise ValueError(f'the class {name!r} of classes has an empty name, or is no string')
        if things is not None:
            is_thing = name in things
        else:
            # nobody counts a background
            is_thing = name not in stuff if stuff is not None else key(name) != 'background'
        entries.append(Entry(clean(name), is_thing, name.strip()))
    return entries


def _categories(entries: list[Entry]) -> list[Category]:
    names = settle([entry.names for entry in entries], [entry.raw for entry in entries])
    return [Category(group, entry.is_thing) for group, entry in zip(names, entries)]
