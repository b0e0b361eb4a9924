import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.text.documents import Pair
from pipeline.text.prompts import choose_samples, get_template, templates

PAIRS = [Pair(f"d{i}", f"Text {i} " + "of words " * i, f"Short {i}.") for i in range(12)]


def test_prompt():
    template = get_template("cnn_dailymail")
    prompt = template.demonstration("Rain {fell}.", "It rained.") + template.question(" Sun. ")
    assert prompt == (
        "###\nArticle: Rain {fell}.\n\nSummarize the above article in 3 sentences.\nIt rained.\n\n"
        "###\nArticle: Sun.\n\nSummarize the above article in 3 sentences.\n"
    )
    assert get_template("xsum").question("Sun.") == (
        "###\nArticle: Sun.\n\nSummarize the above article in 1 sentence.\n"
    )


def test_every_template_is_whole():
    for template in templates().values():
        before, _, after = template.text.partition("{summary}")
        assert "{document}" in before
        assert after
        assert template.stop
    with pytest.raises(ConfigError, match="did you mean 'xsum'"):
        get_template("xsm")


def choose(count, room=1000, pairs=PAIRS, seed=0, **options):
    return choose_samples(pairs, get_template("xsum"), len, room, count, seed, **options)


def test_samples_depend_on_seed_and_document_only():
    samples, skipped = choose(12)
    assert not skipped
    assert len({sample.seed for sample in samples}) == 12
    assert choose(12, pairs=PAIRS[::-1])[0] == samples
    assert choose(5)[0] == samples[:5]
    assert choose(12, seed=1)[0] != samples


def test_long_prompts_are_skipped_and_counted_never_cut():
    room = len(get_template("xsum").question(PAIRS[7].document))
    samples, skipped = choose(8, room)
    assert all(sample.prompt_tokens == len(sample.prompt) <= room for sample in samples)
    assert {sample.document for sample in samples} == {f"d{i}" for i in range(8)}
    assert set(skipped) <= {f"d{i}" for i in range(8, 12)}
    with pytest.raises(DataError, match=r"9 prompts .* only 8 of 12 documents fit"):
        choose(9, room)


def test_demonstrations():
    pool = [Pair(f"p{i}", "Solved " * (1 + i), f"Answer {i}.") for i in range(20)]
    samples, _ = choose(6, 420, shots=2, pool=pool)
    for sample in samples:
        parts = sample.prompt.split("###\n")
        assert len(parts) == 4
        assert len(set(sample.demonstrations)) == 2
        assert len(sample.prompt) <= 420
        assert parts[-1].startswith(f"Article: Text {sample.document[1:]}")
        assert parts[-1].endswith("sentence.\n")
    assert len({tuple(sample.demonstrations) for sample in samples}) > 3
    with pytest.raises(DataError, match="with 2 demonstrations"):
        choose(6, 200, shots=2, pool=pool)
