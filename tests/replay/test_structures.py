"""Pytrees as columns and back, and the structures that every role works out for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import impala
from agents.agent import DiscreteActions, EnvironmentSpec, Version
from replay import blocks
from replay.blocks import Block
from replay.server import signature_of
from replay.structures import Packing, Structure, params_structure, step_structs

SPEC = EnvironmentSpec((5, 6), np.dtype(np.uint8), DiscreteActions(3))
CONFIG = impala.Config(torso="mlp", hidden_sizes=(4,), lstm_size=7, frame_stack=3, unroll_length=8, batch_size=4)


def test_structure_flattens_and_unflattens():
    rng = np.random.default_rng(0)
    item = Version(
        {"b": rng.normal(size=(2, 3)).astype(np.float32), "a": rng.integers(0, 255, 4, np.uint8), "none": None},
        [np.int64(7), (), (np.bool_(True), jnp.arange(3.0))],
    )
    structure = Structure(jax.tree.map(np.asarray, item))
    columns = structure.flatten(item)
    assert [type(column) for column in columns] == [np.ndarray] * 5
    assert [(c.shape, c.dtype) for c in columns] == [(leaf.shape, leaf.dtype) for leaf in structure.leaves]
    back = structure.unflatten(columns)
    assert jax.tree.structure(back) == jax.tree.structure(item)
    jax.tree.map(np.testing.assert_array_equal, back, item)
    signature = [(tuple(spec.shape), spec.dtype.as_numpy_dtype) for spec in signature_of(structure)]
    assert signature == [(leaf.shape, leaf.dtype.type) for leaf in structure.leaves]


def test_structure_refuses_another_tree():
    with pytest.raises(ValueError):
        Structure({"a": np.zeros(1)}).flatten({"b": np.zeros(1)})


def test_block_structure_is_that_of_real_blocks():
    agent = impala.make(CONFIG, SPEC)
    (rows, memory, learner_steps) = blocks.structure(agent, SPEC, num_envs=4).unflatten(
        blocks.structure(agent, SPEC, num_envs=4).leaves
    )
    assert isinstance(Block(rows, memory, learner_steps), Block)
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in rows._asdict().items() if name != "extras"}
    assert shapes == {
        "observation": ((9, 4, 5, 6), np.uint8),
        "action": ((9, 4), np.int32),
        "reward": ((9, 4), np.float32),
        "discount": ((9, 4), np.float32),
        "first": ((9, 4), np.bool_),
    }
    assert (rows.extras["outputs"].shape, rows.extras["outputs"].dtype) == ((9, 4, 3), np.float32)
    assert (memory.frames.shape, memory.frames.dtype) == ((4, 2, 5, 6), np.uint8), "once a block, not once a row"
    assert memory.lstm.hidden.shape == memory.lstm.cell.shape == (4, 7)
    assert (learner_steps.shape, learner_steps.dtype) == ((), np.int64)


def test_params_structure_is_that_of_real_params():
    agent = impala.make(CONFIG, SPEC)
    params = agent.policy(jax.jit(agent.init)(jax.random.key(0)))
    structure = params_structure(agent)
    columns = structure.flatten((Version(np.int64(1), np.int64(2)), params))
    assert [(c.shape, c.dtype) for c in columns] == [(leaf.shape, leaf.dtype) for leaf in structure.leaves]


def test_actions_of_another_type_than_the_environments_are_refused():
    agent = impala.make(CONFIG, SPEC)

    def act(*args):
        action, extras, memory = agent.act(*args)
        return action.astype(jnp.float32), extras, memory

    with pytest.raises(TypeError, match=r"float32.*int32"):
        step_structs(agent._replace(act=act), SPEC, 2)


# Packing -------------------------------------------------------------------------------------------------------------

MIXED = {
    "frames": np.zeros((3, 4, 2), np.uint8),
    "action": np.zeros((2,), np.float32),
    "count": np.zeros((), np.int32),
    "more": (np.zeros((2, 2), np.int32), np.zeros((), np.float32), np.zeros((5,), np.uint8)),
    "flag": np.zeros((), np.bool_),
}


def random_items(rng: np.random.Generator, batch: int):
    return jax.tree.map(lambda x: rng.integers(0, 250, (batch, *x.shape)).astype(x.dtype), MIXED)


@pytest.mark.parametrize("batch", [1, 6])
def test_packing_gives_back_every_leaf(batch):
    packing = Packing(Structure(MIXED))
    given = random_items(np.random.default_rng(batch), batch)
    columns = packing.pack(given)
    assert len(columns) == 4, "one per dtype"
    described = [((batch, *leaf.shape), leaf.dtype) for leaf in packing.structure.leaves]
    assert [(column.shape, column.dtype) for column in columns] == described
    assert sum(column.nbytes for column in columns) == sum(leaf.nbytes for leaf in jax.tree.leaves(given))
    for back in (packing.unpack(columns), jax.jit(packing.unpack)(columns)):
        assert jax.tree.structure(back) == jax.tree.structure(given)
        jax.tree.map(np.testing.assert_array_equal, back, given)
        assert [x.dtype for x in jax.tree.leaves(back)] == [x.dtype for x in jax.tree.leaves(given)]
