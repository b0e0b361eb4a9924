"""What comes from package registries and the hub."""
