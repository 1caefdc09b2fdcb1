"""A finished evaluation: its conditions, the results of all networks, and the files of its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import read_json, save_json
from ghnq_quant.research.runs.journal import read_journal
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.summary import Summary, summarize_layers, summarize_networks

RESULTS_FILE = "results.json"
NETWORKS_FILE = "networks.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`ghnq_quant.research.table1.evaluate`, which reports read.

    Attributes:
        facts: how the numbers were obtained, as plain JSON values: ``command``, ``settings``, ``data``
            (actual name, images, checksum), ``ghn`` (name, checksum, provenance), ``versions``, ….
        networks: all of them, in the order of the settings' splits.
    """

    facts: dict[str, Any]
    networks: tuple[NetworkResult, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The evaluated splits, or the model's name."""
        return tuple(dict.fromkeys(network.group for network in self.networks))

    def networks_of(self, group: str) -> list[NetworkResult]:
        """The networks of one split, or the single network of a named model."""
        return [network for network in self.networks if network.group == group]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The names of the precisions, float first."""
        return tuple(self.facts["settings"]["precisions"])

    def summaries(self) -> dict[str, dict[str, dict[str, Summary]]]:
        """Mean, standard error and maximum by group, precision and metric."""
        return {
            group: summarize_networks(self.networks_of(group), self.precisions)
            for group in self.groups
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``: everything except the layers' distributions."""
        summaries = {
            group: {p: {m: asdict(s) for m, s in of.items()} for p, of in by_precision.items()}
            for group, by_precision in self.summaries().items()
        }
        networks = [network.to_json() for network in self.networks]
        for network in networks:
            del network["layers"]
        layers = {group: summarize_layers(self.networks_of(group)) for group in self.groups}
        return {**self.facts, "summary": summaries, "layer_summary": layers, "networks": networks}

    def save(self, folder: str | Path) -> None:
        """Write ``results.json``."""
        save_json(self.to_json(), Path(folder) / RESULTS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read the folder of a finished evaluation.

        Raises:
            GhnqError: the evaluation is not finished, or its files are missing or damaged.
        """
        if not (Path(folder) / RESULTS_FILE).is_file():
            raise GhnqError(
                f"{folder} holds no finished evaluation (no {RESULTS_FILE}): give the folder of a "
                "run, or run its command again, which goes on where it stopped"
            )
        if not (Path(folder) / NETWORKS_FILE).is_file():
            raise GhnqError(
                f"{folder} lacks {NETWORKS_FILE}, the distributions of its networks' layers: give "
                "the folder that the run wrote, with all of its files"
            )
        content = read_json(Path(folder) / RESULTS_FILE)
        by_place = read_journal(Path(folder) / NETWORKS_FILE, NetworkResult)
        try:
            places = [(n["group"], n["index"]) for n in content.pop("networks")]
            networks = tuple(by_place[place] for place in places)
            for derived in ("summary", "layer_summary"):
                del content[derived]
        except (KeyError, TypeError, AttributeError) as error:
            raise GhnqError(f"{folder}: its {RESULTS_FILE} and {NETWORKS_FILE} differ") from error
        return cls(content, networks)
