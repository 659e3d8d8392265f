"""Modes: one file each, and the parts that they share."""

from omegaconf import OmegaConf

from flm.tasks.wings import take_in
from flm.training.schedules import warm_up

OmegaConf.register_new_resolver("warm_up", warm_up, replace=True)
take_in()
