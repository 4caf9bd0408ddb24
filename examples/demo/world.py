"""A procedural tabletop: scenes, camera images, instructions and an expert that moves one named object.

Everything is drawn from a ``numpy`` generator, so an episode is a pure function of ``(split, seed, index)``.
Lengths are metres, angles radians. The table lies in the plane z = 0, x points right and y away from the camera.
An action is ``dx, dy, dz, droll, dpitch, dyaw, gripper`` with gripper 1 for open and 0 for closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float64]
Rgb = tuple[int, int, int]
Goal = Literal["bowl", "plate", "left", "right"]
Split = Literal["train", "held-out"]

IMAGE_WIDTH, IMAGE_HEIGHT = 256, 192
WINDOW_BEFORE, WINDOW_AFTER = 6, 3
WINDOW = WINDOW_BEFORE + 1 + WINDOW_AFTER
ACTION_DIM = 7
PADDING_VALUE = -5.0

COLOURS: dict[str, Rgb] = {
    "red": (205, 45, 40),
    "green": (50, 150, 65),
    "blue": (45, 85, 200),
    "yellow": (235, 205, 50),
    "orange": (240, 130, 35),
    "purple": (130, 60, 165),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "block": ("block", "cube"),
    "ball": ("ball", "sphere"),
    "can": ("can", "cylinder"),
}
GOALS: dict[Goal, tuple[str, ...]] = {
    "bowl": ("in the bowl", "into the bowl", "inside the bowl"),
    "plate": ("on the plate", "onto the plate", "on top of the plate"),
    "left": ("to the left", "to the left side", "to the left side of the table"),
    "right": ("to the right", "to the right side", "to the right side of the table"),
}
PHRASES = (
    "put the {thing} {goal}",
    "place the {thing} {goal}",
    "move the {thing} {goal}",
    "bring the {thing} {goal}",
    "pick up the {thing} and put it {goal}",
    "grab the {thing} and place it {goal}",
    "take the {thing} and move it {goal}",
)

OBJECTS_PER_SCENE = 3
OBJECT_RADIUS = 0.024
TABLE_X, TABLE_Y = 0.21, (0.03, 0.27)
SIDE_X = 0.20
HOVER, CARRY, GRASP = 0.09, 0.12, 0.02
ARRIVED = 0.008
TILT_STEPS = 20
RELEASE: dict[Goal, float] = {"bowl": 0.055, "plate": 0.035, "left": GRASP, "right": GRASP}
SPLIT_CODE: dict[Split, int] = {"train": 0, "held-out": 1}


@dataclass(frozen=True)
class Thing:
    """A movable object; ``z`` is the height of its base."""

    colour: str
    shape: str
    x: float
    y: float
    z: float
    yaw: float


@dataclass(frozen=True)
class Gripper:
    x: float
    y: float
    z: float
    yaw: float
    opening: float


@dataclass(frozen=True)
class Scene:
    """What the camera sees. ``look`` seeds camera and light (one per episode), ``frame`` the sensor noise."""

    things: tuple[Thing, ...]
    bowl: tuple[float, float]
    plate: tuple[float, float]
    gripper: Gripper
    look: int
    frame: int


@dataclass(frozen=True)
class Task:
    """Move ``things[target]`` to ``goal``."""

    target: int
    goal: Goal


@dataclass(frozen=True)
class Tilt:
    """How far (rad) the expert rolls and pitches what it holds."""

    roll: float = 0.0
    pitch: float = 0.0


LEVEL = Tilt()


@dataclass(frozen=True)
class Episode:
    """``scenes[t]`` is what the expert saw before it did ``actions[t]``."""

    task: Task
    scenes: tuple[Scene, ...]
    actions: Floats


def episode_rng(split: Split, seed: int, index: int) -> np.random.Generator:
    """The split is the first word of the entropy, so no seed of one split repeats an episode of the other."""
    return np.random.default_rng([SPLIT_CODE[split], seed, index])


def make_episode(split: Split, seed: int, index: int) -> tuple[Episode, np.random.Generator]:
    """One expert episode, and its generator for whatever else the caller draws."""
    rng = episode_rng(split, seed, index)
    scene = random_scene(rng)
    task = Task(int(rng.integers(len(scene.things))), tuple(GOALS)[rng.integers(len(GOALS))])
    return roll_out(scene, task, rng), rng


def random_scene(rng: np.random.Generator) -> Scene:
    spots = scatter(rng, OBJECTS_PER_SCENE + 2, 0.09)
    colours = rng.choice(list(COLOURS), OBJECTS_PER_SCENE, replace=False)
    shapes = rng.choice(list(SHAPES), OBJECTS_PER_SCENE)
    things = tuple(
        Thing(str(colour), str(shape), float(x), float(y), 0.0, float(rng.uniform(-0.6, 0.6)))
        for colour, shape, (x, y) in zip(colours, shapes, spots, strict=False)
    )
    home = rng.normal([0.0, 0.15, 0.16], [0.03, 0.02, 0.012])
    gripper = Gripper(float(home[0]), float(home[1]), float(home[2]), 0.0, 1.0)
    bowl, plate = (float(spots[-2][0]), float(spots[-2][1])), (float(spots[-1][0]), float(spots[-1][1]))
    return Scene(things, bowl, plate, gripper, int(rng.integers(2**31)), 0)


def scatter(rng: np.random.Generator, count: int, gap: float) -> Floats:
    """Points on the table no closer to each other than ``gap``, by rejection."""
    low, high = np.array([-TABLE_X, TABLE_Y[0]]), np.array([TABLE_X, TABLE_Y[1]])
    points: list[Floats] = []
    while len(points) < count:
        point = rng.uniform(low, high)
        if all(np.linalg.norm(point - other) > gap for other in points):
            points.append(point)
    return np.array(points)


def goal_position(scene: Scene, task: Task) -> tuple[float, float]:
    """Where on the table the object should end up."""
    if task.goal == "bowl":
        return scene.bowl
    if task.goal == "plate":
        return scene.plate
    return (-SIDE_X if task.goal == "left" else SIDE_X), scene.things[task.target].y


def instruction(scene: Scene, task: Task, rng: np.random.Generator) -> str:
    """One of many wordings: lower-case, no final punctuation."""
    thing = scene.things[task.target]
    noun = rng.choice(SHAPES[thing.shape])
    goal = rng.choice(GOALS[task.goal])
    return str(rng.choice(PHRASES)).format(thing=f"{thing.colour} {noun}", goal=goal)


def all_instructions() -> Iterator[str]:
    """Every sentence that :func:`instruction` can say."""
    nouns = [f"{colour} {noun}" for colour in COLOURS for nouns in SHAPES.values() for noun in nouns]
    goals = [goal for wordings in GOALS.values() for goal in wordings]
    return (phrase.format(thing=noun, goal=goal) for phrase in PHRASES for noun in nouns for goal in goals)


# ---- expert ----------------------------------------------------------------------------------------------------


def roll_out(scene: Scene, task: Task, rng: np.random.Generator, tilt: Tilt = LEVEL) -> Episode:
    """Reach, grasp, lift, carry, lower, release, retreat. What is held is tilted on its way."""
    thing = scene.things[task.target]
    goal = goal_position(scene, task)
    yaw = thing.yaw if thing.shape == "block" else 0.0
    legs: tuple[tuple[Floats | None, float], ...] = (
        (np.array([thing.x, thing.y, HOVER]), 1.0),
        (np.array([thing.x, thing.y, GRASP]), 1.0),
        (None, 0.0),
        (np.array([thing.x, thing.y, CARRY]), 0.0),
        (np.array([*goal, CARRY]), 0.0),
        (np.array([*goal, RELEASE[task.goal]]), 0.0),
        (None, 1.0),
        (np.array([*goal, CARRY]), 1.0),
    )
    scenes: list[Scene] = []
    actions: list[Floats] = []
    tilted = np.zeros(2)
    for waypoint, grip in legs:
        waited = 0
        wanted = tilt if waypoint is not None and grip < 0.5 else LEVEL
        while (move := next_move(scene, waypoint, waited)) is not None:
            turned = next_tilt(tilted, wanted, tilt)
            tilted = tilted + turned
            action = noisy_action(scene, np.concatenate([move, turned]), yaw, grip, rng)
            scenes.append(scene)
            actions.append(action)
            scene = step(scene, action, task)
            waited += 1
    return Episode(task, tuple(scenes), np.array(actions))


def next_move(scene: Scene, waypoint: Floats | None, waited: int) -> Floats | None:
    """Towards a waypoint, slower when near, None once there; without a waypoint, two steps of standing still."""
    if waypoint is None:
        return np.zeros(3) if waited < 2 else None
    way = waypoint - hand_position(scene)
    distance = float(np.linalg.norm(way))
    return None if distance < ARRIVED else way * min(1.0, min(0.032, 0.45 * distance + 0.006) / distance)


def next_tilt(tilted: Floats, wanted: Tilt, full: Tilt) -> Floats:
    """(2,) roll and pitch of one step, at rates that need the same number of steps however far the full tilt is."""
    rate = np.abs([full.roll, full.pitch]) / TILT_STEPS
    return np.clip(np.array([wanted.roll, wanted.pitch]) - tilted, -rate, rate)


def hand_position(scene: Scene) -> Floats:
    return np.array([scene.gripper.x, scene.gripper.y, scene.gripper.z])


def noisy_action(scene: Scene, move: Floats, yaw: float, grip: float, rng: np.random.Generator) -> Floats:
    """``move``: (5,) way, roll and pitch."""
    turn = float(np.clip(0.35 * (yaw - scene.gripper.yaw), -0.12, 0.12))
    noise = rng.normal(0.0, [0.0012, 0.0012, 0.0012, 0.004, 0.004, 0.004])
    return np.round(np.concatenate([np.concatenate([move, [turn]]) + noise, [grip]]), 6)


def step(scene: Scene, action: Floats, task: Task) -> Scene:
    """The world after one action. A closed gripper carries the target if it is at it."""
    hand, target = scene.gripper, task.target
    x, y, z = hand.x + action[0], hand.y + action[1], max(hand.z + action[2], 0.012)
    opening = float(np.clip(hand.opening + (0.6 if action[6] > 0.5 else -0.6), 0.35, 1.0))
    moved = Gripper(float(x), float(y), float(z), float(hand.yaw + action[5]), opening)
    things = list(scene.things)
    if holds(scene, target) and action[6] < 0.5:
        base = max(moved.z - GRASP, 0.0)
        things[target] = replace(things[target], x=moved.x, y=moved.y, z=base, yaw=moved.yaw)
    elif things[target].z > 0:
        things[target] = replace(things[target], z=0.01 if task.goal == "bowl" else 0.0)
    return replace(scene, things=tuple(things), gripper=moved, frame=scene.frame + 1)


def holds(scene: Scene, target: int) -> bool:
    thing, hand = scene.things[target], scene.gripper
    return hand.opening < 0.5 and bool(np.hypot(thing.x - hand.x, thing.y - hand.y) < 0.02) and hand.z - thing.z < 0.045


def expert_window(episode: Episode, at: int) -> Floats:
    """(10, 7) actions t-6 .. t+3 round step ``at``; rows outside the episode are all -5."""
    window = np.full((WINDOW, ACTION_DIM), PADDING_VALUE)
    for row in range(WINDOW):
        time = at - WINDOW_BEFORE + row
        if 0 <= time < len(episode.actions):
            window[row] = episode.actions[time]
    return window


# ---- camera ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Camera pose and appearance of one episode."""

    eye: Floats
    rotation: Floats
    focal: float
    table: Floats
    wall: Floats
    light: float
    tint: Floats
    shade: tuple[float, float]


def look_of(scene: Scene) -> Look:
    rng = np.random.default_rng([2, scene.look])
    eye = np.array([0.0, -0.24, 0.56]) + rng.normal(0, 0.008, 3)
    aim = np.array([0.0, 0.165, 0.03]) + rng.normal(0, 0.004, 3)
    forward = (aim - eye) / np.linalg.norm(aim - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    table = np.array([[176, 142, 104], [150, 118, 88], [196, 176, 150], [128, 132, 136]])[rng.integers(4)]
    wall = np.array([88, 96, 106]) + rng.normal(0, 8, 3)
    shade = (float(rng.uniform(-0.018, 0.018)), float(rng.uniform(-0.004, 0.014)))
    table_colour = table + rng.normal(0, 6, 3)
    return Look(eye, rotation, 318.0, table_colour, wall, rng.uniform(0.85, 1.1), rng.normal(1, 0.02, 3), shade)


def project(look: Look, points: Floats) -> Floats:
    """World points (N, 3) -> pixel coordinates (N, 2) in the camera image."""
    seen = (np.atleast_2d(points) - look.eye) @ look.rotation.T
    return seen[:, :2] / seen[:, 2:] * look.focal + np.array([IMAGE_WIDTH / 2, IMAGE_HEIGHT / 2])


def landmarks(scene: Scene, task: Task) -> Floats:
    """Pixel coordinates (3, 2) of the task's object, of its goal and of the gripper's finger tips."""
    thing, hand = scene.things[task.target], scene.gripper
    middle = (thing.x, thing.y, thing.z + OBJECT_RADIUS)
    return project(look_of(scene), np.array([middle, (*goal_position(scene, task), 0.01), (hand.x, hand.y, hand.z)]))


class Painter:
    """Draws projected solids at twice the final resolution."""

    SCALE = 2

    def __init__(self, look: Look) -> None:
        self.look = look
        size = (IMAGE_WIDTH * self.SCALE, IMAGE_HEIGHT * self.SCALE)
        self.image = Image.new("RGB", size, as_rgb(look.wall))
        self.shadow = Image.new("L", (IMAGE_WIDTH, IMAGE_HEIGHT), 0)
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points: Floats) -> list[tuple[float, float]]:
        return [(float(u), float(v)) for u, v in project(self.look, points) * self.SCALE]

    def polygon(self, points: Floats, colour: Floats, outline: Floats | None = None) -> None:
        edge = None if outline is None else as_rgb(outline)
        self.draw.polygon(self.pixels(points), fill=as_rgb(colour), outline=edge)

    def hull(self, points: Floats, colour: Floats) -> None:
        self.draw.polygon(convex_hull(self.pixels(points)), fill=as_rgb(colour))

    def cast(self, points: Floats, strength: float) -> None:
        """Shadow of a solid: its points dropped on the table along the light."""
        drop = points[:, 2:] * np.array([[self.look.shade[0], self.look.shade[1]]]) * 25
        flat = np.concatenate([points[:, :2] + drop, np.zeros((len(points), 1))], axis=1)
        outline = [(float(u), float(v)) for u, v in project(self.look, flat)]
        ImageDraw.Draw(self.shadow).polygon(convex_hull(outline), fill=int(255 * strength))

    def drop_shadows(self) -> None:
        soft = self.shadow.filter(ImageFilter.GaussianBlur(2.0)).resize(self.image.size, Image.Resampling.NEAREST)
        self.image.paste(Image.new("RGB", self.image.size, (25, 20, 20)), (0, 0), soft)
        self.draw = ImageDraw.Draw(self.image)


def as_rgb(colour: Floats) -> Rgb:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


def convex_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Andrew's monotone chain."""

    def half(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for p in ordered:
            while len(chain) > 1 and turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    ordered = sorted(points)
    return half(ordered) + half(ordered[::-1])


def turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def circle(x: float, y: float, z: float, radius: float, count: int = 20) -> Floats:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(count, z)], axis=1)


def box(centre: Floats, half: Floats, yaw: float) -> Floats:
    """(8, 3) corners: the bottom face, then the top face, each counter-clockwise."""
    corners = np.array([[sx, sy, sz] for sz in (-1, 1) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]) * half
    spin = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return corners @ spin.T + centre


def paint_box(painter: Painter, corners: Floats, colour: Floats) -> None:
    painter.hull(corners, colour * 0.62)
    for side in range(4):
        face = corners[[side, (side + 1) % 4, (side + 1) % 4 + 4, side + 4]]
        normal = np.cross(face[1] - face[0], face[3] - face[0])
        if normal @ (painter.look.eye - face[0]) > 0:
            painter.polygon(face, colour * (0.62 + 0.12 * (side % 2)))
    painter.polygon(corners[4:], np.minimum(colour * 1.1, 255))


def solid(thing: Thing) -> Floats:
    """Outline points of an object, for its hull and its shadow."""
    if thing.shape == "block":
        return box(np.array([thing.x, thing.y, thing.z + 0.021]), np.full(3, 0.021), thing.yaw)
    if thing.shape == "can":
        rings = (circle(thing.x, thing.y, thing.z + height, 0.019) for height in (0.0, 0.05))
        return np.concatenate(list(rings))
    levels = ((0.004, 0.012), (OBJECT_RADIUS, OBJECT_RADIUS), (0.044, 0.012))
    return np.concatenate([circle(thing.x, thing.y, thing.z + height, radius) for height, radius in levels])


def paint_thing(painter: Painter, thing: Thing) -> None:
    colour = np.array(COLOURS[thing.colour], dtype=float)
    if thing.shape == "block":
        paint_box(painter, solid(thing), colour)
    elif thing.shape == "can":
        painter.hull(solid(thing), colour * 0.72)
        painter.polygon(circle(thing.x, thing.y, thing.z + 0.05, 0.019), np.array([190.0, 192.0, 196.0]))
        painter.polygon(circle(thing.x, thing.y, thing.z + 0.05, 0.015), np.array([160.0, 162.0, 168.0]))
    else:
        paint_ball(painter, thing, colour)


def paint_ball(painter: Painter, thing: Thing, colour: Floats) -> None:
    middle = np.array([[thing.x, thing.y, thing.z + OBJECT_RADIUS]])
    edge = middle + painter.look.rotation[0] * OBJECT_RADIUS
    (u, v), (right, _) = painter.pixels(np.concatenate([middle, edge]))
    for share, gain, shift in ((1.0, 0.66, 0.0), (0.82, 0.9, -0.10), (0.5, 1.1, -0.22), (0.16, 2.2, -0.4)):
        radius, offset = (right - u) * share, (right - u) * shift
        disc = (u + offset - radius, v + offset - radius, u + offset + radius, v + offset + radius)
        painter.draw.ellipse(disc, fill=as_rgb(colour * gain))


def paint_bowl(painter: Painter, x: float, y: float) -> None:
    outer = np.concatenate([circle(x, y, 0.0, 0.028), circle(x, y, 0.03, 0.05)])
    painter.hull(outer, np.array([150.0, 160.0, 172.0]))
    painter.polygon(circle(x, y, 0.03, 0.05), np.array([232.0, 236.0, 240.0]))
    painter.polygon(circle(x, y, 0.027, 0.044), np.array([98.0, 108.0, 122.0]))
    painter.polygon(circle(x, y, 0.012, 0.030), np.array([124.0, 134.0, 148.0]))


def paint_plate(painter: Painter, x: float, y: float) -> None:
    painter.polygon(circle(x, y, 0.003, 0.052), np.array([248.0, 244.0, 236.0]), np.array([150.0, 140.0, 130.0]))
    painter.polygon(circle(x, y, 0.004, 0.037), np.array([70.0, 120.0, 150.0]))
    painter.polygon(circle(x, y, 0.004, 0.033), np.array([240.0, 236.0, 228.0]))


def gripper_boxes(hand: Gripper) -> list[tuple[Floats, Floats]]:
    """Corners and colour of the two fingers, the palm and the wrist."""
    across = np.array([np.cos(hand.yaw), np.sin(hand.yaw), 0.0])
    tip = np.array([hand.x, hand.y, hand.z])
    steel, dark = np.array([70.0, 72.0, 78.0]), np.array([38.0, 40.0, 46.0])
    reach = 0.012 + 0.020 * hand.opening
    up = np.array([0.0, 0.0, 1.0])
    fingers = [
        (box(tip + sign * reach * across + up * 0.022, np.array([0.005, 0.008, 0.026]), hand.yaw), steel)
        for sign in (-1, 1)
    ]
    palm = box(tip + up * 0.056, np.array([0.042, 0.013, 0.010]), hand.yaw)
    wrist = box(tip + up * 0.105, np.array([0.017, 0.017, 0.042]), hand.yaw)
    return [*fingers, (palm, dark), (wrist, np.array([214.0, 216.0, 220.0]))]


def paint_table(painter: Painter, rng: np.random.Generator) -> None:
    corners = np.array([[-0.42, -0.14, 0], [0.42, -0.14, 0], [0.42, 0.36, 0], [-0.42, 0.36, 0]])
    painter.polygon(corners, painter.look.table)
    for y in rng.uniform(-0.12, 0.35, 14):
        line = painter.pixels(np.array([[-0.42, y, 0], [0.42, y + rng.normal(0, 0.01), 0]]))
        painter.draw.line(line, fill=as_rgb(painter.look.table * rng.uniform(0.92, 1.05)), width=2)


def render(scene: Scene) -> NDArray[np.uint8]:
    """The camera image, (192, 256, 3)."""
    look = look_of(scene)
    painter = Painter(look)
    paint_table(painter, np.random.default_rng([3, scene.look]))
    hand = gripper_boxes(scene.gripper)
    for thing in scene.things:
        painter.cast(solid(thing), 0.45)
    for x, y in (scene.bowl, scene.plate):
        painter.cast(circle(x, y, 0.012, 0.048), 0.4)
    painter.cast(np.concatenate([corners for corners, _ in hand[:3]]), 0.5)
    painter.drop_shadows()
    paint_plate(painter, *scene.plate)
    paint_bowl(painter, *scene.bowl)
    for thing in sorted(scene.things, key=lambda each: -each.y):
        paint_thing(painter, thing)
    for corners, colour in hand:
        paint_box(painter, corners, colour)
    return expose(painter, scene)


def expose(painter: Painter, scene: Scene) -> NDArray[np.uint8]:
    """Light, fall-off towards one corner, sensor noise."""
    rng = np.random.default_rng([4, scene.look, scene.frame])
    picture = np.asarray(painter.image.reduce(Painter.SCALE), dtype=np.float32)
    across = np.linspace(-0.5, 0.5, IMAGE_WIDTH, dtype=np.float32)[None, :, None]
    down = np.linspace(-0.5, 0.5, IMAGE_HEIGHT, dtype=np.float32)[:, None, None]
    tint = (painter.look.light * painter.look.tint).astype(np.float32)
    light = (1 + 6 * np.float32(painter.look.shade[0]) * across - 0.08 * down) * tint
    noise = rng.standard_normal((IMAGE_HEIGHT, IMAGE_WIDTH, 1), dtype=np.float32) * np.float32(3.0)
    return np.clip(picture * light + noise + np.float32(0.5), 0, 255).astype(np.uint8)
