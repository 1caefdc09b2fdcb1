"""The page of a coverage measurement: how many models of each family pass each stage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ghnq_quant.research.coverage.stages import STAGES, Measurement, ModelCoverage
from ghnq_quant.research.runs.provenance import package_versions

_INTRODUCTION = """\
Each model with 10 classes goes through these stages, in a process of its own:

| stage | passed if |
|---|---|
| create | the zoo makes it |
| capture | it is traced, and in eval mode the graph computes what the model computes |
| predict | all weights and biases of conv, linear and norm layers are predicted, finite, of their shape |
| emit | the quantized model is made: {bits}, backend `{backend}` |
| forward | in training mode, a batch of two images gives logits of shape (2, 10) |
| backward | the cross entropy has gradients |

Images are 3×64×64, or the first of 96, 160, 224 that a model runs on. «meta» counts models that are
too large for {memory} GiB: made without memory for their parameters, they end with emit, and are not
compared with their graph.
"""


def coverage_page(
    results: Sequence[ModelCoverage], measurement: Measurement, command: str = ""
) -> str:
    """Markdown: totals, a table by family, failures with reasons, and parameters that keep their own
    initialization."""
    introduction = _INTRODUCTION.format(
        bits="W{}/A{}".format(*measurement.bits),
        backend=measurement.backend,
        memory=measurement.memory // 2**30,
    )
    parts = ["# Coverage of the model zoos", introduction, _versions(results)]
    if command:
        parts += [f"```bash\n{command}\n```"]
    parts += [_totals(results), "## By family", _families(results)]
    parts += ["## Failures", _failures(results)]
    parts += ["## Values that are not finite", _not_finite(results)]
    parts += ["## Parameters that keep their own initialization", _kept(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _versions(results: Sequence[ModelCoverage]) -> str:
    found = package_versions(("torch", *(r.library for r in results), "brevitas"))
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in found.items()) + "."


def _totals(results: Sequence[ModelCoverage]) -> str:
    lines = []
    for library in dict.fromkeys(r.library for r in results):
        of_it = [r for r in results if r.library == library]
        passed = [r for r in of_it if r.failed is None]
        meta = sum(r.meta for r in passed)
        share = 100 * len(passed) / len(of_it)
        lines.append(
            f"- **{library}: {len(passed)} of {len(of_it)} models pass ({share:.1f} %)**"
            + (f", {meta} of them on the meta device" if meta else "")
        )
    return "\n".join(lines)


def _families(results: Sequence[ModelCoverage]) -> str:
    rows = [f"| library | family | models | {' | '.join(STAGES)} | meta |"]
    rows += ["|---" * (4 + len(STAGES)) + "|"]
    for library, family in dict.fromkeys((r.library, r.family) for r in results):
        of_it = [r for r in results if (r.library, r.family) == (library, family)]
        passed = [sum(stage in r.seconds for r in of_it) for stage in STAGES]
        cells = [library, family, len(of_it), *passed, sum(r.meta for r in of_it)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _failures(results: Sequence[ModelCoverage]) -> str:
    grouped: dict[tuple[str, str], list[ModelCoverage]] = {}
    for r in results:
        if r.failed:
            grouped.setdefault((r.failed, re.sub(r"'[^']*'", "…", r.reason)), []).append(r)
    if not grouped:
        return "None."
    rows = ["| stage | models | reason, of the first |", "|---|---|---|"]
    for (stage, _), of_it in sorted(grouped.items(), key=lambda item: -len(item[1])):
        names = ", ".join(r.model for r in of_it)
        rows.append(f"| {stage} | {names} | {_cell(of_it[0].reason)} |")
    return "\n".join(rows)


def _not_finite(results: Sequence[ModelCoverage]) -> str:
    names = [r.model for r in results if not r.finite]
    if not names:
        return "None."
    return (
        f"{len(names)} models run, but logits or gradients of that first batch overflow: "
        f"{', '.join(names)}. Their parameters are finite."
    )


def _cell(text: str, longest: int = 200) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return text if len(text) <= longest else f"{text[:longest]} …"


def _kept(results: Iterable[ModelCoverage]) -> str:
    models, values = Counter[str](), Counter[str]()
    for r in results:
        models.update(r.kept.keys())
        values.update(r.kept)
    if not models:
        return "None."
    rows = ["| layer and parameter | models | parameter tensors |", "|---|---|---|"]
    rows += [f"| {kind} | {count} | {values[kind]} |" for kind, count in models.most_common()]
    return "\n".join(rows)
