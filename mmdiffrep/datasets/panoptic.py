"""PanopticDataset: COCO-panoptic annotations whose classes are a vocabulary, with classes held out of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoPanopticDataset
from mmengine.fileio import get_local_path
from PIL import Image

from mmdiffrep.openvocab.names import key
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import DATASETS

ORIENTATION = 0x0112  # EXIF: from 5 on the image lies on its side


@DATASETS.register_module()
class PanopticDataset(CocoPanopticDataset):
    """mmdet's ``CocoPanopticDataset``, labelled by the place of a category's name in ``vocabulary``.

    mmdet numbers labels in the file's order whatever the order of ``metainfo['classes']``; here names decide. Every sample
    carries ``vocabulary`` (put it among ``PackDetInputs``' meta_keys), and with ``caption_file`` a list ``caption``.

    Args:
        vocabulary: anything that :meth:`Vocabulary.parse` takes, things first; default: the file's own categories. A category of
            the file that is in it by none of its names is left out: its pixels belong to nothing.
        held_out: names that are left out of the vocabulary.
        caption_file: COCO captions of the same images.
        others: mmdet's.

    Raises:
        ValueError: an annotation's category is not in the file, no category is in the vocabulary, a held-out name is unknown, or
            (when an image is asked for) its masks have another size.
    """

    def __init__(
        self,
        *args: Any,
        vocabulary: Any = None,
        held_out: Sequence[str] = (),
        caption_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._asked, self.held_out, self.caption_file = vocabulary, tuple(held_out), caption_file
        self.vocabulary: Vocabulary | None = None
        self._fitting: set[int] = set()  # images whose masks have been looked at
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dictionary an image, as mmdet's; the file is read once."""
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            content = _read(path, self.ann_file)
        categories = {category['id']: category for category in content['categories']}
        self.vocabulary = self._choose(list(categories.values()))
        self._metainfo.update(_metainfo(self.vocabulary, self._metainfo))
        labels = self._labels(list(categories.values()))
        if all(label is None for label in labels.values()):
            raise ValueError(
                f'{self.ann_file}: none of its {len(categories)} categories ({[c["name"] for c in content["categories"][:4]]}, …) is in '
                f'the vocabulary ({list(self.vocabulary.names[:4])}, …)'
            )
        self.cat_ids = [id_ for id_, label in labels.items() if label is not None]
        self.cat2label = {id_: label for id_, label in labels.items() if label is not None}
        images = {image['id']: image for image in content['images']}
        captions = _captions(self._join(self.caption_file)) if self.caption_file else {}
        return [
            self._image(images[annotation['image_id']], annotation, categories, captions)
            for annotation in content['annotations']
        ]

    def _choose(self, categories: list[dict[str, Any]]) -> Vocabulary:
        vocabulary = Vocabulary.parse(categories if self._asked is None else self._asked)
        return vocabulary.without(self.held_out) if self.held_out else vocabulary

    def _labels(self, categories: list[dict[str, Any]]) -> dict[Any, int | None]:
        """Each category's label: the class that shares a name with it, cleaned as those of a vocabulary are."""
        assert self.vocabulary is not None
        place = {
            key(name): label
            for label, category in enumerate(self.vocabulary.categories)
            for name in category.names
        }
        own = Vocabulary.parse(categories)
        labels = {}
        for number, category in enumerate(categories):
            names = own.categories[own.place[number]].names
            labels[category['id']] = next((place[key(n)] for n in names if key(n) in place), None)
        return labels

    def _image(
        self,
        image: Mapping[str, Any],
        annotation: Mapping[str, Any],
        categories: Mapping[int, Mapping[str, Any]],
        captions: Mapping[Any, list[str]],
    ) -> dict[str, Any]:
        assert self.vocabulary is not None
        name = image['file_name']
        segments: list[dict[str, Any]] = []
        instances: list[dict[str, Any]] = []
        for segment in annotation['segments_info']:
            if segment['category_id'] not in categories:
                raise ValueError(
                    f'{self.ann_file}: segment {segment["id"]} of {name} has category_id={segment["category_id"]}, which is none of '
                    f"the file's {len(categories)} categories"
                )
            label = self.cat2label.get(segment['category_id'])
            x, y, w, h = segment['bbox']
            if label is None or segment['area'] <= 0 or w < 1 or h < 1:
                continue
            crowd = bool(segment.get('iscrowd', 0))
            thing = self.vocabulary.is_thing[label] and not crowd
            # a crowd of things is no mask to learn, and is not stuff either
            segments.append(dict(id=segment['id'], category=label, is_thing=thing))
            if thing:
                instances.append(dict(bbox=[x, y, x + w, y + h], bbox_label=label, ignore_flag=0))
        record = dict(
            img_path=str(Path(self.data_prefix['img']) / name),
            img_id=image['id'],
            seg_map_path=str(Path(self.data_prefix['seg']) / annotation['file_name']),
            height=image['height'],
            width=image['width'],
            instances=instances,
            segments_info=segments,
        )
        if self.caption_file:
            record['caption'] = captions.get(image['id'], [])
        return record

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """An image's dictionary, with the vocabulary (kept once, not with every image)."""
        return dict(super().get_data_info(idx), vocabulary=self.vocabulary)

    def prepare_data(self, idx: int) -> Any:
        """An image through the pipeline. ValueError where its masks have another size."""
        if idx not in self._fitting:
            info = super().get_data_info(idx)
            _check_sizes(info['img_path'], info['seg_map_path'])
            self._fitting.add(idx)
        return super().prepare_data(idx)

    def _join(self, path: str) -> str:
        joined = Path(self.data_root or '') / path
        return str(joined if joined.is_file() else path)


def _read(path: str, name: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f'{name}: no such file (COCO panoptic annotations)')
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    missing = [part for part in ('images', 'annotations', 'categories') if part not in content]
    if missing:
        raise ValueError(
            f'{name} lacks {missing}: a COCO panoptic file has images, annotations and categories'
        )
    if content['annotations'] and 'segments_info' not in content['annotations'][0]:
        raise ValueError(
            f'{name} holds instances, not panoptic segments: its annotations have no segments_info'
        )
    return content


def _check_sizes(image: str, masks: str) -> None:
    """ValueError where a picture of masks has another size than its image; files that are not here are not looked at."""
    if not (Path(image).is_file() and Path(masks).is_file()):
        return
    with Image.open(image) as a, Image.open(masks) as b:  # the pixels are not read
        size = a.size[::-1] if a.getexif().get(ORIENTATION, 1) > 4 else a.size
        if size != b.size:
            raise ValueError(
                f'{masks} has {b.size[0]}×{b.size[1]} pixels, and its image {image} {size[0]}×{size[1]}: masks must cover their image. Give '
                'the annotations that were made for these images, not for resized ones'
            )


def _captions(path: str) -> dict[Any, list[str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f'caption_file={path!r}: no such file')
    found: dict[Any, list[str]] = {}
    for entry in json.loads(Path(path).read_text(encoding='utf-8'))['annotations']:
        found.setdefault(entry['image_id'], []).append(entry['caption'])
    return found


def _metainfo(vocabulary: Vocabulary, before: Mapping[str, Any]) -> dict[str, Any]:
    names, things = vocabulary.names, vocabulary.num_things
    colours = dict(zip(before.get('classes', ()), before.get('palette', ())))
    palette = [
        tuple(colours.get(name, ((37 * i + 20) % 256, (91 * i + 60) % 256, (151 * i + 120) % 256)))
        for i, name in enumerate(names)
    ]
    # plain values: a checkpoint keeps them, and is read with weights_only
    return dict(
        classes=names, thing_classes=names[:things], stuff_classes=names[things:], palette=palette
    )
