"""What `make laser-demo` runs once the model is there: LASER itself on a real language model, judged on unseen questions.

    python bench/laser_demo.py [--model .cache/smollm2-135m] [--out .cache/laser-demo]

158 countries, half for validation. Every MLP matrix of layers 9-29 of SmolLM2-135M at three rhos of the paper's grid (strong
reductions, where its gains are) is tried by itself, for two prompts about capitals and one about continents. For each prompt
the pick of the validation half is judged on the other half, with paired intervals, gains and losses alike; then each pick on
the other prompts' test questions. It goes on where it was stopped; remove the folder to begin anew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import smollm2
import torch

from laser_kernels.laser import country_tasks, judge, search, summary, verdict_text
from laser_kernels.laser.command import TRIALS, load
from laser_kernels.laser.tables import write_all
from laser_kernels.progress import automatic

PROMPTS = {
    "capital": ["The capital of {} is", "The capital city of {} is"],
    "continent": ["{} is located in the continent of"],
}
MATRICES = ("mlp",)
LAYERS = (
    "9-29"  # the first layers are the most fragile: one of them at a tenth takes the perplexity from 31 to thousands
)
RHOS = (0.01, 0.05, 0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=smollm2.SOURCE, help="made by demo_model.py")
    parser.add_argument("--out", type=Path, default=smollm2.CACHE / "laser-demo", help="trials, CSV and heat maps")
    args = parser.parse_args()
    start = time.perf_counter()
    model, tokenizer = load(str(args.model))
    tasks = country_tasks(tokenizer, PROMPTS)
    print(
        f"{torch.get_num_threads()} threads; searching {', '.join(MATRICES)} of layers {LAYERS} at rho {RHOS}",
        flush=True,
    )
    journal = args.out / TRIALS
    earlier = journal.exists()
    findings = search(
        model,
        tasks,
        matrices=MATRICES,
        layers=LAYERS,
        rhos=RHOS,
        journal=journal,
        resume=earlier,
        progress=automatic(unit="evaluations"),
    )
    write_all(findings, args.out, [task.name for task in tasks])
    also = ", those of an earlier run included" if earlier else ""
    print(f"{len(findings.trials)} trials in {time.perf_counter() - start:.0f} s{also}\n")
    better = False
    for task in tasks:
        print(summary(findings, task.name))
        best = findings.best(task.name)
        if best is None:
            print("  nothing tried is better than the unchanged model on validation\n")
            continue
        verdict = judge(model, task, best.edits, rhos=RHOS)
        better |= task.name.startswith("capital") and verdict.after.accuracy > verdict.before.accuracy
        print(verdict_text(verdict))
        for other in tasks:
            if other is not task:
                print("the same pick on " + verdict_text(judge(model, other, best.edits, rhos=RHOS)))
        print()
    print(f"heat maps, CSV and trials: {args.out}; all of it took {time.perf_counter() - start:.0f} s")
    return 0 if better else 1


if __name__ == "__main__":
    raise SystemExit(main())
