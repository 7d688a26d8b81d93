"""The options of a run, in the groups and the order of `--help`.

Free of torch and Ray, as all that is imported before parsing.
"""

import argparse
from typing import Any

from mura_models.training.finetune_settings import FinetuneSettings, describe_fields
from orchestrator.options import parse_path

Group = argparse._ArgumentGroup  # which argparse gives, but under no public name


def add_run_arguments(parser: argparse.ArgumentParser, *, needs_bones: bool = True) -> None:
    """Declare the options of a run; what is left out is the preset's."""
    bones = parser.add_mutually_exclusive_group(required=needs_bones)
    bones.add_argument("--all-bones", action="store_true", help="a specialist for every bone of the data")
    bones.add_argument("--bones", nargs="+", metavar="BONE", help="specialists for these bones")
    what = parser.add_argument_group("what is trained (decides the figures)")
    _add_data(what)
    _add_search(what)
    _add_backbone(what)
    _add_judging(what)
    networks = parser.add_argument_group("training whole networks: finetune, and the bone task of intermediate_task")
    _add_finetuning(networks)
    where = parser.add_argument_group("where it lies and what it runs on")
    _add_placement(where)


def _add_data(group: Group) -> None:
    """Declare which images are taken, under which labels."""
    group.add_argument(
        "--data",
        type=parse_path,
        metavar="PATH",
        help="MURA-v1.1 folder or manifest CSV; default: $MURA_DATA, ./MURA-v1.1, phantom",
    )
    group.add_argument(
        "--corrections", type=parse_path, metavar="FILE", help="CSV of label errors: path or study, label, source"
    )


def _add_search(group: Group) -> None:
    """Declare what is trained on them, and how long."""
    group.add_argument("--preset", default="quick", metavar="NAME", help="quick (default), paper or full")
    group.add_argument(
        "--recipes",
        nargs="+",
        metavar="RECIPE",
        help="linear_probe mlp_probe (default: both), two_stage_probe, intermediate_task, finetune",
    )
    group.add_argument("--trials", type=int, dest="num_trials", metavar="N", help="trials a probe's search (12)")
    group.add_argument("--epochs", type=int, dest="num_epochs", metavar="N", help="epochs a trial at most (16)")
    group.add_argument(
        "--steps",
        type=int,
        dest="num_steps",
        metavar="N",
        help="number of updates of a full-length probe trial; default: an epoch is a pass over the largest bone",
    )
    group.add_argument("--folds", type=int, dest="num_folds", metavar="K", help="folds of train, by patient (5)")


def _add_backbone(group: Group) -> None:
    """Declare what sees the images, and how large they are."""
    group.add_argument("--image-size", type=int, dest="image_size_px", metavar="PX", help="side of the images (256)")
    group.add_argument("--resize", metavar="HOW", help="stretch (default, as the paper) or pad (keeps the aspect)")
    group.add_argument(
        "--backbone",
        metavar="NAME",
        help="efficientnet_lite0 (default), resnet18, resnet50, densenet169, any timm name",
    )
    group.add_argument("--weights", metavar="WHICH", help="imagenet (default), random or a file")


def _add_judging(group: Group) -> None:
    """Declare how trials are fed, judged, stopped and trained again."""
    group.add_argument(
        "--sampling",
        nargs="+",
        metavar="HOW",
        help="against imbalance: plain (default), balanced_bones, balanced_bones_labels, weighted_labels; "
        "several are searched",
    )
    group.add_argument(
        "--metric",
        metavar="NAME",
        help="chooses on dev, study level: auroc (default), kappa, accuracy; or image_accuracy, at 0.5",
    )
    group.add_argument("--no-early-stopping", action="store_true", help="run every trial to its last epoch")
    group.add_argument(
        "--audit", type=int, dest="num_audited", metavar="N", help="stopped trials run to their end, a stage (4)"
    )
    group.add_argument(
        "--replicate-seeds", type=int, metavar="K", help="train each winner under K fresh seeds, ship the median (0)"
    )
    group.add_argument(
        "--ensemble", action=argparse.BooleanOptionalAction, help="ship all replicates together instead of the median"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of folds, plan and training (0)")


def _add_finetuning(group: Group) -> None:
    """Declare the budget of whole networks, then every field of FinetuneSettings."""
    group.add_argument("--finetune-trials", type=int, metavar="N", help="trials a search (4)")
    group.add_argument("--finetune-epochs", type=int, metavar="N", help="epochs a trial at most (--epochs, else 12)")
    group.add_argument("--finetune-steps", type=int, metavar="N", help="number of updates of a full-length trial")
    group.add_argument("--finetune-batch-size", type=int, metavar="N", help="images an update (32)")
    for setting in describe_fields(FinetuneSettings):
        option: dict[str, Any] = {"type": setting.type, "metavar": "N" if setting.type is int else "F"}
        if setting.type is bool:
            option = {"action": argparse.BooleanOptionalAction}
        default = "" if setting.default is None else f" ({setting.default})"
        name = setting.name.removeprefix("is_").replace("_", "-")
        group.add_argument(f"--{name}", dest=setting.name, help=setting.text + default, **option)


def _add_placement(group: Group) -> None:
    """Declare the fields of ExecutionOptions, and --dry-run."""
    group.add_argument(
        "--run-dir", type=parse_path, metavar="PATH", help="default: runs/<data>-<config>; the same command continues"
    )
    group.add_argument(
        "--fresh",
        action="store_true",
        help="start anew beside an existing run; to go on with that one, give its --run-dir",
    )
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="a Ray cluster to join: its head's HOST:PORT, or auto ($RAY_ADDRESS, else the one on this machine); "
        "default: $RAY_ADDRESS, else, as with local, Ray is started here",
    )
    group.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once at most")
    group.add_argument("--gpus-per-trial", type=float, metavar="F", help="default: 1 where there are GPUs")
    group.add_argument("--cpus-per-trial", type=float, metavar="N", help="default: 1")
    group.add_argument(
        "--dry-run", action="store_true", help="print the plan and its forecast; decode and train nothing"
    )
