"""NIR: files, and the frameworks' own converters."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import HIDDEN, graph_of, lif_net  # noqa: E402
from spikingjelly.activation_based import layer  # noqa: E402

from msf_pmsn_plugins import snntorch as snn_nodes  # noqa: E402
from msf_pmsn_plugins.nir import export_to_nir, nodes, read, registered  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, PMSN  # noqa: E402
from msf_pmsn_plugins.spikingjelly import FUNCTIONAL, MSFNode, PMSNNode  # noqa: E402


def test_nir_itself_does_not_know_our_nodes_unless_asked_to(tmp_path):
    path = tmp_path / "net.nir"
    nir.write(path, export_to_nir(MSF.published(), torch.zeros(2, 3)))
    before = list(getattr(nir.ir, "__all_ir")), set(vars(nir.ir))
    with pytest.raises(AssertionError):
        nir.read(path)
    with registered():
        with registered():
            assert type(nir.read(path).nodes["_0"]) is nodes.MSF
        assert type(nir.read(path).nodes["_0"]) is nodes.MSF
    with pytest.raises(KeyError), registered():
        raise KeyError
    assert (list(getattr(nir.ir, "__all_ir")), set(vars(nir.ir))) == before
    graph = read(path)
    assert graph.metadata["written_by"].startswith("msf-pmsn-plugins")
    assert (list(getattr(nir.ir, "__all_ir")), set(vars(nir.ir))) == before


def test_a_nir_that_moved_its_list_is_named(monkeypatch):
    monkeypatch.delattr(nir.ir, "__all_ir")
    with pytest.raises(RuntimeError, match=r"nir>=1\.0\.7,<2"), registered():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(nir.ir, "PMSN", object, raising=False)
    with pytest.raises(RuntimeError, match=r"\['PMSN'\]"), registered():
        pass


def test_files_that_cannot_be_read(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    nir.write(path, export_to_nir(MSF.published(), torch.zeros(2, 3)))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/_0/type"]
        file["node/nodes/_0/type"] = "Neuron9"
    with pytest.raises(ValueError, match=r"Neuron9.*Another package"):
        read(path)
    nir.write(path, export_to_nir(MSF.published(), torch.zeros(2, 3)))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/_0/version"]
        file["node/nodes/_0/version"] = 2
        file["node/nodes/_0/news"] = 1
    with pytest.raises(ValueError, match=r"MSF node has format 2.*upgrade"):
        read(path)
    with h5py.File(path, "w") as file:
        file["data"] = 1
    with pytest.raises(ValueError, match=r"no NIR file.*\['data'\]"):
        read(path)
    path.write_text("hello")
    with pytest.raises(OSError, match="signature"):
        read(path)


def test_snntorch_export_is_refused():
    from snntorch.export_nir import export_to_nir as stock

    for output in (False, True):
        net = nn.Sequential(nn.Linear(3, 3), MSF.published(output=output, **HIDDEN))
        with pytest.raises(TypeError, match=r"export_nir.*msf_pmsn_plugins\.nir\.export_to_nir"):
            stock(net, torch.zeros(2, 3))
        net(torch.zeros(2, 3))  # afterwards all is as it was


def test_snntorch_import_is_refused_inside_the_patch():
    from snntorch import import_nir

    graph = export_to_nir(nn.Sequential(nn.Linear(3, 3), MSF.published(**HIDDEN)), torch.zeros(2, 3))
    before = import_nir.import_from_nir
    if hasattr(snn, "StateLeaky"):  # 1.0.0
        with pytest.raises(ValueError, match="MSF"):
            before(copy.deepcopy(graph))
    else:  # the fact that the patch is there for: a net without our neuron
        assert not any(
            isinstance(module, snn.SpikingNeuron) for module in before(copy.deepcopy(graph)).modules()
        )
    with snn_nodes.patched():
        with pytest.raises(TypeError, match=r"'_1' \(MSF\).*msf_pmsn_plugins\.nir"):
            import_nir.import_from_nir(graph)
        import_nir.import_from_nir(export_to_nir(lif_net(), torch.zeros(2, 6), standard=True))
    assert import_nir.import_from_nir is before


def test_faults_of_stock_converters_that_the_page_names():
    """Should one of these be mended, docs/nir.md is to say so."""
    import nirtorch
    import numpy as np
    from snntorch.export_nir import export_to_nir as stock_export
    from snntorch.import_nir import import_from_nir as stock_import

    def leaky(net):
        (module,) = [m for m in net.modules() if isinstance(m, snn.Leaky)]
        return module

    net = nn.Sequential(nn.Linear(3, 3), snn.Leaky(0.9 * torch.ones(3), threshold=torch.ones(3), **HIDDEN))
    assert net[1].reset_mechanism == "subtract"
    assert (
        leaky(stock_import(stock_export(net, torch.zeros(1, 3), ignore_dims=[0]))).reset_mechanism == "zero"
    )
    integrator = nir.IF(r=np.ones(3), v_threshold=np.ones(3))
    assert leaky(stock_import(graph_of(nir.Linear(np.eye(3)), integrator))).beta == pytest.approx(0.9)
    affine = nir.Affine(weight=np.eye(3), bias=np.full(3, 5.0))
    assert not any((p == 5).all() for p in nirtorch.nir_to_torch(affine, {}).parameters())


@pytest.mark.parametrize(
    "make", [lambda: MSF.published(**HIDDEN), lambda: PMSN(3, **HIDDEN)], ids=["msf", "pmsn"]
)
def test_symbolic_tracing_is_refused(make):
    with pytest.raises(TypeError, match="leaf module"):
        torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), make()))


@pytest.mark.skipif(not FUNCTIONAL, reason="SpikingJelly's NIR exchange came with 2.0.0")
@pytest.mark.parametrize("make", [MSFNode, lambda: PMSNNode(3)], ids=["msf", "pmsn"])
def test_spikingjelly_export_is_refused(make):
    from spikingjelly.activation_based import nir_exchange

    with pytest.raises(TypeError):
        nir_exchange.export_to_nir(nn.Sequential(layer.Linear(3, 3), make()), torch.zeros(2, 3))


@pytest.mark.parametrize("missing", ["nir", "nirtorch"])
def test_without_nir_the_extra_is_named(missing):
    code = f"""
import sys, torch
sys.modules[{missing!r}] = None
from msf_pmsn_plugins import nir, neurons
nir.export_to_nir(neurons.MSF(), torch.zeros(2, 3))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: NIR cannot be imported" in done.stderr
    assert "pip install 'msf-pmsn-plugins[nir]' (from a clone: pip install '.[nir]')" in done.stderr


def test_the_module_loads_no_nir():
    """Importing ours is not importing NIR."""
    code = "import sys, msf_pmsn_plugins.nir; assert not {'nir', 'nirtorch', 'h5py'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
