"""Outcomes -> figures: percentiles, rates and failures, as a table and as JSON."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.arguments import BenchArguments
from server.bench.client import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds; all NaN when nothing was measured."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of_seconds(cls, values: Iterable[float]) -> "Distribution":
        ordered = sorted(values)
        mean = sum(ordered) / len(ordered) if ordered else math.nan
        return cls(*(1e3 * x for x in (mean, *(_percentile(ordered, p) for p in PERCENTILES))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    model: str
    duration_s: float
    num_done: int
    failures: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    outcomes: tuple[Outcome, ...]

    @property
    def requests_per_s(self) -> float:
        return self.num_done / self.duration_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.duration_s

    @property
    def total_tokens_per_s(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.duration_s

    def table(self) -> str:
        rows = [
            f"model                {self.model}",
            f"requests             {self.num_done} done, {sum(self.failures.values())} failed, "
            f"in {self.duration_s:.2f} s",
            f"tokens               {self.prompt_tokens} in, {self.output_tokens} out",
            f"requests/s           {self.requests_per_s:.2f}",
            f"output tokens/s      {self.output_tokens_per_s:.1f}",
            f"all tokens/s         {self.total_tokens_per_s:.1f}",
            "",
            f"{'milliseconds':<20}{'mean':>10}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES),
        ]
        for name, values in (
            ("time to first token", self.ttft_ms),
            ("between chunks", self.itl_ms),
            ("per output token", self.tpot_ms),
            ("end to end", self.e2e_ms),
        ):
            cells = (values.mean, values.p50, values.p90, values.p99)
            rows.append(f"{name:<20}" + "".join(f"{_cell(x):>10}" for x in cells))
        if self.failures:
            rows += ["", "failures"]
            rows += [f"{count:>6}  {kind}" for kind, count in self.failures.items()]
        return "\n".join(rows)

    def as_json(self, arguments: BenchArguments) -> dict[str, Any]:
        """Everything, each request included; the API key is left out."""
        asked = dataclasses.asdict(arguments)
        del asked["api_key"]
        content = dataclasses.asdict(self)
        requests = content.pop("outcomes")
        content |= {
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "total_tokens_per_s": self.total_tokens_per_s,
        }
        return _without_nan({"arguments": asked, "result": content, "requests": requests})


def make_report(model: str, outcomes: list[Outcome], *, duration_s: float) -> Report:
    """Failed requests count as failures and nowhere else."""
    done = [outcome for outcome in outcomes if outcome.failure is None]
    failures = Counter(outcome.failure for outcome in outcomes if outcome.failure is not None)
    return Report(
        model=model,
        duration_s=duration_s,
        num_done=len(done),
        failures=dict(failures.most_common()),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in done),
        output_tokens=sum(outcome.output_tokens for outcome in done),
        ttft_ms=Distribution.of_seconds(o.ttft_s for o in done if o.ttft_s is not None),
        itl_ms=Distribution.of_seconds(gap for o in done for gap in o.itl_s),
        tpot_ms=Distribution.of_seconds(o.tpot_s for o in done if o.tpot_s is not None),
        e2e_ms=Distribution.of_seconds(o.e2e_s for o in done),
        outcomes=tuple(outcomes),
    )


def _percentile(ordered: list[float], percent: int) -> float:
    """Nearest rank: the smallest value that `percent` of all values do not exceed."""
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
