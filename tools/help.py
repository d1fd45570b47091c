"""What `saccade --help` and `saccade <verb> --help` say."""

from __future__ import annotations

from .recipe import DEFAULT, describe_recipes

VERBS = {
    "train": "train a model by a recipe, or go on with a run",
    "evaluate": "figures of a run, of a weights file or of released weights",
    "predict": "draw boxes, masks and maps onto pictures",
    "data": "make a data set that needs no download",
    "list": "the models, or the recipes",
    "mixers": "parameters, multiply-adds and latency of every mixer in one body",
    "report": "one table of several runs, such as those of a sweep",
    "benchmark": "times of our operators and models beside the alternatives",
    "checkpoints": "write checkpoints.md, the table of released weights",
}

_TRAIN = """\
usage: saccade train [RECIPE] [KEY=VALUE ...] [--cfg job] [--multirun]

Trains a model by a recipe (default {default}) and keeps everything about the run in one directory: resolved
settings, environment, metrics.csv, throughput.csv, curves.png, log.txt and the checkpoints `last` and `best`.
RECIPE is one of those below or the path of a YAML file of your own; every KEY=VALUE is a Hydra override of it.

examples
  saccade train                                     real digits on a CPU, about a minute
  saccade train model.name=resnet10t                any timm model
  saccade train classification/nat_tiny_in1k data.root=/data/imagenet
  torchrun --nproc-per-node 8 -m saccade.tools train classification/nat_tiny_in1k data.root=/data/imagenet
  saccade train detection/quickstart                shapes that it draws itself, minutes on a CPU (needs: make dense)
  saccade train detection/mask_rcnn_nat_tiny_3x data.root=/data/coco
  saccade train resume=auto                         go on with the newest run of the recipe, bit for bit on a CPU
  saccade train run.dir=runs/mine resume=auto       start it, or go on with it: the form for job queues
  saccade train --cfg job                           print the composed recipe and stop
  saccade train --multirun optimizer.lr=1e-3,5e-4   one run per value; saccade report tells them in one table
  saccade train model.mixer=agent                   NAT-Nano with another token mixer in the place of its own
  saccade train ... --multirun hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node=8
                hydra.launcher.gpus_per_node=8      the same on SLURM (pip install 'saccade[slurm]')

recipes
{recipes}

main keys (--cfg job shows all; data, model, augment and schedule here are classification's)
  batch_size            images per update over all processes; each process's share is split further if it exceeds
                        runtime.max_batch_per_process, and the gradients accumulate
  model.name            a timm name; also model.pretrained, .weights (a file), .drop_path_rate, .kwargs
  model.mixer           a token mixer by name, in pyramid_*, any_*, nat_*; its hyper-parameters: +model.mixer_kwargs.x=1
  data                  digits, or folder: data.root with train/ and val/, a folder per class; data.workers, .input_size
  augment               light, imagenet or finetune; augment.mixup, .cutmix, .auto_augment, .erase_prob, ...
  optimizer             adamw or sgd; optimizer.name (any of timm's), .lr, .weight_decay, .layer_decay, .clip,
                        .ema_decay
  schedule              cosine or constant; schedule.epochs, .warmup_epochs, .cooldown_epochs, .min_lr
  runtime               default or mixed; runtime.device, .precision, .compile, .channels_last, .threads
  logger                csv always; logger=tensorboard, logger=wandb (offline without a login), or both:
                        logger=[tensorboard,wandb]
  run.dir, run.root     the run directory, or where new ones go; run.checkpoint_every=N also saves in mid-epoch
  resume                auto, a run directory or one of its checkpoints
  seed                  of everything random; the same seed and machine give the same numbers

SACCADE_DEBUG=1 shows the full traceback of an error."""

_EVALUATE = """\
usage: saccade evaluate [RECIPE] [checkpoint=PATH | model.pretrained=true] [KEY=VALUE ...]

Prints top-1, top-5 and loss, or box and mask AP, or mIoU, and images per second on a recipe's evaluation images, each
counted once over all processes. What is evaluated, first match:
  checkpoint=RUN        the best weights of a run directory (the average, if the run kept one), under that run's own
                        settings; a path to one checkpoint in it or to one weights file works too
  checkpoint=FILE       any other weights file: a .safetensors of ours or an official .pth, under the recipe's settings
  model.pretrained=true the released weights of model.name, at their own test size, mean, std, interpolation and crop
  nothing               the newest run of the recipe
KEY=VALUE overrides are applied last.

examples
  saccade evaluate                                  the newest quickstart run
  saccade evaluate checkpoint=runs/classification/quickstart/2026-01-31_12-00-00
  saccade evaluate classification/nat_tiny_in1k model.pretrained=true data.root=/data/imagenet
  saccade evaluate classification/nat_tiny_in1k checkpoint=nat_tiny.pth data.root=/data/imagenet
  torchrun --nproc-per-node 8 -m saccade.tools evaluate classification/nat_tiny_in1k model.pretrained=true ...
  saccade evaluate detection/mask_rcnn_nat_tiny_3x checkpoint=nat_tiny_maskrcnn.pth data.root=/data/coco

recipes
{recipes}

main keys: data.root, data.workers, data.input_size, data.crop_pct, runtime.max_batch_per_process (batch size),
runtime.precision, runtime.device, runtime.compile"""

_PREDICT = """\
usage: saccade predict RECIPE|RUN PICTURE ... [out=FOLDER] [score=0.3] [checkpoint=FILE] [KEY=VALUE ...]

Draws what a detector or segmentor finds onto pictures: files of any common format, or folders of them. For each picture
FOLDER (default predictions) receives NAME_predicted.png, NAME_predicted.json with boxes, masks and scores or the
classes' shares, and, for a segmentor, NAME_map.png with the number of each pixel's class. Pictures are never changed.
RUN is a run directory or one of its checkpoints; a RECIPE means its newest run, or checkpoint=FILE. Objects below
score are left out.

examples
  saccade predict detection/quickstart runs/shapes/val2017 out=seen
  saccade predict runs/segmentation/quickstart/2026-01-31_12-00-00 holiday.jpg photos/
  saccade predict detection/mask_rcnn_nat_tiny_3x street.jpg checkpoint=nat_tiny_maskrcnn.pth data.root=."""

_DATA = """\
usage: saccade data shapes root=FOLDER [train=1200] [val=200] [size=128] [seed=0]

Draws pictures of textured shapes (circle, square, triangle, star, cross, ring) on textured grounds (sand, stripes,
checks) into FOLDER, in COCO's layout with boxes and masks and in ADE20K's with semantic maps. The same numbers give the
same pictures. FOLDER must be new or empty.

examples
  saccade data shapes root=shapes
  saccade train detection/quickstart data.root=shapes"""

_LIST = """\
usage: saccade list [PATTERN] [--pretrained]
       saccade list recipes

Lists saccade's models: name, parameters, input size, tags of released weights with their published ImageNet-1k top-1.
PATTERN is part of a name, or a wildcard pattern.

examples
  saccade list
  saccade list 'dinat_s_*' --pretrained
  saccade list recipes"""

_MIXERS = """\
usage: saccade mixers [body=pyramid_tiny] [size=224] [batch=1] [repeats=5]

Builds a body once with every token mixer there is and prints, for each, its parameters, the multiply-adds of one image
(as torch.utils.flop_counter counts them) and the time of a forward pass of the batch on this CPU, in float32. A mixer
that fails is told so in its row. BODY is a model that carries any mixer: pyramid_*, any_*, nat_* and dinat_*.

examples
  saccade mixers
  saccade mixers body=any_swin_tiny batch=8
  saccade mixers body=pyramid_nano size=32"""

_REPORT = """\
usage: saccade report FOLDER

Prints a Markdown table of the classification runs below FOLDER: the settings in which they differ, parameters, top-1 of
the last and of the best epoch, and training time.

examples
  saccade train --multirun model.name=pyramid_nano model.mixer=na,agent,focal
  saccade report runs/classification/quickstart/sweep_2026-01-31_12-00-00"""

_BENCHMARK = """\
usage: saccade benchmark kernels [op=NAME,NAME|all] [baselines=eager,compile] [cases=TEXT] [budget=SECONDS]
       saccade benchmark models [models=A,B] [sizes=224,896] [modes=infer,train,share] [compile=MODE] [budget=SECONDS]
       saccade benchmark accelerate [models=A,B] [size=224] [compile=none,MODE] [depthwise=true|false] [budget=SECONDS]
       saccade benchmark dense [models=A,B] [compile=true|false]

Times operators, models in inference and training, or the training of Mask R-CNN and UPerNet on models (needs: make
dense), beside the alternatives on this machine. All take device=auto|cpu|cuda and out=DIR (default benchmarks), which
receives <name>.json, .csv, .png and, but for dense, .md: tables of the figures and of the marks for one H200, and
whether they are met. What fails says so in its row. A CPU gets reduced sizes: its figures are its own.

kernels    op: neighborhood (default), large_kernel, depthwise, focal, window, linear, agent, gated_linear or all. Ours
           is timed first, then torch's eager formulations and a copy of the same memory, then compiled formulations,
           which take seconds each. budget (default 60) is for those beside ours; cases picks by part of the name.
models     batches of 256 (inference) and 128 (training) images of 224 pixels, at other sizes as many as have the same
           pixels. modes=share times attention alone (RAVLT, MAViT and others made of cores between projections), for
           its share of a step. compile is reduce-overhead (default: CUDA graphs), default, max-autotune or none.
           warm=4 compiles on the GPU in so many processes before; budget ends everything.
accelerate timm's models before and after saccade.accelerate, eager and with CUDA graphs, on images of each model's
           own size unless size= says another, and large depthwise convolutions (torch's and ours), which
           depthwise=false leaves out. In a checkout, out=models/accelerate records the figures where
           saccade.accelerate reads them. warm and budget (default 570) as above.

examples
  saccade benchmark kernels op=neighborhood           the rows of kernels/neighborhood/NOTES.md
  saccade benchmark kernels op=all baselines=eager budget=60
  saccade benchmark models models=nat_tiny,swin_tiny_patch4_window7_224
  saccade benchmark models models=ravlt_small,mavit_small modes=infer,train,share
  saccade benchmark models models=flatten_swin_tiny,swin_tiny_patch4_window7_224 sizes=224,448,896,1792
  saccade benchmark accelerate warm=8                 what saccade.accelerate gains
  saccade benchmark dense                             nat_tiny, van_b2 and focalnet_tiny_srf_fused beside swin_tiny"""

_CHECKPOINTS = """\
usage: saccade checkpoints

Writes checkpoints.md, the table of every released checkpoint, from the models' pretrained configurations."""


def overview() -> str:
    """The help of the command itself."""
    verbs = "\n".join(f"  {verb:12} {summary}" for verb, summary in VERBS.items())
    return (
        "saccade: vision backbones whose token mixers are not plain softmax attention\n\n"
        "usage: saccade VERB [...]\n\n"
        f"{verbs}\n\n"
        "saccade VERB --help tells more. First steps: saccade train, then saccade evaluate."
    )


def verb_help(verb: str) -> str:
    """The help of one verb."""
    text = {
        "train": _TRAIN,
        "evaluate": _EVALUATE,
        "predict": _PREDICT,
        "data": _DATA,
        "list": _LIST,
        "mixers": _MIXERS,
        "report": _REPORT,
        "benchmark": _BENCHMARK,
        "checkpoints": _CHECKPOINTS,
    }[verb]
    return text.replace("{default}", DEFAULT).replace("{recipes}", describe_recipes())
