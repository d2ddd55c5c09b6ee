"""Whether ZeRO takes the steps of one process: every stage, ZeRO stage, placement and number of processes.

    python -m benchmarks.zero                          # all 36 runs, a quarter of an hour on two cores
    python -m benchmarks.zero --stages sft --zero 3 --processes 4 --offload

Each run starts from the same small random model and takes the same 20 steps of four samples (SFT) or pairs
(DPO), in float32 on CPU; one process without DeepSpeed is what the others are held against. The figure is the
largest difference of any weight of the model that each run leaves, as `from_pretrained` loads it.
"""

import argparse
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path

import torch

from benchmarks.clinic import Clinic, open_clinic
from benchmarks.measure import machine, table
from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.training import config as configs
from mu2llm.training.launch import launch

STEPS, BATCH, BOUND = 20, 4, 1e-5
RATES = {"sft": 1e-3, "dpo": 1e-4}


def trained(
    clinic: Clinic, stage: str, out: Path, processes: int, **values: object
) -> dict[str, torch.Tensor]:
    """The weights that a run of `STEPS` steps leaves."""
    settings = configs.build(
        {
            "stage": stage,
            "out": str(out),
            **clinic.paths(stage),
            "learning_rate": RATES[stage],
            "max_steps": STEPS,
            "per_device_batch": BATCH // processes,
            "save_steps": STEPS,
            **values,
        }
    )
    with redirect_stdout(StringIO()):
        launch(stage, configs.save(settings), processes)
    return Mu2ForConditionalGeneration.from_pretrained(out / "model").state_dict()


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights of the same names."""
    if a.keys() != b.keys():
        raise ValueError(f"the runs left different weights: {sorted(a.keys() ^ b.keys())[:3]}")
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--stages", nargs="+", default=["sft", "dpo"], choices=("sft", "dpo"))
    parser.add_argument("--zero", nargs="+", type=int, default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], choices=(1, 2, 4))
    parser.add_argument("--offload", action="store_true", help="only with the optimizer's state offloaded")
    args = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    rows, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sizes = {"width": 32, "vision_layers": 1, "text_layers": 1, "num_query_tokens": 8, "vocab_size": 400}
        clinic = open_clinic(root, 32, **sizes)
        for stage in args.stages:
            alone = trained(clinic, stage, root / stage, 1, zero_stage=0)
            offloads = [True] if args.offload else [False, True]
            for zero, offload, processes in product(args.zero, offloads, args.processes):
                name = f"{stage}-{zero}-{processes}-{offload}"
                began = time.monotonic()
                ours = trained(clinic, stage, root / name, processes, zero_stage=zero, offload=offload)
                far = furthest(ours, alone)
                bad += far > BOUND
                where = "host memory" if offload else "with the model"
                rows.append((stage, f"ZeRO-{zero}", where, str(processes), f"{far:.1e}"))
                print(f"{' | '.join(rows[-1])} | {time.monotonic() - began:.0f} s", flush=True)
    head = ("stage", "ZeRO", "optimizer", "processes", "largest difference")
    print("\n" + table(rows, head))
    if bad:
        raise SystemExit(f"{bad} of {len(rows)} runs differ by more than {BOUND:g}")


if __name__ == "__main__":
    main()
