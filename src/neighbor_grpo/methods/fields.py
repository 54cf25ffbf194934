"""Types of the hyper-parameters that several methods have: what they mean and which values they may take."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from neighbor_grpo.flow.sde import KERNELS
from neighbor_grpo.flow.solvers import SOLVERS

if TYPE_CHECKING:
    SolverName: TypeAlias = str
    KernelName: TypeAlias = str
else:
    SolverName, KernelName = Literal[tuple(SOLVERS)], Literal[tuple(KERNELS)]

SHARES = ("cps", "neighbor")  # kernels whose strength is a share of the noise
RATES = ("flow", "dance")  # kernels with a rate g of noise, std = g·sqrt(t - s)

MOST_SAMPLES, MOST_STEPS = 4096, 1000  # of a prompt; of a rollout: beyond them nothing can be meant

GroupSize = Annotated[int, Field(ge=2, le=MOST_SAMPLES, description="G, samples per prompt")]
NumSteps = Annotated[int, Field(ge=2, le=MOST_STEPS, description="N, transitions of the rollout")]
TrainSteps = Annotated[
    int | None, Field(ge=1, le=MOST_STEPS, description="K, stochastic transitions trained of each sample; null = all")
]
Updates = Annotated[
    int, Field(ge=1, le=MOST_SAMPLES, description="optimizer steps per rollout, each on a share of every group")
]
Solver = Annotated[SolverName, Field(description="solver of the rollout")]
Sde = Annotated[KernelName, Field(description="kernel of the stochastic transitions")]
Eta = Annotated[
    float, Field(gt=0, description="strength of the kernel's noise; of cps and neighbor (sigma of Eq. 7) at most 1")
]
AdvantageStd = Annotated[
    Literal["group", "iteration"], Field(description="std that advantages are divided by: the group's, or all rewards'")
]
RewardStd = Annotated[
    Literal["population", "sample"], Field(description="std of n rewards: its sum of squares is divided by n, or by n - 1")
]
Density = Annotated[
    Literal["gaussian", "distance"],
    Field(description="log-probability: of the kernel's Gaussian; or -|y - mean|^2, without 1 / (2·std^2), as Flow-CPS's code"),
]
Clip = Annotated[float, Field(gt=0, lt=1, description="c, clip range of the ratio")]
AdvClip = Annotated[float, Field(gt=0, description="largest size of an advantage")]
Kl = Annotated[float, Field(ge=0, description="weight of the divergence from the reference, the model before training")]
KlStd = Annotated[
    Literal["transition", "rate"],
    Field(description="std in the divergence: the transition's, or its rate g without sqrt(t - s), as Flow-GRPO's code"),
]
Window = Annotated[int, Field(ge=1, le=MOST_STEPS, description="w, stochastic transitions")]
Strategy = Annotated[
    Literal["progressive", "random", "decay", "exp_decay", "frozen"], Field(description="how the window moves")
]
Tail = Annotated[float, Field(gt=0, le=1, description="r, share of the transitions after the window that is kept")]
TailCount = Annotated[
    Literal["transitions", "points"],
    Field(description="what r counts: transitions, rounded up; or points of the grid, rounded down, as MixGRPO's code"),
]
TailSolver = Annotated[Literal["euler", "dpmpp_2m"], Field(description="solver after the window")]
WindowEnd = Annotated[float, Field(gt=0, le=1, description="end of the window's last place, fraction of the grid")]
Dwell = Annotated[int, Field(ge=1, le=10**9, description="iterations that the window stays in a place, at most and at least")]
Transition = Annotated[int, Field(ge=0, lt=MOST_STEPS)]
Splits = Annotated[
    tuple[Transition, ...], Field(max_length=MOST_STEPS, description="transitions at which every state has several successors")
]
Branching = Annotated[int, Field(ge=2, le=MOST_SAMPLES, description="successors at a split")]
Fusion = Annotated[
    Literal["mean", "softmax"], Field(description="a state's reward: mean of its leaves', or by its successors' likelihood")
]
Depths = Annotated[tuple[Transition, ...], Field(max_length=MOST_STEPS, description="transitions left out of training")]
SlideEvery = Annotated[
    int | None, Field(ge=1, le=10**9, description="iterations after which they move one up, to the last split")
]
SplitNoise = Annotated[
    float, Field(gt=0, description="noise at a split times its std; the log-probability is that of the kernel itself")
]
Keep = Annotated[
    Literal["all", "best", "best_child", "extremes"],
    Field(
        description="leaves trained after the last split: all, the best half, the best of each parent's, or the best and the "
        "worst quarter"
    ),
]
EdgesPerUpdate = Annotated[int, Field(ge=1, le=10**9, description="transitions of a group in one optimizer step, about")]

# of methods that train on finished samples, noised again
Pairs = Annotated[int, Field(ge=1, le=MOST_STEPS, description="T, pairs (t, eps) drawn for each sample, on the rollout's grid")]
TrainFrom = Annotated[float, Field(ge=0, lt=1, description="first time of the grid that may be drawn, fraction of the grid")]
TrainTo = Annotated[float, Field(gt=0, le=1, description="end of the times that may be drawn, fraction of the grid")]
Times = Annotated[
    Literal["random", "stratified"], Field(description="T times at random without repetition, or one in each of T equal parts")
]
Shared = Annotated[
    Literal["none", "times", "pairs"], Field(description="what the samples of a group share: nothing, t, or t and eps")
]
AnyClip = Annotated[float | None, Field(gt=0, le=1, description="c, clip range of the ratio; null = no clip")]
Lag = Annotated[float, Field(ge=0, description="weight of the distance to the lagging copy `ema`")]


DDOF = {"population": 0, "sample": 1}  # what is taken off the divisor of a std


def check_kernel(sde: str, eta: float) -> None:
    """Raise ValueError for a strength that a kernel cannot have."""
    if sde in SHARES and eta > 1:
        raise ValueError(f"eta ({eta:g}) is a share of the noise where sde is {sde}: choose at most 1")
