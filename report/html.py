"""The report as one HTML page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from planish.report import pictures, structure, view
from planish.report.blocks import kinds_of


def write_report(
    folder: Path | str, manifest: Mapping[str, Any], measurements: Mapping[str, Any]
) -> None:
    """Write `report.html` into a folder.

    Args:
        folder: the artifact's.
        manifest: what `planish.json` holds.
        measurements: what `measurements.json` holds: `seconds` a pass took, and, once they were
            measured, `evaluation`, `choices` and `bench`, one each or a list, as JSON.
    """
    (Path(folder) / "report.html").write_text(render(manifest, measurements), encoding="utf-8")


def render(manifest: Mapping[str, Any], measurements: Mapping[str, Any]) -> str:
    """The page. The same data give the same page."""
    evaluations = _several(measurements.get("evaluation"))
    benchmarks = [view.benchmark(found) for found in _several(measurements.get("bench"))]
    shapes = structure.structure(manifest)
    page: str = template("report.html.j2").render(
        title=view.title_of(manifest),
        recipe=manifest["recipe"],
        tiles=view.tiles(manifest, evaluations, benchmarks),
        sections=[one for one in view.SECTIONS if shapes or one[0] != "structure"],
        notes=manifest["notes"],
        sizes=view.sizes(manifest),
        steps=[
            {**step, "trials": structure.trials(step["changes"], place)}
            for place, step in enumerate(view.steps(manifest, measurements.get("seconds", {})))
        ],
        structure=shapes,
        layers=view.layers(manifest["layers"]),
        blocks=max((len(kind.layers) for kind in kinds_of(manifest["layers"])), default=0),
        worst=view.worst_error(manifest["layers"]),
        pictures=pictures.of_layers(manifest["layers"]),
        evaluations=[
            {
                "caption": view.evaluation_caption(found),
                "picture": pictures.of_quality(found, place),
            }
            for place, found in enumerate(evaluations)
        ],
        choices=[view.choices_text(found) for found in _several(measurements.get("choices"))],
        benchmarks=[
            {**found, "picture": pictures.of_speed(found, place)}
            for place, found in enumerate(benchmarks)
        ],
        isolation=view.isolation(manifest),
        snippets=view.snippets(manifest),
        facts=view.facts(manifest, benchmarks),
        files=view.files(manifest),
        version=manifest["versions"].get("planish", ""),
    )
    return page


def _several(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found] if found else []


def template(name: str) -> Template:
    """A page's template: it escapes what is put in, and a name that is not there is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name)
