"""Spoken words: WAV files, spectrograms, Google Speech Commands in its real form, and what is refused."""

import hashlib
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

for name in ("lightning", "torchvision"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from recipes import RecipeError  # noqa: E402
from recipes.data import commands  # noqa: E402
from recipes.data.audio import Spectrogram, read_wav, standard  # noqa: E402
from recipes.data.commands import WORDS, SpeechCommands  # noqa: E402
from recipes.data.files import Fault  # noqa: E402
from scipy.io import wavfile  # noqa: E402

from fixtures.damage import DAMAGES, Damaged, content, outcome, prepared, refused  # noqa: E402
from fixtures.speech import write_commands, write_word  # noqa: E402

FOLDER = "SpeechCommands/speech_commands_v0.02"
SMALL = {"steps": 20, "bands": 8}
FEW = ("bed", "yes", "zero")


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    write_commands(root)
    return root


@pytest.fixture
def few(tmp_path):
    write_commands(tmp_path, FEW)
    return tmp_path / FOLDER


def ready(root, **settings):
    return prepared(
        SpeechCommands(**{"root": str(root), "verify": False, "batch_size": 4, **SMALL, **settings})
    )


# -- WAV files


def test_recordings_are_read_to_the_bit_and_shorter_ones_end_in_zeros(tmp_path):
    x = np.random.default_rng(0).integers(-(2**15), 2**15, 12_000).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 16_000, x)
    found = read_wav(tmp_path / "a.wav")
    assert (found.dtype, found.shape) == (np.int16, (16_000,))
    assert np.array_equal(found[:12_000], x)
    assert not found[12_000:].any()


@pytest.mark.parametrize(
    ("rate", "x", "says"),
    [
        (8_000, np.zeros(8_000, np.int16), "has 8000 Hz, 16000 Hz are needed: resample it"),
        (16_000, np.zeros(16_000, np.float32), "has 1 channels of float32; one channel of int16"),
        (16_000, np.zeros((16_000, 2), np.int16), "has 2 channels of int16; one channel of int16"),
        (16_000, np.zeros(20_000, np.int16), r"has 1\.25 s, at most 1 s is needed: cut it"),
    ],
    ids=["rate", "type", "stereo", "long"],
)
def test_other_recordings_are_refused(rate, x, says, tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, rate, x)
    with pytest.raises(Fault, match=says) as error:
        read_wav(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [10, 43, 44, 45, 20_000, 32_042, 32_043])
def test_a_recording_that_is_cut_is_not_read_as_a_shorter_one(kept, tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 16_000, np.ones(16_000, np.int16))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Fault, match=r"a\.wav is cut or of another type"):
        read_wav(path)


# -- spectrograms


def test_the_spectrogram_is_the_sum_that_its_docstring_names():
    """Every window and band by hand, without the fast transform."""
    signal = np.random.default_rng(1).integers(-3000, 3000, 16_000).astype(np.int16)
    steps, bands = 50, 12
    found = Spectrogram(steps, bands)(signal)
    assert found.shape == (steps, bands)
    width, hop, size = 800, 320, 1024
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)

    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    for step in (0, 17, 49):
        middle = step * hop + hop // 2
        part = np.array(
            [signal[t] if 0 <= t < 16_000 else 0 for t in range(middle - 400, middle + 400)], float
        )
        hertz = np.arange(size // 2 + 1) * 16_000 / size
        turns = np.exp(-2j * np.pi * np.outer(hertz / 16_000, np.arange(width)))
        power = np.abs(turns @ (part * hann)) ** 2 / (hann.sum() / 2) ** 2
        edges = np.interp(np.linspace(0, mel(8000), bands + 2), mel(np.arange(8001)), np.arange(8001))
        for band in range(bands):
            up = np.interp(hertz, edges[band : band + 3], [0, 1, 0], left=0, right=0)
            assert found[step, band] == pytest.approx(1000 * np.log10(1 + power @ up), abs=2)


def test_a_sine_is_as_loud_as_it_is_and_where_it_is():
    binning = Spectrogram()
    band = 20
    weights = binning.filters[band]
    hertz = 16_000 / 512 * weights.argmax()
    t = np.arange(16_000) / 16_000
    for amplitude in (100, 10_000):
        found = binning(np.rint(amplitude * np.sin(2 * np.pi * hertz * t)).astype(np.int16))
        assert (found.argmax(1) == band).all()
        assert found[1:-1, band].min() / 100 == pytest.approx(20 * np.log10(amplitude), abs=2.5)
    assert not binning(np.zeros(16_000, np.int16)).any()
    assert binning(np.full(16_000, -(2**15), np.int16)).max() < 2**16, "it is kept in 16 bits"


def test_a_spectrogram_moves_with_its_signal():
    signal = np.zeros(16_000, np.int16)
    signal[4_000:8_000] = np.random.default_rng(0).integers(-900, 900, 4_000)
    binning = Spectrogram()
    assert np.array_equal(binning(np.roll(signal, 1_600))[10:], binning(signal)[:-10])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, r"data\.steps must divide 8000 and data\.bands be positive, got 0 and 40"),
        ({"steps": 33}, r"data\.steps must divide 8000"),
        ({"bands": 0}, r"data\.bands be positive"),
        ({"bands": 200}, r"data\.bands 200 are too narrow for 100 steps"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(RecipeError, match=says):
        SpeechCommands(**settings)


def test_recordings_are_standardised_one_by_one():
    x = standard(np.random.default_rng(0).integers(0, 9_000, (20, 8)))
    assert x.dtype == torch.float32
    assert abs(x.mean()) < 1e-5
    assert x.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert not standard(np.zeros((20, 8))).any()


# -- Google Speech Commands


def test_batches_labels_and_parts(whole_set):
    data = ready(whole_set)
    assert (data.layout, data.classes) == ("TNC", 35)
    sizes = {split: len(samples) for split, samples in data.samples.items()}
    assert sizes == {"train": 70, "val": 35, "test": 35}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = data.arrange(next(iter(loader)))
        assert (x.shape, x.dtype) == ((20, 4, 8), torch.float32)
        assert x.isfinite().all()
        assert len(y) == 4
    for samples in data.samples.values():
        source = samples.source
        assert [WORDS[label] for label in source.targets] == [
            path.parent.name for path in source.source.files
        ]
        frames, label = source[3]
        assert np.array_equal(frames, data.spectrogram(read_wav(source.source.files[3])))
        assert label == source.targets[3]
    names = {path.name for samples in data.samples.values() for path in samples.source.source.files}
    assert "white_noise.wav" not in names


def test_the_parts_are_the_lists_and_no_speaker_is_in_two(whole_set):
    data = ready(whole_set)
    speakers = {}
    for split, name in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
        files = data.samples[split].source.source.files
        listed = (whole_set / FOLDER / name).read_text().split()
        assert sorted(path.relative_to(whole_set / FOLDER).as_posix() for path in files) == sorted(listed)
    for split, samples in data.samples.items():
        speakers[split] = {path.name.split("_")[0] for path in samples.source.source.files}
    assert not speakers["train"] & speakers["val"]
    assert not speakers["train"] & speakers["test"]
    assert not speakers["val"] & speakers["test"]


def test_a_speaker_in_two_parts_is_refused(few):
    write_word(few / "zero" / "c50f55b8_nohash_7.wav", np.random.default_rng(0))  # a test speaker, in no list
    message = refused(SpeechCommands, few.parents[1], **SMALL)
    assert "c50f55b8_nohash_7.wav is of the train part and" in message
    assert "of the test part, but of one speaker; the lists" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "testing_list.txt").unlink(), "testing_list.txt is missing"),
        (
            lambda f: (f / "testing_list.txt").write_text("zero/c50f55b8_no"),
            "has in line 1 'zero/c50f55b8_no', not",
        ),
        (lambda f: shutil.copy(f / "testing_list.txt", f / "validation_list.txt"), "in both lists"),
        (lambda f: shutil.copytree(f / "zero", f / "nought"), "of the 35 words"),
        (lambda f: (f / "zero/c50f55b8_nohash_0.wav").rename(f / "zero/zero.wav"), "zero.wav is not one of"),
    ],
    ids=["no list", "cut list", "lists overlap", "another word", "another name"],
)
def test_lists_and_names_that_do_not_fit(change, says, few):
    change(few)
    message = refused(SpeechCommands, few.parents[1], **SMALL)
    assert says in message
    assert "--data.download true" in message


def test_a_part_of_the_set_is_told_from_the_whole(few):
    assert "has 84843 train recordings, 6 are in" in refused(SpeechCommands, few.parents[1], verify=True)
    assert len(ready(few.parents[1]).samples["train"]) == 6


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recording_or_list(damage, few):
    root = few.parents[1]
    whole = set.union(*content(ready(root)).values())
    for path in (few / "yes" / "0b40aa8e_nohash_1.wav", few / "validation_list.txt"):
        shutil.rmtree(root / "frames", ignore_errors=True)
        with Damaged(path, damage):
            said = outcome(lambda: SpeechCommands(root=str(root), verify=False, **SMALL), whole)
        if damage == "missing" and path.suffix == ".wav":
            assert said == "runs"
        else:
            assert str(path) in said or f"{path.parent.name}/{path.name}" in said
            assert "\n" not in said
            assert "in their place" in said
        assert not list((root / "frames").glob(".*")), "an unfinished folder is left"


def test_a_silent_recording_stays_and_is_named(few):
    path = few / "yes" / "0a7c2a8d_nohash_0.wav"
    wavfile.write(path, 16_000, np.zeros(16_000, np.int16))
    with pytest.warns(
        UserWarning, match="1 recordings of SpeechCommands .* stay as zeros.*0a7c2a8d_nohash_0"
    ):
        data = ready(few.parents[1])
    assert len(data.samples["train"]) == 6


def test_spectrograms_are_made_once_and_anew_for_another_file(few):
    root = few.parents[1]
    ready(root)
    kept = {path: path.stat().st_mtime_ns for path in (root / "frames").rglob("*.bin")}
    assert len(kept) == 3
    ready(root)
    assert {path: path.stat().st_mtime_ns for path in (root / "frames").rglob("*.bin")} == kept
    write_word(few / "yes" / "0a7c2a8d_nohash_0.wav", np.random.default_rng(7))
    ready(root)
    assert len(list((root / "frames").rglob("*.bin"))) == 4
    ready(root, bands=4)
    assert len(list((root / "frames").rglob("*.bin"))) == 7


@pytest.mark.parametrize("right", [True, False], ids=["whole", "another file"])
def test_a_download_is_checked_and_unpacked_in_one_move(right, tmp_path, monkeypatch):
    """The publisher's archive, here of a fixture."""
    write_commands(tmp_path / "made", FEW)
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / FOLDER, arcname=".")
    asked = []

    def download(url, folder):
        asked.append(url)
        shutil.copy(archive, Path(folder) / url.rsplit("/", 1)[1])

    monkeypatch.setattr(commands, "download_url", download)
    if right:
        monkeypatch.setattr(commands, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
        assert len(ready(tmp_path / "data", download=True).samples["train"]) == 6
        ready(tmp_path / "data", download=True)
        assert len(asked) == 1, "it is there: not fetched again"
        assert not list((tmp_path / "data").rglob("*.tar.gz"))
    else:
        message = refused(SpeechCommands, tmp_path / "data", download=True)
        assert "speech_commands_v0.02.tar.gz has another checksum than the publisher's" in message
        assert not list((tmp_path / "data").rglob("*.*"))
