"""What algorithms are made of and share: networks, policies, exploration, advantages; no algorithm itself."""
