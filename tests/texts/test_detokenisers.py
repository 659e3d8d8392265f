"""Sentences of our own, as each data set spells them and as they are usually written."""

import pickle

import pytest

from flm.texts.detokenisers import (
    LambadaDetokeniser,
    LM1BDetokeniser,
    PTBDetokeniser,
    ScientificDetokeniser,
    WikitextDetokeniser,
)

LM1B = [
    ("The dog did n't bark , she said .", "The dog did n't bark, she said."),  # n't stays apart, as published
    ("It 's their parents ' house , and they 'll sell it .", "It's their parents ' house, and they'll sell it."),
    ("Was it late ? No ! It was early !", "Was it late? No! It was early!"),
    ("Was it late ?", "Was it late?"),
    ('" I saw nothing , " he said .', '"I saw nothing," he said.'),
    ('He called it " a great day " twice .', 'He called it "a great day" twice.'),
    ("It cost $ 5 million ( \u00a3 3 million ) ; they paid .", "It cost $5 million (\u00a33 million); they paid."),
    ("See http : / / a.example and https : / / b.example / c", "See http://a.example and https://b.example/c"),
    ("He spoke [ softly ] of ' the end ' : nothing .", "He spoke [softly] of 'the end': nothing."),
    ("One . Two . Three .", "One . Two. Three."),  # a stop follows a word with a blank before it
    ("Either / or , this ; that", "Either/or, this; that"),
    ("caf\u00e9 , na\u00efve ? oui .", "caf\u00e9, na\u00efve? oui."),
    ("Already written as usual, it's not touched.", "Already written as usual, it's not touched."),
]
WIKITEXT = [
    (" = = Early life = = \n", " == Early life ==\n"),
    (" = = = Youth = = = \n", " === Youth ===\n"),
    ("It sold 1 @,@ 250 @,@ 000 copies at 2 @.@ 5 each", "It sold 1,250,000 copies at 2.5 each"),
    ("a well @-@ known , if small , river ( the Aa ) .", "a well-known, if small, river (the Aa) ."),
    ('He wrote " the end " ; it was . Or not ?', 'He wrote "the end"; it was. Or not ?'),
    ("at 48 \u00b0 N of it", "at 48\u00b0N of it"),
    ("the river 's bank [ sic ] : steep { so }", "the river's bank [sic]: steep {so}"),
    ("the miners ' strike", "the miners' strike"),
]
PTB = [
    ("the company 's sales rose N N to $ N million", "the company's sales rose 1 1 to $1 million"),
    ("they do n't trade <unk> at # N or N N N more", "they don't trade ? at #1 or 1 1 1 more"),
    ("the traders ' view \\/ hope is N", "the traders' view / hope is N"),  # at the end it is no number between blanks
    ("one \n two", "one\ntwo"),
]


@pytest.mark.parametrize(
    ("detokeniser", "pairs"), [(LM1BDetokeniser(), LM1B), (WikitextDetokeniser(), WIKITEXT), (PTBDetokeniser(), PTB)]
)
def test_sentences(detokeniser, pairs):
    assert [detokeniser(spelled) for spelled, _ in pairs] == [written for _, written in pairs]


def test_lambada():
    detokenise = LambadaDetokeniser()
    assert detokenise("  \u201cCome in,\u201d she said.\n\n ") == '\n"Come in," she said.'
    assert detokenise("two\n\nlines\u2019 ends") == "\ntwo\n\nlines\u2019 ends"


def test_articles_get_both_sets_of_rules():
    article = "we used 3 @.@ 5 ml ( n = 7 ) , which is cheap ( $ 2 ) ; it 's known .\nsecond , paragraph ?"
    once = ScientificDetokeniser()(article)
    assert once == LM1BDetokeniser()(WikitextDetokeniser()(article))
    assert once == "we used 3.5 ml (n = 7), which is cheap ($2); it's known .\nsecond, paragraph?"


def test_fingerprints_tell_them_apart_and_they_can_be_sent_to_a_process():
    kinds = [LM1BDetokeniser, WikitextDetokeniser, PTBDetokeniser, LambadaDetokeniser, ScientificDetokeniser]
    assert len({kind().fingerprint()["normaliser"] for kind in kinds}) == len(kinds)
    for kind in kinds:
        again = pickle.loads(pickle.dumps(kind()))
        assert again("a , b") == kind()("a , b") and again.fingerprint() == kind().fingerprint()
