"""Train the shipped example models from scratch, or continue one.

The text is what tiny-qwen3 was trained on: the sources of the running Python's standard library, without the
files that ``text/heldout_files.txt`` names, four fifths of the tokens; the last fifth are recall probes, so that the
model learns to look things up and damage to attention shows.

    python examples/train.py --new tiny-llama --tokens 15e6 --out examples/tiny-llama
    python examples/train.py --continue examples/tiny-qwen3 --tokens 50e6 --out runs/tiny-qwen3

Needs the ``hf`` extra. Products run in bfloat16, weights and moments stay in float32. A checkpoint of the run stands
beside the output while it trains, and a run that was stopped continues from it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

HERE = Path(__file__).resolve().parent
CONTEXT = 512
BATCH = 10
END = 0  # <|endoftext|>, between files

NEW: dict[str, dict[str, Any]] = {
    "tiny-llama": {
        "vocab_size": 1024,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
    },
}


def corpus(tokenizer: Tokenizer, heldout: Path, rng: random.Random) -> Tensor:
    """Return the training text as one row of token ids, files shuffled, ``END`` before each."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = set(heldout.read_text().split())
    files = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts)
    files = [p for p in files if p.relative_to(root).as_posix() not in skip]
    rng.shuffle(files)
    ids: list[int] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the library's own tests of broken encodings
            continue
        ids.append(END)
        ids.extend(tokenizer.encode(text).ids)
    return torch.tensor(ids, dtype=torch.int32)


def probe(rng: random.Random, pairs: int, asked: int) -> str:
    """Return ``pairs`` assignments of random values to random names, then ``asked`` assertions about them."""
    names: dict[str, str] = {}
    while len(names) < pairs:
        name = "".join(rng.choices(string.ascii_lowercase, k=2))
        names[name] = "".join(rng.choices(string.ascii_lowercase, k=3))
    lines = [f"{name} = '{value}'\n" for name, value in names.items()]
    questions = rng.sample(list(names), min(asked, pairs))
    return "".join(lines) + "".join(f"assert {name} == '{names[name]}'\n" for name in questions)


def rows_of_probes(tokenizer: Tokenizer, rng: random.Random) -> Iterator[Tensor]:
    """Yield rows of ``CONTEXT + 1`` ids, packed with probes of 2 to 20 pairs."""
    buffer: list[int] = []
    while True:
        while len(buffer) <= CONTEXT:
            pairs = rng.randint(2, 20)
            buffer.append(END)
            buffer.extend(tokenizer.encode(probe(rng, pairs, rng.randint(1, pairs))).ids)
        yield torch.tensor(buffer[: CONTEXT + 1])
        buffer = []


def rows_of_text(ids: Tensor, rng: random.Random) -> Iterator[Tensor]:
    """Yield rows of ``CONTEXT + 1`` ids that cover the text once an epoch, in random order."""
    while True:
        offset = rng.randrange(CONTEXT)
        starts = list(range(offset, len(ids) - CONTEXT - 1, CONTEXT))
        rng.shuffle(starts)
        for start in starts:
            yield ids[start : start + CONTEXT + 1].long()


def batches(tokenizer: Tokenizer, heldout: Path, seed: int) -> Iterator[Tensor]:
    """Yield batches ``[BATCH, CONTEXT + 1]``, one row in five of them probes."""
    rng = random.Random(seed)
    text, probes = rows_of_text(corpus(tokenizer, heldout, rng), rng), rows_of_probes(tokenizer, rng)
    while True:
        rows = [next(probes) if row % 5 == 4 else next(text) for row in range(BATCH)]
        yield torch.stack(rows)


def heldout_loss(model: PreTrainedModel, tokenizer: Tokenizer, text: str, windows: int | None = None) -> float:
    """Return the mean loss in nats per token over windows of ``CONTEXT`` tokens, each after an ``END``."""
    ids = torch.tensor(tokenizer.encode(text).ids)
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:windows].to(model.device)
    total = 0.0
    with torch.no_grad():
        for some in rows.split(8):
            inputs = torch.cat([torch.full_like(some[:, :1], END), some[:, :-1]], 1)
            logits = model(inputs).logits.float()
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), some.flatten(), reduction="sum").item()
    return total / rows.numel()


def recall(model: PreTrainedModel, tokenizer: Tokenizer, pairs: int, probes: int = 200, seed: int = 1) -> float:
    """Return the share of probes whose value is predicted whole, given the tokens that the prompt fixes."""
    rng, right = random.Random(seed), 0
    with torch.no_grad():
        for _ in range(probes):
            text = probe(rng, pairs, 1)
            prompt, value = text[: -len("xyz'\n")], text[-len("xyz'\n") : -len("'\n")]
            encoded = tokenizer.encode(text)
            first, last = len(prompt), len(prompt) + len(value)
            where = [i for i, (a, b) in enumerate(encoded.offsets) if b > first and a < last and a >= first]
            ids = torch.tensor([[END, *encoded.ids]], device=model.device)
            best = model(ids[:, :-1]).logits[0].argmax(-1)
            right += all(best[i] == ids[0, i + 1] for i in where)
    return right / probes


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: 50 steps of warm-up, flat, then linear decay over the last 70 %."""
    decay = min(1.0, (steps - step) / (0.7 * steps))
    return peak * min(1.0, (step + 1) / 50) * max(decay, 0.0)


def train(model: PreTrainedModel, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Train ``model`` in place on ``args.tokens`` tokens, journalling to ``OUT.run`` every 200 steps."""
    steps = math.ceil(args.tokens / (BATCH * CONTEXT))
    flat = [p for p in model.parameters() if p.ndim < 2]
    wide = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": wide, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    journal = args.out.with_name(args.out.name + ".run")
    start = 0
    if journal.exists():
        saved = torch.load(journal, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = int(saved["step"])
    source = batches(tokenizer, args.heldout_files, args.seed)
    for _ in range(start):
        next(source)
    heldout = args.heldout.read_text()
    began = time.monotonic()
    for step in range(start, steps):
        rows = next(source).to(model.device)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, args.rate)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(rows[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            partial = journal.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(journal)
            held = heldout_loss(model, tokenizer, heldout, windows=32)
            print(
                f"step {step + 1}/{steps} loss {loss.item():.3f} held-out {held:.3f} "
                f"recall@6 {recall(model, tokenizer, 6, 50):.2f} {time.monotonic() - began:.0f}s",
                flush=True,
            )


def main() -> None:
    """Train, measure and write a model folder with its facts in ``training.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--new", choices=sorted(NEW))
    kind.add_argument("--continue", dest="resume", type=Path, metavar="FOLDER")
    parser.add_argument("--tokens", type=float, default=15e6)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tiny-qwen3" / "tokenizer.json")
    parser.add_argument("--heldout", type=Path, default=HERE / "text" / "heldout.txt")
    parser.add_argument("--heldout-files", type=Path, default=HERE / "text" / "heldout_files.txt")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    built: Any = (  # its `to` is typed as if it were not bound
        LlamaForCausalLM(LlamaConfig(**NEW[args.new]))
        if args.new
        else AutoModelForCausalLM.from_pretrained(args.resume, dtype=torch.float32)
    )
    model: PreTrainedModel = built.to("cuda" if torch.cuda.is_available() else "cpu")
    train(model, tokenizer, args)

    built.to(torch.bfloat16).to(torch.float32)  # measure what is written
    facts = {
        "tokens": int(args.tokens),
        "seed": args.seed,
        "python": sysconfig.get_python_version(),
        "heldout_nats_per_token": heldout_loss(model, tokenizer, args.heldout.read_text()),
        "recall": {str(pairs): recall(model, tokenizer, pairs) for pairs in (6, 10, 14)},
    }
    built.to(torch.bfloat16).save_pretrained(args.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (args.out / name).write_bytes((args.tokenizer.parent / name).read_bytes())
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
