"""Changes of brightness and colour, batched on the images' own device; every image with a strength of its own.

Images are float [N, C, H, W] in [0, 1] with one channel or three (red, green, blue), and so are the results. What each
change means is as in torchvision (ColorJitter, Grayscale, autocontrast, equalize). Shapes: N images, C channels,
H height, W width, P = H x W pixels, L = 256 levels.
"""

import torch
from torch import Tensor

LEVELS = 256
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, to torchvision's digits


def brighten(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Times the factor, cut at 1; factors >= 0."""
    return images_NCHW.mul(_per_image(factor_N)).clamp_(0, 1)


def contrast(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Distances to the image's mean grey times the factor, cut to [0, 1]; factors >= 0, and 0 leaves the mean alone."""
    mean_N111 = _grey(images_NCHW).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean_N111, images_NCHW, _per_image(factor_N)).clamp_(0, 1)


def saturate(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Distances to each pixel's grey times the factor, cut to [0, 1]; one channel stays as it is."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    return torch.lerp(_grey(images_NCHW), images_NCHW, _per_image(factor_N)).clamp_(0, 1)


def turn_hue(images_NCHW: Tensor, turn_N: Tensor) -> Tensor:
    """Hues moved along the colour circle, where 1 is a full turn; value and saturation (HSV) stay, so greys do too.

    One channel stays as it is.
    """
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    value_N1HW, least_N1HW = images_NCHW.amax(1, keepdim=True), images_NCHW.amin(1, keepdim=True)
    chroma_N1HW = value_N1HW - least_N1HW
    sixths_N1HW = _hue(images_NCHW, value_N1HW, chroma_N1HW) + 6 * _per_image(turn_N)
    # how far each channel lies below the value, as a share of the chroma: one trapezium over the hue, shifted
    shift_311 = torch.arange(5, 0, -2, device=images_NCHW.device).view(3, 1, 1)
    place_N3HW = (sixths_N1HW + shift_311).remainder_(6)
    below_N3HW = place_N3HW.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value_N1HW, chroma_N1HW, below_N3HW, value=-1).clamp_(0, 1)


def to_grey(images_NCHW: Tensor) -> Tensor:
    """Every channel the pixel's grey; one channel stays as it is."""
    return _grey(images_NCHW).expand_as(images_NCHW)


def autocontrast(images_NCHW: Tensor) -> Tensor:
    """Each channel stretched so that its darkest value is 0 and its brightest 1; a constant one stays as it is."""
    low_NC11, high_NC11 = images_NCHW.amin((2, 3), keepdim=True), images_NCHW.amax((2, 3), keepdim=True)
    varies_NC11 = high_NC11 > low_NC11
    span_NC11 = torch.where(varies_NC11, high_NC11 - low_NC11, 1)
    return images_NCHW.sub(torch.where(varies_NC11, low_NC11, 0)).div_(span_NC11)


def equalize(images_NCHW: Tensor) -> Tensor:
    """Each channel's histogram made flat: its levels round(255 x) mapped to levels, by PIL's integer rule.

    The rule maps a level to the number of darker pixels, in steps of 1/255 of those darker than the brightest level;
    where there are fewer than 255 of these, as in images of 8 x 8 pixels or of one value, levels stay as they are.
    """
    count, channels, height, width = images_NCHW.shape
    levels_NCP = images_NCHW.mul(255).round_().clamp_(0, 255).long().flatten(2)
    sizes_NCL = levels_NCP.new_zeros(count, channels, LEVELS)
    sizes_NCL.scatter_add_(2, levels_NCP, levels_NCP.new_ones(1, 1, 1).expand_as(levels_NCP))
    darker_NCL = sizes_NCL.cumsum(2) - sizes_NCL
    brightest_NC1 = levels_NCP.amax(2, keepdim=True)
    step_NC1 = darker_NCL.gather(2, brightest_NC1) // 255
    mapped_NCL = ((darker_NCL + step_NC1 // 2) // step_NC1.clamp(min=1)).clamp_(max=255)
    same_L = torch.arange(LEVELS, device=levels_NCP.device)
    table_NCL = torch.where(step_NC1 > 0, mapped_NCL, same_L).to(images_NCHW.dtype).div_(255)
    return table_NCL.gather(2, levels_NCP).view(count, channels, height, width)


def _per_image(values_N: Tensor) -> Tensor:
    return values_N.view(-1, 1, 1, 1)


def _channels(images_NCHW: Tensor) -> tuple[Tensor, ...]:
    """Each channel as [N, 1, H, W]."""
    return images_NCHW.unsqueeze(2).unbind(1)


def _grey(images_NCHW: Tensor) -> Tensor:
    """Weighted mean of the channels, [N, 1, H, W]."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    red, green, blue = (weight * channel for weight, channel in zip(GREY_WEIGHTS, _channels(images_NCHW), strict=True))
    return red + green + blue


def _hue(images_NCHW: Tensor, value_N1HW: Tensor, chroma_N1HW: Tensor) -> Tensor:
    """Hue in sixths of a turn from red, [N, 1, H, W]; 0 for greys."""
    red, green, blue = _channels(images_NCHW)
    chroma = torch.where(chroma_N1HW > 0, chroma_N1HW, 1)
    of_green_or_blue = torch.where(value_N1HW == green, (blue - red) / chroma + 2, (red - green) / chroma + 4)
    return torch.where(value_N1HW == red, (green - blue) / chroma, of_green_or_blue)
