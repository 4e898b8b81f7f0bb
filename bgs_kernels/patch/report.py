"""What ``accelerate`` found in a model, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What runs fused in a model and what was left as it is; ``str`` of it is readable.

    Attributes:
        fused: names of the modules that run fused, by what runs in them.
        left: names of the modules that were looked at and left as they are, by the reason.
    """

    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of modules that run fused."""
        return sum(map(len, self.fused.values()))

    def __str__(self) -> str:
        lines = [f"{self.count} module{'' if self.count == 1 else 's'} fused"]
        lines += [f"  {len(names):4d}  {kind}: {_patterns(names)}" for kind, names in self.fused.items()]
        if self.left:
            lines.append("left as they are")
            lines += [f"  {len(names):4d}  {reason}: {_patterns(names)}" for reason, names in self.left.items()]
        return "\n".join(lines)


def _patterns(names: Iterable[str]) -> str:
    """Name modules that differ by numbers only as one, and what they have in common before the last number once:
    layer.*.(attention.query, mlp.fc1)."""
    places: dict[str, list[str]] = {}
    for name in dict.fromkeys(re.sub(r"(?:(?<=\.)|^)\d+(?=\.|$)", "*", each) for each in names):
        before, star, after = name.rpartition("*.")
        places.setdefault(before + star, []).append(after or "(itself)")
    return ", ".join(
        place + (f"({', '.join(within)})" if place and len(within) > 1 else ", ".join(within))
        for place, within in places.items()
    )
