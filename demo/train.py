"""Train the demo model: `python -m demo.train --out DIR`.

Two processes with one thread each take a batch of their own and average their gradients: on two
cores that is faster, and much less disturbed by other load, than two threads. In the last steps
the trunk is frozen and the MTP layer learns alone. Everything that matters is saved every few
minutes; the same command goes on from there. `DIR` ends up with `checkpoint/` and `log.jsonl`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.nn import functional
from tqdm import tqdm

from demo.choosing import Choices, choosing_loss
from demo.dataset import Batch, shard_batches, training_texts
from demo.export import export
from demo.network import Network, prime, rotary_dims
from demo.optimizer import Muon, split_parameters
from demo.settings import LAST_SCHEDULE, Schedule, model_config
from demo.tokenizer import train_tokenizer

TOKENIZER_SAMPLES = 20_000
SAVE_EVERY_S = 240.0
NUM_RANKS = 2
# glibc gives large tensors back to the system as they are freed, and every page of the next one
# is a fault. Kept instead, the experts' step is 1.5 times as fast.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
SCORED_MULTIPLE = 256  # few shapes: oneDNN makes new code for each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--after", type=Path, help="go on from what this training learnt, with the last mixture"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    schedule = LAST_SCHEDULE if arguments.after else Schedule()
    schedule = replace(schedule, num_steps=arguments.steps or schedule.num_steps)
    if arguments.after and not (out / "tokenizer.json").exists():
        shutil.copy(arguments.after / "tokenizer.json", out)
    if not (out / "tokenizer.json").exists():
        print(f"training the tokenizer on {TOKENIZER_SAMPLES} samples")
        tokenizer = train_tokenizer(training_texts(schedule.seed, TOKENIZER_SAMPLES))
        tokenizer.save(str(out / "tokenizer.json.new"))
        os.replace(out / "tokenizer.json.new", out / "tokenizer.json")
    for name, value in ALLOCATOR.items():
        os.putenv(name, value)  # for the ranks
    rendezvous = out / f"rendezvous-{os.getpid()}"
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_train, args=(rank, rendezvous, out, schedule, arguments.after))
        for rank in range(NUM_RANKS)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join()
    except KeyboardInterrupt:
        for rank in ranks:
            rank.terminate()
        raise SystemExit("interrupted; the same command goes on from the last save") from None
    finally:
        rendezvous.unlink(missing_ok=True)
    if any(rank.exitcode for rank in ranks):
        raise SystemExit("the training failed; the same command goes on from the last save")
    export(out, out / "checkpoint")
    print(f"the checkpoint is in {out / 'checkpoint'}")


class Shards:
    """This rank's batches one after the other, the next shard made ready by another process."""

    def __init__(self, out: Path, schedule: Schedule, rank: int, shard: int, skip: int) -> None:
        self._out, self._schedule, self._rank = out, schedule, rank
        self._pool = multiprocessing.get_context("spawn").Pool(1)
        self.shard, self.taken = shard, skip
        self._batches = self._ask(shard).get()
        self._next = self._ask(shard + 1)

    def take(self) -> Batch:
        if (self.taken + 1) * NUM_RANKS > len(self._batches):
            self.shard, self.taken = self.shard + 1, 0
            self._batches, self._next = self._next.get(), self._ask(self.shard + 1)
        self.taken += 1
        return self._batches[(self.taken - 1) * NUM_RANKS + self._rank]

    def close(self) -> None:
        """What is being made ready is not needed any more."""
        self._pool.terminate()
        self._pool.join()

    def _ask(self, shard: int) -> AsyncResult[list[Batch]]:
        schedule = self._schedule
        made_from = (self._out / "tokenizer.json", schedule.seed, shard)
        sizes = (schedule.batch_tokens, schedule.max_tokens)
        return self._pool.apply_async(shard_batches, (*made_from, *sizes))


def _train(rank: int, rendezvous: Path, out: Path, schedule: Schedule, after: Path | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous.resolve()}", rank=rank, world_size=NUM_RANKS
    )
    torch.manual_seed(schedule.seed)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    network = Network(model_config(tokenizer)["text_config"])
    prime(network)
    trunk = [(n, p) for n, p in network.named_parameters() if not n.startswith("mtp.")]
    head = [(n, p) for n, p in network.named_parameters() if n.startswith("mtp.")]
    matrices, rest = split_parameters([*trunk, *head])
    optimizers = (
        Muon(matrices, schedule.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, schedule.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    saved = out / "training.pt"
    step = skip = 0
    shard = schedule.first_shard
    spent_s = 0.0
    if after is not None:
        learnt = torch.load(after / "training.pt", weights_only=True)
        network.load_state_dict(learnt["network"])
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        network.load_state_dict(state["network"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, shard, skip, spent_s = (
            state["step"],
            state["shard"],
            state["skip"],
            state["spent_s"],
        )
    shards = Shards(out, schedule, rank, shard, skip)
    began = saved_at = time.monotonic()
    trunk_steps = round(schedule.num_steps * (1 - schedule.mtp_share))
    bar = tqdm(
        total=schedule.num_steps, initial=step, disable=rank != 0, unit="step", smoothing=0.02
    )
    log = (out / "log.jsonl").open("a") if rank == 0 else None
    parent = os.getppid()
    while step < schedule.num_steps:
        if os.getppid() != parent:
            shards.close()
            os._exit(1)  # the process that started this one is gone, and nothing waits for a rank
        only_mtp = step >= trunk_steps
        batch = shards.take()
        losses = _backward(network, batch, schedule, only_mtp)
        _average([p for _, p in (head if only_mtp else trunk)])
        factor = _rate(step, trunk_steps, schedule)
        for optimizer, base in zip(optimizers, (schedule.muon_lr, schedule.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if log is not None:
            spent = spent_s + time.monotonic() - began
            line = {"step": step, "tokens": batch.num_tokens, "spent_s": round(spent, 1), **losses}
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
            bar.update()
            if time.monotonic() - saved_at > SAVE_EVERY_S or step == schedule.num_steps:
                saved_at = time.monotonic()
                _save(saved, network, optimizers, step, shards, spent)
    dist.barrier()
    dist.destroy_process_group()
    shards.close()


def _rate(step: int, trunk_steps: int, schedule: Schedule) -> float:
    """Warm up, hold, then fall to nothing; once for the trunk, once for the MTP layer."""
    if step >= trunk_steps:
        return 1.0 - (step - trunk_steps) / (schedule.num_steps - trunk_steps)
    done = step / trunk_steps
    return min(1.0, (done + 1e-3) / schedule.warm_up, (1 - done) / schedule.cool_down + 1e-3)


def _backward(
    network: Network, batch: Batch, schedule: Schedule, only_mtp: bool
) -> dict[str, float]:
    token_BT = torch.from_numpy(batch.token_BT)
    shift = 2 if only_mtp else 1
    answer_BT = torch.from_numpy(batch.answer_BT)[:, shift:]
    # Of what is not the model's to say, a third is enough to learn from.
    chosen_BT = answer_BT | (torch.rand(answer_BT.shape) < 0.33)
    chosen_BT &= torch.from_numpy(batch.text_BT)[:, shift:]
    with torch.set_grad_enabled(not only_mtp):
        hidden_BTD, imbalance = network(token_BT)
    if only_mtp:
        # Every position but the last knows the token after it; the pad token stands for the rest.
        next_BT = torch.cat((token_BT[:, 1:], token_BT[:, -1:]), dim=1)
        embedding_BTD = network.embed_tokens(next_BT).detach()
        hidden_BTD, imbalance = network.mtp(embedding_BTD, hidden_BTD)
        lesson, learnt = 0.0, {}
    else:
        lesson, learnt = _choosing(network, batch)
    hidden_SD = hidden_BTD[:, :-shift][chosen_BT]
    padded_SD = functional.pad(hidden_SD, (0, 0, 0, -len(hidden_SD) % SCORED_MULTIPLE))
    logits_SV = network.logits(padded_SD)[: len(hidden_SD)]
    loss_S = functional.cross_entropy(logits_SV, token_BT[:, shift:][chosen_BT], reduction="none")
    is_answer_S = answer_BT[chosen_BT]
    weight_S = torch.where(is_answer_S, 1.0, schedule.prompt_weight)
    loss = (loss_S * weight_S).sum() / weight_S.sum()
    (loss + schedule.balance_weight * imbalance + schedule.choosing_weight * lesson).backward()
    answers = loss_S[is_answer_S]
    return {
        "mtp_loss" if only_mtp else "loss": round(answers.mean().item(), 4),
        "prompt_loss": round(loss_S[~is_answer_S].mean().item(), 4),
        "imbalance": round(imbalance.item(), 3),
        **{name: round(share, 3) for name, share in learnt.items()},
    }


def _choosing(network: Network, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    attention = [layer.self_attn for layer in network.layers if layer.is_attention][-1]
    columns = (batch.named_BT, batch.kind_BT, batch.answer_BT)
    choices = Choices(*(torch.from_numpy(column) for column in columns))
    return choosing_loss(attention, rotary_dims(network.text), choices)


def _average(parameters: list[torch.nn.Parameter]) -> None:
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= NUM_RANKS
    norm = flat.norm()
    if norm > 1.0:
        flat /= norm
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


def _save(
    path: Path,
    network: Network,
    optimizers: tuple[Any, ...],
    step: int,
    shards: Shards,
    spent_s: float,
) -> None:
    state = {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "shard": shards.shard,
        "skip": shards.taken,
        "spent_s": spent_s,
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


if __name__ == "__main__":
    main()
