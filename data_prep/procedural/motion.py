"""How things move: paths in closed form, so that every impact has an exact time."""

from dataclasses import dataclass, field

import numpy as np

FREE, EASE, SWING, REBOUND = range(
    4
)  # kinds of pieces: constant acceleration; smooth, speeding up, slowing down to a point


class Path:
    """A position over time, made of pieces that are appended in order.

    A piece lasts until the next begins. Before the first piece the path stands at its start.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple] = []
        self._table: dict[str, np.ndarray] | None = None

    def free(self, start: float, point, velocity=(0.0, 0.0), acceleration=(0.0, 0.0)) -> None:
        """From `start` on, move at constant acceleration; with nothing but a point: rest there."""
        self._add((start, FREE, 1.0, *point, *velocity, *acceleration))

    def glide(self, start: float, end: float, point, target, kind: int = EASE) -> None:
        """From `start` to `end`, move from `point` to `target` and stay there."""
        self._add((start, kind, max(end - start, 1e-6), *point, *target, 0.0, 0.0))

    def _add(self, piece: tuple) -> None:
        if self._pieces and piece[0] < self._pieces[-1][0] - 1e-9:
            raise ValueError(f"a piece at {piece[0]:.3f} s after one at {self._pieces[-1][0]:.3f} s")
        self._pieces.append(piece)
        self._table = None

    def at(self, times) -> np.ndarray:
        """Positions `[N, 2]` at times `[N]` in seconds."""
        if self._table is None:
            table = np.array(self._pieces, np.float64)
            self._table = {"start": table[:, 0], "kind": table[:, 1], "length": table[:, 2], "rest": table[:, 3:]}
        times = np.asarray(times, np.float64)
        which = np.maximum(np.searchsorted(self._table["start"], times, side="right") - 1, 0)
        past = np.maximum(times - self._table["start"][which], 0.0)
        kind, rest = self._table["kind"][which], self._table["rest"][which]
        share = np.minimum(past / self._table["length"][which], 1.0)
        share = np.select(
            [kind == EASE, kind == SWING, kind == REBOUND],
            [share * share * (3 - 2 * share), 1 - np.cos(share * np.pi / 2), np.sin(share * np.pi / 2)],
            0.0,
        )[:, None]
        point, second, third, past = rest[:, :2], rest[:, 2:4], rest[:, 4:6], past[:, None]
        moving = (kind == FREE)[:, None]
        return np.where(moving, point + second * past + 0.5 * third * past**2, point + (second - point) * share)


@dataclass
class Impact:
    """Two things touch: where, how hard, and what it does to picture and sound."""

    time: float
    point: tuple[float, float]  # of contact
    normal: tuple[float, float]  # away from what was hit, towards the object
    speed: float  # along the normal, in frame widths a second
    kind: str  # bounce, strike, wall, landing
    obj: int


@dataclass
class Slide:
    """Friction from `start` to `end`; the speed falls in a straight line from `speed` to `last`."""

    start: float
    end: float
    speed: float
    last: float
    obj: int


@dataclass
class Lane:
    """A floor between two posts, under a ceiling."""

    left: float
    right: float
    floor: float
    ceiling: float


@dataclass
class Actor:
    """An object at rest in a lane until something moves it."""

    obj: int
    radius: float
    lane: Lane
    restitution: float
    friction: float  # deceleration when sliding, frame widths a second^2
    gravity: float
    point: tuple[float, float]
    path: Path = field(default_factory=Path)
    tool: Path = field(default_factory=Path)
    tool_kind: str = "mallet"
    impacts: list[Impact] = field(default_factory=list)
    slides: list[Slide] = field(default_factory=list)
    kicks: list[tuple[float, float]] = field(default_factory=list)  # time and x of the sprung floor's pushes
    rest_since: float = -np.inf

    LEAST_SPEED = 0.3  # an object that comes in slower than this does not rebound

    @property
    def rest_height(self) -> float:
        """The centre's y when it lies on the floor."""
        return self.lane.floor - self.radius

    def hit(self, time: float, point, normal, speed: float, kind: str) -> None:
        """Notes an impact with the contact on the object's side that faces against `normal`."""
        contact = (point[0] - normal[0] * self.radius, point[1] - normal[1] * self.radius)
        self.impacts.append(Impact(time, contact, tuple(normal), abs(speed), kind, self.obj))

    def fly(self, time: float, point, velocity) -> None:
        """Flies, bounces off floor and posts, slides, and rests; sets `rest_since`."""
        (x, y), (vx, vy) = point, velocity
        left, right = self.lane.left + self.radius, self.lane.right - self.radius
        x = float(np.clip(x, left, right))
        while True:
            self.path.free(time, (x, y), (vx, vy), (0.0, self.gravity))
            drop = max(self.rest_height - y, 0.0)
            to_floor = (-vy + np.sqrt(vy * vy + 2 * self.gravity * drop)) / self.gravity
            to_post = (right - x) / vx if vx > 1e-9 else (left - x) / vx if vx < -1e-9 else np.inf
            step = min(to_floor, to_post)
            x, y = x + vx * step, y + vy * step + 0.5 * self.gravity * step**2
            vy, time = vy + self.gravity * step, time + step
            if to_post < to_floor:
                self.hit(time, (x, y), (-np.sign(vx), 0.0), vx, "wall")
                vx *= -self.restitution
                continue
            y = self.rest_height
            self.hit(time, (x, y), (0.0, -1.0), vy, "bounce")
            vx *= 0.8
            if vy < self.LEAST_SPEED or vy * self.restitution < 0.6 * self.LEAST_SPEED:
                break
            vy *= -self.restitution
        self.slide(time, x, vx)

    def slide(self, time: float, x: float, vx: float) -> None:
        """Slides along the floor against friction, off the posts if it gets there, and rests."""
        left, right = self.lane.left + self.radius, self.lane.right - self.radius
        while abs(vx) > 0.02:
            sign = np.sign(vx)
            room = (right - x) if sign > 0 else (x - left)
            end_speed = np.sqrt(max(vx * vx - 2 * self.friction * room, 0.0))
            step = (abs(vx) - end_speed) / self.friction
            self.path.free(time, (x, self.rest_height), (vx, 0.0), (-sign * self.friction, 0.0))
            self.slides.append(Slide(time, time + step, abs(vx), end_speed, self.obj))
            x, time = x + sign * (abs(vx) * step - 0.5 * self.friction * step**2), time + step
            if end_speed <= 0.1:
                break
            self.hit(time, (x, self.rest_height), (-sign, 0.0), end_speed, "wall")
            vx = -sign * end_speed * self.restitution
        self.point = (float(x), self.rest_height)
        self.path.free(time, self.point)
        self.rest_since = time

    # What sets an object in motion. Each gets the exact time of its first impact.

    def kick(self, time: float, height: float, vx: float) -> None:
        """The sprung floor throws it up by `height`."""
        speed = np.sqrt(2 * self.gravity * height)
        self.kicks.append((time, self.point[0]))
        self.hit(time, self.point, (0.0, -1.0), speed, "strike")
        self.fly(time, self.point, (vx, -speed))

    def strike(self, time: float, vx: float, mallet: float) -> None:
        """A mallet of radius `mallet` comes down beside it and knocks it along the floor."""
        sign, reach = np.sign(vx), self.radius + mallet
        beside = (self.point[0] - sign * (reach + 0.07), self.point[1])
        touch, up = (self.point[0] - sign * reach, self.point[1]), self.lane.ceiling + mallet
        at = tuple(self.tool.at([time - 0.9])[0])
        self.tool.glide(time - 0.9, time - 0.4, at, (beside[0], up))
        self.tool.glide(time - 0.4, time - 0.13, (beside[0], up), beside)
        self.tool.glide(time - 0.13, time, beside, touch, SWING)
        self.tool.glide(time, time + 0.2, touch, beside, REBOUND)
        self.tool.glide(time + 0.25, time + 0.7, beside, (beside[0], up))
        self.hit(time, self.point, (sign, 0.0), 1.7 * abs(vx), "strike")
        self.slide(time, self.point[0], vx)

    def drop(self, time: float, height: float, x: float, hook: float, hold: float) -> None:
        """A hook of radius `hook` lifts it by `height` to `x`, and lets go so that it lands at `time`."""
        let_go = time - np.sqrt(2 * height / self.gravity)
        lifted, up = let_go - hold, self.lane.ceiling + hook
        grip = (self.point[0], self.point[1] - self.radius - hook)
        top = (x, self.rest_height - height)
        top_grip = (x, top[1] - self.radius - hook)
        at = tuple(self.tool.at([lifted - 0.8])[0])
        self.tool.glide(lifted - 0.8, lifted - 0.6, at, (grip[0], up))
        self.tool.glide(lifted - 0.6, lifted - 0.4, (grip[0], up), grip)
        self.tool.glide(lifted - 0.4, lifted, grip, top_grip)
        self.tool.glide(let_go + 0.05, let_go + 0.5, top_grip, (x, up))
        self.path.glide(lifted - 0.4, lifted, self.point, top)
        self.fly(let_go, top, (0.0, 0.0))
