"""Returned maps cover exactly the image: a map that holds coordinates must hold those of the image's own pixels."""

import pytest
import torch

from mmdiffrep.models.backbones.geometry import cover, pad_to_multiple


@pytest.mark.parametrize(('height', 'width', 'stride'), [(70, 53, 8), (61, 128, 4), (33, 47, 2), (64, 64, 8)])
def test_cover_samples_the_image_not_its_padding(height, width, stride):
    padded = pad_to_multiple(torch.zeros(1, 3, height, width), 16)
    rows, columns = (side // stride for side in padded.shape[-2:])
    # each cell holds where its centre lies in the image, in pixels
    y = (torch.arange(rows) + 0.5) * stride
    x = (torch.arange(columns) + 0.5) * stride
    feature = torch.stack([y[:, None].expand(rows, columns), x[None].expand(rows, columns)])[None]
    out = cover(feature, stride, (height, width))
    n, m = -(-height // stride), -(-width // stride)
    assert out.shape == (1, 2, n, m)
    # n cells that share the height evenly; nothing lies before the first centre or behind the last
    want_y = ((torch.arange(n) + 0.5) * height / n).clamp(y[0].item(), y[-1].item())
    want_x = ((torch.arange(m) + 0.5) * width / m).clamp(x[0].item(), x[-1].item())
    torch.testing.assert_close(out[0, 0], want_y[:, None].expand(n, m), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[0, 1], want_x[None].expand(n, m), atol=1e-3, rtol=0)
