"""How far pixels lie from the outline of the car."""

import torch


def contour_distance(masks: torch.Tensor, reach: int) -> torch.Tensor:
    """Pixels to the car's contour, where coverage crosses one half: 0.5 on either side of it, 1.5 ..., `reach` beyond.

    (N, 1, H, W) to the same. Within 7 % of Euclidean: two steps to 4 neighbours, then one to 8, all on masks of bits.
    """
    car = masks >= 0.5
    near = _grow(car) & _grow(~car)
    distance = (~near).to(torch.uint8)
    for step in range(1, reach):
        near = _grow(near, diagonally=step % 3 == 0)
        distance += ~near
    return (distance + 0.5).clamp(max=reach)


def _grow(region: torch.Tensor, diagonally: bool = False) -> torch.Tensor:
    grown = region.clone()
    grown[:, :, 1:] |= region[:, :, :-1]
    grown[:, :, :-1] |= region[:, :, 1:]
    source = grown.clone() if diagonally else region
    grown[..., 1:] |= source[..., :-1]
    grown[..., :-1] |= source[..., 1:]
    return grown
