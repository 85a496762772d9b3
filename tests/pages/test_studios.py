"""Cars are put into studios by what is around them, whatever the car and the exposure."""

import cv2
import numpy as np
import pytest

from carvana.data.images import open_test
from carvana.pages.studios import find_studios

FLOORS = {"beige": (215, 205, 185), "gray": (185, 190, 200), "dark": (110, 110, 115), "alone": (160, 200, 160)}
CARS = {"beige": "bdfhj", "gray": "acg", "dark": "eik", "alone": "l"}


def write_car(folder, car: str, floor: tuple[int, int, int]) -> None:
    """Two photos of a car in its own colour before a white wall, in its own light."""
    rng = np.random.default_rng(ord(car))
    photo = np.full((160, 240, 3), 240.0)
    photo[70:] = floor
    photo *= rng.uniform(0.9, 1.05)
    for angle in (1, 9):
        photo[60:130, 60:180] = rng.uniform(0, 255, 3)
        noisy = (photo + rng.normal(0, 6, photo.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{car}_{angle:02d}.jpg"), noisy[..., ::-1])


@pytest.fixture
def roots(tmp_path) -> list:
    """Cars a to f, and g to l."""
    for root, cars in (("first", "abcdef"), ("second", "ghijkl")):
        (tmp_path / root / "test").mkdir(parents=True)
        for studio, floor in FLOORS.items():
            for car in set(cars) & set(CARS[studio]):
                write_car(tmp_path / root / "test", car, floor)
    return [tmp_path / "first", tmp_path / "second"]


def test_studios_are_named_by_how_many_cars_of_all_parts_they_have(roots):
    sources = [open_test(root) for root in roots]
    studios = find_studios(sources)
    names = ["studio 1", "studio 2", "studio 3", "others"]
    assert studios.to_dict() == {car: name for name, cars in zip(names, CARS.values(), strict=True) for car in cars}
    assert studios.cat.categories.tolist() == names
    assert find_studios(sources[::-1]).equals(studios)
    assert find_studios([sources[0].select("a")]).to_dict() == {"a": "others"}
