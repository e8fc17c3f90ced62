"""The command lines whose results are frozen, in groups that are run one after the other in one folder.

Each group starts in a new folder (see fixtures.py for what is in it) and its steps see each other's files.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

Kind = Literal["exact", "certify", "train"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command line.

    Attributes:
        command: words after `citrus`, or "script NAME" for a Python file of this folder.
        kind: exact: equal on every machine; certify: counts and verdicts may flip with the last bits of floats; train:
            all numbers that were computed may differ.
        files: what is collected, relative to the working folder; may hold `*`.
        always: also run where CITRUS_GOLD is not set to `exact`.
    """

    name: str
    command: str
    kind: Kind = "exact"
    files: tuple[str, ...] = ()
    always: bool = True

    @property
    def words(self) -> list[str]:
        """The command line's words."""
        return shlex.split(self.command)


PLAIN = "models/digits_convtiny.onnx"
CITRUS = "models/digits_convtiny_citrus.onnx"
COMMON = "--threads 1 --seed 0 --quiet"


def _certify(name: str, model: str, options: str, *, always: bool = False, solver: str = "highs") -> Case:
    proof = f" --certificate {name}.proof" if "PROOF" in options else ""
    return Case(
        name=name,
        command=f"certify-uap {model} {options.replace(' PROOF', '')} --solver {solver} {COMMON}"
        f" --run-dir runs/{name} --json {name}.json{proof}",
        kind="certify",
        files=(
            f"{name}.json",
            f"runs/{name}/*.json*",
            f"runs/{name}/settings.toml",
            *([f"{name}.proof"] * bool(proof)),
        ),
        always=always,
    )


CERTIFY = (
    _certify("ibp", PLAIN, "--eps 0.05 --limit 20 --bounds ibp"),
    _certify("ibp_citrus", CITRUS, "--eps 0.15 --limit 40 --bounds ibp"),
    _certify("crown", PLAIN, "--eps 0.05 --limit 20 --bounds crown", always=True),
    _certify("crown_citrus", CITRUS, "--eps 0.15 --limit 40 --bounds crown"),
    _certify("alpha", PLAIN, "--eps 0.05 --limit 20 --bounds alpha"),
    _certify("alpha_citrus", CITRUS, "--eps 0.15 --limit 20 --bounds alpha"),
    _certify("full", PLAIN, "--eps 0.05 --limit 20 --bounds full PROOF", always=True),
    _certify("full_citrus", CITRUS, "--eps 0.15 --limit 20 --bounds full"),
    _certify("full_plain_intermediate", PLAIN, "--eps 0.04 --limit 10 --bounds full --intermediate crown"),
    _certify("full_few_nodes", PLAIN, "--eps 0.07 --limit 10 --bounds full --branch-nodes 40"),
    _certify("dataset_ibp", CITRUS, "--eps 0.15 --limit 20 --bounds ibp --scope dataset"),
    _certify("dataset_crown", PLAIN, "--eps 0.04 --limit 20 --bounds crown --scope dataset", always=True),
    _certify("dataset_full", PLAIN, "--eps 0.05 --limit 20 --bounds full --scope dataset PROOF"),
    _certify("clip_crown", PLAIN, "--eps 0.06 --limit 20 --bounds crown --clip"),
    _certify("clip_full", PLAIN, "--eps 0.06 --limit 10 --bounds full --clip PROOF"),
    _certify("target_crown", PLAIN, "--eps 0.08 --limit 20 --bounds crown --target 3", always=True),
    _certify("target_full", PLAIN, "--eps 0.06 --limit 20 --bounds full --target 8 --clip PROOF"),
    _certify("target_dataset", PLAIN, "--eps 0.06 --limit 20 --bounds alpha --target 8 --scope dataset"),
    _certify("correct", CITRUS, "--eps 0.12 --limit 20 --bounds crown --protocol correct", always=True),
    _certify("correct_dataset", CITRUS, "--eps 0.15 --limit 20 --bounds alpha --protocol correct --scope dataset"),
    _certify("groups_of_three", PLAIN, "--eps 0.03 --limit 20 --bounds crown --group-size 3 --split validation"),
    _certify("both_solvers", PLAIN, "--eps 0.05 --limit 20 --bounds crown", solver="both"),
    _certify("cbc", PLAIN, "--eps 0.05 --limit 20 --bounds alpha --attack-steps 5 --attack-restarts 1", solver="cbc"),
    _certify("normalised", PLAIN, "--eps 0.02 --limit 10 --bounds crown --mean 0.1 --std 0.9"),
    Case(
        name="check_full",
        command=f"check full.proof {PLAIN} --data digits --json check_full.json --quiet",
        kind="certify",
        files=("check_full.json",),
    ),
    Case(
        name="check_target",
        command=f"check target_full.proof {PLAIN} --json check_target.json --quiet",
        kind="certify",
        files=("check_target.json",),
        always=False,
    ),
    Case(
        name="check_dataset",
        command=f"check dataset_full.proof {PLAIN} --data digits --json - --quiet",
        kind="certify",
        always=False,
    ),
    Case(
        name="sweep",
        command=f"certify-uap {PLAIN} --eps 0.02,0.05 --limit 10 --solver highs {COMMON} --run-dir runs/sweep"
        " --json sweep.json --csv sweep.csv --latex sweep.tex",
        kind="certify",
        files=("sweep.json", "sweep.csv", "sweep.tex"),
    ),
    Case(
        name="compare",
        command=f"compare {PLAIN} {CITRUS} --eps 0.04,0.08 --limit 10 --solver highs {COMMON} --run-dir runs/compare"
        " --json compare.json --csv compare.csv --latex compare.tex",
        kind="certify",
        files=("compare.json", "compare.csv", "compare.tex"),
        always=False,
    ),
    Case(
        name="attack",
        command=f"attack-uap {PLAIN} --eps 0.1 --limit 20 {COMMON} --json attack.json --save u.npy",
        kind="certify",
        files=("attack.json", "u.npy"),
    ),
    Case(
        name="attack_dataset",
        command=f"attack-uap {PLAIN} --eps 0.1 --limit 20 --scope dataset --clip --target 8 {COMMON}"
        " --json attack_dataset.json --save d.npy",
        kind="certify",
        files=("attack_dataset.json", "d.npy"),
        always=False,
    ),
    Case(
        name="evaluate",
        command=f"evaluate {PLAIN} --eps 0.04 --limit 10 --solver highs {COMMON} --json evaluate.json",
        kind="certify",
        files=("evaluate.json",),
    ),
    Case(
        name="inspect",
        command=f"inspect {PLAIN} --data digits --json inspect.json --quiet",
        kind="certify",
        files=("inspect.json",),
    ),
    Case(
        name="init",
        command=f"init {PLAIN} --json init.json --out init.toml --quiet",
        kind="certify",
        files=("init.json", "init.toml"),
    ),
    Case(
        name="export",
        command=f"export-query {PLAIN} --eps 0.05 --group-size 2 --group 1 --at-least 1 --out exported"
        " --json export.json --quiet",
        kind="certify",
        files=("export.json", "exported/*"),
    ),
    Case(
        name="verify_local",
        command=f"verify vnnlib/digits_test_170_eps_0.02.vnnlib --network N={PLAIN} --threads 1 --quiet",
        kind="certify",
    ),
    Case(
        name="verify_sat",
        command=f"verify vnnlib/digits_test_170_eps_0.1.vnnlib --network N={PLAIN} --threads 1 --quiet",
        kind="certify",
    ),
    Case(
        name="verify_timeout",
        command=f"verify vnnlib/digits_test_170_eps_0.02.vnnlib --network N={PLAIN} --timeout 0 --threads 1 --quiet",
    ),
    Case(
        name="verify_uap",
        command=f"verify vnnlib/digits_convtiny_citrus_uap_2_eps_0.05.vnnlib --network f1={CITRUS} --threads 1 --quiet",
    ),
    Case(
        name="verify_uap_sat",
        command=f"verify vnnlib/digits_convtiny_uap_2_eps_0.1.vnnlib --network f1={PLAIN} --threads 1 --quiet",
        kind="certify",
        always=False,
    ),
    Case(
        name="verify_product",
        command="verify vnnlib/digits_convtiny_uap_4_product_eps_0.02_2.vnnlib"
        " --network N=vnnlib/digits_convtiny_uap_4_product.onnx --threads 1 --quiet",
        always=False,
    ),
    Case(
        name="vnncomp",
        command="vnncomp vnnlib/few.csv --answers vnnlib/answers.csv --threads 1 --run-dir runs/vnncomp"
        " --json vnncomp.json --quiet",
        kind="certify",
        files=("vnncomp.json", "runs/vnncomp/*.csv"),
        always=False,
    ),
    Case(name="public", command="script public.py", kind="certify"),
)


def _train(name: str, command: str, files: tuple[str, ...] = (), *, always: bool = False) -> Case:
    run = f"runs/{name}"
    return Case(
        name=name,
        command=f"{command} {COMMON} --run-dir {run} --json {name}.json",
        kind="train",
        files=(f"{name}.json", f"{run}/*.json*", f"{run}/*.toml", f"{run}/*.onnx", f"{run}/*.safetensors", *files),
        always=always,
    )


_HARDEN = f"harden {PLAIN} --eps 0.1 --limit 10 --solver highs --lr 0.001"
_BRIEF = f"harden {CITRUS} --eps 0.1 --limit 5 --bounds ibp --lr 0.001"

TRAIN = (
    _train("harden", f"{_HARDEN} --epochs 3", always=True),
    _train("train", "train mlp --epochs 2", always=True),
    *(
        _train(f"harden_{method.replace('-', '_')}", f"{_BRIEF} --epochs 2 --method {method}")
        for method in (
            "citrus-plus",
            "citrus-si",
            "kcp",
            "standard",
            "pgd",
            "uat",
            "cw-uat",
            "ibp",
            "crown-ibp",
            "sabr",
            "taps",
            "staps",
            "mtl-ibp",
            "cc-ibp",
            "exp-ibp",
        )
    ),
    _train("harden_shi", f"{_HARDEN} --epochs 3 --init shi --batch-norm --same-input --tau-ratio 0.7 --pgd-steps 2"),
    _train("harden_all", f"{_HARDEN} --epochs 2 --train-on all --group-size 4 --groups-per-batch 12 --lr 0.001 --l1 0"),
    _train("harden_recipe", f"{_HARDEN} --epochs 3 --recipe files/recipe.toml"),
    _train(
        "harden_spec",
        f"harden {CITRUS} --spec vnnlib/digits_test_170_eps_0.02.vnnlib --epochs 2 --limit 10 --solver highs",
    ),
    _train("train_citrus", "train convtiny --method citrus --eps 0.1 --epochs 2"),
    _train("train_resnet", "train resnet --epochs 1"),
    _train("tune", f"tune {PLAIN} --eps 0.1 --epochs 2 --trials 2 --limit 10"),
)

_COMMANDS = (
    "demo",
    "init",
    "inspect",
    "harden",
    "certify-uap",
    "compare",
    "check",
    "attack-uap",
    "evaluate",
    "report",
    "verify",
    "supports",
    "vnncomp",
    "export-query",
    "train",
    "tune",
    "bench",
    "data",
)
_TABLES = ("table1", "table2", "table3", "table4", "fig4", "fig5", "published")

LISTS = (
    Case(name="version", command="--version"),
    Case(name="solver_name", command="--name"),
    Case(name="supports", command="supports --onnx-operators"),
    Case(
        name="supports_all",
        command="supports --onnx-opset-versions --onnx-element-types --vnnlib-versions --hidden-node-theories",
    ),
    Case(name="data_list", command="data list --json data_list.json", files=("data_list.json",)),
    Case(
        name="data_prepare",
        command="data prepare digits --json data_prepare.json --quiet",
        files=("data_prepare.json",),
    ),
    *(
        Case(name=f"list_{table}", command=f"bench {table} --list --journal old/bench_journal.jsonl")
        for table in _TABLES
    ),
    Case(
        name="list_scales",
        command="bench table1 --list --scale gpu --data cifar10 --journal old/bench_journal.jsonl",
    ),
    Case(
        name="bench_results",
        command="bench results --journal old/bench_journal.jsonl --out results.md --no-plots",
        files=("results.md",),
    ),
    Case(name="api", command="script surface.py"),
)

HELP = tuple(
    Case(name="help_" + "_".join(words).replace("-", "_"), command=" ".join([*words, "--help"]))
    for words in (
        (),
        *((name,) for name in _COMMANDS),
        *(("bench", name) for name in (*_TABLES, "results")),
        ("data", "list"),
        ("data", "prepare"),
    )
)

_UAP = f"certify-uap {PLAIN}"
_ERRORS = (
    "",
    "certfy-uap",
    "bench tabel1",
    "bench table1 --list --scale huge",
    "bench table4 --list --scale smoke",
    "bench table1 --list --data digits",
    "bench table1 --list --eps 0.7",
    "bench table1 --list --methods citros",
    "bench results --out none/results.md",
    "bench table1 --list --journal files/bad.jsonl",
    "certify-uap",
    f"{_UAP}",
    f"{_UAP} --epz 0.1",
    "certify-uap models/none.onnx --eps 0.1",
    "certify-uap models/digits_convtinny.onnx --eps 0.1",
    f"{_UAP} --eps -0.1",
    f"{_UAP} --eps=1.5",
    f"{_UAP} --eps 1/0",
    f"{_UAP} --eps nan",
    f"{_UAP} --eps 0.1,0.1",
    f"{_UAP} --eps 0.1, --quiet",
    f"{_UAP} --eps 0.1 --data cifr10",
    f"{_UAP} --eps 0.1 --data mnist --data-root nowhere",
    f"{_UAP} --eps 0.1 --data files/none.npz",
    f"{_UAP} --eps 0.1 --data files/empty.npz",
    f"{_UAP} --eps 0.1 --data files/range.npz",
    f"{_UAP} --eps 0.1 --data files/labels.npz",
    f"{_UAP} --eps 0.1 --data files/negative.npz",
    f"{_UAP} --eps 0.1 --data files/keys.npz",
    f"{_UAP} --eps 0.1 --data files/text.npz",
    f"{_UAP} --eps 0.1 --data files",
    f"{_UAP} --eps 0.1 --bounds crwn",
    f"{_UAP} --eps 0.1 --solver gurobi",
    f"{_UAP} --eps 0.1 --protocol right",
    f"{_UAP} --eps 0.1 --scope group",
    f"{_UAP} --eps 0.1 --split tst",
    f"{_UAP} --eps 0.1 --limit 0",
    f"{_UAP} --eps 0.1 --group-size 0",
    f"{_UAP} --eps 0.1 --time-limit 0",
    f"{_UAP} --eps 0.1 --mean a,b",
    f"{_UAP} --eps 0.1 --mean 0.1,0.2 --quiet",
    f"{_UAP} --eps 0.1 --std 0 --quiet",
    f"{_UAP} --eps 0.1 --target 12 --limit 5 --quiet",
    f"{_UAP} --eps 0.1 --device cdua",
    f"{_UAP} --eps 0.1 --part 3",
    f"{_UAP} --eps 0.1 --part 4/3 --limit 10 --quiet",
    f"{_UAP} --eps 0.1,0.2 --part 1/2",
    f"{_UAP} --eps 0.1 --join none --limit 5 --quiet",
    f"{_UAP} --eps 0.1,0.2 --certificate p.proof",
    f"{_UAP} --eps 0.1 --certificate p.proof --bounds crown --quiet",
    f"{_UAP} --eps 0.1 --certificate none/p.proof --bounds full",
    f"{_UAP} --eps 0.1 --run-dir files/text.npz",
    f"{_UAP} --eps 0.1 --json none/c.json",
    f"{_UAP} --eps 0.1 --json files",
    f"{_UAP} --eps 0.1 --csv none/c.csv",
    f"{_UAP} --eps 0.1 --report none/c.html",
    f"{_UAP} --config files/none.toml",
    f"{_UAP} --config files/bad.toml",
    f"{_UAP} --config files/unknown.toml",
    f"{_UAP} --config files/range.toml",
    f"{_UAP} --config files/type.toml",
    "certify-uap files/text.onnx --eps 0.1 --quiet",
    "certify-uap files/erf.onnx --eps 0.1 --quiet",
    "certify-uap files/wide.onnx --eps 0.1 --quiet",
    "certify-uap files/seven.onnx --eps 0.1 --quiet",
    "certify-uap files/nan.onnx --eps 0.1 --quiet",
    "certify-uap files/two_inputs.onnx --eps 0.1 --quiet",
    "inspect models/none.onnx",
    "inspect files/text.onnx",
    "inspect files/erf.onnx --quiet",
    f"inspect {PLAIN} --data cifr10",
    f"attack-uap {PLAIN} --eps 0.1 --save none/u.npy",
    f"attack-uap {PLAIN}",
    f"evaluate {PLAIN} --eps x",
    f"compare {PLAIN} --eps 0.1",
    f"compare {PLAIN} files/none.onnx --eps 0.02 --limit 2 --bounds ibp --attack-restarts 0 --quiet",
    f"harden {PLAIN}",
    f"harden {PLAIN} --eps 0.1 --method citris",
    f"harden {PLAIN} --eps 0.1 --recipe digit",
    f"harden {PLAIN} --eps 0.1 --recipe files/none.toml",
    f"harden {PLAIN} --eps 0.1 --recipe files/recipe_unknown.toml",
    f"harden {PLAIN} --eps 0.1 --recipe files/recipe_method.toml",
    f"harden {PLAIN} --eps 0.1 --recipe files/recipe_value.toml",
    f"harden {PLAIN} --eps 0.1 --epochs 2 --tau-ratio 0 --limit 5",
    f"harden {PLAIN} --eps 0.1 --epochs 0",
    f"harden {PLAIN} --eps 0.1 --out {PLAIN}",
    f"harden {PLAIN} --eps 0.1 --init xavier",
    f"harden {PLAIN} --spec files/none.vnnlib --quiet",
    f"harden {PLAIN} --spec files/bad.vnnlib --quiet",
    f"harden {PLAIN} --eps 0.1 --train-on test",
    f"harden {PLAIN} --eps 0.1 --tracker wandb",
    "train convtny",
    "train convtiny --method citrus",
    "train convtiny --method citrs",
    "train convtiny --out none/M.onnx",
    "train convtiny --lr -1 --epochs 1 --quiet",
    f"tune {PLAIN} --eps 0.1 --search lrr=1:2 --quiet",
    f"tune {PLAIN} --eps 0.1 --search lr=2:1 --quiet",
    "tune --eps 0.1 --quiet",
    f"tune {PLAIN} --eps 0.1 --bounds full",
    "verify files/none.vnnlib",
    f"verify files/bad.vnnlib --network N={PLAIN}",
    f"verify files/empty.vnnlib --network N={PLAIN}",
    f"verify files/other.vnnlib --network N={PLAIN}",
    "verify vnnlib/digits_test_170_eps_0.02.vnnlib --network N=files/none.onnx",
    "verify vnnlib/digits_test_170_eps_0.02.vnnlib",
    f"verify vnnlib/digits_convtiny_uap_2_eps_0.1.vnnlib --network g={PLAIN}",
    f"verify vnnlib/digits_test_170_eps_0.02.vnnlib --network N={PLAIN} --network M={PLAIN}",
    "supports --onnx-operator",
    "vnncomp files/none.csv",
    "vnncomp files/bad.csv --quiet",
    f"export-query {PLAIN} --eps 0.1 --group 100000",
    f"export-query {PLAIN} --eps 0.1 --at-least 9 --out out_query",
    f"check files/none.proof {PLAIN}",
    f"check files/text.npz {PLAIN} --quiet",
    f"check files/damaged.proof {PLAIN} --quiet",
    f"check files/claims.proof {PLAIN} --quiet",
    f"check files/missing.proof {PLAIN} --quiet",
    f"check old/digits.proof {CITRUS} --quiet",
    f"check old/digits.proof {PLAIN} --data digits --split train --quiet",
    "report",
    "report none",
    "report files --quiet",
    "report old/certify --out none/r.html",
    "report files/bad.json --quiet",
    "data prepare cifr10",
    "data prepare mnist --data-root nowhere",
    "data lst",
    f"init {PLAIN} --out models",
    f"init {PLAIN} --data cifr10",
)

ERRORS = tuple(Case(name=f"error_{number:03}", command=command) for number, command in enumerate(_ERRORS))

_OLD = f"{_UAP} --eps 0.05 --limit 20 --bounds full --solver highs {COMMON}"


def _resume(name: str, options: str, *, always: bool = False, kind: Kind = "exact") -> Case:
    files = (f"{name}.json", f"{name}/journal.jsonl") if kind != "exact" else ()
    return Case(
        name=name,
        command=f"{options} --run-dir {name} --resume --json {name}.json",
        kind=kind,
        files=files,
        always=always,
    )


OLD = (
    _resume("resumed", _OLD, always=True, kind="certify"),
    _resume("resumed_dataset", f"{_OLD} --scope dataset", kind="certify"),
    _resume("finished", _OLD, always=True, kind="certify"),
    Case(name="not_resumed", command=f"{_OLD} --run-dir unfinished"),
    _resume("unfinished", _OLD.replace("0.05", "0.06"), always=True),
    _resume("other_seed", _OLD.replace("--seed 0", "--seed 1"), always=True),
    _resume("other_version", _OLD, always=True),
    _resume("other_prover", _OLD, always=True),
    _resume("damaged", _OLD, always=True),
    _resume("torn", _OLD, always=False, kind="certify"),
    _resume("no_journal", _OLD, always=True),
    _resume("other_groups", _OLD, always=True),
    Case(
        name="check_old",
        command=f"check old/digits.proof {PLAIN} --data digits --json check_old.json --quiet",
        files=("check_old.json",),
    ),
    Case(
        name="report_certify",
        command="report old/certify --out certify.html --quiet",
        kind="certify",
        files=("certify.html",),
    ),
    Case(
        name="report_harden",
        command="report old/harden --out harden.html --quiet",
        kind="certify",
        files=("harden.html",),
    ),
)

GROUPS: dict[str, tuple[Case, ...]] = {
    "certify": CERTIFY,
    "train": TRAIN,
    "texts": (*HELP, *LISTS, *ERRORS),
    "old": OLD,
}
"""Cases by the name of their gold file."""
