"""Structure in the report: shapes, the axes that went, the curve of what was tried."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planish import api
from planish.passes.goal import Goal
from planish.passes.prune import PruneChannels, PruneHeads
from planish.passes.prune_depth import PruneDepth
from planish.passes.shrink import Shrink
from planish.report.bundles import Bundle, Row, bundles, span
from planish.report.html import render
from planish.report.structure import structure, trials
from planish.report.structure_figures import curve, groups
from planish.report.words import ABSENT, TIMES
from support.captured import captured
from support.pages import Page

MAGNITUDE: Any = {"importance": "magnitude"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of six blocks of which two went, the rest with fewer heads and channels."""
    passes = (
        PruneDepth(layers=2, choose="even"),
        PruneHeads(ratio=0.5, **MAGNITUDE),
        PruneChannels(ratio=0.25, scope="global", **MAGNITUDE),
    )
    result = api.optimize(captured("llama", 6)[1], passes, isolation="off")
    folder = tmp_path_factory.mktemp("written") / "out"
    result.save(folder, target="torch")
    return folder


@pytest.fixture(scope="module")
def manifest(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "planish.json").read_text())
    return found


def test_the_page_of_a_pruned_model_has_the_section(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    ids = page.values("id")
    assert {"structure", "groups-wide-alt", "groups-narrow-alt", "shares-wide-alt"} <= set(ids)
    assert len(ids) == len(set(ids))
    assert '<a href="#structure">' in text
    assert "q_proj.weight[0]" in text


def test_axes_that_are_alike_are_one(manifest: dict[str, Any]) -> None:
    heads, channels = bundles(manifest["groups"], [one["layer"] for one in manifest["layers"]])
    assert str(heads) == "heads: 2 → 1, 4 axes alike"
    assert heads.rows == (
        Row("self_attn.q_proj.weight[0]", 4, 64, (32, 32)),
        Row("self_attn.k_proj.weight[0]", 4, 32, (16, 16)),
        Row("self_attn.v_proj.weight[0]", 4, 32, (16, 16)),
        Row("self_attn.o_proj.weight[1]", 4, 64, (32, 32)),
    )
    least, most = channels.left
    assert least < most < 192  # not the same in all blocks, and one bundle all the same
    assert [row.after for row in channels.rows] == [(least, most)] * 3


def test_shapes_are_told_by_layer(manifest: dict[str, Any]) -> None:
    found = structure(manifest)
    assert found is not None
    rows = [row for row in found["rows"] if row["layer"] == "self_attn.k_proj"]
    assert [(row["before"], row["after"], row["share"]) for row in rows] == [
        (f"32 {TIMES} 64", f"16 {TIMES} 64", "50%"),
        (f"32 {TIMES} 64", ABSENT, "0"),
    ]
    assert rows[0]["parameters"] == ("8.19k", "4.1k")  # of four blocks
    gone = [row["blocks"] for row in found["rows"] if row["after"] == ABSENT]
    assert len(set(gone)) == 1  # the same two blocks for every kind of layer
    assert found["same"] == sum(one["shapes"][0] == one["shapes"][1] for one in manifest["layers"])
    assert "18 are gone" in found["shares"].wide  # 9 layers a block


def test_a_bar_is_as_long_as_its_share() -> None:
    rows = (Row("a[0]", 1, 64, (32, 48)), Row("b[1]", 1, 64, (64, 64)), Row("c[0]", 1, 64, None))
    (axes,) = groups([Bundle("stream", 1, 64, (32, 48), rows)], 7.6).axes
    boxes = [(box.get_x(), box.get_width()) for box in axes.patches]  # type: ignore[attr-defined]
    assert boxes == [(0, 1), (0, 0.5), (0.5, 0.25), (0, 1), (0, 1), (0, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a[0]", "b[1]", "c[0]"]
    less = span((32, 48))
    said = {text.get_text() for text in axes.texts}
    assert {f"64 → {less}", "64, kept", "64, tensor gone", f"stream: 64 → {less}"} <= said
    bottom, top = axes.get_ylim()
    assert bottom > 3  # the last of three rows below a heading is inside
    assert top < 0


def test_few_indices_are_drawn_one_by_one() -> None:
    def lines(size: int) -> int:
        one = Bundle("heads", 1, size, (1, 1), (Row("q[0]", 1, 4 * size, (4, 4)),))
        return len(groups([one], 7.6).axes[0].lines)

    assert lines(4) == lines(100) + 3


def tried(*found: tuple[float, float], chosen: int) -> list[dict[str, Any]]:
    made = [
        {"what": f"without {place}", "left": left, "lost": lost, "chosen": place == chosen}
        for place, (left, lost) in enumerate(found)
    ]
    trials = {"counted": "flops", "unit": "nats a token", "made": made}
    return [{"node": "x", "what": ""}, {"node": "output", "what": "", "tried": trials}]


def test_the_curve_joins_the_best_from_the_whole_model_on() -> None:
    found = [(0.9, 0.1), (0.8, 0.5), (0.8, 0.3), (0.7, 0.2), (0.6, 0.9)]
    changes = tried(*found, chosen=3)
    (axes,) = curve(changes[1]["tried"]["made"], "flops", "nats a token", 7.6).axes
    line: Any = axes.lines[0].get_xydata()
    assert [tuple(point) for point in line.tolist()] == [(1, 0), (0.9, 0.1), (0.7, 0.2), (0.6, 0.9)]
    rings: list[Any] = [one.get_offsets() for one in axes.collections]
    assert sorted(tuple(ring[0].tolist()) for ring in rings) == sorted([(1.0, 0.0), *found])
    assert axes.get_xlabel() == "flops left"


def test_candidates_are_told_with_the_chosen_one() -> None:
    found = trials(tried((0.5, 0.1), (0.7, -0.02), chosen=1), 3)
    assert found is not None
    assert [(row["what"], row["left"], row["lost"], row["chosen"]) for row in found["rows"]] == [
        ("without 1", "70%", "-0.0200", True),
        ("without 0", "50%", "0.1000", False),
    ]
    assert 'id="trials3-wide-alt"' in found["picture"].wide
    assert trials([{"node": "x", "what": "y"}], 0) is None


def test_what_shrink_tried_reaches_the_page(tmp_path: Path) -> None:
    shrink = Shrink(target=Goal(parameters=0.8), kinds=("depth",))
    result = api.optimize(captured("llama", 4)[1], (shrink,), isolation="off")
    result.save(tmp_path / "out", target="torch")
    text = (tmp_path / "out" / "report.html").read_text()
    Page(text)
    assert re.search(r"without \d layers <span class=\"quiet\">chosen", text)
    manifest = json.loads((tmp_path / "out" / "planish.json").read_text())
    with_trials = [one for one in manifest["steps"][0]["changes"] if "tried" in one]
    assert len(with_trials) == 1


def test_what_keeps_its_shape_has_no_section(manifest: dict[str, Any]) -> None:
    same = [{**one, "shapes": [one["shapes"][0]] * 2} for one in manifest["layers"]]
    assert structure({"layers": same}) is None
    turned = [{"layer": "a", "shapes": [[[8, 4, 2]], [[8, 2, 4]]]}]
    assert structure({"layers": turned}) is None  # as codes of experts are
    old = [{key: one[key] for key in one if key != "shapes"} for one in manifest["layers"]]
    assert structure({"layers": old}) is None  # an artifact that tells no shapes
    before = {key: manifest[key] for key in manifest if key != "groups"}
    text = render({**before, "layers": old}, {})
    assert 'href="#structure"' not in text
