"""Saves an encoder's ImageNet weights, for machines without timm's hub: `model.weights=FOLDER` takes them from there.

`python src/save_weights.py resnet34 --output weights` writes `weights/resnet34.safetensors`.
"""

from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import save_file

from carvana.command import run
from carvana.log import replacing
from carvana.models.encoder import create_encoder


def main(
    encoder: Annotated[str, typer.Argument(help="Name of a timm encoder, such as resnet34.")],
    output: Annotated[Path, typer.Option(help="Folder to write <encoder>.safetensors into.")],
    weights: Annotated[
        str | None, typer.Option(help="File, folder or package:NAME to take them from; by default timm's hub.")
    ] = None,
) -> None:
    state = create_encoder(encoder, pretrained=True, weights=weights).state_dict()
    file = output / f"{encoder}.safetensors"
    with replacing(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    print(f"{file}: {len(state)} tensors, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
