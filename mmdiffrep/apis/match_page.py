"""A page in the browser: click a point in one image, see in the other how alike every pixel is. Needs Gradio (the extra 'page')."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmdiffrep.datasets.images import read_image
from mmdiffrep.visualization.matches import draw_heat, draw_matches, enlarged

from .matcher import Matcher

SIDE = 640  # pixels of an image's longer side on the page
HINT = 'Load two images, then click a point in the first.'


class MatchPage:
    """What the page's buttons and clicks do; images are RGB arrays (H, W, 3) uint8 in their own size.

    Args:
        matcher: answers.
        category: said to a network that takes text.
    """

    def __init__(self, matcher: Matcher, category: str | None = None) -> None:
        self.matcher, self.category = matcher, category

    def click(self, source: np.ndarray | None, target: np.ndarray | None, place: tuple[int, int]) -> tuple[Any, Any, str]:
        """A click at x, y of the first image -> both images joined by the match, the second under its heat map, a line of text."""
        if source is None or target is None:
            return None, None, HINT
        point = [float(place[0]), float(place[1])]
        try:
            found = self.matcher.match(source, target, [point], self.category)
            heat = self.matcher.scores(source, target, point, self.category).numpy()
        except ValueError as error:
            return None, None, f'error: {error}'
        where = found.points[0].tolist()
        said = f'({point[0]:g}, {point[1]:g}) lies at ({where[0]:.1f}, {where[1]:.1f}), {self.matcher.model.metric} {float(found.scores[0]):.3f}'
        return draw_matches(source, target, [point], [where], side=SIDE), draw_heat(target, heat, where, SIDE), said

    def blocks(self, source: np.ndarray | None = None, target: np.ndarray | None = None) -> Any:
        """The page, as ``gradio.Blocks``; with two images to begin with.

        Raises:
            ModuleNotFoundError: Gradio is not installed.
        """
        gr = gradio()
        with gr.Blocks(title='mmdiffrep: matching points') as page:
            gr.Markdown(f'# Matching points\n{HINT} How alike each pixel of the second is, is shown below.')
            with gr.Row():
                first = gr.Image(source, label='first: click here', type='numpy', elem_id='first')
                second = gr.Image(target, label='second', type='numpy', elem_id='second')
            text = gr.Textbox(HINT, label='found', interactive=False, elem_id='found')
            with gr.Row():
                joined = gr.Image(label='match', interactive=False, elem_id='match')
                heat = gr.Image(label='how alike', interactive=False, elem_id='heat')

            def clicked(a: Any, b: Any, event: gr.SelectData) -> tuple[Any, Any, str]:
                return self.click(a, b, tuple(event.index))

            # an annotation that is a string cannot be looked up inside of this function
            clicked.__annotations__['event'] = gr.SelectData
            first.select(clicked, [first, second], [joined, heat, text])
        return page


def gradio() -> Any:
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the page needs Gradio: pip install 'mmdiffrep[page]'") from error
    return gr


def pictures(paths: list[str]) -> list[np.ndarray]:
    """Files as RGB arrays, small ones enlarged so that they can be clicked."""
    found = [np.ascontiguousarray(read_image(Path(path))[..., ::-1]) for path in paths]
    return [enlarged(x, SIDE // 2)[0] if max(x.shape[:2]) < SIDE // 2 else x for x in found]
