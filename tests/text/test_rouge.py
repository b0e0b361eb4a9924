"""ROUGE of a summary."""

import pytest

from pipeline.text.rouge import ROUGE, rouge


def test_rouge():
    assert rouge("the cat sat", "the cat sat") == dict.fromkeys(ROUGE, 100)
    assert rouge("", "the cat sat") == rouge(" \n", "the cat") == dict.fromkeys(ROUGE, 0)
    assert rouge("text", "") == dict.fromkeys(ROUGE, 0)
    found = rouge("cat the", "the cat sat on")  # 2 of 2 words and 2 of 4; no pair of them
    assert found["rouge1"] == pytest.approx(100 * 2 / 3)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 / 3)
    assert rouge("cats", "cat")["rouge1"] == 0, "no stemming"
