"""Augmentation: the same for all frames of a clip, different between clips, repeatable, and what it says it is."""

import dataclasses

import pytest
import torch

from bgs.data.augment import LUMINANCE, Augment, augment

NOTHING = Augment.none()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clips():
    coarse = torch.randint(20, 236, (4, 3, 3, 6, 8), generator=generator(1), dtype=torch.uint8)
    return coarse.repeat_interleave(4, 3).repeat_interleave(4, 4)


def only(**settings):
    return dataclasses.replace(NOTHING, **settings)


def luminance(clips):
    return (clips.float() * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(-3)


def test_nothing_changes_nothing(clips):
    assert torch.equal(augment(clips, NOTHING, generator()), clips)


def test_repeatable_and_different_between_clips(clips):
    same = clips[:1].expand(4, -1, -1, -1, -1)
    first = augment(same, Augment(), generator())
    assert first.dtype == torch.uint8 and first.shape == same.shape
    assert torch.equal(first, augment(same, Augment(), generator()))
    assert not torch.equal(first, augment(same, Augment(), generator(1)))
    assert len(first.flatten(1).unique(dim=0)) == 4


def test_all_frames_of_a_clip_alike(clips):
    still = clips[:, :1].expand(-1, 3, -1, -1, -1)
    varied = augment(still, Augment(grayscale=0.5, hue=0.2), generator())
    assert torch.equal(varied, varied[:, :1].expand_as(varied))


def test_a_setting_of_zero_leaves_the_other_draws(clips):
    clips = clips.repeat(8, 1, 1, 1, 1)
    flipped = augment(clips, only(flip=0.5), generator())
    mirrored = (flipped == clips.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], clips[~mirrored]) and 4 < mirrored.sum() < 28
    gray = augment(clips, only(grayscale=1.0), generator())
    both = augment(clips, only(flip=0.5, grayscale=1.0), generator())
    expected = gray.flip(-1).where(mirrored.view(-1, 1, 1, 1, 1), gray)
    assert (both.int() - expected.int()).abs().max() <= 1  # a row turned round is not added up in the same order


def test_flip_is_a_mirror(clips):
    assert torch.equal(augment(clips, only(flip=1.0), generator()), clips.flip(-1))


def test_crop_is_a_part_of_the_picture_scaled_back():
    height, width = 48, 64
    x = torch.arange(width).expand(height, width)
    y = torch.arange(height)[:, None].expand(height, width)
    clips = torch.stack((x, y, torch.zeros_like(x)))[None, None].to(torch.uint8).expand(50, 1, -1, -1, -1)
    crops = augment(clips, only(crop_scale=(0.49, 0.49)), generator()).float()
    spans = [crops[:, 0, c].flatten(1) for c in (0, 1)]
    for span, size in zip(spans, (width, height), strict=True):
        assert torch.all((span.amax(1) - span.amin(1) - 0.7 * size).abs() <= 2)  # area .49: sides of .7
        assert span.amin() <= 2 and span.amax() >= size - 3  # anywhere in the picture


def test_brightness_scales(clips):
    dark = clips // 2  # so that nothing is clipped
    bright = augment(dark, only(brightness=0.3), generator())
    factors = bright.flatten(1).float().sum(1) / dark.flatten(1).float().sum(1)
    assert (bright.float() - dark.float() * factors.view(-1, 1, 1, 1, 1)).abs().max() <= 1
    assert factors.min() >= 0.69 and factors.max() <= 1.31 and factors.std() > 0.05


def test_contrast_keeps_the_mean_luminance(clips):
    grey = clips[:, :, :1].expand(-1, -1, 3, -1, -1)
    varied = augment(grey, only(contrast=0.2), generator())
    mean = grey.float().mean((1, 2, 3, 4))
    torch.testing.assert_close(varied.float().mean((1, 2, 3, 4)), mean, atol=1.5, rtol=0)
    spread = varied.float().std((1, 2, 3, 4)) / grey.float().std((1, 2, 3, 4))
    assert (spread - 1).abs().max() <= 0.21 and spread.std() > 0.02


def test_saturation_and_grayscale_keep_luminance(clips):
    dull = augment(clips, only(saturation=0.3), generator())
    inside = ((dull > 0) & (dull < 255)).all(2)
    assert (luminance(dull) - luminance(clips))[inside].abs().max() <= 1
    gray = augment(clips, only(grayscale=1.0), generator())
    assert torch.equal(gray, gray[:, :, :1].expand_as(gray))
    assert (gray[:, :, 0].float() - luminance(clips)).abs().max() <= 0.51


def test_hue_turns_colours_and_leaves_grey(clips):
    grey = clips[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert torch.equal(augment(grey, only(hue=0.5), generator()), grey)
    turned = augment(clips // 4 + 96, only(hue=0.5), generator())  # dull enough to stay in range
    total = turned.float().sum(2) - (clips // 4 + 96).float().sum(2)
    assert total.abs().max() <= 2 and not torch.equal(turned, clips // 4 + 96)


def test_arguments_are_checked(clips):
    with pytest.raises(ValueError, match=r"expected uint8 \(B, T, 3, H, W\), got torch.float32"):
        augment(clips.float(), NOTHING, generator())
    with pytest.raises(ValueError, match=r"got torch.uint8 \(3, 3, 24, 32\)"):
        augment(clips[0], NOTHING, generator())
    with pytest.raises(ValueError, match="crop_scale: expected 0 < smallest <= largest <= 1"):
        Augment(crop_scale=(0.9, 0.5))
    with pytest.raises(ValueError, match="flip: expected a number from 0 to 1, got 2"):
        Augment(flip=2)
    with pytest.raises(ValueError, match="hue: expected a number from 0 to 0.5"):
        Augment(hue=0.6)
