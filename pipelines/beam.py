"""Apache Beam's options: where the two jobs run."""

from collections.abc import Sequence

BEAM_OPTIONS = ("--runner=FnApiRunner",)  # in this process; DirectRunner would first try to download another runner


def check_options(options: Sequence[str]) -> None:
    """Raises ValueError for a runner that is not there."""
    if tuple(options) == BEAM_OPTIONS:
        return  # Beam takes a second to import
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    try:
        runner = PipelineOptions(list(options)).view_as(StandardOptions).runner
    except SystemExit:  # how argparse refuses
        raise ValueError(f"options that Beam does not understand: {' '.join(options)}") from None
    try:
        create_runner(runner or StandardOptions.DEFAULT_RUNNER)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"no Beam runner {runner}: {error}") from None
