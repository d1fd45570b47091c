"""Every mistake gets one line that names the value and what would be valid, a non-zero exit code, and no files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


def assert_refused(outcome, *parts):
    assert outcome.code == 1
    assert outcome.err.startswith("saccade: ") and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["classification/quickstrt"], ["'classification/quickstrt'", "did you mean classification/quickstart"]),
        (["quickstart"], ["'quickstart'", "classification/quickstart"]),
        (["nowhere.yaml"], ["nowhere.yaml"]),
        (["optimizer.lrr=1"], ["'optimizer.lrr'", "did you mean optimizer.lr "]),
        (["lr=1"], ["'lr'", "optimizer.lr"]),
        (["+extra=1"], ["extra"]),
        (["optimizer=adamv"], ["'optimizer/adamv'", "adamw, adamw_dense, mask2former, sgd"]),
        (["optimizer.lr=[1"], ["'optimizer.lr=[1'", "key=value"]),
        (["batch_size=many"], ["batch_size", "many", "Integer"]),
        (["batch_size=0"], ["batch_size=0", "at least 1"]),
        (["batch_size=5000"], ["batch_size=5000", "1437 images"]),
        (["runtime.max_batch_per_process=32", "batch_size=67"], ["batch_size=67", "max_batch_per_process=32"]),
        (["model.name=nat_nanoo"], ["'nat_nanoo'", "nat_nano"]),
        (["model.name=nat_mini.shi"], ["'shi'", "shi_in1k"]),
        (["model.name=nat_nano", "+model.kwargs.windw=3"], ["model.kwargs", "windw"]),
        (["model.mixer=agnet"], ["model.mixer", "'agnet'", "did you mean agent"]),
        (["model.mixer=[na,na,na,naa]"], ["model.mixer", "'naa'"]),
        (["model.mixer=[na,agent]"], ["model.mixer=['na', 'agent']", "one for each of 4 stages"]),
        (["model.mixer=agent", "+model.mixer_kwargs.agents=4"], ["agents=4", "mixer 'agent'", "agent_num"]),
        (["model.mixer=agent", "model.name=van_b0"], ["van_b0 takes no mixer", "pyramid_tiny", "NAT's"]),
        (["+model.mixer_kwargs.window=3", "model.name=resnet18"], ["resnet18 takes no mixer", "pyramid_tiny"]),
        (["model.num_classes=9"], ["model.num_classes=9", "10 classes"]),
        (["model.weights=nowhere.pth"], ["model.weights=nowhere.pth"]),
        (["optimizer.name=adamww"], ["'adamww'", "adamw"]),
        (["+optimizer.kwargs.bets=1"], ["optimizer.name=adamw", "bets"]),
        (["schedule.name=cosin"], ["schedule.name=cosin", "constant, cosine, multistep, poly, step, tanh"]),
        (["schedule.warmup_epochs=-1"], ["schedule.warmup_epochs=-1"]),
        (["data.kind=mnist"], ["data.kind=mnist", "digits, folder"]),
        (["data=folder"], ["data.root"]),
        (["data=folder", "data.root=nowhere"], ["data.root=nowhere"]),
        (["data.input_size=[32,32]"], ["data.input_size=[32, 32]", "[3, height, width]"]),
        (["data.mean=[0.5,0.5]"], ["data.mean=[0.5, 0.5]"]),
        (["data.interpolation=cubic"], ["data.interpolation=cubic", "bicubic"]),
        (["augment.auto_augment=rand-z9"], ["augment.auto_augment=rand-z9"]),
        (["augment.mixup=0.8", "batch_size=63"], ["augment.mixup=0.8", "63"]),
        (["augment.mix_mode=half"], ["augment.mix_mode=half", "batch, elem, pair"]),
        (["runtime.device=tpu"], ["runtime.device=tpu", "auto, cpu, cuda"]),
        (["runtime.precision=fp16"], ["runtime.precision=fp16", "float16"]),
        (["resume=nowhere"], ["resume=nowhere"]),
        (["resume=."], ["resume=.", "no complete checkpoint"]),
    ],
)
def test_training_settings(saccade, tmp_path, words, parts):
    assert_refused(saccade("train", *words), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_no_gpu(saccade):
    assert_refused(saccade("train", "runtime.device=cuda"), "runtime.device=cuda", "0 GPUs")


def test_evaluation_settings(saccade):
    assert_refused(saccade("evaluate"), "no run of classification/quickstart", "checkpoint=")
    assert_refused(saccade("evaluate", "checkpoint=nowhere"), "checkpoint=nowhere")
    assert_refused(saccade("evaluate", "checkpoint=."), "checkpoint=.", "no complete checkpoint")


@pytest.fixture
def copy(image_folder, tmp_path_factory):
    """A copy of the image folder to spoil, with the words that train on it."""
    root = tmp_path_factory.mktemp("spoilt") / "images"
    shutil.copytree(image_folder, root)
    words = ["data=folder", f"data.root={root}", "data.workers=0", "data.input_size=[3,32,32]", "batch_size=8"]
    return root, [*words, "schedule.epochs=1", "schedule.warmup_epochs=0", "runtime.threads=1"]


def test_folders(saccade, copy, tmp_path):
    root, words = copy
    assert_refused(saccade("train", *words, "data.train_split=training"), f"{root}/training")
    for file in (root / "train" / "green").iterdir():
        file.unlink()
    assert_refused(saccade("train", *words), f"{root}/train", "green")
    (root / "train" / "green").rmdir()
    assert_refused(saccade("train", *words), "with also green", "3", "2")
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    assert_refused(saccade("train", *words), "no class folders")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image(saccade, copy, workers):
    root, words = copy
    victim = root / "train" / "red" / "3.png"
    victim.write_bytes(victim.read_bytes()[:200])
    words = [word for word in words if not word.startswith("data.workers")] + [f"data.workers={workers}"]
    assert_refused(saccade("train", *words), str(victim), "replace or remove it")
    victim.write_text("not a picture")
    assert_refused(saccade("train", *words), str(victim))


def test_checkpoints(saccade, small, tmp_path):
    run = tmp_path / "run"
    assert saccade("train", *small, "schedule.epochs=1", f"run.dir={run}").code == 0
    before = (run / "metrics.csv").read_bytes()
    assert_refused(saccade("train", *small, f"run.dir={run}"), f"run.dir={run}", "resume=auto")
    assert (run / "metrics.csv").read_bytes() == before

    again = ["train", f"run.dir={run}", "resume=auto"]
    assert_refused(saccade(*again, "optimizer.lr=0.5"), "optimizer.lr=0.5", "0.00")
    assert_refused(saccade(*again, "model.name=resnet10t"), "model.name=resnet10t", "nat_nano")
    assert_refused(saccade("train", f"resume={run}", "run.dir=other"), f"resume={run}", "run.dir=other")

    file = run / "checkpoints" / "last" / "model.safetensors"
    whole = file.read_bytes()
    state = {key: value.clone() for key, value in load_file(file).items()}  # load_file maps the file
    file.write_bytes(whole[: len(whole) // 2])
    assert_refused(saccade("evaluate", f"checkpoint={run}"), "model.safetensors", "not a readable safetensors file")
    assert_refused(saccade(*again), "model.safetensors")
    head = next(key for key in state if key.endswith("fc.weight"))
    save_file(
        {**{k: v for k, v in state.items() if k != "norm.bias"}, "odd": torch.ones(1), head: torch.ones(7, 7)}, file
    )
    outcome = saccade("evaluate", f"checkpoint={run}")
    assert_refused(outcome, "1 keys missing (norm.bias)", "1 keys unknown (odd)", f"{head} is [7, 7] there")
    file.write_bytes(whole)
    (run / "checkpoints" / "last" / "training.pt").write_bytes(b"PK nonsense")
    assert_refused(saccade(*again), "training.pt", "damaged")
    (run / "checkpoints" / "best" / "checkpoint.json").write_text("{")
    assert_refused(saccade("evaluate", f"checkpoint={run}"), "not a readable checkpoint")
    (run / "config.yaml").write_text("a: [")
    assert_refused(saccade("evaluate", f"checkpoint={run}"), "config.yaml")


def test_foreign_weights_files(saccade, small, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    assert_refused(saccade("evaluate", *small, f"checkpoint={broken}"), "broken.pth")
    other = tmp_path / "other.pth"
    torch.save({"stem.weight": torch.ones(3)}, other)
    assert_refused(saccade("evaluate", *small, f"checkpoint={other}"), "other.pth", "issing")
    assert_refused(saccade("train", *small, f"model.weights={other}"), "other.pth", "issing")
    assert not (tmp_path / "runs").exists()


def test_classes_of_the_weights_and_of_the_data(saccade, small, monkeypatch):
    """Released weights tell 1000 classes apart, the folder has three."""
    monkeypatch.setattr("timm.create_model", lambda name, **kwargs: torch.nn.Module())
    monkeypatch.setattr("torch.nn.Module.num_classes", 1000, raising=False)
    outcome = saccade("evaluate", *small, "model.name=nat_mini", "model.pretrained=true")
    assert_refused(outcome, "nat_mini tells 1000 classes apart", "has 3")


def test_loss_that_is_not_a_number(saccade, small, tmp_path):
    run = tmp_path / "run"
    outcome = saccade(
        "train", *small, "optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=null", f"run.dir={run}"
    )
    assert_refused(outcome, "the training loss is", "optimizer.lr=1e+30")
    assert not (run / "checkpoints").exists()
    assert json.loads((run / "environment.json").read_text())[0]["recipe"] == "classification/quickstart"
