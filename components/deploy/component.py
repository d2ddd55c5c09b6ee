"""Step 10: the promoted version becomes an entry of Triton's model repository, and answers a request."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Markdown, Output

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def deploy(
    version: int,
    studies: Input[Dataset],
    tracking_uri: str,
    repository: str,
    settings: dict,
    answer: Output[Markdown],
):
    """Exports the version and, where it starts a server, asks it for the draft of one held-out study.

    Args:
        version: the version's number.
        studies: the folder of `ingest`; a study of the test split is sent.
        tracking_uri: MLflow's server or database.
        repository: Triton's model repository, a folder or s3:// address.
        settings: `state_dir` and ports of a tritonserver to start here; without, the version is exported and
            waits for the server's next roll-out.
        answer: where the version stands, or its draft with what the server measured.
    """
    from mu2llm.components.rollout import roll_out
    from mu2llm.components.step import options, step, write

    with step():
        write(answer.path, roll_out(version, studies.path, tracking_uri, repository, **options(settings)))
