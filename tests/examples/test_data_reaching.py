"""Primate reaching: sessions in their real form, as NeuroBench's own loader reads them, and what is refused."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for name in ("lightning", "h5py", "torchvision"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import h5py  # noqa: E402
from recipes import RecipeError, neurons  # noqa: E402
from recipes.data import reaching  # noqa: E402
from recipes.data.reaching import PrimateReaching, read_session  # noqa: E402
from recipes.models import Decoder  # noqa: E402

from fixtures.damage import DAMAGES, Damaged, prepared, refused  # noqa: E402
from fixtures.reaching import write_reaching  # noqa: E402

NAME = "indy_20160622_01"


@pytest.fixture
def session(tmp_path):
    write_reaching(tmp_path)
    return tmp_path / "PrimateReaching" / NAME / f"{NAME}.mat"


def ready(session, **settings):
    root = str(session.parents[2])
    return prepared(
        PrimateReaching(**{"root": root, "verify": False, "batch_size": 4, "window": 20, **settings})
    )


def test_sessions_are_read_and_divided_as_neurobench_does(session, capsys):
    pytest.importorskip("neurobench", reason="neurobench is not installed")
    pytest.importorskip("scipy")
    from neurobench.datasets.primate_reaching import PrimateReaching as Published

    theirs = Published(str(session.parent), NAME, 1, bin_width=0.004, download=False)
    ours = read_session(session)
    # where its times are rounded up it has a step more, which is in no part
    assert theirs.samples.shape[1] - len(ours.x) in (0, 1)
    assert np.array_equal(theirs.samples[:, : len(ours.x)].T.numpy(), ours.x)
    np.testing.assert_allclose(theirs.labels.T.numpy(), ours.y, rtol=0, atol=1e-5)
    data = ready(session)
    parts = {"train": theirs.ind_train, "val": theirs.ind_val, "test": theirs.ind_test}
    scale = ours.y[: len(theirs.ind_train)].std(0)
    for split, indices in parts.items():
        x, y = data.part(split)
        assert np.array_equal(x, ours.x[indices])
        np.testing.assert_allclose(y, ours.y[indices] / scale, rtol=1e-5, atol=1e-6)


def test_a_step_has_the_spikes_of_the_4_ms_before_the_step_before(session):
    with h5py.File(session, "r+") as file:
        t = file["t"][0]
        for cell in file["spikes"][:, 0]:
            file[cell].attrs.pop("MATLAB_empty", None)
            file[cell][...] = np.zeros(file[cell].shape)
        first = file[file["spikes"][1, 0]]
        first[0, :6] = [t[0] - 0.005, t[0] - 0.001, t[9], t[9] + 0.001, t[11] - 0.001, t[-1] + 0.001]
    assert np.flatnonzero(read_session(session).x[:, 0]).tolist() == [1, 11, 12]


def test_batches_and_parts_without_a_common_step(session):
    data = ready(session)
    assert (data.layout, data.classes) == ("TNC", None)
    x, y = data.arrange(next(iter(data.train_dataloader())))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((20, 4, 96), torch.float32, (20, 4, 2), torch.float32)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert sum(len(data.part(split)[0]) for split in ("train", "val", "test")) == 800
    assert len(data.samples["test"]) == len(data.part("test")[0]) // 20
    np.testing.assert_allclose(data.part("train")[1].std(0), 1, rtol=1e-4)


def put(path, name, change):
    with h5py.File(path, "r+") as file:
        value = change(file[name][()])
        del file[name]
        if value is not None:
            file[name] = value


def nan(x):
    x[0, 5] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: put(p, "target_pos", lambda x: None), "it has no target_pos"),
        (lambda p: put(p, "t", lambda x: 2 * x), r"its times are not 0\.004 s apart"),
        (lambda p: put(p, "cursor_pos", nan), "a time or place is no number"),
        (lambda p: put(p, "cursor_pos", lambda x: x[:, :-1]), r"it has 800 times, cursor_pos \[2, 799\]"),
        (lambda p: put(p, "cursor_pos", np.zeros_like), "a cursor that stays where it is"),
        (lambda p: put(p, "target_pos", np.zeros_like), "has 1 reaches; ten are needed"),
    ],
    ids=["missing", "rate", "nan", "lengths", "still", "no reaches"],
)
def test_sessions_that_do_not_fit(change, says, session):
    change(session)
    message = refused(PrimateReaching, session.parents[2])
    assert str(session) in message
    assert re.search(says, message)
    assert "--data.download true" in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_session(damage, session):
    with Damaged(session, damage):
        message = refused(PrimateReaching, session.parents[2])
    assert str(session) in message
    assert "in their place" in message


def test_settings_and_checksums(session):
    root = str(session.parents[2])
    with pytest.raises(RecipeError, match="another checksum than the publisher's"):
        prepared(PrimateReaching(root=root))
    with pytest.raises(RecipeError, match=r"data\.session is one of indy_20160622_01, .*got 'joe'"):
        PrimateReaching(session="joe")
    with pytest.raises(RecipeError, match=r"data\.window must be positive"):
        PrimateReaching(window=0)
    with pytest.raises(RecipeError, match=r"the val part of .* has 80 steps; lower data\.window"):
        ready(session, window=100)


def test_a_download_is_of_one_session_and_complete_or_not_there(tmp_path, monkeypatch):
    asked, interrupted = [], True
    write_reaching(tmp_path / "made")

    def download(url, folder, name, md5):
        asked.append((url, md5))
        shutil.copy(tmp_path / "made" / "PrimateReaching" / NAME / name, folder)
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(reaching, "download_url", download)
    root = tmp_path / "data"
    given = {"root": str(root), "verify": False, "download": True, "window": 20}
    with pytest.raises(KeyboardInterrupt):
        prepared(PrimateReaching(**given))
    assert not list(root.rglob("*.mat"))
    interrupted = False
    prepared(PrimateReaching(**given))
    prepared(PrimateReaching(**given))
    assert asked == [(f"{reaching.SITE}/{NAME}.mat", reaching.SESSIONS[NAME])] * 2


def test_the_decoder_smooths_its_readout():
    torch.manual_seed(0)
    net = Decoder(5, [4, 3], 2, neurons.MSF())
    x = 3 * torch.randn(12, 6, 5)
    out = net(x)
    neurons.reset(net)
    first = net.neurons[0](net.linears[0](x))
    second = net.neurons[1](net.linears[1](first))
    read = torch.cat([first, second], -1) @ net.readout.weight.T + net.readout.bias
    weights = torch.tensor(
        [[0.04 * 0.96 ** (t - k) if k <= t else 0.0 for k in range(12)] for t in range(12)]
    )
    torch.testing.assert_close(out, torch.einsum("tk,knc->tnc", weights, read), rtol=1e-5, atol=1e-6)
