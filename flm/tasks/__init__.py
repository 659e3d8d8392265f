"""Modes: one file each, and the parts that they share."""

from flm.tasks.wings import take_in

take_in()
