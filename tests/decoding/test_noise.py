"""The noise that text is sampled with."""

import torch

from pipeline.decoding.generate import _SampleBySeed


def test_noise_samples_the_softmax():
    logits = torch.tensor([0.1, -1.0, 0.6, 0.0])
    noise = _SampleBySeed(0.5, range(4000))
    drawn = noise(torch.zeros(4000, 1), logits.expand(4000, 4)).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(share, (logits / 0.5).softmax(-1), atol=0.03)


def test_streams_of_noise_are_each_their_own():
    zeros = torch.zeros(3, 5)
    together = _SampleBySeed(1.0, [3, 4, 5])
    alone = _SampleBySeed(1.0, [4])
    for _ in range(3):
        assert torch.equal(together(zeros, zeros)[1], alone(zeros, zeros[:1])[0])
