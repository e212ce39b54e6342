"""Every optimizer: two updates of stacked blocks against arithmetic by hand on single ones; and resume, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plain56.config
from configs import base
from plain56 import runs
from plain56.errors import UserError
from plain56.models import create_model, stack
from plain56.training import load_run, train
from plain56.training.optimizer import OPTIMIZERS, make_optimizer

RATES = (0.1, 0.02)
DECAY = 0.01


@functools.cache
def problem():
    """Parameters with stacked blocks, drawn, and two gradients, as dicts by unstacked path in float64."""
    model = create_model("resnet20", 10, widths=(3, 4, 5))
    drawn = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    generator = np.random.default_rng(0)

    def draw(scale):
        return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, scale, leaf.shape), jnp.float32), drawn)

    return draw(1.0), (draw(0.1), draw(0.3))


def config(name, **changes):
    section = base.get_config().optimizer
    section.update(name=name, weight_decay=DECAY, **changes)
    return section


def updated(section, params, gradients):
    """Parameters after updates at the rates `RATES`."""
    optimizer = make_optimizer(section, lambda step: jnp.where(step == 0, *RATES))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def single_blocks(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in stack.unstack(tree).items()}


def by_hand(rule, section, decay_all=False):
    params, gradients = problem()
    weights, gradients = single_blocks(params), [single_blocks(gradient) for gradient in gradients]
    result = {}
    for path, w in weights.items():
        memory, decay = {}, DECAY * (decay_all or path[-1] == "kernel")
        for t, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True), start=1):
            w = rule(path, w, gradient[path], memory, t, rate, decay)
        result[path] = w
    return result


def momentum(w, g, memory, rate):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return w - rate * memory["v"]


def sgd(path, w, g, memory, t, rate, decay):
    return momentum(w, g + decay * w, memory, rate)  # L2 inside the gradient, before momentum; the rate is not part of v


def direction_of_adam(g, memory, t, nesterov=False):
    memory["m"], memory["v"] = 0.9 * memory.get("m", 0) + 0.1 * g, 0.999 * memory.get("v", 0) + 0.001 * g**2
    mean = memory["m"] / (1 - 0.9**t)
    if nesterov:  # Dozat 2016
        mean = 0.9 * memory["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return mean / (np.sqrt(memory["v"] / (1 - 0.999**t)) + 1e-8)


def adam(path, w, g, memory, t, rate, decay):
    return w - rate * direction_of_adam(g + decay * w, memory, t)


def adamw(path, w, g, memory, t, rate, decay):
    return w - rate * (direction_of_adam(g, memory, t) + decay * w)


def lars(path, w, g, memory, t, rate, decay):
    g = g + decay * w
    trust = 0.001 * np.linalg.norm(w) / np.linalg.norm(g) if path[-1] == "kernel" else 1.0
    return momentum(w, rate * trust * g, memory, 1.0)


def muon(path, w, g, memory, t, rate, decay):
    if w.ndim != 4:
        return w - rate * (direction_of_adam(g, memory, t, nesterov=True) + decay * w)
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    x = 0.9 * memory["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    x = x.reshape(-1, w.shape[-1]).T  # rows are what goes out
    x = x / np.linalg.norm(x)
    for _ in range(5):  # Jordan 2024: a Newton-Schulz iteration
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T.reshape(w.shape) * np.sqrt(max(1, w.shape[-1] / np.prod(w.shape[:-1])))
    return w - rate * (x + decay * w)


def assert_close(found, expected):
    """Compares what was added to the parameters, which is small beside them in LARS; they are near 1, in float32."""
    found, before = single_blocks(found), single_blocks(problem()[0])
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        added, wanted = found[path] - before[path], leaf - before[path]
        np.testing.assert_allclose(added, wanted, rtol=2e-5, atol=8e-7, err_msg=str(path))


def test_config_names_the_optimizers_that_there_are():
    assert tuple(OPTIMIZERS) == plain56.config.OPTIMIZERS


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("rule", [sgd, adam, adamw, lars, muon], ids=OPTIMIZERS)
def test_two_updates_equal_hand_arithmetic_on_single_blocks(rule, decay_all):
    section = config(rule.__name__, decay_all=decay_all)
    assert_close(updated(section, *problem()), by_hand(rule, section, decay_all))


@pytest.mark.parametrize("name", ["lars", "muon"])
def test_update_of_stacked_blocks_is_optaxs_of_single_ones(name):
    params, gradients = problem()
    kernels = {path: leaf for path, leaf in stack.unstack(params).items() if leaf.ndim == 4}
    if name == "lars":
        theirs = optax.lars(RATES[0], DECAY, momentum=0.9)
    else:
        axes = dict.fromkeys(kernels, optax.contrib.MuonDimensionNumbers((0, 1, 2), 3))
        theirs = optax.contrib.muon(RATES[0], beta=0.9, weight_decay=DECAY, muon_weight_dimension_numbers=axes)
    gradient = {path: leaf for path, leaf in stack.unstack(gradients[0]).items() if path in kernels}
    updates, _ = theirs.update(gradient, theirs.init(kernels), kernels)
    ours, before = single_blocks(updated(config(name), params, gradients[:1])), single_blocks(params)
    for path, added in updates.items():
        # Muon's five polynomials of fifth degree enlarge what differs in rounding.
        np.testing.assert_allclose(ours[path] - before[path], added, rtol=1e-5, atol=3e-6, err_msg=str(path))


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_gradient_is_clipped_as_a_whole_before_the_decay(largest):
    params, (gradient, _) = problem()
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in single_blocks(gradient).values()))
    scaled = jax.tree.map(lambda leaf: leaf * min(1.0, largest / norm), gradient)
    assert (largest < norm) == (largest == 0.5)
    expected = updated(config("sgd"), params, [scaled])
    assert_close(updated(config("sgd", clip_norm=largest), params, [gradient]), single_blocks(expected))


def test_options_reach_the_optimizer():
    params, gradients = problem()
    section = config("lars")
    section.options = {"trust_coefficient": 0.002}
    twice, once, before = (
        single_blocks(tree)["head", "kernel"]
        for tree in (updated(section, params, gradients[:1]), updated(config("lars"), params, gradients[:1]), params)
    )
    np.testing.assert_allclose(twice - before, 2 * (once - before), atol=8e-7)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "clipped"])
def test_two_updates_equal_pytorchs(name):
    torch = pytest.importorskip("torch")
    params, gradients = problem()
    weights = {path: torch.tensor(leaf) for path, leaf in single_blocks(params).items()}
    groups = [
        {"params": [weight for path, weight in weights.items() if (path[-1] == "kernel") == decayed], "weight_decay": decay}
        for decayed, decay in ((True, DECAY), (False, 0.0))
    ]
    choices = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = choices[name](groups) if name in choices else torch.optim.SGD(groups, momentum=0.9)
    for rate, gradient in zip(RATES, gradients, strict=True):
        for path, leaf in single_blocks(gradient).items():
            weights[path].grad = torch.tensor(leaf)
        if name == "clipped":
            torch.nn.utils.clip_grad_norm_(list(weights.values()), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    section = config("sgd", clip_norm=0.5) if name == "clipped" else config(name)
    assert_close(updated(section, params, gradients), {path: weight.numpy() for path, weight in weights.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "muon"])
def test_continued_run_equals_an_uninterrupted_one(tmp_path, tiny_config, name):
    tiny_config.optimizer.name, tiny_config.optimizer.clip_norm = name, 1.0
    train(tiny_config, tmp_path / "whole")
    tiny_config.train.stop_after = 5
    train(tiny_config, tmp_path / "parts")
    tiny_config.train.stop_after = 0
    train(tiny_config, tmp_path / "parts")
    whole, parts = (jax.tree.leaves(load_run(tmp_path / folder).state) for folder in ("whole", "parts"))
    assert runs.Run(tmp_path / "parts").status().step == tiny_config.train.steps
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adm"}, "optimizer.name must be sgd, adam, adamw, lars, muon or a function of your own"),
        ({"name": "adam", "options": {"b3": 1.0}}, "optimizer.options does not fit adam, which takes b1, b2, eps: .*'b3'"),
        ({"name": "adamw", "momentum": 0.5}, "optimizer.momentum must be 0.9 with Adam, where 0.5 would change nothing"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm must be a positive number"),
        ({"name": "no_such_module:f"}, "optimizer.name is 'no_such_module:f', but the module no_such_module cannot be"),
    ],
)
def test_mistakes_cost_a_sentence_and_leave_nothing(tmp_path, tiny_config, changes, message):
    for key, value in changes.items():
        tiny_config.optimizer[key] = value
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
