"""What serving adds to the core: two commands."""

from flm.registry import Wing

WING = Wing(commands={"serve": "flm.serving.serve:serve", "demo": "flm.serving.demo:demo"})
