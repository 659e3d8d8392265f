"""Text that data sets keep with blanks around its punctuation, set as it is usually written.

The rules follow what published likelihoods on these sets were measured with (the line of arXiv 2310.16834 and 2406.07524),
in the same order, because a rule sees what those before it left. They only undo spacing; what a set replaced for good
(PTB's N and <unk>) becomes a fixed stand-in. text8 is no detokeniser: it leaves 27 symbols (Mahoney, "About the test data",
mattmahoney.net/dc/textdata).
"""

import re
import string
from typing import Any

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


class Detokeniser:
    """Base: the rules in turn, each everywhere in the text before the next."""

    name: str
    version = 1  # raise when rules change, so that caches of the old text are not reused
    rules: tuple[Rule, ...] = ()

    def __call__(self, text: str) -> str:
        for pattern, replacement in self.rules:
            text = pattern.sub(replacement, text)
        return text

    def fingerprint(self) -> dict[str, Any]:
        return {"normaliser": self.name, "version": self.version}


class LM1BDetokeniser(Detokeniser):
    """One Billion Word Benchmark: one sentence, tokens apart."""

    name = "lm1b"
    rules = _rules(
        (r"(https?) : / / ", r"\1://"),
        (r" '(\w+)", r"'\1"),  # it 's, we 'll
        (r" (\w+) \. ", r" \1. "),  # a full stop only after a word, so not within an ellipsis of single dots
        (r" (\w+) \.$", r" \1."),
        (r" \? ", "? "),
        (r" \?$", "?"),
        (r" ! ", "! "),
        (r" !$", "!"),
        (r" , ", ", "),
        (r" : ", ": "),
        (r" ; ", "; "),
        (r" / ", "/"),
        (r'" ([^"]+) "', r'"\1"'),
        (r"' ([^']+) '", r"'\1'"),
        (r"\( ([^()]+) \)", r"(\1)"),
        (r"\[ ([^\[\]]+) \]", r"[\1]"),
        (r"([$\u00a3]) ", r"\1"),
    )


class WikitextDetokeniser(Detokeniser):
    """WikiText: articles by the line, numbers split by @-@, @,@ and @.@."""

    name = "wikitext"
    rules = _rules(
        (r"s '", "s'"),
        *((f" @{re.escape(mark)}@ ", mark) for mark in "-,."),
        *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
        (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
        (r"{\s*([^}]*?)\s*}", r"{\1}"),
        (r'"\s*([^"]*?)\s*"', r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"),
        (r"= = = =", "===="),  # headings
        (r"= = =", "==="),
        (r"= =", "=="),
        (" \u00b0 ", "\u00b0"),
        (r" \n", "\n"),
        (r"\n ", "\n"),
        (r" N ", " 1 "),
        (r" 's", "'s"),
    )


class PTBDetokeniser(Detokeniser):
    """Penn Treebank as text: no capitals, no punctuation; every number is N, every rare word <unk>."""

    name = "ptb"
    rules = _rules(
        (r" 's", "'s"),
        (r"s ' ", "s' "),
        (r" n't", "n't"),
        (r" \n ", "\n"),
        (r"\\/", "/"),
        (r"(?<= )N(?= )", "1"),
        (r"([$#]) 1", r"\g<1>1"),
        (r"<unk>", "?"),
    )


class LambadaDetokeniser(Detokeniser):
    """LAMBADA: straight double quotes; a line break before each passage, none around it else."""

    name = "lambada"
    rules = _rules(("[\u201c\u201d]", '"'), (r"\A\s*", "\n"), (r"\s+\Z", ""))


class ScientificDetokeniser(Detokeniser):
    """Arxiv and Pubmed articles: the rules of WikiText, then those of LM1B."""

    name = "scientific"
    rules = WikitextDetokeniser.rules + LM1BDetokeniser.rules


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPELLING = str.maketrans(
    {
        **{str(digit): f" {word} " for digit, word in enumerate(_DIGITS)},
        # ASCII only: str.lower() would turn some other letters (the Kelvin sign) into a to z
        **dict(zip(string.ascii_uppercase, string.ascii_lowercase, strict=True)),
    }
)
_OTHER = re.compile("[^a-z]+")


class Text8Normaliser:
    """Lower case, digits spelled out one by one, every run of other characters one space; none at either end."""

    def __call__(self, text: str) -> str:
        return _OTHER.sub(" ", text.translate(_SPELLING)).strip()

    def fingerprint(self) -> dict[str, Any]:
        return {"normaliser": "text8", "version": 1}
