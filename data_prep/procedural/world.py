"""Draws scenes: what there is, how it looks and sounds, and what happens when."""

import colorsys
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from data_prep.procedural.motion import Actor, Impact, Lane, Slide
from synchformer_jax.clock import FRAME_RATE

VERSION = 1  # raise it when the same seed gives other clips
DURATION_SEC = 10.0
LEVELS = ("dense", "sparse", "none")
SPLITS = ("train", "valid", "test")
FULL_SPEED = 1.3  # frame widths a second: an impact at this speed is loud
RING_SEC = 1.2  # the longest ringing after an impact
BEFORE_SEC, AFTER_SEC = 14.0, 2.0  # the world runs before the clip starts, so that nothing is special at its start

# hue, saturation, value; frequency of the lowest mode at radius 0.08; its decay to a thousandth in seconds
MATERIALS = {
    "metal": {"hsv": (0.58, 0.12, 0.85), "pitch_hz": 780.0, "ring_sec": 0.60, "restitution": 0.62, "friction": 0.9},
    "wood": {"hsv": (0.08, 0.65, 0.75), "pitch_hz": 430.0, "ring_sec": 0.16, "restitution": 0.55, "friction": 1.5},
    "glass": {"hsv": (0.47, 0.45, 0.90), "pitch_hz": 1500.0, "ring_sec": 0.35, "restitution": 0.58, "friction": 1.1},
    "rubber": {"hsv": (0.97, 0.80, 0.80), "pitch_hz": 170.0, "ring_sec": 0.12, "restitution": 0.75, "friction": 2.0},
}
SHAPES = ("ball", "block", "hexagon")
TEXTURES = ("clouds", "bricks", "planks", "speckle")
OBJECT_BINS, BACKGROUND_BINS = (4, 3, 6, 6, 6), (4, 12, 4)  # material, shape, size, pitch, tint; texture, hue, light


def in_test(cell: tuple[int, ...]) -> bool:
    """Whether a cell of parameters belongs to the test worlds: one in four, evenly over every parameter."""
    return sum(cell) % 4 == 0


def draw_cell(rng: np.random.Generator, bins: tuple[int, ...], split: str) -> tuple[int, ...]:
    """A cell of a grid of parameters that the split may see; train and valid share theirs, test has its own."""
    while True:
        cell = tuple(int(rng.integers(size)) for size in bins)
        if in_test(cell) == (split == "test"):
            return cell


@dataclass
class Thing:
    """An object: how it looks and how it sounds."""

    material: str
    shape: str
    radius: float
    pitch_hz: float
    ring_sec: float
    colour: tuple[float, float, float]
    cell: tuple[int, ...]
    seed: int  # of its modes and its grain


@dataclass
class Drifter:
    """A silent thing that drifts smoothly through the picture."""

    shape: str
    radius: float
    colour: tuple[float, float, float]
    start: tuple[float, float]
    velocity: tuple[float, float]
    sway: tuple[float, float, float]  # amplitude, cycles a second, phase

    def at(self, times: np.ndarray) -> np.ndarray:
        """Positions `[N, 2]`; it wraps around well outside of the picture."""
        where = np.asarray(self.start) + np.asarray(self.velocity) * times[:, None]
        where[:, 0] = (where[:, 0] + 0.3) % 1.6 - 0.3
        where[:, 1] += self.sway[0] * np.sin(2 * np.pi * (self.sway[1] * times + self.sway[2]))
        return where


@dataclass
class World:
    """One scene: everything that sound and picture are rendered from."""

    level: str
    things: list[Thing]
    actors: list[Actor]
    drifters: list[Drifter]
    background: dict
    camera: list[tuple[float, float, float, float]]  # shake: amplitude x and y, cycles a second, phase
    noise: dict
    heard: list[Impact]  # by time, from before the clip starts, as it may still ring then
    slides: list[Slide]  # heard
    unseen: list[Impact] = field(default_factory=list)  # those of `heard` that the picture does not show
    seed: int = 0

    def seen(self) -> list[Impact]:
        """The impacts that the picture shows, by time, also before and after the clip."""
        return sorted((i for a in self.actors for i in a.impacts), key=lambda i: i.time)

    def shake(self, times: np.ndarray) -> np.ndarray:
        """The camera's movement `[N, 2]` in frame widths."""
        return sum(
            np.stack([a * np.sin(2 * np.pi * (f * times + p)), b * np.cos(2 * np.pi * (f * times + p))], 1)
            for a, b, f, p in self.camera
        )


def _time(impact: Impact) -> float:
    return impact.time


def loudness(impact: Impact, thing: Thing) -> float:
    """Amplitude of an impact: by speed and size, 1 for a fast one of a middling object."""
    return float(np.clip((impact.speed / FULL_SPEED) * (thing.radius / 0.08) ** 0.7, 0.08, 1.6))


def _thing(rng: np.random.Generator, split: str, radii: tuple[float, float], others: Sequence[Thing] = ()) -> Thing:
    """An object of another material than the others, so that the ear can tell them apart."""
    names = list(MATERIALS)
    while True:
        cell = draw_cell(rng, OBJECT_BINS, split)
        if names[cell[0]] not in {other.material for other in others}:
            break
    size, pitch, tint = ((c + rng.uniform()) / bins for c, bins in zip(cell[2:], OBJECT_BINS[2:], strict=True))
    name, material = names[cell[0]], MATERIALS[names[cell[0]]]
    radius = radii[0] * (radii[1] / radii[0]) ** size
    hue, saturation, value = material["hsv"]
    colour = colorsys.hsv_to_rgb(
        (hue + 0.14 * (tint - 0.5)) % 1, saturation, value * (0.85 + 0.3 * tint * (1 - tint) * 2)
    )
    return Thing(
        material=name,
        shape=SHAPES[cell[1]],
        radius=float(radius),
        pitch_hz=float(material["pitch_hz"] * 0.08 / radius * 2 ** (pitch - 0.5)),
        ring_sec=float(material["ring_sec"] * rng.uniform(0.8, 1.25)),
        colour=colour,
        cell=cell,
        seed=int(rng.integers(2**31)),
    )


def _lanes(rng: np.random.Generator, actors: int, sparse: bool) -> list[Lane]:
    """Floors for so many actors: rows, columns or a grid, with irregular borders."""
    grids = {1: [(1, 1)], 2: [(2, 1), (1, 2)], 3: [(2, 2), (3, 1)] if sparse else [(2, 2)]}
    rows, columns = grids[actors][rng.integers(len(grids[actors]))]
    top, bottom = rng.uniform(0.02, 0.08), rng.uniform(0.9, 0.96)
    levels = np.linspace(top, bottom, rows + 1)
    levels[1:-1] += rng.uniform(-0.04, 0.04, rows - 1)
    edges = np.linspace(0.03, 0.97, columns + 1)
    edges[1:-1] += rng.uniform(-0.05, 0.05, columns - 1)
    lanes = [
        Lane(float(left) + 0.015, float(right) - 0.015, float(low), float(high) + 0.03)
        for high, low in itertools.pairwise(levels)
        for left, right in itertools.pairwise(edges)
    ]
    order = rng.permutation(len(lanes))
    return [lanes[i] for i in order[:actors]]


def _actors(rng: np.random.Generator, things: list[Thing], lanes: list[Lane], sparse: bool) -> list[Actor]:
    gravity = rng.uniform(3.4, 4.4)
    floor = rng.uniform(0.15, 0.3) if sparse else rng.uniform(0.8, 1.05)  # a dull floor or a lively one
    actors = []
    for number, (thing, lane) in enumerate(zip(things, lanes, strict=True)):
        material = MATERIALS[thing.material]
        x = rng.uniform(lane.left + thing.radius, lane.right - thing.radius)
        actor = Actor(
            number,
            thing.radius,
            lane,
            restitution=material["restitution"] * floor,
            friction=material["friction"] * rng.uniform(0.8, 1.2),
            gravity=gravity,
            point=(float(x), lane.floor - thing.radius),
        )
        start = -BEFORE_SEC - 8.0
        actor.path.free(start, actor.point)
        actor.tool_kind = str(rng.choice(["mallet", "hook"] if sparse else ["floor", "floor", "hook", "mallet"]))
        actor.tool.free(start, (float(x), lane.ceiling + 0.02))
        actors.append(actor)
    return actors


def _act(rng: np.random.Generator, actor: Actor, time: float, sparse: bool) -> float:
    """Lets something happen to an actor with its first impact at `time`; gives when its tool is free again."""
    lane, radius = actor.lane, actor.radius
    room = actor.rest_height - radius - lane.ceiling
    left, right = actor.point[0] - lane.left - radius, lane.right - radius - actor.point[0]
    sign = 1.0 if rng.uniform() * (left + right) < right else -1.0
    if actor.tool_kind == "floor":
        actor.kick(time, room * rng.uniform(0.35, 1.0), sign * rng.uniform(0.05, 0.3))
        return time + 0.3
    if actor.tool_kind == "hook":
        x = float(rng.uniform(lane.left + radius, lane.right - radius))
        actor.drop(time, (room - 0.06) * rng.uniform(0.6 if sparse else 0.4, 1.0), x, 0.02, rng.uniform(0.05, 0.2))
        return time + 0.5
    span = right if sign > 0 else left
    travel = rng.uniform(0.5, 0.95) * min(span, 0.3) if sparse else rng.uniform(0.2, 0.6)
    actor.strike(time, sign * max(np.sqrt(2 * actor.friction * travel), 0.3), 0.03)
    return time + 0.7


def _prepare_sec(actor: Actor) -> float:
    """How long before an impact something must begin to move for it."""
    return {"floor": 0.05, "mallet": 0.95, "hook": 1.75}[actor.tool_kind]


def _run_dense(rng: np.random.Generator, actors: list[Actor], wait: tuple[float, float]) -> None:
    """Every actor on its own: act, come to rest, wait, act."""
    for actor in actors:
        time = -BEFORE_SEC + rng.uniform(0, 6)
        while time < DURATION_SEC + AFTER_SEC:
            free = max(_act(rng, actor, time, sparse=False), actor.rest_since)
            time = free + _prepare_sec(actor) + rng.uniform(*wait)


def _run_sparse(rng: np.random.Generator, actors: list[Actor]) -> None:
    """One thing at a time, at times whose gaps are irregular but neither short nor long."""
    gap = (1.9, 3.4) if rng.uniform() < 0.95 else (3.0, 7.0)
    time, free = -BEFORE_SEC + rng.uniform(0, gap[1]), [-np.inf] * len(actors)
    while time < DURATION_SEC + AFTER_SEC:
        ready = [i for i, a in enumerate(actors) if max(free[i], a.rest_since) + _prepare_sec(a) < time]
        if not ready:
            time += 0.2
            continue
        chosen = int(rng.choice(ready))
        free[chosen] = _act(rng, actors[chosen], time, sparse=True)
        time += rng.uniform(*gap)


def _scene(
    rng: np.random.Generator, split: str, kind: str
) -> tuple[list[Thing], list[Actor], list[Impact], list[Slide]]:
    """Objects and what happens to them; `kind` is dense or sparse."""
    sparse = kind == "sparse"
    while True:
        number = int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4] if sparse else [0.0, 0.65, 0.35]))
        things: list[Thing] = []
        for _ in range(number):
            things.append(_thing(rng, split, (0.062, 0.105) if sparse else (0.075, 0.125), things))
        lanes = _lanes(rng, number, sparse)
        if any(lane.floor - lane.ceiling < 3 * t.radius + 0.12 for t, lane in zip(things, lanes, strict=True)):
            continue  # no room to fall
        actors = _actors(rng, things, lanes, sparse)
        if sparse:
            _run_sparse(rng, actors)
        else:
            _run_dense(rng, actors, (0.1, 1.4))
        impacts = sorted((i for a in actors for i in a.impacts if -RING_SEC < i.time < DURATION_SEC), key=_time)
        count = sum(i.time >= 0 for i in impacts)
        if (1 <= count <= 4) if sparse else (15 <= count <= 30):
            slides = [s for a in actors for s in a.slides if s.end > 0 and s.start < DURATION_SEC]
            return things, actors, impacts, slides


def _background(rng: np.random.Generator, split: str) -> dict:
    cell = draw_cell(rng, BACKGROUND_BINS, split)
    hue = (cell[1] + rng.uniform()) / BACKGROUND_BINS[1]
    light = 0.16 + 0.2 * (cell[2] + rng.uniform()) / BACKGROUND_BINS[2]
    return {
        "texture": TEXTURES[cell[0]],
        "colour": colorsys.hsv_to_rgb(hue, float(rng.uniform(0.15, 0.45)), light),
        "contrast": float(rng.uniform(0.15, 0.4)),
        "cell": cell,
        "seed": int(rng.integers(2**31)),
    }


def _drifters(rng: np.random.Generator) -> list[Drifter]:
    return [
        Drifter(
            shape=str(rng.choice(SHAPES)),
            radius=float(rng.uniform(0.04, 0.1)),
            colour=colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.55)),
            start=(float(rng.uniform(-0.3, 1.3)), float(rng.uniform(0.1, 0.9))),
            velocity=(float(rng.uniform(0.03, 0.12) * rng.choice([-1, 1])), 0.0),
            sway=(float(rng.uniform(0, 0.08)), float(rng.uniform(0.05, 0.25)), float(rng.uniform())),
        )
        for _ in range(int(rng.integers(3)))
    ]


def make_world(seed: int, split: str, level: str, index: int) -> World:
    """The scene of one clip, a function of its arguments alone.

    `dense` has 1.5 to 3 impacts a second, `sparse` one to four in ten seconds by small objects; in `none` the picture
    shows one scene and the sound comes from another that is not seen.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), LEVELS.index(level), index])
    kinds = rng.choice(["dense", "sparse"], 2) if level == "none" else (level, level)
    things, actors, heard, slides = _scene(rng, split, kinds[0])
    unseen: list[Impact] = []
    if level == "none":
        others, _, heard, slides = _scene(rng, split, kinds[1])
        for item in itertools.chain(heard, slides):
            item.obj += len(things)
        things, unseen = things + others, heard
    elif rng.uniform() < 0.2:
        things.append(_thing(rng, split, (0.06, 0.12), things))
        time = float(rng.uniform(-RING_SEC, DURATION_SEC))
        speed = float(rng.uniform(0.4, 1.0))
        unseen = [Impact(time, (-1.0, 0.5), (0.0, -1.0), speed, "offscreen", len(things) - 1)]
        heard = sorted(heard + unseen, key=_time)
    return World(
        level=level,
        things=things,
        actors=actors,
        drifters=_drifters(rng),
        background=_background(rng, split),
        camera=[
            (*(float(v) for v in rng.uniform(0, 0.004, 2)), float(rng.uniform(0.1, 0.7)), float(rng.uniform()))
            for _ in range(2)
        ],
        noise={
            "picture": float(rng.uniform(0.004, 0.012)),
            "sound_db": float(rng.uniform(-48, -38)),
            "colour": float(rng.uniform(0.8, 1.8)),
            "hum_hz": float(rng.choice([50.0, 60.0])),
            "hum_db": float(rng.uniform(-56, -44)),
            "gain": float(rng.uniform(0.25, 0.5)),
        },
        heard=heard,
        slides=slides,
        unseen=unseen,
        seed=int(rng.integers(2**31)),
    )


def describe(world: World) -> dict:
    """What the sidecar tells: every event's time, place and object, and the objects. Places are shares of the frame."""
    silent, last_frame = world.level == "none", DURATION_SEC - 1 / FRAME_RATE
    unseen, heard = {id(i) for i in world.unseen}, {id(i) for i in world.heard}
    everything = sorted(world.seen() + world.unseen, key=_time)
    events = [i for i in everything if 0 <= i.time < DURATION_SEC]
    return {
        "events": [
            {
                "time_sec": round(float(i.time), 6),
                "x": round(float(i.point[0]), 4),
                "y": round(float(i.point[1]), 4),
                "object": i.obj,
                "kind": i.kind,
                "speed": round(float(i.speed), 4),
                "audible": id(i) in heard,
                "visible": id(i) not in unseen and bool(i.time <= last_frame),
            }
            for i in events
        ],
        "slides": [
            {
                "start_sec": round(float(s.start), 6),
                "end_sec": round(float(s.end), 6),
                "object": s.obj,
                "visible": not silent,
            }
            for s in world.slides
        ],
        "objects": [asdict(thing) for thing in world.things],
        "background": world.background,
    }
