"""Losses on logits (N, 1, H, W), one value per image: (N,).

Masks (N, 1, H, W) in [0, 1] hold the share of a pixel that is car. All losses but `lovasz_hinge` are lowest where the
probability p is that share t. What follows the `*` in a signature is set in the configuration, in the loss's own class.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from carvana.config import LossConfig
from carvana.training.contour import contour_distance

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SURE = 20.0  # a logit whose probability is 1 in float32
pixel_bce = partial(F.binary_cross_entropy_with_logits, reduction="none")


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, mean over pixels; at p = t it is the entropy of t, 0 for whole pixels."""
    return pixel_bce(logits, masks).flatten(1).mean(1)


def soft_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2)), per image; 0 for an empty mask predicted empty.

    Without the squares (Milletari et al., V-Net, 2016) a pixel half covered by the car would be pushed to 1.
    """
    return 1 - _dice_score(logits.sigmoid(), masks)


def bce_log_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`bce` - log(soft Dice score), steeper than `bce` + `soft_dice` while the masks hardly overlap.

    After Iglovikov and Shvets, TernausNet, 2018, who take the log of the Jaccard score.
    """
    return bce(logits, masks) - _dice_score(logits.sigmoid(), masks).log()


def border_bce_dice(logits: torch.Tensor, masks: torch.Tensor, *, ring: int, emphasis: float) -> torch.Tensor:
    """`bce` + `soft_dice`, in which the pixels within `ring` pixels of the contour weigh `emphasis`, others 1.

    The loss of the Carvana winners (asanakoy et al., 2017: rings of 10 pixels at 3), who squared the weights in Dice;
    here they are not. They have mean 1 in each image.
    """
    weights = torch.where(contour_distance(masks, ring) < ring, emphasis, 1.0)
    weights = weights / weights.mean((1, 2, 3), keepdim=True)
    cross_entropy = (weights * pixel_bce(logits, masks)).flatten(1).mean(1)
    roots = weights.sqrt()  # each sum of Dice is of products of two factors
    return cross_entropy + 1 - _dice_score(roots * logits.sigmoid(), roots * masks)


def focal(logits: torch.Tensor, masks: torch.Tensor, *, gamma: float, alpha: float) -> torch.Tensor:
    """|t - p|^gamma times cross-entropy, mean over pixels; car pixels weigh `alpha`, background 1 - alpha.

    Lin et al., 2017 (there alpha is 0.25), whose 1 - p_t is |t - p| for whole pixels; for others it is the quality
    focal loss of Li et al., 2020: 0 at p = t.
    """
    errors = (masks - logits.sigmoid()).abs().clamp(min=1e-6)  # below gamma = 1 the slope of a power at 0 is infinite
    balance = alpha * masks + (1 - alpha) * (1 - masks)
    return (balance * errors**gamma * pixel_bce(logits, masks)).flatten(1).mean(1)


def tversky(logits: torch.Tensor, masks: torch.Tensor, *, alpha: float, beta: float) -> torch.Tensor:
    """1 - TP / (TP + alpha FP + beta FN), per image; a beta above alpha favours finding too much over too little.

    Salehi et al., 2017, for whole pixels. For others TP = min(p, t), FP = max(p - t, 0) and FN = max(t - p, 0)
    (Wang et al., Jaccard metric losses, 2023) keep the minimum, 0, at p = t for any alpha and beta.
    """
    surplus = (logits.sigmoid() - masks).flatten(1)
    extra, missed = F.relu(surplus).sum(1), F.relu(-surplus).sum(1)
    hits = masks.flatten(1).sum(1) - missed
    return 1 - (hits + 1) / (hits + alpha * extra + beta * missed + 1)


def lovasz_hinge(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Lovasz extension of the Jaccard loss over hinge errors (Berman et al., 2018), per image.

    A set function knows no shares: a pixel is car from a coverage of one half, so at 0.3 the minimum is p = 0.
    It is 0 if each logit has the right sign and is 1 or more from 0. An empty mask costs its worst pixel.
    """
    car = masks >= 0.5
    errors = F.relu(1 - torch.where(car, logits, -logits)).flatten(1)
    steps = [_jaccard_steps(*image) for image in zip(errors.detach(), car.flatten(1), strict=True)]
    return (errors * torch.stack(steps)).sum(1)


def boundary(logits: torch.Tensor, masks: torch.Tensor, *, width: int) -> torch.Tensor:
    """mean(|d| |p - t|), d the distance to the contour in units of `width` pixels, at most 1.

    For whole pixels this is mean(d (p - t)) with d negative inside the car, the loss of Kervadec et al., 2019, plus a
    constant. Without any contour |d| is 1. The contour itself costs next to nothing: to be added to another loss.
    """
    distance = contour_distance(masks, width) / width
    return (distance * (logits.sigmoid() - masks).abs()).flatten(1).mean(1)


ALL = bce, soft_dice, bce_log_dice, border_bce_dice, focal, tversky, lovasz_hinge, boundary
LOSSES: dict[str, Callable[..., torch.Tensor]] = {loss.__name__: loss for loss in ALL}


def weighted_sum(config: LossConfig) -> Loss:
    """The configured terms times their weights, in float32 whatever the network's precision.

    Masks may be (N, 2, H, W): where the second layer is one half or more, pixels are disputed, and count as if the
    network were right and sure of it, by whole pixels; they have no gradient.

    Logits may be (N, C, H, W) for masks (N, 1, H, W): channel 0 final, then those of coarser levels (deep
    supervision). The losses of the channels are then averaged, weighing 1, 1/2, 1/4 ...
    """
    settings = {name: term.model_dump() for name, term in config.terms.items()}
    terms = [(options.pop("weight"), partial(LOSSES[name], **options)) for name, options in settings.items()]

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        logits, masks = logits.float(), masks.float()
        if masks.shape[1] == 2:
            logits, masks = settle_disputed(logits, *masks.split(1, dim=1))
        levels = [sum(weight * term(level, masks) for weight, term in terms) for level in logits.split(1, dim=1)]
        shares = [0.5**depth for depth in range(len(levels))]
        return sum(share * level for share, level in zip(shares, levels, strict=True)) / sum(shares)

    return loss


def settle_disputed(logits: torch.Tensor, masks: torch.Tensor, disputed: torch.Tensor) -> tuple:
    """Logits and masks in which disputed pixels are whole and right: no loss has anything to ask of them."""
    disputed, car = disputed >= 0.5, (masks >= 0.5).float()
    return torch.where(disputed, SURE * (2 * car - 1), logits), torch.where(disputed, car, masks)


def _dice_score(probs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(N,) in (0, 1]."""
    overlap, total = (probs * masks).flatten(1).sum(1), (probs.square() + masks.square()).flatten(1).sum(1)
    return (2 * overlap + 1) / (total + 1)  # + 1 is one pixel more of each: it matters only without any car


def _jaccard_steps(errors: torch.Tensor, car: torch.Tensor) -> torch.Tensor:
    """What each pixel adds to the Jaccard loss when pixels turn wrong one by one, largest error first; all (P,)."""
    wrong = errors.nonzero().squeeze(1)  # soon few: the order of pixels without an error does not matter
    bits = errors.float().view(torch.int32)  # in the order of the floats, as none is negative; sorted 7 times faster
    order = wrong[(-bits.index_select(0, wrong)).sort().indices]
    missed = car.index_select(0, order)
    overlap = car.sum() - missed.cumsum(0, dtype=torch.float32)
    union = overlap + torch.arange(1, len(order) + 1, device=order.device)
    # The differences of successive overlap / union, which would lose their digits if subtracted: a missed pixel
    # leaves the overlap, a surplus one enters the union. 0 / 0 is the first surplus pixel of an empty mask.
    steps = torch.where(missed, 1, (overlap / (union - 1)).nan_to_num(1)) / union
    return steps.new_zeros(len(errors)).scatter_(0, order, steps)
