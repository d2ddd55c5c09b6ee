"""Step 9: a version is measured against the gate's rules, then promoted, or refused with the reasons."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Markdown, Output

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def gate(
    version: int,
    tracking_uri: str,
    settings: dict,
    verdict: Output[Markdown],
) -> NamedTuple("Verdict", [("passed", bool), ("reasons", str)]):  # type: ignore[valid-type]
    """Measures a version against the rules and the present champion; the verdict becomes tags of the version.

    Args:
        version: the version's number.
        tracking_uri: MLflow's server or database.
        settings: `rules`, a list as in mlflow/registry/gate.yaml (its own by default); `name`.
        verdict: every rule with what was measured.

    Returns:
        Whether it passed, and why not.
    """
    from typing import NamedTuple

    from mu2llm.components.step import options, step, write
    from mu2llm.registry import gate as run

    with step():
        result = run(version, tracking_uri=tracking_uri, **options(settings))
        lines = [f"# Version {version}: {'passed' if result.passed else 'refused'}", ""]
        write(verdict.path, "\n".join(lines + [f"- {reason}" for reason in result.reasons]) + "\n")
        return NamedTuple("Verdict", [("passed", bool), ("reasons", str)])(
            result.passed, "; ".join(result.reasons)
        )


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def promote(version: int, tracking_uri: str, settings: dict) -> int:
    """Moves the alias `champion` to a version that passes the gate against the champion of this moment.

    Args:
        version: the version's number.
        tracking_uri: MLflow's server or database.
        settings: options of `mu2llm.registry.promote`, such as `name`.

    Returns:
        The version's number, so that a later step can wait for it.
    """
    from mu2llm.components.step import options, step
    from mu2llm.registry import promote as run

    with step():
        run(version, tracking_uri=tracking_uri, **options(settings))
        return version


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def refuse(version: int, reasons: str):
    """Ends the run of a version that did not pass: the champion stays.

    Args:
        version: the version's number.
        reasons: why it did not pass.
    """
    from mu2llm.components.step import step

    with step():
        print(f"version {version} is refused, the champion stays: {reasons}")
