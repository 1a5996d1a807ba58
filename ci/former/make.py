"""Made ci/former with the code of bf548c0, before fields of the recipe were renamed: `python make.py PLACE`,
once, with that checkout on PYTHONPATH.

Numbers are rounded to 4 bits of mantissa, so that files are small once they are packed; everything else is
as that code wrote it.
The reference is what that code made of the rounded files.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SMALL = (
    "--scale thimble --data shapes --labels coco --fpn-channels 8 --head-convs 1 --optimizer sgd --lr 0.02 "
    "--total-batch 2 --seed 3 --log-every 1 --device cpu"
).split()
FINISHED = (
    "--method rotated-atss --match hull --inside-box true --centre-radius 2 --anchors-per-place 2 "
    "--assigner own --angle-version oc --steps 4"
).split()
WEIGHTS = (
    "--method madet --assigner mutual --weigh-no false --detached true --clip-free true --steps 2"
).split()
UNFINISHED = (
    "--method rotated-madet --match hull --assigner mutual --weigh-yes false --ask-padding false "
    "--detached true --refit own --steps 8 --save-every 4"
).split()


def madet(*words):
    return [sys.executable, "-m", "madet", *map(str, words)]


def rounded(value):
    """Tensors of float32 with 19 of 23 bits of mantissa cleared, wherever they are in `value`."""
    if isinstance(value, dict):
        return type(value)((key, rounded(item)) for key, item in value.items())
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if torch.is_tensor(value) and value.dtype == torch.float32:
        return (
            (value.contiguous().view(torch.int32) & ~0x7FFFF).view(torch.float32).view(value.shape)
        )
    return value


def round_weights(path):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(rounded(load_file(path)), path, about)


def stop_after(step, out, words):
    child = subprocess.Popen(
        madet("train", "--out", out, *words), stderr=subprocess.PIPE, text=True
    )
    log = Path(out, "log.jsonl")
    while child.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= step:
            child.send_signal(signal.SIGINT)
            break
        time.sleep(0.002)
    print(child.communicate()[1].splitlines()[-1])


def processor():
    """Maker, family and model number of the processor, and what torch uses of it: machines of one kind round alike."""
    facts = {}
    about = Path("/proc/cpuinfo")  # Linux alone has it; elsewhere nothing is compared bit for bit
    for line in about.read_text().splitlines() if about.is_file() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    kind = " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return f"{kind} {torch.backends.cpu.get_cpu_capability()}"


def digest(path):
    """(hash of all tensors, {name: shape, sum of absolute values, first four numbers})."""
    tensors, whole, parts = load_file(path), hashlib.sha256(), {}
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().float()
        whole.update(name.encode() + tensor.numpy().tobytes())
        parts[name] = [float(tensor.abs().sum()), *tensor.flatten()[:4].tolist()]
    return whole.hexdigest()[:16], parts


def losses_of(path):
    """What a loaded detector loses on one image of noise with one object."""
    from madet.reports.methods import detector_from

    model, _, _ = detector_from(path)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    box = model.boxes.from_upright(torch.tensor([[8.0, 8.0, 40.0, 36.0]]))
    losses = model.train()([image], [{"boxes": box, "labels": torch.tensor([1])}])
    return {name: value.item() for name, value in losses.items()}


def jobs_of(path):
    """{folder name: recipe} of the rows of a grid."""
    from madet.reports.grid import read_grid
    from madet.reports.methods import recipe_of
    from madet.reports.table_command import plan

    from madet.training.recipe import merge

    jobs, _ = plan(read_grid(path), "thimble", [1], {"match": "hull"}, ".", ["rotated*"])
    jobs += plan(read_grid(path), "thimble", [1], {}, ".")[0]
    flat = [{k: v for k, v in job.params.items() if k != "scale"} for job in jobs]
    return {job.name: merge(*recipe_of("thimble", one)[1:]) for job, one in zip(jobs, flat)}


def pack(folder, names, to):
    with tarfile.open(to, "w:xz", preset=9) as file:
        for name in names:
            file.add(f"{folder}/{name}", f"{Path(folder).name}/{name}")


def main(place):
    os.chdir(place)
    subprocess.run(
        madet("data", "make", "--level", "easy", "--count", 12, "--out", "shapes"), check=True
    )
    subprocess.run(madet("train", "--out", "finished", *FINISHED, *SMALL), check=True)
    subprocess.run(madet("train", "--out", "weights", *WEIGHTS, *SMALL), check=True)
    stop_after(3, "unfinished", [*UNFINISHED, *SMALL])
    os.rename("weights/best.safetensors", "weights.safetensors")
    for path in ("finished/best.safetensors", "weights.safetensors"):
        round_weights(path)
    last = torch.load("unfinished/last.pt", weights_only=True)
    torch.save(rounded(last), "unfinished/last.pt")
    Path("former").mkdir(exist_ok=True)
    pack(
        "finished",
        ["params.json", "env.json", "log.jsonl", "metrics.json", "best.safetensors"],
        "former/finished.tar.xz",
    )
    pack(
        "unfinished",
        ["params.json", "env.json", "log.jsonl", "last.pt"],
        "former/unfinished.tar.xz",
    )
    pack(".", ["weights.safetensors"], "former/weights.tar.xz")
    shutil.copytree("unfinished", "resumed", dirs_exist_ok=True)
    subprocess.run(
        madet(
            "train",
            "--out",
            "resumed",
            "--resume",
            "--method",
            "rotated-madet",
            "--weigh-yes",
            "false",
            "--match",
            "hull",
            "--device",
            "cpu",
        ),
        check=True,
    )
    whole, parts = digest("resumed/best.safetensors")
    shutil.copy(Path(__file__).with_name("grid.csv"), "former/grid.csv")
    reference = dict(
        commit="bf548c0",
        torch=torch.__version__,
        steps_resumed_from=last["step"],
        weights={processor(): whole},
        tensors=parts,
        losses=[
            json.loads(line).get("loss")
            for line in Path("resumed/log.jsonl").read_text().splitlines()
        ],
        loaded={path: losses_of(path) for path in ("finished", "weights.safetensors")},
        jobs=jobs_of("former/grid.csv"),
    )
    Path("former/reference.json").write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
