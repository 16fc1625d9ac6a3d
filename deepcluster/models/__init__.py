"""Backbones, their fixed front end, and heads; `models.build` is the way in."""
