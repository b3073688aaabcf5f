"""The scalings that published classifiers were trained with, in families of which one member stands for the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

UNIT = 1 / 255
CAFFE_SCALE = 0.017  # MobileNet and DenseNet in Caffe
RARE = 1.0  # nats, a factor of e
COMMON = ("0..1", "0..255", "-1..1", "ImageNet mean and std", "MNIST mean and std", "0..255 less Caffe mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """value = (pixel * scale - mean) / std; mean and std in RGB order, one value for each channel."""

    name: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def in_order(self, channels: str) -> Scaling:
        """With mean and std in the channel order RGB, BGR or GRAY."""
        return replace(self, mean=self.mean[::-1], std=self.std[::-1]) if channels == "BGR" else self


def _colour(name: str, scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Scaling:
    return Scaling(name=name, scale=scale, mean=mean, std=std)


def _even(name: str, scale: float, mean: float, std: float, channels: int = 3) -> Scaling:
    return Scaling(name=name, scale=scale, mean=(mean,) * channels, std=(std,) * channels)


IMAGENET_MEAN, CIFAR_MEAN = (0.485, 0.456, 0.406), (0.4914, 0.4822, 0.4465)
CAFFE_MEAN = (123.68, 116.779, 103.939)
# The first of each family is tried first; its relatives are, where it does well.
COLOUR_FAMILIES: tuple[tuple[Scaling, ...], ...] = (
    (_even("0..1", UNIT, 0, 1),),
    (_even("0..255", 1, 0, 1),),
    (_even("-1..1", 1 / 127.5, 1, 1),),
    (
        _colour("ImageNet mean and std", UNIT, IMAGENET_MEAN, (0.229, 0.224, 0.225)),
        _colour("CIFAR-10 mean and std", UNIT, CIFAR_MEAN, (0.2470, 0.2435, 0.2616)),
        _colour("CIFAR-10 mean, std of single images", UNIT, CIFAR_MEAN, (0.2023, 0.1994, 0.2010)),
        _colour("ImageNet mean, std 0.225", UNIT, IMAGENET_MEAN, (0.225, 0.225, 0.225)),
        _colour("CIFAR-100 mean and std", UNIT, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        _colour("CLIP mean and std", UNIT, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        _colour("GTSRB mean and std", UNIT, (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
        _colour("SVHN mean and std", UNIT, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        _colour("Caffe mean, times 0.017", 1, CAFFE_MEAN, (1 / CAFFE_SCALE,) * 3),
    ),
    (
        _colour("0..255 less Caffe mean", 1, CAFFE_MEAN, (1, 1, 1)),
        _even("0..255 less 128", 1, 128, 1),
    ),
    (
        _even("-0.5..0.5", UNIT, 0.5, 1),
        _colour("0..1 less CIFAR-10 mean", UNIT, CIFAR_MEAN, (1, 1, 1)),
    ),
)
GRAY_FAMILIES: tuple[tuple[Scaling, ...], ...] = (
    (_even("0..1", UNIT, 0, 1, 1),),
    (_even("0..255", 1, 0, 1, 1),),
    (_even("-1..1", 1 / 127.5, 1, 1, 1),),
    (
        _even("MNIST mean and std", UNIT, 0.1307, 0.3081, 1),
        _even("Fashion-MNIST mean and std", UNIT, 0.2860, 0.3530, 1),
    ),
    (_even("0..255 less 128", 1, 128, 1, 1),),
    (_even("-0.5..0.5", UNIT, 0.5, 1, 1),),
    (_even("0..16", 16 / 255, 0, 1, 1),),  # scikit-learn's digits
)
# Integer inputs hold the pixels themselves.
INTEGER_SCALINGS = {"uint8": ("0..255", 0.0), "int8": ("-128..127", 128.0)}


def families(dtype: str, channels: int) -> tuple[tuple[Scaling, ...], ...]:
    """What is tried for an input of this type with 1 or 3 channels."""
    if dtype in INTEGER_SCALINGS:
        name, mean = INTEGER_SCALINGS[dtype]
        return ((_even(name, 1.0, mean, 1.0, channels),),)
    return GRAY_FAMILIES if channels == 1 else COLOUR_FAMILIES


def find(scale: float, mean: tuple[float, ...], std: tuple[float, ...], channels: str) -> Scaling | None:
    """The published scaling with these figures in a channel order; None where there is none."""
    for family in (*COLOUR_FAMILIES, *GRAY_FAMILIES):
        for scaling in family:
            ordered = scaling.in_order(channels)
            if (ordered.scale, ordered.mean, ordered.std) == (scale, mean, std):
                return scaling
    return None


def rarity(scaling: Scaling, channels: str) -> float:
    """Nats by which a scaling is taken for rarer than the common ones: it decides only what images leave open.

    The common ones are the plain ranges and the mean and std that torchvision and most tutorials use; BGR comes
    from Caffe, with Caffe's mean.
    """
    common = scaling.name in COMMON
    at_home = (channels == "BGR") == scaling.name.startswith(("Caffe", "0..255 less Caffe"))
    return (0.0 if common else RARE) + (0.0 if at_home or channels == "GRAY" else RARE)
