"""WiSE-FT: the ends of the curve are the base and the fine-tuned network, what lies between is measured and saved."""

import json
import shutil

import jax
import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.models.parameters import flatten
from slmjax.recipes.interpolation import mix_weights
from tests.cli.conftest import arguments


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A directory where a run has been trained that measured what it forgot."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    (folder / "general.txt").write_text("\n\n".join(f"{n} ships sail over the sea {n * n} times" for n in range(200)))
    general = f"--config.forgetting.corpus={folder / 'general.txt'}"
    assert main([*arguments(folder), general, "--config.forgetting.tokens=256"]) == 0
    return folder


def test_the_curve_runs_from_the_base_to_the_fine_tune(trained, capsys):
    report = json.loads((trained / "run" / "forgetting.json").read_text())
    capsys.readouterr()
    options = [str(trained / "run"), "--output", str(trained / "curve"), "--json"]
    assert main(["interpolate", *options, "--points", "0,0.5,1", "--save", "0.5", str(trained / "half")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((trained / "curve.json").read_text())
    assert (trained / "curve.png").stat().st_size > 10_000
    points = found["points"]
    assert [point["weight"] for point in points] == [0, 0.5, 1]
    for row in report["rows"]:
        assert points[0][row["name"]] == pytest.approx(row["before"], rel=1e-5)
        assert points[2][row["name"]] == pytest.approx(row["after"], rel=1e-5)
        assert abs(row["change"]) > 1e-3 and points[1][row["name"]] not in (row["before"], row["after"])
    base, tuned, half = (flatten(slmjax.load(trained / name).params) for name in ("base", "run", "half"))
    for path, leaf in half.items():
        np.testing.assert_allclose(leaf, (base[path] + tuned[path]) / 2, atol=1e-6, err_msg=path)


def test_the_ends_are_exact_and_shapes_must_agree():
    base, tuned = ({"a": {"kernel": jax.random.normal(jax.random.key(i), (5, 3))}} for i in range(2))
    np.testing.assert_array_equal(mix_weights(base, tuned, 0.0)["a"]["kernel"], base["a"]["kernel"])
    np.testing.assert_array_equal(mix_weights(base, tuned, 1.0)["a"]["kernel"], tuned["a"]["kernel"])
    with pytest.raises(UserError, match="same shape"):
        mix_weights(base, {"a": {"kernel": np.zeros((5, 4))}}, 0.5)


def test_mistakes_get_a_sentence(trained, capsys):
    for options, words in (
        ([str(trained / "base")], "is a model and not a run"),
        ([str(trained / "run"), "--points", "0,2"], "from 0 (the base) to 1"),
        ([str(trained / "run"), "--output", str(trained / "nowhere" / "x")], "no directory"),
    ):
        assert main(["interpolate", *options]) == 2
        assert words in capsys.readouterr().err
