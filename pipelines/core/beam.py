"""Apache Beam options, which decide where the two Beam jobs run."""

from collections.abc import Sequence

BEAM_OPTIONS = ("--runner=FnApiRunner",)  # runs in this process; DirectRunner first tries to download another runner


def check_options(options: Sequence[str]) -> None:
    """Raises ValueError for options that Beam does not recognise and for a runner that is not installed."""
    if tuple(options) == BEAM_OPTIONS:
        return  # skips importing Beam, which takes a second
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    try:
        runner = PipelineOptions(list(options)).view_as(StandardOptions).runner
    except SystemExit:  # argparse exits on invalid options
        raise ValueError(f"Beam does not recognise these options: {' '.join(options)}") from None
    try:
        create_runner(runner or StandardOptions.DEFAULT_RUNNER)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"the Beam runner {runner} is not available: {error}") from None
