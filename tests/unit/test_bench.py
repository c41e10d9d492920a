"""What the benches measure with: turns, figures, processor time, and the plots of their tables."""

import argparse
import json
import socket
import sys
import xml.etree.ElementTree as ET
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from pathlib import Path

import pytest

from app.config.routes_file import parse_routes
from tests.bench import infer, plot, quick, scaling, side_by_side
from tests.bench.options import add_svg
from tests.bench.routers import DIRECT
from tests.bench.side_by_side import Load, Program, in_turn, own_form
from tests.bench.streams import COMPARED, Streaming
from tests.bench.table import OURS, Table
from tests.support.ports import free_port
from tests.support.router import children, until

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Table:
    """A table with what may be difficult: markup in names, no figure, 0, a separator of thousands, a sign."""
    made = Table("<Chat> & more", "requests/s", "of", "p99 ms", drawn=("requests/s", "p99 ms"), about="2 cores; a < b")
    made.add("direct <no router>", "40,000", "1.00", "")
    made.add("peer & co", 10000, "0.25", "-3.0")
    made.add(OURS, "0", "", "7.50")
    capsys.readouterr()
    return made


def texts(chart: str) -> list[str]:
    """All that is written in a chart."""
    return [element.text or "" for element in ET.fromstring(chart).iter(f"{SVG}text")]


def bars(chart: str, kind: str) -> list[tuple[float, float]]:
    """Where the bars of a kind begin and how long they are."""
    found = ET.fromstring(chart).iterfind(f"{SVG}rect[@class='{kind}']")
    return [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in found]


def test_chart_is_well_formed_and_says_all_that_the_table_does(table: Table) -> None:
    """A chart is XML whatever names hold; every row and drawn figure is in it twice, to see and to be read aloud."""
    chart = plot.chart(table)
    root = ET.fromstring(chart)
    assert (root.tag, root.attrib["role"]) == (f"{SVG}svg", "img")
    labels = {element.attrib["id"]: element.text for element in root if "id" in element.attrib}
    assert list(labels) == root.attrib["aria-labelledby"].split()
    assert labels["title"] == table.title
    figures = [figure for head in table.drawn for figure in table.column(head) if figure]
    for text in (table.about, *table.drawn, *(name for name, _ in table.rows), *figures):
        assert text in texts(chart)
        assert text in (labels["description"] or "")


def test_chart_of_a_table_is_always_the_same(table: Table) -> None:
    """The same figures give the same bytes, so that a file changes only when a figure does."""
    assert plot.chart(table).encode() == plot.chart(table).encode()


def test_bars_are_as_long_as_figures_are_large(table: Table) -> None:
    """Bars begin at 0 and are proportional to the figures; what is no figure from 0 on has none; ours is marked."""
    chart = plot.chart(table)
    (left, longest), (other_left, quarter) = bars(chart, "bar")
    (ours_left, ours), _ = bars(chart, "ours")
    assert len(bars(chart, "bar")) == 2  # neither the cell without a figure nor the one below 0 has one
    assert (left, ours_left, ours) == (other_left, left, 0.0)
    assert longest == pytest.approx(4 * quarter)


def test_every_text_of_a_chart_lies_inside(table: Table) -> None:
    """Long titles and names widen the chart; they are not cut off."""
    table.add("a very long name of a row, as long as a sentence", "39,999", "", "7.49")
    table.title *= 8
    root = ET.fromstring(plot.chart(table))
    for text in root.iter(f"{SVG}text"):
        length = plot.LETTER * len(text.text or "") * (15 / 12 if text.attrib.get("class") == "title" else 1)
        at = float(text.attrib["x"]) - {"end": length, "middle": length / 2}.get(text.attrib.get("class", ""), 0)
        assert at >= 0
        assert at + length <= float(root.attrib["width"])


@pytest.mark.parametrize(
    ("values", "ends_at", "steps"),
    [
        ([], 1, 1),
        ([0.0], 1, 1),
        ([3.0], 3, 3),
        ([0.3], 0.3, 3),
        ([7.5, 1.0], 10, 2),
        ([40_000.0, 10_000.0], 40_000, 2),
        ([100.1], 150, 3),
        ([1e-3], 1e-3, 2),
    ],
)
def test_axis_is_short_and_holds_every_value(values: list[float], ends_at: float, steps: int) -> None:
    """An axis has few round steps from 0, and ends less than a step above the largest value."""
    axis = plot.axis_for(values)
    assert axis.steps == steps
    assert axis.end == pytest.approx(ends_at)


@pytest.mark.parametrize("palette", [plot.LIGHT, plot.DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart(palette: dict[str, str]) -> None:
    """Text has the contrast to its background that WCAG 2.2 asks for (1.4.3: 4.5), and bars have it (1.4.11: 3)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(name: str) -> float:
        dark, light = sorted(luminance(palette[key]) + 0.05 for key in (name, "background"))
        return light / dark

    assert contrast("text") >= 4.5
    assert contrast("bar") >= 3
    assert contrast("ours") >= 3


def test_each_table_has_a_file(table: Table, tmp_path: Path) -> None:
    """`--svg` names the file of the first table, and the others are beside it; without it nothing is written."""
    other = Table("other", "ns", drawn=("ns",))
    plot.write_svg(tmp_path / "chat.svg", table, other)
    plot.write_svg(None, table)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "chat.svg": plot.chart(table),
        "chat-2.svg": plot.chart(other),
    }


@pytest.mark.parametrize("file", ["no/such/folder/x.svg", "x.png"])
def test_file_that_cannot_be_written_is_refused_before_measuring(file: str, tmp_path: Path) -> None:
    """Minutes of measuring are not lost to a wrong name."""
    parser = argparse.ArgumentParser()
    add_svg(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--svg", str(tmp_path / file)])


def test_row_with_too_few_cells_is_refused() -> None:
    """A figure can't slip under another head."""
    with pytest.raises(ValueError, match="1 cells under 2 heads"):
        Table("t", "a", "b", drawn=()).add("row", 1)


def test_rounds_are_interleaved() -> None:
    """Every row has its turn in every round, so that a slow minute falls on all of them."""
    order: list[str] = []

    def measure(name: str) -> int:
        order.append(name)
        return len(order)

    turns = in_turn(["a", "b"], 3, measure)
    assert order == ["a", "b"] * 3
    assert turns == {"a": [1, 3, 5], "b": [2, 4, 6]}


BUSY = """
import os, time
def burn(seconds):
    while time.process_time() < seconds: pass
for ends in (True, False):
    if not os.fork():
        burn(0.3)
        open(f"burnt-{ends}", "w").close()
        time.sleep(0 if ends else 60)
        os._exit(0)
os.wait()
burn(0.1)
open("done", "w").close()
time.sleep(60)
"""


@pytest.mark.slow
def test_processor_time_is_that_of_all_processes_and_none_is_left(tmp_path: Path) -> None:
    """The figure of a router has its arbiter and its workers in it, ended ones too; and all are gone in the end."""
    with Program([sys.executable, "-c", BUSY], tmp_path, 0) as program:
        until(lambda: len(list(tmp_path.glob("burnt-*"))) == 2 and (tmp_path / "done").exists(), "all have worked")
        used = program.cpu_seconds()
        pids = [program.pid, *children(program.pid)]
    assert 0.65 < used < 1.2  # 0.3 each and 0.1, less some ticks; and what starting Python took
    assert len(pids) == 2
    until(lambda: not any(map(running, pids)), "all are gone")


def running(pid: int) -> bool:
    """Whether a process is there, and is no zombie, which whoever adopted it has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def installed_app(folder: Path, suffix: str) -> None:
    """Something that is imported by the name of the router's module."""
    for package in ("app", "app/admission"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    (folder / f"app/admission/limiter{suffix}").touch()


def test_form_of_our_router_is_that_of_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table says which form ran. The uncompiled router of another checkout is not taken for this one's."""
    pure, compiled = tmp_path / "pure", tmp_path / "compiled"
    for folder, suffix in ((pure, ".py"), (compiled, EXTENSION_SUFFIXES[0])):
        folder.mkdir()
        installed_app(folder, suffix)
    monkeypatch.setenv("PYTHONPATH", str(compiled))
    assert own_form.__wrapped__() == "compiled"
    monkeypatch.setenv("PYTHONPATH", str(pure))
    with pytest.raises(SystemExit, match="PYTHONPATH="):
        own_form.__wrapped__()
    monkeypatch.setattr(side_by_side, "ROOT", pure)
    assert own_form.__wrapped__() == "pure"


def test_our_router_runs_where_no_app_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn imports from its working folder first: in the checkout, the compiled router would never run."""
    monkeypatch.setattr(side_by_side, "own_form", lambda: "compiled")
    program = side_by_side.own_router(tmp_path, free_port())
    assert program.folder == tmp_path


def load(rate: int, *, refused: int = 0, broken: int = 0, cpu_s: float = 1.0) -> Load:
    """A second's load."""
    return Load(rate, refused, broken, 1.0, 2.0, 1.0, cpu_s)


def test_short_bench_compares_within_rounds() -> None:
    """`of other` is the median of the rounds' ratios, and not the ratio of the medians, with the extremes beside it."""
    ours, other = [100.0, 30.0, 80.0], [100.0, 20.0, 160.0]
    row = quick.Comparison("row", ours, other, ">= 1.00")
    assert row.cells == ("80", "100", "1.00", "0.50", "1.50", ">= 1.00")
    assert row._replace(has_ratio=False, digits=1).cells == ("80.0", "100.0", "", "", "", ">= 1.00")
    assert all(len(row.cells) == len(quick.HEADS) for _ in quick.HEADS)


def test_short_bench_compares_each_figure_with_its_yardstick() -> None:
    """vllm-router for chat and streams, direct for gaps, Go for /infer and rejections, ours for goodput."""
    chat = {OURS: [load(200, cpu_s=0.1)], COMPARED: [load(100, cpu_s=0.1)]}
    rows = {row.name: row.cells[2] for row in quick.chat_rows(chat)}
    assert (rows["chat requests/s"], rows["chat CPU us"], rows["chat p99 ms"]) == ("2.00", "0.50", "1.00")
    gaps = {OURS: 22.0, COMPARED: 26.0, DIRECT: 21.0}
    streamed = {name: [Streaming(gap, gap, gap, 0, "")] for name, gap in gaps.items()}
    streaming = {row.name: row.cells for row in quick.stream_rows(streamed)}
    assert streaming["gap p99, over direct"][:2] == ("1.0", "5.0")
    assert streaming["streams CPU s"][2] == "0.85"
    loads = {
        OURS: load(50),
        infer.YARDSTICK: load(100),
        quick.AT_CAP.row: load(20),
        quick.OVER_CAP.row: load(90, refused=80),
    }
    inferred = {name: [infer.Turn(one, 0)] for name, one in loads.items()}
    shares = {row.name: row.cells[2] for row in quick.infer_rows(inferred)}
    assert shares["/infer requests/s"] == "0.50"
    assert (shares["429/s at 10 x the cap"], shares["200/s at 10 x the cap"]) == ("0.80", "0.50")
    assert quick.errors(chat, streamed, inferred) == 0


@pytest.mark.parametrize("where", range(6))
def test_short_bench_counts_every_error(where: int) -> None:
    """An error of any program is in the last line; a rejection at the cap is none."""
    found = [int(at == where) for at in range(6)]
    chat = {OURS: [load(9, refused=found[0])], COMPARED: [load(9, broken=found[1])]}
    streamed = {COMPARED: [Streaming(1, 1, 1, found[2], "")]}
    inferred = {
        OURS: [infer.Turn(load(9, refused=found[3]), 0)],
        infer.YARDSTICK: [infer.Turn(load(9), 0)],
        quick.AT_CAP.row: [infer.Turn(load(9, broken=found[4]), 0)],
        quick.OVER_CAP.row: [infer.Turn(load(9, refused=8), found[5])],
    }
    assert quick.errors(chat, streamed, inferred) == 1


ROWS = [row for rows in scaling.GROUPS.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_routes_of_the_scaling_bench_are_what_its_rows_say(row: scaling.Row) -> None:
    """So many models with so many endpoints, all different, of which so many are those of the model server."""
    dead = [f"http://127.0.0.1:{port}" for port in range(1, 1 + row.models * row.endpoints - row.answering)]
    text = json.dumps(scaling.routes(row, 9001, dead))
    models = parse_routes(text, "routes.json").models
    urls = [endpoint.url for model in models for version in model.versions for endpoint in version.endpoints]
    assert len(models) == row.models
    assert len(urls) == len(set(urls)) == row.models * row.endpoints
    assert sum(url.endswith(":9001") for url in urls) == row.answering
    assert {model.health_check.interval_s > 0 for model in models} == {row.alive is None}


def test_dead_endpoints_of_the_scaling_bench_refuse() -> None:
    """Their ports can't be had by another program, and nobody listens there."""
    with scaling.refusing(3) as urls:
        for url in urls:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, 5)
            with socket.socket() as sock, pytest.raises(OSError, match="in use"):
                sock.bind(address)
    assert len(set(urls)) == 3


def test_rows_of_the_scaling_bench_differ_in_one_thing() -> None:
    """A group's rows ask in the same way, and no two rows of the bench have one name."""
    for rows in scaling.GROUPS.values():
        for row, other in pairwise(rows):
            assert len(scaling.bodies(row, rows)) == len(scaling.bodies(other, rows))
    assert len({row.name for row in ROWS}) == len(ROWS)
    models = scaling.GROUPS["models"]
    assert [len(set(scaling.bodies(row, models))) for row in models] == [row.models for row in models]
