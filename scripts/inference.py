"""Writes code with a flow language model: continues a prompt, or fills what is missing between a prefix and a suffix.

python scripts/inference.py MODEL --prompt "def f(x):" --max_length 256
python scripts/inference.py MODEL --prefix "def area(r):\\n    " --suffix "\\n    return a" --infill_length 32
python scripts/inference.py MODEL --interactive
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without an installation, too

import flm

PRECISION = {"bfloat16": "bf16-mixed", "float32": "32-true"}  # None: what the device is fast at


def main() -> int:
    """Exit status: 0, or 1 after one line on standard error."""
    given = _parser().parse_args()
    try:
        if (given.model is None) == (given.checkpoint is None):
            raise ValueError("give one model: MODEL, or --checkpoint MODEL")
        lm = flm.load(given.model or given.checkpoint, given.device, None)
        lm.precision = PRECISION.get(given.dtype)
        if given.interactive:
            while prompt := _asked():
                print(_written(lm, given, prompt), flush=True)
        elif given.prompt is None and given.prefix is None and given.suffix is None:
            raise ValueError("give --prompt, --prefix and --suffix, or --interactive")
        else:
            print(_written(lm, given, given.prompt))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _written(lm: flm.LanguageModel, given: argparse.Namespace, prompt: str | None) -> str:
    options = {"top_k": 1} if given.temperature == 0 else {"temperature": given.temperature, "top_k": given.top_k}
    options |= {"top_p": given.top_p, "solver": "exact" if given.no_confidence else "top_probability"}
    start, end = (given.prefix, given.suffix) if prompt is None else (prompt, None)
    length = given.max_length
    if prompt is None:
        length = given.infill_length + sum(len(lm.tokenizer.encode(text)) for text in (start, end) if text)
    (text,) = lm.generate(prompt=start, suffix=end, length=length, steps=given.num_steps, seed=given.seed, **options)
    return text


def _asked() -> str:
    try:
        return input("prompt (empty ends): ")
    except EOFError:
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="run folder, checkpoint or exported folder")
    parser.add_argument("--checkpoint", help="the same")
    parser.add_argument("--prompt", help="text to continue")
    parser.add_argument("--prefix", help="text before the hole")
    parser.add_argument("--suffix", help="text behind the hole")
    parser.add_argument("--infill_length", type=int, default=32, help="tokens of the hole")
    parser.add_argument("--interactive", action="store_true", help="ask for prompts")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of prompt and continuation")
    parser.add_argument("--num_steps", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most probable token always")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--no_confidence", action="store_true", help="write positions as the path does, not the surest first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=sorted(PRECISION), help="default: bfloat16 on CUDA, float32 elsewhere")
    return parser


if __name__ == "__main__":
    sys.exit(main())
