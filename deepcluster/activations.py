"""What a backbone's channels respond to: first-layer filters, responses to images, and images made to excite a channel.

Shapes: N images, B images of a batch, C channels of images, S pixels a side, L channels of a layer, K of those chosen,
F filters of h x w.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcluster.features import ImageRows
from deepcluster.models.build import Backbone
from deepcluster.pixels import normalise, to_float

DECAY = 1e-4  # of the pixels towards the mean, each step
BLUR_EVERY, BLUR_SIGMA = 4, 0.5  # steps, pixels
STEP = 0.05  # largest change of a pixel in a step, in standard deviations of the data set


def layers(backbone: Backbone) -> dict[str, nn.Module]:
    """The trained layers with channels of their own, convolutions and full connections, by their names, in order."""
    return {
        name: part
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and _trained(name)
    }


def _trained(name: str) -> bool:
    return name.startswith("body.")


def first_filters(backbone: Backbone, *, channels: int, size: int) -> NDArray[np.float32]:
    """The weights float32 [F, C, h, w] of the first layer; of a full connection as images of the given size."""
    name = next(iter(layers(backbone)))
    weight = backbone.get_parameter(f"{name}.weight").detach().float().cpu()
    return np.asarray(weight.numpy() if weight.ndim == 4 else weight.reshape(-1, channels, size, size).numpy())


def responses(
    backbone: Backbone,
    layer: str,
    images: ImageRows,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device,
) -> Iterator[NDArray[np.float32]]:
    """Yields float32 [B, L]: each image's largest response of every channel, before the ReLU, wherever in the image."""
    backbone.to(device).eval()
    with caught(backbone, layer) as found:
        for start in range(0, images.shape[0], batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            with torch.inference_mode():
                backbone(normalise(to_float(batch), mean, std))
                output = found[-1]
                yield (output.amax(dim=(2, 3)) if output.ndim == 4 else output).float().cpu().numpy()


def exciting_images(
    backbone: Backbone,
    layer: str,
    channels: Sequence[int],
    *,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    steps: int,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[NDArray[np.uint8]]:
    """Yields `steps` times uint8 [K, C, S, S]: for each channel an image, from noise, that excites it more and more.

    The objective is the paper's: the cross-entropy between the channel and the others of its layer, of the responses
    averaged over the image. Regularised as by Yosinski et al. (2015): pixels decay towards the mean, the image is
    blurred every few steps; and it is kept within the colours that there are.
    """
    backbone.to(device).eval().requires_grad_(False)
    mean_C11, std_C11 = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    noise_KCSS = torch.randn((len(channels), *shape), generator=generator).to(device) * 0.3
    image_KCSS = noise_KCSS.clamp(-mean_C11 / std_C11, (1 - mean_C11) / std_C11)
    wanted_K = torch.tensor(channels, device=device)
    with caught(backbone, layer) as found:
        for step in range(1, steps + 1):
            image_KCSS.requires_grad_(True)
            backbone(image_KCSS)
            mean_KL = found[-1].mean(dim=(2, 3)) if found[-1].ndim == 4 else found[-1]
            loss = nn.functional.cross_entropy(mean_KL, wanted_K, reduction="sum")
            (gradient_KCSS,) = torch.autograd.grad(loss, image_KCSS)
            largest_K111 = gradient_KCSS.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            with torch.no_grad():
                image_KCSS = (image_KCSS - STEP * gradient_KCSS / largest_K111) * (1 - DECAY)
                if step % BLUR_EVERY == 0 and step < steps:
                    image_KCSS = _blurred(image_KCSS)
                image_KCSS = image_KCSS.clamp(-mean_C11 / std_C11, (1 - mean_C11) / std_C11)
                pixels = (image_KCSS * std_C11 + mean_C11) * 255
            yield pixels.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


@contextmanager
def caught(backbone: Backbone, layer: str) -> Iterator[list[Tensor]]:
    """A list whose last entry is what the layer gave in the latest pass."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        found[:] = [output]

    hook = layers(backbone)[layer].register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _blurred(images_KCSS: Tensor) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    blurred: Tensor = gaussian_blur(images_KCSS, [3, 3], [BLUR_SIGMA, BLUR_SIGMA])
    return blurred
