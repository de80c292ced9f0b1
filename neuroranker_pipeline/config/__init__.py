"""Typed settings, and the profiles that fill them."""
