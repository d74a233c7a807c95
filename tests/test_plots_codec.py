"""Figures of the bits-back notebook, from small data: they are built without error and say what
they are given."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from pcdm_lib.figures import coding

matplotlib.use("Agg")
MOVES = [
    ("start", 100),
    ("pop", 60),
    ("push", 61),
    ("push", 62),
    ("pop", 20),
    ("push", 63),
    ("pop", 30),
    ("push", 70),
    ("push", 110),
    ("pop", 90),
    ("push", 130),
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure):
    figure.canvas.draw()
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_pushes_that_follow_one_another_are_one_move():
    assert [height for _, height in coding.merged(MOVES)] == [100, 60, 62, 20, 63, 30, 110, 90, 130]


def test_symbol_costs():
    figure = coding.symbol_costs(
        {"a": (["1", "2"], [-1.5, 4.0])}, {"code": [1.0, 2.0], "other": [2.0, 2.0]}, "title"
    )
    assert "net 2.500 bits" in texts(figure) and "+4.00" in texts(figure)


def test_growth():
    assert "bits a symbol" in texts(
        coding.growth(MOVES, {"a": [0, 2, 4], "b": [5, 8, 11]}, 1.9, "title")
    )


def test_chain():
    found = texts(coding.chain(MOVES, {"fine": 9, "coarse": 11}, 10, title="title"))
    assert (
        "fine: +1.00" in found
        and "coarse: +2.00" in found
        and "lowest point: \N{MINUS SIGN}8.00" in found
    )
    assert "draw\n$z_2$" in found and "push\n$x$" in found and "push\n$z_0$" in found


def test_dirty_bits():
    assert "+10.0 %" in texts(
        coding.dirty_bits(
            {"clean": [1.0, 1.0], "dirty": [1.0, 1.1]}, {"clean": 2.0, "dirty": 2.2}, 2.0
        )
    )


def test_grid_costs():
    rng = np.random.default_rng(0)
    figure = coding.grid_costs(
        [0.1, 1.0],
        rng.normal(size=(2, 3)),
        [9.0, 5.0],
        [0.1, 0.5],
        rng.normal(size=(2, 3)),
        [0.0, 0.1],
        (0.5, 0.1),
    )
    assert "formula" in texts(figure)


def test_last_bits_that_never_differ():
    found = texts(
        coding.last_bits(
            {"a": np.array([1e-7, 0.0]), "b": np.zeros(2)},
            {"a": 1, "b": 0},
            {"a": 3.0, "b": 0.0},
            2.0**-6,
            np.array([0, 5]),
        )
    )
    assert "b: 0 of 2" in found and "1 of 2 wrong" in found


def test_file_parts_add_up():
    assert (
        "25"
        in texts(
            coding.file_parts({"f": {"base": 120.0, "container": 80.0}}, 400.0, ["base"])
        ).split()
    )


def test_bits_by_step_and_overhead():
    assert "step k of 3" in texts(coding.bits_by_step({"base": np.ones(5), "details1": np.ones(5)}))
    share = {"start of the stack": [9.0, 4.0, 1.0], "container": [1.0, 0.5, 0.1]}
    assert "2 % from 3 images" in texts(coding.overhead([1, 2, 3], share, (2, 4.5), 2, 3))
