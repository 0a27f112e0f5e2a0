"""Placement `serial`: the roles take turns in one thread. Nothing depends on timing, so that the same command gives the
same parameters to the bit."""

import contextlib
import itertools
import pathlib

from launchers import program, roles
from launchers.run import Run
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from runtime import metrics
from runtime.evaluator import next_due


class _Stopped(Exception):
    """The run is to end, and the experience that the learner waits for will not come."""


def train(run: Run, logdir: pathlib.Path, port: int) -> bool:
    """Trains until the run is done or a signal comes; returns whether it was asked to end.

    Actors take turns while there is nothing to learn from.
    """
    stop = stop_on_signals(run.preemption_notice)
    (parts,) = roles.make_parts(run, logdir).values()
    carrier = roles.connect([parts], logdir, port)
    variables = parts.variables(carrier)

    def publish(version, params):
        variables.push(version, params if run.carrier == "local" else parts.mesh.host(params))

    channel, replay = roles.open_channel(parts, carrier)
    learning = roles.Learning(parts, publish, carrier, channel, replay)
    others = [role for role in program.roles_of(run) if role.kind in ("actor", "evaluator")]
    played = {role: roles.play(role, parts, carrier, stop) for role in others}
    turns = itertools.cycle([work for role, work in played.items() if role.kind == "actor"])
    (evaluations,) = (work for role, work in played.items() if role.kind == "evaluator")

    failures: list[Exception] = []

    def take_turn(work):
        """Returns what `work` yields next, or "nothing" if it is done or fails. A failure ends the run as a signal
        does: the learner saves first."""
        try:
            return next(work, "nothing")
        except Exception as error:
            failures.append(error)
            stop.set()
            return "nothing"

    def turn():
        if stop.is_set():
            raise _Stopped
        take_turn(next(turns))

    channel.turn, channel.stopped = turn, stop.is_set

    def batches():
        with contextlib.suppress(_Stopped):
            for batch in parts.batches(channel):
                yield batch if channel.source else batch._replace(sample=parts.send(batch.sample))
                if stop.is_set():
                    return

    with Display(run, logdir) as display:
        done = metrics.latest(logdir, "evaluator")
        due = next_due(int(done["env_steps"]) if done else 0, run.eval_period)
        for version in learning.run(batches()):
            display.refresh()
            if version.env_steps >= min(due, run.max_env_steps):
                learning.publish()
                while take_turn(evaluations) is None:
                    display.refresh()
                learning.look()  # now, rather than once a second, because nothing may depend on time
                due = next_due(version.env_steps, run.eval_period)
    learning.close()
    for work in played.values():
        work.close()
    if failures:
        raise failures[0]
    return stop.is_set()
