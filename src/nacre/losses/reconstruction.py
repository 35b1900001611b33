"""The term this project exists for: the image against its reconstruction.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nacre.losses.loss import Step, Term


@dataclass(frozen=True)
class Reconstruction(Term):
    """Fraction of variance unexplained: 0 is a perfect copy, 1 is no better than the mean image.

    The claim is patent application CN113222100A's; this formula is the project's own. Pixels are compared in units of the
    channel's standard deviation over the training images of stage 1 (see `Normalise`), so a weight means the same at every
    size and number of channels. The target is the augmented image that the network saw; with
    Cutout, MixUp or CutMix that image as it was before, in the same geometry.
    """

    decodes = True
    other: bool = False
    """Ask for the next image of the batch instead, as a control."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over pixels, channels and batch; 0 or more."""
        assert step.out.reconstruction is not None, "reconstruction needs a model with a decoder"
        target = step.batch.clean
        return unexplained(step.out.reconstruction, target.roll(1, 0) if self.other else target)

    def concern(self, mean: float, progress: float) -> str | None:
        """Warn of a decoder that is no better than the mean image after a tenth of the phase."""
        if progress < 0.1 or mean < 1 or self.other:
            return None
        return (
            f"the reconstruction explains nothing of the images yet (unexplained variance {mean:.2f}, 1 is the mean image): "
            "lower the learning rate, train longer, or lower the weight of the term"
        )


@dataclass(frozen=True)
class StoppedReconstruction(Term):
    """The same number, from which the decoder learns and the backbone does not."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over pixels, channels and batch; 0 or more."""
        assert step.model.decoder is not None, "reconstruction needs a model with a decoder"
        return unexplained(step.model.decoder.of([m.detach().float() for m in step.out.maps]), step.batch.clean)


def unexplained(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of normalised images [B, C, H, W]: a scalar, in units of the variance."""
    return (reconstruction - images).square().mean()
