"""What a new neuron takes over from the one it replaces, and the proof that it computes the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..charges import CHARGES
from ..surrogate import Surrogate
from .experiments import same
from .quantisers import levels, window
from .saving import plain
from .site import Site, build
from .spec import MSF, Keep, Read, SwapError

__all__ = ["arguments", "explain", "fingerprint"]


def fingerprint(module: nn.Module) -> Any:
    """What decides how a neuron computes: its class and its numbers."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, str | int | float | bool | None)}
    plain.pop("training", None)
    tensors = [(n, x.detach().cpu().tolist()) for n, x in module.state_dict().items() if x.numel() <= 64]
    large = [id(x) for x in module.state_dict().values() if x.numel() > 64]
    parts = [
        (type(v).__name__, id(v) if callable(v) and not isinstance(v, nn.Module) else repr(v))
        for v in [*vars(module).values(), *module.children()]
        if callable(v)
    ]
    memories = sorted(getattr(module, "_memories_rv", {}).items(), key=str)
    return repr((type(module), plain, tensors, large, parts, memories))


def arguments(site: Site, dynamics: str, memory: dict[Any, Any]) -> dict[str, Any]:
    """Constructor arguments of the new node, in the words of its host."""
    target, host = site.target, site.host
    assert host is not None
    assert not isinstance(target, Keep)
    words = host.WORDS
    if site.role == "activation":
        return _quantiser(site, memory)
    if isinstance(target, MSF):
        own = {"D": target.D, "threshold_step": target.threshold_step, "backend": target.backend}
        if dynamics == "site":
            arguments = _kept(site, own, memory)
            if "D" in arguments:  # an integer neuron
                own = {"backend": target.backend}
                _say_levels(site, arguments["D"])
        else:
            arguments = {**host.NODES["msf"].PUBLISHED, **_settings(site)}
    else:
        own = {
            "channels": site.channels,
            "channel_dim": site.channel_dim,
            "compartments": target.compartments,
            "init": target.init,
            "backend": target.backend,
        }
        arguments = _settings(site)
    for name in ("v_threshold", "surrogate_function"):
        if getattr(target, name) is not None:
            own[words.get(name, name)] = getattr(target, name)
    if words.get("v_threshold", "v_threshold") not in {**arguments, **own}:
        raise ValueError(
            f"{site.old} has no v_threshold that is a number: give the target one (v_threshold=...), or keep this "
            "site with rules={path: swap.Keep()}"
        )
    site.sets = own
    return {**arguments, **own}


def _settings(site: Site) -> dict[str, Any]:
    """What both targets take over, whatever the dynamics."""
    assert site.host is not None
    if isinstance(site.reading, Read):
        threshold = site.reading.get("v_threshold", site.module)
        found = site.host.site_settings(site.module, site.step_mode)
        return found if threshold is None else {**found, "v_threshold": float(threshold)}
    return site.host.site_settings(site.module, site.step_mode)


def _kept(site: Site, own: dict[str, Any], memory: dict[Any, Any]) -> dict[str, Any]:
    """The site's own dynamics. Of a neuron that is no stock one they are tried: D = 1 must compute the same."""
    host = site.host
    assert host is not None
    counting = _integer_lif(site)
    if site.role == "stock" and not counting:
        return host.site_dynamics(site.module, site.step_mode)
    if site.role == "own":
        assert isinstance(site.reading, Read)
        given = site.reading.get("dynamics", site.module)
        if given is None:
            raise ValueError(
                f"the dynamics of {site.old} are not known: say them with neuron_classes={{{site.old}: "
                "swap.Read(dynamics={'charge': .., 'tau': ..})}, use dynamics='published', or keep this site with "
                "rules={path: swap.Keep()}"
            )
        candidates = [{**_settings(site), **given}]
    elif counting:
        candidates = counting
    else:
        candidates = [
            host.site_dynamics(site.module, site.step_mode, charge=charge)
            for charge in host.site_charges(site.module)
        ]
    chosen = [_first_same(site, candidates, training, memory) for training in (True, False)]
    training, evaluation = chosen
    if training.get("charge") == evaluation.get("charge"):
        return training
    return {**training, "charge": (training["charge"], evaluation["charge"])}


def _integer_lif(site: Site) -> list[dict[str, Any]]:
    """I-LIF, which emits ``round(clamp(m/theta, 0, D))`` and subtracts theta for each, as MSF: what it may be.

    It steps where a rounding does, at (k + 1/2) theta, and its rectangle of slope 1/theta is the sum of D narrow ones.
    """
    module: Any = site.module
    function = getattr(module, "surrogate_function", None)
    if not any(cls.__name__ == "ILIFNode" for cls in type(module).__mro__):
        return []
    theta, D = float(module.v_threshold), int(function.max_spike_count)  # type: ignore[union-attr]
    own = {
        "D": D,
        "v_threshold": theta / 2,
        "threshold_step": theta,
        "reset_step": theta,
        "v_reset": None,
        "detach_reset": module.detach_reset,
        "surrogate_function": Surrogate("rectangular", theta / 2),
        "tau": module.tau,
        "step_mode": site.step_mode,
        "store_v_seq": getattr(module, "store_v_seq", False),
    }
    return [{**own, "charge": charge} for charge in ("lif", "lif_product")]


def _say_levels(site: Site, D: int) -> None:
    """Of an integer neuron, whose levels are not the target's to choose."""
    assert isinstance(site.target, MSF)
    if D != site.target.D:
        site.warnings.append(f"its {D} levels are kept, whatever D the target has")


def _first_same(
    site: Site, candidates: list[dict[str, Any]], training: bool, memory: dict[Any, Any]
) -> dict[str, Any]:
    """The first of ``candidates`` that computes what the site does, to the bit."""
    key = ("same", fingerprint(site.module), training, repr([plain(c) for c in candidates]))
    if key not in memory:
        memory[key] = _try(site, candidates, training, memory.get(("levels", site.path), 1))
    number, warning = memory[key]
    if number is None:
        raise ValueError(warning)
    if warning and warning not in site.warnings:
        site.warnings.append(warning)
    return candidates[number]


def _try(site: Site, candidates: list[dict[str, Any]], training: bool, counts: int) -> tuple[int | None, str]:
    """Number of the first candidate that agrees, and a warning; or None and why none does."""
    mode = "training" if training else "evaluation"
    bare = {
        k: v
        for k, v in site.around.items()
        if k in ("keeps_state", "scale") or (k == "steps" and site.unfolds)
    }
    results = []
    for arguments in candidates:
        trial = replace(site, arguments={"D": counts, **arguments, "backend": "torch"}, around=bare)
        calls = 3 if site.step_mode == "m" else 8
        try:
            node = build(trial)
            theta = float(arguments[site.host.WORDS.get("v_threshold", "v_threshold")])  # type: ignore[union-attr]
            found = same(site.module, node, site.shape, site.device, site.dtype, calls, training, theta)
        except SwapError:
            raise
        except Exception as error:
            return (
                None,
                f"{site.old} cannot be compared with MSF ({error}): keep this site with rules={{path: swap.Keep()}}",
            )
        results.append(found)
    spikes = any(found.spikes for found in results)
    near = [i for i, found in enumerate(results) if found.spikes and found.near]
    if near:
        number = next((i for i in near if results[i].gradients), near[0])
        texts = []
        if not results[number].gradients:
            texts.append("gradients agree up to rounding")
        if not results[number].ties:
            texts.append(
                "where the membrane lies exactly on the threshold MSF fires and the old neuron does not"
            )
        return number, "; ".join(texts)
    inner = _quantisers_in(site)
    what = "its gradients are not those" if spikes else "its spikes are not those"
    return None, (
        f"{site.old} has dynamics of its own that MSF cannot keep: in {mode}, on random input, {what} of the formula "
        f"that it is read as; {inner}use dynamics='published', or keep this site with rules={{path: swap.Keep()}}"
    )


def _quantisers_in(site: Site) -> str:
    """What to do where a neuron fires by a quantiser that it holds: swap that one."""
    for child in site.module.children():
        if any(child.parameters()) or isinstance(child, nn.Identity | nn.ReLU):
            continue
        try:
            found, _, _ = levels(child, site.device)
        except ValueError:
            continue
        if len(found) > 1:
            name = type(child).__name__
            return f"it fires by its {name}: swap that with neuron_classes={{{name}: swap.Activation()}}, "
    return ""


def _quantiser(site: Site, memory: dict[Any, Any]) -> dict[str, Any]:
    """An activation as MSF without memory."""
    target = site.target
    assert isinstance(target, MSF)
    if site.device.type == "meta":
        raise ValueError(f"{site.old} cannot be tried on the meta device")
    key = ("quantiser", fingerprint(site.module))
    if key not in memory:
        read = levels(site.module, site.device)
        memory[key] = read, window(site.module, *read, site.device) if read[0] else (None, "")
    (thresholds, scale, divisor), (rectangle, difference) = memory[key]
    assert site.host is not None
    published = site.host.NODES["msf"].PUBLISHED
    common = {**published, "tau": 1.0, "step_mode": "s", "backend": target.backend}
    if thresholds:
        site.around |= {"scale": scale, "divisor": divisor}
        own: dict[str, Any] = {"thresholds": thresholds}
        if rectangle is not None:
            own["surrogate_function"] = rectangle
        if difference and target.surrogate_function is None:
            site.warnings.append(difference)
        site.warnings.append(
            f"the quantiser's {len(thresholds)} levels are kept, whatever D the target has: exact in float32"
        )
    else:
        step = target.threshold_step
        site.around |= {"scale": step}
        own = {"D": target.D, "v_threshold": step / 2, "threshold_step": step}
        site.warnings.append(
            f"ReLU is quantised: at most {step / 2:g} off up to {step * (target.D + 0.5):g}, and never above "
            f"{step * target.D:g}"
        )
    if target.surrogate_function is not None:
        own["surrogate_function"] = target.surrogate_function
    site.sets = {**common, **own}
    return site.sets


def explain(site: Site, dynamics: str) -> None:
    """What of the arguments is the site's."""
    assert site.host is not None
    papers = site.host.NODES["msf"].PUBLISHED if dynamics == "published" else {}
    charges = site.arguments.get("charge") if "charge" not in papers else None
    site.carried = {
        k: v for k, v in site.arguments.items() if k not in site.sets and k not in papers and v is not None
    }
    if "v_reset" in site.arguments and "v_reset" not in site.sets:
        site.carried["v_reset"] = site.arguments["v_reset"]
    if charges is not None:
        names = dict.fromkeys((charges,) if isinstance(charges, str) else charges)
        site.carried["charge"] = " | ".join(CHARGES[name].formula for name in names)
