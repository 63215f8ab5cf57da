"""Metrics of several processes, added up as if they were those of one.

A process says its series as `Family` values, which cross between processes. What is added are
counters and histograms; a gauge may come from one of the processes only. When a series began
(`_created`) is what the first one said.
"""

from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Labels = tuple[tuple[str, str], ...]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: Labels
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    kind: str
    text: str
    samples: tuple[Sample, ...]


def families_of(registry: CollectorRegistry) -> tuple[Family, ...]:
    """What a registry holds now."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple(Sample(s.name, tuple(s.labels.items()), s.value) for s in metric.samples),
        )
        for metric in registry.collect()
    )


class MetricSums(Collector):
    def __init__(self) -> None:
        self._families: dict[str, tuple[Family, dict[tuple[str, Labels], float]]] = {}

    def add(self, families: Iterable[Family]) -> None:
        """Add what one process said."""
        for family in families:
            _, values = self._families.setdefault(family.name, (family, {}))
            for sample in family.samples:
                key = (sample.name, sample.labels)
                if key not in values:
                    values[key] = sample.value
                elif not sample.name.endswith("_created"):
                    values[key] += sample.value

    def families(self) -> tuple[Family, ...]:
        """The sums, to be added to others."""
        return tuple(
            msgspec.structs.replace(
                family,
                samples=tuple(Sample(name, labels, v) for (name, labels), v in values.items()),
            )
            for family, values in self._families.values()
        )

    def collect(self) -> Iterator[Metric]:
        for family, values in self._families.values():
            metric = Metric(family.name, family.text, family.kind)
            for (name, labels), value in values.items():
                metric.add_sample(name, dict(labels), value)
            yield metric

    def render(self) -> bytes:
        """The text exposition of the sums."""
        return generate_latest(self)
