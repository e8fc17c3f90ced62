"""`citrus vnncomp`: a benchmark folder of VNN-COMP, run and scored here."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click

from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import CheckFailedError, InputFileError, UsageError
from citrus_tool.files import require_writable_folder


@click.command("vnncomp")
@click.argument("instances", type=parameters.PATH)
@click.option("--run-dir", type=parameters.PATH, metavar="DIR", help="Results and witnesses [default: runs/FOLDER].")
@click.option("--resume", is_flag=True, help="Keep the results that --run-dir holds and run the others.")
@options.workers_option("Instances at a time.")
@options.threads_option("CPU threads of each [default: cores / workers].")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Caps every instance's timeout.",
)
@click.option("--answers", type=parameters.PATH, metavar="FILE.csv", help="Known answers: onnx,vnnlib,verdict.")
@options.report_option
@options.output_options
@gathered
def vnncomp(
    instances: Path,
    time_limit: float | None,
    answers: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Runs the instances of a VNN-COMP benchmark with citrus verify; checks every witness and scores.

    \b
    Example:
      citrus vnncomp vnnlib/instances.csv --workers 2
    """
    from citrus_tool.queries import benchmark

    if instances.is_dir():
        raise InputFileError(f"{instances}: is a folder; give the list of its instances, {instances}/instances.csv.")
    listed = benchmark.read_instances(instances)
    known = benchmark.read_answers(answers) if answers is not None else {}
    folder = context.run_dir or Path("runs") / f"vnncomp_{instances.resolve().parent.name}"
    require_writable_folder(folder)
    if not context.resume and (folder / benchmark.RECORDS).exists():
        raise UsageError(f"{folder} holds the results of another run; add --resume or name another --run-dir.")
    records = list(
        benchmark.run(
            listed,
            folder,
            workers=context.workers,
            threads=context.threads or max(1, (os.cpu_count() or 1) // context.workers),
            limit=time_limit,
            progress=context.progress,
        )
    )
    score = sum(benchmark.points(record, known.get((record.onnx, record.vnnlib))) for record in records)
    counts = Counter(record.verdict for record in records)
    wrong = [r for r in records if benchmark.points(r, known.get((r.onnx, r.vnnlib))) < 0]
    result = {
        "instances": len(records),
        "verdicts": dict(counts),
        "seconds": round(sum(record.seconds for record in records), 3),
        "score": score,
        "wrong": [{"onnx": r.onnx, "vnnlib": r.vnnlib, "verdict": r.verdict, "note": r.note} for r in wrong],
        "run_dir": str(folder),
    }
    rows = [
        [Path(r.onnx).name, Path(r.vnnlib).name, r.verdict, f"{r.seconds:.1f}", r.note if r.verdict == "error" else ""]
        for r in records
    ]
    terminal.show(result, outputs.json, ["network", "query", "verdict", "seconds", "note"], rows)
    if not outputs.on_stdout:
        decided = counts["sat"] + counts["unsat"]
        click.echo(f"\n{decided} of {len(records)} decided, {counts['error']} errors, score {score}; {folder}")
    terminal.write_report(outputs.report, folder)
    if wrong:
        raise CheckFailedError(f"{wrong[0].vnnlib}: the answer {wrong[0].verdict} is wrong ({wrong[0].note}).")
