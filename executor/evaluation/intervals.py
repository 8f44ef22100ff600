"""Confidence intervals of a mean over queries, where some queries rise and fall together.

A model finds or misses the queries of one class together. So forty queries of one class say little more than one.
Such queries are a *cluster*. The interval is about how the clusters differ, not the single queries.
`benchmarks/proof.py` measures how often each method covers the truth.
"""

import numpy as np

_NO_SPREAD = 1e-9  # values closer than this are the same: metrics are quotients of small whole numbers
_FEWEST_ALIKE = 6  # clusters with the same change; that all go one way by chance has a probability of 2 · 2^-6 = 3 %
_CHUNK_BYTES = 64 * 2**20  # of resampled values at a time

Interval = tuple[float, float]
TOO_FEW = "too few labels or groups for an interval"


def is_open(low: float, high: float, *, signed: bool = False) -> bool:
    """Whether an interval leaves all open: it is all that a metric can be or, `signed`, a difference of two."""
    return low <= (-1 if signed else 0) and high >= 1


def said(low: float, high: float, *, signed: bool = False) -> str:
    """Say an interval: '0.744 to 0.871', or that there are too few labels for one. Args: signed: as of `is_open`."""
    if is_open(low, high, signed=signed):
        return TOO_FEW
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def difference_said(low: float, high: float, *, level: float = 0.95, few: str = "labels or groups") -> str:
    """Say the interval of a difference and its level, or that there are too few for one. Args: few: of what."""
    interval = f"{100 * level:.5g} % interval"
    if is_open(low, high, signed=True):
        return f"with too few {few} for a {interval}"
    return f"{interval} {said(low, high, signed=True)}"


def cluster_interval(values: np.ndarray, clusters: np.ndarray | None = None, *, level: float = 0.95) -> Interval:
    """Return the interval (low, high) of the mean of `values`. Whole clusters are drawn, of any sizes.

    It is mean ± t · SE, with the cluster-robust variance CR2 and Bell and McCaffrey's degrees of freedom. With the
    clusters' shares w_c = n_c / Q of the queries, and the sums e_c of their deviations from the mean,

        SE² = 1/Q² · Σ_c e_c² / (1 - w_c)

    (Bell & McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage samples", where
    the mean is the only regressor). The degrees of freedom are C - 1 for C clusters of one size, fewer where some are
    large. SE² is never taken below that of single queries: with two or three clusters their means may agree by chance
    (Angrist & Pischke 2009, "Mostly harmless econometrics", section 8.2.3). Where each query is a cluster of its own,
    this is Student's interval.

    The interval is (-inf, inf) if nothing is known. So it is with one cluster. So it is with fewer than six clusters if
    all queries have the same value: there is no spread to judge by, and all may have gone one way by chance.

    Args:
        values: (Q,) float64.
        clusters: (Q,) integers. Queries with the same number rise and fall together. None: each query is alone.
        level: of confidence, between 0 and 1.
    Raises: ValueError: there are no values, or not as many cluster numbers as values.
    """
    from scipy.special import stdtrit  # the quantile of Student's t

    _check(values, clusters)
    queries = len(values)
    mean = float(values.mean())
    numbers = np.arange(queries) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(numbers)  # (C,)
    alike = float(np.ptp(values)) < _NO_SPREAD
    if len(sizes) == 1 or (alike and len(sizes) < _FEWEST_ALIKE):
        return -np.inf, np.inf
    if alike:
        return mean, mean
    shares = sizes / queries
    sums = np.bincount(numbers, values - mean)  # e_c
    by_clusters = float(np.sum(sums**2 / (1 - shares))) / queries**2
    by_queries = float(values.var(ddof=1)) / queries
    reach = float(stdtrit(_degrees_of_freedom(shares), 0.5 + level / 2)) * max(by_clusters, by_queries) ** 0.5
    return mean - reach, mean + reach


def _degrees_of_freedom(shares: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of SE² for clusters with these shares (C,) of the queries.

    They are (tr M)² / tr M² with the covariance M of the terms e_c / √(1 - w_c) of that sum where queries are
    independent, as Bell and McCaffrey assume for them: M_cd = [c = d] w_c / (1 - w_c) - b_c b_d,
    b_c = w_c / √(1 - w_c), of trace 1 (see also Imbens & Kolesár 2016, "Robust standard errors in small samples",
    section 3).
    """
    rest = 1 - shares
    return 1 / float(np.sum(shares**2 * (1 - 2 * shares) / rest**2) + np.sum(shares**2 / rest) ** 2)


def bootstrap_interval(values: np.ndarray, level: float, resamples: int, seed: int) -> Interval:
    """Return the percentile interval of the mean of `values`, (Q,). Each value stands for itself.

    It stays within the range of the values. Raises: ValueError: there are none.
    """
    _check(values, None)
    if len(values) == 1:  # every resample is this value, and scipy wants at least two
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _CHUNK_BYTES // (16 * len(values))),  # an index and a value per query and resample
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the clusters of queries that share a number in `first` or `second`, also by way of other queries.

    Take a graph whose nodes are the numbers of both, and whose edges are the queries. The clusters are its connected
    components. A class with several groups is one cluster. Classes that share a group are one cluster together.

    Args: first: (Q,) integers. second: (Q,) integers; negative: none, so that only `first` links the query.
    Returns: (Q,) int64, from 0 in order of their first numbers. Raises: ValueError: the two have different lengths.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _check(first, second)
    numbers = np.unique(first, return_inverse=True)[1]
    grouped = np.asarray(second) >= 0
    groups = np.unique(np.asarray(second)[grouped], return_inverse=True)[1]
    left = int(numbers.max()) + 1
    nodes = left + (int(groups.max()) + 1 if len(groups) else 0)
    edges = coo_array((np.ones(len(groups)), (numbers[grouped], left + groups)), shape=(nodes, nodes))
    components: np.ndarray = connected_components(edges, directed=False)[1][numbers].astype(np.int64)
    return components


def _check(values: np.ndarray, clusters: np.ndarray | None) -> None:
    if not len(values):
        raise ValueError("No query was scored, so there is nothing to take an interval of.")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"There are {len(clusters)} clusters for {len(values)} queries; each query is in one.")
