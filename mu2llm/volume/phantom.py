"""Phantom CTs: a body drawn from ellipsoids, with findings whose truth is known.

No patient stands behind them, so they may be published, and a model's drafts can be held against what is
really in the volume. Lengths are mm in RAS+ around the middle of the body (x to the patient's right,
y to the front, z upwards), densities are HU.
"""

from dataclasses import dataclass, field

import numpy as np

from mu2llm.volume.volume import Volume

LOBES = {"right": ("upper", "middle", "lower"), "left": ("upper", "lower")}


@dataclass(frozen=True)
class PhantomPreset:
    """How hard a set of phantoms is. Ranges are drawn from evenly, probabilities are per patient."""

    grid: tuple[int, int, int]
    spacing: tuple[float, float, float]
    noise: float  # deviation, HU
    nodule_mm: tuple[float, float]  # diameter
    calculus_mm: tuple[float, float]  # diameter
    lesion_mm: tuple[float, float]  # diameter
    lesion_contrast: float  # HU below or above the liver
    plaque_mm: float  # thickness of the aorta's calcified wall
    emphysema_drop: float  # HU below normal lung
    effusion_share: dict[str, float]  # share of the lung's height that each amount fills
    heart_ratio: tuple[float, float]  # size of normal and of enlarged hearts, relative
    scatter: float  # how far small lesions lie from the middle of their place, in shares of the organ's radii
    prevalence: float  # of each finding, per side where sides are told apart


PRESETS = {
    # Conspicuous findings at much the same place in coarse voxels: two cores learn them in minutes.
    "demo": PhantomPreset(
        grid=(64, 64, 64), spacing=(5.8, 5.8, 6.8), noise=15.0,
        nodule_mm=(22, 30), calculus_mm=(18, 26), lesion_mm=(44, 72), lesion_contrast=95.0, plaque_mm=7.0,
        emphysema_drop=110.0, effusion_share={"small": 0.2, "moderate": 0.35, "large": 0.55},
        heart_ratio=(0.95, 1.38), scatter=0.2, prevalence=0.24,
    ),
    # Sizes, contrasts and places as radiologists meet them, in 3.1 × 3.1 × 5 mm voxels.
    "full": PhantomPreset(
        grid=(128, 128, 96), spacing=(3.125, 3.125, 5.0), noise=25.0,
        nodule_mm=(6, 30), calculus_mm=(4, 12), lesion_mm=(10, 45), lesion_contrast=45.0, plaque_mm=3.0,
        emphysema_drop=70.0, effusion_share={"small": 0.12, "moderate": 0.3, "large": 0.6},
        heart_ratio=(1.0, 1.25), scatter=0.7, prevalence=0.15,
    ),
}  # fmt: skip


@dataclass
class Findings:
    """What one phantom has. Sided findings map "left" or "right" to their attribute."""

    nodule: dict[str, float] = field(default_factory=dict)  # diameter, mm
    consolidation: dict[str, str] = field(default_factory=dict)  # lobe
    effusion: dict[str, str] = field(default_factory=dict)  # small, moderate, large
    calculus: dict[str, float] = field(default_factory=dict)  # diameter, mm
    liver_lesion: str = ""  # hypodense, hyperdense
    cardiomegaly: bool = False
    aortic_calcification: bool = False
    emphysema: bool = False


def draw_findings(preset: PhantomPreset, rng: np.random.Generator) -> Findings:
    """Findings at random, each independent of the others."""
    p = preset.prevalence
    found = Findings(
        cardiomegaly=rng.random() < 1.25 * p,
        aortic_calcification=rng.random() < 1.25 * p,
        emphysema=rng.random() < 1.25 * p,
    )
    if rng.random() < 1.25 * p:
        found.liver_lesion = str(rng.choice(["hypodense", "hyperdense"]))
    for side in ("left", "right"):
        if rng.random() < p:
            found.nodule[side] = round(rng.uniform(*preset.nodule_mm))
        if rng.random() < 0.8 * p:
            found.consolidation[side] = str(rng.choice(LOBES[side]))
        if rng.random() < p:
            found.effusion[side] = str(rng.choice(list(preset.effusion_share)))
        if rng.random() < p:
            found.calculus[side] = round(rng.uniform(*preset.calculus_mm))
    return found


def render(found: Findings, preset: PhantomPreset, rng: np.random.Generator) -> Volume:
    """Draws a body with these findings: int16 HU on the preset's grid, RAS, the middle at the origin.

    Size, place and density of every organ vary from body to body, whatever the findings.
    """
    return _Body(preset, rng).draw(found)


class _Body:
    """One patient's anatomy while it is drawn. Lengths are stretched by the patient's own `scale`."""

    def __init__(self, preset: PhantomPreset, rng: np.random.Generator):
        self.preset = preset
        self.rng = rng
        self.scale = rng.uniform(0.92, 1.06)
        self.shift = rng.normal(0, 4, 3)
        axes = [
            ((np.arange(n) - (n - 1) / 2) * mm - shift) / self.scale
            for n, mm, shift in zip(preset.grid, preset.spacing, self.shift, strict=True)
        ]
        self.x, self.y, self.z = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.hu = np.full(preset.grid, -1000, dtype=np.float32)

    def draw(self, found: Findings) -> Volume:
        self._trunk()
        self._lungs(found)
        self._heart(found.cardiomegaly)
        self._liver(found.liver_lesion)
        self._kidneys(found.calculus)
        self._spine()
        self._aorta(found.aortic_calcification)
        self.hu += self.rng.normal(0, self.preset.noise, self.hu.shape).astype(np.float32)
        affine = np.diag([*self.preset.spacing, 1.0])
        affine[:3, 3] = [
            -(n - 1) / 2 * mm for n, mm in zip(self.preset.grid, self.preset.spacing, strict=True)
        ]
        return Volume(np.clip(np.rint(self.hu), -1024, 3071).astype(np.int16), affine, "phantom")

    def _ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """Squared distance from the centre in radii: below 1 inside."""
        (cx, cy, cz), (rx, ry, rz) = centre, radii
        return ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2

    def _jitter(self, value: float, share: float = 0.06) -> float:
        return value * self.rng.uniform(1 - share, 1 + share)

    def _trunk(self) -> None:
        outline = (self.x / self._jitter(178)) ** 2 + (self.y / self._jitter(138)) ** 2 + 0 * self.z
        fat = self._jitter(-95)
        self.hu[outline < 1] = fat
        self.hu[outline < 0.86] = self._jitter(50)  # muscle
        self.hu[outline < 0.66] = fat
        for _ in range(14):  # bowel
            centre = (self.rng.uniform(-95, 60), self.rng.uniform(-10, 60), self.rng.uniform(-230, -70))
            self.hu[(self._ellipsoid(centre, (self._jitter(24, 0.3),) * 3) < 1)] = self._jitter(30, 0.4)

    def _lungs(self, found: Findings) -> None:
        air = self._jitter(-830, 0.02)
        for side, sign in (("right", 1), ("left", -1)):
            centre = (sign * self._jitter(82), self._jitter(0) + self.rng.normal(0, 3), self._jitter(100))
            radii = (self._jitter(60), self._jitter(88), self._jitter(104))
            lung = self._ellipsoid(centre, radii) < 1
            self.hu[lung] = air
            if found.emphysema:
                self._emphysema(lung, centre, radii, air)
            if side in found.consolidation:
                self._consolidation(lung, centre, radii, found.consolidation[side])
            if side in found.effusion:
                self._effusion(lung, centre, radii, found.effusion[side])
            if side in found.nodule:
                self._nodule(centre, radii, found.nodule[side])

    def _emphysema(self, lung: np.ndarray, centre: tuple, radii: tuple, air: float) -> None:
        self.hu[lung] = air - self.preset.emphysema_drop
        for _ in range(6):  # bullae
            where = self._near(centre, radii, 0.7)
            bulla = self._ellipsoid(where, (self._jitter(17, 0.3),) * 3) < 1
            self.hu[bulla & lung] = -1000

    def _consolidation(self, lung: np.ndarray, centre: tuple, radii: tuple, lobe: str) -> None:
        height = {"upper": 0.55, "middle": 0.0, "lower": -0.5}[lobe] * radii[2]
        depth = {"upper": 0.1, "middle": 0.45, "lower": -0.25}[lobe] * radii[1]
        where = (centre[0], centre[1] + depth, centre[2] + height)
        spread = self._ellipsoid(where, (self._jitter(46, 0.1), self._jitter(48, 0.1), self._jitter(40, 0.1)))
        ragged = spread + self.rng.normal(0, 0.25, self.hu.shape)
        self.hu[lung & (ragged < 1)] = self._jitter(25, 0.4)

    def _nodule(self, centre: tuple, radii: tuple, diameter: float) -> None:
        front = (centre[0], centre[1] + 0.3 * radii[1], centre[2] + 0.15 * radii[2])
        where = self._near(front, radii, self.preset.scatter)
        self.hu[self._ellipsoid(where, (diameter / 2 / self.scale,) * 3) < 1] = self._jitter(60, 0.3)

    def _effusion(self, lung: np.ndarray, centre: tuple, radii: tuple, amount: str) -> None:
        """Fluid lies low and at the back: a tilted plane cuts it off."""
        level = centre[2] + radii[2] * (2 * self.preset.effusion_share[amount] - 1)
        tilt = 0.45 * (self.y - centre[1])
        self.hu[lung & (self.z + tilt < level)] = self._jitter(12, 0.5)

    def _heart(self, enlarged: bool) -> None:
        ratio = self._jitter(self.preset.heart_ratio[enlarged], 0.05)
        centre = (-18 * ratio, 22.0, 55.0)
        radii = (56 * ratio, 48 * ratio, 50 * ratio)
        self.hu[self._ellipsoid(centre, radii) < 1] = self._jitter(45, 0.2)

    def _liver(self, lesion: str) -> None:
        centre = (72.0, 12.0, -62.0)
        radii = (self._jitter(82), self._jitter(82), self._jitter(62))
        liver = self._ellipsoid(centre, radii) < 1
        density = self._jitter(105, 0.08)
        self.hu[liver] = density
        if lesion:
            diameter = self.rng.uniform(*self.preset.lesion_mm)
            where = self._near(centre, radii, self.preset.scatter)
            change = self.preset.lesion_contrast * (1 if lesion == "hyperdense" else -1)
            self.hu[liver & (self._ellipsoid(where, (diameter / 2 / self.scale,) * 3) < 1)] = density + change

    def _kidneys(self, calculus: dict[str, float]) -> None:
        for side, sign in (("right", 1), ("left", -1)):
            centre = (sign * self._jitter(66), -52.0, self._jitter(-150, 0.04))
            radii = (self._jitter(31), self._jitter(31), self._jitter(56))
            self.hu[self._ellipsoid(centre, radii) < 1] = self._jitter(55, 0.15)
            if side in calculus:
                where = self._near(centre, radii, 0.6 * self.preset.scatter)
                stone = self._ellipsoid(where, (calculus[side] / 2 / self.scale,) * 3) < 1
                self.hu[stone] = self._jitter(1100, 0.15)

    def _spine(self) -> None:
        body = (self.x / 21) ** 2 + ((self.y + 84) / 19) ** 2 + 0 * self.z < 1
        disc = np.abs(np.mod(self.z + self.rng.uniform(0, 34), 34) - 17) < 4
        self.hu[body] = np.where(disc & body, 70.0, self._jitter(260, 0.15))[body]

    def _aorta(self, calcified: bool) -> None:
        radius = self._jitter(17)
        distance = np.sqrt((self.x + 12) ** 2 + (self.y + 42) ** 2) + 0 * self.z
        course = self.z < 150
        self.hu[(distance < radius) & course] = self._jitter(50, 0.2)
        if calcified:
            wall = course & (np.abs(distance - radius) < self.preset.plaque_mm / 2)
            patches = np.sin(self.z / 14 + self.rng.uniform(0, 6)) + np.cos(
                np.arctan2(self.y + 42, self.x + 12) + self.rng.uniform(0, 6)
            )
            self.hu[wall & (patches > -0.5)] = self._jitter(800, 0.15)

    def _near(self, centre: tuple, radii: tuple, reach: float) -> tuple[float, float, float]:
        """A point at random within `reach` of an organ's radii from `centre`, evenly."""
        point = self.rng.normal(size=3)
        point *= self.rng.random() ** (1 / 3) / np.linalg.norm(point)
        x, y, z = np.asarray(centre) + reach * point * np.asarray(radii)
        return float(x), float(y), float(z)
