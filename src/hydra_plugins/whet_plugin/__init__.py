"""The thin face that Hydra asks for; all logic is in `whet`."""
