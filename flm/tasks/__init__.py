"""Modes, and the resolvers that configs use."""

from omegaconf import OmegaConf

from flm.registry import entries, load

for _name, _entry in entries("resolvers").items():
    OmegaConf.register_new_resolver(_name, lambda *given, _entry=_entry: load(_entry)(*given), replace=True)
