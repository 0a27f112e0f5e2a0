"""The building blocks that algorithms share: networks, policies, exploration, advantages. None is an algorithm."""
