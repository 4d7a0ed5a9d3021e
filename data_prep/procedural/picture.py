"""A scene to frames: anti-aliased shapes on a textured still, with a camera that shakes a little and a noisy sensor."""

from collections.abc import Callable, Iterator

import numpy as np

from data_prep.procedural.motion import Actor, Impact
from data_prep.procedural.world import DURATION_SEC, FULL_SPEED, Thing, World
from synchformer_jax.clock import FRAME_RATE

PUFF_SEC = 0.18  # how long specks fly after an impact
SQUASH_SEC = 0.05  # how fast a squashed object springs back
SPARKS = {
    "metal": (1.0, 0.92, 0.55),
    "glass": (0.85, 0.97, 1.0),
    "wood": (0.95, 0.84, 0.66),
    "rubber": (0.92, 0.88, 0.85),
}
Shade = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _edge(distance: np.ndarray, size: int) -> np.ndarray:
    """Coverage of a pixel from the signed distance to an edge in frame widths."""
    return np.clip(0.5 - distance * size, 0.0, 1.0)


class Canvas:
    """Some frames at once, float32 `[T, S, S, 3]` in 0..1, on which shapes are drawn at a position a frame."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.size = frames.shape[1]
        self._flat = frames.reshape(-1, 3)

    def draw(self, which: np.ndarray, centre: np.ndarray, reach: float | tuple[float, float], shade: Shade) -> None:
        """Draws in frames `which [n]` around `centre [n, 2]`.

        `shade` gets the distances from the centre, `[n, q, p]` in frame widths, of all pixels that are at most `reach`
        away in x and y, and returns the opacity and the colour there. No frame may be given twice.
        """
        size, reach = self.size, np.broadcast_to(np.asarray(reach, np.float64), 2)
        if not np.any(np.all((centre > -reach) & (centre < 1 + reach), axis=1)):
            return
        width, height = np.minimum(np.ceil(2 * reach * size).astype(int) + 2, size)
        corner = np.clip(np.floor((centre - reach) * size).astype(np.int64), 0, (size - width, size - height))
        x, y = corner[:, :1] + np.arange(width), corner[:, 1:] + np.arange(height)
        dx = ((x + 0.5) / size - centre[:, :1]).astype(np.float32)[:, None, :]
        dy = ((y + 0.5) / size - centre[:, 1:]).astype(np.float32)[:, :, None]
        opacity, colour = shade(*np.broadcast_arrays(dx, dy))
        index = (which[:, None, None] * size + y[:, :, None]) * size + x[:, None, :]
        under = np.take(self._flat, index, axis=0)
        self._flat[index] = under + opacity[..., None] * (colour - under)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline of a shape, negative inside."""
    if shape == "ball":
        return np.sqrt(dx * dx + dy * dy) - radius
    dx, dy = np.abs(dx), np.abs(dy)
    if shape == "block":
        x, y = dx - 0.75 * radius, dy - 0.75 * radius
        return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - 0.25 * radius
    return np.maximum(dy, 0.5 * dy + 0.866 * dx) - radius  # a hexagon that lies on a side


def _box(dx, dy, half_x, half_y):
    return np.maximum(np.abs(dx) - half_x, np.abs(dy) - half_y)


# The still behind everything.


def _clouds(rng: np.random.Generator, rows: int, columns: int, tilt: float) -> np.ndarray:
    """Smooth noise of standard deviation 1 that looks alike at every resolution."""
    waves, out = 24, np.zeros((rows, columns))
    y, x = np.mgrid[:rows, :columns] / max(rows, columns)
    for _ in range(waves):
        frequency, angle, phase = np.exp(rng.uniform(np.log(1), np.log(14))), *rng.uniform(0, 2 * np.pi, 2)
        out += frequency**-tilt * np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return out / out.std()


def _texture(background: dict, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    smooth = _clouds(rng, *y.shape, 0.5)
    if background["texture"] == "bricks":
        row = np.floor(y * 9)
        joints = np.minimum(np.abs((y * 9) % 1 - 0.5), np.abs((x * 5 + 0.5 * (row % 2)) % 1 - 0.5) * 1.8)
        return 0.5 * smooth + 2.0 * np.clip(joints * 6, 0, 1) - 1
    if background["texture"] == "planks":
        return 0.5 * smooth + np.sin(7.3 * np.floor(x * 7)) + 0.4 * np.sin(40 * y + 3 * smooth)
    if background["texture"] == "speckle":
        return 0.4 * smooth + 0.8 * _clouds(rng, *y.shape, -0.3)
    return smooth


def still(world: World, size: int, margin: int) -> np.ndarray:
    """Wall, floors and posts, float32 `[S + 2 margin, S + 2 margin, 3]`."""
    rng = np.random.default_rng(world.background["seed"])
    y, x = (np.mgrid[-margin : size + margin, -margin : size + margin] + 0.5) / size
    wall = 1 + world.background["contrast"] * 0.5 * _texture(world.background, y, x, rng)
    wall *= 1.1 - 0.35 * ((x - 0.5) ** 2 + (y - 0.4) ** 2)
    picture = np.clip(wall, 0.3, 2)[..., None] * np.asarray(world.background["colour"])
    dark, light = picture * 0.45, picture * 0.8 + 0.1
    for actor in world.actors:
        lane = actor.lane
        middle, half = (lane.left + lane.right) / 2, (lane.right - lane.left) / 2
        slab = _edge(_box(x - middle, y - lane.floor - 0.014, half + 0.015, 0.014), size)[..., None]
        picture += slab * (light - picture)
        for side in (lane.left - 0.0075, lane.right + 0.0075):
            post = _edge(_box(x - side, y - lane.floor + 1.3 * actor.radius, 0.0075, 1.3 * actor.radius), size)
            picture += post[..., None] * (dark - picture)
    return picture.astype(np.float32)


def _shifted(plate: np.ndarray, margin: int, shift: np.ndarray, size: int) -> np.ndarray:
    """The still under each frame, moved by `shift [T, 2]` pixels (below `margin`), by linear interpolation."""
    frames = np.empty((len(shift), size, size, 3), np.float32)
    for frame, (dx, dy) in zip(frames, margin - shift, strict=True):
        x, y = int(dx), int(dy)
        u, v = np.float32(dx - x), np.float32(dy - y)
        rows = plate[y : y + size + 1]
        rows = rows[:size] * (1 - v) + rows[1 : size + 1] * v
        frame[:] = rows[:, x : x + size] * (1 - u) + rows[:, x + 1 : x + size + 1] * u
    return frames


# Things that move.


def _squash(actor: Actor, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How flat an object is across and along at each time, and where its centre moves to for that: `[N, 2]` each."""
    scale, move = np.ones((len(times), 2)), np.zeros((len(times), 2))
    for impact in actor.impacts:
        past = times - impact.time
        near = (past >= 0) & (past < 6 * SQUASH_SEC)
        if near.any():
            flat = 0.35 * min(impact.speed / FULL_SPEED, 1.0) ** 0.5 * np.exp(-past[near] / SQUASH_SEC)
            along = 0 if impact.normal[0] else 1
            scale[near, along], scale[near, 1 - along] = 1 - flat, 1 + 0.6 * flat
            move[near, along] = -impact.normal[along] * actor.radius * flat
    return scale, move


def _shade_thing(thing: Thing, scale: np.ndarray, roll: np.ndarray, size: int) -> Shade:
    """Body, outline, gleam and grain of an object."""
    colour = np.asarray(thing.colour, np.float32)
    gleam = {"metal": 0.55, "glass": 0.6, "wood": 0.1, "rubber": 0.2}[thing.material]
    scale, roll = scale.astype(np.float32)[:, :, None, None], roll.astype(np.float32)[:, None, None]
    radius = thing.radius

    def shade(dx, dy):
        dx, dy = dx / scale[:, 0], dy / scale[:, 1]
        distance = _distance(thing.shape, dx, dy, radius)
        light = 0.85 - 0.28 * (dx + dy) / radius
        across = dx * np.cos(roll) + dy * np.sin(roll)
        if thing.material == "wood":
            light = light + 0.10 * np.sin(across / radius * 7)
        elif thing.shape == "ball":
            light = light * (1 - 0.3 * _edge(np.abs(across) - 0.22 * radius, size))
        light = light * (1 - 0.45 * _edge(-distance - 0.16 * radius, size))
        spot = gleam * np.exp(-((dx + 0.35 * radius) ** 2 + (dy + 0.35 * radius) ** 2) / (0.22 * radius) ** 2)
        opacity = _edge(distance, size)
        if thing.material == "glass":
            opacity = opacity * (0.7 + 0.3 * _edge(-distance - 0.2 * radius, size))
        return opacity, np.clip(colour * light[..., None] + spot[..., None], 0, 1)

    return shade


def _draw_actor(canvas: Canvas, world: World, actor: Actor, times: np.ndarray, shake: np.ndarray) -> None:
    """Shadow, tool and object of an actor."""
    size, frames, thing, lane = canvas.size, np.arange(len(times)), world.things[actor.obj], actor.lane
    where = actor.path.at(times)
    height = np.maximum(actor.rest_height - where[:, 1], 0)
    spread = (thing.radius * (0.9 + 0.8 * height)).astype(np.float32)[:, None, None]
    depth = (0.55 / (1 + 5 * height)).astype(np.float32)[:, None, None]

    def shadow(dx, dy):
        return depth * np.clip(1.4 - 1.4 * np.sqrt((dx / spread) ** 2 + (dy / 0.014) ** 2), 0, 1), np.float32(0.02)

    ground = np.stack([where[:, 0], np.full(len(times), lane.floor + 0.012)], 1)
    canvas.draw(frames, ground + shake, (thing.radius * 1.8, 0.03), shadow)
    if actor.tool_kind == "floor":
        for time, x in actor.kicks:
            past = times - time
            near = (past >= 0) & (past < 0.3)
            if near.any():
                rise = 0.45 * thing.radius * np.exp(-past[near] / 0.08)
                top = np.stack([np.full(near.sum(), x), lane.floor - rise / 2], 1) + shake[near]
                half = rise.astype(np.float32)[:, None, None] / 2
                canvas.draw(
                    frames[near],
                    top,
                    thing.radius,
                    lambda dx, dy, half=half: (_edge(_box(dx, dy, 0.8 * thing.radius, half), size), np.float32(0.75)),
                )
    else:
        tool, head = actor.tool.at(times), 0.03 if actor.tool_kind == "mallet" else 0.02
        tint = np.array((0.55, 0.42, 0.3) if actor.tool_kind == "mallet" else (0.6, 0.6, 0.65), np.float32)
        for_rod = tool.copy()
        for_rod[:, 1] = (lane.ceiling + tool[:, 1]) / 2
        half = np.maximum(tool[:, 1] - lane.ceiling, 0).astype(np.float32)[:, None, None] / 2
        rod = 0.008 if actor.tool_kind == "mallet" else 0.005
        canvas.draw(
            frames,
            for_rod + shake,
            (rod + 0.02, float(half.max()) + 0.02),
            lambda dx, dy: (0.9 * _edge(_box(dx, dy, rod, half), size), tint * 0.6),
        )
        canvas.draw(
            frames, tool + shake, head * 1.3, lambda dx, dy: (_edge(_distance("ball", dx, dy, head), size), tint)
        )
    scale, move = _squash(actor, times)
    shade = _shade_thing(thing, scale, where[:, 0] / thing.radius, size)
    canvas.draw(frames, where + move + shake, thing.radius * 1.4, shade)


def _draw_puff(canvas: Canvas, impact: Impact, thing: Thing, seed: int, times: np.ndarray, shake: np.ndarray) -> None:
    """Specks that fly from the contact, and the dust lit up between them; larger and brighter for harder impacts."""
    past = times - impact.time
    near = np.flatnonzero((past >= 0) & (past < PUFF_SEC))
    if not len(near):
        return
    rng = np.random.default_rng(seed)
    past = past[near].astype(np.float32)[:, None, None]
    force = min(impact.speed / FULL_SPEED, 1.2) ** 0.5
    reach = (0.8 + 1.0 * force) * thing.radius + 0.025
    count, size = int(rng.integers(6, 11)), canvas.size
    # Half a turn away from what was hit, or all around it for the mallet's blow, which hits from the free side.
    middle = np.arctan2(impact.normal[1], impact.normal[0]) + (np.pi if impact.kind == "strike" else 0)
    angles = middle + (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count * np.pi * 1.2 - 0.6 * np.pi
    far = reach * rng.uniform(0.75, 1.15, count)
    speck = rng.uniform(0.018, 0.03, count)
    colour = np.array(SPARKS[thing.material], np.float32)
    fade = np.clip(1 - past / PUFF_SEC, 0, 1) ** 0.7

    def shade(dx, dy):
        out = 0.4 + 0.6 * (1 - np.exp(-past / 0.05))
        opacity = (0.25 + 0.5 * force) * np.exp(-past / 0.06 - (dx * dx + dy * dy) / (0.7 * reach) ** 2)
        for angle, distance, radius in zip(angles, far, speck, strict=True):
            x, y = dx - distance * np.cos(angle) * out, dy - distance * np.sin(angle) * out - 0.6 * past**2
            opacity = np.maximum(opacity, fade * _edge(np.sqrt(x * x + y * y) - radius, size))
        return opacity.astype(np.float32), colour

    centre = np.asarray(impact.point)[None] + shake[near]
    canvas.draw(near, centre, float(1.3 * reach + 0.03), shade)


def _draw_drifters(canvas: Canvas, world: World, times: np.ndarray, shake: np.ndarray) -> None:
    for drifter in world.drifters:
        colour = np.asarray(drifter.colour, np.float32)

        def shade(dx, dy, drifter=drifter, colour=colour):
            opacity = 0.85 * _edge(_distance(drifter.shape, dx, dy, drifter.radius), canvas.size)
            return opacity, colour * (1 - 0.2 * (dx + dy) / drifter.radius)[..., None]

        canvas.draw(np.arange(len(times)), drifter.at(times) + shake, drifter.radius * 1.2, shade)


def render_frames(world: World, size: int, duration_sec: float = DURATION_SEC) -> Iterator[np.ndarray]:
    """Frames uint8 `[S, S, 3]` of a scene; frame i shows the state at exactly i / 25 s and is shown from then on."""
    margin = int(np.ceil(0.02 * size)) + 2
    plate = still(world, size, margin)
    noise = np.random.default_rng([world.seed, 2])
    count = round(duration_sec * FRAME_RATE)
    chunk = max(5, 50 * 64**2 // size**2)
    for start in range(0, count, chunk):
        times = np.arange(start, min(start + chunk, count)) / FRAME_RATE
        shake = world.shake(times)
        canvas = Canvas(_shifted(plate, margin, shake * size, size))
        _draw_drifters(canvas, world, times, shake)
        for actor in world.actors:
            _draw_actor(canvas, world, actor, times, shake)
        for number, impact in enumerate(world.seen()):
            _draw_puff(canvas, impact, world.things[impact.obj], world.seed + number, times, shake)
        frames = canvas.frames
        grain = noise.standard_normal((*frames.shape[:3], 1), np.float32) * np.float32(world.noise["picture"])
        yield from np.clip((frames + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
