"""Detectors of hallucinated words and chunks for a bundled model. python -m training.detector --model NAME

Trained on captions of the tune split, scored on val; then captions of val are decoded under the guidance of the one for
chunks, beside as many drawn in the same way and taken as they come.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import mmattn
from mmattn import scenes
from mmattn.eval import load_captions, load_instances, stats
from mmattn.eval.chair import Chair
from mmattn.eval.detection import SIGNALS, Mentions, choose, collect, risks, score, train
from mmattn.eval.types import Record
from mmattn.signals import Detector, Guidance

KINDS = {"detector": 0, "chunk-detector": Guidance().chunk}


def captions_of(split: str, count: int) -> Chair:
    """Captions to be made of a split."""
    data = scenes.dataset(split, count=max(count, 400))
    return Chair(load_instances(data.instances), load_captions(data.captions), data.images, limit=count)


def detection(tune: Mentions, val: Mentions, where: Path) -> tuple[Detector, dict[str, Any]]:
    """A detector trained on tune, written to `where`, and what was measured of it and of others on val."""
    chosen, penalty, tried = choose(tune)
    pictures = {"set": "captions of the scenes tune split", "pictures": tune.images, "penalty": penalty}
    detector = train(tune, chosen, penalty, pictures)
    detector.save(where)
    auroc = {"+".join(one): score(val, risks(train(tune, one, penalty), val)).to_json() for one in SIGNALS}
    return detector, {
        "chosen": list(chosen), "penalty": penalty,
        "tried_on_tune": {name: round(one, 4) for name, one in tried.items()},
        "tune": [len(tune.hallucinated), int(tune.hallucinated.sum())],
        "val": [len(val.hallucinated), int(val.hallucinated.sum())],
        "auroc": {**auroc, **{name: score(val, said).to_json() for name, said in val.plain.items()}},
    }  # fmt: skip


def guidance(vlm: mmattn.VLM, chair: Chair, detector: Detector, batch: int) -> dict[str, Any]:
    """CHAIR of guided captions, of drawn ones, and of greedy ones."""
    items = [chair.item(index) for index in range(len(chair))]
    pictures, prompts = [item.path for item in items], [item.prompt for item in items]
    how = Guidance()
    drawn: dict[str, Any] = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p}
    answers = {
        "greedy": vlm.generate(pictures, prompts, max_new_tokens=64, batch_size=batch),
        "drawn": vlm.generate(pictures, prompts, max_new_tokens=64, batch_size=batch, **drawn),
        "guided": vlm.guide(pictures, prompts, detector=detector, max_new_tokens=64, batch_size=batch),
    }
    counts = {}
    for name, some in answers.items():
        records = [
            Record("chair", name, item.id, item.image, "", "done", counts=chair.score(item, one.text).counts)
            for item, one in zip(items, some, strict=True)
        ]
        counts[name] = stats.Counts.of(records)
    rates = {name: stats.estimates(one, chair.metrics) for name, one in counts.items()}
    gaps = {name: stats.differences(counts["guided"], counts[name], chair.metrics) for name in ("greedy", "drawn")}
    return {
        **{name: {key: one.to_json() for key, one in some.items()} for name, some in rates.items()},
        **{f"guided - {name}": {key: one.to_json() for key, one in some.items()} for name, some in gaps.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--sampled", type=int, default=1)
    parser.add_argument("--guided", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the detectors are written; the model's own by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    vlm = mmattn.load(args.model)
    folder = args.folder or scenes.model_path(args.model)
    tune, val = (
        collect(vlm, captions_of(split, args.count), chunks=list(KINDS.values()), sampled=args.sampled,
                batch_size=args.batch)
        for split in ("tune", "val")
    )  # fmt: skip
    report: dict[str, Any] = {"model": args.model, "pictures": args.count, "captions": 1 + args.sampled}
    for name, mine, other in zip(KINDS, tune, val, strict=True):
        detector, report[name] = detection(mine, other, folder / f"{name}.json")
    print(json.dumps(report, indent=1), flush=True)
    chair = guidance(vlm, captions_of("val", args.guided), detector, args.batch)
    report["chair"] = {"pictures": args.guided, **chair}
    print(json.dumps(report["chair"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
