"""What is seen in a synthetic clip: every latent moves the agents as it should, and nuisance tells nothing of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bgs.data.synthetic.choreography import CHOREOGRAPHIES, write_script
from bgs.data.synthetic.latents import INTERACTIONS, LATENTS, Scenario, Stream, draw_scenarios, stream
from bgs.data.synthetic.render import STYLES, render
from bgs.data.synthetic.scene import Scene, draw_scene
from bgs.data.synthetic.script import LEADER, PARTNER, Script

FRAMES, FPS, SIZE = 24, 8, 64


def script_of(scenario: Scenario, clip: int = 0) -> Script:
    return write_script(scenario, stream(0, Stream.MOTION, clip), FRAMES, FPS)


def scene_of(clip: int) -> Scene:
    return draw_scene(stream(0, Stream.NUISANCE, clip))


def with_latent(interaction: str, latent: str, value: float) -> Scenario:
    latents = np.array(INTERACTIONS[interaction])
    latents[LATENTS.index(latent)] = value
    return Scenario(interaction, latents)


def correlation(first: object, second: object) -> float:
    return float(np.corrcoef(first, second)[0, 1])


@pytest.fixture(scope="module")
def clips() -> list[tuple[Scenario, Scene, dict[str, np.ndarray]]]:
    scenarios = draw_scenarios(48, 0)
    return [
        (s, scene_of(clip), {style: render(script_of(s, clip), scene_of(clip), style, SIZE) for style in STYLES})
        for clip, s in enumerate(scenarios)
    ]


def test_every_interaction_has_means_in_range_and_a_choreography() -> None:
    assert 8 <= len(INTERACTIONS) <= 12
    assert CHOREOGRAPHIES.keys() == INTERACTIONS.keys()
    assert all(len(means) == len(LATENTS) and 0 <= min(means) <= max(means) <= 1 for means in INTERACTIONS.values())


def test_interactions_come_in_equal_shares_and_vary_within() -> None:
    scenarios = draw_scenarios(120, 1)
    latents = {name: np.array([s.latents for s in scenarios if s.interaction == name]) for name in INTERACTIONS}
    assert all(len(values) == 10 for values in latents.values())
    assert all(values.std(axis=0).mean() > 0.05 for values in latents.values())
    assert all(((values >= 0) & (values <= 1)).all() for values in latents.values())


def test_streams_are_distinct_and_repeatable() -> None:
    np.testing.assert_array_equal(stream(7, Stream.MOTION, 3).random(4), stream(7, Stream.MOTION, 3).random(4))
    draws = [stream(7, kind, clip).random() for kind in Stream for clip in (None, 0, 1)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("style", STYLES)
def test_pixel_motion_follows_arousal(clips: list, style: str) -> None:
    motion = [np.abs(np.diff(pictures[style].astype(float), axis=0)).mean() for _, _, pictures in clips]
    assert correlation(motion, [scenario["arousal"] for scenario, _, _ in clips]) > 0.6


@pytest.mark.parametrize("style", STYLES)
def test_distance_of_the_bodies_in_the_picture_follows_agent_distance(clips: list, style: str) -> None:
    distances = []
    for _, scene, pictures in clips:
        frames = pictures[style].astype(float)
        centroids = []
        for look in scene.agents:
            near = np.linalg.norm(frames - np.array(look.body), axis=-1) < 60
            weight = near.sum(axis=(1, 2)).clip(1)
            centroids.append((near.sum(axis=1) * np.arange(SIZE)).sum(axis=1) / weight)
        distances.append(np.median(np.abs(centroids[0] - centroids[1])))
    assert correlation(distances, [scenario["agent_distance"] for scenario, _, _ in clips]) > 0.6


@pytest.mark.parametrize("latent", LATENTS)
def test_every_latent_alone_changes_the_picture(latent: str) -> None:
    interaction, scene = "teach", scene_of(5)
    low, high = (render(script_of(with_latent(interaction, latent, v)), scene, "figures", SIZE) for v in (0.1, 0.9))
    changed = (np.abs(low.astype(int) - high).max(axis=-1) > 40).mean(axis=(1, 2))
    assert changed.max() > 0.01  # of the pixels; an agent covers about a tenth


def facing(script: Script) -> float:
    towards = np.arctan2(script.z[:, ::-1] - script.z, script.x[:, ::-1] - script.x)
    return float(np.cos(script.yaw - towards).mean())


def separation(script: Script) -> float:
    return float(np.hypot(script.x[:, 0] - script.x[:, 1], script.z[:, 0] - script.z[:, 1]).mean())


def synchrony(script: Script) -> float:
    return float(np.abs(np.exp(1j * (script.stride[:, LEADER] - script.stride[:, PARTNER])).mean()))


MEASURES = {
    "agent_distance": separation,
    "arousal": lambda script: float(np.abs(np.diff(script.arms, axis=0)).mean() + script.swing.mean()),
    "dominance": lambda script: float((script.size[:, LEADER] - script.size[:, PARTNER]).mean()),
    "facingness": facing,
    "joint_action": synchrony,
    "communication": lambda script: float(script.talk.mean()),
    "intimacy": lambda script: float(script.reach.mean()),
    "valence": lambda script: float(script.smile.mean()),
}


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("interaction", ["argue", "dance", "ignore", "play", "teach"])
def test_each_latent_drives_its_movement(interaction: str, latent: str) -> None:
    near = with_latent(interaction, "agent_distance", 0.1).latents  # agents that are far apart cannot touch
    measured = []
    for value in (0.1, 0.5, 0.9):
        latents = near.copy()
        latents[LATENTS.index(latent)] = value
        measured.append(MEASURES[latent](script_of(Scenario(interaction, latents))))
    assert measured[0] < measured[1] < measured[2]


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_agents_stay_in_sight(interaction: str) -> None:
    for clip in range(5):
        script = script_of(Scenario(interaction, np.array(INTERACTIONS[interaction])), clip)
        assert np.abs(script.x).max() <= 0.45
        assert np.abs(script.z).max() <= 0.3
        assert all(np.isfinite(values).all() for values in vars(script).values())


@pytest.mark.parametrize("style", STYLES)
def test_mirroring_exchanges_left_and_right(style: str) -> None:
    script, scene = script_of(draw_scenarios(1, 0)[0]), scene_of(0)
    plain, mirrored = (render(script, replace(scene, mirrored=flag), style, SIZE) for flag in (False, True))
    np.testing.assert_array_equal(plain[:, :, ::-1], mirrored)


def test_nuisance_is_independent_of_the_latents() -> None:
    clips = 600
    latents = np.array([s.latents for s in draw_scenarios(clips, 11)])
    scenes = [draw_scene(stream(11, Stream.NUISANCE, clip)) for clip in range(clips)]
    nuisance = np.array(
        [
            [
                *scene.offset,
                *scene.pan,
                scene.zoom,
                scene.zoom_change,
                scene.mirrored,
                scene.indoor,
                scene.expanse,
                scene.objects,
                *(channel for look in scene.agents for channel in look.body),
                *(look.size for look in scene.agents),
            ]
            for scene in scenes
        ],
        dtype=float,
    )
    between = np.corrcoef(latents.T, nuisance.T)[: len(LATENTS), len(LATENTS) :]
    assert np.abs(between).max() < 4.5 / np.sqrt(clips)  # standard errors of a correlation of 0


def test_nuisance_reaches_the_picture_and_not_the_script(clips: list) -> None:
    scenario = clips[0][0]
    script = script_of(scenario)
    first, second = (render(script, scene_of(clip), "figures", SIZE).astype(int) for clip in (1, 2))
    assert np.abs(first - second).mean() > 5
    for name, values in vars(script_of(scenario)).items():
        np.testing.assert_array_equal(values, getattr(script, name))
