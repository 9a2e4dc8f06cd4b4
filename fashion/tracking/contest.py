"""Whether a version is better than the champion, and whether that can be noise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fashion.analysis.paired import Paired, compare
from fashion.settings.gate import Gate
from fashion.tracking.versions import Version

# A list of images in a tag names so many of them; MLflow allows 100,000 characters.
LISTED = 1000

# Tag with the result in one line, and one with p and the rows of the images.
CONTEST = "contest"
CONTEST_IMAGES = "contest_images"
# Differences of fractions of images are exact within this.
_EXACT = 1e-12


@dataclass(frozen=True)
class Contest:
    """A version compared with the champion on the same images.

    Attributes:
        champion: number of the champion.
        metric: what they are compared by.
        gain: improvement of the metric; negative if the version is worse.
        paired: the images that only the champion, or only the version, classifies correctly; None
            if that is not known of both.
        overruled: whether the champion was forced when the version was registered already.
    """

    champion: str
    metric: str
    gain: float
    paired: Paired | None
    overruled: bool = False

    def problem(self, gate: Gate) -> str:
        """Return why the version does not pass the gate; empty if it does."""
        if self.gain <= 0:
            return "not better"
        if self.overruled:
            return f"version {self.champion} was forced"
        if self.gain < gate.min_gain - _EXACT:
            return f"it gains less than min_gain {gate.min_gain:g}"
        if gate.min_p == 1:
            return ""
        if self.paired is None:
            return "without predictions of both, it cannot be tested"
        if self.paired.p_value("greater") > gate.min_p:
            return f"p is above min_p {gate.min_p:g}"
        return ""

    def tags(self, outcome: str) -> dict[str, str]:
        """Return the evidence as tags for the version."""
        tags = {CONTEST: f"{self}: {outcome}"}
        if self.paired is not None:
            tags[CONTEST_IMAGES] = json.dumps(
                {
                    "p": self.paired.p_value("greater"),
                    "gained": _listed(self.paired.only_second),
                    "lost": _listed(self.paired.only_first),
                }
            )
        return tags

    @property
    def evidence(self) -> str:
        """How many images differ, and p; empty if that is not known."""
        if self.paired is None:
            return ""
        noun = "image differs" if self.paired.differing == 1 else "images differ"
        gained, lost = len(self.paired.only_second), len(self.paired.only_first)
        p = self.paired.p_value("greater")
        return f"; {self.paired.differing} {noun} ({gained} gained, {lost} lost), p = {p:.2g}"

    def __str__(self) -> str:
        comparison = f"{abs(self.gain):.4f} {'better' if self.gain > 0 else 'worse'} than"
        if not self.gain:
            comparison = "equal to"
        return f"its {self.metric} is {comparison} version {self.champion}'s{self.evidence}"


def between(champion: Version | None, version: Version, metric: str) -> Contest | None:
    """Compare a version with the champion; None if they were not measured on the same images."""
    if champion is None or champion.number == version.number:
        return None
    if not (champion.is_measured and version.is_measured and champion.images(metric)):
        return None
    if champion.images(metric) != version.images(metric):
        return None
    first, second = champion.right(metric), version.right(metric)
    return Contest(
        champion.number,
        metric,
        version.score(metric) - champion.score(metric),
        None if first is None or second is None else compare(first, second),
        champion.overrules(version),
    )


def _listed(rows: Sequence[int]) -> list[int | str]:
    more = len(rows) - LISTED
    return [*map(int, rows[:LISTED]), *([f"and {more} more"] if more > 0 else [])]
