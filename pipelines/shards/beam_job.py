"""Beam job 2: every shard is written on its own, from the order of the samples."""

from pipelines.shards.plan import ShardPlan
from pipelines.shards.writer import write_shard


def write_all_shards(plan: ShardPlan, beam_options: list[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    class Write(beam.DoFn):
        def process(self, shard: int):
            write_shard(plan, shard)
            yield shard

    with beam.Pipeline(options=PipelineOptions(beam_options)) as pipeline:
        _ = (
            pipeline
            | "name the shards" >> beam.Create(range(plan.num_shards))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.ParDo(Write()).with_output_types(int)
        )
    lost = [shard for shard in range(plan.num_shards) if not plan.facts_file(shard).is_file()]
    if lost:
        raise RuntimeError(f"the Beam runner did not write the shards {lost}; run again with FnApiRunner")
