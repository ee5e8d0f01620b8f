"""A kept model is the recorded one, a torn file is refused, and images follow the model."""

import base64
import hashlib
import json
import math
import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from replib import files
from replib.claims import EXPERIMENTS
from replib.generation import Decoder
from replib.lab import kept_models
from replib.lab.kept_models import complete, kept_run, load_model, model_path
from replib.lab.record import Experiment, record
from replib.lab.recorded import recorded_rows
from replib.lab.run import config_of
from replib.tasks.image_files import load_images
from replib.tasks.images import bits, level_log_probs, sample_levels

MECHANISMS = ("linear", "softmax")
each_mechanism = pytest.mark.parametrize("attention", MECHANISMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=MECHANISMS)
def kept(request):
    return load_model(request.param)


def given_images(n=4):
    return load_images("digits").test[:n].flatten(1).long()


# --- what is kept


def test_the_kept_model_is_that_of_a_recorded_row_to_the_rounding_of_float16(kept):
    (row,) = (r for r in recorded_rows("images") if r["run_id"] == kept.header["run_id"])
    assert config_of(row) == kept.training.config and row["seed"] == kept.header["seed"]
    assert row["provenance"]["commit"] == kept.header["commit"]
    loss, _ = kept.training.evaluate()
    assert bits(loss) == pytest.approx(row["summary"]["bits_per_dim"], abs=1e-3)
    assert bits(loss) < row["summary"]["histogram_bits_per_dim"] - 0.4


def test_bits_per_dim_are_the_negative_log_likelihood_in_float64(kept):
    images = given_images(8)
    task, model = kept.task, kept.training.model
    batch = task.batch(images.view(-1, *task.shape))
    with torch.no_grad():
        outputs = model(*batch.inputs)
        total = 0.0
        for image, found in zip(images.tolist(), outputs.double(), strict=True):
            for level, (logits, means, log_scales) in zip(
                image, found.unflatten(-1, (3, -1)), strict=True
            ):
                edges = [
                    (2 * (level + side) / 16 - 1 - means) / log_scales.exp() for side in (-0.5, 0.5)
                ]
                below = torch.zeros_like(means) if level == 0 else edges[0].sigmoid()
                above = torch.ones_like(means) if level == 16 else edges[1].sigmoid()
                total -= math.log2((logits.softmax(-1) * (above - below)).sum().item())
        loss = task.loss(outputs, batch).item()
    assert bits(loss) == pytest.approx(total / images.numel(), rel=1e-4)


@each_mechanism
def test_a_kept_file_is_small_text(attention):
    content = model_path(attention).read_bytes()
    assert len(content) < 400_000
    content.decode("ascii")


@pytest.fixture
def models(data):
    """A data folder of the test's own with the kept models in it."""
    shutil.copytree(files.ROOT / "data" / "models", data / "models")
    return data / "models"


def rewrite(path, change):
    """Change the header or the weights of a file, and let the hash fit."""
    first, *lines = path.read_bytes().split(b"\n")
    header = json.loads(first.removeprefix(b"# "))
    content = change(header, base64.b85decode(b"".join(lines)))
    header["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_bytes(b"# " + json.dumps(header).encode() + b"\n" + base64.b85encode(content))


def smaller(header, content):
    header["config"]["model"]["n_layers"] = 2
    return content


def unknown(header, content):
    header["config"]["model"]["attention"] = "magic"
    return content


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"torn"),
        lambda path: path.write_bytes(path.read_bytes()[:-500]),
        lambda path: path.write_bytes(path.read_bytes()[:-5] + b"0000\n"),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
        lambda path: path.write_bytes(b"# " + b"[" * 200_000),
        lambda path: rewrite(path, lambda header, w: header.update(experiment=["images"]) or w),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"config"', b'"other"')),
        lambda path: rewrite(path, smaller),
        lambda path: rewrite(path, unknown),
        lambda path: rewrite(path, lambda header, content: content[:-2]),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(models, damage):
    path = model_path("linear")
    assert path.parent == models
    damage(path)
    with pytest.raises(ValueError, match="is damaged .*record images --scale laptop") as raised:
        load_model("linear")
    assert str(path) in str(raised.value)
    assert kept_run(load_model("softmax").training.config.model) is not None


def test_a_missing_file_is_refused_with_the_remedy(data, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="is missing: .*record images --scale laptop"):
        load_model("linear")


def test_rows_of_ones_own_are_beside_the_models_of_the_repository(data):
    assert model_path("linear").parent == files.ROOT / "data" / "models"
    assert kept_run(load_model("linear").training.config.model) is None


@pytest.mark.slow
def test_recording_keeps_a_model_and_makes_it_again_where_it_is_gone(data, monkeypatch):
    (job,) = [
        replace(job, keep=True)
        for job in EXPERIMENTS["images"].jobs("smoke")
        if job.config.model.attention == "linear"
    ]
    trained = []
    original = kept_models.keep_model
    monkeypatch.setattr(
        kept_models, "keep_model", lambda t, row: (trained.append(t), original(t, row))[1]
    )
    tiny = Experiment(name="images", title="", jobs=lambda scale: [job])
    (row,) = record(tiny, "smoke", device="cpu")
    loaded = load_model("linear")
    assert loaded.header["run_id"] == row["run_id"] == kept_run(job.config.model)
    pairs = zip(trained[0].model.parameters(), loaded.training.model.parameters(), strict=True)
    assert all(torch.equal(a.detach().half().float(), b) for a, b in pairs)
    assert list(record(tiny, "smoke", device="cpu")) == []
    model_path("linear").unlink()
    (again,) = record(tiny, "smoke", device="cpu")
    assert again["run_id"] == row["run_id"] and model_path("linear").parent == data / "models"


@pytest.mark.slow
def test_runs_whose_images_are_not_there_are_left_out_and_stop_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLIB_IMAGES", str(tmp_path))
    jobs = [EXPERIMENTS["images"].jobs("paper")[0], EXPERIMENTS["images"].jobs("smoke")[0]]
    mixed = Experiment(name="images", title="", jobs=lambda scale: jobs)
    with pytest.warns(UserWarning, match="softmax is left out: .*mnist.* is missing.*https://"):
        rows = list(record(mixed, "smoke", device="cpu"))
    assert [row["config"]["task"]["images"] for row in rows] == ["digits"]


# --- drawing


def test_the_decoder_predicts_what_the_whole_image_is_predicted_with(kept):
    images = given_images()
    model, tokens = kept.training.model.double(), kept.task.inputs(images[:, :-1])
    try:
        with torch.no_grad():
            expected = model(tokens)
        decoder = Decoder(model, len(images), max_len=kept.task.seq_len)
        found = torch.stack([decoder.step(token) for token in tokens.unbind(1)], dim=1)
    finally:
        model.float()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_given", [0, 1, 32, 63, 64])
def test_given_pixels_stay_and_one_is_added_at_a_time(kept, n_given):
    images = given_images()
    steps = list(complete(kept, images[:, :n_given], generator=generator()))
    assert [len(levels[0]) for levels in steps] == list(range(n_given, 65))
    assert all(torch.equal(levels[:, :n_given], images[:, :n_given]) for levels in steps)
    assert all(torch.equal(a, b[:, :-1]) for a, b in zip(steps, steps[1:], strict=False))
    assert steps[-1].min() >= 0 and steps[-1].max() <= 16


@pytest.mark.slow
def test_a_drawn_level_has_the_probability_of_the_parallel_form(kept):
    """The first level that is not given, over many completions of one image."""
    n, given = 20_000, given_images(1)[:, :20]
    _, first = islice(complete(kept, given.expand(n, -1), generator=generator()), 2)
    shares = first[:, 20].bincount(minlength=17) / n
    with torch.no_grad():
        outputs = kept.training.model(kept.task.inputs(given))[0, -1]
    expected = level_log_probs(outputs, 17).exp()
    spread = (expected * (1 - expected) / n).sqrt()
    assert ((shares - expected).abs() <= 6 * spread + 1e-4).all()


def test_a_drawing_follows_its_generator(kept):
    given = torch.zeros(3, 0)
    before = torch.get_rng_state()
    first, same, other = (
        list(complete(kept, given, generator=generator(seed)))[-1] for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state()) and first.shape == (3, 64)


def test_the_colder_the_more_alike():
    outputs = torch.randn(1, 30, generator=generator()).expand(5000, -1)
    spreads = [
        sample_levels(outputs, 17, generator(), temperature).double().var().item()
        for temperature in (0.01, 0.5, 1.0)
    ]
    assert spreads[0] < 0.5 < spreads[1] < spreads[2]


@pytest.mark.parametrize(
    "given, options, message",
    [
        (torch.zeros(2, 65), {}, r"shape \(2, 65\): use \(B, n\), n at most 64"),
        (torch.zeros(64), {}, r"shape \(64,\): use"),
        (torch.full((1, 3), 17), {}, "a given level is 17: use 0 to 16"),
        (torch.full((1, 3), -1), {}, "a given level is -1: use 0 to 16"),
        (torch.zeros(1, 3), {"temperature": 0.0}, "temperature 0.0: use 0.01 to 10"),
        (torch.zeros(1, 3), {"temperature": math.nan}, "temperature nan: use"),
    ],
)
def test_impossible_drawings_are_refused_with_the_remedy(given, options, message):
    with pytest.raises(ValueError, match=message):
        next(complete(load_model("linear"), given, generator=generator(), **options))
