"""Recursive least squares for three non-negative coefficients, fitted to rows that come one at a time.

The coefficients are corrections of the three parts of a prior. Before the first row the best guess is that they are
equal: the prior may be wrong as a whole, but its proportions are plausible. So the ridge pulls the coefficients to
their mean, not to a fixed value, and unlike the rows it does not fade. Where the rows cannot separate two parts, the
proportions of the prior hold, and the coefficients do not drift.

Source: Haykin, Adaptive Filter Theory, chapter 10: exponentially weighted RLS, here in the information form.
"""

Coefficients = tuple[float, float, float]

LEAST = 0.02
"""Least value of a coefficient, as a share of the mean of the three."""


class RecursiveLeastSquares:
    """Minimises sum_i w_i * prod_{j>i} (1 - w_j / memory) * (row_i . c - target_i)^2 + ridge * sum_k (c_k - mean(c))^2.

    The minimum is taken over the coefficients c of at least `LEAST` of their mean.

    Args:
        memory: total weight of newer rows after which an old row has faded to 1 / e.
        ridge: weight of the pull to the mean.

    Attributes:
        coefficients: all 1 until `learn` or `rescale` is called.

    >>> fit = RecursiveLeastSquares(memory=1000.0, ridge=0.001)
    >>> for part in range(101):
    ...     fit.learn(1.0 - part / 100, part / 100, 0.0, target=2.0 + part / 100, weight=1.0)
    >>> [round(coefficient, 1) for coefficient in fit.coefficients]  # no row has the third part: the mean of the others
    [2.0, 3.0, 2.5]
    """

    __slots__ = ("_information", "_memory", "_moment", "_ridge", "coefficients")

    def __init__(self, *, memory: float, ridge: float) -> None:
        self.coefficients: Coefficients = (1.0, 1.0, 1.0)
        self._memory = memory
        self._ridge = ridge
        self._information = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        """Upper triangle, by rows, of the weighted sum of row * row^T."""
        self._moment: Coefficients = (0.0, 0.0, 0.0)
        """Weighted sum of row * target."""

    def rescale(self, factor: float) -> None:
        """Multiply all targets so far, and so the coefficients, by `factor`."""
        x, y, z = self.coefficients
        self.coefficients = (x * factor, y * factor, z * factor)
        x, y, z = self._moment
        self._moment = (x * factor, y * factor, z * factor)

    def learn(self, x: float, y: float, z: float, *, target: float, weight: float) -> None:
        """Learn from one row (x, y, z), non-negative and not all zero. `weight` is positive and less than `memory`."""
        keep = 1.0 - weight / self._memory
        xx, xy, xz, yy, yz, zz = self._information
        wx, wy, wz = weight * x, weight * y, weight * z
        xx, xy, xz = keep * xx + wx * x, keep * xy + wx * y, keep * xz + wx * z
        yy, yz, zz = keep * yy + wy * y, keep * yz + wy * z, keep * zz + wz * z
        self._information = (xx, xy, xz, yy, yz, zz)
        mx, my, mz = self._moment
        mx, my, mz = keep * mx + wx * target, keep * my + wy * target, keep * mz + wz * target
        self._moment = (mx, my, mz)

        across = -self._ridge / 3.0
        along = self._ridge + across
        normal = (xx + along, xy + across, xz + across, yy + along, yz + across, zz + along)
        self.coefficients = _solve(normal, (mx, my, mz), LEAST / 3.0 * sum(self.coefficients))


def _solve(normal: tuple[float, float, float, float, float, float], moment: Coefficients, least: float) -> Coefficients:
    """Solve the normal equations. A coefficient below `least` is set to it, and the others are solved again.

    >>> _solve((2.0, 1.0, 0.0, 2.0, 0.0, 1.0), (4.0, 5.0, 3.0), 0.0)
    (1.0, 2.0, 3.0)
    >>> _solve((2.0, 1.0, 0.0, 2.0, 0.0, 1.0), (0.0, 5.0, 3.0), 0.0)
    (0.0, 2.5, 3.0)
    """
    xx, xy, xz, yy, yz, zz = normal
    mx, my, mz = moment
    cxx, cxy, cxz = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    det = xx * cxx + xy * cxy + xz * cxz
    x = (cxx * mx + cxy * my + cxz * mz) / det
    cyy, cyz, czz = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    y = (cxy * mx + cyy * my + cyz * mz) / det
    z = (cxz * mx + cyz * my + czz * mz) / det
    lowest = min(x, y, z)
    if lowest >= least:
        return x, y, z
    if lowest == x:
        y, z = _solve_pair(yy, yz, zz, my - xy * least, mz - xz * least, least)
        return least, y, z
    if lowest == y:
        x, z = _solve_pair(xx, xz, zz, mx - xy * least, mz - yz * least, least)
        return x, least, z
    x, y = _solve_pair(xx, xy, yy, mx - xz * least, my - yz * least, least)
    return x, y, least


def _solve_pair(xx: float, xy: float, yy: float, mx: float, my: float, least: float) -> tuple[float, float]:
    det = xx * yy - xy * xy
    x, y = (yy * mx - xy * my) / det, (xx * my - xy * mx) / det
    if x < least and x <= y:
        return least, max(least, (my - xy * least) / yy)
    if y < least:
        return max(least, (mx - xy * least) / xx), least
    return x, y
