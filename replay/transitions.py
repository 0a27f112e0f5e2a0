"""From the stream of an actor's Steps to n-step Transitions."""

import numpy as np

from agents.agent import Step, Transition, Transitions


class NStep:
    """Turns rows of a batch of environments into the n-step transitions that each row completes.

    A row's own transition is known only once the next row has come: that brings o_{t+1}, and if it is a first, then the
    row before it closed an episode and its action was thrown away. Windows never reach across: those still open at an
    episode's last observation end there, shorter than n.
    """

    def __init__(self, window: Transitions):
        self._n, self._gamma = window.n, np.float32(window.discount)
        self._previous: Step | None = None

    def _start(self, step: Step) -> None:
        def slots(x):
            return np.zeros((self._n, *np.shape(x)), np.asarray(x).dtype)

        # A window's start, and what it has summed, stay in one slot from its first transition to its last.
        self._observation, self._action = slots(step.observation), slots(step.action)
        self._reward, self._discount = slots(step.reward), slots(step.discount)
        self._open = np.zeros((self._n, len(step.first)), bool)
        self._slot = 0

    def _close(self, slot: int, which: np.ndarray, next_observation: np.ndarray) -> Transition:
        self._open[slot] &= ~which
        index = slice(None) if which.all() else which
        return Transition(
            self._observation[slot][index].copy(),
            self._action[slot][index].copy(),
            self._reward[slot][index].copy(),
            self._discount[slot][index].copy(),
            next_observation[index],
        )

    def append(self, step: Step) -> list[Transition]:
        """Adds row t, [B, ...]; the transitions (each [b, ...], b <= B) that end at o_t or, where `step.first`, at the
        observation before it."""
        previous, self._previous = self._previous, step
        if previous is None:
            self._start(step)
            return []
        ended, done = step.first, []
        if ended.any():
            for lag in range(self._n):
                slot = (self._slot + lag) % self._n  # the oldest first
                which = self._open[slot] & ended
                if which.any():
                    done.append(self._close(slot, which, previous.observation))
        if ended.all():
            return done
        self._reward += self._discount * previous.reward
        self._discount *= self._gamma * previous.discount
        slot = self._slot
        self._observation[slot], self._action[slot] = previous.observation, previous.action
        self._reward[slot], self._discount[slot] = previous.reward, self._gamma * previous.discount
        self._open[slot] = ~ended
        self._slot = (slot + 1) % self._n
        which = self._open[self._slot]  # n transitions old
        if which.any():
            done.append(self._close(self._slot, which.copy(), step.observation))
        return done
