"""The loops: actor, learner and evaluator; devices, checkpoints and metrics."""
