"""Divide rows into train, validation and test: exact sizes, stratified, texts kept together, order-free.

A row's place follows from the seed, its text and (where texts aren't kept together) its id, never from its
position: shuffling the source changes nothing. Test rows are drawn first, so that changing the validation
share leaves the test set alone.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction as Exact
from typing import Any

from whet.config import Component
from whet.data.audit import is_missing, label_key, text_key
from whet.data.source import SPLITS, UNSPLIT
from whet.data.table import Table
from whet.errors import DataError
from whet.types import Fraction

log = logging.getLogger(__name__)
BINS = 10
"""Quantile bins that a regression's labels are stratified by (fewer when rows are few)."""
BIN_ROWS = 10
"""Rows a quantile bin has at least."""


@dataclass(kw_only=True)
class Split(Component):
    """How to make the splits that the source doesn't bring."""

    validation: Fraction = 0.1
    """Share of the rows divided that goes to validation; 0 makes none."""
    test: Fraction = 0.1
    """Share of the rows divided that goes to test; 0 makes none."""
    seed: int = 0
    """Seed of the division alone: runs with different seeds still share one test set."""
    stratify: bool = True
    """Keep the balance of labels (regression: of quantile bins; multi-label: of label sets) everywhere."""
    keep_together: bool = True
    """Rows whose texts are the same but for case, white space or punctuation land in one split: no leaks."""

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            problem = f"with test={self.test} nothing is left for train: together they must be below 1"
            raise DataError("validation", problem, self.validation)

    def divide(self, given: dict[str, Table]) -> dict[str, Table]:
        """Make the missing splits; given ones other than the divided one stay as they are.

        `all` alone (or `train` alone) becomes three splits. Beside a given test or validation split, the
        missing one is carved out of train, its share being a share of train.

        Raises:
            DataError: nothing to divide, or too few rows for the shares asked for.
        """
        source = self._source(given)
        shares = {name: share for name, share in self._shares().items() if name not in given and share > 0}
        if not shares:
            return {"train" if name == UNSPLIT else name: table for name, table in given.items()}
        if source == "train":
            log.info("the source has no %s split: carved out of train", " and no ".join(shares))
        made = self._carve(given[source], shares)
        kept = {name: table for name, table in given.items() if name != source}
        return _in_order(made | kept)

    def _shares(self) -> dict[str, float]:
        return {"test": self.test, "validation": self.validation}

    def _source(self, given: dict[str, Table]) -> str:
        if UNSPLIT in given and len(given) > 1:
            raise DataError(
                "", f"a source has either one undivided set or named splits, not {', '.join(given)}"
            )
        if UNSPLIT not in given and "train" not in given:
            raise DataError(
                "", f"nothing to train on: the source has no train split, only {', '.join(given) or 'none'}"
            )
        return UNSPLIT if UNSPLIT in given else "train"

    def _carve(self, table: Table, shares: dict[str, float]) -> dict[str, Table]:
        clusters = self._clusters(table)
        sizes = _sizes(len(table), shares)
        chosen = _Draw(clusters, len(table), len(shares) + 1)
        rows = {name: chosen.draw(sizes[name]) for name in shares}
        rows["train"] = chosen.left()
        for name, found in rows.items():
            if not found:
                raise _too_few(name, table, clusters, shares)
        return {name: table.take(sorted(found)) for name, found in rows.items()}

    def _clusters(self, table: Table) -> list[_Cluster]:
        """Rows that must stay together, in an order that depends on the seed and on what they hold alone."""
        strata = _strata(table.labels) if self.stratify else [""] * len(table)
        together: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, texts in enumerate(table.texts):
            together[text_key(texts) if self.keep_together else (table.ids[row], *texts)].append(row)
        found = [
            _Cluster(self._rank(key), _commonest([strata[row] for row in rows]), rows)
            for key, rows in together.items()
        ]
        return sorted(found, key=lambda cluster: cluster.rank)

    def _rank(self, key: tuple[str, ...]) -> bytes:
        return hashlib.blake2b(
            repr((self.seed, key)).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()


@dataclass(frozen=True)
class _Cluster:
    rank: bytes
    stratum: str
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)


def _in_order(splits: dict[str, Table]) -> dict[str, Table]:
    names = [*(name for name in SPLITS if name in splits), *(name for name in splits if name not in SPLITS)]
    return {name: splits[name] for name in names}


def _too_few(name: str, table: Table, clusters: Sequence[_Cluster], shares: dict[str, float]) -> DataError:
    texts = f" ({len(clusters):,} different texts)" if len(clusters) != len(table) else ""
    asked = ", ".join(f"{split} {share}" for split, share in shares.items())
    problem = f"{len(table):,} rows{texts} are too few for {asked}: {name} would be empty; "
    key = name if name in shares else next(iter(shares))
    return DataError(key, problem + "give more rows, another share, or bring the split yourself", shares[key])


# ---------------------------------------------------------------- sizes


def _sizes(rows: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `rows`, by largest remainder; train is what the shares leave."""
    exact = {name: Exact(str(share)) for name, share in shares.items()}
    exact["train"] = 1 - sum(exact.values(), Exact(0))
    counts = apportion([rows * share for share in exact.values()], rows)
    return dict(zip(exact, counts, strict=True))


def apportion(
    quotas: Sequence[Exact],
    total: int,
    lower: Sequence[int] | None = None,
    upper: Sequence[int] | None = None,
) -> list[int]:
    """Whole numbers nearest to `quotas` that add up to `total`: largest remainder within bounds.

    Equal remainders go to whoever comes first. Where the bounds leave no solution, the sum comes as near to
    `total` as they allow.
    """
    least = lower or [0] * len(quotas)
    most = upper or [total] * len(quotas)
    counts = [min(max(int(quota), low), high) for quota, low, high in zip(quotas, least, most, strict=True)]
    missing = total - sum(counts)
    step, bound = (1, most) if missing > 0 else (-1, least)
    heap = [(step * (counts[i] - quotas[i]), i) for i in range(len(counts)) if counts[i] != bound[i]]
    heapq.heapify(heap)
    for _ in range(abs(missing) if heap else 0):
        gap, i = heapq.heappop(heap)
        counts[i] += step
        if counts[i] != bound[i]:
            heapq.heappush(heap, (gap + 1, i))
        if not heap:
            break
    return counts


# ---------------------------------------------------------------- strata


def _strata(labels: Sequence[Any]) -> list[str]:
    """What each row is balanced by, as text so that it sorts."""
    if any(isinstance(label, (list, tuple)) for label in labels):
        return _label_sets(labels)
    if any(isinstance(label, (int, float)) and not isinstance(label, bool) for label in labels):
        return _quantiles(labels)
    return ["" if is_missing(label) else f"={label}" for label in labels]


def _quantiles(labels: Sequence[Any]) -> list[str]:
    """The quantile bin of each number; equal numbers share one whatever their order."""
    ordered = sorted(float(label) for label in labels if not is_missing(label))
    bins = max(1, min(BINS, len(ordered) // BIN_ROWS))
    return [
        "" if is_missing(label) else f"={bisect_left(ordered, float(label)) * bins // len(ordered)}"
        for label in labels
    ]


def _label_sets(labels: Sequence[Any]) -> list[str]:
    """A multi-label row's set of names; a set of fewer than three rows goes by a rare name of it instead.

    That is its rarest name of three rows or more, so that the rows of a rare name are spread over the splits.
    """
    sets = [() if is_missing(label) else label_key(label) for label in labels]
    often = Counter(sets)
    names = Counter(name for found in sets for name in found)
    rare = {s: min(s, key=lambda name: (names[name] < 3, names[name], name), default="") for s in often}
    return [f"={found}" if often[found] >= 3 else f"~{rare[found]}" for found in sets]


def _commonest(strata: Sequence[str]) -> str:
    counts = Counter(strata)
    return min(counts, key=lambda stratum: (-counts[stratum], stratum))


# ---------------------------------------------------------------- drawing


class _Draw:
    """Takes clusters out of a pool split by split, never the last ones that later splits need.

    A stratum with at least as many clusters as there are splits is represented in every split, as long as
    the split has a row for each. Sizes are exact unless no clusters of fitting size are left.
    """

    def __init__(self, clusters: Sequence[_Cluster], rows: int, parts: int) -> None:
        self.pool: dict[str, list[_Cluster]] = defaultdict(list)
        for cluster in clusters:
            self.pool[cluster.stratum].append(cluster)
        self.strata = sorted(self.pool)
        self.shared = {stratum: len(self.pool[stratum]) >= parts for stratum in self.strata}
        self.rows_left, self.parts_left = rows, parts

    def draw(self, size: int) -> list[int]:
        """Rows of the next split."""
        self.parts_left -= 1
        wants = self._wants(size)
        taken = [row for stratum, want in wants.items() for row in self._fill(stratum, want)]
        for stratum in self.strata if len(taken) < size else ():
            taken += self._fill(stratum, size - len(taken))
        self.rows_left -= len(taken)
        return taken

    def left(self) -> list[int]:
        """Rows nobody drew."""
        return [row for stratum in self.strata for cluster in self.pool[stratum] for row in cluster.rows]

    def _wants(self, size: int) -> dict[str, int]:
        have = [sum(map(len, self.pool[stratum])) for stratum in self.strata]
        if (
            sum(have) - sum(map(self._reserve, self.strata)) < size
        ):  # the sizes leave later splits no row of each
            self.shared = dict.fromkeys(self.strata, False)
        least = [self._least(stratum) for stratum in self.strata]
        if sum(least) > size:
            least = [0] * len(have)
        most = [
            max(rows - self._reserve(s), low) for s, rows, low in zip(self.strata, have, least, strict=True)
        ]
        quotas = [Exact(rows * size, self.rows_left) for rows in have]
        return dict(zip(self.strata, apportion(quotas, size, least, most), strict=True))

    def _least(self, stratum: str) -> int:
        return min(map(len, self.pool[stratum]), default=0) if self.shared[stratum] else 0

    def _reserve(self, stratum: str) -> int:
        return self.parts_left if self.shared[stratum] else 0

    def _fill(self, stratum: str, want: int) -> list[int]:
        """Clusters in order of rank as long as they fit; later splits keep one each."""
        pool, reserve = self.pool[stratum], self._reserve(stratum)
        rows: list[int] = []
        rest: list[_Cluster] = []
        for place, cluster in enumerate(pool):
            spare = len(rest) + len(pool) - place > reserve
            if spare and len(rows) + len(cluster) <= want:
                rows += cluster.rows
            else:
                rest.append(cluster)
        self.pool[stratum] = rest
        return rows
